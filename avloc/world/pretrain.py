"""Trains the embedded world's tiny towers: the one script that made the files in `avloc/world/assets`.

    python -m avloc.world.pretrain clipseg
    python -m avloc.world.pretrain beats

Each command is deterministic on one machine (seed 0), prints the score on scenes or sounds that it never saw,
and writes it with the command into the file's metadata.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.beats import BEATs, BEATsConfig
from avloc.backbones.clipseg import CLIPSeg, normalise
from avloc.backbones.tokens import train_world_tokenizer
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

TEMPLATES = ("a photo of a {}", "a photograph of a {}", "an image of a {}", "a photo of {}", "a {}", "{}")
WORDS = sorted({w for t in TEMPLATES for w in t.replace("{}", "").split()}) + list(NAMES)
TAU = 0.07
SMOOTH = 0.02


def tiny_clipseg() -> CLIPSeg:
    tokenizer = train_world_tokenizer([*WORDS, "and", "the", "sound", "with", "next", "to", "in", "front", "of"])
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
        rows = torch.randint(len(self.image), (count,))
        image, mask = self.image[rows], self.mask[rows].float()
        flip = torch.rand(count) < 0.5
        image[flip], mask[flip] = image[flip].flip(-1), mask[flip].flip(-1)
        image = (image.float() * (0.85 + 0.3 * torch.rand(count, 1, 1, 1))).clamp(0, 255)
        return normalise(image), mask, self.label[rows]


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


def train(
    parameters: list[nn.Parameter],
    losses: Any,
    steps: int,
    lr: float,
    report: Any,
    report_every: int,
    bf16: bool,
) -> None:
    """AdamW with a one-cycle learning rate; ``losses()`` gives a dict of terms whose sum is minimised."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.08)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tower", choices=("clipseg", "beats"))
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--pool", type=int, default=None, help="rendered scenes or sounds to draw from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast: faster on CPUs with AMX")
    parser.add_argument("--out", type=Path, default=None, help="file to write; the package's own by default")
    args = parser.parse_args()
    out = args.out or WORLD_ASSETS / f"{args.tower}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.tower == "clipseg":
        pretrain_clipseg(args.steps or 3000, args.batch, args.lr, args.pool or 30000, args.seed, args.bf16, out)
    else:
        pretrain_beats(args.steps or 1000, args.batch, args.lr, args.pool or 8000, args.seed, args.bf16, out)


if __name__ == "__main__":
    main()
