"""Mean and deviation of a tower's pixels, on its device without waiting for a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["per_channel"]


def per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """float32 ``[C, 1, 1]``, filled on the device: a tensor made of numbers is copied there, and that waits until all
    that was asked of the device before is done."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])
