"""Pictures with heat on them: the overlay video, the strip of key moments, and what their colours mean."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from avloc.data.media import Floats, MovieWriter, Pixels
from avloc.localize.asking import Moment
from avloc.localize.reading import Clip
from avloc.localize.regions import Threshold, told
from avloc.report.panels import GAP, beside, captioned, colours, panel_strip

__all__ = ["KeyMoments", "OverlayWriter", "legend", "still_strip", "tinted", "with_heat"]

KEY_MOMENTS = 6
LONGEST = 4096  # pixels of a side of the overlay
TILE = (320, 240)  # pixels at most of a picture in the strip of a clip
STILL = (640, 480)  # and of a still
FONT = 13
BAR = (160, 12)  # of the legend, pixels


def with_heat(clip: Clip, moments: Iterator[Moment]) -> Iterator[tuple[float, Pixels, Tensor, Moment | None]]:
    """Every frame with its heat map ``[h, w]``, and with the moment that was analysed at it, if one was."""
    before, after = next(moments), next(moments, None)
    fresh: Moment | None = before
    for time, frame in clip.media.frames():
        while after is not None and after.time <= time:
            before, after = after, next(moments, None)
            fresh = before
        heat = before.heat
        if after is not None:
            share = (time - before.time) / (after.time - before.time)
            # NumPy: PyTorch's threads cost more than such a small map.
            heat = torch.from_numpy(mixed(heat.numpy(), after.heat.numpy(), min(max(share, 0.0), 1.0)))
        yield time, clip.media.pixels(frame), heat, fresh
        fresh = None


def mixed(a: Floats, b: Floats, share: float) -> Floats:
    """From ``a`` at 0 to ``b`` at 1."""
    return a + np.float32(share) * (b - a)


def tinted(picture: Pixels, heat: Tensor, alpha: float = 0.6) -> Pixels:
    """What `avloc.report.panels.overlay` draws, in whole numbers, for each frame of a video: within two of 255 levels.

    Args:
        picture: uint8 ``[H, W, 3]``.
        heat: ``[h, w]`` in [0, 1]; resized bilinearly.
        alpha: opacity where the map is 1; elsewhere in proportion to the map.
    """
    levels = Image.fromarray(np.rint(heat.numpy().clip(0, 1) * 255).astype(np.uint8))
    levels = levels.resize((picture.shape[1], picture.shape[0]), Image.Resampling.BILINEAR)
    opacity = levels.point([round(alpha * level) for level in range(256)])
    levels.putpalette(palette())
    return np.asarray(Image.composite(levels.convert("RGB"), Image.fromarray(picture), opacity))


@cache
def palette() -> bytes:
    """The colour of each of 256 levels of heat, three bytes each."""
    return colours().round().to(torch.uint8).numpy().tobytes()


class OverlayWriter(MovieWriter):
    """Drawn pictures at their own times with the clip's sound, written side by side. Pictures of more than `LONGEST`
    pixels a side, which few players show, become smaller. One is encoded while the next is drawn, or its heat found."""

    def __init__(self, file: Path, clip: Clip) -> None:
        media = clip.media
        scale = min(1.0, LONGEST / max(clip.width, clip.height))
        self.size = (max(1, round(clip.width * scale)), max(1, round(clip.height * scale)))
        super().__init__(file, *self.size, media.fps, media.sample_rate, media.channels)
        self.rest = media.blocks()
        self.thread = ThreadPoolExecutor(1, "overlay")
        self.running: Future[None] | None = None

    def write(self, time: float, picture: Pixels) -> None:
        """One frame ``[H, W, 3]``, after all sound that comes before it; what went wrong with one before is raised."""
        self.wait()
        self.running = self.thread.submit(self.encode, time, picture)

    def wait(self) -> None:
        running, self.running = self.running, None
        if running is not None:
            running.result()

    def encode(self, time: float, picture: Pixels) -> None:
        while self.heard <= time and (block := next(self.rest, None)):
            self.sound(block[0])
        if (picture.shape[1], picture.shape[0]) != self.size:  # too large, or of a size that changes
            picture = np.asarray(Image.fromarray(picture).resize(self.size, Image.Resampling.BILINEAR))
        self.picture(time, picture)

    def close(self) -> None:
        """The rest of the sound, and what the encoders hold back."""
        self.wait()
        for samples, _ in self.rest:
            self.sound(samples)
        super().close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.thread.shutdown()
        super().__exit__(kind, error, tb)


class KeyMoments:
    """The surest moment of each sixth of a clip, small.

    Args:
        duration: seconds of the clip.
    """

    def __init__(self, duration: float) -> None:
        self.duration = duration
        self.kept: dict[int, tuple[float, Pixels]] = {}

    def add(self, moment: Moment, drawn: Pixels) -> None:
        """Hold it where none of its sixth was surer."""
        part = min(int(KEY_MOMENTS * moment.time / max(self.duration, 1e-6)), KEY_MOMENTS - 1)
        score = float(moment.confidence.max() * moment.heat.max())
        if part not in self.kept or score > self.kept[part][0]:
            said = "nothing to hear" if moment.silent else told(moment, 1)
            text = "   ".join(filter(None, [f"{moment.time:.2f} s", said]))
            self.kept[part] = (score, captioned(fitted(drawn, TILE), text))

    def strip(self, threshold: Threshold) -> Pixels:
        """Side by side, in the order of time, over a `legend`."""
        pictures = beside([picture for _, (_, picture) in sorted(self.kept.items())])
        return np.concatenate([pictures, legend(pictures.shape[1], threshold)])


def still_strip(picture: Pixels, moment: Moment, threshold: Threshold) -> Pixels:
    """Picture, overlay and found part side by side over a `legend`; a large picture is made smaller."""
    small = fitted(picture, STILL, larger=False).transpose(2, 0, 1)
    text = "nothing to hear" if moment.silent else told(moment)
    pictures = panel_strip(small, None, moment.heat, text, threshold=threshold.value)
    return np.concatenate([pictures, legend(pictures.shape[1], threshold)])


def fitted(picture: Pixels, box: tuple[int, int], larger: bool = True) -> Pixels:
    """A picture as large as fits into width and height, with its own proportions."""
    height, width = picture.shape[:2]
    scale = min(box[0] / width, box[1] / height)
    if scale >= 1 and not larger:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def legend(width: int, threshold: Threshold) -> Pixels:
    """The colours from 0 to 1 with a mark at the threshold, and what that means, ``[h, width, 3]``."""
    font = ImageFont.load_default(FONT)
    words = f"regions from {threshold.value:g} on ({threshold.origin})"
    lines = textwrap.wrap(words, max(8, int((width - 2 * GAP) / (0.55 * FONT))))
    long, thick = min(BAR[0], max(8, width - 8 * FONT)), BAR[1]
    step = round(1.4 * FONT)
    image = Image.new("RGB", (width, 3 * GAP + max(thick, step) + step * len(lines)), "white")
    draw: Any = ImageDraw.Draw(image)
    draw.text((GAP, GAP), "0", fill="black", font=font)
    left, top = GAP + FONT, GAP + 2
    row = colours()[torch.linspace(0, 255, long).round().long()].round().to(torch.uint8).numpy()
    image.paste(Image.fromarray(np.repeat(row[None], thick, 0)), (left, top))
    mark = left + round(threshold.value * (long - 1))
    draw.line((mark, top - 3, mark, top + thick + 2), fill="black", width=2)
    draw.text((left + long + GAP, GAP), "1  heat", fill="black", font=font)
    for i, line in enumerate(lines):
        draw.text((GAP, 2 * GAP + max(thick, step) + i * step), line, fill="black", font=font)
    return np.asarray(image)
