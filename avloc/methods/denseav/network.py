"""DenseAV: aligners behind two towers, inner products of every place with every step, and what is made of them.

Letters: K heads, C = K D channels, h w places, F rows of frequency (1 with HuBERT), T steps of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from avloc.backbones.dino import DINO, EPSILON
from avloc.backbones.hubert import HuBERT

__all__ = [
    "Aggregation",
    "Aligner",
    "AlignerType",
    "Calibration",
    "DenseAVNetwork",
    "demo_maps",
    "masked_mean",
    "prompted_maps",
    "smoothed",
    "step_masks",
]

AlignerType = Literal[
    "image_linear",
    "image_linear_no_norm",
    "image_idlinear",
    "image_norm",
    "image_id",
    "audio_linear",
    "audio_sa",
    "audio_sa_sa",
    "audio_3_3_pool",
    "audio_sa_3_3_pool",
    "audio_sa_3_3_pool_2",
]
HEADS = 6  # of an aligner's block
FAR = 1e7  # what a masked step lacks of being the maximum
HEARD = 0.01  # of a step that is real sound

Pair = tuple[Tensor, Tensor | None]
"""Features ``[B, C, h, w]`` or ``[B, C, F, T]``, and the class vector ``[B, C]``."""


class Norm(nn.Module):
    """LayerNorm over the channels of both."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, EPSILON)

    def forward(self, x: Tensor, cls: Tensor | None) -> Pair:
        return self.places(x), None if cls is None else self.norm(cls)

    def places(self, x: Tensor) -> Tensor:
        """Of the features alone."""
        out: Tensor = self.norm(x.movedim(1, -1))
        return out.movedim(-1, 1)


class Linear(nn.Module):
    """A convolution of one place; the class vector has a layer of its own, and no norm.

    Args:
        norm: of the features before it.
        cls: whether the class vector has a layer.
    """

    def __init__(self, dim: int, out: int, norm: bool = True, cls: bool = True) -> None:
        super().__init__()
        self.norm = Norm(dim) if norm else None
        self.layer = nn.Conv2d(dim, out, 1)
        self.cls_layer = nn.Linear(dim, out) if cls else None

    def forward(self, x: Tensor, cls: Tensor | None) -> Pair:
        x = self.layer(x if self.norm is None else self.norm.places(x))
        return x, cls if cls is None or self.cls_layer is None else self.cls_layer(cls)


class MeanOfRows(nn.Module):
    """The mean over frequency."""

    def forward(self, x: Tensor, cls: Tensor | None) -> Pair:
        return x.mean(2, keepdim=True), cls


class Pool(nn.Module):
    """Three steps of time become one.

    Args:
        norm: of both before it.
        cls: whether the class vector has a layer.
    """

    def __init__(self, dim: int, out: int, norm: bool = False, cls: bool = False) -> None:
        super().__init__()
        self.norm = Norm(dim) if norm else None
        self.layer = nn.Conv2d(dim, out, (1, 3), stride=(1, 3))
        self.cls_layer = nn.Linear(dim, out) if cls else None

    def forward(self, x: Tensor, cls: Tensor | None) -> Pair:
        x, cls = (x, cls) if self.norm is None else self.norm(x, cls)
        return self.layer(x), cls if cls is None or self.cls_layer is None else self.cls_layer(cls)


class Attention(nn.Module):
    """A transformer's block over the class vector and all places, without positions. Channels that six heads cannot
    share out are filled up with zeros in front."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fill = -dim % HEADS
        norm = partial(nn.LayerNorm, eps=EPSILON)
        self.block = Block(dim + self.fill, HEADS, mlp_ratio=4, qkv_bias=True, norm_layer=norm)

    def forward(self, x: Tensor, cls: Tensor | None) -> Pair:
        tokens = x.flatten(2).mT
        if cls is not None:
            tokens = torch.cat([cls[:, None], tokens], 1)
        tokens = self.block(F.pad(tokens, (self.fill, 0)))[..., self.fill :]
        if cls is not None:
            cls, tokens = tokens[:, 0], tokens[:, 1:]
        return tokens.mT.unflatten(-1, x.shape[2:]), cls


class Sequence(nn.Module):
    """One part behind the other."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.mod_list = nn.ModuleList(parts)

    def forward(self, x: Tensor, cls: Tensor | None) -> Pair:
        for part in self.mod_list:
            x, cls = part(x, cls)
        return x, cls


