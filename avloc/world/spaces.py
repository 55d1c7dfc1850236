"""Trains the embedded world's spaces: what hears beside ``world:openclip``, and a tiny CLAP and ImageBind.

    python -m avloc.world.spaces wav2clip
    python -m avloc.world.spaces clap
    python -m avloc.world.spaces imagebind

Each command is deterministic on one machine (seed 0), prints the score on scenes and sounds that it never saw, and
writes it with the command into the file's metadata.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, roi_align  # type: ignore[import-untyped]

from avloc.backbones.clap import CLAP
from avloc.backbones.clipseg import normalise
from avloc.backbones.imagebind import AudioConfig, ImageBind, ImageBindConfig, TextConfig, VisionConfig
from avloc.backbones.openclip import OpenCLIP
from avloc.backbones.tokens import Tokenizer, train_world_tokenizer
from avloc.backbones.wav2clip import Wav2CLIP, Wav2CLIPConfig
from avloc.weights import WORLD_ASSETS
from avloc.world.pretrain import (
    SECONDS,
    SIZE,
    TAU,
    TEMPLATES,
    WORDS,
    ScenePool,
    SoundPool,
    command_of,
    loosened,
    tight_boxes,
    train,
)
from avloc.world.scenes import NAMES
from avloc.world.sounds import RATE

WAV2CLIP = Wav2CLIPConfig(blocks=(1, 1, 1, 1), mlp_units=(128, 128, 64))

CLAP_SETTINGS: dict[str, Any] = {
    "feature_size": 32,
    "sampling_rate": RATE,
    "hop_length": 256,
    "max_length_s": round(SECONDS),
    "fft_window_size": 512,
    "frequency_min": 50,
    "frequency_max": 7800,
}
CLAP_AUDIO: dict[str, Any] = {
    "num_mel_bins": 32,
    "spec_size": 64,
    "window_size": 4,
    "patch_embeds_hidden_size": 32,
    "depths": [1, 1, 2],
    "num_attention_heads": [2, 4, 8],
    "hidden_size": 128,
    "hidden_dropout_prob": 0.0,
}
CLAP_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

# Pieces of one second, for clips of two.
IMAGEBIND = ImageBindConfig(
    embed_dim=64,
    vision=VisionConfig(size=48, patch=8, width=80, layers=4, heads=4),
    audio=AudioConfig(pieces=2, seconds=1.0, mels=64, frames=102, width=64, layers=3, heads=4),
    text=TextConfig(width=64, layers=2, heads=4),
)
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


# ---- Wav2CLIP


@torch.no_grad()
def seen_by(clip: OpenCLIP, scenes: ScenePool) -> tuple[Tensor, Tensor]:
    """Unit embeddings of what there is to see: cut-out objects, patches of objects, patches of nothing.

    Returns:
        float32 ``[M, D]``, and their classes int64 ``[M]``, the number of classes for nothing.
    """
    visual = clip.clip.visual
    units, labels = [], []
    for i in range(0, len(scenes.image), 100):
        image, mask = normalise(scenes.image[i : i + 100]), scenes.mask[i : i + 100].float()
        label = scenes.label[i : i + 100]
        picture, k = (label >= 0).nonzero(as_tuple=True)
        units.append(clip.encode_image(image[picture] * loosened(mask[picture, k])[:, None]))
        tokens = patches(visual, image)
        share = F.adaptive_avg_pool2d(mask, tokens.shape[-1])
        inside = torch.einsum("bkhw,bdhw->bkd", share, tokens)
        empty = share.amax(1) == 0
        units += [inside[picture, k], tokens.movedim(1, -1)[empty][::17]]
        labels += [label[picture, k], label[picture, k], torch.full((len(units[-1]),), len(NAMES))]
    return F.normalize(torch.cat(units), dim=-1), torch.cat(labels)


def patches(visual: Any, image: Tensor) -> Tensor:
    """Patch embeddings ``[B, D, g, g]`` of open_clip's ViT in the joint space."""
    before, visual.output_tokens = visual.output_tokens, True
    tokens = visual(image)[1] @ visual.proj
    visual.output_tokens = before
    g = round(tokens.shape[1] ** 0.5)
    return tokens.mT.unflatten(2, (g, g))


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


