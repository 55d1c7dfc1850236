"""Samples: how channels become one, and what is wrong with a sound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avloc.data.media.files import MediaError

__all__ = ["FAULTS", "Floats", "downmix", "faults", "is_antiphase", "mono", "refuse_not_finite"]

Floats = NDArray[np.float32]
SILENT = 1e-4  # -80 dB below full scale
FEW_OVERS = 1e-3  # share of samples: what lossy codecs add to a loud sound stays below
ANTIPHASE = 0.1  # the mean of the channels is 20 dB below their half difference
FAULTS = {
    "silent": "are silent (no sample above -80 dB)",
    "constant": "hold a constant instead of a sound",
    "clipped": "have samples over 1, which are clipped",
    "antiphase": "have a right channel that undoes the left one: the left one is heard",
}


HALF = 0.5**0.5
# What each channel adds to left and right, as ITU-R BS.775 has it; players leave the low-frequency one out.
LEFT_RIGHT = {"FL": (1, 0), "FR": (0, 1), "FC": (HALF, HALF), "BL": (HALF, 0), "BR": (0, HALF), "SL": (HALF, 0)}
LEFT_RIGHT |= {"SR": (0, HALF), "BC": (0.5, 0.5), "FLC": (HALF, 0), "FRC": (0, HALF), "DL": (1, 0), "DR": (0, 1)}
LEFT_RIGHT |= {"LFE": (0, 0), "LFE2": (0, 0), "WL": (HALF, 0), "WR": (0, HALF), "TFL": (HALF, 0), "TFR": (0, HALF)}
UNNAMED = {
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}


def downmix(wave: Floats, names: Sequence[str], channels: int = 2) -> Floats:
    """More than two channels as left and right, at the level at which a full one of them all does not clip.

    Args:
        wave: ``[n channels, n]``; one or two channels stay, also where one was promised and two come or the other way.
        names: of the channels; where they are not known, what is usual for that many.
        channels: 1 or 2, of the result.

    Returns:
        ``[channels, n]``.
    """
    if len(wave) > 2:
        if not any(name in LEFT_RIGHT for name in names):
            names = UNNAMED.get(len(wave), ())
        matrix = np.array([LEFT_RIGHT.get(name, (0.5, 0.5)) for name in names], np.float32).T
        if matrix.size != 2 * len(wave):
            matrix = np.ones((2, len(wave)), np.float32)
        wave = (matrix / matrix.sum(1).max()) @ wave
    if len(wave) == channels:
        return wave
    return np.repeat(wave, 2, 0) if len(wave) == 1 else mono(wave)[None]


def is_antiphase(wave: Floats) -> bool:
    """Whether averaging the channels of ``[channels, n]`` would silence them."""
    if len(wave) != 2 or not wave.shape[1]:
        return False
    left, right = np.ascontiguousarray(wave)
    both, product = float(left @ left + right @ right), 2 * float(left @ right)
    together, apart = max(both + product, 0.0) / wave.shape[1], max(both - product, 0.0) / wave.shape[1]
    return apart > (2 * SILENT) ** 2 and together < ANTIPHASE**2 * apart


def mono(wave: Floats) -> Floats:
    """``[n]`` of ``[channels, n]``: the mean; of channels in antiphase, which would cancel, the first."""
    return wave[0] if len(wave) == 1 or is_antiphase(wave) else wave.mean(0)


def faults(wave: Floats) -> dict[str, float]:
    """What is wrong with a sound ``[channels, n]``: some of the keys of `FAULTS`, each with its extent: seconds are not
    known here, so 1.0 for the whole sound, and a share of the samples for ``clipped``."""
    if not wave.size:
        return {}
    high, low = wave.max(1), wave.min(1)
    found = {}
    if max(high.max(), -low.min()) < SILENT:
        found["silent"] = 1.0
    elif (high - low).max() < SILENT:
        found["constant"] = 1.0
    if max(high.max(), -low.min()) > 1 and (over := float((np.abs(wave) > 1).mean())) > FEW_OVERS:
        found["clipped"] = round(over, 6)
    if "constant" not in found and is_antiphase(wave):
        found["antiphase"] = 1.0
    return found


def refuse_not_finite(wave: NDArray[np.generic], source: object) -> None:
    """Refuse NaN and infinities.

    Raises:
        MediaError: there are some.
    """
    if wave.dtype.kind == "f" and not np.isfinite(wave.sum()):
        raise MediaError(
            f"{source} cannot be decoded (samples are NaN or infinite). Download it again, or leave it out."
        )
