"""What data preparation takes of a video: a picture and the sound around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avloc.data.media.files import REMEDY, MediaError, Source
from avloc.data.media.pictures import STRAIGHT
from avloc.data.media.reading import MOST_LOST, Media, Shown, probe

SHORT = 0.25  # seconds by which a sound may end before the pictures without being called short

__all__ = ["Clip", "audio_16k", "centre_frame", "duration", "frames_at", "read_clip"]


@dataclass
class Clip:
    """A stretch of a video.

    Attributes:
        frame: its centre frame, RGB.
        frame_time: seconds from the start of the stretch at which that frame is shown.
        audio: float32 ``[n]``, mono.
        rate: Hz.
        seconds: length of the pictures of the file.
        frames, times: several pictures and their times, where they were asked for; else that one.
        found: what was met when it was read, see `avloc.data.schema.Record.media`.
    """

    frame: Image.Image
    frame_time: float
    audio: NDArray[np.float32]
    rate: int
    seconds: float
    frames: list[Image.Image] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)


def read_clip(
    path: Source | str,
    seconds: float | None = None,
    t: float | None = None,
    rate: int = 16000,
    *,
    frames: int = 1,
    start: float = 0.0,
    upright: bool = True,
    beside: Source | None = None,
) -> Clip:
    """Centre frame and sound of a video.

    Args:
        path: any file that FFmpeg reads.
        seconds: hear at most that much from the start; None for all.
        t: time of the frame in seconds; if absent or beyond the end, the middle of the pictures.
        rate: Hz of the returned sound.
        frames: pictures, a second apart around that time, as far as the video goes.
        start: seconds into the file at which the clip begins.
        upright: False leaves pictures as they are stored.
        beside: a file with the sound of pictures that have none.

    Raises:
        MediaError: no picture, no sound, unreadable, of zero length, or damaged where the picture or more than half
            of the sound lies.
    """
    media = probe(path, beside)
    media.need_pictures()
    media.need_sound()
    time, shown, length = middle(media, t, start, upright)
    if frames > 1:
        times = [min(max(time + k - (frames - 1) / 2, 0.0), length) for k in range(frames)]
        shown = media.at([start + at for at in times], upright)
    else:
        times = [time]
    for picture in shown:
        if picture.lost:
            raise MediaError(
                f"{path} is damaged: its frame at {picture.asked:g} s, or one it builds on, is lost. {REMEDY}"
            )
    heard = media.hear(rate, start, seconds)
    wanted = len(heard.wave) / rate
    if heard.lost > MOST_LOST * wanted:
        raise MediaError(
            f"{path} is damaged: {heard.lost:g} s of {wanted:g} s of sound cannot be decoded, more than "
            f"{MOST_LOST:.0%}. {REMEDY}"
        )
    found = dict(heard.faults)
    if heard.lost:
        found["damaged"] = heard.lost
    elif heard.gaps > 0.1:
        found["gaps"] = heard.gaps
    if late := max(p.late for p in shown):
        found["first_frame_late"] = round(late, 3)
    pictures_end = media.picture_end if media.picture_end is not None else start + length
    if wanted < min(seconds or math.inf, pictures_end - start) - SHORT:
        found["short"] = round(wanted, 3)
    if upright and shown[0].turn != STRAIGHT:
        found["turned"] = 1.0
    if shown[0].hdr:
        found["hdr"] = 1.0
    middle_one = shown[(len(shown) - 1) // 2]
    images = [p.image for p in shown]
    return Clip(middle_one.image, time, heard.wave, rate, length, images, times, found)


def middle(media: Media, t: float | None, start: float, upright: bool) -> tuple[float, list[Shown], float]:
    """The time that is meant, its picture, and the length of the pictures after ``start``: what the file says of that,
    or what was met when it was read."""
    length = (media.picture_end or 0.0) - start
    if t is not None:
        shown = media.at([start + t], upright)
        end = shown[0].end
        if end is None or start + t < end:
            return t, shown, max(length, t)
        length = end - start
    elif length <= 0:
        length = (media.measured().picture_end or 0.0) - start
    if length <= 0:
        raise MediaError(f"{media.source} has zero length. {REMEDY}")
    time = round((media.picture_start if start == 0 else 0.0) / 2 + length / 2, 6)
    return time, media.at([start + time], upright), length


def centre_frame(path: Source | str, t: float | None = None) -> Image.Image:
    """The frame that is shown at ``t`` seconds, else in the middle of the file. Raises as `frames_at`."""
    return frames_at(path, [duration(path) / 2 if t is None else t])[0]


def duration(path: Source | str) -> float:
    """Length in seconds: of the pictures if there are any, else of the sound. Looked for packet by packet where the
    file does not tell it.

    Raises:
        MediaError: unreadable, or of zero length.
    """
    media = probe(path)

    def length(media: Media) -> float:
        return (media.picture_end if media.video is not None else media.sound_end) or 0.0

    found = length(media) or (length(media.measured()) if media.video is not None or media.audio is not None else 0.0)
    if found <= 0:
        raise MediaError(f"{path} has zero length. {REMEDY}")
    return found


def frames_at(path: Source | str, times: Sequence[float], upright: bool = True) -> list[Image.Image]:
    """Frames that are shown at the given times.

    Args:
        path: any file that FFmpeg reads.
        times: ascending, seconds on the file's one clock; before the first frame the first, beyond the end the last.
        upright: False leaves pictures as they are stored.

    Raises:
        MediaError: no picture, or unreadable.
    """
    return [shown.image for shown in probe(path).at(times, upright)] if times else []


def audio_16k(path: Source | str, rate: int = 16000, start: float = 0.0, seconds: float = 10.0) -> NDArray[np.float32]:
    """Mono sound, cropped by time: AAC pads its first and last frame, so counting samples would shift it.

    Args:
        path: any file that FFmpeg reads.
        rate: Hz of the result; resampled by soxr (high quality).
        start: seconds on the file's one clock.
        seconds: length at most; fewer samples come back where the sound ends.

    Returns:
        float32 ``[n]`` in about [-1, 1], n at most ``round(seconds * rate)``.

    Raises:
        MediaError: no sound, unreadable, or nothing lies in the window.
    """
    return probe(path).hear(rate, start, seconds).wave
