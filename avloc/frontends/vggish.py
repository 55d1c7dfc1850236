"""VGGish's log-mel examples for whole batches on any device (torchvggish, f3f9096).

Frames of 400 samples every 160, nothing padded; periodic Hann window, magnitude of 512 points, 64 bands from 125 to
7500 Hz, ``ln(mel + 0.01)``. An example is 96 frames; what does not fill one is dropped, so 15,600 samples (0.975 s) are
the least that is heard.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from avloc.frontends.constants import Constants, refuse_no_band
from avloc.frontends.kaldi import mel_triangles

__all__ = ["VGGishFrontEnd", "complete"]

Precision = Literal["float64", "float32"]


class VGGishFrontEnd(Constants):
    """Waveform to examples of 0.96 s: ``ln(mel magnitude + offset)``, 96 frames by 64 bands.

    Frames are neither centred nor padded: ``frames = 1 + floor((T - window) / hop)``, so one example needs
    15,600 samples (0.975 s), two 30,960. Frames that do not fill an example are dropped. A frame is weighted with a
    periodic Hann window and zero-padded to the next power of two; the magnitudes (not powers) of its FFT are
    summed under triangles that are linear in mel and have peak 1.

    Args:
        sample_rate: Hz.
        mel_bins: mel bands.
        window_s: frame length, seconds.
        hop_s: hop between frames, seconds.
        low_hz: foot of the first triangle, Hz.
        high_hz: foot of the last triangle, Hz.
        log_offset: added before the logarithm; silence is its logarithm.
        example_frames: frames of an example.
        example_hop: frames from one example to the next.
        precision: of the arithmetic. The reference computes in float64; float32 departs from it by up to 8e-4 in
            quiet bands of tonal sounds. It holds under autocast and after ``module.half()`` too.

    Raises:
        ValueError: the band is empty or reaches beyond half the sample rate.
    """

    triangles: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        mel_bins: int = 64,
        window_s: float = 0.025,
        hop_s: float = 0.01,
        low_hz: float = 125,
        high_hz: float = 7500,
        log_offset: float = 0.01,
        example_frames: int = 96,
        example_hop: int = 96,
        precision: Precision = "float64",
    ) -> None:
        super().__init__()
        refuse_no_band("VGGishFrontEnd", low_hz, high_hz, sample_rate)
        self.sample_rate, self.mel_bins, self.low_hz, self.high_hz = sample_rate, mel_bins, low_hz, high_hz
        self.length, self.hop = round(sample_rate * window_s), round(sample_rate * hop_s)
        self.fft_size = 2 ** math.ceil(math.log2(self.length))
        self.log_offset, self.example_frames, self.example_hop = log_offset, example_frames, example_hop
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self.keep_constants()

    def constants(self) -> dict[str, Tensor]:
        """The window ``[length]`` and the triangles ``[fft_size / 2 + 1, mel_bins]`` on the CPU."""
        window = torch.hann_window(self.length, periodic=True, dtype=torch.float64)
        triangles = mel_triangles(self.mel_bins, self.fft_size, self.sample_rate, self.low_hz, self.high_hz)
        return {"window": window.to(self.dtype), "triangles": triangles.to(self.dtype)}

    def frames(self, samples: int) -> int:
        """Number of complete frames of a clip of ``samples`` samples."""
        return max(0, 1 + (samples - self.length) // self.hop)

    def examples(self, samples: int) -> int:
        """Number of complete examples of a clip of ``samples`` samples."""
        return max(0, 1 + (self.frames(samples) - self.example_frames) // self.example_hop)

    def samples(self, examples: int) -> int:
        """The fewest samples that give ``examples`` (1 or more) examples."""
        frames = self.example_frames + (examples - 1) * self.example_hop
        return self.length + (frames - 1) * self.hop

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Log-mel frames of a batch.

        Args:
            waveform: floating point ``[B, T]`` in [-1, 1], or int16, which is divided by 32768.

        Returns:
            float32 ``[B, frames, mel_bins]``; no frames for a clip that is shorter than a window.

        Raises:
            ValueError: the waveform is not ``[B, T]``, or has fewer than ``length - hop`` samples (240), where the
                reference fails too.
        """
        if waveform.ndim != 2 or waveform.shape[1] < self.length - self.hop:
            raise ValueError(
                f"VGGishFrontEnd needs a waveform [B, T] of at least {self.length - self.hop} samples "
                f"({self.sample_rate} Hz), got {list(waveform.shape)}. Average the channels; leave such a clip out."
            )
        with torch.autocast(waveform.device.type, enabled=False):
            x = waveform.to(self.dtype)
            if not waveform.is_floating_point():
                x = x / 32768
            if x.shape[1] < self.length:
                return x.new_zeros(len(x), 0, self.mel_bins, dtype=torch.float32)
            z = torch.fft.rfft(x.unfold(1, self.length, self.hop) * self.window, n=self.fft_size)
            # abs() guards against overflow, which sounds need not, and took five times as long on a processor.
            magnitude = torch.addcmul(z.real.square(), z.imag, z.imag).sqrt()
            return (magnitude @ self.triangles + self.log_offset).log().float()

    def forward(self, waveform: Tensor) -> Tensor:
        """Examples of a batch.

        Args:
            waveform: see `log_mel`.

        Returns:
            float32 ``[B, N, 1, example_frames, mel_bins]`` with N = ``examples(T)``, which is 0 for a clip shorter than
            one example (0.975 s).

        Raises:
            ValueError: see `log_mel`.
        """
        x = self.log_mel(waveform)
        if x.shape[1] < self.example_frames:
            return x.new_zeros(len(x), 0, 1, self.example_frames, self.mel_bins)
        return x.unfold(1, self.example_frames, self.example_hop).transpose(2, 3).unsqueeze(2)


def complete(examples: Tensor, count: int, fill: Literal["repeat", "zeros"]) -> Tensor:
    """Bring a clip to a fixed number of examples as AVSBench does.

    Args:
        examples: ``[B, N, 1, frames, bands]``.
        count: wanted number.
        fill: ``repeat`` the last example (S4 and MS3, 5), or append ``zeros`` (AVSS, 10), which are no silence: that
            is ln 0.01.

    Returns:
        ``[B, count, 1, frames, bands]``.

    Raises:
        ValueError: there are more examples than wanted, or none to repeat.
    """
    missing = count - examples.shape[1]
    if missing < 0:
        raise ValueError(
            f"the clips have {examples.shape[1]} VGGish examples, more than the {count} wanted. Cut the sound to "
            f"{count} seconds."
        )
    if fill == "zeros":
        rest = examples.new_zeros(len(examples), missing, *examples.shape[2:])
    elif examples.shape[1]:
        rest = examples[:, -1:].expand(-1, missing, *examples.shape[2:])
    else:
        raise ValueError("a clip shorter than one VGGish example (0.975 s) has none to repeat. Pad the sound to 1 s.")
    return torch.cat([examples, rest], dim=1)
