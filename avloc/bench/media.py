"""Conversion of a clip against the bare decode of the same bytes, from one run on one machine."""

from __future__ import annotations

import io
import resource
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

from avloc.bench.step import Result
from avloc.data.media import MovieWriter, opened, probe, read_clip

__all__ = ["bare_decode", "convert_clip", "measure_media", "write_moving"]

SIZE = (1280, 720)
FPS = 25
RATE = 44100
FRAME_TIME = 5.0


def write_moving(path: Path, seconds: float = 10.0) -> Path:
    """A 720p clip in which noise drifts, with a noisy stereo sound."""
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (90, 160, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    with MovieWriter(path, *SIZE, Fraction(FPS), RATE, 2) as movie:
        for n in range(round(seconds * FPS)):
            movie.picture(n / FPS, np.roll(tile, (2 * n, 3 * n), (0, 1)))
            if n % FPS == 0:
                movie.sound((0.2 * rng.standard_normal((2, RATE))).clip(-1, 1).astype(np.float32))
    return path


def bare_decode(path: Path, seconds: float) -> None:
    """The packets that a conversion needs, decoded and thrown away: pictures from the key frame before the one wanted,
    and the sound."""
    with opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        assert stream.time_base
        container.seek(int(FRAME_TIME / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time is not None and frame.time > FRAME_TIME:
                break
    with opened(path) as container:
        for sound in container.decode(container.streams.audio[0]):
            if sound.time is not None and sound.time > seconds:
                break


def convert_clip(path: Path, seconds: float) -> None:
    """What `data_prep.vggsound` makes of a training clip: a JPEG of 400 pixels, and mono FLAC of 16 kHz."""
    clip = read_clip(path, seconds, FRAME_TIME)
    scale = 400 / min(clip.frame.size)
    picture, sound = io.BytesIO(), io.BytesIO()
    size = (round(clip.frame.width * scale), round(clip.frame.height * scale))
    clip.frame.resize(size).save(picture, "JPEG", quality=90)
    soundfile.write(sound, np.clip(clip.audio, -1, 1), clip.rate, format="FLAC", subtype="PCM_16")


def measure_media(video: Path | None = None, repeats: int = 5) -> Result:
    """Seconds of a conversion, and of the bare decode, one after the other.

    Args:
        video: a file with at least ten seconds; None for a 720p clip made on the spot.
        repeats: of both; the median is told.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = video or write_moving(Path(folder) / "clip.mp4")
        media = probe(path)
        media.need_pictures()
        media.need_sound()
        took: dict[str, list[float]] = {"convert": [], "decode": []}
        convert_clip(path, 10.0)
        for _ in range(repeats):
            for name, run in (("decode", bare_decode), ("convert", convert_clip)):
                start = time.perf_counter()
                run(path, 10.0)
                took[name].append(time.perf_counter() - start)
        convert, decode = (statistics.median(took[name]) for name in ("convert", "decode"))
        return {
            "clip": f"{media.width} x {media.height}, {media.seconds:.1f} s",
            "convert (s)": round(convert, 4),
            "bare decode (s)": round(decode, 4),
            "bare decode by conversion": round(decode / convert, 3),
            "ffmpeg": ".".join(map(str, av.library_versions["libavcodec"])),
            "peak memory (MiB)": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
