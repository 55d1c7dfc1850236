"""SeAC's heat map, semantic map and labels from masks or boxes and their similarities."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.methods.seac.aggregate import aggregate, box_masks, classify
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    c, given, results = case.config, case.inputs, {}
    if "boxes" in given:
        masks = box_masks(given["boxes"], tuple(c["map_size"]))
        results["box_masks"] = masks.to(torch.uint8)
    else:
        masks = given["masks"].bool()
    labels = given.get("labels")
    if "text_embeddings" in given:
        labels, results["class_cosine"] = classify(given["mask_features"], given["text_embeddings"])
        results["labels"] = labels
    valid = None
    if "num_valid" in given:
        valid = (torch.arange(len(masks)) < given["num_valid"])[None]
    answer = aggregate(given["similarity"][None], masks[None], valid, c.get("degenerate", "ones"))
    if labels is not None:
        results["C"] = answer.semantic(labels[None], c["sigma"])[0]
    return results | {
        "O": answer.heatmap[0],
        "confidence": answer.confidence[0],
        "similarity_norm": answer.similarity[0],
    }
