"""SLAVC: online and momentum features, the loss, the momentum step, maps and confidences of both networks."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.methods.two_tower.losses import SLAVC
from avloc.methods.two_tower.method import heat
from avloc.methods.two_tower.network import matching
from avloc.metrics.extended import top_quarter
from avloc.metrics.maps import minmax
from tests.golden.case import Case
from tests.golden.towers import SUB, RecordedDropout, after, given, gradients, grads, network, pixels

ONLINE = ["image1_online", "image2_online", "audio1_online", "audio2_online"]
TARGET = ["image1_target", "image2_target", "audio1_target", "audio2_target"]


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    objective = SLAVC(c["tau"])
    if c.get("variant") == "features":
        online = given(case, *ONLINE)
        target = [case.inputs[name] for name in TARGET]
        features = [torch.stack(pair) for pair in (online[:2], online[2:], target[:2], target[2:])]
        results = tensors(objective, *features)
        results["loss"].backward()
        shown = features[2:] if c["use_mom_eval"] else features[:2]
        return results | {"savl": mean_logits(*shown, objective.tau)} | grads(case, ONLINE, online)
    net, official = network(case, "two_heads")
    image, spectrogram = pixels(case), case.inputs["spectrogram"]
    assert net.momentum is not None
    results = {}
    if "eval" in c["parts"]:
        with torch.no_grad():
            online, target = net.eval()(image, spectrogram), net.momentum(image, spectrogram)
            found = tensors(objective, *online, *target)
            for head in (0, 1):
                found[f"img_proj{head + 1}_feature_sub"] = online[0][head][:, ::16]
                found[f"aud_proj{head + 1}_feature_sub"] = online[1][head][:, ::4]
            found |= maps(*online, "online", objective.tau) | maps(*target, "momentum", objective.tau)
        results |= {f"eval.{name}": value for name, value in found.items()}
    net.train()
    if p := c["dropout_img"]:
        net.drop = RecordedDropout(case.inputs["dropout_mask_online"], p)  # type: ignore[assignment]
        net.momentum.drop = RecordedDropout(case.inputs["dropout_mask_target"], p)  # type: ignore[assignment]
    online = net(image, spectrogram)
    net.follow(c["m_img"], c["m_aud"])
    with torch.no_grad():
        target = net.momentum(image, spectrogram)
    found = tensors(objective, *online, *target)
    found["loss"].backward()
    found["savl"] = mean_logits(*(target if c["use_mom_eval"] else online), objective.tau)
    for name, p in net.momentum.named_parameters():
        flat = p.flatten()
        found[f"momentum_sub.{official[f'momentum.{name}']}"] = flat[:: max(1, flat.numel() // 8)][:8]
    results |= {f"train.{name}": value for name, value in found.items()}
    return results | gradients(net, official, "train.") | after(net, official)


def tensors(objective: SLAVC, v: Tensor, a: Tensor, v_target: Tensor, a_target: Tensor) -> dict[str, Tensor]:
    return {
        "i2a": objective.logits(v, a_target),
        "a2i": objective.logits(v_target, a),
        "loss": objective(v, a, v_target, a_target)["loss"],
    }


def mean_logits(v: Tensor, a: Tensor, tau: float) -> Tensor:
    return (matching(v[0], a[0]) + matching(v[1], a[1])) / 2 / tau


def maps(v: Tensor, a: Tensor, which: str, tau: float) -> dict[str, Tensor]:
    S = mean_logits(v, a, tau) * tau
    scores = heat(S, 224, "bicubic_corners", "affine")
    return {
        f"savl_{which}": S / tau,
        f"scores_{which}_sub": scores[:, ::SUB, ::SUB],
        f"confidence_{which}": top_quarter(scores),
        f"relative_map_{which}_sub": minmax(scores)[:, ::SUB, ::SUB],
    }
