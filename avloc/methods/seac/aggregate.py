"""From masks and their similarities to a heat map and a semantic map (the paper's equations 4 and 5).

N masks of each of B pictures, H x W pixels. Whole-batch tensor operations; what is as large as the masks has their one
byte per pixel.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Aggregate", "Degenerate", "aggregate", "box_masks", "classify", "normalised", "unpack_bits"]

Degenerate = Literal["ones", "zeros"]


class Aggregate(NamedTuple):
    """What is seen of a sound.

    Attributes:
        heatmap: O ``[B, H, W]`` in [0, 1], 0 outside of every mask.
        mask: int64 ``[B, H, W]``, the mask that O is of; the lowest index on ties, -1 outside of every mask.
        confidence: ``[B]``, largest similarity before it is normalised.
        similarity: ``[B, N]`` normalised, 0 for padding.
    """

    heatmap: Tensor
    mask: Tensor
    confidence: Tensor
    similarity: Tensor

    def semantic(self, label: Tensor, sigma: float = 0.9) -> Tensor:
        """Equation 5, int64 ``[B, H, W]``: 1 + label where O > sigma (strictly), else 0, the background.

        Args:
            label: int64 ``[B, N]``, class of each mask, from 0.
            sigma: 0 or more.

        Raises:
            ValueError: sigma is negative, which would label pixels that no mask covers.
        """
        if sigma < 0:
            raise ValueError(f"SeAC: sigma must be 0 or more, got {sigma:g}.")
        shape = self.mask.shape
        labels = label.gather(1, self.mask.clamp(min=0).flatten(1)).view(shape)
        return torch.where(self.heatmap > sigma, labels + 1, 0)


def normalised(similarity: Tensor, valid: Tensor | None = None, degenerate: Degenerate = "ones") -> Tensor:
    """Min-max of each picture's similarities ``[B, N]`` over its own masks; 0 for padding.

    Args:
        similarity: float ``[B, N]``.
        valid: bool ``[B, N]``; at least one mask per picture.
        degenerate: value where the range is zero: one mask, or all alike.
    """
    valid = torch.ones_like(similarity, dtype=torch.bool) if valid is None else valid
    low = similarity.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    high = similarity.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    span = high - low
    flat = torch.full_like(similarity, float(degenerate == "ones"))
    scaled = (similarity - low) / torch.where(span > 0, span, 1)
    return torch.where(span > 0, scaled, flat).masked_fill(~valid, 0)


def aggregate(
    similarity: Tensor, masks: Tensor, valid: Tensor | None = None, degenerate: Degenerate = "ones"
) -> Aggregate:
    """Equation 4: every pixel gets the largest normalised similarity of the masks that cover it.

    Args:
        similarity: raw cosines ``[B, N]``, float32 or float64.
        masks: bool ``[B, N, H, W]``.
        valid: bool ``[B, N]``, False for padding; at least one per picture.
        degenerate: see `normalised`.
    """
    valid = torch.ones_like(similarity, dtype=torch.bool) if valid is None else valid
    scaled = normalised(similarity, valid, degenerate)
    # In order of similarity the first mask that covers a pixel is its largest, so the floats need not be painted.
    order = scaled.masked_fill(~valid, -1).sort(dim=1, descending=True, stable=True).indices
    pixels = (masks & valid[..., None, None]).flatten(2)
    ordered = pixels.gather(1, order[..., None].expand(-1, -1, pixels.shape[2])).view(torch.uint8)
    covered, first = ordered.max(1)
    mask = order.gather(1, first)
    heatmap = scaled.gather(1, mask) * covered
    confidence = similarity.masked_fill(~valid, -torch.inf).amax(1)
    shape = (len(masks), *masks.shape[2:])
    return Aggregate(heatmap.view(shape), torch.where(covered > 0, mask, -1).view(shape), confidence, scaled)


def classify(features: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Label of each mask: the text with the largest cosine, the lowest index on ties.

    Args:
        features: f_n ``[..., D]``, before the mask encoder.
        text: embeddings ``[Y, D]``.

    Returns:
        int64 ``[...]`` from 0, and the cosines ``[..., Y]`` (float32, or float64 where given).
    """
    with torch.autocast(features.device.type, enabled=False):
        exact = features.dtype == torch.float64
        f, t = (F.normalize(x.double() if exact else x.float(), dim=-1) for x in (features, text))
        cosine = f @ t.T
        return cosine.argmax(-1), cosine


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes as masks, bool ``[..., H, W]``: rows y1 to y2 and columns x1 to x2, ends exclusive.

    Args:
        boxes: ``[..., 4]`` x1, y1, x2, y2 in cells of the map, truncated towards zero. A start before the map begins at
            its edge; a box of no extent is empty.
        size: H and W of the map.
    """
    x1, y1, x2, y2 = boxes.trunc().unbind(-1) if boxes.is_floating_point() else boxes.unbind(-1)
    row = torch.arange(size[0], device=boxes.device)
    column = torch.arange(size[1], device=boxes.device)
    rows = (row >= y1[..., None]) & (row < y2[..., None])
    columns = (column >= x1[..., None]) & (column < x2[..., None])
    return rows[..., :, None] & columns[..., None, :]


def unpack_bits(bits: Tensor, width: int) -> Tensor:
    """Masks bool ``[..., width]`` of rows packed as `numpy.packbits` does, uint8 ``[..., ceil(width / 8)]``."""
    shift = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
    return ((bits[..., None] >> shift) & 1).flatten(-2)[..., :width].bool()
