"""The objective of ACL-SSL: L = lambda_1 L_ACL_I + lambda_2 L_ACL_F + lambda_3 L_REG.

Where the paper and the released script differ, an option names both readings; the default is the released one
(`facts/acl_ssl.md` sections 9 and 14).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.methods.losses import gather_rows, symmetric_infonce

__all__ = ["Objective", "Pairs", "area_reg", "feature_similarity", "image_similarity"]


@dataclass(frozen=True)
class Objective:
    """Weights, temperature, priors and readings of the loss.

    Args:
        lambda_i: weight of the image-level contrast L_ACL_I; 0 leaves the masked pass out altogether.
        lambda_f: weight of the feature-level contrast L_ACL_F.
        lambda_reg: weight of the area regulariser L_REG.
        tau: temperature of both contrasts.
        p_plus: expected share of the picture under a matching mask.
        p_minus: expected share under a mask that another sound draws.
        area: ``batch`` compares the batch's mean areas with the priors (released); ``pair`` sums the deviation
            of every single area (paper).
        feature_sound: a feature pooled under the mask of sound j in picture i is compared with the sound of the
            ``picture`` i (released) or of the ``mask`` j (paper).
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
            weights = {"acl_i": self.lambda_i, "acl_f": self.lambda_f, "area_reg": self.lambda_reg}
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
    """

    A: Tensor
    own: Tensor
    v_f: Tensor
    v_i: Tensor | None
    area: Tensor


def image_similarity(v_i: Tensor, A: Tensor) -> Tensor:
    """Cosine ``[B, M]`` of v_i ``[B, D]`` with A ``[B, M, D]``, or with A ``[M, D]`` that all pictures share."""
    A = A if A.ndim == 3 else A[None]
    return (F.normalize(v_i, dim=-1)[:, None] * F.normalize(A, dim=-1)).sum(-1)


def feature_similarity(v_f: Tensor, A: Tensor) -> Tensor:
    """Cosine ``[B, M]`` of v_f ``[B, M, D]`` with each picture's own sound ``[B, D]`` or each mask's ``[B, M, D]``."""
    A = A if A.ndim == 3 else A[:, None]
    return (F.normalize(v_f, dim=-1) * F.normalize(A, dim=-1)).sum(-1)


def batch_areas(area: Tensor) -> tuple[Tensor, Tensor]:
    """Mean area of the matching masks, and the off-diagonal sum over B^2 (the released script divides so)."""
    p_area = area.diagonal().mean()
    return p_area, area.mean() - p_area / len(area)


def area_reg(p_area: Tensor, n_area: Tensor, p_plus: float, p_minus: float) -> Tensor:
    """``|p_area - p+| + |n_area - p-|``."""
    return (p_area - p_plus).abs() + (n_area - p_minus).abs()


# Checkpoints keep it among the hyper-parameters, and are loaded without unpickling anything else.
torch.serialization.add_safe_globals([Objective])
