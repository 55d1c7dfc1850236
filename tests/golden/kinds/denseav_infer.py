"""DenseAV end to end with tiny towers under its own checkpoint's keys, its demonstration, and prompted segmentation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from avloc.backbones.dino import DINO
from avloc.backbones.hubert import HuBERT, standardised
from avloc.backbones.resnet import normalised
from avloc.data.views import fit_image
from avloc.methods.denseav.checkpoints import official_state
from avloc.methods.denseav.network import (
    HEARD,
    Aggregation,
    DenseAVNetwork,
    demo_maps,
    prompted_maps,
    smoothed,
    step_masks,
)
from avloc.types import InputSpec
from avloc.weights import load_into
from tests.golden.case import Case


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    return prompted(case) if "ade_class_ids" in case.config else end_to_end(case)


def end_to_end(case: Case) -> dict[str, Tensor]:
    c, m, side = case.config, case.config["model"], case.config["load_size"]
    d = c["dino"]
    network = DenseAVNetwork(
        DINO(d["native_image_size"], d["patch_size"], d["embed_dim"], d["depth"], d["num_heads"]),
        HuBERT(c["hubert_config"]),
        c["code_dim"],
        m["image_aligner_type"],
        m["audio_aligner_type"],
        norm_vectors=m["norm_vectors"],
    ).eval()
    load_into(network, official_state(case.weights), case.id)
    agg = Aggregation(
        m["sim_agg_type"], m["sim_agg_heads"], m["head_agg"], m["sim_use_cls"], m["nonneg_sim"], m["mask_silence"]
    )
    spec = InputSpec(image_size=side, resize="crop", interpolation="bilinear")
    pictures = [Image.fromarray(p) for p in case.inputs["pictures"].permute(0, 2, 3, 1).numpy()]
    fitted = torch.from_numpy(np.stack([fit_image(p, spec) for p in pictures]))
    frames = normalised(fitted, (side, side))
    n = c["target_samples"]
    waves, real = torch.zeros(len(pictures), n), torch.zeros(len(pictures), n)
    for i in range(len(pictures)):
        wave = case.inputs[f"waveform_{i}"][:n]
        waves[i, : len(wave)], real[i, : len(wave)] = wave, 1
    audio = standardised(waves)
    image_feats, image_cls = network.see(frames)
    audio_feats, audio_cls = network.hear(audio)
    mask = step_masks(real, audio_feats.shape[-1]) > HEARD
    S = agg.paired(image_feats, audio_feats, mask, image_cls, audio_cls)
    volume, by_head = agg.cells(S).mean(-2), agg.cells(S, heads=False).mean(-2)
    found = {
        "frames": frames,
        "audio_slice": audio[:, ::16],
        "audio_feats": audio_feats,
        "audio_cls": audio_cls,
        "image_feats": image_feats,
        "image_cls": image_cls,
        "audio_mask": mask,
        "similarity": agg.all_pairs(image_feats, audio_feats, mask, image_cls, audio_cls),
        "similarity_pairs": agg(S, mask),
        "volume": volume,
        "volume_by_head": by_head,
        "heat_maps": prompted_maps(volume, mask, (side, side), together=True),
    }
    for k in range(agg.heads):
        found[f"heat_maps_head{k}"] = prompted_maps(by_head[:, k], mask, (side, side), together=True)
    return found | (demonstration(case, network, agg) if c["demo"] else {})


def demonstration(case: Case, network: DenseAVNetwork, agg: Aggregation) -> dict[str, Tensor]:
    frames, demo = case.inputs["demo_frames"], case.config["demo"]
    size = (frames.shape[-2], frames.shape[-1])
    image, image_cls = network.see(normalised(frames, size))
    audio, audio_cls = network.hear(case.inputs["demo_waveform"][None])
    every = torch.ones(1, audio.shape[-1])
    cells = agg.cells(agg.paired(image, audio, every, image_cls, audio_cls), heads=False).mean(-2)
    largest, alpha, shares = demo_maps(cells, size)
    found = {"demo_volume": smoothed(cells, demo["blur_window"]), "demo_upsampled": largest, "demo_alpha": alpha}
    found |= {f"demo_alpha_head{k}": x for k, x in enumerate(shares)}
    s = demo["pixel_stride"]
    return found | {f"{name}_slice": x[:, ::s, ::s] for name, x in found.items()}


def prompted(case: Case) -> dict[str, Tensor]:
    c, x = case.config, case.inputs
    agg = Aggregation(c["sim_agg_type"], c["num_heads"], c["head_agg"], nonneg=c["nonneg_sim"])
    mask = x["audio_mask"]
    cells = agg.cells(agg.paired(x["image_feats"], x["audio_feats"], mask)).mean(-2)
    steps = {"basic": mask}
    if c["timing"] is not None:
        steps["advanced"] = spoken(c, cells.shape[-1], float(x["total_length"][0]) / 16000)
    ids = torch.tensor(c["ade_class_ids"])
    found: dict[str, Tensor] = {"classes": ids.unique()}
    if "advanced" in steps:
        found["advanced_mask"] = steps["advanced"]
    for name, which in steps.items():
        maps = prompted_maps(cells, which, (x["semseg"].shape[-2], x["semseg"].shape[-1]), together=True)
        scores = [class_scores(maps[ids == k], x["semseg"][ids == k] == k) for k in found["classes"]]
        found |= {f"{name}_heat_maps": maps}
        for j, measure in enumerate(("ap", "iou")):
            found[f"{name}_{measure}"] = torch.stack([s[j] for s in scores])
            found[f"mean_{name}_{measure}"] = found[f"{name}_{measure}"].mean()
    return found


def spoken(c: dict[str, Any], T: int, seconds: float) -> Tensor:
    mask = torch.zeros(len(c["timing"]), T)
    for row, (start, end) in zip(mask, c["timing"], strict=True):
        first = math.floor(T * (start - c["timing_margin"]) / seconds)
        row[first : math.ceil(T * (end + c["timing_margin"]) / seconds)] = 1
    return mask


def class_scores(maps: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    found = [maps > t for t in torch.linspace(float(maps.min()), float(maps.max()), 20)]
    iou = max((f & wanted).sum() / (f | wanted).sum() for f in found)
    return binary_average_precision(maps.flatten(), wanted.flatten().int()), torch.as_tensor(iou)
