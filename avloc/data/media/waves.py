"""Loose sounds, sample by sample."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from avloc.bounds import refuse_more
from avloc.data.media.files import MediaError, unchanged
from avloc.data.media.reading import longest, probe
from avloc.data.media.sounds import Floats, downmix, refuse_not_finite

__all__ = ["load_sound", "read_sound"]

MARGIN = 0.5  # seconds beyond the end wanted, for the filter that resamples


def read_sound(path: Path, rate: int = 0, seconds: float | None = None) -> tuple[NDArray[Any], int]:
    """A sound, mono or stereo as it is; of more channels, left and right as players mix them.

    Args:
        path: what soundfile or FFmpeg reads.
        rate: Hz that is wanted: a 16-bit file of that rate keeps its samples exactly.
        seconds: from the start; half a second more comes back, for resampling. None for all, up to an hour.

    Returns:
        ``[n, 1 or 2]``, int16 or float32 in about [-1, 1], and its rate.

    Raises:
        MediaError: absent, unreadable, with samples that are not finite, or of more than an hour.
    """
    most = longest() if seconds is None else seconds + MARGIN
    try:
        with unchanged(path), soundfile.SoundFile(path) as f:
            if seconds is None and f.frames > most * f.samplerate:
                raise too_long(path, f.frames / f.samplerate)
            try:
                refuse_more(f.channels * min(f.frames, most * f.samplerate), "SAMPLES", f"{f.channels} channels")
            except ValueError as e:
                raise MediaError(f"{path} cannot be decoded as one sound ({e}). Cut it, or leave it out.") from None
            exact = f.subtype == "PCM_16" and f.samplerate == rate and f.channels <= 2
            n = min(f.frames, round(most * f.samplerate)) if f.frames else -1
            wave = f.read(n, dtype="int16" if exact else "float32", always_2d=True)
            own = f.samplerate
    except MediaError:
        raise
    except (soundfile.SoundFileError, ValueError, TypeError):
        return through_ffmpeg(path, seconds, most)
    refuse_not_finite(wave, path)
    return (downmix(wave.T, ()).T if wave.shape[1] > 2 else wave), own


def load_sound(data: bytes, rate: int = 0) -> tuple[Floats, int, int]:
    """A sound of a shard or of an answer that was kept, from memory.

    Args:
        data: what soundfile reads.
        rate: Hz that it must have to be unpacked; 0 for any.

    Returns:
        float32 ``[n, channels]`` in about [-1, 1], one sample of silence where the rate is another; its rate; and the
        samples that it promises.

    Raises:
        ValueError: unreadable, or of more than an hour; in words for the caller's sentence.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as f:
            if f.frames > longest() * f.samplerate:
                raise ValueError(f"{f.frames / f.samplerate / 3600:.1f} h are more than {longest() / 3600:g} h")
            refuse_more(f.channels * f.frames, "SAMPLES", f"{f.channels * f.frames:,} samples")
            if rate and f.samplerate != rate:
                return np.zeros((1, 1), np.float32), f.samplerate, f.frames
            return f.read(dtype="float32", always_2d=True), f.samplerate, f.frames
    except (soundfile.SoundFileError, TypeError) as e:
        raise ValueError(str(e)) from e


def through_ffmpeg(path: Path, seconds: float | None, most: float) -> tuple[NDArray[np.float32], int]:
    """`read_sound` of a file that soundfile does not know."""
    media = probe(path)
    pieces = [wave for wave, _ in media.blocks(0.0, most)]
    if not pieces:
        return np.zeros((0, 1), np.float32), media.sample_rate
    wave = np.concatenate(pieces, 1).T
    if seconds is None and len(wave) >= round(most * media.sample_rate):
        raise too_long(path, media.sound_end or most)
    refuse_not_finite(wave, path)
    return wave, media.sample_rate


def too_long(path: Path, seconds: float) -> MediaError:
    return MediaError(
        f"{path} cannot be decoded as one sound ({seconds / 3600:.1f} h are more than {longest() / 3600:g} h). "
        "Cut it, or leave it out."
    )
