"""GAVS' image encoder: SAM's with adapters from block tune_v on, and the gradients of what is trained."""

from __future__ import annotations

from torch import Tensor

from avloc.backbones.sam import SAM
from avloc.methods.gavs.network import Design, GAVSNetwork
from tests.golden.case import Case
from tests.golden.kinds.sam_prompt_decoder import load_parts, sam_config


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    assert c["adapter_act"] == "relu"
    config = sam_config(c | {"num_heads": 4, "mlp_dim": 8, "iou_head_hidden_dim": 8})
    design = Design(prompt="audio", cola="none", adapter_hidden=c["adapter_hidden"])
    net = GAVSNetwork(SAM(config), design, tune_v=c["tune_v"])
    load_parts(net.model_v, {k.removeprefix("model_v."): v for k, v in case.weights.items()}, case.id)
    trained = {k: p for k, p in net.named_parameters() if p.requires_grad and "image_encoder" in k}
    assert set(trained) == set(c["trainable"])

    results: dict[str, Tensor] = {}
    x = net.model_v.patches(case.inputs["image"])
    for b in range(config.depth):
        adapters = net._adapt_encoder if b >= net.first_adapter else None
        x = results[f"block{b}"] = net.model_v.blocks(x, b, b + 1, adapters)
    embedding = results["embedding"] = net.encode(case.inputs["image"])
    loss = results["probe_loss"] = (embedding * case.inputs["probe"]).sum()
    if trained:
        loss.backward()
    return results | {f"grad/{k}": p.grad for k, p in trained.items()}
