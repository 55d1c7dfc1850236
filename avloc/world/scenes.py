"""Pictures of the embedded world: textured backgrounds with objects whose outline, pattern and hue tell the class.

A scene is a handful of numbers, so it renders at any size, with exact masks. Rendering is batched torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "BANDS",
    "CLASSES",
    "HEARD",
    "NAMES",
    "STYLES",
    "UNHEARD",
    "Look",
    "Scenes",
    "arranged",
    "band_of",
    "render",
    "sample_scenes",
    "sample_sizes",
    "styled",
]

Outline = Callable[[Tensor, Tensor], Tensor]  # signed distance-like, negative inside, of local coordinates


@dataclass(frozen=True)
class Look:
    """How a class looks: several share a hue or a pattern, none shares all three."""

    name: str
    outline: str
    pattern: str
    hue: float


CLASSES = (
    Look("bell", "triangle", "plain", 0.14),
    Look("drum", "square", "stripes", 0.00),
    Look("flute", "bar", "plain", 0.33),
    Look("dog", "cross", "plain", 0.08),
    Look("cat", "crescent", "plain", 0.78),
    Look("bird", "star", "plain", 0.55),
    Look("engine", "hexagon", "dots", 0.62),
    Look("siren", "disc", "stripes", 0.97),
    Look("whistle", "ring", "plain", 0.47),
    Look("guitar", "eight", "plain", 0.08),
    Look("clock", "disc", "dots", 0.16),
    Look("frog", "heart", "plain", 0.30),
    Look("violin", "diamond", "stripes", 0.08),
    Look("phone", "bar", "dots", 0.70),
    Look("organ", "square", "dots", 0.85),
    Look("kettle", "drop", "plain", 0.60),
)
NAMES = tuple(look.name for look in CLASSES)
HEARD = tuple(range(12))
UNHEARD = tuple(range(12, len(CLASSES)))

BANDS = {"small": (0.10, 0.14), "usual": (0.19, 0.27), "large": (0.36, 0.46)}  # radius as a share of the side
# Least and most red, green and blue of a ground, within what the towers have seen grounds to be.
STYLES = {
    "warm": ((0.45, 0.70), (0.25, 0.50), (0.10, 0.25)),
    "cold": ((0.10, 0.25), (0.25, 0.50), (0.45, 0.70)),
}


@dataclass
class Scenes:
    """N scenes of K objects; ``present`` is False where a scene has fewer.

    Attributes:
        label: int64 ``[N, K]``, class of each object; later objects lie in front.
        present: bool ``[N, K]``.
        pose: float32 ``[N, K, 4]``: centre x and y in 0..1, radius as a share of the side, angle in radians.
        paint: float32 ``[N, K, 4]``: hue, saturation, value, phase of the pattern; all 0..1.
        ground: float32 ``[N, 8]``: two background colours, share of texture, texture seed in 0..1.
    """

    label: Tensor
    present: Tensor
    pose: Tensor
    paint: Tensor
    ground: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: slice | Tensor) -> Scenes:
        return Scenes(*(getattr(self, f)[rows] for f in self.__dataclass_fields__))


def sample_scenes(
    rng: np.random.Generator,
    count: int,
    objects: tuple[int, int] = (2, 3),
    classes: tuple[int, ...] | None = None,
    looks: tuple[Look, ...] = CLASSES,
) -> Scenes:
    """Scenes with objects of different classes that hardly overlap.

    Args:
        rng: source of all randomness.
        count: number N of scenes.
        objects: least and most objects of a scene.
        classes: classes to draw from; all by default.
        looks: how each class looks.
    """
    pool = np.array(classes if classes is not None else range(len(looks)))
    return arranged(rng, rng.permuted(np.tile(pool, (count, 1)), axis=1)[:, : objects[1]], objects[0], looks)


def arranged(
    rng: np.random.Generator, label: NDArray[np.int64], least: int, looks: tuple[Look, ...] = CLASSES
) -> Scenes:
    """Scenes of objects of given classes and the usual size.

    Args:
        rng: source of all randomness.
        label: class of each object ``[N, K]``.
        least: objects of a scene that are there for certain; the last ones may not be.
        looks: how each class looks.
    """
    present = number_present(rng, len(label), (least, label.shape[1]))
    return laid_out(rng, label, present, rng.uniform(*BANDS["usual"], label.shape), looks)


def sample_sizes(rng: np.random.Generator, count: int) -> Scenes:
    """Scenes of two or three objects of different classes and of different `BANDS`, so that at most one is large.

    Smaller objects lie in front of larger ones, so that none is hidden: the place in the order tells the size.

    Args:
        rng: source of all randomness.
        count: number N of scenes.
    """
    label = rng.permuted(np.tile(np.arange(len(CLASSES)), (count, 1)), axis=1)[:, :3]
    present = number_present(rng, count, (2, 3))
    band = rng.permuted(np.tile(np.arange(3), (count, 1)), axis=1)
    low, high = np.array(list(BANDS.values())).T
    radius = rng.uniform(low[band], high[band])
    order = np.where(present, -radius, np.inf).argsort(1)
    return laid_out(rng, label, present, np.take_along_axis(radius, order, 1), CLASSES)


def band_of(radius: float) -> str:
    """Which of `BANDS` holds a radius (share of the side), to its last float32 digit."""
    return next(name for name, (low, high) in BANDS.items() if low - 1e-6 <= radius <= high + 1e-6)


def styled(rng: np.random.Generator, scenes: Scenes, styles: list[str]) -> Scenes:
    """The scenes with both colours of each ground drawn anew from its style (a key of `STYLES`)."""
    low, high = np.array([STYLES[style] for style in styles]).transpose(2, 0, 1)
    colours = rng.uniform(np.tile(low, 2), np.tile(high, 2)).astype(np.float32)
    return replace(scenes, ground=torch.cat([torch.from_numpy(colours), scenes.ground[:, 6:]], 1))


def number_present(rng: np.random.Generator, count: int, objects: tuple[int, int]) -> NDArray[np.bool_]:
    """Which of the K objects are there: the least number in seven scenes of ten, any number in the others."""
    least, most = objects
    number = np.where(rng.random(count) < 0.7, least, rng.integers(least, most + 1, count))
    return np.arange(most) < number[:, None]


def laid_out(
    rng: np.random.Generator,
    label: NDArray[np.int64],
    present: NDArray[np.bool_],
    radius: NDArray[np.float64],
    looks: tuple[Look, ...],
) -> Scenes:
    """Place and paint objects ``[N, K]``: the best of many random layouts, whose closest pair is farthest apart."""
    count, K = label.shape
    tries = rng.uniform(0.0, 1.0, (24, count, K, 2)) * (1 - 1.7 * radius[..., None]) + 0.85 * radius[..., None]
    i, j = np.triu_indices(K, 1)
    gap = np.linalg.norm(tries[:, :, i] - tries[:, :, j], axis=-1) - radius[:, i] - radius[:, j]
    gap = np.where(present[:, i] & present[:, j], gap, np.inf).min(-1) if K > 1 else np.zeros((24, count))
    best = np.clip(gap, None, 0.12).argmax(0)
    centre = tries[best, np.arange(count)]
    angle = rng.uniform(-0.5, 0.5, (count, K))
    hue = np.array([look.hue for look in looks])[label] + rng.uniform(-0.045, 0.045, (count, K))
    paint = np.stack(
        [hue % 1, rng.uniform(0.6, 1, (count, K)), rng.uniform(0.55, 1, (count, K)), rng.random((count, K))],
        -1,
    )
    ground = rng.uniform(0.1, 0.7, (count, 8))
    ground[:, 6] = rng.uniform(0.1, 0.5, count)
    ground[:, 7] = rng.random(count)
    pose = np.concatenate([centre, radius[..., None], angle[..., None]], -1)
    as_float = (torch.from_numpy(a.astype(np.float32)) for a in (pose, paint, ground))
    return Scenes(torch.from_numpy(label.copy()), torch.from_numpy(present), *as_float)


def render(scenes: Scenes, size: int, looks: tuple[Look, ...] = CLASSES) -> tuple[Tensor, Tensor]:
    """Pictures and visible masks.

    Args:
        scenes: N scenes of K objects.
        size: side in pixels.
        looks: how each class looks.

    Returns:
        image: uint8 ``[N, 3, size, size]``, RGB.
        mask: bool ``[N, K, size, size]``, pixels where object k is seen; all False where it is not present.
    """
    N, K = scenes.label.shape
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    picture = background(scenes.ground, size)
    mask = torch.zeros(N, K, size, size, dtype=torch.bool)
    for k in range(K):
        cx, cy, r, angle = (scenes.pose[:, k, d].view(N, 1, 1) for d in range(4))
        u, v = (x - cx) / r, (y - cy) / r
        u, v = u * angle.cos() + v * angle.sin(), v * angle.cos() - u * angle.sin()
        distance, texture = torch.full((N, size, size), 9.0), torch.ones(N, size, size)
        for c, look in enumerate(looks):
            rows = (scenes.label[:, k] == c) & scenes.present[:, k]
            if rows.any():
                distance[rows] = OUTLINES[look.outline](u[rows], v[rows])
                texture[rows] = PATTERNS[look.pattern](u[rows], v[rows], scenes.paint[rows, k, 3].view(-1, 1, 1))
        cover = (0.5 - distance * r * size).clamp(0, 1)  # one pixel of antialiasing
        colour = rgb(scenes.paint[:, k, :3]).view(N, 3, 1, 1) * texture[:, None]
        picture = picture + cover[:, None] * (colour - picture)
        inside = distance < 0
        mask[:, :k] &= ~inside[:, None]
        mask[:, k] = inside
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8), mask


def background(ground: Tensor, size: int) -> Tensor:
    """float32 ``[N, 3, size, size]``: a colour gradient with cloudy texture."""
    N = len(ground)
    ramp = torch.linspace(0, 1, size).view(1, 1, size, 1)
    base = ground[:, :3].view(N, 3, 1, 1) * (1 - ramp) + ground[:, 3:6].view(N, 3, 1, 1) * ramp
    # The same cloud at every size: its coarse grid comes from the scene's own number.
    seeds = (ground[:, 7].double() * 2**31).long()
    coarse = torch.stack([torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(int(s))) for s in seeds])
    cloud = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    return base + ground[:, 6].view(N, 1, 1, 1) * (cloud - 0.5)


def rgb(hsv: Tensor) -> Tensor:
    """HSV to RGB, all 0..1, ``[N, 3]``."""
    h, s, v = hsv.unbind(-1)
    k = (torch.tensor([5.0, 3.0, 1.0]) + h[:, None] * 6) % 6
    return v[:, None] * (1 - s[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def polygon(sides: int, reach: float) -> Outline:
    def outline(u: Tensor, v: Tensor) -> Tensor:
        angle = torch.atan2(u, -v)
        step = 2 * math.pi / sides
        folded = angle - step * torch.round(angle / step)
        return torch.hypot(u, v) * folded.cos() - reach * math.cos(step / 2)

    return outline


def star(u: Tensor, v: Tensor) -> Tensor:
    angle = torch.atan2(u, -v)
    return torch.hypot(u, v) - (0.72 + 0.30 * torch.cos(5 * angle))


def box(half_width: float, half_height: float) -> Outline:
    return lambda u, v: torch.maximum(u.abs() - half_width, v.abs() - half_height)


def disc(radius: float, at: tuple[float, float] = (0.0, 0.0)) -> Outline:
    return lambda u, v: torch.hypot(u - at[0], v - at[1]) - radius


def union(*parts: Outline) -> Outline:
    return lambda u, v: torch.stack([p(u, v) for p in parts]).amin(0)


def minus(whole: Outline, hole: Outline) -> Outline:
    return lambda u, v: torch.maximum(whole(u, v), -hole(u, v))


def heart(u: Tensor, v: Tensor) -> Tensor:
    x, y = 1.15 * u.abs(), -1.15 * v + 0.15
    return 0.5 * (x**2 + (y - 0.75 * x.sqrt()) ** 2 - 0.85)


def drop(u: Tensor, v: Tensor) -> Tensor:
    cone = torch.maximum(u.abs() - 0.45 * (v + 1.0), v - 0.35)
    return torch.minimum(torch.hypot(u, v - 0.35) - 0.62, cone)


OUTLINES: dict[str, Outline] = {
    "triangle": polygon(3, 1.15),
    "square": box(0.8, 0.8),
    "bar": box(0.45, 1.05),
    "cross": union(box(0.35, 0.95), box(0.95, 0.35)),
    "crescent": minus(disc(1.0), disc(0.75, (0.5, 0.0))),
    "star": star,
    "hexagon": polygon(6, 1.0),
    "disc": disc(0.88),
    "ring": minus(disc(1.0), disc(0.5)),
    "eight": union(disc(0.55, (0.0, 0.5)), disc(0.48, (0.0, -0.5))),
    "heart": heart,
    "diamond": lambda u, v: (u.abs() / 0.75 + v.abs() - 1.05) * 0.6,
    "drop": drop,
}

PATTERNS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": lambda u, v, phase: 1 - 0.1 * (v + phase).clamp(-1, 1),
    "stripes": lambda u, v, phase: 0.65 + 0.35 * torch.sign(torch.sin(7.5 * v + 6.3 * phase)),
    "dots": lambda u, v, phase: (
        0.65 - 0.35 * torch.sign(torch.sin(7 * u + 6.3 * phase) * torch.sin(7 * v + 6.3 * phase))
    ),
}
