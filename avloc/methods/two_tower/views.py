"""Other views of pictures and sounds, made on the device: SSL-TIE's transformation, and augmentations. Torch only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Masks", "Transformation", "crop_and_flip", "neighbours"]

SIDE = 224
"""Pixels of the square in which pictures and maps are turned."""


@dataclass(frozen=True)
class Transformation:
    """SSL-TIE's transformation of a batch, the same for pictures and their maps.

    What is transformed is brought to 224 x 224, turned and scaled about its centre with zeros outside, resized to
    ``int(scale * size)`` and mirrored. So a scale of 0.5 shrinks the content twice, as in the release: a picture of 224
    becomes one of 112 whose middle 56 x 56 hold it.

    Args:
        angles: float ``[B]``, degrees, counter-clockwise.
        scale: of the batch.
        flip: mirror the batch.
    """

    angles: Tensor
    scale: float = 1.0
    flip: bool = False

    @classmethod
    def draw(cls, batch: int, device: torch.device, most: int = 30) -> Transformation:
        """Whole degrees from -most to most for each sample; for the batch scale 1 or 0.5, and a flip, by a coin
        each."""
        angles = torch.randint(-most, most + 1, (batch,), device=device).float()
        half, flip = (torch.rand(2) < 0.5).tolist()
        return cls(angles, 0.5 if half else 1.0, flip)

    def matrices(self) -> Tensor:
        """Where a pixel (x, y) of the square goes, float32 ``[B, 2, 3]``: turned by the angle and scaled about (112,
        112)."""
        radians = self.angles * (math.pi / 180)
        alpha, beta = self.scale * radians.cos(), self.scale * radians.sin()
        centre = SIDE / 2
        rows = [
            torch.stack([alpha, beta, (1 - alpha) * centre - beta * centre], 1),
            torch.stack([-beta, alpha, beta * centre + (1 - alpha) * centre], 1),
        ]
        return torch.stack(rows, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures ``[B, C, H, W]`` or maps ``[B, H, W]`` to ``[B, (C,) int(scale H), int(scale W)]``."""
        if x.ndim == 3:
            return self(x[:, None])[:, 0]
        height, width = x.shape[-2:]
        if (height, width) != (SIDE, SIDE):
            x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        x = F.grid_sample(x, self.grid().to(x.dtype), mode="bilinear", padding_mode="zeros", align_corners=True)
        size = int(self.scale * height), int(self.scale * width)
        if tuple(x.shape[-2:]) != size:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return x.flip(-1) if self.flip else x

    def grid(self) -> Tensor:
        """Where each pixel of the square comes from, in [-1, 1], ``[B, 224, 224, 2]``."""
        forward = self.matrices()
        back = torch.linalg.inv(forward[:, :, :2])
        pixels = torch.arange(SIDE, device=back.device, dtype=back.dtype)
        y, x = torch.meshgrid(pixels, pixels, indexing="ij")
        places = torch.stack([x, y], -1).reshape(1, -1, 2) - forward[:, None, :, 2]
        source = places @ back.transpose(1, 2)
        return (source * (2 / (SIDE - 1)) - 1).reshape(-1, SIDE, SIDE, 2)


def crop_and_flip(image: Tensor, least: float = 0.6) -> Tensor:
    """Another view of each picture: a square part of a random share of its area, mirrored by a coin.

    Args:
        image: float ``[B, C, H, W]``.
        least: smallest share, up to 1.
    """
    B, device = len(image), image.device
    side = (least + (1 - least) * torch.rand(B, device=device)).sqrt()
    centre = (1 - side) * (2 * torch.rand(2, B, device=device) - 1)
    mirrored = torch.where(torch.rand(B, device=device) < 0.5, -side, side)
    zero = torch.zeros_like(side)
    theta = torch.stack([torch.stack([mirrored, zero, centre[0]], 1), torch.stack([zero, side, centre[1]], 1)], 1)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False).to(image.dtype)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class Masks:
    """Stretches of a spectrogram that training hides: one of up to ``bands`` frequencies and one of up to ``columns``
    times.

    Args:
        bands: most frequencies; 0 hides none.
        columns: most times; 0 hides none.
        value: what stands there. FNAC's 0 is louder than nearly all that is heard; SSL-TIE's -100 is silence.
        probability: with which a sample is masked, both ways or neither.
    """

    bands: int = 0
    columns: int = 0
    value: float = 0.0
    probability: float = 1.0

    def __call__(self, spectrogram: Tensor) -> Tensor:
        """``[B, 1, F, T]`` with each sample's own stretches hidden."""
        if not (self.bands or self.columns):
            return spectrogram
        hidden = stretch(spectrogram, -2, self.bands) | stretch(spectrogram, -1, self.columns)
        chosen = torch.rand(len(spectrogram), 1, 1, 1, device=spectrogram.device) < self.probability
        return spectrogram.masked_fill(hidden & chosen, self.value)


def stretch(x: Tensor, dim: int, most: int) -> Tensor:
    """bool, ``[B, 1, F, 1]`` or ``[B, 1, 1, T]``: 0 to ``most`` neighbouring places of each sample, wholly inside."""
    size, B = x.shape[dim], len(x)
    length = torch.randint(0, min(most, size) + 1, (B, 1), device=x.device)
    start = (torch.rand(B, 1, device=x.device) * (size - length + 1)).long()
    place = torch.arange(size, device=x.device)
    inside = (place >= start) & (place < start + length)
    return inside[:, None, :, None] if dim == -2 else inside[:, None, None]


def neighbours(features: Tensor, k: int = 1) -> Tensor:
    """int64 ``[B]``: for each of B samples one of its k nearest others by cosine, drawn evenly; itself where it is
    alone.

    Args:
        features: ``[B, D]``, of a pretrained encoder.
        k: how many are drawn from.
    """
    unit = F.normalize(features.float(), dim=1)
    near = unit @ unit.T
    near.fill_diagonal_(-2)
    k = min(k, len(near) - 1)
    if k < 1:
        return torch.arange(len(near), device=near.device)
    best = near.topk(k, dim=1).indices
    return best.gather(1, torch.randint(k, (len(near), 1), device=near.device))[:, 0]


torch.serialization.add_safe_globals([Masks])
