"""`avloc.backbones.vggish` against torchvggish's network and post-processor."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.backbones.vggish import VGGish, VGGishConfig
from avloc.weights import load_into
from tests.golden.case import Case


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    tower = VGGish(VGGishConfig(embedding_size=case.config["embedding_size"]), postprocess=True).eval()
    load_into(tower, case.weights, case.id)
    examples = case.inputs.get("examples")
    if examples is None:
        examples = tower.front_end(case.inputs["waveform"][None])[0]
    embedding = tower.embed(examples)
    return {
        "examples": examples,
        "features": tower.features(examples),
        "embedding": embedding,
        "postprocessed": tower.pproc(embedding).squeeze(),  # a convention of the reference
    }
