"""What the world's classes look and sound like, where the papers' claims ask for more than sixteen unrelated ones.

``OBJECTS`` are the sixteen classes, each with its own look and its own timbre.

``TWINS`` are the same sixteen in eight pairs, each pair with one timbre. Which of a pair sounds, the scene decides: the
first in a warm scene, the second in a cold one, as a buzz is a bee's in a meadow and a razor's in a bathroom.

``FACTORS`` are the 27 classes of three factors with three values each:

=========  =========  ==========================================
look       sound      values
=========  =========  ==========================================
hue        pitch      red low, green middle, blue high
pattern    movement   plain steady, striped in strokes, dotted trilling
outline    spectrum   disc pure, square hollow, star full
=========  =========  ==========================================

The nine unheard classes are a Latin square: any two of them share one value at most, and every pair of values of one
of them belongs to two heard classes, so what was learned of the heard tells the unheard apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avloc.world.scenes import CLASSES, HEARD, Look
from avloc.world.sounds import RATE, beats, recorded, sound, tone

__all__ = ["FACTORS", "OBJECTS", "PAIRS", "TWINS", "Kinds", "at_home", "factors_of", "twin_of"]

PAIRS = ((0, 1), (2, 6), (3, 7), (4, 10), (5, 12), (8, 13), (9, 14), (11, 15))  # sounds in warm scenes, in cold ones
PITCHES = ((110, 180), (400, 600), (1500, 2200))  # Hz
HUES, PATTERNS, OUTLINES = (0.00, 0.33, 0.62), ("plain", "stripes", "dots"), ("disc", "square", "star")


@dataclass(frozen=True)
class Kinds:
    """A set of classes.

    Attributes:
        space: name of its label space.
        looks: of each class.
        heard: the classes that training for open sets shows.
        sound: a sound of a class, from a source of randomness, the class, and a length in seconds.
    """

    space: str
    looks: tuple[Look, ...]
    heard: tuple[int, ...]
    sound: Callable[[np.random.Generator, int, float], NDArray[np.float32]]

    def name(self, label: int) -> str:
        return self.looks[label].name

    @property
    def unheard(self) -> tuple[int, ...]:
        return tuple(c for c in range(len(self.looks)) if c not in self.heard)


def twin_of(label: int) -> int:
    """The class that shares a class's timbre in ``TWINS``."""
    return next(a + b - label for a, b in PAIRS if label in (a, b))


def at_home(label: int, style: str) -> bool:
    """Whether a class of ``TWINS`` sounds in scenes of a style (a key of `avloc.world.scenes.STYLES`)."""
    return label in {pair[style == "cold"] for pair in PAIRS}


def shared_sound(rng: np.random.Generator, label: int, seconds: float) -> NDArray[np.float32]:
    """The timbre of the pair that holds ``label``: that of its first class."""
    return sound(rng, min(label, twin_of(label)), seconds)


def factors_of(label: int) -> tuple[int, int, int]:
    """Values 0, 1 or 2 of (hue and pitch, pattern and movement, outline and spectrum) of a class of ``FACTORS``."""
    return label // 9, label // 3 % 3, label % 3


def look_of(label: int) -> Look:
    hue, pattern, outline = factors_of(label)
    name = " ".join((("red", "green", "blue")[hue], ("plain", "striped", "dotted")[pattern], OUTLINES[outline]))
    return Look(name, OUTLINES[outline], PATTERNS[pattern], HUES[hue])


def factor_sound(rng: np.random.Generator, label: int, seconds: float) -> NDArray[np.float32]:
    """A sound of a class of ``FACTORS``."""
    pitch, movement, spectrum = factors_of(label)
    t = np.arange(round(seconds * RATE)) / RATE
    partials = ([1.0, 0.1], [1, 0, 0.7, 0, 0.5, 0, 0.4, 0, 0.3], [k**-0.4 for k in range(1, 20)])[spectrum]
    x = tone(rng.uniform(*PITCHES[pitch]), t, partials)
    if movement == 1:
        x = x * beats(t, rng.uniform(2.5, 4.5), rng.uniform(9, 13))
    elif movement == 2:
        x = x * (0.55 + 0.45 * np.sign(np.sin(2 * np.pi * rng.uniform(11, 17) * t)))
    return recorded(rng, x)


OBJECTS = Kinds("world16", CLASSES, HEARD, sound)
TWINS = Kinds("world16", CLASSES, tuple(range(len(CLASSES))), shared_sound)
FACTORS = Kinds(
    "world_factors27",
    tuple(look_of(c) for c in range(27)),
    tuple(c for c in range(27) if sum(factors_of(c)) % 3),
    factor_sound,
)
