"""``world:resnet18``: a tiny ResNet-18 that names the object of a scene, for object-guided localisation.

    python -m avloc.world.resnet

Like ImageNet's it learns from pictures of one object with its class alone, never from a mask. Deterministic on one
machine (seed 0); prints its score on scenes that it never saw and writes it with the command into the file's metadata.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avloc.backbones.resnet import SIDE, ObjectResNet, normalised
from avloc.weights import WORLD_ASSETS
from avloc.world.scenes import NAMES, render, sample_scenes

__all__ = ["score", "train_resnet"]

OPTIONS = {"channels": [8, 16, 32, 64], "stem_width": 8, "num_classes": len(NAMES)}
PIXELS = 64  # of a rendered scene
CROPS, SHARES = (32, 48, 64), (0.5, 0.3, 0.2)  # sides of windows of the scene and how often each is drawn
COMMAND = "python -m avloc.world.resnet"


def train_resnet(
    path: Path,
    steps: int = 800,
    batch: int = 32,
    pool: int = 8000,
    seed: int = 0,
    bf16: bool = False,
    scenes: int = 300,
) -> dict[str, float]:
    """Train, score and write the file.

    Args:
        path: ends with ``.safetensors``.
        steps: of AdamW with a one-cycle rate.
        batch: windows of a step.
        pool: rendered scenes of one object to draw from.
        seed: of the scenes and of the network.
        bf16: autocast, faster on CPUs with AMX.
        scenes: see `score`.
    """
    torch.manual_seed(seed)
    model = ObjectResNet(OPTIONS)
    image, label, centre = single_scenes(np.random.default_rng(seed), pool)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    started = time.perf_counter()
    for step in range(1, steps + 1):
        rows = torch.randint(len(image), (batch,))
        crop = CROPS[int(torch.multinomial(torch.tensor(SHARES), 1))]
        side = crop * SIDE // PIXELS  # the scale at which whole pictures are seen
        pixels = normalised(windows(image[rows], centre[rows], crop), (side, side))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model.resnet(pixels)
        loss = F.cross_entropy(logits.float(), label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    model.requires_grad_(False).eval()
    found = score(model, seed + 1, scenes)
    command = f"{COMMAND} --steps {steps} --batch {batch} --pool {pool}" + (" --bf16" if bf16 else "")
    model.save_world(path, command=command, seed=str(seed), score=str(found))
    print(found)
    return found


def single_scenes(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures uint8 ``[N, 3, 64, 64]`` of one object, its class ``[N]`` and its centre in 0..1 ``[N, 2]`` (x, y)."""
    parts = []
    for start in range(0, count, 256):
        scenes = sample_scenes(rng, min(256, count - start), objects=(1, 1))
        parts.append((render(scenes, PIXELS)[0], scenes.label[:, 0], scenes.pose[:, 0, :2]))
    image, label, centre = (torch.cat(p) for p in zip(*parts, strict=True))
    return image, label, centre


def windows(image: Tensor, centre: Tensor, crop: int) -> Tensor:
    """Random windows that hold the object's centre, uint8 ``[B, 3, crop, crop]``; every second one is mirrored."""
    place = (centre * PIXELS).round().long()
    margin = crop // 3
    offset = place - torch.randint(margin, crop - margin + 1, place.shape)
    offset = offset.clamp(0, PIXELS - crop)
    parts = [picture[:, y : y + crop, x : x + crop] for picture, (x, y) in zip(image, offset.tolist(), strict=True)]
    out = torch.stack(parts)
    return torch.where(torch.rand(len(out), 1, 1, 1) < 0.5, out.flip(-1), out)


@torch.no_grad()
def score(model: ObjectResNet, seed: int, scenes: int = 300) -> dict[str, float]:
    """On scenes of one object: ``accuracy``; of two or three: ``pointing``, the share in which the highest cell of the
    7 x 7 object map lies on an object, and ``area``, how much of the picture objects cover (a random cell's share)."""
    rng = np.random.default_rng(seed)
    image, label, _ = single_scenes(rng, scenes)
    said = torch.cat([model.resnet(normalised(part, (SIDE, SIDE))) for part in image.split(50)]).argmax(1)
    image, mask = render(sample_scenes(rng, scenes), PIXELS)
    found = torch.cat([model.object_map(normalised(part, (SIDE, SIDE))) for part in image.split(50)])
    covered = F.adaptive_avg_pool2d(mask.any(1).float()[:, None], found.shape[-1])[:, 0].flatten(1)
    pointed = covered.gather(1, found.flatten(1).argmax(1, keepdim=True)) >= 0.5
    return {
        "accuracy": (said == label).float().mean().item(),
        "pointing": pointed.float().mean().item(),
        "area": (covered >= 0.5).float().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pool", type=int, default=8000, help="rendered scenes to draw from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast: faster on CPUs with AMX")
    parser.add_argument("--out", type=Path, default=WORLD_ASSETS / "resnet18.safetensors")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    train_resnet(args.out, args.steps, args.batch, args.pool, args.seed, args.bf16)


if __name__ == "__main__":
    main()
