"""AVSBench-Robust: false-positive share of each frame, and the global scores of ACL-SSL's table 5.

Source: jiali-home/AVSBench-Robust (03e925d) and ACL-SSL's journal paper. Under negative sound, IoU and F are computed
against the object that should now stay silent (``avloc.metrics.avs``), so lower is better there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from avloc.metrics.negative import image_share

__all__ = ["fpr", "global_score", "harmonic_mean"]


def fpr(maps: Tensor, threshold: float = 0.5) -> Tensor:
    """The published FPR of each frame: the share of the image predicted, whatever the ground truth.

    Args:
        maps: probabilities ``[N, H, W]``.
        threshold: strict ``>``.

    Returns:
        float64 ``[N]``.
    """
    return image_share(maps, (threshold,), ">")[:, 0]


def global_score(
    positive: Tensor, negatives: Tensor, order: Literal["mean-first", "mean-last"] = "mean-first"
) -> Tensor:
    """G-mIoU or G-F: the harmonic mean of the positive score and 1 minus the negative score (ACL-SSL, table 5).

    The mean over the negative conditions comes first, which the paper's words leave open; it agrees with all 20 G-mIoU
    values that it prints within rounding. AVSBench-Robust itself published no code.

    Args:
        positive: mIoU or F with the object's own sound, in 0..1; scalar or ``[K]``.
        negatives: the same score under each negative condition, ``[C]`` or ``[C, K]``.
        order: average the conditions before the harmonic mean or after it.

    Returns:
        Of the shape of ``positive``.
    """
    if order == "mean-first":
        return harmonic_mean(positive, 1 - negatives.mean(0))
    return harmonic_mean(positive.expand_as(negatives), 1 - negatives).mean(0)


def harmonic_mean(a: Tensor, b: Tensor) -> Tensor:
    """``2ab / (a + b)``, and 0 where both are 0."""
    return torch.where(a + b == 0, 0.0, 2 * a * b / (a + b))
