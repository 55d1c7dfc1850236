"""VGG-SS and Flickr-SoundNet evaluators: cIoU, success at 0.5, AUC."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.metrics import maps as M
from avloc.metrics.ciou import auc, ciou, success_curve, success_rate
from avloc.metrics.thresholds import SWEEP, Operator, median_threshold
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    return {"list": from_list, "maps": from_maps, "low": from_low}[case.config["variant"]](case)


def from_list(case: Case) -> dict[str, Tensor]:
    values = case.inputs["ciou"]
    out = {"f64.curve": success_curve(values), "f32.curve": success_curve(values.float())}
    for name, v in {"acl_f64": values, "ssl_f64": values, "f32": values.float()}.items():
        out |= {f"{name}.auc": auc(v), f"{name}.ciou50": success_rate(v), f"{name}.mean": v.mean()}
    return out


def from_maps(case: Case) -> dict[str, Tensor]:
    x = case.inputs["k"].float() * case.config["scale"]
    truth = case.inputs["gt"].float() * case.config["gt_scale"]
    sweep = ciou(x, truth, SWEEP)
    out = {
        "acl.thresholds": torch.tensor(SWEEP, dtype=torch.float64),
        "acl.ciou": sweep.T,
        "acl.ciou50": success_rate(sweep),
        "acl.auc": auc(sweep),
        "acl.best_auc_percent": 100 * auc(sweep).max(),
    }
    for size in case.config["batch_sizes"]:  # the first sample of a batch sets the threshold of the others
        first = torch.arange(len(x)) // size * size
        out |= summary(f"acl_median.bs{size}", ciou(x, truth, median_threshold(x)[first]))
    out |= median("top50_ge", M.minmax(x), truth, ">=")
    out |= median("top50_gt", M.minmax(x), truth, ">")
    return out | median("lvs", M.flip_minmax(x), truth, "lvs")


def from_low(case: Case) -> dict[str, Tensor]:
    truth = case.inputs["gt"].float() * case.config["gt_scale"]
    alpha = case.config["alpha"]
    size = (truth.shape[-2], truth.shape[-1])
    low, obj = case.inputs["low"], case.inputs["obj"]
    half, half_obj = M.resize(low, size), M.resize(obj, size)
    corners, corners_obj = M.resize(low, size, align_corners=True), M.resize(obj, size, align_corners=True)
    cubic = M.affine(M.resize(low, size, "bicubic", align_corners=True))
    cubic_obj = M.resize(obj, size, "bicubic", align_corners=True) / 2.5
    rows: dict[str, tuple[Tensor, Operator]] = {
        "lvs": (M.flip_minmax(half), "lvs"),
        "ssl_lvs_vggss": (M.flip_minmax(half), ">"),
        "ssl_lvs_vggss_ogl": (M.minmax(M.mix(half, half_obj, 0.4)), ">"),
        "ssl_lvs_other": (M.flip_minmax(corners), ">"),
        "ssl_lvs_other_ogl": (M.minmax(M.mix(corners, corners_obj, 0.4)), ">"),
        "ssl": (M.minmax(corners), ">"),
        "ssl_ogl": (M.minmax(M.mix(corners, corners_obj, alpha)), ">"),
        "ezvsl_av": (M.minmax(corners), ">="),
        "ezvsl_obj": (M.minmax(corners_obj), ">="),
        "ezvsl_av_obj": (M.minmax(M.mix(corners, corners_obj, alpha)), ">="),
        "slavc_av": (M.minmax(cubic), ">="),
        "slavc_obj": (M.minmax(cubic_obj), ">="),
        "slavc_av_obj": (M.minmax(alpha * cubic + (1 - alpha) * cubic_obj), ">="),
    }
    out: dict[str, Tensor] = {}
    for name, (x, operator) in rows.items():
        out |= median(name, x, truth, operator)
    return out


def median(name: str, x: Tensor, truth: Tensor, operator: Operator) -> dict[str, Tensor]:
    return summary(name, ciou(x, truth, median_threshold(x), operator))


def summary(name: str, values: Tensor) -> dict[str, Tensor]:
    values = values[:, 0]
    return {f"{name}.ciou": values, f"{name}.ciou50": success_rate(values), f"{name}.auc": auc(values)}
