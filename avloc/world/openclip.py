"""``world:openclip``: the CLIP of ``world:clipseg`` in open_clip's layout, nothing trained.

``python -m avloc.world.openclip`` writes the asset again.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from avloc.backbones.clipseg import CLIPSeg
from avloc.backbones.openclip import TINY, Config, OpenCLIP
from avloc.weights import WORLD_ASSETS, load_into

__all__ = ["write_openclip"]

COMMAND = "python -m avloc.world.openclip"


def write_openclip(path: Path, source: str = "world:clipseg") -> None:
    """Write the towers of a small CLIPSeg as a file for `OpenCLIP.from_source`.

    Args:
        path: ends with ``.safetensors``.
        source: weight source of the CLIPSeg, whose tokenizer is the world's.
    """
    clipseg = CLIPSeg.from_source(source)
    model = OpenCLIP(layout(clipseg), clipseg.tokenizer)
    load_into(model.clip, renamed(clipseg), source)
    digest = clipseg.file.sha256
    model.save_world(path, command=COMMAND, note=f"the CLIP of {source} (sha256 {digest}), nothing trained")


def layout(clipseg: CLIPSeg) -> Config:
    """Sizes as open_clip names them."""
    vision, text = clipseg.config.vision_config, clipseg.config.text_config
    config = copy.deepcopy(TINY)
    config["embed_dim"] = clipseg.width
    config["vision_cfg"] |= {
        "image_size": vision.image_size,
        "layers": vision.num_hidden_layers,
        "width": vision.hidden_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
        "patch_size": vision.patch_size,
        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
    }
    config["text_cfg"] |= {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": text.intermediate_size / text.hidden_size,
    }
    return config


def renamed(clipseg: CLIPSeg) -> dict[str, Tensor]:
    """The CLIP's tensors under open_clip's keys."""
    state = clipseg.clip.state_dict()
    out = {
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": state["logit_scale"],
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",  # transformers' own spelling
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for to, name in norms.items():
        out |= {f"{to}.{w}": state[f"{name}.{w}"] for w in ("weight", "bias")}
    towers = {
        "visual.": ("vision_model", clipseg.config.vision_config.num_hidden_layers),
        "": ("text_model", clipseg.config.text_config.num_hidden_layers),
    }
    for to, (name, layers) in towers.items():
        for i in range(layers):
            out |= block(state, f"{name}.encoder.layers.{i}", f"{to}transformer.resblocks.{i}")
    return out


def block(state: dict[str, Tensor], name: str, to: str) -> dict[str, Tensor]:
    """One Transformer block; open_clip keeps queries, keys and values in one matrix."""
    parts = {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    out = {f"{to}.{new}.{w}": state[f"{name}.{old}.{w}"] for new, old in parts.items() for w in ("weight", "bias")}
    for w in ("weight", "bias"):
        out[f"{to}.attn.in_proj_{w}"] = torch.cat([state[f"{name}.self_attn.{k}_proj.{w}"] for k in "qkv"])
    return out


if __name__ == "__main__":
    write_openclip(WORLD_ASSETS / "openclip.safetensors")
