"""DenseAV's aligners, its pooling, and masks of steps and places."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avloc.methods.denseav.network import HEARD, Aligner, step_masks
from avloc.weights import load_into
from tests.golden.case import Case


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    if "aligners" in c:
        return each_type(case)
    if "audio_aligner" in c:
        return released(case)
    return pooled(case)


def each_type(case: Case) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for a in case.config["aligners"]:
        aligner = Aligner(a["type"], a["in_dim"], a["out_dim"])
        load_into(aligner, part(case.weights, f"{a['id']}."), case.id)
        sense = "audio" if a["type"].startswith("audio") else "image"
        spatial, cls = (case.inputs[f"{sense}_{x}_{a['in_dim']}"] for x in ("spatial", "cls"))
        found[f"{a['id']}.spatial"], found[f"{a['id']}.cls"] = aligner(spatial, cls)
        found[f"{a['id']}.spatial_without_cls"] = aligner(spatial, None)[0]
    return found


def released(case: Case) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for sense in ("audio", "image"):
        a = case.config[f"{sense}_aligner"]
        aligner = Aligner(a["type"], a["in_dim"], a["out_dim"])
        load_into(aligner, part(case.weights, f"{sense}_aligner."), case.id)
        features = case.inputs[f"{sense}_feats"]
        cls = case.weights["audio_cls"].expand(len(features), -1) if sense == "audio" else case.inputs["image_cls"]
        found[f"{sense}_feats_aligned"], found[f"{sense}_cls_aligned"] = aligner(features, cls)
    _, stride = case.config["image_stride"]
    return found | {"image_feats_aligned_slice": found["image_feats_aligned"][:, ::stride]}


def pooled(case: Case) -> dict[str, Tensor]:
    c, x = case.config, case.inputs
    image, audio = x["image_feats"], x["audio_feats"]
    side, steps = c["image_pool_width"], c["audio_pool_width"]
    found = {"image_pooled": F.avg_pool2d(image, side), "audio_pooled": F.avg_pool2d(audio, (1, steps))}
    found["image_pooled_normed"] = F.normalize(found["image_pooled"], dim=1)
    found |= {"image_eval_normed": F.normalize(image, dim=1), "audio_eval_normed": F.normalize(audio, dim=1)}
    for n in (11, 23):
        found[f"mask_{n}"] = step_masks(x["sample_mask"], n) > HEARD
        found[f"pos_mask_{n}"] = step_masks(x["sample_pos_mask"], n)
    full = (torch.arange(c["full_length"]) < x["lengths"][:, None]).float()
    found["mask_from_lengths_56_soft"] = step_masks(full, 56)
    found["mask_from_lengths_56"] = found["mask_from_lengths_56_soft"] > HEARD
    pixels = x["pixel_mask"].float()
    for name, like in (("aligned", image), ("pooled", found["image_pooled"])):
        found[f"image_mask_{name}"] = F.adaptive_avg_pool2d(pixels, like.shape[-2:])
    return found
