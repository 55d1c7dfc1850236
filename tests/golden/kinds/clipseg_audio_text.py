"""CLIPSeg's text tower, driven by audio tokens (`CLIPSeg.encode_tokens`) and by plain text."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.backbones.clipseg import CLIPSeg
from avloc.weights import load_into
from tests.golden.case import Case


def grounder(case: Case, prefix: str = "") -> CLIPSeg:
    """A CLIPSeg of the case's size that holds the case's weights."""
    config = dict(case.config["clipseg_config"])
    vocabulary = config["text_config"]["vocab_size"]
    config["text_config"] = {
        **config["text_config"],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }
    model = CLIPSeg(config)
    state = {k.removeprefix(prefix): v for k, v in case.weights.items() if k.startswith(prefix)}
    load_into(model, state, case.id)
    return model


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    model = grounder(case)
    results = {}
    for call in case.config["calls"]:
        name = call["name"]
        if call["op"] == "encode_audio":
            words = model.embed_tokens(case.inputs[f"{name}.placeholder_token"])
            audio, pos = case.inputs[f"{name}.audio_token"], call["pos"]
            tokens = torch.cat([words[:, :pos], audio, words[:, pos:]], dim=1)
            results[name] = model.encode_tokens(tokens[:, : call["length"]])
        elif call["op"] == "encode_text":
            results[name] = model.encode_text(case.inputs[f"{name}.tokens"])
        else:
            results[name] = model.encode_text(case.inputs[f"{name}.input_ids"])
    return results
