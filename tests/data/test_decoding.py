from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from avloc.data.decoding import decode_audio, decode_image, fit_audio
from avloc.data.schema import SampleError
from tests.data.make import SPEC, sound

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(seconds=0.003), [1, 2, 3]),
        (dict(seconds=0.003, window="centre"), [2, 3, 4]),
        (dict(seconds=0.007), [1, 2, 3, 4, 5, 0, 0]),
        (dict(seconds=0.012, pad="tile"), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]),
    ],
)
def test_windows_and_padding(changes: dict, expected: list[int]) -> None:
    wave = np.array([[1, 2, 3, 4, 5]], np.float32).T
    assert fit_audio(wave, replace(SPEC, **changes)).tolist() == expected


def test_channels() -> None:
    stereo = np.array([[1, 3], [2, 6]], np.float32)
    spec = replace(SPEC, seconds=0.004)
    assert fit_audio(stereo, spec).tolist() == [2, 4, 0, 0]
    assert fit_audio(stereo, replace(spec, channels="first")).tolist() == [1, 2, 0, 0]
    assert fit_audio(stereo, replace(spec, channels="left_then_right")).tolist() == [1, 2, 3, 6]


def test_opus_and_wav_decode_to_the_same_sound_as_flac() -> None:
    t = np.arange(16000) / 16000
    wave = 0.3 * np.sin(2 * np.pi * 440 * t)
    flac = decode_audio(sound(wave, 16000), "x", 16000, 1.0)
    np.testing.assert_allclose(flac[:, 0], wave, atol=1e-4)
    np.testing.assert_allclose(decode_audio(sound(wave, 16000, "WAV"), "x", 16000, 1.0), flac, atol=1e-4)
    opus = decode_audio(sound(wave, 16000, "OGG", "OPUS"), "x", 16000, 1.0)
    assert np.corrcoef(opus[1000:15000, 0], wave[1000:15000])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (sound(NOISE, 16000)[:6000], "cannot be decoded as sound|is cut off"),
        (sound(NOISE, 16000, "WAV")[:6000], "is cut off: .* samples of 16000"),
        (sound(NOISE, 16000, "OGG", "OPUS")[:3000], "cannot be decoded as sound|is cut off"),
        (sound(NOISE, 8000), "has 8000 Hz, the method wants 16000 Hz. Write the shards at that rate"),
        (sound(np.array([]), 16000, "WAV"), "no samples at all"),
        (sound(np.full(16000, np.nan), 16000, "WAV", "FLOAT"), "NaN or infinite"),
        (b"", "cannot be decoded as sound"),
        (b"not a sound", "cannot be decoded as sound"),
    ],
)
def test_broken_sounds_are_named(data: bytes, says: str) -> None:
    with pytest.raises(SampleError, match=f"^toy__1.a0 .*({says})"):
        decode_audio(data, "toy__1.a0", 16000, 1.0)


def test_a_truncated_jpeg_is_named() -> None:
    data = io.BytesIO()
    Image.fromarray((np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8)).save(data, "JPEG")
    for broken in (data.getvalue()[:2000], data.getvalue()[:20], b"", b"no picture"):
        with pytest.raises(SampleError, match=r"^toy__1.f0.jpg cannot be decoded as a picture"):
            decode_image(broken, "toy__1.f0.jpg")


@pytest.mark.parametrize(
    ("t", "seconds", "pad", "expected"),
    [
        (0.0, 0.002, "zeros", [0, 1]),
        (0.0019, 0.002, "zeros", [0, 1]),
        (0.002, 0.002, "zeros", [2, 3]),
        (0.0049, 0.002, "zeros", [4, 5]),
        (0.006, 0.002, "zeros", [6, 0]),  # of seven samples, the last stretch is half empty
        (0.006, 0.002, "tile", [6, 6]),
        (0.5, 0.002, "zeros", [6, 0]),  # long after the clip
        (-0.1, 0.002, "zeros", [0, 1]),
        (0.0069, 0.007, "zeros", [0, 1, 2, 3, 4, 5, 6]),
        (0.007, 0.007, "zeros", [0, 1, 2, 3, 4, 5, 6]),
        (0.004, 0.009, "zeros", [0, 1, 2, 3, 4, 5, 6, 0, 0]),
    ],
)
def test_the_sound_of_a_frame_is_the_stretch_that_it_lies_in(
    t: float, seconds: float, pad: str, expected: list[int]
) -> None:
    spec = replace(SPEC, window="frame", seconds=seconds, pad=pad)  # type: ignore[arg-type]
    wave = np.arange(7, dtype=np.float32)[:, None]
    assert fit_audio(wave, spec, t).tolist() == expected
    stereo = np.concatenate([wave - 1, wave + 1], 1)
    assert fit_audio(stereo, spec, t).tolist() == expected


def test_times_that_binary_fractions_miss_still_belong_to_their_stretch() -> None:
    spec = replace(SPEC, window="frame", seconds=0.1)
    wave = np.arange(1000, dtype=np.float32)[:, None]
    starts = [fit_audio(wave, spec, k * 0.1)[0] for k in range(10)]  # 3 * 0.1 / 0.1 > 3, 0.7 / 0.1 < 7
    assert starts == [100 * k for k in range(10)]
    assert [fit_audio(wave, spec, k / 10)[0] for k in range(10)] == starts
    with pytest.raises(ValueError, match="window frame cuts the sound by time"):
        replace(spec, channels="left_then_right")