def wav2clip_losses(
    model: Wav2CLIP, text: Tensor, seen: Tensor, its: Tensor, sounds: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """Sounds against the class texts and against 256 sights."""
    audio, truth = mixtures(*sounds)
    embedding = model(audio)
    rows = torch.randint(len(seen), (256,))
    return {
        "text": F.cross_entropy(cosines(embedding, text) / TAU, truth),
        "sight": against_sights(embedding, truth, seen[rows], F.one_hot(its[rows], len(NAMES) + 1).float()),
    }


@torch.no_grad()
def pointing(model: Wav2CLIP, clip: OpenCLIP, seed: int, scenes: int = 400) -> dict[str, float]:
    """How often the patch nearest to an unseen sound of a scene's first object touches that object; and by chance."""
    pool, rng = ScenePool(seed, scenes), SoundPool(seed, 16 * len(NAMES))
    of = [(rng.label == c).nonzero()[:, 0] for c in range(len(NAMES))]
    asked = [(i, int(c)) for i, c in enumerate(pool.label[:, 0]) if c >= 0]
    rows = torch.tensor([i for i, _ in asked])
    heard = torch.stack([rng.audio[of[c][i % len(of[c])]] for i, c in asked])
    sound = torch.cat([F.normalize(model(x), dim=-1) for x in heard.split(100)])
    tokens = torch.cat([patches(clip.clip.visual, normalise(x)) for x in pool.image[rows].split(100)])
    nearest = torch.einsum("bdhw,bd->bhw", F.normalize(tokens, dim=1), sound).flatten(1).argmax(1)
    touched = F.adaptive_avg_pool2d(pool.mask[rows, 0].float(), tokens.shape[-1]).flatten(1) > 0.1
    hit = touched[torch.arange(len(rows)), nearest]
    return {"pointing": hit.float().mean().item(), "chance": touched.float().mean().item()}


def pretrain_wav2clip(steps: int, batch: int, lr: float, pool: int, seed: int, bf16: bool, out: Path) -> None:
    torch.manual_seed(seed)
    clip = OpenCLIP.from_source("world:openclip")
    model = Wav2CLIP(WAV2CLIP, statistics="clip").train()
    sounds = SoundPool(seed, pool)
    seen, its = seen_by(clip, ScenePool(seed, 2000))
    texts = [clip.encode_names(NAMES, [t]) for t in TEMPLATES]
    command = command_for("wav2clip", steps, batch, lr, pool, bf16)
    note = f"hears into world:openclip (sha256 {clip.file.sha256})"

    def report() -> dict[str, float]:
        model.eval()
        score = hearing_score(model, texts[-1], seed + 1) | pointing(model, clip, seed + 1)
        model.save_world(out, command=command, seed=str(seed), score=str(score), note=note)
        model.train()
        return score

    def losses() -> dict[str, Tensor]:
        text = texts[int(torch.randint(len(texts), ()))]
        return wav2clip_losses(model, text, seen, its, sounds.batch(batch))

    train(list(model.parameters()), losses, steps, lr, report, 200, bf16)


# ---- CLAP


def tiny_clap() -> CLAP:
    tokenizer = tiny_tokenizer()
    end = tokenizer.encode("")[-1]
    text = CLAP_TEXT | {"vocab_size": end + 2, "pad_token_id": end + 1, "bos_token_id": end - 1, "eos_token_id": end}
    text["max_position_embeddings"] = end + 2 + 77  # RoBERTa counts positions from behind the padding's id
    config = {"text_config": text, "audio_config": CLAP_AUDIO, "projection_dim": 64}
    return CLAP(config, CLAP_SETTINGS, tokenizer)


def pretrain_clap(steps: int, batch: int, lr: float, pool: int, seed: int, bf16: bool, out: Path) -> None:
    torch.manual_seed(seed)
    model = tiny_clap().train()
    sounds = SoundPool(seed, pool)
    command = command_for("clap", steps, batch, lr, pool, bf16)

    def report() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            text = model.encode_text(NAMES)
        score = hearing_score(model.encode_audio, text, seed + 1)
        model.save_world(out, command=command, seed=str(seed), score=str(score))
        model.train()
        return score

    def losses() -> dict[str, Tensor]:
        audio, truth = mixtures(*sounds.batch(batch))
        phrase = PHRASES[int(torch.randint(len(PHRASES), ()))]
        text = model.encode_text([phrase.format(n) for n in NAMES])
        return {"text": F.cross_entropy(cosines(model.encode_audio(audio), text) / TAU, truth)}

    apart = {id(model.model.logit_scale_a), id(model.model.logit_scale_t)}  # without a loss of their own
    train([p for p in model.parameters() if id(p) not in apart], losses, steps, lr, report, 200, bf16)


# ---- ImageBind


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


def pretrain_imagebind(steps: int, batch: int, lr: float, pool: int, seed: int, bf16: bool, out: Path) -> None:
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    text = replace(IMAGEBIND.text, vocab_size=tokenizer.encode("")[-1] + 1)
    model = ImageBind(replace(IMAGEBIND, text=text), tokenizer)
    scenes, sounds = ScenePool(seed, pool), SoundPool(seed, pool)
    command = command_for("imagebind", steps, batch, lr, pool, bf16)

    @torch.no_grad()
    def report() -> dict[str, float]:
        text = F.normalize(model.encode_text(model.tokenize(NAMES)), dim=-1)
        score = hearing_score(model.encode_audio, text, seed + 1)
        side = model.config.vision.size
        score |= looking_score(lambda x: model.encode_image(normalise(x)), model.encode_audio, text, side, seed + 1)
        model.save_world(out, command=command, seed=str(seed), score=str(score))
        return score

    def losses() -> dict[str, Tensor]:
        return imagebind_losses(model, scenes.draw(batch), sounds.batch(batch))

    apart = {id(p) for p in model.modality_postprocessors.parameters()}  # the temperature, without a loss of its own
    train([p for p in model.parameters() if id(p) not in apart], losses, steps, lr, report, 200, bf16)


def command_for(space: str, steps: int, batch: int, lr: float, pool: int, bf16: bool) -> str:
    """The command that a file's metadata names."""
    return command_of(space, steps, batch, lr, pool, bf16).replace("world.pretrain", "world.spaces")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", choices=tuple(SPACES))
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--batch", type=int, default=64, help="a multiple of 4")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--pool", type=int, default=None, help="rendered scenes and sounds to draw from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast: faster on CPUs with AMX")
    parser.add_argument("--out", type=Path, default=None, help="file to write; the package's own by default")
    args = parser.parse_args()
    if args.batch % 4:
        raise SystemExit(f"--batch {args.batch} is no multiple of 4, which mixtures of one to three sounds need.")
    out = args.out or WORLD_ASSETS / f"{args.space}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    pretrain, steps, pool = SPACES[args.space]
    pretrain(args.steps or steps, args.batch, args.lr, args.pool or pool, args.seed, args.bf16, out)


# How a space is trained, and by default with how many steps and rendered scenes or sounds.
SPACES: dict[str, tuple[Any, int, int]] = {
    "wav2clip": (pretrain_wav2clip, 600, 5000),
    "clap": (pretrain_clap, 600, 5000),
    "imagebind": (pretrain_imagebind, 1200, 6000),
}


if __name__ == "__main__":
    main()
