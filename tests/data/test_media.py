from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from avloc.data.media import MediaError, audio_16k, centre_frame, duration, frames_at, read_clip
from tests.data.clips import write_clip


def grey(image: object) -> float:
    return float(np.asarray(image).mean())


def test_frames_are_those_on_the_screen(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=4)
    assert duration(path) == pytest.approx(4.0)
    times = [0.0, 0.05, 0.1, 1.99, 3.35, 9.0]
    shown = [0, 0, 1, 19, 33, 39]  # frame n is shown from n / 10 s on and is grey 4 n
    for image, n in zip(frames_at(path, times), shown, strict=True):
        assert image.size == (96, 64)
        assert abs(grey(image) - 4 * n) < 3
    assert abs(grey(frames_at(path, [3.35])[0]) - 132) < 3  # also when it seeks there
    assert abs(grey(centre_frame(path)) - 80) < 3
    assert abs(grey(centre_frame(path, 3.0)) - 120) < 3
    assert frames_at(path, []) == []


def test_sound_is_resampled_and_cropped_by_time(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=3, tone=1000)
    wave = audio_16k(path, seconds=2.0)
    assert wave.shape == (32000,)
    assert wave.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(wave[8000:24000]))
    assert spectrum.argmax() == 1000  # 1 Hz a bin
    assert np.abs(wave[8000:24000]).max() == pytest.approx(0.5, abs=0.05)
    assert abs(len(audio_16k(path)) - 48000) < 1024
    assert len(audio_16k(path, start=1.0, seconds=1.0, rate=8000)) == 8000


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_padding_of_aac_shifts_nothing(tmp_path: Path, start: float) -> None:
    wave = audio_16k(write_clip(tmp_path / "a.mp4", tone=3000, beep_at=1.0), start=start)
    loud = np.nonzero(np.abs(wave) > 0.2)[0]
    assert loud[0] / 16000 + start == pytest.approx(1.0, abs=0.004)
    assert loud[-1] / 16000 + start == pytest.approx(1.01, abs=0.004)


def test_a_clip_has_both(tmp_path: Path) -> None:
    clip = read_clip(write_clip(tmp_path / "a.mp4", seconds=2), seconds=1.0, t=1.5)
    assert (clip.frame_time, clip.rate, clip.audio.shape) == (1.5, 16000, (16000,))
    assert abs(grey(clip.frame) - 60) < 3
    short = read_clip(tmp_path / "a.mp4", t=5.0)  # beyond the end: the middle
    assert short.frame_time == pytest.approx(1.0)
    assert abs(grey(short.frame) - 40) < 3


def test_plain_sound_files_are_read_too(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(8000, 0.25), 8000)
    assert audio_16k(tmp_path / "a.wav", rate=8000) == pytest.approx(np.full(8000, 0.25), abs=1e-4)


def test_what_cannot_be_used_is_named_with_a_remedy(tmp_path: Path) -> None:
    silent = write_clip(tmp_path / "silent.mp4", audio=False)
    with pytest.raises(MediaError, match=r"silent.mp4 has no sound \(no audio stream\)"):
        read_clip(silent)
    blind = write_clip(tmp_path / "blind.mp4", picture=False)
    with pytest.raises(MediaError, match=r"blind.mp4 has no picture"):
        read_clip(blind)
    whole = write_clip(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("cut", "empty"):
        with pytest.raises(MediaError, match=rf"{name}.mp4 cannot be decoded.*Download it again"):
            read_clip(tmp_path / f"{name}.mp4")
    with pytest.raises(MediaError, match=r"absent.mp4 is not there"):
        read_clip(tmp_path / "absent.mp4")
    with pytest.raises(MediaError, match=r"whole.mp4 has no sound between 5.0 and 6.0 s"):
        audio_16k(tmp_path / "whole.mp4", start=5.0, seconds=1.0)
