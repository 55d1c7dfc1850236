"""SeAC's losses: mask-instance contrastive learning, aware of several sources (the paper's equations 6 to 8).

B samples of N masks, K groups of samples whose sounds are summed. With K = B this is MICL (equation 6).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MSAMICL", "best_similarity", "draw_groups", "mix", "mixing_probability", "msa_micl"]


class MSAMICL(NamedTuple):
    """The terms of equation 8; the loss is their plain sum.

    Attributes:
        audio: ``[K]``, of each group: at least one of its members must match its sound.
        mask: ``[B]``, of each sample: its best mask must match its own group's sound.
    """

    audio: Tensor
    mask: Tensor

    @property
    def loss(self) -> Tensor:
        return self.audio.sum() + self.mask.sum()


def best_similarity(masks: Tensor, audio: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Equation 7: the best cosine of a sample's masks with each sound; gradients reach that mask alone.

    Args:
        masks: embeddings ``[B, N, d]``.
        audio: embeddings ``[K, d]``.
        valid: bool ``[B, N]``, False for padding, which is left out of the maximum; at least one per sample.

    Returns:
        S float ``[B, K]`` and the winning mask int64 ``[B, K]``, the lowest index on ties. float32 under autocast.
    """
    S = cosines(masks, audio)
    if valid is not None:
        S = S.masked_fill(~valid[..., None], -torch.inf)
    best, index = S.max(1)
    return best, index


def cosines(masks: Tensor, audio: Tensor) -> Tensor:
    """``[B, N, K]`` of masks ``[B, N, d]`` and sounds ``[K, d]``; float32, or float64 where given."""
    with torch.autocast(masks.device.type, enabled=False):
        masks, audio = (F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1) for x in (masks, audio))
        return masks @ audio.T


def msa_micl(S: Tensor, group: Tensor, tau: Tensor | float) -> MSAMICL:
    """Equation 8, sums and not means.

    Args:
        S: ``[B, K]`` of `best_similarity`.
        group: int64 ``[B]``, each sample's group, 0 to K - 1; groups may differ in size. The term of a group
            without any sample is infinite.
        tau: temperature, above 0.

    Returns:
        float32 terms under any autocast; float64 where S is.
    """
    with torch.autocast(S.device.type, enabled=False):
        logits = (S if S.dtype == torch.float64 else S.float()) / tau
        own = F.one_hot(group, S.shape[1]).bool()
        members = logits.masked_fill(~own, -torch.inf).logsumexp(0)
        audio = logits.logsumexp(0) - members
        mask = logits.logsumexp(1) - logits.gather(1, group[:, None])[:, 0]
        return MSAMICL(audio, mask)


# ---- sounds that are mixed


def mixing_probability(epoch: int, epochs: int, start: float = 0.0, end: float = 0.5) -> float:
    """The linear curriculum: ``start`` in the first epoch, ``end`` in the last; ``start`` where there is only one.

    Args:
        epoch: from 0.
        epochs: of the whole run.
        start, end: probabilities that a batch is mixed.
    """
    share = epoch / (epochs - 1) if epochs > 1 else 0.0
    return start + (end - start) * min(1.0, share)


def draw_groups(samples: int, size: int = 2, generator: torch.Generator | None = None) -> Tensor:
    """A random permutation cut into groups of ``size``; the last one is smaller where they do not go up.

    Returns:
        int64 ``[samples]`` on the CPU, each sample's group, 0 to ``ceil(samples / size) - 1``.
    """
    return torch.randperm(samples, generator=generator) // size


def mix(waveform: Tensor, group: Tensor, groups: int) -> Tensor:
    """Plain sums of waveforms ``[B, T]`` over each of K groups, ``[K, T]``: neither rescaled nor clipped."""
    return waveform.new_zeros(groups, waveform.shape[1]).index_add(0, group, waveform)
