"""Any video, or a still and a sound, to pictures and numbers: what ``avloc localize`` does.

A video is read three times side by side (frames to analyse, frames to draw on, sound to copy), so that memory
does not grow with its length; only its soundtrack is unpacked, into a temporary file beside the output.
"""

from __future__ import annotations

import errno
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from avloc.data.media import Media, MediaError, MovieWriter, audio_16k, read_picture
from avloc.data.media import probe as probe_media
from avloc.data.transforms import draw_view, fit_audio, fit_image
from avloc.methods.acl.inversion import Heard, heard_as
from avloc.methods.base import Localizer
from avloc.metrics.regions import SMALLEST_REGION
from avloc.report.panels import Pixels, beside, captioned, overlay, panel_strip, png
from avloc.types import AVBatch, InputSpec

__all__ = ["localize_still", "localize_video"]

SHORTEST_SOUND = 0.1  # seconds
LONGEST_SOUND = 3600.0  # seconds that are read of the sound to a still
KEY_MOMENTS = 6
STRIP_HEIGHT = 240


@dataclass(frozen=True)
class Moment:
    """The answer for one analysed frame: heat maps ``[S, h, w]`` in [0, 1], confidences ``[S]``, and what the sound is
    heard as."""

    time: float
    heatmap: Tensor
    confidence: Tensor
    heard_as: Heard = field(default_factory=list)

    @property
    def heat(self) -> Tensor:
        """The hottest source at each place, ``[h, w]``."""
        return self.heatmap.amax(0)


@dataclass(frozen=True)
class Clip:
    """What is known of a video beforehand: its file, upright size in square pixels, and seconds."""

    path: Path
    media: Media
    width: int
    height: int
    duration: float


def localize_video(
    model: Localizer,
    video: Path | str,
    out: Path | str,
    fps: float | None = None,
    window_s: float | None = None,
    threshold: float = 0.5,
    alpha: float = 0.6,
    batch_size: int = 8,
    progress: bool = True,
    phrases: Sequence[str] = (),
) -> dict[str, Any]:
    """Write ``overlay.mp4``, ``strip.png`` and ``regions.json`` for a video.

    Args:
        model: on the device where it shall run.
        video: any file that FFmpeg reads, with a picture and a sound stream.
        out: folder; made when missing. Nothing is left there when the video fails.
        fps: analysed frames per second (default 4); heat maps between them are interpolated linearly.
        window_s: seconds of sound that each analysed frame is heard with, centred at the frame and shifted
            inwards at the ends (default and most: the method's own length).
        threshold: a region is where the heat map is at least this.
        alpha: opacity of the overlay.
        batch_size: analysed frames per forward pass.
        progress: show a progress bar.
        phrases: the nearest of them are told under ``heard_as``, with a method whose sounds lie in CLIP's text space.

    Returns:
        The content of ``regions.json``. Boxes are ``[x0, y0, x1, y1]`` with exclusive ends, centres are
        ``[x, y]``: in pixels of the upright picture and, under ``*_normalised``, as shares of its sides.

    Raises:
        MediaError: the file is missing, damaged, without pictures or without sound.
        ValueError: fps, window_s or batch_size out of range.
    """
    spec = model.input_spec
    fps = 4.0 if fps is None else fps
    window = spec.seconds if window_s is None else window_s
    if fps <= 0 or batch_size < 1 or not 0 < window <= spec.seconds:
        raise ValueError(
            f"localize needs fps > 0, batch_size >= 1 and 0 < window_s <= {spec.seconds} (the method's own "
            f"length); got fps={fps}, batch_size={batch_size}, window_s={window}."
        )
    out = Path(out)
    clip = probe(Path(video))
    out.mkdir(parents=True, exist_ok=True)
    with reported_space(out), tempfile.TemporaryDirectory(dir=out, prefix=".localize-") as folder:
        sound = soundtrack(clip, spec.sample_rate, Path(folder) / "sound.f32")
        times: list[dict[str, Any]] = []
        key_pictures: dict[int, tuple[float, Pixels]] = {}
        moments = analysed(model, clip, sound, fps, window, batch_size, phrases)
        moments = recorded(moments, times, clip, threshold)
        with Progress(disable=not progress) as bar:
            task = bar.add_task(f"localize {clip.path.name}", total=clip.duration)
            with OverlayWriter(Path(folder) / "overlay.mp4", clip) as writer:
                for time, picture, heat, moment in with_heat(clip, moments):
                    drawn = overlay(picture.transpose(2, 0, 1), heat, alpha=alpha)
                    writer.write(time, drawn)
                    if moment is not None:
                        keep_key_moment(key_pictures, moment, drawn, clip.duration)
                    bar.update(task, completed=min(time, clip.duration))
            bar.update(task, completed=clip.duration)
        result = {
            "source": clip.path.name,
            "method": type(model).__name__,
            "width": clip.width,
            "height": clip.height,
            "duration": round(clip.duration, 3),
            "analysed_fps": fps,
            "window_s": window,
            "threshold": threshold,
            "times": times,
        }
        pictures = [picture for _, (_, picture) in sorted(key_pictures.items())]
        finish(Path(folder), out, {"strip.png": png(beside(pictures)), "regions.json": as_json(result)})
    return result


