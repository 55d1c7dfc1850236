"""Loose sounds, sample by sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from avloc.data.media.files import MediaError, unchanged
from avloc.data.media.reading import LONGEST_SOUND, probe
from avloc.data.media.sounds import downmix, refuse_not_finite

__all__ = ["read_sound"]

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
    most = LONGEST_SOUND if seconds is None else seconds + MARGIN
    try:
        with unchanged(path), soundfile.SoundFile(path) as f:
            if seconds is None and f.frames > most * f.samplerate:
                raise too_long(path, f.frames / f.samplerate)
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
        f"{path} cannot be decoded as one sound ({seconds / 3600:.1f} h are more than {LONGEST_SOUND / 3600:g} h). "
        "Cut it, or leave it out."
    )
