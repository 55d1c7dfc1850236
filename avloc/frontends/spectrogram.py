"""Spectrograms of the two-tower localisers, for whole batches on any device.

LVS, EZ-VSL, SLAVC, FNAC and Alignment hear ``log(scipy.signal.spectrogram(x, rate, nperseg=512, noverlap=274) + 1e-7) /
12``; SSL-TIE hears decibels of torchaudio's mel spectrogram. Both are computed here as those libraries define them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from avloc.frontends.constants import Constants

__all__ = ["LogSpectrogram", "MelDecibels", "tukey"]


def tukey(length: int, shape: float) -> Tensor:
    """A periodic Tukey window, float64 ``[length]``: the first points of the symmetric one of ``length + 1``.

    Args:
        length: samples.
        shape: share of the window that is tapered, 0 (rectangle) to 1 (Hann).
    """
    place = torch.arange(length, dtype=torch.float64) / length
    edge = torch.minimum(place, 1 - place)  # distance from the nearer end, as a share of the window
    if shape == 0:
        return torch.ones_like(edge)
    return (1 - torch.cos(2 * torch.pi * edge.clamp(max=shape / 2) / shape)) / 2


class FrontEnd(Constants):
    """What both have in common: frames of ``length`` samples every ``hop``, in float32 whatever the network runs in."""

    def __init__(self, sample_rate: int, length: int, hop: int) -> None:
        super().__init__()
        if not 0 < hop <= length:
            raise ValueError(f"{type(self).__name__}: hop {hop} is not between 1 and the window's {length} samples.")
        self.sample_rate, self.length, self.hop = sample_rate, length, hop
        self.bins = length // 2 + 1

    def checked(self, waveform: Tensor) -> Tensor:
        if waveform.ndim != 2 or waveform.shape[1] < self.length:
            raise ValueError(
                f"{type(self).__name__} needs a waveform [B, T] of at least one window, {self.length} samples "
                f"({self.length / self.sample_rate:.3g} s at {self.sample_rate} Hz), got {list(waveform.shape)}. "
                "Repeat or pad shorter sounds, and average channels."
            )
        return waveform.float()


class LogSpectrogram(FrontEnd):
    """``log(P + floor) / divide`` of the one-sided power density P, as scipy's ``spectrogram`` defines it.

    Each segment loses its mean and is weighted with a periodic Tukey window; nothing is padded, so there are
    ``(T - length) // hop + 1`` segments. ``P = |X|^2 / (rate * sum(window^2))``, doubled in all bins but the first
    and the last. The rate enters the scale: the same samples at twice the rate are log(2) / divide lower.

    Args:
        sample_rate: Hz, of the waveform. The released checkpoints have heard 16 kHz.
        length: samples of a segment.
        hop: samples from one segment to the next: 238 (noverlap 274) in LVS, EZ-VSL, SLAVC and FNAC, 159 (noverlap
            353) in SSLalignment.
        floor: added to the power; digital silence is ``log(floor) / divide``, -1.343.
        divide: of the logarithm.
        taper: tapered share of the window.

    Raises:
        ValueError: hop and length do not fit.
    """

    weights: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        length: int = 512,
        hop: int = 238,
        floor: float = 1e-7,
        divide: float = 12.0,
        taper: float = 0.25,
    ) -> None:
        super().__init__(sample_rate, length, hop)
        self.floor, self.divide, self.taper = floor, divide, taper
        self.keep_constants()

    def constants(self) -> dict[str, Tensor]:
        window = tukey(self.length, self.taper)
        weights = torch.full((self.bins,), 2.0, dtype=torch.float64)
        weights[0] = 1
        if self.length % 2 == 0:
            weights[-1] = 1
        weights /= self.sample_rate * window.square().sum()
        return {"window": window.float(), "weights": weights.float()}

    def frames(self, samples: int) -> int:
        """Segments of a sound of ``samples`` samples."""
        return max(0, (samples - self.length) // self.hop + 1)

    def forward(self, waveform: Tensor) -> Tensor:
        """Spectrograms of a batch.

        Args:
            waveform: float ``[B, T]`` in [-1, 1].

        Returns:
            float32 ``[B, 1, length / 2 + 1, frames(T)]``, frequencies upward.

        Raises:
            ValueError: the waveform is not ``[B, T]`` or shorter than a segment.
        """
        with torch.autocast(waveform.device.type, enabled=False):
            x = self.checked(waveform).unfold(1, self.length, self.hop)  # [B, frames, length]
            x = (x - x.mean(-1, keepdim=True)) * self.window
            z = torch.fft.rfft(x)
            power = torch.addcmul(z.real.square(), z.imag, z.imag) * self.weights
            return ((power + self.floor).log() / self.divide).transpose(1, 2).unsqueeze(1)


class MelDecibels(FrontEnd):
    """SSL-TIE's ``10 log10(max(M, 1e-10))`` of torchaudio's normalised mel spectrogram M.

    Frames are centred (reflected at the ends) and weighted with a periodic Hann window; the transform is divided by
    ``sqrt(sum(window^2))``; powers are summed under HTK's triangles from 0 Hz to half the rate. With as many bands as
    bins some low bands hold no bin: they are -100 throughout.

    Args:
        sample_rate: Hz.
        length: samples of a frame and of its transform.
        hop: samples from one frame to the next.
        bands: mel bands.

    Raises:
        ValueError: hop and length do not fit.
    """

    triangles: Tensor

    def __init__(self, sample_rate: int = 16000, length: int = 512, hop: int = 239, bands: int = 257) -> None:
        super().__init__(sample_rate, length, hop)
        self.bands = bands
        self.keep_constants()

    def constants(self) -> dict[str, Tensor]:
        return {"window": torch.hann_window(self.length), "triangles": self.htk_triangles()}

    def htk_triangles(self) -> Tensor:
        """``[bins, bands]``, linear in Hz between corners that are equally spaced in HTK's mel.

        In float32 as torchaudio computes them: the lowest triangles are so narrow that its rounding is heard.
        """
        top = 2595 * math.log10(1 + self.sample_rate / 2 / 700)
        corners = 700 * (10 ** (torch.linspace(0, top, self.bands + 2) / 2595) - 1)
        slopes = corners - torch.linspace(0, self.sample_rate // 2, self.bins)[:, None]
        steps = corners.diff()
        return torch.minimum(-slopes[:, :-2] / steps[:-1], slopes[:, 2:] / steps[1:]).clamp(min=0)

    def frames(self, samples: int) -> int:
        """Frames of a sound of ``samples`` samples."""
        return samples // self.hop + 1

    def forward(self, waveform: Tensor) -> Tensor:
        """Decibels of a batch.

        Args:
            waveform: float ``[B, T]`` in [-1, 1].

        Returns:
            float32 ``[B, 1, bands, frames(T)]``, at least -100.

        Raises:
            ValueError: the waveform is not ``[B, T]`` or shorter than a frame.
        """
        with torch.autocast(waveform.device.type, enabled=False):
            x = F.pad(self.checked(waveform), (self.length // 2, self.length // 2), mode="reflect")
            z = torch.fft.rfft(x.unfold(1, self.length, self.hop) * self.window)
            power = torch.addcmul(z.real.square(), z.imag, z.imag) / self.window.square().sum()
            mel = power @ self.triangles
            return (10 * mel.clamp(min=1e-10).log10()).transpose(1, 2).unsqueeze(1)
