"""Classes that share timbres or factors: the sharing is real, in sound and in look."""

from __future__ import annotations

import colorsys
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
import torch

from avloc.data.labels import LABEL_SPACES
from avloc.world.kinds import FACTORS, PAIRS, TWINS, at_home, factors_of, twin_of
from avloc.world.scenes import NAMES, arranged, render
from avloc.world.sounds import RATE, sound


def test_every_class_has_one_twin_and_one_home() -> None:
    assert sorted(c for pair in PAIRS for c in pair) == list(range(16))
    for warm, cold in PAIRS:
        assert (twin_of(warm), twin_of(cold)) == (cold, warm)
        assert [at_home(warm, s) for s in ("warm", "cold")] == [True, False]
        assert [at_home(cold, s) for s in ("warm", "cold")] == [False, True]


def test_twins_make_the_same_sound_and_others_do_not() -> None:
    def wave(label: int) -> np.ndarray:
        return TWINS.sound(np.random.default_rng(5), label, 1.0)

    for warm, cold in PAIRS:
        np.testing.assert_array_equal(wave(warm), wave(cold))
        np.testing.assert_array_equal(wave(cold), sound(np.random.default_rng(5), warm, 1.0))
    assert len({wave(warm).tobytes() for warm, _ in PAIRS}) == len(PAIRS)


def test_unheard_factor_classes_are_a_latin_square_whose_parts_are_all_heard() -> None:
    table = [factors_of(c) for c in range(27)]
    assert sorted(table) == sorted(product(range(3), repeat=3))
    unheard, heard = ([table[c] for c in part] for part in (FACTORS.unheard, FACTORS.heard))
    assert (len(unheard), len(heard)) == (9, 18)
    for i, j in combinations(range(3), 2):
        assert len({(row[i], row[j]) for row in unheard}) == 9  # two values fix the third
        assert set(Counter((row[i], row[j]) for row in heard).values()) == {2}
    assert tuple(FACTORS.name(c) for c in range(27)) == LABEL_SPACES["world_factors27"]
    assert not set(LABEL_SPACES["world_factors27"]) & set(NAMES)


def power(label: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and power spectrum of two seconds of a class."""
    x = FACTORS.sound(np.random.default_rng(seed), label, 2.0).astype(float)
    return np.fft.rfftfreq(len(x), 1 / RATE), np.abs(np.fft.rfft(x * np.hanning(len(x)))) ** 2


@pytest.mark.parametrize("label", range(27))
def test_hue_goes_with_pitch(label: int) -> None:
    low, high = ((105, 190), (390, 620), (1450, 2250))[factors_of(label)[0]]
    f, p = power(label, label)
    assert low < f[p.argmax()] < high  # the fundamental is the strongest partial of every class
    red, green, blue = colorsys.hsv_to_rgb(FACTORS.looks[label].hue, 1, 1)
    assert int(np.argmax([red, green, blue])) == factors_of(label)[0]


@pytest.mark.parametrize("label", range(27))
def test_pattern_goes_with_movement(label: int) -> None:
    movement = factors_of(label)[1]
    assert FACTORS.looks[label].pattern == ("plain", "stripes", "dots")[movement]
    x = FACTORS.sound(np.random.default_rng(label), label, 2.0).astype(float)[RATE // 2 :]
    level = np.sqrt(np.convolve(x**2, np.full(160, 1 / 160), "same"))[::40]  # at 400 Hz, after the onset
    rhythm = np.abs(np.fft.rfft(level / level.mean() - 1)) / len(level)
    f = np.fft.rfftfreq(len(level), 40 / RATE)
    slow, fast = rhythm[(f > 2) & (f < 10)].max(), rhythm[(f > 10.5) & (f < 18)].max()
    assert (slow < 0.05 and fast < 0.05, slow > max(fast, 0.1), fast > max(slow, 0.1)) == tuple(
        movement == m for m in range(3)
    )


@pytest.mark.parametrize("label", range(27))
def test_outline_goes_with_spectrum(label: int) -> None:
    spectrum = factors_of(label)[2]
    assert FACTORS.looks[label].outline == ("disc", "square", "star")[spectrum]
    f, p = power(label, label)
    first = f[p.argmax()]

    def partial(k: int) -> float:
        return float(np.sqrt(p[abs(f - k * first) < 0.3 * first].sum() / p[abs(f - first) < 0.3 * first].sum()))

    second, third = partial(2), partial(3)
    assert (second > 0.5, third > 0.5) == ((False, False), (False, True), (True, True))[spectrum]


def test_factor_classes_look_as_their_factors_say() -> None:
    label = np.arange(27)[:, None].repeat(2, 1)
    label[:, 1] = (label[:, 0] + 1) % 27
    scenes = arranged(np.random.default_rng(0), label, 2, FACTORS.looks)
    scenes.present[:, 1] = False
    image, mask = render(scenes, 128, FACTORS.looks)
    for c in range(27):
        inside = image[c][:, mask[c, 0]].float()
        assert int(inside.mean(1).argmax()) == factors_of(c)[0]
        dark = inside.amax(0) < 0.6 * inside.amax()
        assert bool(dark.float().mean() > 0.2) == (factors_of(c)[1] > 0)  # stripes and dots have dark parts
    assert torch.equal(mask[:, 1].any(-1).any(-1), torch.zeros(27, dtype=torch.bool))
