"""LVS: features, trimap, logits, loss and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.methods.two_tower.losses import LVS
from avloc.methods.two_tower.network import matching, unit
from tests.golden.case import Case
from tests.golden.towers import after, given, gradients, grads, network, pixels


def objective_of(case: Case) -> LVS:
    c = case.config
    return LVS(c["epsilon"], c["epsilon2"], c["tau"], c["temperature"], c["tri_map"], c["Neg"])


def run(case: Case) -> dict[str, Tensor]:
    c, objective = case.config, objective_of(case)
    if c.get("variant") == "features":
        names = ["image_features", "audio_features"]
        image, audio = given(case, *names)
        results = tensors(unit(image), unit(audio.amax((-2, -1))), objective)
        results["loss"].backward()
        return results | grads(case, names, [image, audio])
    net, official = network(case, "headless")
    image, spectrogram = pixels(case), case.inputs["spectrogram"]
    results = {}
    if "eval" in c["parts"]:
        with torch.no_grad():
            v, a = (x[0] for x in net.eval()(image, spectrogram))
        found = tensors(v, a, objective) | sub(v, a)
        results |= {f"eval.{name}": value for name, value in found.items()}
    v, a = (x[0] for x in net.train()(image, spectrogram))
    found = tensors(v, a, objective)
    found["loss"].backward()
    results |= {f"train.{name}": value for name, value in found.items()}
    return results | gradients(net, official, "train.") | after(net, official)


def tensors(v: Tensor, a: Tensor, objective: LVS) -> dict[str, Tensor]:
    pos, neg = objective.weights(matching(v, a))
    logits = objective.logits(v, a)
    return {"map": matching(v, a), "pos": pos, "neg": neg, "logits": logits, "loss": objective(v, a)["loss"]}


def sub(v: Tensor, a: Tensor) -> dict[str, Tensor]:
    return {"image_feature_sub": v[:, ::16, ::2, ::2], "audio_feature_sub": a[:, ::4]}
