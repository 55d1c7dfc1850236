from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from avloc.frontends import fbsp
from avloc.frontends.fbsp import FBSP, FBSPSpectrogram, frame

SMALL = {"n_fft": 64, "hop_length": 14, "win_length": 50}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kernel(m: float, fb: float, fc: float, taps: int) -> np.ndarray:
    """One kernel, tap by tap, in double precision."""
    values = []
    for i in range(taps):
        t = math.pi * (2 * i / (taps - 1) - 1)
        z = fb * t / (m + 1e-8)
        base = complex(math.sin(z) / z if z else 1.0)
        values.append(math.sqrt(fb) * base**m * np.exp(-1j * fc * t) / math.sqrt(taps))
    return np.array(values)


@pytest.mark.parametrize(("samples", "left", "frames"), [(10, 0, 1), (12, 0, 2), (14, 1, 3), (16, 0, 3), (4, 3, 1)])
def test_frames_share_their_zeros_between_the_ends(samples: int, left: int, frames: int) -> None:
    x = torch.arange(1.0, samples + 1)
    got = frame(x[None], 10, 3)[0]
    assert len(got) == frames
    for n, row in enumerate(got.tolist()):
        places = [n * 3 + i - left for i in range(10)]
        assert row == [float(p + 1) if 0 <= p < samples else 0.0 for p in places]


def test_kernels_against_one_tap_at_a_time() -> None:
    bank = FBSP(64, 4)
    m, fb, fc = [0.0, 1.5, 0.4, 2.0], [1.0, 2.0, 3.0, 4.5], [3.0, 7.25, 20.0, 0.5]
    with torch.no_grad():
        for parameter, values in zip((bank.m, bank.fb, bank.fc), (m, fb, fc), strict=True):
            parameter.copy_(torch.tensor(values))
    got = torch.view_as_complex(bank()).detach().numpy()
    want = np.stack([kernel(*row, taps=64) for row in zip(m, fb, fc, strict=True)])
    assert (np.sin(2.0 * np.linspace(-np.pi, np.pi, 64) / 1.5) / np.linspace(-1, 1, 64) < 0).any()  # a base is negative
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_the_initial_kernels_are_a_fourier_basis() -> None:
    got = torch.view_as_complex(FBSP(32, 17)()).detach().numpy()
    t = np.linspace(-np.pi, np.pi, 32)
    np.testing.assert_allclose(got, np.exp(-1j * np.outer(np.arange(17), t)) / np.sqrt(32), atol=1e-6)


@pytest.mark.parametrize(("normalized", "length"), [(True, 1.0), (False, math.sqrt(48))])
def test_regulariser_measures_lengths(normalized: bool, length: float) -> None:
    bank = FBSP(48, 5, normalized)
    assert bank.regulariser() < 1e-9
    with torch.no_grad():
        bank.fb.fill_(4)  # doubles every length
    torch.testing.assert_close(bank.regulariser(), torch.tensor(length**2))


