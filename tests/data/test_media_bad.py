"""Odd and bad media: each is used or answered by a sentence, costs what is looked at, and spoils nothing else."""

from __future__ import annotations

import ast
import os
import shutil
import struct
import tracemalloc
import wave
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

import avloc
import data_prep
from avloc.data.media import (
    Library,
    MediaError,
    audio_16k,
    duration,
    pixels,
    probe,
    read_clip,
    read_picture,
    read_sound,
    reading,
)
from avloc.data.media import files as media_files
from avloc.data.media.pictures import HLG, PQ, tone_mapped
from avloc.errors import UsageError
from avloc.localize.reading import clips_in
from avloc.localize.run import localize_still, localize_video
from avloc.methods.base import Localizer
from avloc.types import AVBatch, InputSpec, Localization
from data_prep.members import sound
from data_prep.tables import files_by_stem
from tests.data.clips import write_clip
from tests.data.test_media_road import convert
from tests.data.timecode import FPS, Variant, number, shift, tone
from tests.data.timecode import write as write_coded

pytestmark = pytest.mark.media
RATE = 16000


def write(
    path: Path,
    pictures: int = 25,
    size: tuple[int, int] = (32, 24),
    fps: int = 25,
    codec: str = "ffv1",
    audio: str | None = "pcm_s16le",
    seconds: float | None = None,
    pix_fmt: str = "yuv420p",
    rate: int = RATE,
    options: dict[str, str] | None = None,
    form: str | None = None,
) -> Path:
    """Grey pictures, n of grey n modulo 256, and the tone that tells the time."""
    with av.open(str(path), "w", format=form, options=options or {}) as out:
        video: Any = out.add_stream(codec, rate=fps, options={"strict": "-2"})
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        sounds: Any = out.add_stream(audio, rate=rate, layout="mono") if audio else None
        if sounds:
            samples = tone(0, pictures / fps if seconds is None else seconds, rate).astype(np.float32)
            for i in range(0, len(samples), rate):
                piece = av.AudioFrame.from_ndarray(samples[None, i : i + rate], "fltp", "mono")
                piece.sample_rate, piece.pts, piece.time_base = rate, i, Fraction(1, rate)
                out.mux(sounds.encode(piece))
            out.mux(sounds.encode(None))
        for n in range(pictures):
            picture = np.full((size[1], size[0], 3), n % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, fps)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


def grey(picture: object) -> float:
    return float(np.asarray(picture).mean())


class Known(Localizer):
    """Hot everywhere; remembers nothing."""

    input_spec = InputSpec(image_size=16, sample_rate=8000, seconds=1.0)

    def localize(self, batch: AVBatch) -> Localization:
        return Localization(batch.image.new_ones(len(batch), 1, 4, 4).float(), batch.audio.new_ones(len(batch), 1))


# Pictures and videos of odd shapes


@pytest.mark.parametrize("size", [(1, 24), (24, 1), (1, 1), (31, 17)])
def test_a_video_of_one_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write(tmp_path / "a.mkv", 5, size, codec="mjpeg", pix_fmt="yuvj444p")
    clip = read_clip(path, 10.0, 0.1)
    assert clip.frame.size == size
    assert grey(clip.frame) == pytest.approx(2, abs=2)
    result = localize_video(Known(), path, tmp_path / "out", progress=False)
    assert (result["width"], result["height"]) == size
    assert probe(tmp_path / "out" / "overlay.mp4").width == size[0] + size[0] % 2


def test_a_picture_of_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 24), (9, 9, 9)).save(tmp_path / "thin.png")
    soundfile.write(tmp_path / "a.wav", tone(0, 1.0, RATE), RATE)
    result = localize_still(Known(), tmp_path / "thin.png", tmp_path / "a.wav", tmp_path / "out")
    assert (result["width"], result["height"]) == (1, 24)
    assert Image.open(tmp_path / "out" / "overlay.png").size == (1, 24)


