"""AVSBench-Robust: S4 and MS3 under positive and negative sound, and the share of the image predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.metrics.avs import batch_fscores, batch_means, fscore_curve, iou
from avloc.metrics.negative import image_share, share_auc
from avloc.metrics.robust import fpr, global_score
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    config, truth = case.config, case.inputs["gt"].float()
    conditions = [name for name in case.inputs if name != "gt"]
    frame, nonempty = torch.arange(len(truth)), truth.flatten(1).any(1)
    out: dict[str, Tensor] = {}
    for name in conditions:
        prob = ((case.inputs[name].float() - config["offset"]) * config["scale"]).sigmoid()
        overlap, curves, share = iou(prob, truth)[:, 0], fscore_curve(prob, truth), fpr(prob)
        least = image_share(prob, (0.5,), ">=")[:, 0].float()  # ACL-SaN stores float32
        out |= {
            f"{name}.frame_iou": overlap,
            f"{name}.frame_fpr": share,
            f"{name}.pia_gt": share,
            f"{name}.auc_n_le": share_auc(share),
            f"{name}.pia_ge": least,
            f"{name}.auc_n_lt": share_auc(least, strict=True),
            f"{name}.pia_below50": (least < 0.5).double().mean(),
        }
        for videos in config["batch_sizes"]:
            batch = frame // (config["frames_per_video"] * videos)
            out[f"{name}.bs{videos}.miou"] = batch_means(overlap, batch).mean()
            out[f"{name}.bs{videos}.f"] = batch_fscores(curves, nonempty, batch).mean()
            out[f"{name}.bs{videos}.fpr"] = batch_means(share, batch).mean()
    negatives = [name for name in conditions if name != "positive"]
    for videos in config["batch_sizes"]:
        score = {m: {c: out[f"{c}.bs{videos}.{m}"] for c in conditions} for m in ("miou", "f", "fpr")}
        out[f"inferred.bs{videos}.g_fpr"] = torch.stack([score["fpr"][c] for c in negatives]).mean()
        for metric in ("miou", "f"):
            worse = torch.stack([score[metric][c] for c in negatives])
            out[f"inferred.bs{videos}.g_{metric}"] = global_score(score[metric]["positive"], worse)
            for c, value in zip(negatives, worse, strict=True):
                out[f"inferred.bs{videos}.{c}.g_{metric}"] = global_score(score[metric]["positive"], value[None])
    return out
