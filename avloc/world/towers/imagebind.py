"""``world:imagebind``: sees crops, hears and reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, roi_align  # type: ignore[import-untyped]

from avloc.backbones.clipseg import normalise
from avloc.backbones.imagebind import AudioConfig, ImageBind, ImageBindConfig, TextConfig, VisionConfig
from avloc.world.scenes import NAMES
from avloc.world.towers.hearing import (
    NOTHING,
    PHRASES,
    against_sights,
    cosines,
    hearing_score,
    mixtures,
    tiny_tokenizer,
)
from avloc.world.towers.pools import SIZE, TAU, ScenePool, SoundPool, tight_boxes
from avloc.world.towers.recipe import Recipe

__all__ = ["pretrain_imagebind"]

# Pieces of one second, for clips of two.
IMAGEBIND = ImageBindConfig(
    embed_dim=64,
    vision=VisionConfig(size=48, patch=8, width=80, layers=4, heads=4),
    audio=AudioConfig(pieces=2, seconds=1.0, mels=64, frames=102, width=64, layers=3, heads=4),
    text=TextConfig(width=64, layers=2, heads=4),
)


def boxes_in(mask: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes as a detector might propose them: tight ones, loose ones, and some anywhere.

    Args:
        mask: float ``[B, K, H, W]`` of objects.
        label: int64 ``[B, K]``, -1 where there is none.

    Returns:
        boxes ``[N, 4]`` (edges, pixels), the picture of each ``[N]``, and what it shows ``[N, C + 1]``: its share of
        each class grows with the overlap with an object of that class, the rest is nothing.
    """
    B, side = len(mask), mask.shape[-1]
    picture, k = (label >= 0).nonzero(as_tuple=True)
    objects = mask[picture, k] > 0
    tight = tight_boxes(objects)
    corner, extent = torch.rand(B, 2) * 0.8 * side, (0.15 + 0.6 * torch.rand(B, 2)) * side
    boxes = torch.cat([tight_boxes(objects, 0.06), tight_boxes(objects, 0.3), torch.cat([corner, corner + extent], 1)])
    boxes = boxes.clamp(0, side)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 6)
    where = torch.cat([picture, picture, torch.arange(B)])
    overlap = box_iou(boxes, tight) * (where[:, None] == picture)
    share = ((overlap - 0.2) / 0.4).clamp(0, 1) @ F.one_hot(label[picture, k], len(NAMES)).float()
    share = share / share.sum(1, keepdim=True).clamp(min=1)
    return boxes, where, torch.cat([share, 1 - share.sum(1, keepdim=True)], 1)


def cropped(image: Tensor, boxes: Tensor, where: Tensor, side: int, square: Tensor | None = None) -> Tensor:
    """Crops ``[N, 3, side, side]`` of pictures ``[B, 3, H, W]``.

    Args:
        image: float, 0 to 255.
        boxes: ``[N, 4]``, edges in pixels.
        where: picture of each box, int64 ``[N]``.
        side: of a crop.
        square: bool ``[N]``; these boxes are widened to squares before, the others are squeezed into one.
    """
    if square is not None:
        middle, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        extent = torch.where(square[:, None], extent.amax(1, keepdim=True), extent)
        boxes = torch.cat([middle - extent / 2, middle + extent / 2], 1).clamp(0, image.shape[-1])
    return roi_align(image, torch.cat([where[:, None].to(boxes), boxes], 1), side, sampling_ratio=2, aligned=True)


def imagebind_losses(
    model: ImageBind, scene: tuple[Tensor, Tensor, Tensor], sounds: tuple[Tensor, Tensor], crops: int = 96
) -> dict[str, Tensor]:
    """Crops and sounds against the texts of the classes and of nothing, and sounds against crops."""
    image, mask, label = scene
    boxes, where, shows = boxes_in(mask, label)
    rows = torch.randperm(len(boxes))[:crops]
    pixels = cropped(image, boxes[rows], where[rows], model.config.vision.size, torch.rand(len(rows)) < 0.5)
    seen, its = model.encode_image(normalise(pixels)).float(), shows[rows]

    phrase = PHRASES[int(torch.randint(len(PHRASES), ()))]
    text = model.encode_text(model.tokenize([phrase.format(n) for n in (*NAMES, NOTHING)]))
    text = F.normalize(text.float(), dim=-1)
    audio, truth = mixtures(*sounds)
    heard = model.encode_audio(audio)
    return {
        "crop": F.cross_entropy(seen @ text.T / TAU, its),
        "text": F.cross_entropy(cosines(heard, text) / TAU, F.pad(truth, (0, 1))),
        "sight": against_sights(heard, truth, seen, its),
    }


