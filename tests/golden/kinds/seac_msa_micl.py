"""SeAC's multi-source-aware loss from embeddings or similarities, with its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.methods.seac.losses import best_similarity, msa_micl
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    given, results = case.inputs, {}
    if "S" in given:
        S = given["S"].clone()
    else:
        masks, valid = given["mask_embeddings"], None
        if "num_valid" in given:
            valid = torch.arange(masks.shape[1]) < given["num_valid"][:, None]
        S, results["best_mask"] = best_similarity(masks, given["audio_embeddings"], valid)
    S = S.detach().requires_grad_()
    tau = torch.tensor(case.config["tau"], dtype=S.dtype, requires_grad=True)
    terms = msa_micl(S, given["group"], tau)
    terms.loss.backward()
    assert S.grad is not None
    assert tau.grad is not None
    return results | {
        "S": S,
        "audio_terms": terms.audio,
        "mask_terms": terms.mask,
        "loss": terms.loss,
        "grad_S": S.grad,
        "grad_tau": tau.grad,
    }
