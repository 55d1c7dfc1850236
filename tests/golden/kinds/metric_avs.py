"""AVSBench S4 and MS3 evaluators: mIoU and F, official, ACL and GAVS."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from avloc.metrics.avs import THRESHOLDS, batch_fscores, batch_means, dataset_fscore, fscore_curve, iou
from avloc.metrics.thresholds import SWEEP, median_threshold
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    config, x, truth = case.config, case.inputs["k"].float(), case.inputs["gt"].float()
    prob = x * config["scale"]
    if config["variant"] == "logits":
        prob = ((x - config["offset"]) * config["scale"]).sigmoid()
    frame, frames = torch.arange(len(prob)), config["frames_per_video"]
    curves, nonempty = fscore_curve(prob, truth), truth.flatten(1).any(1)
    data_f = dataset_fscore(curves, nonempty)[0]
    sweep, half, gavs = iou(prob, truth, SWEEP), iou(prob, truth)[:, 0], iou(prob, truth, (0.4,))[:, 0]
    out = {
        "thlist": THRESHOLDS,
        "acl.sweep.thresholds": torch.tensor(SWEEP, dtype=torch.float64),
        "acl.sweep.miou": batch_means(sweep, frame // frames).mean(0),
        "acl.frame_iou.median": iou(prob, truth, median_threshold(prob))[:, 0],
        "dataset.f": data_f,
        "dataset.f_curves": curves[nonempty],
        "dataset.nonempty": nonempty.nonzero()[:, 0],
        "frame.fmax": curves.amax(1),
        "frame.iou": half,
        "gavs.video_miou": batch_means(gavs, frame // frames),
        "gavs.miou": batch_means(gavs, frame // frames).mean(),
        "gavs.f": batch_fscores(curves, nonempty, frame // frames).mean(),
    }
    for videos in config["batch_sizes"]:
        batch = frame // (frames * videos)
        miou, f = batch_means(half, batch), batch_fscores(curves, nonempty, batch)
        out[f"acl.bs{videos}.f"] = data_f
        for name, value in {"batch_miou": miou, "miou": miou.mean(), "batch_f": f, "f": f.mean()}.items():
            out[f"official.bs{videos}.{name}"] = value
    for name in case.expected:
        if match := re.fullmatch(r"(frame\.iou_thr|acl\.frame_iou\.thr)([\d.]+)", name):
            out[name] = iou(prob, truth, (float(match[2]),))[:, 0]
        elif match := re.fullmatch(r"acl\.bs(\d+)\.thr([\d.]+)\.(batch_miou|miou)", name):
            miou = batch_means(iou(prob, truth, (float(match[2]),))[:, 0], frame // (frames * int(match[1])))
            out[name] = miou if match[3] == "batch_miou" else miou.mean()
    return out
