"""GAVS' mask losses on given logits, with gradients; every loss pools over all elements."""

from __future__ import annotations

import re

from torch import Tensor

from avloc.methods.gavs.losses import MASK_LOSSES, bce, dice_loss, dice_score, focal
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    c, results = case.config, {}
    target = case.inputs["target"].float().flatten()[None]
    for name in case.expected:
        logits = case.inputs["logits"].clone().requires_grad_()
        value = loss(name.removeprefix("grad/"), logits.flatten()[None], target, c)
        if name.startswith("grad/"):
            value.sum().backward()
            results[name] = logits.grad
        else:
            results[name] = value.view(logits.shape if value.numel() > 1 else ())
    return results


def loss(name: str, logits: Tensor, target: Tensor, c: dict) -> Tensor:
    alpha, gamma, smooth = c["focal_alpha"], c["focal_gamma"], c["dice_smooth"]
    if settings := re.fullmatch(r"focal_a([\d.]+)_g([\d.]+)", name):
        return focal(logits, target, *(float(x) for x in settings.groups())).mean(1)
    if settings := re.fullmatch(r"dice_loss_smooth([\d.]+)", name):
        return dice_loss(logits, target, float(settings[1]))
    losses = {
        "focal": lambda: focal(logits, target, alpha, gamma).mean(1),
        "focal_mean": lambda: focal(logits, target, alpha, gamma).mean(1),
        "focal_sum": lambda: focal(logits, target, alpha, gamma).sum(1),
        "focal_none": lambda: focal(logits, target, alpha, gamma),
        "dice_loss": lambda: dice_loss(logits, target, smooth),
        "torchmetrics_dice": lambda: dice_score(logits, target),
        "bce_dice": lambda: bce(logits, target) + dice_score(logits, target),
        "avs": lambda: c["avs_focal_weight"] * focal(logits, target, alpha, gamma).mean(1) + dice_score(logits, target),
    }
    return losses[name]() if name in losses else MASK_LOSSES[name](logits, target)
