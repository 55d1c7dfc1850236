"""``world:sam``: masks by boxes and points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.sam import SAM, TINY
from avloc.world.scenes import NAMES
from avloc.world.towers.pools import SIZE, ScenePool, one_object, points_in, tight_boxes
from avloc.world.towers.recipe import Recipe

__all__ = ["pretrain_sam"]


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


def pretrain_sam(recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    model = SAM(TINY).requires_grad_(True)
    head = nn.Linear(TINY.transformer_dim, len(NAMES))
    scenes = ScenePool(recipe.seed, recipe.pool)

    def report() -> dict[str, float]:
        score = prompt_score(model, recipe.seed + 1)
        return recipe.keep(model, score)

    def losses() -> dict[str, Tensor]:
        return sam_losses(model, head, *scenes.draw(recipe.batch))

    recipe.train([*model.parameters(), *head.parameters()], losses, report, 500)
