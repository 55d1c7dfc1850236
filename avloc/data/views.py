"""What a method sees of a picture: scaled, cut to a square, mirrored.

Pictures are resized by Pillow, as in every published code, so that pixels agree. What is cut out of a picture, and
mirrored, is a `View`; maps are cut and mirrored by the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avloc.bounds import most
from avloc.types import InputSpec

__all__ = ["FILTERS", "WHOLE", "Grid", "View", "draw_view", "fit_image", "grid_of", "seen"]

Grid = int | Sequence[int]  # of ground truth: a side, or height and width
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class View:
    """What is seen of a picture: scaled to ``width`` x ``height``, the square of ``side`` at (``left``, ``top``) is
    cut out, and mirrored where ``flip`` says so. Where the scaled picture is smaller than the square, it lies at the
    top left of it, mirrored in itself, and zeros fill the rest. All in pixels."""

    width: int
    height: int
    left: int
    top: int
    side: int
    flip: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is picture in the square."""
        return min(self.height, self.side), min(self.width, self.side)

    @property
    def of_maps(self) -> View:
        """What maps show: the same, but without the zeros around a small picture."""
        return self if self.size == (self.side, self.side) else replace(WHOLE, flip=self.flip)


WHOLE = View(1, 1, 0, 0, 1)


def grid_of(size: Grid) -> tuple[int, int]:
    """Height and width of a grid of ground truth."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def draw_view(size: tuple[int, int], spec: InputSpec, rng: np.random.Generator | None = None) -> View:
    """What a method sees of a picture.

    Args:
        size: width and height of the picture.
        spec: size, resize, and the training crop and flip.
        rng: draws crop and flip; None for the evaluation view (no ``train_scale``, no flip).
    """
    side = spec.image_size
    if spec.resize == "pad":
        # Rounded half up, as SAM does.
        width, height = (max(1, int(length * side / max(size) + 0.5)) for length in size)
        return View(width, height, 0, 0, side, rng is not None and rng.random() < spec.train_flip)
    scaled = side if rng is None else max(side, int(side * spec.train_scale))
    width = height = scaled
    if spec.resize == "crop":
        width, height = (max(scaled, length * scaled // min(size)) for length in size)
    if rng is None:
        # As torchvision's Resize and CenterCrop, which releases look through, round.
        return View(width, height, round((width - side) / 2), round((height - side) / 2), side)
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    return View(width, height, left, top, side, rng.random() < spec.train_flip)


def fit_image(image: Image.Image, spec: InputSpec, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
    """The picture as a method wants it: `draw_view`, then `seen`."""
    return seen(image, draw_view(image.size, spec, rng), FILTERS[spec.interpolation])


def seen(image: Image.Image, view: View, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """The view of an RGB picture, uint8 ``[3, side, side]``; of the resized pixels a view too: collating copies
    it."""
    if view.width * view.height > most("PIXELS"):
        # A picture of 60,000 x 1 would be scaled to millions of columns, of which one square is seen.
        x, y = image.width / view.width, image.height / view.height
        box = (view.left * x, view.top * y, (view.left + view.side) * x, (view.top + view.side) * y)
        part = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
        pixels = np.asarray(image.resize((view.side, view.side), resampling, part))
    else:
        pixels = np.asarray(image.resize((view.width, view.height), resampling))
        pixels = pixels[view.top : view.top + view.side, view.left : view.left + view.side]
    if view.flip:
        pixels = pixels[:, ::-1]
    if view.of_maps is not view:
        padded = np.zeros((view.side, view.side, 3), np.uint8)
        padded[: pixels.shape[0], : pixels.shape[1]] = pixels
        pixels = padded
    return pixels.transpose(2, 0, 1)
