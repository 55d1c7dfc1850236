"""Clips that tell the time, in picture and sound, in every codec and container that PyAV has here.

The picture holds two rows of six squares: the frame's number in 12 bits, the least first, white for 1. The tone has
300 + 40 k Hz, k the tenths of a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

FPS = 25
SIZE = (176, 144)


def coded(n: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The picture that says n, uint8 ``[H, W, 3]``."""
    width, height = size
    picture = np.full((height, width, 3), 40, np.uint8)
    for bit in range(12):
        row, column = divmod(bit, 6)
        x0, x1 = (round(width * (column + s) / 6) for s in (0.1, 0.9))
        y0, y1 = (round(height * (row + s) / 2) for s in (0.1, 0.9))
        picture[y0:y1, x0:x1] = 255 if n >> bit & 1 else 0
    return picture


def number(picture: np.ndarray) -> int:
    """What a picture ``[H, W, 3]`` says."""
    height, width = picture.shape[:2]
    n = 0
    for bit in range(12):
        row, column = divmod(bit, 6)
        y, x = int(height * (row + 0.5) / 2), int(width * (column + 0.5) / 6)
        n |= int(picture[y - 3 : y + 4, x - 3 : x + 4].mean() > 127) << bit
    return n


def tone(start: float, seconds: float, rate: int) -> np.ndarray:
    """Samples ``[n]`` of the tone from ``start`` on; its phase does not jump."""
    t = start + np.arange(round(seconds * rate)) / rate
    return 0.4 * np.sin(2 * np.pi * np.cumsum(300 + 40 * np.floor(t * 10 + 1e-6)) / rate)


def shift(wave: np.ndarray, start: float, rate: int) -> float:
    """Seconds by which a sound of a second, cut at ``start``, lies beside that, to 0.005 s within half a second."""
    t = start + np.arange(len(wave)) / rate
    best = (0.0, 0.0)
    for d in np.arange(-0.5, 0.501, 0.005):
        tenths = np.floor((t + d) * 10 + 1e-6)
        mixed = wave * np.exp(-2j * np.pi * (300 + 40 * tenths) * t)
        ends = np.flatnonzero(np.diff(tenths)) + 1
        best = max(best, (sum(abs(np.add.reduceat(mixed, np.r_[0, ends]))), float(d)))
    return best[1]


@dataclass(frozen=True)
class Variant:
    """A clip as people have them.

    Attributes:
        suffix: of the file; decides on the container, where ``form`` does not.
        video, audio: encoders.
        options: of the video encoder.
        rate, channels: of the sound.
        pix_fmt: of the encoder; None for its first.
        form: container.
        late: seconds after which the pictures (positive) or the sound (negative) begin.
        start: second at which both begin.
    """

    suffix: str
    video: str
    audio: str
    options: dict[str, str] = field(default_factory=dict)
    rate: int = 48000
    channels: int = 1
    pix_fmt: str | None = None
    form: str | None = None
    late: float = 0.0
    start: float = 0.0
    size: tuple[int, int] = SIZE

    @property
    def name(self) -> str:
        more = "_".join([*(f"{k}{v}" for k, v in self.options.items()), self.form or "", self.pix_fmt or ""]).strip("_")
        place = f"late{self.late}" * bool(self.late) + f"start{self.start}" * bool(self.start)
        return "-".join(filter(None, [self.suffix, self.video, self.audio, more, place]))


def write(variant: Variant, path: Path, seconds: float = 5.0) -> Path:
    """A clip of a variant; a GIF's sound is written beside it."""
    if variant.suffix == "gif":
        soundfile.write(path.with_suffix(".wav"), tone(0, seconds, variant.rate), variant.rate)
    # AVI counts frames and stores no times: where an encoder's priming makes the first time negative, the muxer moves
    # all by that, and pictures by a whole frame. Left negative, the sound is late by its priming, pictures are exact.
    options = {"avoid_negative_ts": "disabled"} if variant.suffix == "avi" else {}
    with av.open(str(path), "w", format=variant.form, options=options) as out:
        video = out.add_stream(variant.video, rate=FPS, options={"strict": "-2"} | variant.options)
        video.width, video.height = variant.size
        formats = av.codec.Codec(variant.video, "w").video_formats or []
        video.pix_fmt = variant.pix_fmt or (formats[0].name if formats else "yuv420p")
        if any(f.name == "yuv420p" for f in formats) and not variant.pix_fmt:
            video.pix_fmt = "yuv420p"
        video.codec_context.time_base = Fraction(1, FPS)
        if variant.video != "prores":
            video.bit_rate = 2_000_000
        sound = None
        if variant.audio:
            layout = "mono" if variant.channels == 1 else "stereo" if variant.channels == 2 else "5.1"
            sound = out.add_stream(variant.audio, rate=variant.rate, layout=layout, options={"strict": "-2"})
            sound.bit_rate = 12_200 if variant.audio == "libopencore_amrnb" else 64_000 * variant.channels
        step = variant.rate // 10
        wave = tone(0, seconds, variant.rate).astype(np.float32)
        done = 0
        picture_offset = variant.start + max(variant.late, 0.0)
        sound_offset = variant.start + max(-variant.late, 0.0)
        for n in range(round(seconds * FPS)):
            frame = av.VideoFrame.from_ndarray(coded(n, variant.size), format="rgb24")
            frame.pts, frame.time_base = n + round(picture_offset * FPS), Fraction(1, FPS)
            out.mux(video.encode(frame))
            while sound is not None and done < len(wave) and done / variant.rate <= (n + 1) / FPS:
                piece = np.stack([wave[done : done + step]] * variant.channels)
                samples = av.AudioFrame.from_ndarray(piece, "fltp", layout)
                samples.sample_rate, samples.time_base = variant.rate, Fraction(1, variant.rate)
                samples.pts = done + round(sound_offset * variant.rate)
                out.mux(sound.encode(samples))
                done += step
        out.mux(video.encode(None))
        if sound is not None:
            out.mux(sound.encode(None))
    return path


