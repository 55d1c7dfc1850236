"""AVSBench-Semantic per frame and class, and CAVP's scores of the whole data set."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.metrics import avs
from avloc.metrics import semantic as S
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    classes, truth = case.config["num_classes"], case.inputs["gt"].long()
    if "logits" in case.inputs:
        pred = case.inputs["logits"].softmax(1).argmax(1)
        cavp = case.inputs["logits"].argmax(1)
    else:
        pred = cavp = case.inputs["pred"].long()
    counts = S.label_counts(pred, truth, classes)
    iou, f, present = S.class_iou(counts), S.class_fscore(counts), S.present(counts)
    miou, mf, seen = S.class_means(iou, present), S.class_means(f, present), present.any(0)
    last = classes - 1
    sums = [c.sum(0) for c in S.label_counts(cavp, truth, classes, ignore=255)]
    scores = S.dataset_scores(*sums)
    out = {
        "frame.iou": iou,
        "frame.f": f,
        "frame.present": present,
        "frame.miou": S.frame_means(iou),
        "frame.binary_iou_bg_last": avs.iou((pred != last).float(), truth != last)[:, 0],
        "class.miou": miou,
        "class.f": mf,
        "class.count": present.sum(0),
        "miou_drop_first": S.mean_over_classes(miou, drop_first=True),
        "f_drop_first": S.mean_over_classes(mf, drop_first=True),
        "running.miou_seen_classes": S.mean_over_classes(miou, seen=seen),
        "running.f_seen_classes": S.mean_over_classes(mf, seen=seen),
        "cavp.confusion": S.confusion(cavp, truth, classes),
        "cavp.inter": sums[0],
        "cavp.union": sums[1] + sums[2] - sums[0],
        "cavp.miou_rounded4": scores.miou.round(decimals=4),
        "cavp.acc_rounded4": scores.accuracy.round(decimals=4),
        "cavp.fdr_rounded4": scores.fdr.round(decimals=4),
        "cavp.f1_rounded4": scores.f1.round(decimals=4),
        "cavp.f03_rounded4": scores.f03.round(decimals=4),
    }
    for size in case.config["batch_sizes"]:
        for name, means in {"miou": miou, "f": mf}.items():
            out[f"bs{size}.{name}"] = S.mean_over_classes(means)
            out[f"bs{size}.{name}_drop_last"] = S.mean_over_classes(means, drop_last=True)
    return {name: torch.as_tensor(value) for name, value in out.items()}
