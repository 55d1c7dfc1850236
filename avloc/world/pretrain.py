"""Trains the embedded world's tiny towers: the one script that made the files in `avloc/world/assets`.

    python -m avloc.world.pretrain clipseg
    python -m avloc.world.pretrain beats
    python -m avloc.world.pretrain sam
    python -m avloc.world.pretrain vggish
    python -m avloc.world.pretrain audioclip

Each command is deterministic on one machine (seed 0), prints the score on scenes or sounds that it never saw,
and writes it with the command into the file's metadata.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.audioclip import INT16, WORLD, AudioCLIP
from avloc.backbones.beats import BEATs, BEATsConfig
from avloc.backbones.clipseg import CLIPSeg, normalise
from avloc.backbones.sam import SAM, TINY
from avloc.backbones.tokens import Tokenizer, train_world_tokenizer
from avloc.backbones.vggish import VGGish, VGGishConfig
from avloc.weights import WORLD_ASSETS
from avloc.world.scenes import NAMES, render, sample_scenes
from avloc.world.sounds import sound

SIZE = 64  # pixels
SECONDS = 2.0

CLIPSEG: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
        "hidden_act": "quick_gelu",
    },
    "projection_dim": 64,
    "extract_layers": [0, 1, 2],
    "reduce_dim": 32,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 128,
    "conditional_layer": 0,
    "use_complex_transposed_convolution": True,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}

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

VGGISH = VGGishConfig(widths=(16, 32, 64, 64), hidden_size=128, embedding_size=128)

TEMPLATES = ("a photo of a {}", "a photograph of a {}", "an image of a {}", "a photo of {}", "a {}", "{}")
WORDS = sorted({w for t in TEMPLATES for w in t.replace("{}", "").split()}) + list(NAMES)
TAU = 0.07
SMOOTH = 0.02


def tiny_tokenizer() -> Tokenizer:
    return train_world_tokenizer([*WORDS, "and", "the", "sound", "with", "next", "to", "in", "front", "of"])


def tiny_clipseg() -> CLIPSeg:
    tokenizer = tiny_tokenizer()
    end = tokenizer.encode("")[-1]
    text = TEXT | {"vocab_size": end + 1, "eos_token_id": end, "bos_token_id": end - 1}
    return CLIPSeg({"text_config": text, **CLIPSEG}, tokenizer)


class ScenePool:
    """Rendered scenes to draw batches from; flips double them.

    Attributes:
        image: uint8 ``[N, 3, SIZE, SIZE]``.
        mask: bool ``[N, K, SIZE, SIZE]``.
        label: int64 ``[N, K]``, -1 where there is no object.
    """

    def __init__(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        parts = [self._part(rng, min(256, count - i)) for i in range(0, count, 256)]
        self.image, self.mask, self.label = (torch.cat(p) for p in zip(*parts, strict=True))

    @staticmethod
    def _part(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
        scenes = sample_scenes(rng, count)
        image, mask = render(scenes, SIZE)
        seen = mask.flatten(2).float().mean(2) > 0.02
        return image, mask, scenes.label.masked_fill(~(scenes.present & seen), -1)

    def batch(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        image, mask, label = self.draw(count)
        return normalise(image), mask, label

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures float32 0..255 ``[count, 3, SIZE, SIZE]`` of random brightness, masks 0 or 1, labels."""
        rows = torch.randint(len(self.image), (count,))
        image, mask = self.image[rows], self.mask[rows].float()
        flip = torch.rand(count) < 0.5
        image[flip], mask[flip] = image[flip].flip(-1), mask[flip].flip(-1)
        image = (image.float() * (0.85 + 0.3 * torch.rand(count, 1, 1, 1))).clamp(0, 255)
        return image, mask, self.label[rows]


def loosened(mask: Tensor) -> Tensor:
    """Masks ``[N, H, W]`` as a learning method would draw them: exact, grown, or with holes and specks."""
    n = len(mask)
    grown = F.max_pool2d(mask[:, None], 7, 1, 3)[:, 0]
    holes = F.interpolate(torch.rand(n, 1, 8, 8), mask.shape[-2:], mode="nearest")[:, 0] < 0.85
    specks = F.interpolate(torch.rand(n, 1, 8, 8), mask.shape[-2:], mode="nearest")[:, 0] < 0.08
    rough = torch.maximum(grown * holes, specks.float())
    choice = torch.randint(3, (n, 1, 1))
    return torch.where(choice == 0, mask, torch.where(choice == 1, grown, rough))


