"""The release's checkpoints under `DenseAVNetwork`'s names, adapters merged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from avloc.backbones.hubert import own_names
from avloc.weights import WeightError, read_state

__all__ = ["LORA_ALPHA", "merged", "official_state", "read_official"]

LORA_ALPHA = 32
TOWERS = {"image_model": "image_tower.", "audio_model": "audio_tower.model."}
ADAPTER = re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[AB])\.default\.weight")
UNUSED = ("loss_leak", "use_cached_embs")


def merged(state: Mapping[str, Tensor], alpha: float = LORA_ALPHA) -> dict[str, Tensor]:
    """A state dict of peft's without its adapters: W + alpha / r B A, under the layers' own names.

    Raises:
        WeightError: an adapter lacks a factor or its layer.
    """
    plain = {k.replace(".base_layer.", "."): v for k, v in state.items() if not ADAPTER.fullmatch(k)}
    factors: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if found := ADAPTER.fullmatch(key):
            factors.setdefault(found["layer"], {})[found["factor"]] = value
    for layer, pair in factors.items():
        weight = f"{layer}.weight"
        if pair.keys() != {"A", "B"} or weight not in plain:
            raise WeightError(f"The adapter of {layer} is not whole: it needs lora_A, lora_B and weight.")
        plain[weight] = plain[weight] + alpha / len(pair["A"]) * pair["B"] @ pair["A"]
    return plain


def official_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """A release's tensors (``state_dict`` of a Lightning file, or the hub's) under `DenseAVNetwork`'s names."""
    inner = content.get("state_dict", content)
    state = merged({k: v for k, v in inner.items() if isinstance(v, Tensor) and k not in UNUSED})
    named: dict[str, Tensor] = {}
    heard: dict[str, Tensor] = {}
    for key, value in state.items():
        tower, _, rest = key.partition(".")
        if tower in TOWERS:
            rest = rest.removeprefix("base_model.model.").removeprefix("model.")
            if tower == "audio_model":
                heard[rest] = value
            else:
                named[TOWERS[tower] + rest] = value
        else:
            named[key] = value
    return named | {TOWERS["audio_model"] + k: v for k, v in own_names(heard).items()}


def read_official(path: Path) -> dict[str, Tensor]:
    """The tensors of a release's file.

    Raises:
        WeightError: damaged, would run code, or of another model.
    """
    state = official_state(read_state(path))
    if not {"audio_cls", "sim_cal.w"} <= state.keys():
        raise WeightError(f"{path} is no checkpoint of DenseAV: it has neither audio_cls nor sim_cal. Name another.")
    return state
