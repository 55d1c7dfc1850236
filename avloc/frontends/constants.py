"""Windows and triangles that stay what they are, whatever the network around them is cast to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

__all__ = ["Constants", "Float32Window", "refuse_no_band"]


class Constants(nn.Module, ABC):
    """A front end whose buffers follow its device, never its dtype: half precision holds neither power spectra nor the
    feet of narrow triangles. They are no part of the state. A subclass calls `keep_constants` in its constructor."""

    window: Tensor
    dtype: torch.dtype = torch.float32

    @abstractmethod
    def constants(self) -> dict[str, Tensor]:
        """The buffers by name, of ``dtype``, on the CPU; one of them is ``window``."""

    def keep_constants(self) -> None:
        for name, constant in self.constants().items():
            self.register_buffer(name, constant, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.window.dtype != self.dtype:  # half() and Lightning's precision plugins convert buffers too
            for name, constant in self.constants().items():
                setattr(self, name, constant.to(self.window.device))
        return self


class Float32Window(nn.Module):
    """A front end whose ``window`` is part of official states, and stays float32 whatever the network is cast to."""

    window: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        window = self.window
        super()._apply(fn, recurse)
        if self.window.dtype != torch.float32:
            self.window = window.to(self.window.device)
        return self


def refuse_no_band(name: str, low_hz: float, high_hz: float, sample_rate: int) -> None:
    """Raises `ValueError` where a front end's band is empty or reaches beyond half the sample rate."""
    if not 0 <= low_hz < high_hz <= sample_rate / 2:
        raise ValueError(f"{name}: {low_hz} to {high_hz} Hz is no band below half of {sample_rate} Hz.")
