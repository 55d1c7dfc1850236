"""``world:vggish``: sounds by their class, an example of 0.96 s at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.vggish import VGGish, VGGishConfig
from avloc.world.scenes import NAMES
from avloc.world.towers.pools import SoundPool
from avloc.world.towers.recipe import Recipe

__all__ = ["pretrain_vggish"]

VGGISH = VGGishConfig(widths=(16, 32, 64, 64), hidden_size=128, embedding_size=128)


@torch.no_grad()
def sound_score(model: VGGish, head: nn.Module, seed: int, sounds: int = 640) -> dict[str, float]:
    """Accuracy on unseen sounds by the mean of their two examples, and by each example of 0.96 s alone."""
    unseen = SoundPool(seed, sounds)
    logits = torch.cat([head(model(unseen.audio[i : i + 64])) for i in range(0, sounds, 64)])
    return {
        "accuracy": (logits.mean(1).argmax(1) == unseen.label).float().mean().item(),
        "accuracy_example": (logits.argmax(2) == unseen.label[:, None]).float().mean().item(),
    }


def pretrain_vggish(recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    model, head = VGGish(VGGISH), nn.Linear(VGGISH.embedding_size, len(NAMES))
    sounds = SoundPool(recipe.seed, recipe.pool)

    def report() -> dict[str, float]:
        score = sound_score(model, head, recipe.seed + 1)
        return recipe.keep(model, score)

    def losses() -> dict[str, Tensor]:
        audio, label = sounds.batch(recipe.batch)
        logits = head(model(audio))  # [B, N, C]: every example by itself, so that one second is enough
        return {"class": F.cross_entropy(logits.flatten(0, 1), label.repeat_interleave(logits.shape[1]))}

    recipe.train([*model.parameters(), *head.parameters()], losses, report, 100)
