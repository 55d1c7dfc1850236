"""Extended VGG-SS and Flickr-SoundNet (SLAVC, ACL): AP, max-F1, LocAcc over confidences."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.metrics import extended as X
from avloc.metrics import maps as M
from avloc.metrics.ciou import auc, ciou
from avloc.metrics.thresholds import SWEEP, Operator, median_threshold, rank_threshold
from tests.golden.case import Case

LEVELS = (0.5, 0.75)


def run(case: Case) -> dict[str, Tensor]:
    return {"list": from_list, "maps": from_maps, "low": from_low}[case.config["variant"]](case)


def from_list(case: Case) -> dict[str, Tensor]:
    values, conf, area = (case.inputs[name] for name in ("ciou", "conf", "area"))
    visible = case.inputs["bb"] > 0
    out = stats(values, conf, visible, area, case.config["iou_thrs"])
    return out | {
        "locacc": X.loc_acc(values, visible),
        "f1_at_50": X.f1_at(values, conf, visible),
        "acl.ap_percent": 100 * X.average_precision(values, conf, visible),
        "acl.maxf1_percent": 100 * X.max_f1(values, conf, visible, rounded=True),
    }


def from_maps(case: Case) -> dict[str, Tensor]:
    config, conf = case.config, case.inputs["conf"]
    x, truth = case.inputs["k"].float() * config["scale"], case.inputs["gt"].float() * config["gt_scale"]
    visible = torch.tensor([label != "non-sounding" for label in config["labels"]])
    sweep = ciou(x, truth, SWEEP, eps=1e-12)
    out = {
        "acl.thresholds": torch.tensor(SWEEP, dtype=torch.float64),
        "acl.ciou": sweep.T,
        "acl.ap_percent": 100 * X.average_precision(sweep, conf, visible),
        "acl.maxf1": X.max_f1(sweep, conf, visible),
        "acl.maxf1_percent": 100 * X.max_f1(sweep, conf, visible, rounded=True),
        "acl.bb": visible,
        "acl.area": truth.flatten(1).double().sum(1),
    }
    for size in config["batch_sizes"]:  # the first sample of a batch sets the threshold of the others
        first = torch.arange(len(x)) // size * size
        values = ciou(x, truth, median_threshold(x)[first], eps=1e-12)[:, 0]
        out |= {
            f"acl_median.bs{size}.ciou": values,
            f"acl_median.bs{size}.locacc": X.loc_acc(values, visible),
            f"acl_median.bs{size}.ap_percent": 100 * X.average_precision(values, conf, visible),
            f"acl_median.bs{size}.maxf1_percent": 100 * X.max_f1(values, conf, visible, rounded=True),
        }
    scaled = M.minmax(x)
    values = ciou(scaled, truth, median_threshold(scaled))[:, 0]
    everything = torch.full((1,), -1000.0)
    precision, recall = X.precision_recall(values, conf, visible, everything)
    return out | {
        "slavc_top50.ciou": values,
        "slavc_top50.ap": X.average_precision(values, conf, visible),
        "slavc_top50.maxf1": X.max_f1(values, conf, visible),
        "slavc_top50.f1": X.f1_curve(values, conf, visible)[1],
        "slavc_top50.auc": auc(values[visible]),
        "slavc_top50.locacc": X.loc_acc(values, visible),
        "slavc_top50.precision": precision[0],
        "slavc_top50.recall": recall[0],
        "slavc_top50.precision_visible": (values[visible] >= 0.5).double().mean(),
    }


def from_low(case: Case) -> dict[str, Tensor]:
    truth = case.inputs["gt"].float() * case.config["gt_scale"]
    boxes = (case.inputs["boxes"] != -1).any(2).sum(1)
    area = truth.flatten(1).double().sum(1)
    out: dict[str, Tensor] = {}
    for name, x in slavc_maps(case).items():
        conf, values = X.top_quarter(x), slavc_ciou(case, x, truth)
        for key, value in stats(values, conf, boxes > 0, area, LEVELS).items():
            out[f"{name}.{key}"] = value
        out |= {
            f"{name}.bb": boxes,
            f"{name}.area": area,
            f"{name}.conf": conf,
            f"{name}.ciou": values,
            f"{name}.locacc": X.loc_acc(values, boxes > 0),
            f"{name}.f1_at_50": X.f1_at(values, conf, boxes > 0),
        }
    return out


def slavc_maps(case: Case) -> dict[str, Tensor]:
    size, alpha = (case.inputs["gt"].shape[-2], case.inputs["gt"].shape[-1]), case.config["alpha"]
    av = M.affine(M.resize(case.inputs["av"], size, "bicubic", align_corners=True), case.config["tau"])
    obj = M.resize(case.inputs["obj"], size, "bicubic", align_corners=True) / 2.5
    return {"av": av, "obj": obj, "av_obj": alpha * av + (1 - alpha) * obj}


def slavc_ciou(case: Case, x: Tensor, truth: Tensor, operator: Operator = ">=") -> Tensor:
    if not case.config["relative_prediction"]:
        return ciou(x, truth, (case.config["pred_thr"],), operator)[:, 0]
    scaled = M.minmax(x)
    rank = torch.full((len(x),), int(x[0].numel() * case.config["pred_size"]))
    return ciou(scaled, truth, rank_threshold(scaled, rank), operator)[:, 0]


def stats(ciou: Tensor, conf: Tensor, visible: Tensor, area: Tensor, levels: tuple[float, ...]) -> dict[str, Tensor]:
    """Every number of every subset at every level."""
    size = X.size_group(area)
    subsets = {"all": torch.ones_like(visible), "visible": visible}
    subsets |= {name: visible & (size == i) for i, name in enumerate(X.SIZES)}
    out: dict[str, Tensor] = {}
    for subset, rows in subsets.items():
        v, c, s = ciou[rows], conf[rows], visible[rows]
        for level in levels:
            thresholds, f1 = X.f1_curve(v, c, s, level)
            precision, recall = X.precision_recall(v, c, s, thresholds, level)
            whole = X.precision_recall(v, c, s, c.new_full((1,), -1000.0), level)
            values = {
                "ap": X.average_precision(v, c, s, level),
                "auc": auc(v[s]),
                "f1": f1,
                "f1_thresholds": thresholds,
                "f1_precision": precision,
                "f1_recall": recall,
                "maxf1": X.max_f1(v, c, s, level),
                "maxf1_reported_percent": 100 * X.max_f1(v, c, s, level, rounded=True),
                "precision": whole[0][0],
                "recall": whole[1][0],
            }
            out |= {f"{subset}@{level}.{name}": value for name, value in values.items()}
    return out
