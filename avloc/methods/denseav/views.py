"""What DenseAV's training does to sounds and pictures of a batch: another clip spliced in, stretches silenced, pictures
beside each other. The masks say what is left of the clip's own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["own_samples", "quad_mixed", "silenced", "spliced"]

RATE = 16_000
SPLICE = (1.0, 4.0)  # seconds
RAMP = 8_000  # samples of the shortest cross-fade
SHORTEST = 0.5  # seconds that are left


def own_samples(waveform: Tensor) -> Tensor:
    """bool ``[B, n]``: up to the last sample that is not zero, so that what a sound was filled up with is not its own.
    Of a sound of zeros, all."""
    sounds = waveform != 0
    after = sounds.flip(-1).cummax(-1).values.flip(-1)
    return after | ~sounds.any(-1, keepdim=True)


def spliced(waveform: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Into each sound a stretch of 1 to 4 s of the next one, cross-faded by cosine ramps; sounds that are not longer
    stay.

    Args:
        waveform: ``[B, n]``.
        real: bool ``[B, n]``.

    Returns:
        waveform ``[B, n]``, and 1 where a sample is the clip's own, ``[B, n]``.
    """
    B, n = waveform.shape
    low, high = (int(s * RATE) for s in SPLICE)
    length = torch.randint(low, high + 1, (B, 1), device=waveform.device)
    whole = real.sum(-1, keepdim=True)
    fits = length < whole
    start = (torch.rand(B, 1, device=waveform.device) * (whole - length).clamp_min(0)).long()
    place = torch.arange(n, device=waveform.device) - start
    inside = (place >= 0) & (place < length) & fits
    ramp = torch.minimum(torch.maximum(length // 4, torch.full_like(length, RAMP)), length // 2).clamp_min(1)
    near = torch.minimum(place, length - 1 - place).clamp_min(0)
    share = (0.5 - 0.5 * (math.pi * (near / ramp).clamp_max(1)).cos()) * inside
    other = waveform.roll(1, 0)
    return waveform * (1 - share) + other * share, (~inside).float()


def silenced(waveform: Tensor, real: Tensor, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Of some sounds only one stretch of at least 0.5 s is left; the rest is zero and not real any more.

    Args:
        waveform, real: as for `spliced`.
        share: of the sounds.
    """
    B, n = waveform.shape
    whole = real.sum(-1, keepdim=True)
    least = torch.full_like(whole, int(SHORTEST * RATE)).minimum(whole)
    length = least + (torch.rand(B, 1, device=waveform.device) * (whole - least)).long()
    start = (torch.rand(B, 1, device=waveform.device) * (whole - length)).long()
    place = torch.arange(n, device=waveform.device) - start
    kept = ((place >= 0) & (place < length)) | (torch.rand(B, 1, device=waveform.device) >= share)
    return waveform * kept, real & kept


def quad_mixed(image: Tensor, share: float = 0.1) -> tuple[Tensor, Tensor]:
    """Some pictures become one quarter of a picture of four, the others those of the next clips.

    Args:
        image: normalised ``[B, 3, H, W]``, even sides.
        share: of the pictures.

    Returns:
        ``[B, 3, H, W]``, and 1 on the own quarter ``[B, 1, H, W]``.
    """
    B, _, H, W = image.shape
    small = F.interpolate(image, (H // 2, W // 2), mode="bilinear", align_corners=False, antialias=True)
    tiles = torch.stack([small.roll(k, 0) for k in range(4)], 1)  # the own one first
    order = torch.rand(B, 4, device=image.device).argsort(1)  # which tile lies in which quarter
    rows = torch.arange(B, device=image.device)[:, None]
    quarters = tiles[rows, order].unflatten(1, (2, 2))
    four = quarters.permute(0, 3, 1, 4, 2, 5).reshape(B, 3, 2 * (H // 2), 2 * (W // 2))
    own = (order == 0).unflatten(1, (2, 2)).float()[:, None]
    mask = own.repeat_interleave(H // 2, 2).repeat_interleave(W // 2, 3)
    drawn = (torch.rand(B, 1, 1, 1, device=image.device) < share) & (B > 3)
    return torch.where(drawn, four, image), torch.where(drawn, mask, torch.ones_like(mask))
