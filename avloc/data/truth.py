"""From boxes and masks to ground-truth maps of what is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avloc.data.media import Floats, load_picture
from avloc.data.mixtures import per_tile
from avloc.data.schema import Sample, SampleError, Target
from avloc.data.views import WHOLE, Grid, View, grid_of

__all__ = ["Integers", "box_count", "grid_boxes", "semantic_map", "truth_maps"]

Integers = NDArray[np.int64]


def truth_maps(sample: Sample, frame: int, size: Grid = 224, views: Sequence[View] | None = None) -> Floats | None:
    """Ground-truth maps by the record's ``map_rule``, one per target, of what is seen.

    Published evaluators multiply coordinates by the grid, truncate towards zero, and fill half-open rectangles (on
    VGG-SS rounding instead gives maps whose mean IoU with these is 0.98). ``union``: 1 inside of any box of the target.
    ``consensus2``: half the number of boxes, at most 1 (Flickr; boxes are counted, not annotators). ``sum``: the number
    of boxes, which exceeds 1 where they overlap (T-VSL and AVGN do not clip; for published readings only). ``mask``:
    nearest resize, then ``> 0``.

    Args:
        sample: record and bytes; the latter for ``mask`` only.
        frame: place in ``record.frames``; a duet has maps of all of its pictures.
        size: side G of the map, or its height and width.
        views: what is seen of the picture, or of each picture of a duet; all of it by default.

    Returns:
        float32 ``[S, G, G']``, of a duet of n pictures ``[n, G, n G']`` with each target in its own tile; all zero
        where nothing sounds (unless the negative is scored against its positive's map); None for the rule
        ``none``.

    Raises:
        SampleError: a mask is missing from the shard or broken.
    """
    record = sample.record
    n = record.tiles
    if not record.has_maps:
        return None
    height, width = grid_of(size)
    if record.is_empty or not record.targets:
        return np.zeros((n if n > 1 else max(1, len(record.targets)), height, n * width), np.float32)
    views = views or [WHOLE] * n
    if n > 1:
        return per_tile([_target_map(sample, t, i, size, views[i]) for i, t in enumerate(record.targets)])
    return np.stack([_target_map(sample, t, frame, size, views[0]) for t in record.targets])


def semantic_map(sample: Sample, frame: int, size: Grid = 224, views: Sequence[View] | None = None) -> Integers | None:
    """The class of each pixel of what is seen, by nearest resize; a palette picture's indices, not its colours.

    Args:
        sample, frame, size, views: as of `truth_maps`.

    Returns:
        int64 ``[G, G']``, of a duet of n pictures ``[G, n G']``: 0 background, 255 "do not score"; all zero where
        nothing sounds; None where the record has none of this frame.

    Raises:
        SampleError: it is missing from the shard, broken, or a colour picture.
    """
    record = sample.record
    n = record.tiles
    members = [f.semantic for f in (record.frames if n > 1 else record.frames[frame : frame + 1])]
    if not members or None in members:
        return None
    if record.is_empty:
        height, width = grid_of(size)
        return np.zeros((height, n * width), np.int64)
    views = views or [WHOLE] * n
    maps = [_indices(sample, m, size, v) for m, v in zip(members, views, strict=True) if m]
    return np.concatenate(maps, axis=1).astype(np.int64)


def _target_map(sample: Sample, target: Target, frame: int, size: Grid, view: View) -> Floats:
    """float32 ``[G, G']``."""
    rule = sample.record.map_rule
    if rule == "mask":
        covered = np.zeros(grid_of(size), bool)
        for member in target.masks:
            if f".f{frame}." in member:
                covered |= _indices(sample, member, size, view) > 0
        return covered.astype(np.float32)
    count = box_count(target, size, view)
    if rule != "sum":
        most = 1.0 if rule == "union" else 2.0
        count = np.minimum(count, most) / most
    return count.astype(np.float32)


def box_count(target: Target, size: Grid, view: View = WHOLE) -> NDArray[np.float64]:
    """How many of a target's boxes cover each cell of a grid over the view."""
    count = np.zeros(grid_of(size))
    for x0, y0, x1, y1 in grid_boxes(target, size, view):
        count[y0:y1, x0:x1] += 1
    return count[:, ::-1] if view.flip else count


def grid_boxes(target: Target, size: Grid, view: View = WHOLE) -> NDArray[np.int64]:
    """A target's boxes in cells of the view before it is mirrored, int64 ``[n, 4]``, truncated towards zero.

    Integer boxes on a 224 or 256 grid are scaled from the published integers: k/224 is not exact in floating
    point, and truncation would lose a cell. Inclusive corners are read as half-open, as published (section
    2.6).
    """
    grid = {"xyxy_224_excl": 224, "xyxy_224_incl": 224, "xyxy_256": 256}.get(target.raw_format)
    height, width = grid_of(size)
    cells = np.array([width, height] * 2)
    # Of the whole picture these are exactly [width, height] and [0, 0].
    scale = np.array([view.width, view.height] * 2) * cells / view.side
    corner = np.array([view.left, view.top] * 2) * cells / view.side
    if grid and target.boxes_raw is not None:
        boxes = np.asarray(target.boxes_raw, np.float64).reshape(-1, 4) * scale / grid
    else:
        boxes = np.asarray(target.boxes, np.float64).reshape(-1, 4) * scale
    return np.clip(boxes - corner, 0, cells).astype(np.int64)


def _indices(sample: Sample, member: str, size: Grid, view: View) -> NDArray[Any]:
    """The view of an index map or mask that covers the whole picture, ``[G, G']``, by nearest neighbour."""
    name, data = f"{sample.key}.{member}", sample.member(member)
    sides = np.array([view.left, view.top, view.left + view.side, view.top + view.side])
    try:
        image = load_picture(data)
        box = tuple(sides * (image.size * 2) / ([view.width, view.height] * 2))
        # As stored: converting a palette picture would turn its indices into colours.
        pixels = np.asarray(image.resize(grid_of(size)[::-1], Image.Resampling.NEAREST, box))
    except (OSError, ValueError) as e:
        raise SampleError(f"{name} cannot be decoded as a mask ({e}). Write its shard again.") from e
    if pixels.ndim != 2:
        raise SampleError(
            f"{name} is a colour picture (mode {image.mode}), a mask or index map has one channel. Convert it when "
            "the shards are written (avloc.data.labels.colours_to_index)."
        )
    return pixels[:, ::-1] if view.flip else pixels
