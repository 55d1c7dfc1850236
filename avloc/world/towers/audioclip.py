"""``world:audioclip``: pictures, patches, sounds and their tiles, each among the class texts."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.audioclip import INT16, WORLD, AudioCLIP
from avloc.backbones.clipseg import normalise
from avloc.world.scenes import NAMES
from avloc.world.towers.pools import SIZE, TAU, TEMPLATES, ScenePool, SoundPool, loosened, tiny_tokenizer
from avloc.world.towers.recipe import Recipe

__all__ = ["pretrain_audioclip"]


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


def pretrain_audioclip(recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    model = tiny_audioclip().train()
    scenes, sounds = ScenePool(recipe.seed, recipe.pool), SoundPool(recipe.seed, recipe.pool)
    bank = list(model.audio.fbsp.parameters())
    apart = {id(p) for p in (*bank, model.logit_scale, model.logit_scale_ai, model.logit_scale_at)}
    rest = [p for p in model.parameters() if id(p) not in apart]

    def report() -> dict[str, float]:
        score = tower_score(model, recipe.seed + 1)
        return recipe.keep(model, score)

    def losses() -> dict[str, Tensor]:
        return audioclip_losses(model, scenes.batch(recipe.batch), sounds.batch(recipe.batch))

    recipe.train(rest, losses, report, 200, undecayed=bank)
