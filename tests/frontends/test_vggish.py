from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from avloc.frontends.vggish import VGGishFrontEnd, complete


def by_definition(waveform: np.ndarray) -> np.ndarray:
    """Log-mel frames [frames, 64] one frame and one band at a time, from torchvggish's constants."""

    def mel(hz: float) -> float:
        return 1127 * math.log(1 + hz / 700)

    edges = np.linspace(mel(125), mel(7500), 66)
    frames = []
    for start in range(0, len(waveform) - 400 + 1, 160):
        window = [0.5 - 0.5 * math.cos(2 * math.pi * n / 400) for n in range(400)]
        magnitude = np.abs(np.fft.fft(np.pad(waveform[start : start + 400] * window, (0, 112))))
        bands = []
        for band in range(64):
            low, peak, high = edges[band : band + 3]
            total = 0.0
            for k in range(1, 257):  # the DC bin has no weight
                m = mel(k * 16000 / 512)
                total += magnitude[k] * max(0.0, min((m - low) / (peak - low), (high - m) / (high - peak)))
            bands.append(math.log(total + 0.01))
        frames.append(bands)
    return np.array(frames)


def sounds(samples: int = 2000) -> Tensor:
    t = torch.arange(samples) / 16000
    noise = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(1))
    return torch.stack([noise, 0.4 * torch.sin(2 * math.pi * 700 * t)])


def test_log_mel_is_the_definition() -> None:
    waveform = sounds()
    got = VGGishFrontEnd().log_mel(waveform)
    assert got.shape == (2, 11, 64)
    for row, clip in zip(got, waveform, strict=True):
        np.testing.assert_allclose(row.numpy(), by_definition(clip.double().numpy()), atol=5e-6)


def test_single_precision_departs_only_in_quiet_bands() -> None:
    waveform = sounds(16000)
    exact, single = VGGishFrontEnd()(waveform), VGGishFrontEnd(precision="float32")(waveform)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single[0], exact[0], atol=1e-5, rtol=0)  # noise
    torch.testing.assert_close(single[1], exact[1], atol=2e-3, rtol=1e-4)  # a tone


@pytest.mark.parametrize(
    ("samples", "frames", "examples"),
    [
        (240, 0, 0),
        (399, 0, 0),
        (400, 1, 0),
        (15360, 94, 0),
        (15599, 95, 0),
        (15600, 96, 1),
        (30959, 191, 1),
        (30960, 192, 2),
        (160000, 998, 10),
    ],
)
def test_counts(samples: int, frames: int, examples: int) -> None:
    front_end = VGGishFrontEnd()
    assert (front_end.frames(samples), front_end.examples(samples)) == (frames, examples)
    assert front_end(torch.zeros(2, samples)).shape == (2, examples, 1, 96, 64)
    assert front_end.log_mel(torch.zeros(2, samples)).shape == (2, frames, 64)


def test_fewest_samples() -> None:
    assert [VGGishFrontEnd().samples(k) for k in (1, 2)] == [15600, 30960]


def test_examples_follow_each_other_without_overlap() -> None:
    waveform = 0.1 * torch.randn(2, 32000, generator=torch.Generator().manual_seed(2))
    front_end = VGGishFrontEnd()
    frames = front_end.log_mel(waveform)
    assert torch.equal(front_end(waveform)[1, 1, 0], frames[1, 96:192])


def test_silence_is_the_offset_and_int16_is_scaled() -> None:
    assert torch.allclose(VGGishFrontEnd()(torch.zeros(1, 16000)), torch.tensor(-4.60517))
    pcm = torch.randint(-20000, 20000, (1, 2000), generator=torch.Generator().manual_seed(3)).to(torch.int16)
    got = VGGishFrontEnd().log_mel(pcm)[0]
    np.testing.assert_allclose(got.numpy(), by_definition(pcm[0].double().numpy() / 32768), atol=5e-6)


def test_lower_precision_never_reaches_it() -> None:
    waveform = sounds(16000)
    want = VGGishFrontEnd()(waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = VGGishFrontEnd().to(torch.bfloat16)(waveform)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def test_it_has_no_state() -> None:
    assert not VGGishFrontEnd().state_dict()


@pytest.mark.parametrize("shape", [(1, 239), (16000,), (1, 1, 16000)])
def test_unusable_waveform_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least 240 samples.*got \[" + ", ".join(map(str, shape))):
        VGGishFrontEnd()(torch.zeros(shape))


def test_band_beyond_nyquist_is_refused() -> None:
    with pytest.raises(ValueError, match="125 to 9000 Hz is no band below half of 16000"):
        VGGishFrontEnd(high_hz=9000)


def test_completion() -> None:
    x = torch.arange(3.0).view(1, 3, 1, 1, 1) + 1
    assert complete(x, 5, "repeat").flatten().tolist() == [1, 2, 3, 3, 3]
    assert complete(x, 5, "zeros").flatten().tolist() == [1, 2, 3, 0, 0]
    assert complete(x, 3, "repeat").flatten().tolist() == [1, 2, 3]
    assert not complete(x[:, :0], 2, "zeros").any()
    with pytest.raises(ValueError, match="3 VGGish examples, more than the 2"):
        complete(x, 2, "zeros")
    with pytest.raises(ValueError, match="none to repeat"):
        complete(x[:, :0], 5, "repeat")