class Identity(nn.Module):
    def forward(self, x: Tensor, cls: Tensor | None) -> Pair:
        return x, cls


def Aligner(kind: AlignerType, dim: int, out: int) -> nn.Module:  # noqa: N802  a module, whichever class it has
    """What brings a tower's features to the shared width; its parameters have the release's names.

    Args:
        kind: ``image_linear`` and ``audio_sa_3_3_pool_2`` are those of the released models.
        dim, out: widths; equal where the kind has no layer.

    Raises:
        ValueError: another kind.
    """
    match kind:
        case "image_linear":
            return Linear(dim, out)
        case "image_linear_no_norm":
            return Linear(dim, out, norm=False)
        case "image_idlinear":
            return Linear(dim, out, norm=False, cls=False)
        case "image_norm":
            return Norm(dim)
        case "image_id":
            return Identity()
        case "audio_linear":
            return Sequence(Linear(dim, out), MeanOfRows())
        case "audio_sa":
            return Sequence(Linear(dim, out), MeanOfRows(), Attention(out))
        case "audio_sa_sa":
            return Sequence(MeanOfRows(), Linear(dim, out), Attention(out), Attention(out))
        case "audio_3_3_pool":
            return Sequence(Linear(dim, out), MeanOfRows(), *(Pool(out, out, norm=True) for _ in range(2)))
        case "audio_sa_3_3_pool":
            pools = (Pool(out, out, norm=True) for _ in range(2))
            return Sequence(Linear(dim, out), MeanOfRows(), *pools, Attention(out))
        case "audio_sa_3_3_pool_2":
            return Sequence(MeanOfRows(), Norm(dim), Pool(dim, out, cls=True), Pool(out, out), Attention(out))
        case _:
            raise ValueError(f"No aligner {kind!r}; there are {', '.join(get_args(AlignerType))}.")


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension where ``mask`` is true."""
    mask = mask.to(x.dtype)
    return (x * mask).sum(-1) / mask.sum(-1).clamp_min(1e-3)


def masked_max(x: Tensor, mask: Tensor) -> Tensor:
    """Maximum over the last dimension where ``mask`` is true."""
    return (x - FAR * (1 - mask.to(x.dtype))).amax(-1)


@dataclass(frozen=True)
class Aggregation:
    """How inner products become similarities.

    Args:
        kind: ``misa``: the best place of each step, mean over true steps (released); ``mima``: the best step, too;
            ``sisa``: mean over all; ``paired``: half of ``misa``, half of each place's best step.
        heads: K.
        head: ``max_elementwise``: the largest head of each cell, before anything else (released); ``sum`` or ``max`` of
            the heads' similarities.
        cls: add the class vectors' inner product of the head to every cell.
        nonneg: cells are at least 0.
        mask_silence: leave out steps that the sound was filled up with.
        chunk: sounds whose cells with all pictures are held at once.
    """

    kind: Literal["misa", "mima", "sisa", "paired"] = "misa"
    heads: int = 1
    head: Literal["max_elementwise", "sum", "max"] = "max_elementwise"
    cls: bool = False
    nonneg: bool = False
    mask_silence: bool = True
    chunk: int = 8

    def raw(self, image: Tensor, audio: Tensor, *cls: Tensor) -> Tensor:
        """Inner products of every sound with every picture, ``[A, V, K, h, w, F, T]``.

        Args:
            image: ``[V, C, h, w]``.
            audio: ``[A, C, F, T]``.
            cls: of the pictures ``[V, C]`` and of the sounds ``[A, C]``; only for `cls`.
        """
        v, a = (x.unflatten(1, (self.heads, -1)) for x in (image, audio))
        S = torch.einsum("vkdhw,akdft->avkhwft", v, a)
        if self.cls:
            of_image, of_audio = (x.unflatten(1, (self.heads, -1)) for x in cls)
            S = S + torch.einsum("vkd,akd->avk", of_image, of_audio)[..., None, None, None, None]
        return S

    def paired(self, image: Tensor, audio: Tensor, mask: Tensor, *cls: Tensor) -> Tensor:
        """Inner products of each sound with its own picture or pictures, 0 where the sound was filled up,
        ``[..., K, h, w, F, T]``.

        Args:
            image: ``[..., C, h, w]``; the dimensions in front go with those of the sounds.
            audio: ``[..., C, F, T]``.
            mask: ``[..., T]``.
            cls: ``[..., C]`` of both; only for `cls`.
        """
        v, a = (x.unflatten(-3, (self.heads, -1)) for x in (image, audio))
        S = torch.einsum("...kdhw,...kdft->...khwft", v, a) * mask[..., None, None, None, None, :].to(v.dtype)
        if self.cls:
            of_image, of_audio = (x.unflatten(-1, (self.heads, -1)) for x in cls)
            S = S + (of_image * of_audio).sum(-1)[..., None, None, None, None]
        return S

    def cells(self, S: Tensor, heads: bool = True) -> Tensor:
        """Cells after clamping, ``[..., h, w, F, T]``; with ``heads=False`` still of each head."""
        S = S.clamp_min(0) if self.nonneg else S
        if not heads:
            return S
        return S.sum(-5) if self.head == "sum" else S.amax(-5)

    def __call__(self, S: Tensor, mask: Tensor, heads: bool = True) -> Tensor:
        """Similarities ``[...]``; with ``heads=False`` of each head alone, ``[..., K]``.

        Args:
            S: ``[..., K, h, w, F, T]``.
            mask: bool, goes with ``[..., T]`` of S without K, h, w, F.
        """
        mask = mask if self.mask_silence else torch.ones_like(mask)
        S = S.clamp_min(0) if self.nonneg else S
        if heads and self.head == "max_elementwise":
            S = S.amax(-5, keepdim=True)
        steps = mask.unsqueeze(-2)  # [..., K, T]
        best = S.amax((-4, -3)).mean(-2)
        if self.kind == "misa":
            s = masked_mean(best, steps)
        elif self.kind == "mima":
            s = masked_max(best, steps)
        elif self.kind == "sisa":
            s = masked_mean(S.mean((-4, -3, -2)), steps)
        else:
            places = masked_max(S.mean(-2), steps.unsqueeze(-2).unsqueeze(-2))
            s = (masked_mean(best, steps) + places.mean((-2, -1))) / 2
        if not heads:
            return s
        return s.amax(-1) if self.head == "max" else s.sum(-1)

    def all_pairs(
        self, image: Tensor, audio: Tensor, mask: Tensor, *cls: Tensor, heads: bool = True, recompute: bool = False
    ) -> Tensor:
        """Similarities of every sound with every picture, ``[A, V]`` or ``[A, V, K]``; `chunk` sounds at a time.

        Args:
            image, audio, cls: as for `raw`.
            mask: bool ``[A, T]``.
            heads: as for `__call__`.
            recompute: compute cells again in the backward pass, so that they are not kept.
        """

        def some(image: Tensor, audio: Tensor, mask: Tensor, *cls: Tensor) -> Tensor:
            return self(self.raw(image, audio, *cls), mask[:, None], heads)

        rows = []
        for i in range(0, len(audio), self.chunk):
            part = slice(i, i + self.chunk)
            inputs = (image, audio[part], mask[part], *((cls[0], cls[1][part]) if self.cls else ()))
            rows.append(checkpoint(some, *inputs, use_reentrant=False) if recompute else some(*inputs))
        return torch.cat(rows)


class Calibration(nn.Module):
    """Similarities to logits: w S less their mean, or w S + b.

    Args:
        initial: w at the start.
        bias: whether there is b, as for every loss but ``nce``.
    """

    def __init__(self, initial: float = 1.0, bias: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((1,), float(initial)).log())
        self.b = nn.Parameter(torch.zeros(1)) if bias else None

    @property
    def weight(self) -> Tensor:
        return self.w.exp().clamp(0.01, 100)

    def forward(self, S: Tensor) -> Tensor:
        scaled = self.weight * S
        return scaled - scaled.mean() if self.b is None else scaled + self.b


def step_masks(samples: Tensor, steps: int) -> Tensor:
    """How much of each step is real: ``[B, n]`` samples (1 is real) to ``[B, steps]`` in [0, 1], the mean of the two
    samples in a step's middle."""
    return F.interpolate(samples[:, None].float(), steps, mode="linear", align_corners=False)[:, 0]


