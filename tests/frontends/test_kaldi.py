from __future__ import annotations

import kaldi_native_fbank
import pytest
import torch
from torch import Tensor

from avloc.frontends.kaldi import KaldiFbank


def native(waveform: Tensor, rate: int, mels: int, length_ms: float, shift_ms: float, low: float) -> Tensor:
    """Log-mel of one clip by Kaldi's own C++ code, not normalised."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.frame_length_ms = length_ms
    options.frame_opts.frame_shift_ms = shift_ms
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = mels
    options.mel_opts.low_freq = low
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(rate, (waveform * 32768).tolist())
    bank.input_finished()
    return torch.stack([torch.from_numpy(bank.get_frame(i)) for i in range(bank.num_frames_ready)])


@pytest.mark.parametrize(
    ("rate", "mels", "length_ms", "shift_ms", "low"),
    [(16000, 128, 25, 10, 20), (8000, 40, 20, 8, 60), (44100, 80, 25, 12.5, 0)],
)
def test_agrees_with_kaldi(rate: int, mels: int, length_ms: float, shift_ms: float, low: float) -> None:
    t = torch.arange(rate) / rate
    g = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(rate, generator=g)
    waveform = torch.stack([noise, noise / 50 + 0.3 * torch.sin(440 * 6.2832 * t)])
    fbank = KaldiFbank(rate, mels, (length_ms, shift_ms), mean=0.0, std=0.5, low_hz=low)
    got = fbank(waveform)
    assert got.shape == (2, fbank.frames(rate), mels)
    for row, clip in zip(got, waveform, strict=True):
        want = native(clip, rate, mels, length_ms, shift_ms, low)
        torch.testing.assert_close(row, want, atol=2e-3, rtol=0)


def test_normalisation_divides_by_twice_the_deviation() -> None:
    waveform = torch.randn(1, 4000, generator=torch.Generator().manual_seed(2))
    plain = KaldiFbank(mean=0.0, std=0.5)(waveform)
    torch.testing.assert_close(KaldiFbank(mean=3.0, std=2.0)(waveform), (plain - 3) / 4)


def test_silence_and_the_empty_triangle_are_the_published_constant() -> None:
    fbank = KaldiFbank()
    assert torch.allclose(fbank(torch.zeros(2, 16000)), torch.tensor(-2.3916928), atol=1e-6)
    noise = fbank(torch.randn(1, 16000, generator=torch.Generator().manual_seed(3)))
    assert torch.allclose(noise[..., 3], torch.tensor(-2.3916928), atol=1e-6)
    assert (noise[..., 4:] > -2).all()


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (559, 1), (560, 2), (160000, 998)])
def test_frames_are_not_padded(samples: int, frames: int) -> None:
    fbank = KaldiFbank()
    assert fbank(torch.zeros(1, samples)).shape[1] == fbank.frames(samples) == frames


def test_half_precision_never_reaches_it() -> None:
    waveform = torch.randn(1, 4000, generator=torch.Generator().manual_seed(4)).bfloat16()
    want = KaldiFbank()(waveform.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = KaldiFbank().to(torch.bfloat16)(waveform)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=0, rtol=0)


def test_it_has_no_state() -> None:
    assert not KaldiFbank().state_dict()


@pytest.mark.parametrize("shape", [(1, 399), (16000,), (1, 1, 16000)])
def test_unusable_waveform_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least 400 samples.*got \[" + ", ".join(map(str, shape))):
        KaldiFbank()(torch.zeros(shape))


def test_band_beyond_nyquist_is_refused() -> None:
    with pytest.raises(ValueError, match="20 to 9000 Hz is no band below half of 16000"):
        KaldiFbank(high_hz=9000)
