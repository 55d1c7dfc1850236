"""Spectrograms against scipy's own, and against torch's transform summed band by band."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch

from avloc.frontends.spectrogram import LogSpectrogram, MelDecibels, tukey


def sound(samples: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(samples)).clamp(-3, 3) / 4


@pytest.mark.parametrize(("rate", "length", "hop", "samples"), [(16000, 512, 238, 5000), (22050, 512, 159, 512)])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_it_is_scipys(rate: int, length: int, hop: int, samples: int, scale: float) -> None:
    x = sound(samples) * scale
    _, _, power = scipy.signal.spectrogram(x.double().numpy(), rate, nperseg=length, noverlap=length - hop)
    got = LogSpectrogram(rate, length, hop)(x)
    assert got.shape == (2, 1, length // 2 + 1, LogSpectrogram(rate, length, hop).frames(samples))
    np.testing.assert_allclose(got[:, 0], np.log(power + 1e-7) / 12, atol=2e-6, rtol=0)


def test_an_odd_window_has_no_nyquist() -> None:
    x = sound(400)
    _, _, power = scipy.signal.spectrogram(x.double().numpy(), 8000, nperseg=101, noverlap=50)
    np.testing.assert_allclose(LogSpectrogram(8000, 101, 51)(x)[:, 0], np.log(power + 1e-7) / 12, atol=2e-6)


@pytest.mark.parametrize("shape", [0.0, 0.25, 1.0])
def test_the_window_is_scipys_periodic_one(shape: float) -> None:
    np.testing.assert_allclose(tukey(512, shape), scipy.signal.windows.tukey(513, shape)[:512], atol=1e-12)


def test_silence_and_the_rate() -> None:
    assert LogSpectrogram()(torch.zeros(1, 600)).unique().tolist() == pytest.approx([-1.343175], abs=1e-6)
    x = sound(3000)
    difference = LogSpectrogram(16000, floor=1e-12)(x) - LogSpectrogram(32000, floor=1e-12)(x)
    assert difference.median().item() == pytest.approx(math.log(2) / 12, abs=1e-5)


def test_decibels_are_sums_under_triangles() -> None:
    """The transform is torch's centred one; the triangles, linear in Hz between HTK's mels, are drawn one by one."""
    rate, bands, hop = 16000, 40, 100
    x = sound(2000, 1)
    spectrum = torch.stft(x, 512, hop, window=torch.hann_window(512), pad_mode="reflect", return_complex=True)
    power = spectrum.abs().square()[0] / torch.hann_window(512).square().sum()
    top = 2595 * math.log10(1 + rate / 2 / 700)
    corners = [700 * (10 ** (top * i / (bands + 1) / 2595) - 1) for i in range(bands + 2)]
    got = MelDecibels(rate, 512, hop, bands)(x)[0, 0]
    assert got.shape == (bands, MelDecibels(rate, 512, hop, bands).frames(2000))
    hertz = [31.25 * i for i in range(257)]
    for band in range(bands):
        left, peak, right = corners[band : band + 3]
        weights = [max(0.0, min((f - left) / (peak - left), (right - f) / (right - peak))) for f in hertz]
        total = (torch.tensor(weights, dtype=torch.float32)[:, None] * power).sum(0)
        torch.testing.assert_close(got[band], 10 * total.clamp(min=1e-10).log10(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", [LogSpectrogram, MelDecibels])
def test_what_is_too_short_or_no_batch_is_told(kind: type[LogSpectrogram]) -> None:
    with pytest.raises(ValueError, match="at least one window, 512 samples"):
        kind()(torch.zeros(2, 511))
    with pytest.raises(ValueError, match="average channels"):
        kind()(torch.zeros(2, 1, 600))
    with pytest.raises(ValueError, match="hop 0"):
        kind(hop=0)


@pytest.mark.parametrize("kind", [LogSpectrogram, MelDecibels])
def test_half_precision_changes_nothing(kind: type[LogSpectrogram]) -> None:
    x = sound(1200)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(kind().bfloat16()(x), kind()(x), atol=0, rtol=0)
