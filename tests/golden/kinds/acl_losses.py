"""ACL's losses on given features, with gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.methods.acl.losses import area_reg, feature_similarity, image_similarity
from avloc.methods.losses import symmetric_infonce
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    x = {k: v.clone().requires_grad_() for k, v in case.inputs.items()}
    beta, c = case.config["beta"], case.config
    logits = beta * image_similarity(x["v_i"], x["pred_emb"])
    target = torch.arange(len(logits))
    results = {
        "loss.infonce_image_to_audio": F.cross_entropy(logits, target),
        "loss.infonce_audio_to_image": F.cross_entropy(logits.T, target),
        "loss.acl_i": symmetric_infonce(logits),
        "loss.acl_f": symmetric_infonce(beta * feature_similarity(x["v_f"], x["pred_emb"])),
        "loss.area_reg": area_reg(x["p_area"], x["n_area"], c["p_thr"], c["n_thr"]),
    }
    total = results["loss.acl_i"] + results["loss.acl_f"] + results["loss.area_reg"]
    total.backward()
    return results | {"loss.total": total} | {f"grad.{k}": v.grad for k, v in x.items()}
