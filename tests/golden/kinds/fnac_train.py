"""FNAC: the four losses, their gradients, steps of Adam with decay, and both validations' maps."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.methods.two_tower.losses import EZVSL, FNAC
from tests.golden.case import Case
from tests.golden.kinds.ezvsl_train import maps, seen, sub, tensors
from tests.golden.towers import RecordedDropout, adam, after, given, gradients, grads, network, pixels

TERMS = {"ez": "infonce", "fns1": "fns_1", "tns": "tns", "fns2": "fns_2"}


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    objective = FNAC(c["tau"], *c["fnac_loss_weights"])
    if c.get("variant") == "features":
        return of_features(case, objective)
    net, official = network(case, "one_head")
    image, spectrogram = pixels(case), case.inputs["spectrogram"]
    results: dict[str, Tensor] = {}
    if "eval" in c["parts"]:
        with torch.no_grad():
            v, a = seen(net.eval(), image, spectrogram)
            found = {**losses(objective(v, a)), **tensors(v, a, EZVSL(c["tau"])), **sub(v, a), **maps(v, a, c["tau"])}
        results |= {f"eval.{name}": value for name, value in found.items()}
    net.train()
    if c["dropout_img"]:
        net.drop = RecordedDropout(case.inputs["dropout_mask"], c["dropout_img"])  # type: ignore[assignment]
    if "adam" in c["parts"]:
        return adam(net, case, lambda: objective(*seen(net, image, spectrogram))["loss"])
    v, a = seen(net, image, spectrogram)
    terms = objective(v, a)
    terms["loss"].backward()
    found = {**losses(terms), **tensors(v, a, EZVSL(c["tau"])), "loss": terms["loss"]}
    found["loss_warmup"] = objective(v, a, warm_up=True)["loss"]
    results |= {f"train.{name}": value for name, value in found.items()}
    return results | gradients(net, official, "train.") | after(net, official)


def losses(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"losses": torch.stack([terms[name] for name in TERMS.values()])}


def of_features(case: Case, objective: FNAC) -> dict[str, Tensor]:
    names = ["image_features", "audio_features"]
    results: dict[str, Tensor] = {}
    for short, term in TERMS.items():
        v, a = given(case, *names)
        objective(v, a)[term].backward()
        results[f"grad_{short}.image_features_norm"] = zero_if_none(v).flatten(1).norm(dim=1)
        results[f"grad_{short}.audio_features"] = zero_if_none(a)
    v, a = given(case, *names)
    terms = objective(v, a)
    terms["loss"].backward()
    results |= {"loss": terms["loss"], **losses(terms), **tensors(v, a, EZVSL(objective.tau))}
    return results | grads(case, names, [v, a])


def zero_if_none(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad
