"""Any video, or a still and a sound, to pictures and numbers: what ``avloc localize`` does.

A video is read three times side by side (frames to analyse, frames to draw on, sound to copy), so that memory
does not grow with its length; only its soundtrack is unpacked, into a temporary file beside the output.
"""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import Progress

from avloc.errors import UsageError
from avloc.localize.asking import Moment, analysed, ask, refuse_several_frames
from avloc.localize.drawing import KeyMoments, OverlayWriter, still_strip, tinted, with_heat
from avloc.localize.reading import Clip, probe, read_image, soundtrack, still_sound, usual_window
from avloc.localize.regions import Maps, Threshold, described
from avloc.methods.base import Localizer
from avloc.report.panels import overlay, png

__all__ = ["NoSpaceError", "destinations", "localize_still", "localize_video"]

FPS = 4.0

SaveMaps = Literal["npz"]


class NoSpaceError(OSError):
    """The disk is full."""


def localize_video(
    model: Localizer,
    video: Path | str,
    out: Path | str,
    fps: float | None = None,
    window_s: float | None = None,
    threshold: float | Threshold | None = None,
    alpha: float = 0.6,
    batch_size: int = 8,
    progress: bool = True,
    phrases: Sequence[str] = (),
    maps: SaveMaps | None = None,
) -> dict[str, Any]:
    """Write ``overlay.mp4``, ``strip.png`` and ``regions.json`` for a video.

    Args:
        model: on the device where it shall run.
        video: any file that FFmpeg reads, with a picture and a sound stream.
        out: folder; made when missing. Nothing is left there when the video fails.
        fps: analysed frames per second (default 4); heat maps between them are interpolated linearly.
        window_s: seconds of sound that each analysed frame is heard with, centred at the frame and shifted
            inwards at the ends; at most the method's own length, which a shorter one is completed to as the method
            says. Default: `avloc.localize.reading.usual_window`.
        threshold: see `Threshold`; a number is one that was asked for.
        alpha: opacity of the overlay.
        batch_size: analysed frames per forward pass.
        progress: show a progress bar.
        phrases: the nearest of them are told under ``heard_as``, with a method whose sounds lie in CLIP's text space.
        maps: ``npz`` writes ``maps.npz`` too, see `Maps`.

    Returns:
        The content of ``regions.json``. Boxes are ``[x0, y0, x1, y1]`` with exclusive ends, centres are
        ``[x, y]``: in pixels of the upright picture and, under ``*_normalised``, as shares of its sides. A moment
        without regions says why under ``nothing_sounds``.

    Raises:
        MediaError: the file is missing, damaged, without pictures or without sound.
        UsageError: fps, window_s, threshold, alpha or batch_size out of range; a method of several pictures.
    """
    spec = model.input_spec
    fps = FPS if fps is None else fps
    limit = checked(threshold, alpha)
    if not fps > 0 or batch_size < 1 or not (window_s is None or 0 < window_s <= spec.seconds):
        raise UsageError(
            f"localize needs fps > 0, batch_size >= 1 and 0 < window <= {spec.seconds} (the seconds that "
            f"{type(model).__name__} hears at once); got fps={fps}, batch_size={batch_size}, window={window_s}."
        )
    refuse_several_frames(model)
    out = Path(out)
    clip = probe(Path(video))
    window = usual_window(spec, clip.duration) if window_s is None else window_s
    with results_in(out) as folder:
        sound = soundtrack(clip, spec.sample_rate, folder / "sound.f32")
        times: list[dict[str, Any]] = []
        kept = Maps(folder) if maps else None
        key_moments = KeyMoments(clip.duration)
        moments = recorded(
            analysed(model, clip, sound, fps, window, batch_size, phrases), times, clip, limit.value, kept
        )
        with Progress(disable=not progress) as bar:
            task = bar.add_task(f"localize {clip.path.name}", total=clip.duration)
            with OverlayWriter(folder / "overlay.mp4", clip) as writer:
                for time, picture, heat, moment in with_heat(clip, moments):
                    drawn = tinted(picture, heat, alpha)
                    writer.write(time, drawn)
                    if moment is not None:
                        key_moments.add(moment, drawn)
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
            "threshold": limit.value,
            "threshold_from": limit.origin,
            "times": times,
        }
        if kept:
            kept.close()
        (folder / "strip.png").write_bytes(png(key_moments.strip(limit)))
        finish(folder, out, result)
    return result