@pytest.mark.parametrize(("samples", "onesided"), [(200, True), (203, False), (30, True)])
def test_bands_against_a_loop(samples: int, onesided: bool) -> None:
    front = FBSPSpectrogram(**SMALL, onesided=onesided)
    with torch.no_grad():
        front.fbsp.fb.copy_(1 + 0.3 * noise(len(front.fbsp.fb), seed=1).abs())
        front.fbsp.m.copy_(noise(len(front.fbsp.m), seed=2).abs())
    sound = 9000 * noise(2, samples)
    got = front.bands(sound)
    n = 33 if onesided else 64
    rows, frames = n // 3, 1 + math.ceil(max(0, samples - 50) / 14)
    assert got.shape == (2, 3, rows, frames) == (2, 3, front.rows, front.frames(samples))
    i = np.arange(50) * 2 * np.pi / 50
    window = 0.35875 - 0.48829 * np.cos(i) + 0.14128 * np.cos(2 * i) - 0.01168 * np.cos(3 * i)
    lacking = 50 + (frames - 1) * 14 - samples
    for clip, image in zip(sound.double().numpy(), got.detach().numpy(), strict=True):
        x = np.pad((clip + 32768) * 2 / 65535 - 1, (lacking // 2, lacking - lacking // 2))
        for f in range(frames):
            padded = np.pad(x[f * 14 : f * 14 + 50] * window, (7, 7))
            for k in range(3 * rows):
                weights = kernel(*(p[k].item() for p in (front.fbsp.m, front.fbsp.fb, front.fbsp.fc)), taps=64)
                power = abs(padded @ weights) ** 2
                value = 10 ** (image[k // rows, k % rows, f] / 10)
                assert abs(value - power) <= 1e-3 * power + 1e-8


def test_zero_power_is_the_floor_and_nan_is_not() -> None:
    front = FBSPSpectrogram(**SMALL, scale_in=(-1.0, 1.0))
    silence = torch.zeros(2, 100)
    assert torch.allclose(front.bands(silence), torch.tensor(-180.0))
    silence[1, 50] = float("nan")
    assert front.bands(silence)[0].isfinite().all()
    assert front.bands(silence)[1].isnan().any()


def test_gradients_of_the_kernels_are_scaled_to_one_once_a_call() -> None:
    front = FBSPSpectrogram(**SMALL)
    with torch.no_grad():
        front.fbsp.m.copy_(noise(33, seed=3).abs())
    kernels = front.fbsp()
    loss = 1e3 * front.bands(9000 * noise(1, 200), kernels).mean() + 1e3 * front.fbsp.regulariser(kernels)
    loss.backward()
    for parameter in (front.fbsp.m, front.fbsp.fb, front.fbsp.fc):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.abs().max(), torch.tensor(1.0))


def test_the_direction_of_the_gradient_is_that_of_differences() -> None:
    bank, weight = FBSP(48, 6), noise(6, 48, 2, seed=5)
    with torch.no_grad():
        bank.m.copy_(torch.linspace(1.5, 2.5, 6))  # below 1 the slope is infinite where the base changes its sign
        bank.fb.fill_(1.3)
    (bank() * weight).sum().backward()
    for parameter in (bank.m, bank.fb, bank.fc):
        differences = torch.zeros(6)
        for i in range(6):
            values = []
            for step in (1e-2, -1e-2):
                with torch.no_grad():
                    parameter[i] += step
                    values.append((bank() * weight).sum())
                    parameter[i] -= step
            differences[i] = (values[0] - values[1]) / 2e-2
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, differences / differences.abs().max(), atol=1e-3, rtol=0)


def test_no_gradient_reaches_the_sound() -> None:
    sound = noise(1, 200).requires_grad_()
    FBSPSpectrogram(**SMALL).bands(sound).sum().backward()
    assert sound.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_never_reach_it(dtype: torch.dtype) -> None:
    want = FBSPSpectrogram().bands(9000 * noise(1, 4000))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = FBSPSpectrogram().to(dtype).bands(9000 * noise(1, 4000))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=0, rtol=0)


def test_its_products_are_exact_where_others_may_be_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(*arguments: object) -> Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return frame(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fbsp, "frame", spy)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        FBSPSpectrogram(**SMALL).bands(noise(1, 100))
        assert seen == ["highest"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_state_is_that_of_the_checkpoints() -> None:
    shapes = {k: tuple(v.shape) for k, v in FBSPSpectrogram().state_dict().items()}
    assert shapes == {
        "window": (1654,),
        "fbsp.m": (1025,),
        "fbsp.fb": (1025,),
        "fbsp.fc": (1025,),
        "fbsp.bias": (0,),
    }


@pytest.mark.parametrize("shape", [(1, 0), (100,), (1, 2, 100)])
def test_unusable_waveform_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, T\] with samples, got \[" + ", ".join(map(str, shape))):
        FBSPSpectrogram(**SMALL).bands(torch.zeros(shape))


def test_a_window_longer_than_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="win_length 80 exceeds n_fft 64"):
        FBSPSpectrogram(64, 14, 80)
