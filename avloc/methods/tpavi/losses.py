"""The objective of AVSBench: a pixel loss and the audio-visual matching term L_AVM.

From OpenNLPLab/AVSBench (``loss.py`` of avs_s4, avs_ms3 and avss).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.methods.tpavi.network import Segmentation

__all__ = ["Objective", "matching"]

IGNORE = 255


@dataclass(frozen=True)
class Objective:
    """Weight and reading of the matching term.

    Args:
        lambda_avm: weight of L_AVM; 0 on S4 (released), 0.5 on MS3 and AVSS.
        avm: the frames' divergences are summed over the batch (``sum``, released on MS3, where it grows with the
            batch) or averaged (``mean``, released on AVSS).
        normalise: compare unit vectors. The paper's setting is not stated; the released scripts do not.
    """

    lambda_avm: float = 0.0
    avm: Literal["sum", "mean"] = "mean"
    normalise: bool = False

    def __call__(self, out: Segmentation, target: Tensor, known: Tensor | None = None) -> dict[str, Tensor]:
        """Named terms, ``loss`` being their weighted sum; float32 under any autocast.

        Args:
            out: of B clips of F frames.
            target: float ``[B, G, W]`` in [0, 1] for one map, or int64 classes with 255 for "do not score" for
                several, of the FIRST frame of each clip: S4's protocol, and with F = 1 every frame's.
            known: bool ``[B]``, False for a row whose target is not known, and not compared; None where all are. L_AVM
                needs no target and is that of all frames.
        """
        with torch.autocast(out.logits.device.type, enabled=False):
            logits = out.logits.float()
            # Only the first frame has a truth; it is compared at the truth's size.
            first = F.interpolate(logits[:, 0], target.shape[-2:], mode="bilinear", align_corners=False)
            if known is not None:
                first, target = first[known], target[known]
            terms: dict[str, Tensor] = {}
            if target.is_floating_point():
                terms["bce"] = F.binary_cross_entropy_with_logits(first[:, 0], target)
            else:
                scored = (target != IGNORE).sum().clamp(min=1)  # 0, not NaN, where nothing is scored
                terms["ce"] = F.cross_entropy(first, target, ignore_index=IGNORE, reduction="sum") / scored
            loss = next(iter(terms.values()))
            if self.lambda_avm and out.sounds:
                terms["avm"] = matching(out, self.avm, self.normalise)
                loss = loss + self.lambda_avm * terms["avm"]
            return {**terms, "loss": loss}


def matching(out: Segmentation, reduction: Literal["sum", "mean"], normalise: bool = False) -> Tensor:
    """L_AVM: KL from what is seen under the predicted mask to what is heard, mean over the stages that hear.

    Per frame and stage, ``KL(softmax(a) || softmax(v))`` over the C channels, with v the mean over the pixels of the
    features weighted by the mask. The mask is ``sigmoid(mean logit)`` of each cell; with several classes, the share of
    the cell's pixels whose class is not the background. (There the release takes the last class for the background,
    a leftover; here it is class 0.)

    Args:
        out: see `Segmentation`.
        reduction: over the frames of the batch.
        normalise: divide a and v by their lengths first.
    """
    logits = out.logits.flatten(0, 1).float()
    several = logits.shape[1] > 1
    pooled = (logits.argmax(1, keepdim=True) != 0).float() if several else logits
    total = logits.new_zeros(())
    for stage, sound in out.sounds.items():
        x = out.features[stage - 1].flatten(0, 1).float()
        mask = F.adaptive_avg_pool2d(pooled, (x.shape[-2], x.shape[-1]))
        v = (x * (mask if several else mask.sigmoid())).mean((-1, -2))
        a = sound.flatten(0, 1).float()
        if normalise:
            v, a = F.normalize(v, dim=-1), F.normalize(a, dim=-1)
        divergence = F.kl_div(v.log_softmax(-1), a.softmax(-1), reduction="none").sum(-1)
        total = total + (divergence.sum() if reduction == "sum" else divergence.mean())
    return total / len(out.sounds)


# Checkpoints keep it among the hyper-parameters, and are loaded without unpickling anything else.
torch.serialization.add_safe_globals([Objective])
