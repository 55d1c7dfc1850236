"""What happens to a score map before it is thresholded: resizing, normalisation, mixing with an object map.

The published evaluators of boxes differ in every one of these steps; a protocol names its own:

====================  =====================  =======================================  =======================
evaluator             map                    to 224 pixels                            cut
====================  =====================  =======================================  =======================
ACL-SSL 57f4a6c       sigmoid, no min-max    bicubic, align_corners False             ``>=`` 0.05 .. 0.95
EZ-VSL 95ff5bf        min-max                bilinear, align_corners True             ``>=`` its upper median
SLAVC 05b429c         affine, or min-max     bicubic, align_corners True              ``>=`` 0.5, or by rank
SSLalignment e7ae3c5  min-max                bilinear, align_corners True             ``>`` its upper median
LVS 8fe8cbb           negated, min-max, 1-x  bilinear, half-pixel centres             ``>`` its upper median
====================  =====================  =======================================  =======================
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

__all__ = ["affine", "flip_minmax", "minmax", "mix", "resize"]


def resize(
    maps: Tensor,
    size: tuple[int, int],
    mode: Literal["bilinear", "bicubic"] = "bilinear",
    align_corners: bool = False,
) -> Tensor:
    """Bring maps to the grid of the ground truth, in float32.

    Args:
        maps: ``[B, H, W]`` or ``[B, S, H, W]``, any floating type. Maps that already have ``size`` are not
            touched.
        size: height and width of the ground truth, pixels.
        mode: bicubic uses a = -0.75.
        align_corners: True in EZ-VSL, SSLalign and SLAVC; False in T-VSL and ACL, and equal to OpenCV's
            ``INTER_LINEAR`` (half-pixel centres, no antialiasing) in LVS.

    Returns:
        float32 ``[..., *size]``.
    """
    maps = maps.float()
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    planes = maps.reshape(-1, 1, *maps.shape[-2:])
    planes = F.interpolate(planes, size=size, mode=mode, align_corners=align_corners)
    return planes.reshape(*maps.shape[:-2], *size)


def minmax(maps: Tensor) -> Tensor:
    """Each map to 0..1; a constant map stays as it is, without a division (EZ-VSL, SSLalign, LVS).

    Args:
        maps: ``[..., H, W]``.
    """
    low = maps.amin((-2, -1), keepdim=True)
    span = maps.amax((-2, -1), keepdim=True) - low
    constant = ~(span > 0)
    return (maps - low.masked_fill(constant, 0)).div_(span.masked_fill(constant, 1))


def flip_minmax(maps: Tensor) -> Tensor:
    """LVS: negate, `minmax`, then ``1 - x``. A constant map c becomes 1 + c.

    Args:
        maps: ``[..., H, W]``.
    """
    return 1 - minmax(-maps)


def affine(maps: Tensor, tau: float = 0.03) -> Tensor:
    """SLAVC: logits ``cosine / tau`` to 0..1 by their fixed range, ``(x + 1/tau) / (2/tau)``."""
    return (maps + 1 / tau) / (2 / tau)


def mix(maps: Tensor, objects: Tensor, alpha: float) -> Tensor:
    """Object-guided localisation of EZ-VSL: ``alpha * minmax(maps) + (1 - alpha) * minmax(objects)``.

    Args:
        maps: audio-visual maps ``[..., H, W]``.
        objects: object maps of the same shape.
        alpha: weight of the audio-visual map, 0.4 in EZ-VSL and SSLalign.
    """
    return alpha * minmax(maps) + (1 - alpha) * minmax(objects)