def test_a_picture_too_long_for_h264_becomes_smaller(tmp_path: Path) -> None:
    path = write(tmp_path / "long.mkv", 5, (2, 20000), codec="mjpeg", pix_fmt="yuvj444p")
    result = localize_video(Known(), path, tmp_path / "out", progress=False)
    assert (result["width"], result["height"]) == (2, 20000)
    assert probe(tmp_path / "out" / "overlay.mp4").height == 4096


def test_a_video_of_one_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "one_000000.mp4", 1, codec="mpeg4", audio="aac", seconds=1.0)
    clip = read_clip(path, 10.0, 5.0)
    assert grey(clip.frame) == pytest.approx(0, abs=2)
    assert len(clip.audio) == pytest.approx(RATE, abs=0.1 * RATE)
    result = localize_video(Known(), path, tmp_path / "out", progress=False)
    assert len(result["times"]) == 1


def test_a_huge_picture_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 9) + b"IDAT")
    soundfile.write(tmp_path / "a.wav", tone(0, 1.0, RATE), RATE)
    tracemalloc.start()
    for use in (
        lambda: read_picture(tmp_path / "huge.png"),
        lambda: localize_still(Known(), tmp_path / "huge.png", tmp_path / "a.wav", tmp_path / "out"),
        lambda: probe(tmp_path / "huge.png"),
    ):
        with pytest.raises(MediaError, match=r"huge\.png (can.*as a picture|has no picture)"):
            use()
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


# Claims


def test_a_stream_that_claims_a_thousand_pictures_a_second(tmp_path: Path) -> None:
    path = tmp_path / "fast.mkv"
    write(path, 25, options={"default_mode": "passthrough"})
    data = path.read_bytes()
    nanoseconds = b"\x23\xe3\x83"  # DefaultDuration
    at = data.index(nanoseconds)
    size = data[at + 3] & 0x7F
    path.write_bytes(data[: at + 4] + (1_000_000).to_bytes(size, "big") + data[at + 4 + size :])
    media = probe(path)
    assert media.fps <= 1000
    assert grey(media.at([0.8])[0].image) == pytest.approx(20, abs=2), "the times of the packets count"
    result = localize_video(Known(), path, tmp_path / "out", fps=5, progress=False)
    assert [t["time"] for t in result["times"]] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8], abs=0.001)
    assert probe(tmp_path / "out" / "overlay.mp4").measured().seconds == pytest.approx(1.0, abs=0.05)
    fast = write(tmp_path / "true.mp4", 100, fps=1000, codec="mjpeg", pix_fmt="yuvj420p", audio="aac", seconds=1.0)
    assert grey(probe(fast).at([0.0505])[0].image) == pytest.approx(50, abs=2)
    localize_video(Known(), fast, tmp_path / "out", progress=False)


def with_duration(path: Path, seconds: float) -> Path:
    """A Matroska file that claims another length."""
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3
    path.write_bytes(data[:at] + struct.pack(">d", seconds * 1000) + data[at + 8 :])
    return path


@pytest.mark.parametrize("claimed", [36000.0, 0.5, 0.0])
def test_a_length_that_is_wrong_or_absent(tmp_path: Path, claimed: float) -> None:
    path = with_duration(write(tmp_path / "abcdefghijk.mkv", 75), claimed)
    clip = read_clip(path, 10.0, 2.0)
    assert grey(clip.frame) == pytest.approx(50, abs=2)
    assert len(clip.audio) == pytest.approx(3 * RATE, abs=0.05 * RATE)
    assert clip.found.get("short", 3.0) == pytest.approx(3.0, abs=0.05)
    made = convert(tmp_path, tmp_path, {"abcdefghijk": 30})
    assert made["abcdefghijk_000030"][0].audios[0].duration == pytest.approx(3.0, abs=0.05)
    result = localize_video(Known(), path, tmp_path / "out", fps=1, progress=False)
    assert result["duration"] == pytest.approx(3.0, abs=0.05)
    assert result["window_s"] == 1.0