def clipseg_losses(model: CLIPSeg, image: Tensor, mask: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Text-conditioned masks, image-level and patch-level contrast with the class texts."""
    B, K = label.shape
    template = TEMPLATES[int(torch.randint(len(TEMPLATES), ()))]
    text = model.encode_text(model.tokenize([template.format(n) for n in NAMES]))  # [C, D]
    unit_text = F.normalize(text.float(), dim=-1)
    clean = model.encode_image(image, reduced=True, dense=True)

    # The first two objects are asked for, and a class that is not there.
    there = F.one_hot(label.clamp(min=0), len(NAMES)).mul(label.ge(0)[..., None]).sum(1).bool()
    absent = torch.rand(there.shape).masked_fill(there, -1).argmax(1, keepdim=True)
    asked = torch.cat([label[:, :2].clamp(min=0), absent], dim=1)
    logits = model.decode(clean.reduced, text[asked])
    coarse = F.adaptive_avg_pool2d(mask[:, :2], logits.shape[-1])
    wanted = label[:, :2].ge(0)
    truth = torch.cat([coarse * wanted[..., None, None], torch.zeros_like(coarse[:, :1])], dim=1)
    # Smoothed targets keep logits within a few units, as CLIPSeg's are: ACL's feature mask normalises a map by its
    # extremes, and one far outlier would turn it into a mask of everything.
    bce = F.binary_cross_entropy_with_logits(logits, truth * (1 - 2 * SMOOTH) + SMOOTH)
    p = logits.sigmoid()
    overlap = (p * truth).sum((-1, -2))
    dice = 1 - (2 * overlap + 1) / (p.sum((-1, -2)) + truth.sum((-1, -2)) + 1)
    dice = dice[:, :2][wanted].mean()

    # One object of each scene, cut out.
    k = (torch.rand(B, K) * label.ge(0)).argmax(1)
    one, its_label = mask[torch.arange(B), k], label[torch.arange(B), k].clamp(min=0)
    cut = model.encode_image(image * loosened(one)[:, None], pooled=True).pooled
    assert cut is not None
    assert clean.dense is not None
    contrast = F.cross_entropy(F.normalize(cut.float(), dim=-1) @ unit_text.T / TAU, its_label)

    share = F.adaptive_avg_pool2d(mask, clean.dense.shape[-1])  # [B, K, g, g]
    pooled = torch.einsum("bkhw,bdhw->bkd", share, clean.dense.float())
    patch_logits = F.normalize(pooled, dim=-1) @ unit_text.T / TAU
    patches = F.cross_entropy(patch_logits.flatten(0, 1), label.flatten(), ignore_index=-1)
    return {"bce": 2 * bce, "dice": dice, "contrast": contrast, "patches": patches}


@torch.no_grad()
def text_query_score(model: CLIPSeg, seed: int, scenes: int = 500) -> dict[str, float]:
    """How well the true class's text finds its object on unseen scenes: share above IoU 0.5, mean IoU, and
    the share of the picture that an absent class is given."""
    pool = ScenePool(seed, scenes)
    text = model.encode_text(model.tokenize([TEMPLATES[0].format(n) for n in NAMES]))
    ious, leaks = [], []
    for i in range(0, scenes, 50):
        image, label = normalise(pool.image[i : i + 50]), pool.label[i : i + 50]
        absent = (label[:, 0] + 1) % len(NAMES)
        absent = torch.where((label == absent[:, None]).any(1), (absent + 1) % len(NAMES), absent)
        absent = torch.where((label == absent[:, None]).any(1), (absent + 1) % len(NAMES), absent)
        asked = torch.cat([label[:, :2].clamp(min=0), absent[:, None]], 1)
        logits = model.decode(model.encode_image(image, reduced=True).reduced, text[asked])
        found = F.interpolate(logits, (SIZE, SIZE), mode="bicubic", align_corners=False) > 0
        truth = pool.mask[i : i + 50, :2]
        iou = (found[:, :2] & truth).sum((-1, -2)) / (found[:, :2] | truth).sum((-1, -2)).clamp(min=1)
        ious.append(iou[label[:, :2] >= 0])
        leaks.append(found[:, 2].float().mean((-1, -2)))
    iou = torch.cat(ious)
    return {
        "success": iou.ge(0.5).float().mean().item(),
        "miou": iou.mean().item(),
        "absent_area": torch.cat(leaks).mean().item(),
    }


def tight_boxes(mask: Tensor, jitter: float = 0.0) -> Tensor:
    """Boxes of masks.

    Args:
        mask: bool ``[N, H, W]``, none empty.
        jitter: standard deviation of each edge as a share of the box's side.

    Returns:
        float32 ``[N, 4]``: left, top, right, bottom edge, pixels.
    """

    def span(seen: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.arange(seen.shape[1])
        return torch.where(seen, at, seen.shape[1]).amin(1), torch.where(seen, at + 1, 0).amax(1)

    (left, right), (top, bottom) = span(mask.any(1)), span(mask.any(2))
    box = torch.stack([left, top, right, bottom], 1).float()
    if not jitter:
        return box
    side = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    return box + jitter * side * torch.randn(box.shape)


def points_in(mask: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Points ``[N, count, 2]`` (x, y, pixels) drawn from the pixels of masks ``[N, H, W]``, none empty."""
    at = torch.multinomial(mask.flatten(1).float(), count, replacement=True, generator=generator)
    jitter = torch.rand(*at.shape, 2, generator=generator) - 0.5
    return torch.stack([at % mask.shape[2], at // mask.shape[2]], -1) + jitter


def one_object(mask: Tensor, label: Tensor) -> Tensor:
    """Mask ``[B, H, W]`` of a random visible object of each scene."""
    k = (torch.rand(label.shape) * label.ge(0)).argmax(1)
    return mask[torch.arange(len(mask)), k]


def prompted_losses(model: SAM, embedding: Tensor, sparse: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mask loss and quality loss of one prompt a picture.

    The first mask learns from every prompt, for it is the one that methods use; of the others only the best does.
    """
    logits, quality = model.decode(embedding, sparse)
    logits = logits.float()
    truth = F.adaptive_avg_pool2d(mask, logits.shape[-1])[:, None].expand_as(logits)
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((-1, -2))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * truth).sum((-1, -2)) + 1) / (p.sum((-1, -2)) + truth.sum((-1, -2)) + 1)
    loss = 4 * bce + dice
    with torch.no_grad():
        found, there = logits > 0, truth >= 0.5
        iou = (found & there).sum((-1, -2)) / (found | there).sum((-1, -2)).clamp(min=1)
    return (loss[:, 0] + 0.3 * loss[:, 1:].amin(1)).mean(), F.mse_loss(quality.float(), iou)


def sam_losses(model: SAM, head: nn.Module, image: Tensor, mask: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Masks asked by a box and by points, and the class of each object by its mean embedding.

    The last term stands for SAM's masked-autoencoder pre-training: without it an embedding has no need to tell objects
    apart by their kind, which a prompt by sound wants to know.
    """
    embedding = model.encode(model.prepare(image))
    boxed, pointed = one_object(mask, label), one_object(mask, label)
    box_prompt, _ = model.prompts(boxes=tight_boxes(boxed > 0, jitter=0.05))
    points, inside = points_in(pointed, 1), [1]
    if torch.rand(()) < 0.3:
        points, inside = torch.cat([points, points_in(pointed, 1), points_in(1 - pointed, 1)], 1), [1, 1, 0]
    point_prompt, _ = model.prompts(points=(points, torch.tensor(inside).expand(len(points), -1)))
    by_box, box_quality = prompted_losses(model, embedding, box_prompt, boxed)
    by_point, point_quality = prompted_losses(model, embedding, point_prompt, pointed)

    share = F.adaptive_avg_pool2d(mask, embedding.shape[-1])  # [B, K, g, g]
    pooled = torch.einsum("bkhw,bdhw->bkd", share, embedding.float()) / share.sum((-1, -2))[..., None].clamp(min=1e-3)
    kind = F.cross_entropy(head(pooled).flatten(0, 1), label.flatten(), ignore_index=-1)
    return {"box": by_box, "point": by_point, "quality": box_quality + point_quality, "class": 0.3 * kind}


@torch.no_grad()
def prompt_score(model: SAM, seed: int, scenes: int = 500) -> dict[str, float]:
    """Masks of every visible object of unseen scenes, asked by its tight box and by one point drawn from its pixels.

    Args:
        model: a SAM of ``SIZE`` pixels.
        seed: of scenes and points.
        scenes: their number.

    Returns:
        ``box_miou`` and ``point_miou`` of the first mask at ``SIZE`` pixels, and ``quality_error``, the mean distance
        of its predicted to its true IoU over both prompts.
    """
    pool, generator = ScenePool(seed, scenes), torch.Generator().manual_seed(seed)
    ious: dict[str, list[Tensor]] = {"box": [], "point": []}
    errors = []
    for i in range(0, scenes, 50):
        there = pool.label[i : i + 50] >= 0
        mask, picture = pool.mask[i : i + 50][there], there.nonzero()[:, 0]
        embedding = model.encode(model.prepare(pool.image[i : i + 50]))[picture]
        asked = {
            "box": model.prompts(boxes=tight_boxes(mask))[0],
            "point": model.prompts(points=(points_in(mask, 1, generator), torch.ones(len(mask), 1, dtype=torch.long)))[
                0
            ],
        }
        for kind, sparse in asked.items():
            logits, quality = model.decode(embedding, sparse, masks=slice(1))
            found = model.upscale(logits, (SIZE, SIZE), (SIZE, SIZE))[:, 0] > 0
            iou = (found & mask).sum((-1, -2)) / (found | mask).sum((-1, -2)).clamp(min=1)
            ious[kind].append(iou)
            errors.append((quality[:, 0].float() - iou).abs())
    score = {f"{kind}_miou": torch.cat(values).mean().item() for kind, values in ious.items()}
    return score | {"quality_error": torch.cat(errors).mean().item()}


class SoundPool:
    """Rendered sounds: float32 ``[N, T]`` and their classes int64 ``[N]``."""

    def __init__(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        self.label = torch.from_numpy(rng.integers(0, len(NAMES), count))
        self.audio = torch.from_numpy(np.stack([sound(rng, int(c), SECONDS, (-45, -10)) for c in self.label]))

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.audio), (count,))
        audio = torch.stack(
            [a.roll(int(s)) for a, s in zip(self.audio[rows], torch.randint(32000, (count,)), strict=True)]
        )
        return audio * torch.rand(count, 1).mul(0.9).add(0.1), self.label[rows]


class SoundClassifier(nn.Module):
    """BEATs with a linear head on the mean of its features."""

    def __init__(self) -> None:
        super().__init__()
        self.beats = BEATs(BEATsConfig.from_dict(BEATS), feature_layers=(1, 2, 3))
        self.head = nn.Linear(3 * BEATS["encoder_embed_dim"], len(NAMES))

    def forward(self, audio: Tensor) -> Tensor:
        return self.head(self.beats(audio).mean(1))


@torch.no_grad()
def sound_score(model: VGGish, head: nn.Module, seed: int, sounds: int = 640) -> dict[str, float]:
    """Accuracy on unseen sounds by the mean of their two examples, and by each example of 0.96 s alone."""
    unseen = SoundPool(seed, sounds)
    logits = torch.cat([head(model(unseen.audio[i : i + 64])) for i in range(0, sounds, 64)])
    return {
        "accuracy": (logits.mean(1).argmax(1) == unseen.label).float().mean().item(),
        "accuracy_example": (logits.argmax(2) == unseen.label[:, None]).float().mean().item(),
    }


def tiny_audioclip() -> AudioCLIP:
    tokenizer = tiny_tokenizer()
    text = replace(WORLD.text, vocab_size=tokenizer.encode("")[-1] + 1)
    # Narrower than WORLD, for a file of two megabytes.
    image, audio = replace(WORLD.image, width=10, heads=5), replace(WORLD.audio, width=8)
    model = AudioCLIP(replace(WORLD, image=image, text=text, audio=audio), tokenizer)
    for scale in (model.logit_scale, model.logit_scale_ai, model.logit_scale_at):
        nn.init.constant_(scale, math.log(1 / TAU))
    return model


def in_rows(x: Tensor, tiles: int) -> Tensor:
    """``[B, C, H, W]`` to ``[B / tiles, C, H, tiles W]``: pictures side by side."""
    return x.unflatten(0, (-1, tiles)).permute(0, 2, 3, 1, 4).flatten(3)


def text_logits(x: Tensor, text: Tensor) -> Tensor:
    """Cosines of ``[..., D]`` with unit texts ``[C, D]``, over the temperature."""
    return F.normalize(x.float(), dim=-1) @ text.T / TAU


def unit_texts(model: AudioCLIP, template: str) -> Tensor:
    return F.normalize(model.encode_text(model.tokenize([template.format(n) for n in NAMES])).float(), dim=-1)


def audioclip_losses(
    model: AudioCLIP, scene: tuple[Tensor, Tensor, Tensor], sounds: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """Cut-out objects, patches of pictures and of rows of them, sounds and their tiles, each against the class texts.

    The patches and tiles stand for what a hundred million pictures and two million clips leave in the real towers'
    tokens; rows and sums of sounds, for pictures and clips of several things.
    """
    image, mask, label = scene
    B, K = label.shape
    text = unit_texts(model, TEMPLATES[int(torch.randint(len(TEMPLATES), ()))])
    k = (torch.rand(B, K) * label.ge(0)).argmax(1)
    one, its_label = mask[torch.arange(B), k], label[torch.arange(B), k].clamp(min=0)
    cut = F.cross_entropy(text_logits(model.encode_image(image * loosened(one)[:, None]), text), its_label)

    tiles = (1, 1, 2, 3, 4)[int(torch.randint(5, ()))]
    g = SIZE // model.config.image.stride
    tokens = model.image_tokens(in_rows(image, tiles), "sequence" if torch.rand(()) < 0.5 else "grid")
    tokens = tokens.unflatten(1, (g, tiles, g)).permute(0, 2, 1, 3, 4).flatten(0, 1)  # each picture's own [B, g, g, D]
    share = F.adaptive_avg_pool2d(mask, g)
    pooled = torch.einsum("bkhw,bhwd->bkd", share, tokens)
    patches = F.cross_entropy(text_logits(pooled, text).flatten(0, 1), label.flatten(), ignore_index=-1)

    # A quarter of the clips hold two sounds, another quarter three; the right answer is each of them alike.
    audio, heard = sounds
    quarter = B // 4
    order = torch.arange(B)
    weight = torch.eye(B) + torch.eye(B).roll(quarter, 1) * (order >= B // 2)[:, None]
    weight = weight + torch.eye(B).roll(2 * quarter, 1) * (order >= B - quarter)[:, None]
    truth = (weight @ F.one_hot(heard, len(NAMES)).float()) / weight.sum(1, keepdim=True)
    kernels = model.audio.fbsp()
    features = model.audio.features(weight @ audio * INT16, kernels)
    pooled_sound, mean_tile = model.audio.pool(features), model.audio.tokens(features).mean(1)
    return {
        "cut": cut,
        "patches": patches,
        "audio": F.cross_entropy(text_logits(pooled_sound, text), truth),
        "tiles": F.cross_entropy(text_logits(mean_tile, text), truth),
        "length": model.audio.fbsp.regulariser(kernels),
    }


@torch.no_grad()
def tower_score(model: AudioCLIP, seed: int, scenes: int = 400) -> dict[str, float]:
    """What the texts find in unseen scenes and sounds.

    Args:
        model: an AudioCLIP of ``SIZE`` pixels.
        seed: of scenes and sounds.
        scenes: their number, a multiple of 4.

    Returns:
        ``accuracy`` of a sound by its embedding; ``pair_recall``, the share of two summed sounds among the two nearest
        texts; ``pointing`` and ``pointing_rows``, how often the patch nearest to the text of a scene's first object,
        among those of its picture or of a row of two, touches the object; ``chance``, the share of such patches in a
        picture.
    """
    model.eval()
    text = unit_texts(model, TEMPLATES[-1])
    sounds, pool = SoundPool(seed, scenes), ScenePool(seed, scenes)
    other = sounds.label.roll(1)
    single, pair = (
        torch.cat([text_logits(model.encode_audio(x), text) for x in wave.split(100)])
        for wave in (sounds.audio, sounds.audio + sounds.audio.roll(1, 0))
    )
    two = other != sounds.label
    nearest = pair.topk(2).indices[two]
    found = torch.stack([(nearest == y[two, None]).any(1) for y in (sounds.label, other)])
    score = {
        "accuracy": single.argmax(1).eq(sounds.label).float().mean().item(),
        "pair_recall": found.float().mean().item(),
    }
    score |= {"pointing": pointing(model, text, pool, 1)[0], "pointing_rows": pointing(model, text, pool, 2)[0]}
    score["chance"] = pointing(model, text, pool, 1)[1]
    model.train()
    return score


def pointing(model: AudioCLIP, text: Tensor, pool: ScenePool, tiles: int) -> tuple[float, float]:
    """How often the patch of a row that is nearest to the text of a picture's first object touches that object, and the
    share of such patches in a picture. Pictures in whose rows the object is twice are not asked."""
    rows = in_rows(normalise(pool.image), tiles)
    tokens = torch.cat([model.image_tokens(x) for x in rows.split(50)])
    label, scene = pool.label, torch.arange(len(pool.label))
    asked = label[:, 0].clamp(min=0)
    logits = text_logits(tokens, text).repeat_interleave(tiles, 0)  # each picture asks its whole row
    nearest = logits[scene, :, asked].argmax(1)
    g = SIZE // model.config.image.stride
    y, x = nearest // (tiles * g), nearest % (tiles * g)
    touched = F.adaptive_avg_pool2d(pool.mask[:, 0].float(), g) > 0.1
    hit = touched[scene, y, x % g] & (x // g == scene % tiles)
    present = (label.view(-1, 1, tiles, label.shape[1]) == asked.view(-1, tiles, 1, 1)).any(3).sum(2).flatten()
    counted = (label[:, 0] >= 0) & (present == 1)
    return hit[counted].float().mean().item(), touched[counted].float().mean().item()


def train(
    parameters: Sequence[nn.Parameter],
    losses: Any,
    steps: int,
    lr: float,
    report: Any,
    report_every: int,
    bf16: bool,
    undecayed: Sequence[nn.Parameter] = (),
) -> None:
    """AdamW with a one-cycle learning rate; ``losses()`` gives a dict of terms whose sum is minimised.

    ``undecayed`` are parameters beside the others that learn at half the rate, without weight decay.
    """
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    rates = [lr]
    if undecayed:
        groups.append({"params": list(undecayed), "weight_decay": 0.0})
        rates.append(lr / 2)
    parameters = [*parameters, *undecayed]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.08)
    start = time.monotonic()
    for step in range(1, steps + 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            terms = losses()
        optimizer.zero_grad()
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            line = ", ".join(f"{k} {v.item():.3f}" for k, v in terms.items())
            print(f"{step}/{steps} {time.monotonic() - start:.0f} s: {line}", flush=True)
        if step % report_every == 0 or step == steps:
            print(f"step {step}: {report()}", flush=True)


def pretrain_clipseg(steps: int, batch: int, lr: float, pool: int, seed: int, bf16: bool, out: Path) -> None:
    torch.manual_seed(seed)
    model = tiny_clipseg().requires_grad_(True)
    scenes = ScenePool(seed, pool)
    parameters = [p for p in model.parameters() if p is not model.clip.logit_scale]
    command = f"python -m avloc.world.pretrain clipseg --steps {steps} --batch {batch} --lr {lr} --pool {pool}"

    def report() -> dict[str, float]:
        score = text_query_score(model, seed + 1)
        model.save_world(out, command=command, seed=str(seed), score=str(score))
        return score

    def losses() -> dict[str, Tensor]:
        return clipseg_losses(model, *scenes.batch(batch))

    train(parameters, losses, steps, lr, report, 500, bf16)


def pretrain_beats(steps: int, batch: int, lr: float, pool: int, seed: int, bf16: bool, out: Path) -> None:
    torch.manual_seed(seed)
    model = SoundClassifier().requires_grad_(True)
    sounds, unseen = SoundPool(seed, pool), SoundPool(seed + 1, 640)
    command = f"python -m avloc.world.pretrain beats --steps {steps} --batch {batch} --lr {lr} --pool {pool}"

    @torch.no_grad()
    def report() -> dict[str, float]:
        right = [model(unseen.audio[i : i + 64]).argmax(1) == unseen.label[i : i + 64] for i in range(0, 640, 64)]
        score = {"accuracy": torch.cat(right).float().mean().item()}
        model.beats.save_world(out, command=command, seed=str(seed), score=str(score))
        return score

    def losses() -> dict[str, Tensor]:
        audio, label = sounds.batch(batch)
        return {"class": F.cross_entropy(model(audio), label)}

    train(list(model.parameters()), losses, steps, lr, report, 200, bf16)


def pretrain_sam(steps: int, batch: int, lr: float, pool: int, seed: int, bf16: bool, out: Path) -> None:
    torch.manual_seed(seed)
    model = SAM(TINY).requires_grad_(True)
    head = nn.Linear(TINY.transformer_dim, len(NAMES))
    scenes = ScenePool(seed, pool)
    command = command_of("sam", steps, batch, lr, pool, bf16)

    def report() -> dict[str, float]:
        score = prompt_score(model, seed + 1)
        model.save_world(out, command=command, seed=str(seed), score=str(score))
        return score

    def losses() -> dict[str, Tensor]:
        return sam_losses(model, head, *scenes.draw(batch))

    train([*model.parameters(), *head.parameters()], losses, steps, lr, report, 500, bf16)


def pretrain_vggish(steps: int, batch: int, lr: float, pool: int, seed: int, bf16: bool, out: Path) -> None:
    torch.manual_seed(seed)
    model, head = VGGish(VGGISH), nn.Linear(VGGISH.embedding_size, len(NAMES))
    sounds = SoundPool(seed, pool)
    command = command_of("vggish", steps, batch, lr, pool, bf16)

    def report() -> dict[str, float]:
        score = sound_score(model, head, seed + 1)
        model.save_world(out, command=command, seed=str(seed), score=str(score))
        return score

    def losses() -> dict[str, Tensor]:
        audio, label = sounds.batch(batch)
        logits = head(model(audio))  # [B, N, C]: every example by itself, so that one second is enough
        return {"class": F.cross_entropy(logits.flatten(0, 1), label.repeat_interleave(logits.shape[1]))}

    train([*model.parameters(), *head.parameters()], losses, steps, lr, report, 100, bf16)


def pretrain_audioclip(steps: int, batch: int, lr: float, pool: int, seed: int, bf16: bool, out: Path) -> None:
    if batch % 12:
        raise SystemExit(f"audioclip: --batch {batch} is no multiple of 12, which rows of 1 to 4 pictures need.")
    torch.manual_seed(seed)
    model = tiny_audioclip().train()
    scenes, sounds = ScenePool(seed, pool), SoundPool(seed, pool)
    bank = list(model.audio.fbsp.parameters())
    apart = {id(p) for p in (*bank, model.logit_scale, model.logit_scale_ai, model.logit_scale_at)}
    rest = [p for p in model.parameters() if id(p) not in apart]
    command = command_of("audioclip", steps, batch, lr, pool, bf16)

    def report() -> dict[str, float]:
        score = tower_score(model, seed + 1)
        model.save_world(out, command=command, seed=str(seed), score=str(score))
        return score

    def losses() -> dict[str, Tensor]:
        return audioclip_losses(model, scenes.batch(batch), sounds.batch(batch))

    train(rest, losses, steps, lr, report, 200, bf16, undecayed=bank)


def command_of(tower: str, steps: int, batch: int, lr: float, pool: int, bf16: bool) -> str:
    """The command that a file's metadata names."""
    options = f"--steps {steps} --batch {batch} --lr {lr} --pool {pool}" + (" --bf16" if bf16 else "")
    return f"python -m avloc.world.pretrain {tower} {options}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tower", choices=tuple(TOWERS))
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--pool", type=int, default=None, help="rendered scenes or sounds to draw from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast: faster on CPUs with AMX")
    parser.add_argument("--out", type=Path, default=None, help="file to write; the package's own by default")
    args = parser.parse_args()
    out = args.out or WORLD_ASSETS / f"{args.tower}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    pretrain, steps, pool, batch = TOWERS[args.tower]
    pretrain(
        args.steps or steps,
        args.batch or batch,
        args.lr,
        args.pool or pool,
        args.seed,
        args.bf16,
        out,
    )


# How a tower is trained, and by default with how many steps, rendered scenes or sounds, and samples of a batch.
TOWERS: dict[str, tuple[Any, int, int, int]] = {
    "clipseg": (pretrain_clipseg, 3000, 30000, 64),
    "beats": (pretrain_beats, 1000, 8000, 64),
    "sam": (pretrain_sam, 3000, 15000, 64),
    "vggish": (pretrain_vggish, 600, 4000, 64),
    "audioclip": (pretrain_audioclip, 1500, 6000, 24),
}


if __name__ == "__main__":
    main()
