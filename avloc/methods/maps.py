"""What methods that compare tokens make of their similarities before they become a map. Torch only."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

__all__ = ["Transform", "transformed"]

Transform = Literal["none", "squared"]


def transformed(similarity: Tensor, transform: Transform) -> Tensor:
    """Similarities as they are, or ``relu(x)^2``.

    The square keeps the order of what is positive and sharpens the map: a metric that cuts min-max normalised maps at
    a fixed value rewards that, whatever the method knows. So all rows that are compared get it, or none.

    Args:
        similarity: float, any shape.
        transform: ``none`` or ``squared``.
    """
    return similarity.clamp(min=0).square() if transform == "squared" else similarity
