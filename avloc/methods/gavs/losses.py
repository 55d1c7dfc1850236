"""The objective of GAVS: a mask loss per frame, and the alignment of visual cue and sound.

The mask losses are those that the release offers, as functions of rows: one row is one frame (the release trains
frame by frame). Of the alignment the paper says only that it is a triplet loss with cosine similarity: what is
compared, weight and margin are choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "MASK_LOSSES",
    "MaskLoss",
    "Objective",
    "alignment",
    "balanced_bce",
    "bce",
    "dice_loss",
    "dice_score",
    "focal",
    "mse",
]

MaskLoss = Literal["bce", "mse", "bbce", "focal", "dice_loss", "bce_dice", "avs"]


@dataclass(frozen=True)
class Objective:
    """Loss of the masks, and weight and margin of the alignment.

    Args:
        mask: ``bce`` (released default), ``mse`` (of logits, released), ``bbce`` (positives weighted), ``focal``,
            ``dice_loss`` (differentiable), ``bce_dice`` and ``avs`` (released: bce, or 20 focal, PLUS a thresholded
            Dice score without gradient).
        lambda_align: weight of the alignment; 0 for the release, which has none.
        margin: of the alignment's triplets.
    """

    mask: MaskLoss = "bce"
    lambda_align: float = 1.0
    margin: float = 0.2

    def __post_init__(self) -> None:
        if self.mask not in MASK_LOSSES:
            raise ValueError(
                f"objective.mask {self.mask!r} is none of {', '.join(MASK_LOSSES)}. (The release's 'dice' alone has no "
                "gradient, and its 'sam' cannot run.)"
            )

    def frames(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mask loss of each frame, float32 ``[B]``, under any autocast; defined for empty and full targets.

        Args:
            logits: ``[B, ...]``.
            target: in [0, 1], of that shape.
        """
        with torch.autocast(logits.device.type, enabled=False):
            return MASK_LOSSES[self.mask](logits.float().flatten(1), target.float().flatten(1))


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of each row: ``[B, N]`` to ``[B]``."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)


def mse(logits: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of logits (not probabilities: so the release) and target."""
    return (logits - target).square().mean(1)


def balanced_bce(logits: Tensor, target: Tensor) -> Tensor:
    """`bce` with positives weighted by negatives over positives; 0 for a row of positives alone."""
    positive = target.sum(1, keepdim=True)
    negative = target.shape[1] - positive
    # Without positives the weight meets nothing; the release's 100 only keeps 0 / 0 away.
    weight = torch.where(positive > 0, negative / positive.clamp_min(1e-12), 100.0)
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none").mean(1)


def focal(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """``alpha (1 - e^-bce)^gamma bce``, element-wise ``[B, N]``; one alpha for both classes."""
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return alpha * (1 - torch.exp(-cross)) ** gamma * cross


def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """``1 - (2 sum(p t) + smooth) / (sum p + sum t + smooth)`` of each row, p the probability."""
    p = torch.sigmoid(logits)
    return 1 - (2 * (p * target).sum(1) + smooth) / (p.sum(1) + target.sum(1) + smooth)


def dice_score(logits: Tensor, target: Tensor) -> Tensor:
    """Dice coefficient of ``logits >= 0.5`` in each row, without gradient; 0 where both are empty.

    Higher is better, and the threshold meets logits: both as torchmetrics 1.3's ``Dice`` behaves in the release.
    """
    chosen = (logits >= 0.5).to(target.dtype)
    return 2 * (chosen * target).sum(1) / (chosen.sum(1) + target.sum(1)).clamp_min(1)


MASK_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": bce,
    "mse": mse,
    "bbce": balanced_bce,
    "focal": lambda logits, target: focal(logits, target).mean(1),
    "dice_loss": dice_loss,
    "bce_dice": lambda logits, target: bce(logits, target) + dice_score(logits, target),
    "avs": lambda logits, target: 20 * focal(logits, target).mean(1) + dice_score(logits, target),
}


def alignment(cue: Tensor, sound: Tensor, video: list[str], margin: float = 0.2) -> Tensor:
    """Triplet loss that draws each visual cue to the sound of its second.

    Anchor: the cue; positive: the sound of the same second; negatives: the sounds of the batch's other videos.
    ``max(0, margin - cos(a, p) + cos(a, n))`` is averaged over all of an anchor's negatives, which is what one
    drawn at random gives on average.

    Args:
        cue: F_C ``[B, D]``.
        sound: F_A ``[B, D]``.
        video: of each row; "" is a video of its own.
        margin: of the triplets.

    Returns:
        scalar, the mean over the anchors that have a negative; 0, with a graph, if none has.
    """
    names = [name or f"\0{i}" for i, name in enumerate(video)]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    own = torch.tensor([number[name] for name in names], device=cue.device)
    other = (own[:, None] != own[None]).float()
    with torch.autocast(cue.device.type, enabled=False):
        cosine = F.normalize(cue.float(), dim=-1) @ F.normalize(sound.float(), dim=-1).T
        triplets = (margin - cosine.diagonal()[:, None] + cosine).clamp_min(0) * other
        negatives = other.sum(1)
        per_anchor = triplets.sum(1) / negatives.clamp_min(1)
        return per_anchor.sum() / (negatives > 0).sum().clamp_min(1)


# Checkpoints keep it among the hyper-parameters, and are loaded without unpickling anything else.
torch.serialization.add_safe_globals([Objective])
