"""DenseAV's terms on the case's features and draws, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avloc.methods.denseav.losses import Draws, Features, Objective
from avloc.methods.denseav.network import Calibration
from tests.golden.case import Case
from tests.golden.kinds.denseav_sims import aggregation

NAMES = {"splice": "neg_audio", "calibration": "cal_balance", "mixup": "image_mixup", "loss": "total"}


def objective_of(case: Case) -> Objective:
    c = case.config["loss"]
    return Objective(
        loss=c["loss_type"],
        margin=c["loss_margin"],
        leak=c["loss_leak"],
        cal_init=c["cal_init"],
        nonneg=c["nonneg_pressure"],
        tv=c["tv_weight"],
        splice=c["neg_audio_weight"] if c["neg_audio"] else 0.0,
        silence_l1=c["silence_l1"],
        silence_l2=c["silence_l2"],
        calibration=c["cal_balance_weight"],
        specialize=c["specialization_weight"],
        mixup=c["mixup_weight"],
        disentangle=c["disentangle_weight"],
        samples=case.config["n_samples"],
    )


def run(case: Case) -> dict[str, Tensor]:
    c, x = case.config["loss"], {k: v.clone() for k, v in case.inputs.items()}
    agg = aggregation(c | {"num_heads": c["sim_agg_heads"], "use_cls": c["sim_use_cls"]})
    leaves = {name: x[name].requires_grad_() for name in ("audio_feats", "image_feats", "audio_cls", "image_cls")}
    calibrate = Calibration(bias="sim_cal.b" in case.weights)
    for name in ("w", "b"):
        if (value := case.weights.get(f"sim_cal.{name}")) is not None:
            setattr(calibrate, name, nn.Parameter(value.clone()))
            leaves[f"sim_cal.{name}"] = getattr(calibrate, name)
    features = Features(
        x["image_feats"],
        x["audio_feats"],
        x["image_cls"],
        x["audio_cls"],
        x["audio_mask"],
        x["audio_pos_mask"],
        x["image_masks"],
        x["source"],
    )
    draws = Draws(*(x[f"random_{name}"] for name in "bhwft"), silent=x["silence_perm"])
    objective = objective_of(case)
    terms = objective(features, agg, calibrate, draws)
    S = calibrate(agg.all_pairs(*features.everything()))
    found: dict[str, Tensor] = {NAMES.get(name, name): value for name, value in terms.items()}
    for name, value in list(found.items()):
        grads = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
        found |= {f"grad_{name}.{leaf}": g for leaf, g in zip(leaves, grads, strict=True) if g is not None}
    shifted, own = S - objective.margin * torch.eye(len(S)), torch.arange(len(S))
    found["sims"] = S
    found |= {f"acc_{i + 1}": (shifted.argmax(1 - i) == own).float().mean() for i in (0, 1)}
    n = (1 - features.positive) * features.mask
    found["neg_weight_avg"] = n.mean()
    found["frac_nonzero"] = ((shifted - shifted.diagonal()) > 0).float().mean()
    return found