class DenseAVNetwork(nn.Module):
    """Two towers and their aligners. `heard` steps and seen places have C = ``code_dim`` channels.

    Args:
        image_tower, audio_tower: DINO and HuBERT.
        code_dim: C; a multiple of the heads.
        image_aligner, audio_aligner: see `Aligner`.
        calibration: see `Calibration`.
        norm_vectors: unit length of all features; False in the releases.
    """

    def __init__(
        self,
        image_tower: DINO,
        audio_tower: HuBERT,
        code_dim: int = 384,
        image_aligner: AlignerType = "image_linear",
        audio_aligner: AlignerType = "audio_sa_3_3_pool_2",
        calibration: Calibration | None = None,
        norm_vectors: bool = False,
    ) -> None:
        super().__init__()
        self.image_tower, self.audio_tower, self.norm_vectors = image_tower, audio_tower, norm_vectors
        self.image_aligner = Aligner(image_aligner, image_tower.embed_dim, code_dim)
        self.audio_aligner = Aligner(audio_aligner, audio_tower.width, code_dim)
        self.audio_cls = nn.Parameter(torch.randn(audio_tower.width))
        self.sim_cal = calibration or Calibration()

    def see(self, image: Tensor, pool: int = 1, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """Features ``[B, C, h, w]`` and class vectors ``[B, C]`` of normalised pictures.

        Args:
            pool: mean over squares of so many places; 2 in training.
            frozen: no gradient reaches the tower.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            tokens, cls = self.image_tower.see(image)
        x, cls = self.image_aligner(tokens, cls)
        return self.pooled(x, cls, (pool, pool))

    def hear(self, waveform: Tensor, pool: int = 1, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """Features ``[B, C, F, T]`` and class vectors ``[B, C]`` of `standardised` sounds."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            hidden = self.audio_tower(waveform)
        cls = self.audio_cls.expand(len(hidden), -1)
        x, cls = self.audio_aligner(hidden, cls)
        return self.pooled(x, cls, (1, pool))

    def pooled(self, x: Tensor, cls: Tensor, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
        x = F.avg_pool2d(x, sides) if max(sides) > 1 else x
        return (F.normalize(x, dim=1), F.normalize(cls, dim=1)) if self.norm_vectors else (x, cls)


def prompted_maps(cells: Tensor, steps: Tensor, size: tuple[int, int], together: bool = False) -> Tensor:
    """Heat maps of paired cells.

    Args:
        cells: ``[B, h, w, T]``, mean over F.
        steps: which are averaged, ``[B, T]``.
        size: of the maps.
        together: one minimum and one maximum of the whole batch (the release's evaluation), else of each map.

    Returns:
        ``[B, *size]`` in [0, 1]; scaled, then resized bilinearly.
    """
    maps = masked_mean(cells, steps[:, None, None])
    over = None if together else (-2, -1)
    low = maps.amin() if over is None else maps.amin(over, keepdim=True)
    maps = maps - low
    high = maps.amax() if over is None else maps.amax(over, keepdim=True)
    maps = maps / high.clamp_min(torch.finfo(maps.dtype).tiny)
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def smoothed(cells: Tensor, window: int = 3) -> Tensor:
    """Along the last dimension, as the release's demonstration does: taps exp(-x^2 / 2) from -2 to 2, edges kept."""
    taps = torch.linspace(-2, 2, window, device=cells.device, dtype=cells.dtype).square().div(-2).exp()
    flat = F.pad(cells.flatten(0, -2)[:, None], (window // 2, window // 2), mode="replicate")
    return F.conv1d(flat, (taps / taps.sum())[None, None])[:, 0].reshape(cells.shape)


def demo_maps(cells: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Maps of a video's frames under its sound, as the release's demonstration draws them.

    Args:
        cells: ``[N, K, h, w, T]`` of N frames with the one sound, mean over F.
        size: of the frames.

    Returns:
        ``[N, *size]`` of the largest head, resized bicubically; the same at least 0 and scaled over the whole video;
        and, of several heads, each where it is the larger of two, scaled on its own.
    """
    N, T = len(cells), cells.shape[-1]
    at = (torch.arange(N, device=cells.device) / N * T).long()
    now = smoothed(cells)[torch.arange(N, device=cells.device), ..., at]
    up = partial(F.interpolate, size=size, mode="bicubic", align_corners=False)
    largest = up(now.amax(1, keepdim=True))[:, 0]
    each = up(now)
    shares = []
    if each.shape[1] == 2:
        first = each[:, 0] > each[:, 1]
        shares = [scaled(each[:, k] * (first if k == 0 else ~first)) for k in range(2)]
    return largest, scaled(largest), shares


def scaled(maps: Tensor) -> Tensor:
    """At least 0, and from 0 to 1 over all of them."""
    maps = maps.clamp_min(0)
    maps = maps - maps.amin()
    return maps / maps.amax()
