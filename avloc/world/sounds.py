"""Sounds of the embedded world: one synthetic timbre a class, never the same twice.

Pitch, tempo, brightness, level and onset vary within a class; what stays is how the sound moves.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from avloc.world.scenes import NAMES

__all__ = ["RATE", "noise", "recorded", "sound"]

RATE = 16000  # Hz

Wave = NDArray[np.float64]
Generator = np.random.Generator


def sound(
    rng: Generator, label: int, seconds: float, noise_db: tuple[float, float] = (-45.0, -25.0)
) -> NDArray[np.float32]:
    """A sound of class ``label``.

    Args:
        rng: source of all randomness.
        label: class, an index into `avloc.world.scenes.CLASSES`.
        seconds: length.
        noise_db: range of the background noise's level relative to the sound.

    Returns:
        float32 ``[seconds * RATE]`` in [-1, 1].
    """
    t = np.arange(round(seconds * RATE)) / RATE
    return recorded(rng, SOUNDS[NAMES[label]](rng, t), noise_db)


def recorded(rng: Generator, x: Wave, noise_db: tuple[float, float] = (-45.0, -25.0)) -> NDArray[np.float32]:
    """A wave ``[T]`` that begins up to a sixth later, in some noise, at some level: float32 in [-1, 1]."""
    onset = rng.integers(0, max(1, len(x) // 6))
    x = np.concatenate([np.zeros(onset), x])[: len(x)]
    x = x / (np.sqrt(np.mean(x**2)) + 1e-9)
    x = x + noise(rng, len(x), 0.0) * 10 ** (rng.uniform(*noise_db) / 20)
    peak = np.abs(x).max()
    return (x / peak * rng.uniform(0.25, 0.95)).astype(np.float32)


def noise(rng: Generator, samples: int, colour: float, low: float = 30.0, high: float = 7800.0) -> Wave:
    """Noise of unit power between two frequencies (Hz); ``colour`` 0 is white, 1 pink."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    f = np.fft.rfftfreq(samples, 1 / RATE)
    shape = np.where((f >= low) & (f <= high), np.maximum(f, 1.0) ** (-colour / 2), 0.0)
    x = np.fft.irfft(spectrum * shape, samples)
    return x / (x.std() + 1e-12)


def tone(frequency: Wave | float, t: Wave, partials: list[float], ratios: list[float] | None = None) -> Wave:
    """Sum of partials over a frequency track (Hz); partials above Nyquist are left out."""
    track = np.broadcast_to(frequency, t.shape)
    phase = 2 * np.pi * np.cumsum(track) / RATE
    multiples = ratios or [float(k + 1) for k in range(len(partials))]
    parts = [a * np.sin(m * phase) for a, m in zip(partials, multiples, strict=True) if m * track.max() < RATE / 2]
    return np.sum(parts, axis=0) if parts else np.zeros_like(t)


def beats(t: Wave, rate: float, decay: float) -> Wave:
    """A train of decaying envelopes: ``rate`` strokes a second, ``decay`` time constants a second."""
    return np.exp(-decay * np.mod(t, 1 / rate))


def falling(rng: Generator, count: int, low: float = 0.45, high: float = 0.75) -> list[float]:
    return [float(v) for v in rng.uniform(low, high) ** np.arange(count)]


def bell(rng: Generator, t: Wave) -> Wave:
    f, rate = rng.uniform(500, 900), rng.uniform(0.9, 1.6)
    return tone(f, t, [1, 0.7, 0.6, 0.45, 0.3], [1, 2.0, 2.76, 5.4, 8.9]) * beats(t, rate, rng.uniform(2.5, 4))


def drum(rng: Generator, t: Wave) -> Wave:
    rate = rng.uniform(2.5, 4.5)
    drop = rng.uniform(60, 100) * (1 + 2.5 * beats(t, rate, 40))
    return tone(drop, t, [1, 0.3]) * beats(t, rate, 12) + 0.5 * noise(rng, len(t), 1, 100, 3000) * beats(t, rate, 30)


def flute(rng: Generator, t: Wave) -> Wave:
    vibrato = 1 + 0.015 * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * t)
    breath = 0.06 * noise(rng, len(t), 0, 2000, 7000)
    return tone(rng.uniform(600, 1100) * vibrato, t, [1, 0.25, 0.06]) * np.minimum(1, t * 8) + breath


def dog(rng: Generator, t: Wave) -> Wave:
    rate = rng.uniform(1.8, 3.0)
    bark = rng.uniform(250, 420) * (0.7 + 0.6 * beats(t, rate, 9))
    gate = beats(t, rate, 14)
    return (tone(bark, t, falling(rng, 9, 0.75, 0.9)) + 1.2 * noise(rng, len(t), 0.5, 500, 2500)) * gate


