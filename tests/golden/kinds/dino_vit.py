"""DINO's tower, and DenseAV's positions, epsilon and adapters."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.backbones.dino import DINO
from avloc.methods.denseav.checkpoints import merged, official_state
from avloc.weights import load_into
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    model = DINO(c["native_image_size"], c["patch_size"], c["embed_dim"], c["depth"], c["num_heads"]).eval()
    weights, found = case.weights, {}
    if c.get("lora"):
        weights = {k.removeprefix("image_tower."): v for k, v in official_state(case.weights).items()}
        assert merged(case.weights, c["lora"]["alpha"]).keys() == {k for k in case.weights if ".lora_" not in k}, (
            "adapters alone go"
        )
        found = {f"merged_qkv_{i}": weights[f"blocks.{i}.attn.qkv.weight"] for i in range(c["depth"])}
    load_into(model, weights, case.id)
    for h, w in c["sizes"]:
        with torch.no_grad():
            tokens, cls = model.see(case.inputs[f"image_{h}x{w}"] / 64 - 2)
            positions = model.positions(h // c["patch_size"], w // c["patch_size"])
        name = f"{h}x{w}"
        found |= {f"tokens_{name}": tokens, f"cls_{name}": cls, f"pos_{name}": positions}
        if "tokens_stride" in c:
            _, s, t, u = c["tokens_stride"]
            found[f"tokens_{name}_slice"] = tokens[:, ::s, ::t, ::u]
            found[f"tokens_{name}_mean"], found[f"tokens_{name}_std"] = tokens.mean(), tokens.std(correction=0)
            found[f"pos_{name}_slice"] = c["pos_scale"] * positions[:, :: c["pos_stride"][1], :: c["pos_stride"][2]]
    return found
