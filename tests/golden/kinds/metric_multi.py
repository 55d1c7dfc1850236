"""Several sources: T-VSL's duets, AVGN's loop and NoPrior's stacked pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.metrics import extended as X
from avloc.metrics import maps as M
from avloc.metrics import multi
from avloc.metrics.ciou import auc, ciou, success_rate
from avloc.metrics.thresholds import predicted, rank_threshold
from tests.golden.case import Case
from tests.golden.kinds.metric_extended import slavc_ciou, slavc_maps, stats


def run(case: Case) -> dict[str, Tensor]:
    runs = {"tvsl": tvsl, "tvsl_scores": tvsl_scores, "avgn": avgn, "noprior": noprior}
    return runs[case.config["variant"]](case)


def tvsl(case: Case) -> dict[str, Tensor]:
    one, two = case.inputs["gt1"].float(), case.inputs["gt2"].float()
    truth = torch.stack([torch.cat([one, 0 * one], 2), torch.cat([0 * two, two], 2)], 1).flatten(0, 1)
    low = torch.stack([case.inputs["h1"], case.inputs["h2"]], 1).flatten(0, 1)
    x = M.minmax(M.resize(low, (truth.shape[-2], truth.shape[-1]), "bicubic"))
    x = (x.amax((1, 2), keepdim=True) - x) / (x.amax((1, 2), keepdim=True) - x.amin((1, 2), keepdim=True))
    ap, iou = multi.duet_average_precision(x, truth), multi.smooth_iou(x, truth, (case.config["iou_thr"],))[:, 0]
    kept = ~ap.isnan()
    out = {
        "ap": ap[kept],
        "ap_index": kept.nonzero()[:, 0],
        "mean_ap": ap.nanmean(),
        "iou": iou,
        "mean_iou": iou.mean(),
    }
    for t in case.config["ciou_thrs"]:
        out |= scores(f"thr{t}", ciou(x, truth, (t,))[:, 0])
    return out


def tvsl_scores(case: Case) -> dict[str, Tensor]:
    x, truth = case.inputs["k"].float() * case.config["scale"], case.inputs["gt"].float()
    ap = multi.duet_average_precision(x, truth)
    out = {"ap": ap[~ap.isnan()], "mean_ap": ap.nanmean()}
    for t in case.config["ciou_thrs"]:
        iou = multi.smooth_iou(x, truth, (t,))[:, 0]
        out |= scores(f"thr{t}", ciou(x, truth, (t,))[:, 0]) | {f"thr{t}.iou": iou, f"thr{t}.mean_iou": iou.mean()}
    return out


def scores(name: str, values: Tensor) -> dict[str, Tensor]:
    return {f"{name}.ciou": values, f"{name}.mean_ciou": values.mean(), f"{name}.auc": auc(values)}


def avgn(case: Case) -> dict[str, Tensor]:
    config = case.config
    truth = case.inputs["gt"].float() * config["gt_scale"]
    visible = (case.inputs["boxes"] != -1).any(2).any(1)
    area = truth.flatten(1).double().sum(1)
    size = X.size_group(area)
    subsets = {"all": torch.ones_like(visible), "visible": visible}
    subsets |= {name: visible & (size == i) for i, name in enumerate(X.SIZES)}
    out: dict[str, Tensor] = {}
    for name, x in slavc_maps(case).items():
        conf, values = X.top_quarter(x), slavc_ciou(case, x, truth)
        if config["relative_prediction"]:
            x = M.minmax(x)
            cut = rank_threshold(x, torch.full((len(x),), int(x[0].numel() * config["pred_size"])))
        else:
            cut = x.new_full((len(x), 1), config["pred_thr"])
        piap = multi.swapped_average_precision(predicted(x, cut, ">="), truth)
        confident = 0.0 if name == "av_obj" else 0.5
        row = stats(values, conf, visible, area, (0.3, 0.5, 0.75))
        row |= {f"{s}@{level}.piap": piap[rows].mean() for s, rows in subsets.items() for level in (0.3, 0.5, 0.75)}
        row |= {"ciou": values, "conf": conf, "piap": piap, "piap_mean": piap.mean()}
        for level in (0.1, 0.3, 0.5):
            at = round(100 * level)
            row[f"precision_at_{at}"] = X.loc_acc(values, visible, level)
            row[f"ap_at_{at}"] = X.average_precision(values, conf, visible, level)
            row[f"f1_at_{at}"] = X.f1_at(values, conf, visible, confident, level)
        out |= {f"{name}.{key}": value for key, value in row.items()}
    return out


def noprior(case: Case) -> dict[str, Tensor]:
    truth, count = case.inputs["gt"].float(), case.inputs["count"]
    tiles, height, width = truth.shape[1:]
    maps = M.resize(case.inputs["maps"], (tiles * height, width), "bicubic")
    values, cap = (v[~v.isnan()] for v in multi.greedy_matches(maps, count, truth))
    piap = multi.stacked_average_precision(maps, count, truth)
    return {
        "ciou": values,
        "ciou30": success_rate(values, 0.3),
        "ciou50": success_rate(values),
        "auc": auc(values),
        "cap": cap,
        "mean_cap": cap.mean(),
        "piap": piap[count > 0],
        "mean_piap": piap.nanmean(),
        "count_ok": count == case.config["num_sources"],
    }
