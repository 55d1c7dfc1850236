"""``world:beats``: sounds by their class."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.beats import BEATs, BEATsConfig
from avloc.world.scenes import NAMES
from avloc.world.towers.pools import SoundPool
from avloc.world.towers.recipe import Recipe

__all__ = ["pretrain_beats"]

BEATS: dict[str, Any] = {
    "encoder_layers": 3,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 256,
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "dropout_input": 0.0,
    "layer_norm_first": False,
    "conv_bias": False,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "relative_position_embedding": True,
    "num_buckets": 64,
    "max_distance": 200,
    "gru_rel_pos": True,
    "deep_norm": True,
    "input_patch_size": 16,
    "embed_dim": 64,
}


class SoundClassifier(nn.Module):
    """BEATs with a linear head on the mean of its features."""

    def __init__(self) -> None:
        super().__init__()
        self.beats = BEATs(BEATsConfig.from_dict(BEATS), feature_layers=(1, 2, 3))
        self.head = nn.Linear(3 * BEATS["encoder_embed_dim"], len(NAMES))

    def forward(self, audio: Tensor) -> Tensor:
        return self.head(self.beats(audio).mean(1))


def pretrain_beats(recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    model = SoundClassifier().requires_grad_(True)
    sounds, unseen = SoundPool(recipe.seed, recipe.pool), SoundPool(recipe.seed + 1, 640)

    @torch.no_grad()
    def report() -> dict[str, float]:
        right = [model(unseen.audio[i : i + 64]).argmax(1) == unseen.label[i : i + 64] for i in range(0, 640, 64)]
        score = {"accuracy": torch.cat(right).float().mean().item()}
        return recipe.keep(model.beats, score)

    def losses() -> dict[str, Tensor]:
        audio, label = sounds.batch(recipe.batch)
        return {"class": F.cross_entropy(model(audio), label)}

    recipe.train(list(model.parameters()), losses, report, 200)
