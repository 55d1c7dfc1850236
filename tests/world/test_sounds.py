"""The world's sounds: right length and level, different every time, and recognisable."""

from __future__ import annotations

import numpy as np
import pytest

from avloc.world.scenes import NAMES
from avloc.world.sounds import RATE, noise, sound


@pytest.mark.parametrize("label", range(len(NAMES)), ids=NAMES)
def test_a_sound_is_audible_and_never_the_same_twice(label: int) -> None:
    rng = np.random.default_rng(label)
    a, b = sound(rng, label, 1.0), sound(rng, label, 1.0)
    assert a.dtype == np.float32
    assert a.shape == (RATE,)
    assert np.isfinite(a).all()
    assert 0.2 < np.abs(a).max() <= 1
    assert np.sqrt(np.mean(a**2)) > 0.01
    assert not np.allclose(a, b)
    assert np.array_equal(a, sound(np.random.default_rng(label), label, 1.0))


def test_no_class_is_a_single_sine() -> None:
    for label in range(len(NAMES)):
        x = sound(np.random.default_rng(1), label, 2.0, (-80, -80)).astype(float)
        power = np.abs(np.fft.rfft(x * np.hanning(len(x)))) ** 2
        peak = power.argmax()
        assert power[max(0, peak - 4) : peak + 5].sum() < 0.9 * power.sum(), NAMES[label]


def test_classes_can_be_told_apart_by_a_blunt_rule() -> None:
    """Nearest mean of coarse log-spectra: far above chance (1 in 16), so the classes are recognisable."""

    def bands(x: np.ndarray) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(x.astype(float), 512)[::256] * np.hanning(512)
        power = np.abs(np.fft.rfft(frames))[:, 1:] ** 2
        log = np.log(np.add.reduceat(power, np.unique(np.geomspace(1, 255, 24).astype(int)), axis=1) + 1e-6)
        log -= log.mean()
        return np.concatenate([log.mean(0), log.std(0)])

    rng = np.random.default_rng(0)
    means = np.stack([np.mean([bands(sound(rng, c, 1.0)) for _ in range(8)], axis=0) for c in range(len(NAMES))])
    hits = [
        np.linalg.norm(means - bands(sound(rng, c, 1.0)), axis=1).argmin() == c
        for c in range(len(NAMES))
        for _ in range(4)
    ]
    assert np.mean(hits) > 0.6


def test_noise_keeps_to_its_band() -> None:
    x = noise(np.random.default_rng(0), RATE, 0.0, 1000, 2000)
    power = np.abs(np.fft.rfft(x)) ** 2
    f = np.fft.rfftfreq(RATE, 1 / RATE)
    assert power[(f >= 1000) & (f <= 2000)].sum() > 0.999 * power.sum()
    assert x.std() == pytest.approx(1)
