"""Duets: pictures that lie side by side under the sum of their sounds (T-VSL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["per_tile", "side_by_side"]


def side_by_side(pictures: Sequence[NDArray[np.uint8]], squash: Image.Resampling | None = None) -> NDArray[np.uint8]:
    """A row of square pictures.

    Args:
        pictures: n of them, uint8 ``[3, H, H]``, from left to right.
        squash: filter that fits the row into the square again; None to keep it.

    Returns:
        uint8 ``[3, H, n H]``, or ``[3, H, H]`` when it is squashed.
    """
    row = np.concatenate(pictures, axis=2)
    if squash is None:
        return row
    side = row.shape[1]
    image = Image.fromarray(np.ascontiguousarray(row.transpose(1, 2, 0)))
    return np.asarray(image.resize((side, side), squash)).transpose(2, 0, 1)


def per_tile(maps: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Source t is in tile t of a row and nowhere else.

    Args:
        maps: n maps ``[G, G']``, one per source, each on the grid of its own picture.

    Returns:
        ``[n, G, n G']``, zero outside of each source's tile.
    """
    height, size = maps[0].shape
    row = np.zeros((len(maps), height, len(maps) * size), maps[0].dtype)
    for t, tile in enumerate(maps):
        row[t, :, t * size : (t + 1) * size] = tile
    return row
