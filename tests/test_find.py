"""`avloc.load` and `Model.find`, with a method whose answer is known by hand and with one of the embedded world."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import avloc
from avloc.errors import UsageError
from avloc.find import Found, Model, picture_of, sound_of
from avloc.localize.models import Chosen
from avloc.localize.regions import Threshold
from avloc.methods.base import Localizer
from avloc.methods.load import CheckpointError
from avloc.types import AVBatch, InputSpec, Localization

SPEC = InputSpec(image_size=32, sample_rate=16000, seconds=1.0)


class LeftWhenLoud(Localizer):
    """The left half is as hot as the sound's largest sample."""

    input_spec = SPEC

    def localize(self, batch: AVBatch) -> Localization:
        maps = torch.zeros(len(batch.key), 1, 8, 8)
        maps[:, :, :, :4] = batch.audio.abs().amax(1)[:, None, None, None]
        return Localization(maps, maps.amax((2, 3)))


@pytest.fixture
def model() -> Model:
    return Model(Chosen(LeftWhenLoud().eval(), "LeftWhenLoud", Threshold(0.4, "by hand")))


LOUD = np.full(16000, 0.5, np.float32) * np.where(np.arange(16000) % 2, 1, -1).astype(np.float32)
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
GREY = PICTURE[:, :, 0]


def test_one_answer(model: Model) -> None:
    found = model.find(PICTURE, LOUD, rate=16000)
    assert isinstance(found, Found)
    assert found.maps.shape == (1, 8, 8)
    assert found.regions[0]["box"] == [0, 0, 30, 40]  # left half of 60 x 40
    assert found.regions[0]["area_share"] == 0.5
    assert found.confidence == pytest.approx([0.5])
    assert "box [0, 0, 30, 40]" in repr(found)
    drawn = np.asarray(found.overlay(alpha=1.0))
    assert drawn.shape == PICTURE.shape
    assert (drawn[:, 40:] == PICTURE[:, 40:]).all()  # cold: the picture itself
    assert (drawn[:, :20] != PICTURE[:, :20]).any()
    page = found._repr_html_()
    assert page.startswith('<figure><img src="data:image/png;base64,')
    assert "box [0, 0, 30, 40]" in page


def test_silence_and_the_threshold(model: Model) -> None:
    assert model.find(PICTURE, LOUD * 0, rate=16000).regions == []
    assert "nothing sounds" in repr(model.find(PICTURE, LOUD * 0, rate=16000))
    assert not model.find(PICTURE, LOUD, rate=16000, threshold=0.6).sounds
    assert model.find(PICTURE, LOUD, rate=16000).threshold.origin == "by hand"


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_lists_of_different_sizes(model: Model, batch_size: int) -> None:
    pictures, sounds = [PICTURE, PICTURE[:20], Image.fromarray(PICTURE)], [LOUD, LOUD[:8000], LOUD * 0.5]
    found = model.find(pictures, sounds, 16000, batch_size=batch_size)
    assert [f.regions[0]["box"] if f.sounds else None for f in found] == [[0, 0, 30, 40], [0, 0, 30, 20], None]


def test_files(model: Model, tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "p.png")
    soundfile.write(tmp_path / "s.wav", LOUD, 16000, subtype="FLOAT")
    assert model.find(tmp_path / "p.png", str(tmp_path / "s.wav")).regions[0]["box"] == [0, 0, 30, 40]