def cat(rng: Generator, t: Wave) -> Wave:
    rate = rng.uniform(0.8, 1.3)
    phase = np.mod(t * rate, 1)
    glide = rng.uniform(450, 650) * (1 + 0.6 * np.sin(np.pi * phase))
    return tone(glide, t, [0.6, 1, 0.8, 0.5, 0.3, 0.2]) * np.sin(np.pi * phase) ** 0.6


def bird(rng: Generator, t: Wave) -> Wave:
    rate = rng.uniform(6, 10)
    phase = np.mod(t * rate, 1)
    sweep = rng.uniform(2600, 3400) + rng.uniform(1200, 2200) * phase
    return tone(sweep, t, [1.0]) * np.sin(np.pi * phase) * (np.sin(2 * np.pi * rng.uniform(0.8, 1.4) * t) > -0.4)


def engine(rng: Generator, t: Wave) -> Wave:
    f = rng.uniform(45, 90) * (1 + 0.05 * np.sin(2 * np.pi * rng.uniform(0.3, 0.8) * t))
    return tone(f, t, [1 / k**0.5 for k in range(1, 25)]) * (1 + 0.4 * np.sin(2 * np.pi * f / 4 * t))


def siren(rng: Generator, t: Wave) -> Wave:
    swing = np.sin(2 * np.pi * rng.uniform(0.6, 1.1) * t + rng.uniform(0, 6.3))
    return tone(rng.uniform(800, 1000) * 2 ** (0.55 * swing), t, [1, 0.5, 0.35, 0.2])


def whistle(rng: Generator, t: Wave) -> Wave:
    trill = 1 + 0.03 * np.sign(np.sin(2 * np.pi * rng.uniform(22, 34) * t))
    return tone(rng.uniform(3000, 4200) * trill, t, [1.0]) + 0.15 * noise(rng, len(t), 0, 3000, 7500)


def guitar(rng: Generator, t: Wave) -> Wave:
    rate = rng.uniform(2.5, 4.5)
    steps = rng.choice([0, 3, 5, 7, 10, 12], size=int(t[-1] * rate) + 1)
    f = rng.uniform(140, 230) * 2 ** (steps[np.floor(t * rate).astype(int)] / 12)
    since = np.mod(t, 1 / rate)
    return np.sum([tone(f * k, t, [1 / k]) * np.exp(-since * (2 + 2.5 * k)) for k in range(1, 9)], axis=0)


def clock(rng: Generator, t: Wave) -> Wave:
    rate = rng.uniform(3.5, 6)
    return (noise(rng, len(t), 0, 2500, 7000) + tone(rng.uniform(2200, 3000), t, [1.0])) * beats(t, rate, 120)


def frog(rng: Generator, t: Wave) -> Wave:
    pulse = beats(t, rng.uniform(28, 42), 60)
    croak = np.maximum(0, np.sin(2 * np.pi * rng.uniform(1.2, 2.2) * t)) ** 0.5
    return tone(rng.uniform(380, 620), t, [1, 0.6, 0.8, 0.3]) * pulse * croak


def violin(rng: Generator, t: Wave) -> Wave:
    vibrato = 1 + 0.02 * np.sin(2 * np.pi * rng.uniform(5, 7) * t)
    note = 2 ** (np.floor(np.mod(t * rng.uniform(1, 2), 2)) * rng.choice([2, 4, 5]) / 12)
    return tone(rng.uniform(320, 520) * vibrato * note, t, [1 / k for k in range(1, 13)]) + 0.05 * noise(rng, len(t), 0)


def phone(rng: Generator, t: Wave) -> Wave:
    rate = rng.uniform(14, 20)
    f = np.where(np.mod(t * rate, 1) < 0.5, 1.0, 1.25) * rng.uniform(1100, 1500)
    return tone(f, t, [1, 0, 0.4]) * (np.mod(t * rng.uniform(0.9, 1.3), 1) < 0.6)


def organ(rng: Generator, t: Wave) -> Wave:
    f = rng.uniform(110, 170)
    chord = [1.0, 1.26, 1.5] if rng.random() < 0.5 else [1.0, 1.19, 1.5]
    return np.sum([tone(f * c, t, [1, 0.8, 0, 0.7, 0, 0, 0, 0.5]) for c in chord], axis=0)


def kettle(rng: Generator, t: Wave) -> Wave:
    rise = rng.uniform(0.5, 1.0) * t / t[-1]
    hiss = noise(rng, len(t), 0, rng.uniform(1500, 2500), 7600)
    return hiss * (0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(9, 14) * t)) + rise * tone(
        rng.uniform(1900, 2400), t, [0.4]
    )


SOUNDS: dict[str, Callable[[Generator, Wave], Wave]] = {
    f.__name__: f
    for f in (
        bell, drum, flute, dog, cat, bird, engine, siren, whistle, guitar, clock, frog, violin, phone, organ, kettle,
    )
}  # fmt: skip
