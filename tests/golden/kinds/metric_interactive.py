"""SSLalign: every sound of a picture has to be found (IIoU, IAUC)."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.metrics import maps as M
from avloc.metrics.ciou import auc, ciou, success_rate
from avloc.metrics.interactive import group_minima, group_of
from avloc.metrics.thresholds import area_threshold, median_threshold
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    first: dict[str, int] = {}
    group = torch.tensor([first.setdefault(group_of(name), len(first)) for name in case.config["names"]])
    out = {"group_index": group}
    for suffix, values in zip(("", "_adap"), overlaps(case), strict=True):
        least = group_minima(values, group)
        out |= {
            f"ciou{suffix}": values,
            f"ciou50{suffix}": success_rate(values),
            f"auc{suffix}": auc(values),
            f"iiou{suffix}.group": (least >= 0.5).double(),
            f"iiou{suffix}": success_rate(least),
            f"iauc{suffix}": auc(least),
        }
    return out


def overlaps(case: Case) -> tuple[Tensor, Tensor]:
    config = case.config
    if config["variant"] == "list":
        return case.inputs["ciou"], case.inputs["ciou_adap"]
    truth = case.inputs["gt"].float() * config["gt_scale"]
    if config["variant"] == "low":
        vggss = config["loop"] == "lvs" and config.get("testset") == "vggss"
        x = M.resize(case.inputs["low"], (truth.shape[-2], truth.shape[-1]), align_corners=not vggss)
    else:
        x = case.inputs["k"].float() * config["scale"]
    x = M.flip_minmax(x) if config["loop"] == "lvs" else M.minmax(x)
    return ciou(x, truth, median_threshold(x), ">")[:, 0], ciou(x, truth, area_threshold(x, truth), ">")[:, 0]
