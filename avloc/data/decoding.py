"""From a member's bytes to a picture, or to the waveform that a method hears. Nothing is normalised here."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from avloc.data.media import Floats, load_picture, load_sound
from avloc.data.media.sounds import is_antiphase
from avloc.data.schema import SampleError
from avloc.types import InputSpec

__all__ = ["decode_audio", "decode_image", "fit_audio", "frame_start"]


def decode_image(data: bytes, name: str) -> Image.Image:
    """An RGB picture.

    Raises:
        SampleError: truncated or not a picture.
    """
    try:
        image = load_picture(data)
        return image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, ValueError) as e:
        raise SampleError(f"{name} cannot be decoded as a picture ({e}). Write its shard again.") from e


def decode_audio(data: bytes, name: str, rate: int, duration: float = 0.0) -> Floats:
    """Samples of a FLAC, Opus, Ogg or WAV.

    Args:
        data: the file's bytes.
        name: for messages.
        rate: Hz that the sound must have.
        duration: seconds that it must have within 1 %, since a cut-off file decodes without complaint; 0 for
            any.

    Returns:
        float32 ``[n, channels]`` in [-1, 1].

    Raises:
        SampleError: truncated, empty, of another rate, or with samples that are not finite.
    """
    try:
        sound, found, promised = load_sound(data, rate)
    except ValueError as e:
        raise SampleError(f"{name} cannot be decoded as sound ({e}). Write its shard again.") from e
    if found != rate:
        raise SampleError(
            f"{name} has {found} Hz, the method wants {rate} Hz. Write the shards at that rate "
            "(sounds are resampled when shards are written, never while reading)."
        )
    if not len(sound):
        raise SampleError(f"{name} has no samples at all. Leave this clip out when the shards are written.")
    if len(sound) < promised or len(sound) < 0.99 * duration * rate:
        wanted = max(promised, round(duration * rate))
        raise SampleError(f"{name} is cut off: {len(sound)} samples of {wanted}. Write its shard again.")
    if not np.isfinite(sound.sum()):
        raise SampleError(f"{name} has samples that are NaN or infinite. Leave this clip out of the shards.")
    return sound


def fit_audio(sound: Floats, spec: InputSpec, t: float = 0.0) -> Floats:
    """The waveform as a method wants it: one channel, then the window, then padding.

    Args:
        sound: ``[n, channels]``, n > 0.
        spec: channels, window, pad and length. ``left_then_right`` leaves mono as it is.
        t: seconds into the clip at which the scored frame was taken; for the window ``frame``.

    Returns:
        float32 ``[T]``.
    """
    if spec.channels == "left_then_right":
        wave = sound[:, :2].T.reshape(-1)
    else:
        # Channels that would cancel are a mistake of the recording: the left one is heard.
        one = spec.channels == "first" or sound.shape[1] == 1 or is_antiphase(sound.T)
        wave = sound[:, 0] if one else sound.mean(1, dtype=np.float32)
    T = spec.samples
    if spec.window == "frame":
        wave = wave[frame_start(t, len(wave), spec) :]
    if len(wave) >= T:
        start = (len(wave) - T) // 2 if spec.window == "centre" else 0
        return np.ascontiguousarray(wave[start : start + T])
    return np.resize(wave, T) if spec.pad == "tile" else np.pad(wave, (0, T - len(wave)))


def frame_start(t: float, n: int, spec: InputSpec) -> int:
    """First of n samples that belongs to the frame of time t: see ``InputSpec.window``."""
    stretch = math.floor(t / spec.seconds + 1e-6)  # 0.3 / 0.1 is a little below 3
    length = spec.seconds * spec.sample_rate
    return round(max(0, min(stretch, int((n - 1) / length))) * length)
