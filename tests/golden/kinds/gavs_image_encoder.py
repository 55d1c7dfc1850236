"""GAVS' image encoder: SAM's with adapters from block tune_v on, and the gradients of what is trained."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from avloc.backbones.sam import SAM
from avloc.methods.gavs.network import Design, GAVSNetwork
from tests.golden.case import Case
from tests.golden.kinds.sam_prompt_decoder import load_parts, sam_config

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


def network(c: dict[str, Any]) -> GAVSNetwork:
    """The case's encoder; the decoder, which nobody asks, has one head, so that it exists at any width."""
    config = sam_config(c | {"num_heads": 1, "attention_downsample_rate": 1, "mlp_dim": 8, "iou_head_hidden_dim": 8})
    design = Design(prompt="audio", cola="none", adapter_hidden=c["adapter_hidden"])
    net = GAVSNetwork(SAM(config), design, tune_v=c["tune_v"])
    for block in net.model_v.image_encoder.blocks:
        block.adapter_v[1] = ACTIVATIONS[c["adapter_act"]]()
        block.norm1.eps = block.norm2.eps = c["layer_norm_eps"]
    return net


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    net = network(c)
    load_parts(net.model_v, {k.removeprefix("model_v."): v for k, v in case.weights.items()}, case.id)
    trained = {k: p for k, p in net.named_parameters() if p.requires_grad and "image_encoder" in k}
    assert set(trained) == set(c["trainable"])

    results: dict[str, Tensor] = {}
    x = net.model_v.patches(case.inputs["image"])
    for b in range(net.model_v.config.depth):
        adapters = net._adapt_encoder if b >= net.first_adapter else None
        x = results[f"block{b}"] = net.model_v.blocks(x, b, b + 1, adapters)
    embedding = results["embedding"] = net.encode(case.inputs["image"])
    loss = results["probe_loss"] = (embedding * case.inputs["probe"]).sum()
    if trained:
        loss.backward()
    return results | {f"grad/{k}": p.grad for k, p in trained.items()}