LONG = {"g": "250", "bf": "2"}
VARIANTS = [
    *(Variant("mp4", "libx264", a) for a in ("aac", "libmp3lame", "ac3", "eac3", "alac", "flac", "mp2", "libopus")),
    *(Variant("mp4", v, "aac") for v in ("libx265", "mpeg4", "libsvtav1", "mjpeg", "mpeg2video", "libvpx-vp9")),
    Variant("mp4", "libx264", "aac", LONG),
    Variant("mp4", "libx264", "aac", {"x264-params": "open-gop=1:keyint=50:bframes=3"}),
    Variant("mp4", "libx264", "aac", {"x264-params": "intra-refresh=1:keyint=60"}),
    Variant("mp4", "libx264", "aac", pix_fmt="yuv444p"),
    Variant("mp4", "libx264", "aac", pix_fmt="yuv420p10le"),
    Variant("mp4", "libx264", "aac", pix_fmt="yuvj420p", rate=22050, channels=2),
    Variant("mp4", "libx264", "aac", rate=16000, channels=6),
    Variant("mp4", "libx264", "aac", late=1.0),
    Variant("mp4", "libx264", "aac", late=-1.0),
    Variant("mp4", "libx264", "aac", start=5.0),
    Variant("mp4", "libx264", "aac", {"g": "125"}, form="mpegts"),
    Variant("m4v", "libx264", "aac", form="mp4", channels=2),
    *(Variant("mov", v, "pcm_s16le") for v in ("prores_ks", "qtrle", "png", "mjpeg", "svq1", "rpza")),
    Variant("mov", "libx264", "pcm_s24be", rate=44100),
    Variant("mov", "rawvideo", "pcm_s16le", pix_fmt="rgb24"),
    Variant("mkv", "libx264", "vorbis", channels=2),
    *(Variant("mkv", "libx264", a) for a in ("aac", "libopus", "flac", "wavpack", "tta", "pcm_f32le")),
    *(Variant("mkv", v, "libopus") for v in ("libx265", "ffv1", "mpeg2video", "mpeg4", "libvpx")),
    *(Variant("mkv", v, "ac3") for v in ("mjpeg", "snow", "vc2", "jpeg2000", "libx264rgb")),
    Variant("mkv", "libx264", "aac", late=1.0),
    Variant("webm", "libvpx", "libopus"),
    Variant("webm", "libvpx-vp9", "libopus", {"cpu-used": "8"}),
    Variant("webm", "libsvtav1", "vorbis", channels=2),
    *(Variant("avi", "mpeg4", a) for a in ("libmp3lame", "ac3", "pcm_s16le", "adpcm_ms", "adpcm_ima_wav", "aac")),
    *(Variant("avi", v, "libmp3lame") for v in ("msmpeg4v2", "msmpeg4", "cinepak", "huffyuv", "msvideo1", "ffvhuff")),
    *(Variant("avi", v, "pcm_s16le") for v in ("mjpeg", "rawvideo", "asv1", "utvideo", "ljpeg", "magicyuv")),
    Variant("avi", "libx264", "pcm_s16le", {"bf": "0"}),
    Variant("avi", "libx264", "pcm_s16le", {"bf": "2", "g": "25"}),
    Variant("avi", "mpeg4", "libmp3lame", {"bf": "2", "g": "50"}),
    Variant("wmv", "wmv1", "wmav1", form="asf", rate=44100),
    Variant("wmv", "wmv2", "wmav2", form="asf", channels=2),
    Variant("wmv", "msmpeg4", "libmp3lame", form="asf"),
    *(Variant("ts", v, a) for v, a in (("libx264", "aac"), ("libx265", "ac3"), ("mpeg2video", "mp2"))),
    Variant("ts", "libx264", "libmp3lame", LONG),
    Variant("ts", "mpeg1video", "eac3", late=1.0),
    Variant("mpg", "mpeg1video", "mp2"),
    Variant("mpg", "mpeg2video", "ac3"),
    Variant("mpg", "mpeg2video", "mp2", LONG),
    Variant("flv", "flv", "libmp3lame", rate=44100),
    Variant("flv", "libx264", "aac", rate=44100),
    Variant("flv", "flashsv", "adpcm_swf", rate=22050),
    Variant("ogv", "vp8", "vorbis", form="ogg", channels=2),
    Variant("ogv", "vp8", "libopus", form="ogg"),
    Variant("ogv", "vp8", "flac", form="ogg"),
    Variant("3gp", "h263", "libopencore_amrnb", rate=8000),
    Variant("3gp", "mpeg4", "aac", rate=16000),
    Variant("3gp", "libx264", "aac", rate=44100),
    Variant("gif", "gif", ""),
    Variant("nut", "ffv1", "flac"),
    Variant("mxf", "mpeg2video", "pcm_s16le"),
]
