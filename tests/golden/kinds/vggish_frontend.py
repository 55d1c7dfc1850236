"""`avloc.frontends.vggish` against torchvggish's examples and AVSBench's completion of short clips."""

from __future__ import annotations

from torch import Tensor

from avloc.frontends.vggish import VGGishFrontEnd, complete
from tests.golden.case import Case


def front_end(config: dict) -> VGGishFrontEnd:
    return VGGishFrontEnd(
        sample_rate=config["sample_rate"],
        mel_bins=config["mel_bins"],
        window_s=config["window_s"],
        hop_s=config["hop_s"],
        low_hz=config["mel_min_hz"],
        high_hz=config["mel_max_hz"],
        log_offset=config["log_offset"],
        example_frames=config["example_frames"],
        example_hop=config["example_hop_frames"],
    )


def run(case: Case) -> dict[str, Tensor]:
    module = front_end(case.config)
    waveform = case.inputs["waveform"]
    if waveform.ndim == 2:  # [samples, channels]
        waveform = (waveform if waveform.is_floating_point() else waveform / 32768).double().mean(1)
    examples = module(waveform[None])
    actual = {
        "examples": examples[0],
        "log_mel": module.log_mel(waveform[None])[0],
        "mel_matrix": module.triangles,
        "window": module.window,
    }
    if case.config.get("avsbench_pad"):
        actual["s4_ms3_padded"] = complete(examples, 5, "repeat")[0]
        actual["avss_padded"] = complete(examples, 10, "zeros")[0]
    return actual
