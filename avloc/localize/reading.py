"""What is read of a clip or a still: its pictures, its sound, and the part of the sound that belongs to a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avloc.data.media import VIDEOS, Floats, Media, MediaError, read_picture
from avloc.data.media import probe as probe_media
from avloc.data.media.sounds import SILENT
from avloc.errors import UsageError
from avloc.types import InputSpec

__all__ = [
    "Clip",
    "clips_in",
    "heard",
    "is_silent",
    "probe",
    "read_image",
    "refuse_short",
    "soundtrack",
    "still_sound",
    "usual_window",
]

SHORTEST_SOUND = 0.1  # seconds
SHORTEST_WINDOW = 1.0  # seconds that are heard at a moment unless less is asked for; VGGish hears no shorter ones
PARTS = 5  # windows that lie side by side in a clip


@dataclass(frozen=True)
class Clip:
    """What is known of a video beforehand: its file, upright size in square pixels, and seconds."""

    path: Path
    media: Media
    width: int
    height: int
    duration: float


def clips_in(named: Sequence[Path]) -> list[Path]:
    """The files that are named, and the videos of the folders that are, by name.

    Raises:
        UsageError: a folder cannot be read or holds no video.
    """
    found: list[Path] = []
    for path in named:
        if not path.is_dir():
            found.append(path)
            continue
        try:
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEOS and p.is_file())
        except OSError as e:
            raise UsageError(f"{path} cannot be read ({e.strerror}). Check its rights.") from e
        if not inside:
            raise UsageError(f"{path} holds no video ({', '.join(VIDEOS)}). Name a file, or another folder.")
        found += inside
    return list(dict.fromkeys(found))


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
    # All of it is decoded anyway, so its length is looked for: what files claim may be absent or wrong.
    known = media.measured()
    return Clip(path, known, width, height, known.seconds or media.seconds)


def soundtrack(clip: Clip, rate: int, file: Path) -> NDArray[np.float32]:
    """The whole sound in mono at ``rate``, float32 ``[N]`` in [-1, 1], mapped from ``file``; silence from its end to
    that of the pictures.

    Raises:
        MediaError: less than 0.1 s of sound, or samples that are no numbers.
    """
    sound, ends = clip.media.soundtrack(rate, file, least=clip.duration)
    refuse_short(sound[: round(ends * rate)], rate, clip.path)
    return sound


def still_sound(path: Path, spec: InputSpec) -> NDArray[np.float32]:
    """The part of a sound that a method hears with a still, float32 ``[n]`` at its rate: its middle or its beginning,
    as the method's window says. The rest is not decoded.

    Raises:
        MediaError: as `avloc.data.media.audio_16k`, or less than 0.1 s of it.
    """
    media = probe_media(path)
    media.need_sound()
    start = 0.0
    if spec.window == "centre":
        start = max(0.0, ((media.sound_end or media.measured().sound_end or 0.0) - spec.seconds) / 2)
    try:
        sound = media.hear(spec.sample_rate, start, spec.seconds).wave
    except MediaError:
        if not start:
            raise
        start = max(0.0, ((media.measured().sound_end or 0.0) - spec.seconds) / 2)  # the claimed length was wrong
        sound = media.hear(spec.sample_rate, start, spec.seconds).wave
    refuse_short(sound, spec.sample_rate, path)
    return sound


def usual_window(spec: InputSpec, duration: float) -> float:
    """Seconds of sound that a moment of a clip is heard with where nobody says: a fifth of the clip, so that its
    moments are told apart, but at least one second and at most what the method hears at once."""
    return min(spec.seconds, max(SHORTEST_WINDOW, duration / PARTS))


def heard(sound: NDArray[np.float32], centre: float, seconds: float, rate: int) -> NDArray[np.float32]:
    """The part of the sound around ``centre`` (s), shifted inwards where it would stick out."""
    length = round(seconds * rate)
    start = max(0, min(round(centre * rate) - length // 2, len(sound) - length))
    return np.array(sound[start : start + length])


def is_silent(sound: Floats) -> bool:
    """Whether no sample is above -80 dB of full scale."""
    return not len(sound) or bool(np.abs(sound).max() < SILENT)


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
