"""T-VSL as released, behind its towers: features, losses, gradients, and a few steps of Adam."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.methods.tvsl.losses import Scales
from avloc.methods.tvsl.method import losses_of
from avloc.methods.tvsl.network import DESIGNS, TVSLNetwork
from avloc.weights import load_into
from tests.golden.case import Case

FROZEN = ("logit_scale", "logit_scale_at", "logit_scale_ai")
TERMS = {"loss": "total", "mcid": "mcl", "audio_cls": "audio_cls", "image_cls": "image_cls", "av": "contrastive"}


def network(case: Case) -> tuple[TVSLNetwork, Scales]:
    net = TVSLNetwork(case.config["dim"], DESIGNS["released"])
    own = {k: v for k, v in case.weights.items() if k in net.state_dict()}
    load_into(net, own, case.id)
    assert case.weights.keys() - own.keys() == set(FROZEN)
    return net, Scales(*(case.weights[k].exp().clamp(1, 100) for k in FROZEN))


def given(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Picture and sound tokens, unit bank, and classes ``[B, K]``; the release has K = 2."""
    bank = torch.nn.functional.normalize(case.inputs["text_bank"], dim=-1)
    names = [f"class{k}" for k in range(1, 10) if f"class{k}" in case.inputs]
    classes = torch.stack([case.inputs[name] for name in names], 1)
    return case.inputs["image_tokens"].transpose(0, 1), case.inputs["audio_tokens"], bank, classes


def run(case: Case) -> dict[str, Tensor]:
    net, scales = network(case)
    image, audio, bank, classes = given(case)

    def step() -> dict[str, Tensor]:
        return losses_of(net, net.prepare(image, audio), bank, classes, classes, scales)

    losses = step()
    losses["loss"].backward()
    tokens = net.prepare(image, audio)
    found = net.separate(tokens, bank[classes])
    visual, heard = net.class_features(found)
    pairs = {"contrastive_audio": found.query, "contrastive_image": net.visual_query(tokens, found)}
    results = {name: x.transpose(0, 1).flatten(0, 1) for name, x in pairs.items()}  # class 1 of all, then class 2
    results |= {f"loss_{theirs}": losses[ours] for ours, theirs in TERMS.items()}
    results |= {f"class{k + 1}_image_feature": visual[:, k] for k in range(classes.shape[1])}
    results |= {f"class{k + 1}_audio_feature": heard[:, k] for k in range(classes.shape[1])}
    results["fused_feature"] = tokens.fused
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        stride = max(1, p.numel() // 64)
        results |= {
            f"grad.{name}": p.grad.clone(),
            f"grad_norm.{name}": p.grad.norm(),
            f"grad_sub.{name}": p.grad.flatten()[::stride][:64].clone(),
        }
    if adam := case.config.get("adam"):
        optimizer = torch.optim.Adam(net.parameters(), lr=adam["lr"])
        rows = []
        for _ in range(adam["steps"]):
            losses = step()
            rows.append(torch.stack([losses[name].detach() for name in TERMS]))
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
        results["adam_losses"] = torch.stack(rows)
        results |= {f"adam_final.{name}": p.detach() for name, p in net.named_parameters() if p.ndim == 0}
    return results
