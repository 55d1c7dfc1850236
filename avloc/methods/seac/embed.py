"""What a mask looks like: a mixture of two CLIP embeddings, of its crop and of the whole frame (equations 1 to 3).

The paper's equations 1 to 3. Crops of n masks are cut and resized by two matrix products, without a loop over
masks. All of it is frozen, so it is computed once per frame and stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.backbones.openclip import OpenCLIP, normalise

__all__ = ["Mixture", "blur", "crops", "frames", "tight_boxes"]

BICUBIC = -0.5  # Keys' parameter, as in Pillow


@dataclass(frozen=True)
class Mixture:
    """Readings of the mask embedding. Stored features depend on every one of them.

    Args:
        lambda_local: weight of the crop, the frame has the rest. Paper: 0.6, tried in steps of 0.2.
        blur_sigma: of the frame's surroundings, pixels of the picture as given; not stated. 100 as in public ReCLIP
            code; 10 and 30 are alternatives, 0 leaves the frame sharp.
        crop: the mask's tight box is ``stretched`` to CLIP's square, or padded with black to a ``square`` first; not
            stated. CLIP's own centre crop would cut objects off.
        scale: the two embeddings are mixed as they are (``raw``) or each at length 1 (``unit``); not stated.
        parts: keep the two embeddings instead of their mixture: twice the space, but one store serves every
            ``lambda_local``.

    Raises:
        ValueError: ``lambda_local`` outside of [0, 1].
    """

    lambda_local: float = 0.6
    blur_sigma: float = 100.0
    crop: Literal["stretched", "square"] = "stretched"
    scale: Literal["raw", "unit"] = "raw"
    parts: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.lambda_local <= 1:
            raise ValueError(f"SeAC: lambda_local is a share from 0 to 1, got {self.lambda_local:g}.")

    @property
    def recipe(self) -> dict[str, str]:
        """What stored features depend on."""
        told = {f"mixture.{name}": str(value) for name, value in asdict(self).items()}
        return {k: v for k, v in told.items() if not (self.parts and k == "mixture.lambda_local")}

    @torch.no_grad()
    def embed(self, clip: OpenCLIP, image: Tensor, masks: Tensor, chunk: int = 32) -> dict[str, Tensor]:
        """Every mask of a picture as CLIP sees it.

        Args:
            clip: frozen.
            image: uint8 ``[3, H, W]`` RGB, on the device of ``clip``.
            masks: bool ``[n, H, W]``, none empty.
            chunk: masks that are worked on together.

        Returns:
            float32 ``[n, D]``: ``features``, f_n of equation 1; or ``local`` and ``whole`` with ``parts``.
        """
        pixels, side, share = image.float(), clip.image_size, self.lambda_local
        local = whole = torch.zeros(len(masks), clip.width, device=image.device)
        if self.parts or share > 0:
            square = self.crop == "square"
            seen = (crops(pixels, some, side, square) for some in masks.split(chunk))
            local = torch.cat([self._look(clip, x) for x in seen])
        if self.parts or share < 1:
            blurred = blur(pixels, self.blur_sigma)
            seen = (frames(pixels, blurred, some, side) for some in masks.split(chunk))
            whole = torch.cat([self._look(clip, x) for x in seen])
        parts = {"local": local, "whole": whole}
        return parts if self.parts else {"features": self.mixed(parts)}

    def mixed(self, embedded: Mapping[str, Tensor]) -> Tensor:
        """f_n ``[..., D]`` of what `embed` gave; of parts, float32."""
        if "features" in embedded:
            return embedded["features"]
        share = self.lambda_local
        return share * embedded["local"].float() + (1 - share) * embedded["whole"].float()

    def _look(self, clip: OpenCLIP, image: Tensor) -> Tensor:
        f = clip.encode_image(normalise(image)).float()
        return F.normalize(f, dim=-1) if self.scale == "unit" else f


def crops(image: Tensor, masks: Tensor, side: int, square: bool = False) -> Tensor:
    """Equation 2: each mask's tight box, black outside of the mask, resized straight to a square.

    Args:
        image: float ``[3, H, W]`` 0 to 255.
        masks: bool ``[n, H, W]``, none empty.
        side: S, pixels.
        square: pad the box to a square around its centre first.

    Returns:
        float ``[n, 3, S, S]`` 0 to 255; bicubic with antialiasing, as Pillow resizes but not rounded.
    """
    x1, y1, x2, y2 = tight_boxes(masks).float().unbind(-1)
    if square:
        longest = torch.maximum(x2 - x1, y2 - y1)
        x1, x2 = square_span(x1, x2, longest)
        y1, y2 = square_span(y1, y2, longest)
    rows = resize_weights(y1, y2, image.shape[1], side)
    columns = resize_weights(x1, x2, image.shape[2], side)
    masked = image * masks[:, None]
    return (rows[:, None] @ masked @ columns[:, None].mT).clamp(0, 255)


def frames(image: Tensor, blurred: Tensor, masks: Tensor, side: int) -> Tensor:
    """Equation 3: the whole frame with everything but the mask blurred, ``[n, 3, S, S]`` 0 to 255.

    Args:
        image, blurred: float ``[3, H, W]``.
        masks: bool ``[n, H, W]``.
        side: S, pixels.
    """
    mixed = torch.where(masks[:, None], image, blurred)
    return F.interpolate(mixed, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)


def tight_boxes(masks: Tensor) -> Tensor:
    """int64 ``[n, 4]`` x1, y1, x2, y2 of masks ``[n, H, W]``, ends exclusive; meaningless for an empty one."""

    def span(seen: Tensor) -> tuple[Tensor, Tensor]:
        there, length = seen.to(torch.uint8), seen.shape[1]
        return there.argmax(1), length - there.flip(1).argmax(1)

    (x1, x2), (y1, y2) = span(masks.any(1)), span(masks.any(2))
    return torch.stack([x1, y1, x2, y2], dim=-1)


def square_span(start: Tensor, end: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Whole pixels around the same centre; may begin before the picture."""
    new = torch.floor((start + end - length) / 2)
    return new, new + length


