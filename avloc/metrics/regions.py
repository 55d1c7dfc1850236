"""How many connected regions a prediction has."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

__all__ = ["SMALLEST_REGION", "count_regions"]

SMALLEST_REGION = 0.001
"""Share of the picture below which a region is a speck."""

NEIGHBOURS = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])
"""Eight of a pixel's own plane, none of the planes beside it."""


def count_regions(chosen: Tensor, smallest: float = SMALLEST_REGION) -> Tensor:
    """Connected regions (eight neighbours) of each plane, without specks.

    Args:
        chosen: bool ``[N, H, W]``.
        smallest: share of the plane that a region has to fill.

    Returns:
        int64 ``[N]``, on the device of ``chosen``.
    """
    planes = chosen.cpu().numpy()
    labels, found = ndimage.label(planes, structure=NEIGHBOURS)
    size = np.bincount(labels.ravel(), minlength=found + 1)
    plane = np.zeros(found + 1, dtype=np.int64)
    where = np.nonzero(planes)
    plane[labels[where]] = where[0]
    kept = np.flatnonzero(size[1:] >= smallest * planes[0].size) + 1 if len(planes) else np.zeros(0, dtype=np.int64)
    return torch.from_numpy(np.bincount(plane[kept], minlength=len(planes))).to(chosen.device)
