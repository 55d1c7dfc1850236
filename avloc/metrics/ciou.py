"""Consensus IoU of a map with ground-truth boxes, and the numbers that the tables make of it.

Per sample: weights g of the truth, predicted pixels A, ``sum of g over A / (sum of all g + pixels of A where g is 0)``.
False positives count 1, missed pixels of half weight one half, so for a graded truth it is not an intersection over
union. The tables' "cIoU" is the share of samples at 0.5 or above, not the mean (VGG-SS, Flickr-SoundNet).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avloc.metrics.thresholds import Operator, count_above

__all__ = ["auc", "ciou", "success_curve", "success_rate"]

LEVELS: tuple[float, ...] = tuple(0.05 * i for i in range(21))
"""``0.05 * i`` in double precision, which lies slightly above the decimal for i = 3, 6, 7, 12, 14, 17, 19."""


def ciou(
    maps: Tensor,
    truth: Tensor,
    thresholds: Tensor | Sequence[float],
    operator: Operator = ">=",
    eps: float = 0.0,
) -> Tensor:
    """cIoU of each map at each threshold.

    With A the predicted pixels and g the consensus weights:
    ``sum of g over A / (sum of all g + number of pixels of A where g is 0)``. For fractional g this is not an
    intersection over union: a missed pixel costs its weight, a false one costs 1.

    Args:
        maps: float ``[N, H, W]``.
        truth: ``[N, H, W]``, consensus weights in 0..1.
        thresholds: ``[K]`` or ``[N, K]``, ascending.
        operator: when a pixel is predicted.
        eps: added to the denominator; 1e-12 in the extended ACL evaluator and in ACL-SaN.

    Returns:
        float64 ``[N, K]``. Without ground truth: 0 if anything is predicted, else NaN (0/0; 0 with ``eps``).
    """
    above = count_above(maps, truth, thresholds, operator)
    return above.hit / (above.total + above.wrong + eps)


def success_rate(values: Tensor, level: float = 0.5) -> Tensor:
    """Share of samples with ``values >= level``: the "cIoU" of the tables. NaN is a miss.

    Args:
        values: ``[N]`` or ``[N, K]``.
        level: overlap that counts as a success.

    Returns:
        float64, scalar or ``[K]``.
    """
    return (values >= level).double().mean(0)


def success_curve(values: Tensor) -> Tensor:
    """Share of samples at or above each of the 21 levels 0, 0.05 .. 1. NaN is a miss.

    Args:
        values: ``[N]`` or ``[N, K]``. The levels are compared in the dtype of the values: an overlap of
            exactly 0.15 misses the fourth level in float64 and reaches it in float32.

    Returns:
        float64 ``[21]`` or ``[21, K]``.
    """
    levels = torch.tensor(LEVELS, dtype=values.dtype, device=values.device)
    return (values >= levels.view(-1, *[1] * values.ndim)).double().mean(1)


def auc(values: Tensor) -> Tensor:
    """Area under `success_curve`, by trapezoids over the 21 levels.

    A method that never hits still gets 0.025, since every overlap reaches level 0.

    Args:
        values: ``[N]`` or ``[N, K]``.

    Returns:
        float64, scalar or ``[K]``.
    """
    levels = torch.tensor(LEVELS, dtype=torch.float64, device=values.device)
    return torch.trapezoid(success_curve(values), levels, dim=0)