def localize_still(
    model: Localizer,
    image: Path | str,
    audio: Path | str,
    out: Path | str,
    threshold: float | Threshold | None = None,
    alpha: float = 0.6,
    phrases: Sequence[str] = (),
    maps: SaveMaps | None = None,
) -> dict[str, Any]:
    """Write ``overlay.png``, ``strip.png`` and ``regions.json`` for a picture and a sound.

    Args:
        model, out, threshold, alpha, phrases, maps: as in `localize_video`.
        image: any picture that Pillow reads; its EXIF orientation is obeyed.
        audio: any sound, or a video whose sound is taken; cut or completed to the method's ``InputSpec``.

    Returns:
        The content of ``regions.json``: as in `localize_video`, with one entry at time 0.

    Raises:
        MediaError: a file is missing, damaged, or holds too little sound.
        UsageError: threshold or alpha out of range; a method of several pictures.
    """
    spec, out, limit = model.input_spec, Path(out), checked(threshold, alpha)
    refuse_several_frames(model)
    picture = np.asarray(read_image(Path(image)))
    sound = still_sound(Path(audio), spec)
    (moment,) = ask(model, [(0.0, picture, sound)], phrases)
    height, width = picture.shape[:2]
    result = {
        "source": Path(image).name,
        "sound": Path(audio).name,
        "method": type(model).__name__,
        "width": width,
        "height": height,
        "threshold": limit.value,
        "threshold_from": limit.origin,
        "times": [described(moment, width, height, limit.value)],
    }
    with results_in(out) as folder:
        if maps:
            kept = Maps(folder)
            kept.add(moment)
            kept.close()
        drawn = overlay(picture.transpose(2, 0, 1), moment.heat, alpha=alpha)
        (folder / "overlay.png").write_bytes(png(drawn))
        (folder / "strip.png").write_bytes(png(still_strip(picture, moment, limit)))
        finish(folder, out, result)
    return result


def destinations(clips: Sequence[Path], out: Path) -> list[Path]:
    """A folder in ``out`` for each clip: by its name without the suffix, with it where two share one, and numbered
    where they share that too."""
    taken: set[Path] = set()
    found = []
    for clip in clips:
        names = [clip.stem if sum(c.stem == clip.stem for c in clips) == 1 else clip.name]
        names += [f"{names[0]}-{n}" for n in range(2, len(clips) + 2)]
        found.append(next(out / name for name in names if out / name not in taken))
        taken.add(found[-1])
    return found


def checked(threshold: float | Threshold | None, alpha: float) -> Threshold:
    """A threshold with its origin.

    Raises:
        UsageError: it or alpha is not in [0, 1].
    """
    if threshold is None:
        threshold = Threshold()
    limit = threshold if isinstance(threshold, Threshold) else Threshold(threshold, "as asked")
    if not 0 <= limit.value <= 1 or not 0 <= alpha <= 1:
        raise UsageError(f"localize needs threshold and alpha in 0..1; got {limit.value:g} and {alpha:g}.")
    return limit


def recorded(
    moments: Iterator[Moment], times: list[dict[str, Any]], clip: Clip, threshold: float, maps: Maps | None = None
) -> Iterator[Moment]:
    """The same moments; each leaves its description in ``times``, and its heat in ``maps``."""
    for moment in moments:
        times.append(described(moment, clip.width, clip.height, threshold))
        if maps is not None:
            maps.add(moment)
        yield moment


RESULTS = ("strip.png", "regions.json", "maps.npz", "overlay.mp4", "overlay.png")


def finish(folder: Path, out: Path, result: dict[str, Any]) -> None:
    """Write ``regions.json`` into the temporary folder, then give every result its final place."""
    (folder / "regions.json").write_bytes(json.dumps(result, indent=1).encode())
    for name in RESULTS:
        if (folder / name).exists():
            (folder / name).replace(out / name)


@contextmanager
def results_in(out: Path) -> Iterator[Path]:
    """A temporary folder in ``out``, which is made when missing.

    Raises:
        NoSpaceError: the disk is full.
        UsageError: ``out`` cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".localize-") as folder:
            yield Path(folder)
    except (FileExistsError, NotADirectoryError, PermissionError) as e:
        raise UsageError(f"{out} cannot be written to ({e.strerror}). Name another folder with -o.") from e
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        raise NoSpaceError(errno.ENOSPC, f"No space left in {out}: free some or choose another folder") from e
