"""Frames and sound of video files, through PyAV (its own FFmpeg: no system package is needed)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soxr
from av.container import InputContainer
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Clip", "MediaError", "audio_16k", "centre_frame", "duration", "frames_at", "read_clip"]


class MediaError(ValueError):
    """A video or sound file cannot be used; the message names file, reason and remedy."""


@dataclass
class Clip:
    """A stretch of a video.

    Attributes:
        frame: its centre frame, RGB.
        frame_time: seconds from the start of the file at which that frame is shown.
        audio: float32 ``[n]``, mono.
        rate: Hz.
        seconds: length of the file.
    """

    frame: Image.Image
    frame_time: float
    audio: NDArray[np.float32]
    rate: int
    seconds: float


def read_clip(path: Path | str, seconds: float | None = None, t: float | None = None, rate: int = 16000) -> Clip:
    """Centre frame and sound of a video.

    Args:
        path: any file that FFmpeg reads.
        seconds: hear at most that much from the start; None for all.
        t: time of the frame in seconds; if absent or beyond the end, the middle of the file.
        rate: Hz of the returned sound.

    Raises:
        MediaError: no picture, no sound, unreadable, or of zero length.
    """
    length = duration(path)
    time = length / 2 if t is None or t >= length else t
    frame = frames_at(path, [time])[0]
    return Clip(frame, time, audio_16k(path, rate, 0.0, length if seconds is None else seconds), rate, length)


def centre_frame(path: Path | str, t: float | None = None) -> Image.Image:
    """The frame that is shown at ``t`` seconds, else in the middle of the file. Raises as `frames_at`."""
    return frames_at(path, [duration(path) / 2 if t is None else t])[0]


def duration(path: Path | str) -> float:
    """Length in seconds: of the video stream if there is one, else of the container.

    Raises:
        MediaError: unreadable, or of zero length.
    """
    with opened(path) as container:
        length = (container.duration or 0) / av.time_base
        for stream in container.streams.video:
            if stream.duration and stream.time_base:
                length = float(stream.duration * stream.time_base)
    if length <= 0:
        raise MediaError(f"{path} has zero length. Download it again, or leave it out.")
    return length


def frames_at(path: Path | str, times: Sequence[float]) -> list[Image.Image]:
    """Frames that are shown at the given times.

    Args:
        path: any file that FFmpeg reads.
        times: ascending, seconds from the first frame; beyond the end, the last frame.

    Raises:
        MediaError: no picture, or unreadable.
    """
    if not times:
        return []
    shown: list[Image.Image] = []
    with opened(path) as container:
        if not container.streams.video:
            raise MediaError(f"{path} has no picture (no video stream). Give --image and --audio for a still.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        origin = float((stream.start_time or 0) * (stream.time_base or 0))
        if times[0] > 1 and stream.time_base:
            container.seek(int((times[0] + origin) / stream.time_base), stream=stream)
        last = None
        for frame in container.decode(stream):
            at = (frame.time or 0.0) - origin
            # The frame before the first one that comes too late is the one on the screen.
            while len(shown) < len(times) and at > times[len(shown)] + 1e-6:
                shown.append((last or frame).to_image())
            if len(shown) == len(times):
                break
            last = frame
        if last is None and not shown:
            raise MediaError(f"{path} holds no decodable frame. Download it again, or leave it out.")
        while len(shown) < len(times):
            assert last is not None
            shown.append(last.to_image())
    return shown


def audio_16k(path: Path | str, rate: int = 16000, start: float = 0.0, seconds: float = 10.0) -> NDArray[np.float32]:
    """Mono sound, cropped by time: AAC pads its first and last frame, so counting samples would shift it.

    Args:
        path: any file that FFmpeg reads.
        rate: Hz of the result; channels are averaged, then resampled by soxr (high quality).
        start: seconds.
        seconds: length at most; fewer samples come back where the file ends.

    Returns:
        float32 ``[n]`` in about [-1, 1], n at most ``round(seconds * rate)``.

    Raises:
        MediaError: no sound, unreadable, or silent because nothing lies in the window.
    """
    pieces: list[NDArray[np.float32]] = []
    with opened(path) as container:
        if not container.streams.audio:
            raise MediaError(f"{path} has no sound (no audio stream). Leave it out, or give another file.")
        stream = container.streams.audio[0]
        own = stream.codec_context.sample_rate
        planar = av.AudioResampler(format="fltp")
        first, last = round(start * own), round((start + seconds) * own)
        filled = 0
        for frame in container.decode(stream):
            at = round((frame.time or 0.0) * own)
            for piece in planar.resample(frame):
                wave = piece.to_ndarray().mean(0)
                a, b = max(at, first + filled), min(at + len(wave), last)
                if b > a:
                    gap = a - first - filled
                    pieces += [np.zeros(gap, np.float32)] if gap > 0 else []
                    pieces.append(wave[a - at : b - at])
                    filled = b - first
                at += len(wave)
            if at >= last:
                break
    if not filled:
        raise MediaError(f"{path} has no sound between {start} and {start + seconds} s. Leave it out.")
    wave = np.concatenate(pieces).astype(np.float32)
    if own != rate:
        wave = soxr.resample(wave, own, rate)
    return np.ascontiguousarray(wave[: round(seconds * rate)], dtype=np.float32)


@contextmanager
def opened(path: Path | str) -> Iterator[InputContainer]:
    """The file, open for reading; what FFmpeg raises becomes a `MediaError`."""
    if not Path(path).is_file():
        raise MediaError(f"{path} is not there. Check the name, or download it.")
    try:
        with av.open(str(path)) as container:
            yield container
    except (av.FFmpegError, EOFError, IndexError) as e:
        raise MediaError(f"{path} cannot be decoded ({e}). Download it again, or leave it out.") from e
