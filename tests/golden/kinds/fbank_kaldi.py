"""`avloc.frontends.kaldi` against Kaldi's filter banks as BEATs uses them."""

from __future__ import annotations

from torch import Tensor

from avloc.frontends.kaldi import KaldiFbank
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    fbank = KaldiFbank(
        sample_rate=c["sample_rate"],
        num_mel_bins=c["num_mel_bins"],
        frames_ms=(c["frame_length_ms"], c["frame_shift_ms"]),
        scale=c["scale"],
        mean=c["fbank_mean"],
        std=c["fbank_std"],
    )
    return {
        name.replace("waveform", "fbank"): fbank(waveform)[:, :: c["time_stride"]]
        for name, waveform in case.inputs.items()
    }