@pytest.mark.parametrize(
    ("picture", "seen"),
    [
        (PICTURE, PICTURE),
        (PICTURE.transpose(2, 0, 1), PICTURE),
        (torch.from_numpy(PICTURE).permute(2, 0, 1), PICTURE),
        (PICTURE / 255.0, PICTURE),
        (torch.from_numpy(PICTURE).permute(2, 0, 1).float() / 255, PICTURE),
        (GREY, np.stack([GREY] * 3, 2)),
        (GREY[None], np.stack([GREY] * 3, 2)),
        (GREY[:, :, None], np.stack([GREY] * 3, 2)),
        (GREY.astype(np.uint16) * 257, np.stack([GREY] * 3, 2)),
        (GREY > 127, np.stack([np.where(GREY > 127, 255, 0)] * 3, 2)),
        (np.concatenate([PICTURE, np.full((40, 60, 1), 255, np.uint8)], 2), PICTURE),
        (np.concatenate([PICTURE, np.zeros((40, 60, 1), np.uint8)], 2), PICTURE * 0),
        (Image.fromarray(PICTURE), PICTURE),
        (Image.fromarray(GREY), np.stack([GREY] * 3, 2)),
    ],
)
def test_pictures_of_every_kind(picture: Any, seen: np.ndarray) -> None:
    assert np.array_equal(picture_of(picture), seen)


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (PICTURE.astype(np.float32), r"lies in \[0, 1\]; this one reaches from 0 to 255"),
        (PICTURE.astype(np.float32) / 255 * np.nan, "reaches from nan"),
        (PICTURE.astype(np.int64), "not int64"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"this one is \[2, 3, 8, 8\]"),
        (np.zeros((0, 8, 3), np.uint8), r"this one is \[0, 8, 3\]"),
        (np.zeros((8, 8, 2), np.uint8), r"this one is \[8, 8, 2\]"),
        (7, "not a int"),
    ],
)
def test_what_is_no_picture(picture: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        picture_of(picture)


@pytest.mark.parametrize(
    "sound",
    [
        LOUD,
        torch.from_numpy(LOUD),
        LOUD.astype(np.float64),
        np.stack([LOUD, LOUD]),
        np.stack([LOUD, LOUD], 1),
        LOUD[None],
        np.stack([LOUD, -LOUD]),  # antiphase: averaging would silence it
        (LOUD * 2**15).astype(np.int16),
        (LOUD.astype(np.float64) * 2**31).astype(np.int32),
        (LOUD * 128 + 128).astype(np.uint8),
    ],
)
def test_sounds_of_every_kind(sound: Any) -> None:
    heard = sound_of(sound, 16000, SPEC)
    assert heard.dtype == np.float32
    np.testing.assert_allclose(heard, LOUD, atol=1e-6)


def test_other_rates_and_longer_sounds() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(3 * 44100) / 44100)
    heard = sound_of(tone, 44100, SPEC)
    assert heard.shape == (16000,)
    np.testing.assert_allclose(heard[100:-100], np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)[100:-100], atol=1e-3)
    middle = sound_of(np.arange(48000) / 1e5, 16000, InputSpec(seconds=1.0, window="centre"))
    np.testing.assert_allclose(middle, np.arange(16000, 32000) / 1e5, atol=1e-6)


@pytest.mark.parametrize(
    ("sound", "rate", "told"),
    [
        (LOUD, None, "needs its rate in Hz"),
        (LOUD, 0, "needs its rate in Hz"),
        (LOUD[:0], 16000, r"this one is \[0\]"),
        (np.zeros((2, 2, 9), np.float32), 16000, r"this one is \[2, 2, 9\]"),
        (np.zeros((500, 600), np.float32), 16000, "too many channels"),
        (LOUD.astype(complex), 16000, "not complex128"),
        ([0.0], 16000, "not a list"),
    ],
)
def test_what_is_no_sound(sound: Any, rate: int | None, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        sound_of(sound, rate, SPEC)


def test_short_and_broken_sounds() -> None:
    with pytest.raises(ValueError, match="s of sound"):
        sound_of(LOUD[:100], 16000, SPEC)
    with pytest.raises(ValueError, match="NaN or infinite"):
        sound_of(LOUD * np.inf, 16000, SPEC)


def test_numbers_that_do_not_match(model: Model) -> None:
    with pytest.raises(UsageError, match="2 pictures and 1 sounds"):
        model.find([PICTURE, PICTURE], [LOUD], 16000)
    with pytest.raises(UsageError, match="one picture and one sound, or a list of each"):
        model.find([PICTURE], LOUD, 16000)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match=r"threshold in 0\.\.1"):
        model.find(PICTURE, LOUD, 16000, threshold=50)


def test_a_method_of_the_embedded_world_says_that_it_is_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = avloc.load("text_query_world")
    assert "toy weights" in model.warning
    found = model.find(PICTURE, LOUD, 16000)
    assert 0 <= found.maps.min() <= found.maps.max() <= 1
    with pytest.raises(UsageError, match="has to be trained"):
        avloc.load("quickstart")
    with pytest.raises(CheckpointError, match="Train an ACL or SOUPLE first"):
        avloc.load("zero_shot_world")
    with pytest.raises(UsageError, match=r"no experiment 'text_query_wrld'\. Did you mean text_query_world"):
        avloc.load("text_query_wrld")


def test_the_package_itself_is_light() -> None:
    code = "import avloc, sys; assert 'torch' not in sys.modules; assert avloc.__version__; hasattr(avloc, 'nothing')"
    subprocess.run([sys.executable, "-c", code], check=True)