def localize_still(
    model: Localizer,
    image: Path | str,
    audio: Path | str,
    out: Path | str,
    threshold: float = 0.5,
    alpha: float = 0.6,
    phrases: Sequence[str] = (),
) -> dict[str, Any]:
    """Write ``overlay.png``, ``strip.png`` and ``regions.json`` for a picture and a sound.

    Args:
        model, out, threshold, alpha, phrases: as in `localize_video`.
        image: any picture that Pillow reads; its EXIF orientation is obeyed.
        audio: any sound, or a video whose sound is taken; cut or completed to the method's ``InputSpec``.

    Returns:
        The content of ``regions.json``: as in `localize_video`, with one entry at time 0.

    Raises:
        MediaError: a file is missing, damaged, or holds too little sound.
    """
    spec, out = model.input_spec, Path(out)
    picture = np.asarray(read_image(Path(image)))
    sound = audio_16k(Path(audio), spec.sample_rate, seconds=LONGEST_SOUND)
    refuse_short(sound, spec.sample_rate, Path(audio))
    (moment,) = ask(model, [(0.0, picture, sound)], phrases)
    height, width = picture.shape[:2]
    result = {
        "source": Path(image).name,
        "sound": Path(audio).name,
        "method": type(model).__name__,
        "width": width,
        "height": height,
        "threshold": threshold,
        "times": [described(moment, width, height, threshold)],
    }
    planes = picture.transpose(2, 0, 1)
    out.mkdir(parents=True, exist_ok=True)
    with reported_space(out), tempfile.TemporaryDirectory(dir=out, prefix=".localize-") as folder:
        files = {
            "overlay.png": png(overlay(planes, moment.heat, alpha=alpha)),
            "strip.png": png(panel_strip(planes, None, moment.heat, told(moment), threshold=threshold)),
            "regions.json": as_json(result),
        }
        finish(Path(folder), out, files)
    return result


# Reading


def probe(path: Path) -> Clip:
    """Size, length and clock of a video.

    Raises:
        MediaError: the file is missing, unreadable, or lacks pictures or sound.
    """
    media = probe_media(path)
    if media.video is None:
        what = "moving pictures, only a cover" if media.cover else "pictures"
        raise MediaError(f"{path} holds no {what}; use --image PICTURE --audio {path.name}.")
    if media.audio is None:
        raise MediaError(
            f"{path} has no sound, and localisation needs one. Add a sound track, or use --image PICTURE --audio SOUND."
        )
    first = next(media.frames(), None)
    if first is None:
        raise MediaError(f"{path} holds no picture that can be decoded. Convert it with FFmpeg.")
    height, width = media.pixels(first[1]).shape[:2]
    return Clip(path, media, width, height, media.seconds or media.measured().seconds)


def soundtrack(clip: Clip, rate: int, file: Path) -> NDArray[np.float32]:
    """The whole sound in mono at ``rate``, float32 ``[N]`` in [-1, 1], mapped from ``file``; silence from its end to
    that of the pictures.

    Raises:
        MediaError: less than 0.1 s of sound.
    """
    sound, ends = clip.media.soundtrack(rate, file, least=clip.duration)
    refuse_short(sound[: round(ends * rate)], rate, clip.path)
    return sound


