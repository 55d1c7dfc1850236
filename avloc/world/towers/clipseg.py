"""``world:clipseg``: text-conditioned masks, and pictures and patches among the class texts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.backbones.clipseg import CLIPSeg, normalise
from avloc.world.scenes import NAMES
from avloc.world.towers.pools import SIZE, TAU, TEMPLATES, ScenePool, loosened, tiny_tokenizer
from avloc.world.towers.recipe import Recipe

__all__ = ["pretrain_clipseg"]

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

SMOOTH = 0.02


def tiny_clipseg() -> CLIPSeg:
    tokenizer = tiny_tokenizer()
    end = tokenizer.encode("")[-1]
    text = TEXT | {"vocab_size": end + 1, "eos_token_id": end, "bos_token_id": end - 1}
    return CLIPSeg({"text_config": text, **CLIPSEG}, tokenizer)


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


def pretrain_clipseg(recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    model = tiny_clipseg().requires_grad_(True)
    scenes = ScenePool(recipe.seed, recipe.pool)
    parameters = [p for p in model.parameters() if p is not model.clip.logit_scale]

    def report() -> dict[str, float]:
        score = text_query_score(model, recipe.seed + 1)
        return recipe.keep(model, score)

    def losses() -> dict[str, Tensor]:
        return clipseg_losses(model, *scenes.batch(recipe.batch))

    recipe.train(parameters, losses, report, 500)
