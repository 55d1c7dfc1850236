"""EZ-VSL: features, loss, gradients, steps of Adam, and both scripts' maps."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.methods.two_tower.losses import EZVSL
from avloc.methods.two_tower.method import heat
from avloc.methods.two_tower.network import TwoTowers, matching
from tests.golden.case import Case
from tests.golden.towers import SUB, adam, after, given, gradients, grads, network, pixels


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    objective = EZVSL(c["tau"])
    if c.get("variant") == "features":
        names = ["image_features", "audio_features"]
        v, a = given(case, *names)
        loss = objective(v, a)["loss"]
        loss.backward()
        return {"loss": loss, **tensors(v, a, objective)} | grads(case, names, [v, a])
    net, official = network(case, "one_head")
    image, spectrogram = pixels(case), case.inputs["spectrogram"]
    results: dict[str, Tensor] = {}
    if "eval" in c["parts"]:
        with torch.no_grad():
            v, a = seen(net.eval(), image, spectrogram)
            found = {"loss": objective(v, a)["loss"], **tensors(v, a, objective), **sub(v, a), **maps(v, a, c["tau"])}
        results |= {f"eval.{name}": value for name, value in found.items()}
    net.train()
    if "adam" in c["parts"]:
        return adam(net, case, lambda: objective(*seen(net, image, spectrogram))["loss"])
    v, a = seen(net, image, spectrogram)
    loss = objective(v, a)["loss"]
    loss.backward()
    results |= {f"train.{name}": value for name, value in {"loss": loss, **tensors(v, a, objective)}.items()}
    return results | gradients(net, official, "train.") | after(net, official)


def seen(net: TwoTowers, image: Tensor, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
    v, a = net(image, spectrogram)
    return v[0], a[0]


def tensors(v: Tensor, a: Tensor, objective: EZVSL) -> dict[str, Tensor]:
    return {"pair_logits": objective.logits(v, a), "savl": matching(v, a) / objective.tau}


def sub(v: Tensor, a: Tensor) -> dict[str, Tensor]:
    return {"img_proj_feature_sub": v[:, ::16], "aud_proj_feature_sub": a[:, ::4]}


def maps(v: Tensor, a: Tensor, tau: float) -> dict[str, Tensor]:
    S = matching(v, a) / tau
    of_test, of_training = heat(S, 224, "bilinear_corners"), heat(S, 224, "bicubic")
    return {"test_map_sub": of_test[:, ::SUB, ::SUB], "validate_map_sub": of_training[:, ::SUB, ::SUB]}
