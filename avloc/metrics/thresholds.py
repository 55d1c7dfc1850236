"""From a score map to the set of predicted pixels: which threshold, which operator, and what lies above.

Every metric of this package asks how much of some weight lies on the predicted pixels. `mass_above` answers
it for all thresholds of all maps at once from one histogram per map, so a sweep over 19 or 255 thresholds
never holds more than the map itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["SWEEP", "Operator", "area_threshold", "mass_above", "median_threshold", "rank_threshold"]

Operator = Literal[">=", ">", "lvs"]
"""``lvs`` is "> threshold, or >= 1": LVS overwrites its map in place and pixels at 1 survive."""

SWEEP: tuple[float, ...] = tuple(0.05 * i for i in range(1, 20))
"""The 19 fixed thresholds of ACL-SSL, 0.05..0.95."""


def rank_threshold(maps: Tensor, rank: Tensor) -> Tensor:
    """The value at a place of each map's ascending sort.

    Args:
        maps: ``[N, H, W]``.
        rank: int64 ``[N]``, 0..HW-1.

    Returns:
        ``[N, 1]``, of the maps' dtype.
    """
    return maps.flatten(1).sort(1).values.gather(1, rank[:, None])


def median_threshold(maps: Tensor) -> Tensor:
    """The value at index HW // 2, the upper median (not ``median()``, which takes the lower). ``[N, 1]``."""
    pixels = maps.flatten(1)
    return pixels.kthvalue(pixels.shape[1] // 2 + 1, dim=1, keepdim=True).values


def area_threshold(maps: Tensor, truth: Tensor) -> Tensor:
    """The adaptive threshold: the value at index HW - A, with A the area of the ground truth.

    A counts the pixels that are not 0, whatever their weight; an empty ground truth has A = HW // 2
    (``facts/metrics.md`` section 2).

    Args:
        maps: ``[N, H, W]``.
        truth: ``[N, H, W]``, weights in 0..1.

    Returns:
        ``[N, 1]``.
    """
    pixels = truth[0].numel()
    area = (truth != 0).flatten(1).sum(1)
    return rank_threshold(maps, pixels - torch.where(area == 0, pixels // 2, area))


def mass_above(
    maps: Tensor, weights: Sequence[Tensor], thresholds: Tensor | Sequence[float], operator: Operator
) -> list[Tensor]:
    """The sum of each weight over the predicted pixels, for every threshold.

    Args:
        maps: float ``[N, H, W]``, free of NaN.
        weights: tensors ``[N, H, W]``.
        thresholds: ``[K]`` for all maps or ``[N, K]``, ascending. They are compared in the maps' dtype.
        operator: when a pixel is predicted.

    Returns:
        One float64 ``[N, K]`` per weight.
    """
    pixels = maps.flatten(1)
    cuts = torch.as_tensor(thresholds, dtype=pixels.dtype, device=pixels.device)
    cuts = cuts.expand(len(pixels), -1).contiguous()
    k = cuts.shape[1]
    passed = torch.searchsorted(cuts, pixels.contiguous(), right=operator == ">=")  # how many cuts the pixel passes
    if operator == "lvs":
        passed = torch.where(pixels >= 1, k, passed)
    # A triangular product, since torch has no deterministic cumulative sum of floats on CUDA.
    passes = torch.ones(k + 1, k, dtype=torch.float64, device=pixels.device).tril(-1)
    histogram = torch.zeros(len(pixels), k + 1, dtype=torch.float64, device=pixels.device)
    return [histogram.scatter_add(1, passed, w.flatten(1).double()) @ passes for w in weights]
