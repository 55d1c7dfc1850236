from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avloc.data.media import (
    Library,
    MediaError,
    audio_16k,
    centre_frame,
    duration,
    frames_at,
    is_antiphase,
    probe,
    read_clip,
)
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


def test_the_cover_of_a_song_is_no_video(tmp_path: Path) -> None:
    picture, song = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "JPEG")
    time = np.arange(2 * 44100) / 44100
    soundfile.write(song, 0.3 * np.sin(2 * np.pi * 440 * time), 44100, format="MP3")
    # An ID3v2.3 tag by hand: one APIC frame, front cover.
    body = b"\0image/jpeg\0\x03\0" + picture.getvalue()
    frame = b"APIC" + len(body).to_bytes(4, "big") + b"\0\0" + body
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    (tmp_path / "song.mp3").write_bytes(b"ID3\x03\0\0" + size + frame + song.getvalue())
    media = probe(tmp_path / "song.mp3")
    assert media.cover
    assert media.video is None
    wave = audio_16k(tmp_path / "song.mp3", seconds=2.0)
    assert len(wave) / 16000 == pytest.approx(2.0, abs=0.06)
    assert np.abs(np.fft.rfft(wave[8000:24000])).argmax() == 440
    with pytest.raises(MediaError, match="holds no moving pictures"):
        frames_at(tmp_path / "song.mp3", [0.0])


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("packed", ["tar", "tar.gz"])
def test_clips_of_archives_with_long_names_are_read_where_they_lie(tmp_path: Path, form: int, packed: str) -> None:
    clip = write_clip(tmp_path / "a.mp4", seconds=2)
    name = f"{'größe/' * 40}-_abcdefghi_000012.MP4"
    with tarfile.open(tmp_path / f"part0.{packed}", "w:gz" if packed.endswith("gz") else "w", format=form) as tar:
        tar.add(clip, name)
    clip.unlink()
    member = Library(tmp_path).find("-_abcdefghi", 12.0)
    assert abs(grey(frames_at(member, [1.0])[0]) - 40) < 3
    assert len(audio_16k(member, seconds=1.0)) == 16000


@pytest.mark.parametrize(("share", "cancels"), [(1.0, True), (0.85, True), (0.6, False), (-1.0, False), (0.0, False)])
def test_channels_that_undo_each_other_are_known(share: float, cancels: bool) -> None:
    """The mean of left and right is 20 dB below half their difference: (1 - s) / (1 + s) < 0.1, s over 0.818."""
    left = np.random.default_rng(0).standard_normal(441_000).astype(np.float32)
    assert is_antiphase(np.stack([left, -share * left])) is cancels
    assert is_antiphase(np.stack([left, -share * left]) * 1e-5) is False
    assert is_antiphase(np.stack([left, -share * left])[:, ::2]) is cancels


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