def heard(sound: NDArray[np.float32], centre: float, seconds: float, rate: int) -> NDArray[np.float32]:
    """The part of the sound around ``centre`` (s), shifted inwards where it would stick out."""
    length = round(seconds * rate)
    start = max(0, min(round(centre * rate) - length // 2, len(sound) - length))
    return np.array(sound[start : start + length])


def refuse_short(sound: NDArray[np.float32], rate: int, path: Path) -> None:
    if len(sound) < SHORTEST_SOUND * rate:
        raise MediaError(
            f"{path} holds only {len(sound) / rate:.3f} s of sound; at least {SHORTEST_SOUND} s are needed. "
            "Give a longer one."
        )


def read_image(path: Path) -> Image.Image:
    if not path.is_file():
        raise MediaError(f"{path} does not exist.")
    try:
        return read_picture(path)
    except MediaError as e:
        if e.__cause__ is None:
            raise
        raise MediaError(f"{path} cannot be read as a picture: {e.__cause__}. Save it as PNG or JPEG again.") from e


# Asking the model


def analysed(
    model: Localizer,
    clip: Clip,
    sound: NDArray[np.float32],
    fps: float,
    seconds: float,
    batch_size: int,
    phrases: Sequence[str] = (),
) -> Iterator[Moment]:
    """The answers for the first frame and then for ``fps`` frames a second, in order, asked in batches."""
    spec = model.input_spec

    def chosen() -> Iterator[tuple[float, Pixels, NDArray[np.float32]]]:
        due = -math.inf
        for time, frame in clip.media.frames():
            if time >= due:
                due = (math.floor(time * fps + 1e-6) + 1) / fps - 1e-6
                yield time, clip.media.pixels(frame), heard(sound, time, seconds, spec.sample_rate)

    samples = chosen()
    while group := list(islice(samples, batch_size)):
        yield from ask(model, group, phrases)


@torch.inference_mode()
def ask(
    model: Localizer, group: Sequence[tuple[float, Pixels, NDArray[np.float32]]], phrases: Sequence[str] = ()
) -> list[Moment]:
    """One forward pass over (time, picture ``[H, W, 3]``, waveform)."""
    spec = model.input_spec
    if spec.frames != 1:
        raise ValueError(f"{type(model).__name__} wants {spec.frames} frames a sample; localize gives one.")
    batch = AVBatch(
        key=[f"{time:.3f}" for time, _, _ in group],
        image=torch.stack([torch.from_numpy(fit_image(Image.fromarray(p), spec)) for _, p, _ in group]),
        audio=torch.stack([torch.from_numpy(fit_audio(sound[:, None], spec)) for _, _, sound in group]),
        index=torch.arange(len(group)),
        size=padded_sizes(group, spec),
    )
    training = model.training
    batch = batch.to(model.device)
    answer = model.eval().localize(batch)
    said = heard_as(model, batch, phrases) or [[] for _ in group]
    model.train(training)
    heatmap, confidence = answer.heatmap.float().cpu(), answer.confidence.float().cpu()
    return [
        Moment(time, on_whole_picture(heatmap[i], picture, spec), confidence[i], said[i])
        for i, (time, picture, _) in enumerate(group)
    ]


def padded_sizes(group: Sequence[tuple[float, Pixels, NDArray[np.float32]]], spec: InputSpec) -> Tensor | None:
    """Height and width of each picture inside of its square; None unless the method wants padded pictures."""
    if spec.resize != "pad":
        return None
    return torch.tensor([draw_view((p.shape[1], p.shape[0]), spec).size for _, p, _ in group])


def on_whole_picture(heatmap: Tensor, picture: Pixels, spec: InputSpec) -> Tensor:
    """Heat maps ``[S, h, w]`` over the whole picture: zero where a method saw only a centre crop."""
    if spec.resize in ("squash", "pad"):  # maps of padded pictures are the picture's already
        return heatmap
    (height, width), short = picture.shape[:2], min(picture.shape[:2])
    x = round(heatmap.shape[2] * (width / short - 1) / 2)
    y = round(heatmap.shape[1] * (height / short - 1) / 2)
    return F.pad(heatmap, (x, x, y, y))


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
            heat = torch.lerp(heat, after.heat, min(max(share, 0.0), 1.0))
        yield time, clip.media.pixels(frame), heat, fresh
        fresh = None


# Writing


def described(moment: Moment, width: int, height: int, threshold: float) -> dict[str, Any]:
    """One entry of ``regions.json``: connected regions of each source, the largest first."""
    found = [
        region
        for source, plane in enumerate(moment.heatmap.numpy())
        for region in regions(plane, source, width, height, threshold)
    ]
    said = [{"phrase": phrase, "cosine": round(cosine, 4)} for phrase, cosine in moment.heard_as]
    return {
        "time": round(moment.time, 4),
        "confidence": [round(c, 4) for c in moment.confidence.tolist()],
        "regions": sorted(found, key=lambda region: -region["area_share"]),
        **({"heard_as": said} if said else {}),
    }


def told(moment: Moment, most: int = 3) -> str:
    """What the sound is heard as, in one line; "" where nobody asked."""
    return ", ".join(f"{phrase} {cosine:.2f}" for phrase, cosine in moment.heard_as[:most])


def regions(
    heatmap: NDArray[np.float32], source: int, width: int, height: int, threshold: float
) -> list[dict[str, Any]]:
    """Connected regions (eight neighbours) where a map is at least ``threshold``, without specks."""
    labels, _ = ndimage.label(heatmap >= threshold, structure=np.ones((3, 3)))
    rows, columns = heatmap.shape
    found = []
    for label, (y, x) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[y, x] == label
        share = float(inside.sum() / heatmap.size)
        if share < SMALLEST_REGION:
            continue
        heat = heatmap[y, x][inside]
        place = np.argwhere(inside).mean(0) + np.array([y.start + 0.5, x.start + 0.5])
        box = [x.start / columns, y.start / rows, x.stop / columns, y.stop / rows]
        centre = [place[1] / columns, place[0] / rows]
        found.append(
            {
                "source": source,
                "box": scaled(box, width, height),
                "box_normalised": [round(float(v), 4) for v in box],
                "centre": scaled(centre, width, height),
                "centre_normalised": [round(float(v), 4) for v in centre],
                "area_share": round(share, 4),
                "confidence": round(float(heat.mean()), 4),
                "peak": round(float(heat.max()), 4),
            }
        )
    return found


def scaled(place: Sequence[float], width: int, height: int) -> list[int]:
    """Shares of the picture's sides in whole pixels; x and y alternate."""
    return [round(float(v) * (height if i % 2 else width)) for i, v in enumerate(place)]


class OverlayWriter(MovieWriter):
    """Drawn pictures at their own times with the clip's sound, written side by side."""

    def __init__(self, file: Path, clip: Clip) -> None:
        media = clip.media
        super().__init__(file, clip.width, clip.height, media.fps, media.sample_rate, media.channels)
        self.rest = media.blocks()

    def write(self, time: float, picture: Pixels) -> None:
        """One frame ``[H, W, 3]``, after all sound that comes before it."""
        while self.heard <= time and (block := next(self.rest, None)):
            self.sound(block[0])
        self.picture(time, picture)

    def close(self) -> None:
        """The rest of the sound, and what the encoders hold back."""
        for samples, _ in self.rest:
            self.sound(samples)
        super().close()


def keep_key_moment(kept: dict[int, tuple[float, Pixels]], moment: Moment, drawn: Pixels, duration: float) -> None:
    """Hold the surest moment of each sixth of the clip, at the strip's height."""
    part = min(int(KEY_MOMENTS * moment.time / max(duration, 1e-6)), KEY_MOMENTS - 1)
    score = float(moment.confidence.max() * moment.heat.max())
    if part not in kept or score > kept[part][0]:
        height, width = drawn.shape[:2]
        small = Image.fromarray(drawn).resize((max(1, round(width * STRIP_HEIGHT / height)), STRIP_HEIGHT))
        text = "   ".join(filter(None, [f"{moment.time:.2f} s", told(moment, 1)]))
        kept[part] = (score, captioned(np.asarray(small), text))


def recorded(moments: Iterator[Moment], times: list[dict[str, Any]], clip: Clip, threshold: float) -> Iterator[Moment]:
    """The same moments; each leaves its description in ``times``."""
    for moment in moments:
        times.append(described(moment, clip.width, clip.height, threshold))
        yield moment


def as_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def finish(folder: Path, out: Path, files: dict[str, bytes]) -> None:
    """Write the small files into the temporary folder, then give every result its final place."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for name in [*files, "overlay.mp4"]:
        if (folder / name).exists():
            (folder / name).replace(out / name)


@contextmanager
def reported_space(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        raise OSError(errno.ENOSPC, f"No space left in {out}: free some or choose another folder") from e
