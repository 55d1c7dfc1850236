"""AudioCLIP's learnable spectrogram of frequency B-spline wavelets (AndreyGuzhov/AudioCLIP)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from scipy.signal import get_window
from torch import Tensor, nn
from torch.nn import functional as F

from avloc.frontends.constants import Float32Window

__all__ = ["FBSP", "FBSPSpectrogram", "frame"]

EPS = 1e-8


def frame(waveform: Tensor, length: int, hop: int) -> Tensor:
    """Frames that cover every sample; the zeros that the last one lacks are split between both ends.

    Args:
        waveform: ``[B, T]``.
        length: of a frame, samples.
        hop: from one frame to the next, samples.

    Returns:
        ``[B, frames, length]`` with ``frames = 1 + ceil((T - length) / hop)``, 1 for clips up to ``length``. The
        odd zero goes to the end.
    """
    samples = waveform.shape[1]
    hops = math.ceil(max(0, samples - length) / hop)
    lacking = length + hops * hop - samples
    return F.pad(waveform, (lacking // 2, lacking - lacking // 2)).unfold(1, length, hop)


@contextmanager
def exact_matmul() -> Iterator[None]:
    """No TF32 inside: its ten bits put a floor of -60 dB under spectra that are read on a decibel scale."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class FBSP(nn.Module):
    """Complex kernels ``sqrt(fb) sinc(fb t / m)^m exp(-i fc t)`` of learnable order m, bandwidth fb and centre fc.

    ``sinc(z) = sin(z) / z`` and t runs from -pi to pi. The power is a complex one: a negative base turns it by
    ``m pi``. With the initial m = 0, fb = 1, fc = bin number the kernels are those of a discrete Fourier transform.
    Always float32, after ``module.half()`` and ``module.double()`` too: half precision has no bin 1023.5.

    Args:
        n_fft: taps of a kernel.
        kernels: number of kernels N.
        normalized: divide by ``sqrt(n_fft)``, so that the initial kernels have unit length.
    """

    t: Tensor
    bias: Tensor

    def __init__(self, n_fft: int, kernels: int, normalized: bool = True) -> None:
        super().__init__()
        self.length = 1.0 if normalized else math.sqrt(n_fft)  # of an initial kernel
        self.norm = math.sqrt(n_fft) if normalized else 1.0
        self.m = nn.Parameter(torch.zeros(kernels))
        self.fb = nn.Parameter(torch.ones(kernels))
        self.fc = nn.Parameter(torch.arange(kernels, dtype=torch.float32))
        self.register_buffer("bias", torch.zeros(0))  # the official files carry it, empty
        t = torch.linspace(-1, 1, n_fft, dtype=torch.float32, device="cpu") * math.pi + EPS
        self.register_buffer("t", t, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FBSP:
        def placed(x: Tensor) -> Tensor:
            y = fn(x)
            return y if y.dtype == torch.float32 else x.to(y.device)

        super()._apply(placed, recurse)
        return self

    def forward(self) -> Tensor:
        """The kernels, float32 ``[N, n_fft, 2]`` (real, imaginary part).

        The gradients of m, fb and fc are each divided by their largest magnitude (plus 1e-8), once for every call:
        what needs the kernels twice in a step should share them, as the published code does.
        """
        with torch.autocast(self.t.device.type, enabled=False):
            m, fb, fc = (unit_gradient(p).unsqueeze(1) for p in (self.m, self.fb, self.fc))
            z = fb * self.t / (m + EPS)
            base = torch.where(z == 0, 1.0, torch.sin(z) / torch.where(z == 0, 1.0, z))
            size = base.abs().pow(m)
            turned = base < 0
            cos = torch.where(turned, torch.cos(m * math.pi), 1.0)
            sin = torch.where(turned, torch.sin(m * math.pi), 0.0)
            wave = fc * self.t
            real = cos * torch.cos(wave) + sin * torch.sin(wave)
            imaginary = sin * torch.cos(wave) - cos * torch.sin(wave)
            return torch.stack([real, imaginary], dim=2) * (fb.sqrt() * size / self.norm).unsqueeze(2)

    def regulariser(self, kernels: Tensor | None = None) -> Tensor:
        """Mean squared departure of the kernels' lengths from their initial one: a term of AudioCLIP's training loss.

        Args:
            kernels: what `forward` gave; None computes them.

        Returns:
            float32 ``[]``.
        """
        kernels = self() if kernels is None else kernels
        return (kernels.flatten(1).norm(dim=1) - self.length).square().mean()


def unit_gradient(x: Tensor) -> Tensor:
    """``x``, whose gradient is divided by its largest magnitude."""
    y = x.view_as(x)
    if y.requires_grad:
        y.register_hook(lambda g: g / (g.abs().amax() + EPS))
    return y


class FBSPSpectrogram(Float32Window):
    """Waveform to three bands of decibels, which the audio tower reads like the three colours of a picture.

    The state is that of the checkpoints: ``window`` and ``fbsp.{m, fb, fc, bias}``. Always float32, under autocast
    and after ``module.half()`` too.

    Args:
        n_fft: taps of a kernel; frames are padded with zeros to it.
        hop_length: samples.
        win_length: samples.
        window: a name that `scipy.signal.get_window` knows; the periodic form is used.
        normalized: kernels of unit length.
        onesided: ``n_fft // 2 + 1`` kernels instead of ``n_fft``.
        scale_in: range of the sample values.
        scale_out: range to which the samples are brought, by a line.
        log10_eps: power that stands for zero.

    Raises:
        ValueError: the window is longer than a kernel.
    """

    def __init__(
        self,
        n_fft: int = 2048,
        hop_length: int = 561,
        win_length: int = 1654,
        window: str = "blackmanharris",
        normalized: bool = True,
        onesided: bool = True,
        scale_in: tuple[float, float] = (-32768.0, 32767.0),
        scale_out: tuple[float, float] = (-1.0, 1.0),
        log10_eps: float = 1e-18,
    ) -> None:
        super().__init__()
        if win_length > n_fft:
            raise ValueError(f"FBSPSpectrogram: win_length {win_length} exceeds n_fft {n_fft}.")
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length
        self.scale_in, self.scale_out, self.log10_eps = scale_in, scale_out, log10_eps
        values = torch.as_tensor(get_window(window, win_length, fftbins=True), dtype=torch.float32)
        self.register_buffer("window", values)
        kernels = n_fft // 2 + 1 if onesided else n_fft
        self.fbsp = FBSP(n_fft, kernels, normalized)
        self.rows = kernels // 3

    def frames(self, samples: int) -> int:
        """Number of frames of a clip of ``samples`` samples."""
        return 1 + math.ceil(max(0, samples - self.win_length) / self.hop_length)

    def bands(self, waveform: Tensor, kernels: Tensor | None = None) -> Tensor:
        """Decibels of the lowest ``3 rows`` kernels; no gradient reaches the waveform, as published.

        Args:
            waveform: floating point ``[B, T]`` with values in ``scale_in``; clips shorter than one frame are
                padded with zeros to it.
            kernels: what ``fbsp()`` gave, to share it with the regulariser; None computes them.

        Returns:
            float32 ``[B, 3, rows, frames]``; low, middle and high third of the kernels.

        Raises:
            ValueError: the waveform is not ``[B, T]`` or has no sample.
        """
        if waveform.ndim != 2 or waveform.shape[1] == 0:
            raise ValueError(f"FBSPSpectrogram needs a waveform [B, T] with samples, got {list(waveform.shape)}.")
        kernels = self.fbsp() if kernels is None else kernels
        (low, high), (bottom, top) = self.scale_in, self.scale_out
        with torch.autocast(waveform.device.type, enabled=False), exact_matmul():
            # Sounds in [-1, 1] leave this line quantised: its order of operations is part of the definition.
            x = ((waveform.detach().float() - low) * (top - bottom)) / (high - low) + bottom
            x = frame(x, self.win_length, self.hop_length) * self.window
            start = (self.n_fft - self.win_length) // 2  # the other taps would meet zeros
            taps = kernels[: 3 * self.rows, start : start + self.win_length]
            power = (x @ taps[..., 0].T).square() + (x @ taps[..., 1].T).square()
            power = torch.where(power == 0, self.log10_eps, power)  # NaN stays NaN
            return (10 * power.log10()).unflatten(2, (3, self.rows)).permute(0, 2, 3, 1)
