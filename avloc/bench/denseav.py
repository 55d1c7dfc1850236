"""A step of DenseAV against its unavoidable passes."""

from __future__ import annotations

from typing import Any, Literal

import torch

from avloc.backbones.hubert import standardised
from avloc.backbones.resnet import normalised
from avloc.bench.step import Result, against
from avloc.bench.two_tower import sounds_and_pictures
from avloc.methods.denseav import DenseAV
from avloc.types import AVBatch

__all__ = ["build_denseav", "measure_denseav", "unavoidable_denseav"]

WORLD: dict[str, Any] = {
    "image_tower": {"image_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
    "audio_tower": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "conv_dim": [32] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    },
    "code_dim": 48,
    "image_pool": 1,
    "image_size": 64,
    "seconds": 2.0,
}


def build_denseav(full_size: bool, **options: object) -> DenseAV:
    """The size of `denseav_world`, or the published one, both with random weights, all of which learn. No layer is
    dropped: which one is a matter of chance."""
    settings: dict[str, Any] = (dict[str, Any]() if full_size else WORLD) | {"frozen_steps": 0} | options
    model = DenseAV(**settings)
    model.network.audio_tower.model.config.layerdrop = 0.0
    return model


def unavoidable_denseav(model: DenseAV, batch: AVBatch) -> None:
    """What any implementation of the objective has to compute for B samples: both towers and aligners once for each,
    and the inner products of all steps with all places of all pairs, with their backward."""
    image = normalised(batch.image, (batch.image.shape[-2], batch.image.shape[-1]))
    v, _ = model.network.see(image, model.pools[0])
    a, _ = model.network.hear(standardised(batch.audio), model.pools[1])
    model.aggregation.raw(v, a).mean().backward()


def measure_denseav(
    batch_size: int = 16, full_size: bool = False, steps: int = 3, precision: Literal["32", "bf16"] = "32"
) -> Result:
    """Measure; see `avloc.bench.command.bench_step` for the arguments. Returns as `avloc.bench.step.measure_step`."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_denseav(full_size).to(device).train()
    batch = sounds_and_pictures(model, batch_size)
    told = against(model, batch, lambda: unavoidable_denseav(model, batch), precision, steps)
    return {"method": "denseav", "size": "full" if full_size else "world"} | told
