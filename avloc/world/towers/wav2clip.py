"""``world:wav2clip``: hears into the space of ``world:openclip``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.backbones.clipseg import normalise
from avloc.backbones.openclip import OpenCLIP
from avloc.backbones.wav2clip import Wav2CLIP, Wav2CLIPConfig
from avloc.world.scenes import NAMES
from avloc.world.towers.hearing import against_sights, cosines, hearing_score, mixtures
from avloc.world.towers.pools import TAU, TEMPLATES, ScenePool, SoundPool, loosened
from avloc.world.towers.recipe import Recipe

__all__ = ["pretrain_wav2clip"]

WAV2CLIP = Wav2CLIPConfig(blocks=(1, 1, 1, 1), mlp_units=(128, 128, 64))


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


def pretrain_wav2clip(recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    clip = OpenCLIP.from_source("world:openclip")
    model = Wav2CLIP(WAV2CLIP, statistics="clip").train()
    sounds = SoundPool(recipe.seed, recipe.pool)
    seen, its = seen_by(clip, ScenePool(recipe.seed, 2000))
    texts = [clip.encode_names(NAMES, [t]) for t in TEMPLATES]
    note = f"hears into world:openclip (sha256 {clip.file.sha256})"

    def report() -> dict[str, float]:
        model.eval()
        score = hearing_score(model, texts[-1], recipe.seed + 1) | pointing(model, clip, recipe.seed + 1)
        recipe.keep(model, score, note=note)
        model.train()
        return score

    def losses() -> dict[str, Tensor]:
        text = texts[int(torch.randint(len(texts), ()))]
        return wav2clip_losses(model, text, seen, its, sounds.batch(recipe.batch))

    recipe.train(list(model.parameters()), losses, report, 200)
