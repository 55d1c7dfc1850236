"""Kaldi's log-mel filter banks for whole batches on any device, as BEATs hears them.

Frames of 25 ms every 10 ms, nothing padded; the frame's mean removed, pre-emphasis 0.97, Hann window to the power 0.85,
power of 512 points, 128 triangles that are linear in mel from 20 to 8000 Hz, logarithm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avloc.frontends.constants import Constants, refuse_no_band

__all__ = ["KaldiFbank", "mel_triangles"]

FLOOR = torch.finfo(torch.float32).eps
PREEMPHASIS = 0.97


def mel(hz: Tensor | float) -> Tensor:
    """Kaldi's mel scale, ``1127 ln(1 + f / 700)``, in float64."""
    return 1127.0 * torch.log1p(torch.as_tensor(hz, dtype=torch.float64) / 700.0)


def mel_triangles(mels: int, fft_size: int, sample_rate: int, low_hz: float, high_hz: float) -> Tensor:
    """Weights of ``mels`` triangles that are linear and equally spaced in mel.

    Args:
        mels: number of triangles.
        fft_size: length of the FFT, samples.
        sample_rate: Hz.
        low_hz: foot of the first triangle, Hz.
        high_hz: foot of the last triangle, Hz.

    Returns:
        float32 ``[fft_size / 2 + 1, mels]``; the Nyquist bin has weight zero, as in Kaldi.
    """
    bins = mel(torch.arange(fft_size // 2, dtype=torch.float64) * sample_rate / fft_size).unsqueeze(1)
    low, high = mel(low_hz), mel(high_hz)
    step = (high - low) / (mels + 1)
    left = low + step * torch.arange(mels, dtype=torch.float64)
    rising, falling = (bins - left) / step, (left + 2 * step - bins) / step
    weights = torch.minimum(rising, falling).clamp(min=0)
    return torch.cat([weights, weights.new_zeros(1, mels)]).float()


class KaldiFbank(Constants):
    """Normalised log-mel filter banks as BEATs reads them: ``(log mel - mean) / (2 std)``.

    Frames are not padded at the edges: ``frames = 1 + floor((T - length) / shift)``. Each frame loses its
    mean, is pre-emphasised (0.97), weighted with a symmetric Hann window to the power 0.85, and zero-padded
    to the next power of two; the squared magnitudes of its FFT are summed under the triangles, floored at
    float32's epsilon and logged. Always float32, under autocast and after ``module.half()`` too: power
    values reach 1e13.

    Args:
        sample_rate: Hz.
        num_mel_bins: mel bands.
        frames_ms: length of a frame, and hop from one to the next, milliseconds.
        scale: factor on the waveform before everything; 2^15 brings [-1, 1] to Kaldi's 16-bit range.
        mean: of the log-mel values of BEATs' training set.
        std: their standard deviation.
        low_hz: foot of the first triangle, Hz.
        high_hz: foot of the last triangle, Hz; None for half the sample rate.

    Raises:
        ValueError: the band is empty or reaches beyond half the sample rate.
    """

    triangles: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        num_mel_bins: int = 128,
        frames_ms: tuple[float, float] = (25, 10),
        scale: float = 32768.0,
        mean: float = 15.41663,
        std: float = 6.55582,
        low_hz: float = 20,
        high_hz: float | None = None,
    ) -> None:
        super().__init__()
        self.sample_rate, self.num_mel_bins = sample_rate, num_mel_bins
        self.length, self.shift = (int(sample_rate * ms / 1000) for ms in frames_ms)
        self.fft_size = 2 ** math.ceil(math.log2(self.length))
        self.scale, self.mean, self.std = scale, mean, std
        self.low_hz, self.high_hz = low_hz, sample_rate / 2 if high_hz is None else high_hz
        refuse_no_band("KaldiFbank", self.low_hz, self.high_hz, sample_rate)
        self.keep_constants()

    def constants(self) -> dict[str, Tensor]:
        """The window ``[length]`` and the triangles ``[fft_size / 2 + 1, mels]``, float32 on the CPU."""
        hann = torch.hann_window(self.length, periodic=False, dtype=torch.float64)
        band = (self.low_hz, self.high_hz)
        triangles = mel_triangles(self.num_mel_bins, self.fft_size, self.sample_rate, *band)
        return {"window": hann.pow(0.85).float(), "triangles": triangles}

    def frames(self, samples: int) -> int:
        """Number of frames of a clip of ``samples`` samples; 0 if it is shorter than one frame."""
        return max(0, 1 + (samples - self.length) // self.shift)

    def forward(self, waveform: Tensor) -> Tensor:
        """Filter banks of a batch.

        Args:
            waveform: floating point ``[B, T]`` in [-1, 1].

        Returns:
            float32 ``[B, frames, mels]``.

        Raises:
            ValueError: the waveform is not ``[B, T]`` or is shorter than one frame.
        """
        if waveform.ndim != 2 or waveform.shape[1] < self.length:
            raise ValueError(
                f"KaldiFbank needs a waveform [B, T] of at least {self.length} samples "
                f"({self.sample_rate} Hz), got {list(waveform.shape)}. Pad the clip with zeros."
            )
        with torch.autocast(waveform.device.type, enabled=False):
            x = (waveform.float() * self.scale).unfold(1, self.length, self.shift)
            x = x - x.mean(dim=2, keepdim=True)
            before = torch.cat([x[..., :1], x[..., :-1]], dim=2)
            spectrum = torch.fft.rfft((x - PREEMPHASIS * before) * self.window, n=self.fft_size)
            power = spectrum.real.square() + spectrum.imag.square()
            log_mel = (power @ self.triangles).clamp(min=FLOOR).log()
            return (log_mel - self.mean) / (2 * self.std)
