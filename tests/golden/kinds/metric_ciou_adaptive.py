"""SSLalign and ACL-SaN: cIoU at the threshold that the area of the ground truth sets."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.metrics import maps as M
from avloc.metrics.ciou import auc, ciou, success_rate
from avloc.metrics.thresholds import Operator, area_threshold, median_threshold
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    config = case.config
    truth = case.inputs["gt"].float() * config["gt_scale"]
    size, alpha = (truth.shape[-2], truth.shape[-1]), config.get("alpha", 0.4)
    area = (truth != 0).flatten(1).sum(1)
    out = {"area": area}
    if config["variant"] == "maps":
        x = case.inputs["k"].float() * config["scale"]
        # ACL-SaN stores its values in float32 and compares them with the levels there
        out |= adaptive("ge", x, truth, ">=", eps=1e-12, dtype=torch.float32)
        return out | both("ssl", M.minmax(x), truth)
    low, obj = case.inputs["low"], case.inputs["obj"]
    half, half_obj = M.resize(low, size), M.resize(obj, size)
    corners, corners_obj = M.resize(low, size, align_corners=True), M.resize(obj, size, align_corners=True)
    out |= both("ssl", M.minmax(corners), truth)
    out |= both("ssl_ogl", M.minmax(M.mix(corners, corners_obj, alpha)), truth)
    out |= both("ssl_lvs_vggss", M.flip_minmax(half), truth)
    out |= both("ssl_lvs_vggss_ogl", M.minmax(M.mix(half, half_obj, 0.4)), truth)
    out |= both("ssl_lvs_other", M.flip_minmax(corners), truth)
    out |= both("ssl_lvs_other_ogl", M.minmax(M.mix(corners, corners_obj, 0.4)), truth)
    return out | adaptive("ge", corners, truth, ">=", eps=1e-12, dtype=torch.float32)


def both(name: str, x: Tensor, truth: Tensor) -> dict[str, Tensor]:
    values = ciou(x, truth, median_threshold(x), ">")[:, 0]
    out = {f"{name}.ciou": values, f"{name}.ciou50": success_rate(values), f"{name}.auc": auc(values)}
    return out | adaptive(name, x, truth, ">")


def adaptive(
    name: str, x: Tensor, truth: Tensor, operator: Operator, eps: float = 0.0, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    values = ciou(x, truth, area_threshold(x, truth), operator, eps)[:, 0].to(dtype)
    return {
        f"{name}.ciou_adap": values,
        f"{name}.ciou50_adap": success_rate(values),
        f"{name}.auc_adap": auc(values),
    }
