"""AVSBench-Robust: false-positive share of each frame, and the global scores that no code defines.

Source: ``facts/metrics.md`` section 8. Under negative sound, IoU and F are computed against the object that should
now stay silent (``avloc.metrics.avs``), so lower is better there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from avloc.metrics.negative import image_share

__all__ = ["fpr", "global_inferred", "harmonic_mean"]


def fpr(maps: Tensor, threshold: float = 0.5) -> Tensor:
    """The published FPR of each frame: the share of the image predicted, whatever the ground truth.

    Args:
        maps: probabilities ``[N, H, W]``.
        threshold: strict ``>``.

    Returns:
        float64 ``[N]``.
    """
    return image_share(maps, (threshold,), ">")[:, 0]


def global_inferred(
    positive: Tensor, negatives: Tensor, order: Literal["mean-first", "mean-last"] = "mean-first"
) -> Tensor:
    """INFERRED, not official: G-mIoU or G-F, the harmonic mean of the positive and 1 minus the negative score.

    The authors put these numbers together in a spreadsheet and published no code. ``mean-first`` agrees with all 20
    G-mIoU values of the ACL paper within rounding.

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