def test_a_sound_that_claims_ten_hours_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, tone(0, 2.0, RATE), RATE)
    data = bytearray(path.read_bytes())
    samples = 10 * 3600 * RATE  # 36 bits of STREAMINFO
    data[21] = data[21] & 0xF0 | samples >> 32
    data[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)
    assert soundfile.info(path).frames == samples
    with pytest.raises(MediaError, match=r"long\.flac cannot be decoded as one sound \(10\.0 h are more than 1 h\)"):
        sound(path)
    assert sound(path, seconds=1.0)[1].duration == 1.0
    tracemalloc.start()
    assert len(read_sound(path, RATE, 1.0)[0]) == 1.5 * RATE
    assert len(audio_16k(path, seconds=1.0)) == RATE
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    localize_still(Known(), tmp_path / "a.png", path, tmp_path / "out")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_wav_of_ten_hours_costs_what_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with wave.open(str(path), "wb") as f:
        f.setparams((1, 2, RATE, 0, "NONE", ""))
        f.writeframes((tone(0, 2.0, RATE) * 32767).astype("<i2").tobytes())
    data = bytearray(path.read_bytes())
    long = 10 * 3600 * RATE * 2
    data[4:8], data[40:44] = (long + 36).to_bytes(4, "little"), long.to_bytes(4, "little")
    path.write_bytes(data)
    os.truncate(path, long + 44)  # silence that takes no room on the disk
    assert duration(path) == pytest.approx(36000)
    heard = counted(lambda: shift(audio_16k(path, start=0.5, seconds=1.0), 0.5, RATE))
    assert heard["result"] == pytest.approx(0, abs=0.02)
    assert heard["samples"] < 4 * RATE
    assert counted(lambda: audio_16k(path, start=18000.0, seconds=1.0))["samples"] < 4 * RATE


# Cost and length


def counted(use: Any) -> dict[str, Any]:
    """Pictures and samples that a call decodes, packets that it reads, and what it returns."""
    n = {"frames": 0, "samples": 0, "packets": 0}
    own = {name: getattr(reading, name) for name in ("decoded_frames", "decoded_sound", "packets")}

    def frames(*given: Any) -> Iterator[Any]:
        for item in own["decoded_frames"](*given):
            n["frames"] += 1
            yield item

    def sounds(*given: Any) -> Iterator[Any]:
        for item in own["decoded_sound"](*given):
            n["samples"] += item[1].shape[1]
            yield item

    def packets(*given: Any) -> Iterator[Any]:
        for item in own["packets"](*given):
            n["packets"] += 1
            yield item

    with pytest.MonkeyPatch.context() as patch:
        for name, function in (("decoded_frames", frames), ("decoded_sound", sounds), ("packets", packets)):
            patch.setattr(reading, name, function)
        return {"result": use(), **n}


