"""Writing a video: H.264 and AAC in an mp4 that can be played while it loads, with its colours tagged."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from avloc.data.media.files import MediaError
from avloc.data.media.pictures import Pixels
from avloc.data.media.sounds import Floats

__all__ = ["MovieWriter"]

TICKS = 90_000  # per second: MPEG's own clock, exact for every common frame rate
FASTEST = 240  # pictures a second that an encoder is told; a file may claim 1,000
AAC_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)


@contextmanager
def written(file: Path) -> Iterator[None]:
    """What an encoder raises becomes a sentence; a full disk stays one."""
    try:
        yield
    except av.FFmpegError as e:
        if isinstance(e, OSError) and e.errno == errno.ENOSPC:
            raise
        raise MediaError(f"{file} cannot be written as H.264 and AAC ({e}). Try another picture size or rate.") from e


class MovieWriter:
    """Pictures at their own times, and sound from second 0 on without a gap.

    Args:
        file: an mp4; its index comes first when it is closed.
        width, height: pixels; H.264 wants even sides, so odd ones get a further column or row.
        fps: pictures a second, on average.
        sample_rate: Hz of the samples; 0 for no sound.
        channels: 1 or 2.
        options: of libx264.
    """

    def __init__(
        self,
        file: Path,
        width: int,
        height: int,
        fps: Fraction | int,
        sample_rate: int = 0,
        channels: int = 1,
        options: dict[str, str] | None = None,
    ) -> None:
        self.file = file
        self.last: int | None = None
        self.target = av.open(str(file), "w", format="mp4", options={"movflags": "+faststart"})
        rate = min(Fraction(fps), Fraction(FASTEST)).limit_denominator(1001)
        self.video: Any = self.target.add_stream(
            "libx264", rate=rate, options=options or {"crf": "20", "preset": "veryfast"}
        )
        self.video.width, self.video.height = width + width % 2, height + height % 2
        self.video.pix_fmt = "yuv420p"
        context = self.video.codec_context
        context.time_base = Fraction(1, TICKS)
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self.audio: Any = None
        self.sample_rate, self.layout, self.samples = sample_rate, "mono" if channels == 1 else "stereo", 0
        if sample_rate:
            self.audio = self.target.add_stream("aac", rate=sample_rate if sample_rate in AAC_RATES else 48_000)
            self.audio.layout = self.layout

    @property
    def heard(self) -> float:
        """Seconds of sound written so far."""
        return self.samples / self.sample_rate

    def picture(self, time: float, picture: Pixels) -> None:
        """One frame, uint8 RGB ``[H, W, 3]``, at its seconds; times ascend."""
        odd = ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0))
        rgb = av.VideoFrame.from_ndarray(
            np.pad(picture, odd, mode="edge") if picture.shape[0] % 2 or picture.shape[1] % 2 else picture,
            format="rgb24",
        )
        frame = rgb.reformat(
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        frame.colorspace, frame.color_range = Colorspace.ITU709, ColorRange.MPEG
        frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
        if self.last is not None and frame.pts <= self.last:  # encoders want times that ascend
            return
        self.last = frame.pts
        with written(self.file):
            self.target.mux(self.video.encode(frame))

    def sound(self, samples: Floats) -> None:
        """The next samples, float32 ``[channels, n]``."""
        if not samples.shape[1]:
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=self.layout)
        frame.sample_rate, frame.pts, frame.time_base = self.sample_rate, self.samples, Fraction(1, self.sample_rate)
        self.samples += samples.shape[1]
        with written(self.file):
            self.target.mux(self.audio.encode(frame))

    def close(self) -> None:
        """What the encoders hold back, and the index."""
        with written(self.file):
            if self.audio is not None:
                self.target.mux(self.audio.encode(None))
            self.target.mux(self.video.encode(None))
            self.target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.target.close()