def resize_weights(start: Tensor, end: Tensor, length: int, side: int) -> Tensor:
    """Rows of weights that cut ``[start, end)`` out of an axis and resize it: ``[n, S, length]``, bicubic, antialiased.

    The kernel widens where the span shrinks; taps end with the span and are normalised over it, as in Pillow. Where the
    span leaves the axis it holds zeros.
    """
    span = (end - start)[:, None]
    scale = span / side
    stretch = scale.clamp(min=1)
    centre = (torch.arange(side, device=start.device) + 0.5) * scale  # [n, S] within the span
    taps = int(torch.ceil(4 * stretch.max())) + 2
    place = torch.floor(centre - 2 * stretch)[..., None] + torch.arange(taps, device=start.device)
    weight = cubic((place + 0.5 - centre[..., None]) / stretch[..., None])
    weight = weight.masked_fill((place < 0) | (place >= span[..., None]), 0)
    weight = weight / weight.sum(-1, keepdim=True)
    place = place + start[:, None, None]
    weight = weight.masked_fill((place < 0) | (place >= length), 0)
    index = place.clamp(0, length - 1).long()
    return torch.zeros(len(start), side, length, device=start.device).scatter_add_(2, index, weight)


def cubic(x: Tensor) -> Tensor:
    """Keys' kernel, zero from 2 on."""
    x = x.abs()
    near = ((BICUBIC + 2) * x - (BICUBIC + 3)) * x * x + 1
    far = BICUBIC * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``[3, H, W]``, edges extended: two matrix products, so a wide kernel costs no more.

    The kernel ends at 4 sigma. ``sigma`` 0 gives the image back.
    """
    if sigma <= 0:
        return image
    rows, columns = (blur_weights(n, sigma, image.device) for n in image.shape[1:])
    return rows @ image @ columns.T


def blur_weights(length: int, sigma: float, device: torch.device) -> Tensor:
    """``[length, length]``, rows sum to 1."""
    reach = math.ceil(4 * sigma)
    offset = torch.arange(-reach, reach + 1, device=device)
    weight = torch.exp(-0.5 * (offset / sigma) ** 2)
    index = (torch.arange(length, device=device)[:, None] + offset).clamp(0, length - 1)
    table = torch.zeros(length, length, device=device)
    return table.scatter_add_(1, index, (weight / weight.sum()).expand(length, -1))