@pytest.mark.parametrize(("suffix", "audio"), [("mkv", "pcm_u8"), ("mp4", "aac"), ("ts", "mp2")])
def test_the_second_wanted_of_an_hour_is_not_decoded_from_the_start(tmp_path: Path, suffix: str, audio: str) -> None:
    seconds = 3600
    rate = 8000 if audio != "mp2" else 16000
    path = tmp_path / f"hour.{suffix}"
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("mpeg4" if suffix != "ts" else "mpeg2video", rate=25)
        video.width, video.height, video.pix_fmt, video.gop_size = 16, 16, "yuv420p", 5
        video.codec_context.time_base = Fraction(1, 25)
        sounds: Any = out.add_stream(audio, rate=rate, layout="mono")
        quiet = np.zeros((1, 2 * rate), np.float32)
        for n in range(0, seconds, 2):  # a picture every two seconds
            frame = av.VideoFrame.from_ndarray(np.full((16, 16), n // 2 % 200, np.uint8), format="gray")
            frame.pts, frame.time_base = 25 * n, Fraction(1, 25)
            out.mux(video.encode(frame))
            piece = av.AudioFrame.from_ndarray(quiet, "fltp", "mono")
            piece.sample_rate, piece.pts, piece.time_base = rate, n * rate, Fraction(1, rate)
            out.mux(sounds.encode(piece))
        out.mux(video.encode(None))
        out.mux(sounds.encode(None))
    early, late = (counted(lambda t=t: read_clip(path, 10.0, 5.0, 8000, start=t)) for t in (20.0, 3300.0))
    assert grey(late["result"].frame) == pytest.approx(1652 % 200, abs=4)
    assert len(late["result"].audio) == 80000
    for cost in (early, late):
        assert cost["frames"] < 30
        assert cost["samples"] < 17 * rate
    assert late["packets"] < 2 * early["packets"] + 400


def peak(use: Any) -> int:
    tracemalloc.start()
    try:
        use()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    short = write(tmp_path / "short.mkv", 20, fps=5, seconds=4)
    long = write(tmp_path / "long.mkv", 200, fps=5, seconds=40)

    def run(path: Path) -> None:
        localize_video(Known(), path, tmp_path / path.stem, fps=2, progress=False, maps="npz")

    run(short)
    once = peak(lambda: run(short))
    assert peak(lambda: run(long)) < once + 1e6, "4 s of float32 at 16 kHz are 0.26 MB, 40 s 2.6 MB"
    first = peak(lambda: read_clip(long, 2.0, 1.0))
    assert peak(lambda: read_clip(long, 2.0, 1.0, start=36.0)) < 1.5 * first + 1e5


# Folders and files


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Folders of a name refuse, as they do for others than root."""
    own = Path.iterdir

    def iterdir(self: Path) -> Any:
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return own(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)


def test_a_folder_that_is_not_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("locked", "open"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        (tmp_path / "videos" / name / f"{name}.mp4").touch()
    unreadable(monkeypatch, "locked")
    library = Library(tmp_path / "videos")
    assert [p.name for (p,) in library.clips.values()] == ["open.mp4"]
    (remark,) = library.remarks
    assert remark.endswith("locked cannot be read (Permission denied): its clips are missing")
    with pytest.raises(MediaError, match=r"locked cannot be read \(Permission denied\)\. Check its rights"):
        Library(tmp_path / "videos" / "locked")
    with pytest.raises(ValueError, match=r"locked cannot be read \(Permission denied\)\. Check its rights"):
        files_by_stem(tmp_path / "videos" / "locked")
    with pytest.raises(UsageError, match=r"locked cannot be read \(Permission denied\)"):
        clips_in([tmp_path / "videos" / "locked"])


def test_a_file_that_is_not_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MediaError, match=r"a\.mp4 cannot be read .*Permission denied.*Check its rights"):
        probe(tmp_path / "a.mp4")


def test_archives_of_other_kinds_are_named(tmp_path: Path) -> None:
    (tmp_path / "part.zip").touch()
    (remark,) = Library(tmp_path).remarks
    assert "part.zip is an archive of a kind that is not read" in remark


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=1)
    says = r"a\.mp4 cannot be decoded \(it changed while it was read\)\. Run again when it is whole"
    frames = probe(path).frames()
    next(frames)
    os.utime(path, (1, 1))
    with pytest.raises(MediaError, match=says):
        list(frames)
    media = probe(path)
    media.at([0.5])
    os.utime(path, (2, 2))
    with pytest.raises(MediaError, match=says):
        media.hear(RATE)  # would belong to another picture
    own = media_files.open_bytes

    def growing(source: Any) -> Any:
        os.utime(path, (3, 3))
        return own(source)

    monkeypatch.setattr(media_files, "open_bytes", growing)
    with pytest.raises(MediaError, match=says):
        read_clip(path)


def test_one_bad_clip_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    good = write_clip(videos / "good_000001.mp4", seconds=1)
    (videos / "empty_000001.mp4").write_bytes(b"")
    shutil.copy(good, videos / "twice_000001.mp4")
    shutil.copy(good, videos / "twice_1.mkv")
    write(videos / "mute_000001.mkv", 5, audio=None)
    (videos / "text_000001.webm").write_text("no video")
    (videos / "cut_000001.mp4").write_bytes(good.read_bytes()[:3000])
    names = ["good", "empty", "twice", "mute", "text", "cut", "absent"]
    made = convert(videos, tmp_path, dict.fromkeys(names, 1))
    assert set(made) == {"good_000001"}
    rows = (tmp_path / "vggsound" / "skipped-test.csv").read_text().splitlines()[1:]
    assert len(rows) == len(names) - 1
    for row in rows:
        assert row.rstrip('"').endswith("."), row
        assert any(word in row for word in ("Download it", "Keep one", "Leave it out", "run again")), row
    said = capsys.readouterr().err
    assert said.index("records written") < said.index("clips ") < said.index("damaged: what decodes is used")
    assert "damaged" in said.rstrip().splitlines()[-1], "the table comes last"


# Colours


def hdr(path: Path, code: int, transfer: int, primaries: int = ColorPrimaries.BT2020) -> Path:
    """A video of one grey of 10 bits, in limited range."""
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p10le"
        context = video.codec_context
        context.colorspace, context.color_range = Colorspace.BT2020, ColorRange.MPEG
        context.color_primaries, context.color_trc = primaries, transfer
        for n in range(5):
            frame = av.VideoFrame(32, 32, "yuv420p10le")
            for plane, value in zip(frame.planes, (code, 512, 512), strict=True):
                plane.update(np.full(plane.buffer_size // 2, value, "<u2").tobytes())
            frame.colorspace, frame.color_range = Colorspace.BT2020, ColorRange.MPEG
            frame.pts, frame.time_base = n, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


def test_high_dynamic_range_is_mapped_and_told(tmp_path: Path) -> None:
    # BT.2408: diffuse white of 203 cd/m2 is 58 % of PQ and 75 % of HLG; by hand 0.908 of full light, coded 244.
    for name, transfer, share in (("pq", PQ, 0.5806), ("hlg", HLG, 0.75)):
        path = hdr(tmp_path / f"{name}.mkv", round(64 + share * 876), transfer)
        (shown,) = probe(path).at([0.1])
        assert shown.hdr
        assert np.asarray(shown.image).astype(int) == pytest.approx(np.full((32, 32, 3), 244), abs=3)
        (stored,) = probe(path).at([0.1], upright=False)
        assert not stored.hdr
        assert grey(stored.image) == pytest.approx(255 * share, abs=3)
    (plain,) = probe(hdr(tmp_path / "sdr.mkv", 502, ColorTrc.BT709)).at([0.1])
    assert (plain.hdr, grey(plain.image)) == (False, pytest.approx(127.5, abs=2))


def test_tone_mapping_keeps_order_and_colour() -> None:
    codes = np.repeat(np.arange(0, 65536, 16, dtype=np.uint16)[None, :, None], 3, 2)
    for transfer in (PQ, HLG):
        grey_row = tone_mapped(codes, transfer, True)[0].astype(int)
        assert (np.diff(grey_row, axis=0) >= 0).all()
        assert (grey_row[0] == 0).all()
        assert (grey_row[-1] >= 254).all()
        assert (np.ptp(grey_row, axis=1) <= 1).all(), "grey stays grey"
    red = tone_mapped(np.array([[[30000, 5000, 5000]]], np.uint16), PQ, True)[0, 0].astype(int)
    narrow = tone_mapped(np.array([[[30000, 5000, 5000]]], np.uint16), PQ, False)[0, 0].astype(int)
    assert red[0] > narrow[0] > narrow[1] == narrow[2] >= red[1]


def test_transparency_lies_on_black_and_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    frame = av.VideoFrame.from_ndarray(np.full((16, 16, 4), (200, 100, 50, 51), np.uint8), format="rgba")
    assert pixels(frame)[0, 0].tolist() == pytest.approx([40, 20, 10], abs=1)
    write(tmp_path / "grey.mkv", 3, (16, 16), codec="ffv1", pix_fmt="gray16le", audio=None)
    assert grey(probe(tmp_path / "grey.mkv").at([0.08])[0].image) == pytest.approx(2, abs=1)
    for mode, image in {
        "palette": Image.new("P", (8, 8), 1),
        "cmyk": Image.new("CMYK", (8, 8), (0, 255, 255, 0)),
        "la": Image.new("LA", (8, 8), (255, 51)),
    }.items():
        if mode == "palette":
            image.putpalette([0, 0, 0, 255, 0, 0])
        path = tmp_path / (f"{mode}.jpg" if mode == "cmyk" else f"{mode}.png")
        image.save(path)
        wanted = {"palette": [255, 0, 0], "cmyk": [255, 0, 0], "la": [51, 51, 51]}[mode]
        assert np.asarray(read_picture(path))[4, 4].tolist() == pytest.approx(wanted, abs=3)


def test_transparent_webm_lies_on_black(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.webm"), "w") as out:
        video: Any = out.add_stream("libvpx-vp9", rate=25, options={"cpu-used": "8", "auto-alt-ref": "0"})
        video.width, video.height, video.pix_fmt, video.gop_size = 32, 32, "yuva420p", 10
        for n in range(75):
            picture = np.full((32, 32, 4), (200, 200, 200, 255 if n < 50 else 51), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgba")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    media = probe(tmp_path / "a.webm")
    assert [grey(s.image) for s in media.at([0.5, 2.5])] == pytest.approx([200, 40], abs=4)
    late = counted(lambda: media.at([2.5]))
    assert grey(late["result"][0].image) == pytest.approx(40, abs=4)
    assert late["frames"] < 60, "it is sought"


def test_of_animated_pictures_the_first_is_taken(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    first, second = Image.new("RGB", (8, 4), (90, 90, 90)), Image.new("RGB", (8, 4), (9, 9, 9))
    for suffix in ("png", "webp"):
        path = tmp_path / f"moving.{suffix}"
        first.save(path, save_all=True, append_images=[second], exif=exif, lossless=True)
        picture = read_picture(path)
        assert picture.size == (4, 8)
        assert grey(picture) == pytest.approx(90, abs=2)


# Sounds


def test_wide_samples_and_many_channels(tmp_path: Path) -> None:
    samples = tone(0, 1.0, RATE)
    for subtype in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE", "PCM_U8"):
        soundfile.write(tmp_path / f"{subtype}.wav", samples, RATE, subtype=subtype)
        read = read_sound(tmp_path / f"{subtype}.wav", RATE)[0][:, 0]
        np.testing.assert_allclose(read, samples, atol=0.01 if subtype == "PCM_U8" else 1e-6)
        np.testing.assert_allclose(audio_16k(tmp_path / f"{subtype}.wav"), samples, atol=0.01)
    samples[100] = np.inf
    soundfile.write(tmp_path / "inf.wav", samples, RATE, subtype="FLOAT")
    for reader in (read_sound, audio_16k):
        with pytest.raises(MediaError, match=r"inf\.wav cannot be decoded \(samples are NaN or infinite\)"):
            reader(tmp_path / "inf.wav")
    eight = np.zeros((RATE, 8))
    eight[:, 2] = 0.5
    soundfile.write(tmp_path / "eight.wav", eight, RATE)
    assert audio_16k(tmp_path / "eight.wav").max() == pytest.approx(0.5 * 0.5**0.5 / (1 + 3 * 0.5**0.5), abs=2e-3)


# The room


ELSEWHERE = {
    "avloc/bench/loader.py": "the bare decode that the loader is measured against",
    "avloc/bench/media.py": "asks for FFmpeg's version",
}


def openings(text: str) -> list[str]:
    """What opens containers, pictures or sounds in a module: PyAV, `Image.open`, soundfile's readers, and others."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            modules = {n.partition(".")[0] for n in names if not (isinstance(node, ast.ImportFrom) and node.level)}
            found += modules & {"av", "cv2", "imageio", "torchaudio", "torchcodec", "wave", "decord", "librosa"}
            found += ["torchvision.io"] if any(n.startswith("torchvision.io") for n in names) else []
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            readers = ("read", "SoundFile", "info", "blocks")
            if name == "Image.open" or name in {f"soundfile.{r}" for r in readers}:
                found.append(name)
    return found


def test_one_room_opens_media() -> None:
    assert openings("from PIL import Image\nImage.open(x)\nimport av.codec\nsoundfile.read(x)") == [
        "av", "Image.open", "soundfile.read",
    ]  # fmt: skip
    roots = [Path(str(package.__file__)).parent for package in (avloc, data_prep)]
    found = {
        path.relative_to(root.parent).as_posix(): opens
        for root in roots
        for path in sorted(root.rglob("*.py"))
        if "avloc/data/media/" not in path.as_posix() and (opens := openings(path.read_text()))
    }
    assert set(found) == set(ELSEWHERE), found


@pytest.mark.parametrize(("video", "audio"), [("libx264", "pcm_s16le"), ("mpeg4", "libmp3lame")])
def test_reordered_frames_of_an_avi_have_the_times_of_their_numbers(tmp_path: Path, video: str, audio: str) -> None:
    options = {"bf": "2", "g": "25", **({"preset": "ultrafast"} if video == "libx264" else {})}
    media = probe(write_coded(Variant("avi", video, audio, options), tmp_path / "a.avi", 3.0))
    assert media.counted
    assert [number(media.pixels(f)) for _, f in media.frames()] == list(range(75))
    assert [round(25 * t) for t, _ in media.frames()] == list(range(75))
    assert [number(np.asarray(media.at([t])[0].image)) for t in (0.5, 1.71, 2.5)] == [12, 42, 62]


def test_an_ogg_that_begins_late_keeps_its_clock(tmp_path: Path) -> None:
    path = write_coded(Variant("ogv", "vp8", "libopus", {"cpu-used": "8"}, form="ogg", start=7.0), tmp_path / "a.ogv")
    media = probe(path)
    for t in (0.5, 2.02, 3.3):
        assert t - number(np.asarray(media.at([t])[0].image)) / FPS == pytest.approx(0.02, abs=0.0211)
    assert shift(media.hear(RATE, 2.0, 1.0).wave, 2.0, RATE) == pytest.approx(0, abs=0.02)


def test_transport_streams_put_one_behind_the_other(tmp_path: Path) -> None:
    """Each part has a clock of its own: the second follows the first, for pictures and sound alike."""
    part = write_coded(Variant("ts", "mpeg2video", "mp2"), tmp_path / "part.ts", 3.0).read_bytes()
    path = tmp_path / "both.ts"
    path.write_bytes(part + part)
    media = probe(path)
    assert media.jumps
    assert media.seconds == pytest.approx(6.0, abs=0.15)
    for t in (0.5, 2.5, 3.5, 5.0):
        told = number(np.asarray(media.at([t])[0].image)) / FPS + 3.0 * (t > 3)
        assert t - told == pytest.approx(0.02, abs=0.04), t
    assert [number(np.asarray(s.image)) for s in media.at([1.0, 4.5])] == pytest.approx([25, 37], abs=1)
    assert len([1 for _ in media.frames()]) == 150
    assert shift(media.hear(RATE, 1.0, 1.0).wave, 1.0, RATE) == pytest.approx(0, abs=0.05)
    assert shift(media.hear(RATE, 4.5, 1.0).wave, 1.5, RATE) == pytest.approx(0, abs=0.05)
    assert not probe(tmp_path / "part.ts").jumps
