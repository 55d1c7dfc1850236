"""T-VSL's maps as released, turned over, and scored by its evaluation where there are boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.methods.tvsl.method import draw_maps
from avloc.metrics import multi
from avloc.metrics.ciou import auc, ciou
from tests.golden.case import Case
from tests.golden.kinds.tvsl_train import given, network

SIDE = 224


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    net, _ = network(case)
    image, audio, bank, classes = given(case)
    height, width = case.config["image_size"]
    grid = 7 * height // SIDE, 7 * width // SIDE
    tokens = net.prepare(image, audio)
    found = net.separate(tokens, bank[classes])
    maps = net.similarity(tokens, found)
    heat = torch.nn.functional.normalize(maps, dim=-1).unflatten(2, grid)
    scores = draw_maps(maps.unflatten(2, grid), (height, width), net.design)
    results: dict[str, Tensor] = {}
    values = []
    for k in range(classes.shape[1]):
        x = scores[:, k]
        results |= {
            f"heat_map_{k + 1}": heat[:, k : k + 1],
            f"scores_{k + 1}": x,
            f"scores_{k + 1}_sub": x[:, 4::8, 4::8],
            f"scores_{k + 1}_mean": x.mean((1, 2)),
        }
        if (boxes := case.inputs.get(f"boxes{k + 1}")) is None:
            continue
        # A source has its own picture of a row; a single picture has them all.
        truth = count_maps(boxes, k if width > SIDE else 0, height, width)
        ap = multi.duet_average_precision(x, truth)
        values.append(ciou(x, truth, (case.config.get("ciou_thr", 0.3),))[:, 0])
        results |= {
            f"ciou_{k + 1}": values[-1],
            f"iou_{k + 1}": multi.smooth_iou(x, truth, (case.config.get("iou_thr", 0.3),))[:, 0],
            f"ap_{k + 1}": ap.nan_to_num(-1),
            f"ap_valid_{k + 1}": ~ap.isnan(),
        }
    if values:
        pooled = torch.cat(values)
        results |= {"mean_ciou": pooled.mean(), "auc": auc(pooled)}
    return results


def count_maps(boxes: Tensor, tile: int, height: int, width: int) -> Tensor:
    """How many of the pixel boxes ``[B, n, 4]`` of one tile of 224 x 224 cover each pixel, ``[B, H, W]``."""
    maps = torch.zeros(len(boxes), height, width)
    for m, rows in zip(maps, boxes.tolist(), strict=True):
        for x0, y0, x1, y1 in rows:
            if x0 >= 0:
                m[y0:y1, tile * SIDE + x0 : tile * SIDE + x1] += 1
    return maps
