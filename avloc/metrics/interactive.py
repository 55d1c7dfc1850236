"""Interactive localisation: a picture counts when every one of its sounds is found (IIoU, IAUC).

Source: SSLalignment's evaluator (kaistmm/SSLalignment, e7ae3c5), which groups samples by file name and counts groups of
one too. A group succeeds at level t when each member has cIoU >= t, that is when the smallest does: IIoU is
``success_rate(group_minima(ciou, group))`` and IAUC ``auc(...)`` of the same, for any map threshold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["group_minima", "group_of"]


def group_minima(ciou: Tensor, group: Tensor) -> Tensor:
    """The smallest cIoU of each group.

    Args:
        ciou: ``[N]`` or ``[N, K]``; NaN is a miss.
        group: int64 ``[N]``, any numbers; samples with equal ones belong together.

    Returns:
        ``[G]`` or ``[G, K]`` in the values' dtype and in the order of the group numbers; NaN where a member is NaN,
        which misses every level.
    """
    numbers, place = group.unique(return_inverse=True)
    least = ciou.new_full((len(numbers), *ciou.shape[1:]), math.inf)
    # Not left to the reduction, whose treatment of NaN differs between devices.
    values = torch.where(ciou.isnan(), -math.inf, ciou)
    least = least.scatter_reduce(0, place.view(-1, *[1] * (ciou.ndim - 1)).expand_as(ciou), values, "amin")
    return torch.where(least == -math.inf, math.nan, least)


def group_of(name: str) -> str:
    """The published file-name rule: last path component, without ``.jpg``, without its last ``_`` token.

    IS3 ``train_male_1439_male`` -> ``train_male_1439``; on VPO the object number goes, on S4 and MS3 the frame number.
    A name without ``_`` has the empty group.
    """
    return "_".join(name.split("/")[-1].replace(".jpg", "").split("_")[:-1])
