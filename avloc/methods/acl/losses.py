"""The objective of ACL-SSL: L = lambda_1 L_ACL_I + lambda_2 L_ACL_F + lambda_3 L_REG (+ lambda_C L_ACL_C).

L_ACL_C is the journal extension's guidance by a language model. Where the paper's printed equations and the released
script differ, an option names both readings; the default is the released one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.methods.losses import gather_rows, symmetric_infonce

__all__ = [
    "EqualPhrases",
    "Objective",
    "Pairs",
    "area_reg",
    "caption_contrast",
    "feature_similarity",
    "image_similarity",
]

EqualPhrases = Literal["negatives", "spread", "left_out"]


@dataclass(frozen=True)
class Objective:
    """Weights, temperature, priors and readings of the loss.

    Args:
        lambda_i: weight of the image-level contrast L_ACL_I; 0 leaves the masked pass out altogether.
        lambda_f: weight of the feature-level contrast L_ACL_F.
        lambda_reg: weight of the area regulariser L_REG.
        lambda_c: weight of the contrast L_ACL_C between object phrases and sounds; 0, for AV alignment, needs no
            phrases.
        tau: temperature of both contrasts.
        p_plus: expected share of the picture under a matching mask.
        p_minus: expected share under a mask that another sound draws.
        area: ``batch`` compares the batch's mean areas with the priors (released); ``pair`` sums the deviation
            of every single area (paper): at B = 16 two orders of magnitude more, under the same weight.
        feature_sound: a feature pooled under the mask of sound j in picture i is compared with the sound of the
            ``picture`` i (released) or of the ``mask`` j (paper).
        equal_phrases: see `caption_contrast`.
        negatives: other samples of this process (``local``, released) or of all processes (``gathered``).
    """

    lambda_i: float = 1.0
    lambda_f: float = 1.0
    lambda_reg: float = 1.0
    tau: float = 0.07
    p_plus: float = 0.4
    p_minus: float = 0.0
    area: Literal["batch", "pair"] = "batch"
    feature_sound: Literal["picture", "mask"] = "picture"
    negatives: Literal["local", "gathered"] = "local"
    lambda_c: float = 0.0
    equal_phrases: EqualPhrases = "negatives"

    def __call__(self, pairs: Pairs) -> dict[str, Tensor]:
        """Named terms of a batch of pairs, ``loss`` being their weighted sum; float32 under any autocast."""
        with torch.autocast(pairs.area.device.type, enabled=False):
            gather = gather_rows if self.negatives == "gathered" else lambda x: x
            A, own = pairs.A.float(), pairs.own
            terms: dict[str, Tensor] = {}
            if self.lambda_i and pairs.v_i is not None:
                logits = image_similarity(pairs.v_i.float(), A) / self.tau
                terms["acl_i"] = symmetric_infonce(gather(logits))
            if self.lambda_f:
                sound = A if self.feature_sound == "mask" else A[torch.arange(len(A)), own]
                logits = feature_similarity(pairs.v_f.float(), sound) / self.tau
                terms["acl_f"] = symmetric_infonce(gather(logits))
            terms["area_reg"] = self.area_term(gather(pairs.area))
            if self.lambda_c:
                assert pairs.C is not None
                assert pairs.phrase is not None
                logits = gather(image_similarity(pairs.C.float(), A) / self.tau)
                phrase = gather(pairs.phrase)
                terms["acl_c"] = caption_contrast(logits, phrase, self.equal_phrases)
            weights = {"acl_i": self.lambda_i, "acl_f": self.lambda_f, "area_reg": self.lambda_reg}
            weights |= {"acl_c": self.lambda_c}
            terms["loss"] = sum((weights[k] * v for k, v in terms.items()), start=torch.zeros((), device=A.device))
            return terms

    def area_term(self, area: Tensor) -> Tensor:
        if self.area == "batch":
            return area_reg(*batch_areas(area), self.p_plus, self.p_minus)
        positive = torch.eye(len(area), dtype=torch.bool, device=area.device)
        return (area[positive] - self.p_plus).abs().sum() + (area[~positive] - self.p_minus).abs().sum()


@dataclass
class Pairs:
    """What the network makes of B pictures and M sounds (M = B, or B times the number of processes).

    Attributes:
        A: ``[B, M, D]`` audio-driven embedding that stands for sound j asked of picture i.
        own: int64 ``[B]``, which of the M sounds belongs to picture i.
        v_f: ``[B, M, D]`` features of picture i pooled under the mask of sound j.
        v_i: ``[B, D]`` CLIP embedding of picture i under the mask of its own sound; None if not needed.
        area: ``[B, M]`` share of the picture under each mask.
        C: ``[B, D]`` CLIP embedding of each sample's object phrase, without gradient; None if not needed.
        phrase: int64 ``[B]``, equal for equal phrases, 0 for none; None if not needed.
    """

    A: Tensor
    own: Tensor
    v_f: Tensor
    v_i: Tensor | None
    area: Tensor
    C: Tensor | None = None
    phrase: Tensor | None = None


def image_similarity(v_i: Tensor, A: Tensor) -> Tensor:
    """Cosine ``[B, M]`` of v_i ``[B, D]`` with A ``[B, M, D]``, or with A ``[M, D]`` that all pictures share."""
    A = A if A.ndim == 3 else A[None]
    return (F.normalize(v_i, dim=-1)[:, None] * F.normalize(A, dim=-1)).sum(-1)


def feature_similarity(v_f: Tensor, A: Tensor) -> Tensor:
    """Cosine ``[B, M]`` of v_f ``[B, M, D]`` with each picture's own sound ``[B, D]`` or each mask's ``[B, M, D]``."""
    A = A if A.ndim == 3 else A[:, None]
    return (F.normalize(v_f, dim=-1) * F.normalize(A, dim=-1)).sum(-1)


def caption_contrast(logits: Tensor, phrase: Tensor, equal: EqualPhrases = "negatives") -> Tensor:
    """L_ACL_C: half the sum of the cross-entropies over sounds for each phrase, and over phrases for each sound.

    Args:
        logits: float32 ``[N, N]``, cosines of the phrases (rows) with the sounds (columns) over the temperature.
        phrase: int64 ``[N]``, equal for equal phrases; samples with 0 have none, and are left out of rows and columns.
        equal: what samples of one phrase are to each other. ``negatives``: what all others are (paper); m of them then
            cannot get below log m each. ``spread``: the target is shared evenly among them. Their rows are equal where
            a sound has one embedding for all pictures, as in ACL, and then this is the same number with the same
            gradient as ``negatives``; it differs in SOUPLE. ``left_out``: no negatives of each other.

    Returns:
        scalar; zero where fewer than two samples have a phrase.
    """
    keep = phrase.nonzero()[:, 0]
    if len(keep) < 2:
        return (logits * 0).sum()
    logits, phrase = logits[keep][:, keep], phrase[keep]
    same = phrase[:, None] == phrase
    if equal == "spread":
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    if equal == "left_out":
        own = torch.eye(len(keep), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same & ~own, -torch.inf)
    return symmetric_infonce(logits)


def batch_areas(area: Tensor) -> tuple[Tensor, Tensor]:
    """Mean area of the matching masks, and the off-diagonal sum over B^2 (the released script divides so)."""
    p_area = area.diagonal().mean()
    return p_area, area.mean() - p_area / len(area)


def area_reg(p_area: Tensor, n_area: Tensor, p_plus: float, p_minus: float) -> Tensor:
    """``|p_area - p+| + |n_area - p-|``."""
    return (p_area - p_plus).abs() + (n_area - p_minus).abs()


# Checkpoints keep it among the hyper-parameters, and are loaded without unpickling anything else.
torch.serialization.add_safe_globals([Objective])
