"""The objective of T-VSL: L = L_mcid + L_cls + L_av, for any number of sources.

Sources are a tensor axis of length K; ``class_id`` -1 fills up samples with fewer, and counts nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Scales", "classification", "correspondence", "detection"]

Reduction = Literal["sum", "mean"]
IGNORED = -100


@dataclass(frozen=True)
class Scales:
    """AudioCLIP's frozen factors of cosines, each ``[]`` in [1, 100].

    Attributes:
        image_text: of L_cls of pictures.
        audio_text: of L_cls of sounds.
        audio_image: of L_av.
    """

    image_text: Tensor
    audio_text: Tensor
    audio_image: Tensor


def detection(logits: Tensor, target: Tensor, reduction: Reduction = "sum") -> Tensor:
    """L_mcid: binary cross-entropy of each class, as a mean over samples.

    Args:
        logits: ``[B, N]``.
        target: int64 ``[B, K]``, classes that sound; -1 fills up.
        reduction: over the N classes.
    """
    there = torch.zeros_like(logits).scatter_reduce(1, target.clamp(min=0), (target >= 0).to(logits.dtype), "amax")
    loss = F.binary_cross_entropy_with_logits(logits, there, reduction="none")
    return loss.mean() if reduction == "mean" else loss.sum(1).mean()


def classification(features: Tensor, bank: Tensor, target: Tensor, scale: Tensor, reduction: Reduction) -> Tensor:
    """One side of L_cls: cross-entropy of each source's feature with the bank.

    Args:
        features: unit length, ``[B, K, D]``.
        bank: unit length, ``[N, D]``.
        target: int64 ``[B, K]``; -1 fills up.
        scale: factor of the cosines.
        reduction: over the sources; the mean is over all of the batch. 0 where there is none.
    """
    with torch.autocast(features.device.type, enabled=False):
        logits = scale * features.float() @ bank.float().T
    wanted = torch.where(target >= 0, target, IGNORED).flatten()
    total = F.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=IGNORED, reduction="sum")
    count = (target >= 0).sum().clamp(min=1) if reduction == "mean" else len(target)
    return total / count


def correspondence(audio: Tensor, visual: Tensor, valid: Tensor, scale: Tensor) -> Tensor:
    """L_av: symmetric InfoNCE over all sources of the batch; the others of its own sample are negatives, too.

    Args:
        audio: unit length, ``[R, D]``.
        visual: unit length, ``[R, D]``.
        valid: bool ``[R]``; rows without source are neither positives nor negatives.
        scale: factor of the cosines.

    Returns:
        scalar; 0 where there is no source.
    """
    with torch.autocast(audio.device.type, enabled=False):
        logits = scale * audio.float() @ visual.float().T
    rows = torch.arange(len(valid), device=valid.device)
    target = torch.where(valid, rows, IGNORED)
    # Finite, so that rows of a batch without any source do not turn into NaN.
    logits = logits.masked_fill(~(valid[:, None] & valid), torch.finfo(logits.dtype).min)
    both = [F.cross_entropy(x, target, ignore_index=IGNORED, reduction="sum") for x in (logits, logits.T)]
    return (both[0] + both[1]) / (2 * valid.sum().clamp(min=1))
