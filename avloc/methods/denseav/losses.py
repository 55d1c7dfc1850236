"""DenseAV's objective: a contrastive term and what keeps it stable, each as its release computes it. Torch only.

``paired`` is `Aggregation.paired`: inner products ``[B, K, h, w, F, T]`` of each sound with its own picture, of each
head, 0 where the sound was filled up, at least 0 if the aggregation says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from avloc.methods.denseav.network import Aggregation, Calibration
from avloc.methods.losses import symmetric_infonce

__all__ = ["Draws", "Features", "Objective"]


@dataclass(frozen=True)
class Features:
    """What the network makes of a batch.

    Attributes:
        image, audio: ``[B, C, h, w]`` and ``[B, C, F, T]``.
        image_cls, audio_cls: ``[B, C]``.
        mask: bool ``[B, T]``, steps that are real.
        positive: ``[B, T]`` in [0, 1], how much of a step is the clip's own sound; 1 where nothing was spliced in.
        image_mask: ``[B, 1, h, w]`` in [0, 1], how much of a place is the clip's own picture.
        source: int64 ``[B]``, which group of heads a clip belongs to; None for ``disentangle`` 0.
    """

    image: Tensor
    audio: Tensor
    image_cls: Tensor
    audio_cls: Tensor
    mask: Tensor
    positive: Tensor
    image_mask: Tensor
    source: Tensor | None = None

    def everything(self) -> tuple[Tensor, ...]:
        """As `Aggregation.paired` and `all_pairs` take it."""
        return self.image, self.audio, self.mask, self.image_cls, self.audio_cls


@dataclass(frozen=True)
class Draws:
    """Which cells the sampled terms look at.

    Attributes:
        b, h, w, f, t: int64 ``[n]``: clip, place and step.
        silent: int64, an order of the steps that are filled up, as `torch.where` lists them; None to draw one.
    """

    b: Tensor
    h: Tensor
    w: Tensor
    f: Tensor
    t: Tensor
    silent: Tensor | None = None

    @classmethod
    def of(cls, x: Features, n: int, generator: torch.Generator | None = None) -> Draws:
        """n of each, drawn on the CPU."""
        sides = (len(x.image), *x.image.shape[2:], *x.audio.shape[2:])
        b, h, w, f, t = (torch.randint(side, (n,), generator=generator).to(x.image.device) for side in sides)
        silent = torch.randperm(x.mask.numel(), generator=generator).to(x.image.device)
        return cls(b, h, w, f, t, silent)


@dataclass(frozen=True)
class Objective:
    """A weighted sum.

    Args:
        loss: ``nce`` and ``ce``: cross-entropy over rows and columns, half each; ``bce``: of each pair by itself;
            ``margin``: by how much a pair is above its column's matching one.
        margin: subtracted from matching pairs first.
        leak: share of the target that other pairs have in ``nce`` and ``bce``.
        cal_init: w of the calibration, below which it is punished.
        nonneg, tv, splice, silence_l1, silence_l2, calibration, specialize, mixup, disentangle: weights of the terms;
            one of 0 is not computed.
        samples: cells that ``nonneg`` and ``silence`` look at.
    """

    loss: Literal["nce", "ce", "bce", "margin"] = "nce"
    margin: float = 0.0
    leak: float = 0.0
    cal_init: float = 1.0
    nonneg: float = 0.01
    tv: float = 0.01
    splice: float = 0.01
    silence_l1: float = 0.01
    silence_l2: float = 0.0
    calibration: float = 0.1
    specialize: float = 0.05
    mixup: float = 0.1
    disentangle: float = 0.0
    samples: int = 250

    def __call__(self, x: Features, agg: Aggregation, calibrate: Calibration, draws: Draws) -> dict[str, Tensor]:
        """The terms, unweighted, and their weighted sum ``loss``. A term that the batch has nothing for is left out."""
        S = calibrate(agg.all_pairs(*x.everything(), recompute=torch.is_grad_enabled()))
        paired = agg.cells(agg.paired(*x.everything()), heads=False)
        terms: dict[str, tuple[float, Tensor | None]] = {
            self.loss: (1.0, self.contrast(S)),
            "nonneg": (self.nonneg, self.below_zero(x, agg, draws) if self.nonneg else None),
            "tv": (self.tv, paired.diff(dim=-1).square().mean() if paired.shape[-1] > 1 else None),
            "splice": (self.splice, self.spliced(paired, x)),
            "calibration": (self.calibration, self.too_cold(calibrate)),
            "specialize": (self.specialize, self.alike(paired)),
            "mixup": (self.mixup, self.foreign(paired, x)),
            "disentangle": (self.disentangle, self.of_others(paired, x.source) if self.disentangle else None),
        }
        if self.silence_l1 or self.silence_l2:
            silence = self.silence(x, agg, draws)
            if silence is not None:
                terms["silence_l1"] = (self.silence_l1, silence.abs().mean())
                terms["silence_l2"] = (self.silence_l2, silence.square().mean())
        found = {name: value for name, (_, value) in terms.items() if value is not None}
        total = torch.stack([terms[name][0] * value for name, value in found.items()]).sum()
        return found | {"loss": total}

    def contrast(self, S: Tensor) -> Tensor:
        """Of logits ``[B, B]`` whose diagonal matches."""
        B, own = len(S), torch.eye(len(S), device=S.device, dtype=S.dtype)
        S = S - self.margin * own
        target = own * (1 - self.leak) + (1 - own) * self.leak / max(B - 1, 1)
        if self.loss == "margin":
            return (S - S.diagonal()).clamp_min(0).mean()
        if self.loss == "bce":
            return F.binary_cross_entropy_with_logits(S, target)
        if self.loss == "ce":
            return symmetric_infonce(S)
        return (F.cross_entropy(S, target) + F.cross_entropy(S.T, target)) / 2

    def below_zero(self, x: Features, agg: Aggregation, draws: Draws) -> Tensor:
        """Mean squared negative part of inner products of drawn places with drawn steps, all of them."""
        a = x.audio[draws.b, :, draws.f, draws.t].unflatten(1, (agg.heads, -1))
        v = x.image[draws.b, :, draws.h, draws.w].unflatten(1, (agg.heads, -1))
        return torch.einsum("akd,vkd->akv", a, v).clamp_max(0).square().mean()

    def silence(self, x: Features, agg: Aggregation, draws: Draws) -> Tensor | None:
        """Inner products of filled-up steps with all places of all pictures; None where they are too few."""
        clip, step = torch.where(~x.mask)
        if len(clip) < self.samples:
            return None
        if len(clip) > self.samples:
            order = torch.arange(len(clip), device=clip.device) if draws.silent is None else draws.silent
            order = order[order < len(clip)][: self.samples]
            clip, step = clip[order], step[order]
        a = x.audio.mean(2)[clip, :, step].unflatten(1, (agg.heads, -1))
        S = torch.einsum("akd,vkdhw->avkhw", a, x.image.unflatten(1, (agg.heads, -1)))
        return S.clamp_min(0) if agg.nonneg else S

    def spliced(self, paired: Tensor, x: Features) -> Tensor | None:
        """Mean square where another clip's sound was spliced in; None where none was."""
        n = ((1 - x.positive) * x.mask)[:, None, None, None, None]
        if not bool((n != 0).any()):
            return None
        return (paired.square() * n).sum() / n.expand_as(paired).sum().clamp_min(0.1)

    def too_cold(self, calibrate: Calibration) -> Tensor:
        """How far the calibration's w is below where it began."""
        began = torch.tensor(self.cal_init, device=calibrate.w.device).log()
        return (began - calibrate.weight.log()).clamp_min(0).square().mean()

    def alike(self, paired: Tensor) -> Tensor | None:
        """Mean product of two heads' sizes; None for one head."""
        size = paired.abs()
        products = [(size[:, i] * size[:, j]).mean() for i, j in combinations(range(size.shape[1]), 2)]
        return torch.stack(products).mean() if products else None

    def foreign(self, paired: Tensor, x: Features) -> Tensor:
        """Mean square where another clip's picture was put in."""
        m = (1 - x.image_mask)[..., None, None]
        return (paired * m).square().sum() / m.expand_as(paired).sum().clamp_min(0.1)

    def of_others(self, paired: Tensor, source: Tensor | None) -> Tensor:
        """Mean square of the sum of those heads that belong to the other source.

        Raises:
            ValueError: nobody says which source a clip is of.
        """
        if source is None:
            raise ValueError("DenseAV's disentangle wants the source of each clip; set its weight to 0 without one.")
        groups = paired.unflatten(1, (2, -1)).sum(2)  # [B, 2, h, w, F, T]
        other = groups[torch.arange(len(groups), device=groups.device), 1 - source]
        return other.square().mean()


torch.serialization.add_safe_globals([Aggregation, Objective])
