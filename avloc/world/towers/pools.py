"""What all towers of the embedded world learn from: rendered scenes and sounds, their words, and prompts."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.backbones.clipseg import normalise
from avloc.backbones.tokens import Tokenizer, train_world_tokenizer
from avloc.world.scenes import NAMES, render, sample_scenes
from avloc.world.sounds import sound

__all__ = [
    "SIZE",
    "TAU",
    "TEMPLATES",
    "ScenePool",
    "SoundPool",
    "loosened",
    "one_object",
    "points_in",
    "tight_boxes",
    "tiny_tokenizer",
]

SIZE = 64  # pixels

SECONDS = 2.0

TEMPLATES = ("a photo of a {}", "a photograph of a {}", "an image of a {}", "a photo of {}", "a {}", "{}")

WORDS = sorted({w for t in TEMPLATES for w in t.replace("{}", "").split()}) + list(NAMES)

TAU = 0.07


def tiny_tokenizer() -> Tokenizer:
    return train_world_tokenizer([*WORDS, "and", "the", "sound", "with", "next", "to", "in", "front", "of"])


class ScenePool:
    """Rendered scenes to draw batches from; flips double them.

    Attributes:
        image: uint8 ``[N, 3, SIZE, SIZE]``.
        mask: bool ``[N, K, SIZE, SIZE]``.
        label: int64 ``[N, K]``, -1 where there is no object.
    """

    def __init__(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        parts = [self._part(rng, min(256, count - i)) for i in range(0, count, 256)]
        self.image, self.mask, self.label = (torch.cat(p) for p in zip(*parts, strict=True))

    @staticmethod
    def _part(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
        scenes = sample_scenes(rng, count)
        image, mask = render(scenes, SIZE)
        seen = mask.flatten(2).float().mean(2) > 0.02
        return image, mask, scenes.label.masked_fill(~(scenes.present & seen), -1)

    def batch(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        image, mask, label = self.draw(count)
        return normalise(image), mask, label

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures float32 0..255 ``[count, 3, SIZE, SIZE]`` of random brightness, masks 0 or 1, labels."""
        rows = torch.randint(len(self.image), (count,))
        image, mask = self.image[rows], self.mask[rows].float()
        flip = torch.rand(count) < 0.5
        image[flip], mask[flip] = image[flip].flip(-1), mask[flip].flip(-1)
        image = (image.float() * (0.85 + 0.3 * torch.rand(count, 1, 1, 1))).clamp(0, 255)
        return image, mask, self.label[rows]


def loosened(mask: Tensor) -> Tensor:
    """Masks ``[N, H, W]`` as a learning method would draw them: exact, grown, or with holes and specks."""
    n = len(mask)
    grown = F.max_pool2d(mask[:, None], 7, 1, 3)[:, 0]
    holes = F.interpolate(torch.rand(n, 1, 8, 8), mask.shape[-2:], mode="nearest")[:, 0] < 0.85
    specks = F.interpolate(torch.rand(n, 1, 8, 8), mask.shape[-2:], mode="nearest")[:, 0] < 0.08
    rough = torch.maximum(grown * holes, specks.float())
    choice = torch.randint(3, (n, 1, 1))
    return torch.where(choice == 0, mask, torch.where(choice == 1, grown, rough))


def tight_boxes(mask: Tensor, jitter: float = 0.0) -> Tensor:
    """Boxes of masks.

    Args:
        mask: bool ``[N, H, W]``, none empty.
        jitter: standard deviation of each edge as a share of the box's side.

    Returns:
        float32 ``[N, 4]``: left, top, right, bottom edge, pixels.
    """

    def span(seen: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.arange(seen.shape[1])
        return torch.where(seen, at, seen.shape[1]).amin(1), torch.where(seen, at + 1, 0).amax(1)

    (left, right), (top, bottom) = span(mask.any(1)), span(mask.any(2))
    box = torch.stack([left, top, right, bottom], 1).float()
    if not jitter:
        return box
    side = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    return box + jitter * side * torch.randn(box.shape)


def points_in(mask: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Points ``[N, count, 2]`` (x, y, pixels) drawn from the pixels of masks ``[N, H, W]``, none empty."""
    at = torch.multinomial(mask.flatten(1).float(), count, replacement=True, generator=generator)
    jitter = torch.rand(*at.shape, 2, generator=generator) - 0.5
    return torch.stack([at % mask.shape[2], at // mask.shape[2]], -1) + jitter


def one_object(mask: Tensor, label: Tensor) -> Tensor:
    """Mask ``[B, H, W]`` of a random visible object of each scene."""
    k = (torch.rand(label.shape) * label.ge(0)).argmax(1)
    return mask[torch.arange(len(mask)), k]


class SoundPool:
    """Rendered sounds: float32 ``[N, T]`` and their classes int64 ``[N]``."""

    def __init__(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        self.label = torch.from_numpy(rng.integers(0, len(NAMES), count))
        self.audio = torch.from_numpy(np.stack([sound(rng, int(c), SECONDS, (-45, -10)) for c in self.label]))

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.audio), (count,))
        audio = torch.stack(
            [a.roll(int(s)) for a, s in zip(self.audio[rows], torch.randint(32000, (count,)), strict=True)]
        )
        return audio * torch.rand(count, 1).mul(0.9).add(0.1), self.label[rows]
