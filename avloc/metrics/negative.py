"""What a method predicts where nothing sounds: the share of the image (pIA) and its area under the curve.

Source: xavijuanola/vssl_eval (e8ebbc9). The share is also AVSBench-Robust's "FPR", which asks for no ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avloc.metrics.ciou import LEVELS
from avloc.metrics.thresholds import Operator, count_above

__all__ = ["image_share", "share_auc", "share_curve"]


def image_share(maps: Tensor, thresholds: Tensor | Sequence[float] = (0.5,), operator: Operator = ">") -> Tensor:
    """pIA: the share of the pixels that are predicted.

    Args:
        maps: ``[N, H, W]``.
        thresholds: ``[K]`` or ``[N, K]``, ascending.
        operator: ``>`` in vssl_eval and AVSBench-Robust, ``>=`` in ACL-SaN.

    Returns:
        float64 ``[N, K]``.
    """
    return count_above(maps, None, thresholds, operator).wrong / maps.shape[1:].numel()


def share_curve(shares: Tensor, strict: bool = False) -> Tensor:
    """Share of samples whose pIA stays within each of the 21 levels 0, 0.05 .. 1.

    Args:
        shares: ``[N]`` or ``[N, K]``; the levels are compared in their dtype. NaN is a miss.
        strict: ``<`` (ACL-SaN) instead of ``<=`` (vssl_eval).

    Returns:
        float64 ``[21]`` or ``[21, K]``.
    """
    levels = torch.tensor(LEVELS, dtype=shares.dtype, device=shares.device).view(-1, *[1] * shares.ndim)
    return (shares < levels if strict else shares <= levels).double().mean(1)


def share_auc(shares: Tensor, strict: bool = False) -> Tensor:
    """Area under `share_curve` by trapezoids; 1 for a method that never predicts anything (0.975 if ``strict``).

    Args:
        shares: ``[N]`` or ``[N, K]``.
        strict: as in `share_curve`.

    Returns:
        float64, scalar or ``[K]``.
    """
    levels = torch.tensor(LEVELS, dtype=torch.float64, device=shares.device)
    return torch.trapezoid(share_curve(shares, strict), levels, dim=0)
