"""`avloc.frontends.spectrogram` against scipy's, behind each repository's reading of a file."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.frontends.spectrogram import LogSpectrogram
from tests.golden.case import Case
from tests.golden.towers import tiled


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    front_end = LogSpectrogram(
        c["sample_rate"], c["nperseg"], c["nperseg"] - c["noverlap"], c["eps"], c["divide"], c["window"][1]
    )
    spectrogram = front_end(READERS[c["variant"]](case.inputs["waveform"], c)[None].clamp(-1, 1))[0, 0]
    if "crop" in c:
        width = c["crop"][1]
        left = round((spectrogram.shape[1] - width) / 2)
        spectrogram = spectrogram[:, left : left + width]
    sub = c.get("sub") or [1, 1]
    return {
        "shape": torch.tensor(spectrogram.shape),
        "spectrogram": spectrogram,
        "spectrogram_sub": spectrogram[:: sub[0], :: sub[1]],
        "spectrogram_mean_frequency": spectrogram.double().mean(0),
        "spectrogram_mean_time": spectrogram.double().mean(1),
    }


def mono(x: Tensor) -> Tensor:
    """PyAV's 16-bit mono, over 32767."""
    x = x.long()
    return (x[:, 0] if x.shape[1] == 1 else (x[:, 0] + x[:, 1] + 1).div(2, rounding_mode="floor")) / 32767


def centred(x: Tensor, c: dict) -> Tensor:
    """EZ-VSL: the seconds in the middle."""
    rate, seconds, x = c["sample_rate"], c["seconds"], mono(x)
    start = max(0, int((len(x) / rate / 2 - seconds / 2) * rate))
    return tiled(x[None, start : start + int(rate * seconds)], int(rate * seconds))[0]


def rolled(x: Tensor, c: dict) -> Tensor:
    """SSLalignment for EZ-VSL's and SLAVC's checkpoints: everything, turned until its middle is the middle."""
    rate, seconds, x = c["sample_rate"], c["seconds"], mono(x)
    turn = int(rate * seconds / 2) - int(len(x) / rate / 2 * rate)
    return tiled(x[None, : int(rate * seconds)], int(rate * seconds))[0].roll(turn)


def cut(x: Tensor, c: dict) -> Tensor:
    """LVS and SSLalignment: soundfile, over 32768; the first seconds, or those between two times of them."""
    total, slices = c["total_seconds"], 16000
    x = tiled(x[None, :, 0] / 32768, c["sample_rate"] * total)[0]
    return x[int(slices * c["from_seconds"]) : int(slices * c["to_seconds"])] if "from_seconds" in c else x


READERS = {"ezvsl": centred, "rolled": rolled, "alignment": cut, "lvs": cut}