@torch.no_grad()
def looking_score(look: Any, hear: Any, text: Tensor, side: int, seed: int, scenes: int = 300) -> dict[str, float]:
    """What unseen crops look like.

    Args:
        look: crops uint8 ``[N, 3, side, side]`` to embeddings ``[N, D]``.
        hear: waveforms ``[B, T]`` to embeddings ``[B, D]``.
        text: unit texts of all classes.
        side: of a crop, pixels.
        seed: of scenes, sounds and boxes.
        scenes: their number.

    Returns:
        ``crop_accuracy``, of an object's tight crop by its nearest class text; ``choosing``, how often the box of a
        scene that looks most like a sound of its first object covers that object with an IoU of 0.5 or more, among
        the tight boxes of all objects and twelve random ones; ``choosing_chance``, the share of such boxes.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    pool, sounds = ScenePool(seed, scenes), SoundPool(seed, 16 * len(NAMES))
    torch.random.set_rng_state(state)
    generator = torch.Generator().manual_seed(seed)
    of = [(sounds.label == c).nonzero()[:, 0] for c in range(len(NAMES))]
    picture, k = (pool.label >= 0).nonzero(as_tuple=True)
    tight = tight_boxes(pool.mask[picture, k])
    corner = torch.rand(scenes * 12, 2, generator=generator) * 0.7 * SIZE
    extent = (0.15 + 0.45 * torch.rand(scenes * 12, 2, generator=generator)) * SIZE
    boxes = torch.cat([tight, torch.cat([corner, corner + extent], 1).clamp(max=SIZE)])
    where = torch.cat([picture, torch.arange(scenes).repeat_interleave(12)])
    pixels = cropped(pool.image.float(), boxes, where, side).round().clamp(0, 255).byte()
    seen = torch.cat([F.normalize(look(x), dim=-1) for x in pixels.split(200)])

    right = (seen[: len(tight)] @ text.T).argmax(1) == pool.label[picture, k]
    asked = [(i, int(c)) for i, c in enumerate(pool.label[:, 0]) if c >= 0]
    waves = torch.stack([sounds.audio[of[c][i % len(of[c])]] for i, c in asked])
    heard = torch.cat([F.normalize(hear(x), dim=-1) for x in waves.split(100)])
    hits, chances = [], []
    for (i, _), sound in zip(asked, heard, strict=True):
        mine = where == i
        covers = box_iou(boxes[mine], tight_boxes(pool.mask[i, :1]))[:, 0] >= 0.5
        hits.append(covers[(seen[mine] @ sound).argmax()].item())
        chances.append(covers.float().mean().item())
    return {
        "crop_accuracy": right.float().mean().item(),
        "choosing": sum(hits) / len(hits),
        "choosing_chance": sum(chances) / len(chances),
    }


def pretrain_imagebind(recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    tokenizer = tiny_tokenizer()
    text = replace(IMAGEBIND.text, vocab_size=tokenizer.encode("")[-1] + 1)
    model = ImageBind(replace(IMAGEBIND, text=text), tokenizer)
    scenes, sounds = ScenePool(recipe.seed, recipe.pool), SoundPool(recipe.seed, recipe.pool)

    @torch.no_grad()
    def report() -> dict[str, float]:
        text = F.normalize(model.encode_text(model.tokenize(NAMES)), dim=-1)
        score = hearing_score(model.encode_audio, text, recipe.seed + 1)
        side = model.config.vision.size
        score |= looking_score(
            lambda x: model.encode_image(normalise(x)), model.encode_audio, text, side, recipe.seed + 1
        )
        return recipe.keep(model, score)

    def losses() -> dict[str, Tensor]:
        return imagebind_losses(model, scenes.draw(recipe.batch), sounds.batch(recipe.batch))

    apart = {id(p) for p in model.modality_postprocessors.parameters()}  # the temperature, without a loss of its own
    recipe.train([p for p in model.parameters() if id(p) not in apart], losses, report, 200)
