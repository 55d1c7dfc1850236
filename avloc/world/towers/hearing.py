"""What the tiny spaces share: mixtures of sounds among texts and sights, and how well one hears."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.backbones.tokens import Tokenizer, train_world_tokenizer
from avloc.world.scenes import NAMES
from avloc.world.towers.pools import TAU, TEMPLATES, WORDS, SoundPool

__all__ = ["NOTHING", "PHRASES", "against_sights", "cosines", "hearing_score", "mixtures", "tiny_tokenizer"]

NOTHING = "background"  # what a crop without an object is called

PHRASES = (*TEMPLATES, "the sound of a {}", "this is a sound of {}.", "{}.")


def tiny_tokenizer() -> Tokenizer:
    """The world's words; the full stop stays unknown, as anything else that nobody trained on."""
    return train_world_tokenizer([*WORDS, "and", "the", "sound", "with", "this", "is", "there", NOTHING])


def mixtures(audio: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of sounds: half of them alone, a quarter with one other, a quarter with two.

    Args:
        audio: ``[B, T]``, B a multiple of 4.
        label: int64 ``[B]``.

    Returns:
        the sums, and the share of each class in them, float32 ``[B, C]``.
    """
    B = len(audio)
    order, alone = torch.arange(B), torch.eye(B)
    weight = alone + alone.roll(B // 4, 1) * (order >= B // 2)[:, None]
    weight = weight + alone.roll(B // 2, 1) * (order >= B - B // 4)[:, None]
    return weight @ audio, (weight @ F.one_hot(label, len(NAMES)).float()) / weight.sum(1, keepdim=True)


def cosines(x: Tensor, unit: Tensor) -> Tensor:
    """Of ``[..., D]`` with unit vectors ``[C, D]``."""
    return F.normalize(x.float(), dim=-1) @ unit.T


@torch.no_grad()
def hearing_score(hear: Any, text: Tensor, seed: int, sounds: int = 400) -> dict[str, float]:
    """What unseen sounds find among the class texts.

    Args:
        hear: waveforms ``[B, T]`` to embeddings ``[B, D]``.
        text: unit texts of all classes.
        seed: of the sounds.
        sounds: their number.

    Returns:
        ``accuracy`` of a sound's nearest text; ``pair_recall``, the share of two summed sounds of different classes
        among the two nearest texts.
    """
    pool = SoundPool(seed, sounds)
    other = pool.label.roll(1)
    two = other != pool.label
    single, pair = (
        torch.cat([cosines(hear(x), text) for x in wave.split(100)])
        for wave in (pool.audio, pool.audio + pool.audio.roll(1, 0))
    )
    nearest = pair.topk(2).indices[two]
    found = torch.stack([(nearest == y[two, None]).any(1) for y in (pool.label, other)])
    return {
        "accuracy": single.argmax(1).eq(pool.label).float().mean().item(),
        "pair_recall": found.float().mean().item(),
    }


def against_sights(sound: Tensor, truth: Tensor, seen: Tensor, its: Tensor) -> Tensor:
    """Cross entropy of sounds with sights of all classes and of nothing.

    Args:
        sound: ``[B, D]``.
        truth: share of each class in a sound, ``[B, C]``.
        seen: unit sights ``[M, D]``.
        its: what they show, shares of the classes and of nothing, ``[M, C + 1]``.
    """
    # Each class weighs the same, however often it is seen.
    by_class = (cosines(sound, seen) / TAU).exp() @ (its / its.sum(0).clamp(min=1e-6))
    return F.cross_entropy(by_class.clamp(min=1e-9).log(), F.pad(truth, (0, 1)))
