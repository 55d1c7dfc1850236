"""ACL-SaN on AVSBench masks: thresholds from the area of the ground truth, the median, or fixed."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from avloc.metrics.avs import batch_means, dataset_fscore, fscore_curve, iou
from avloc.metrics.ciou import auc, ciou, success_rate
from avloc.metrics.negative import image_share, share_auc
from avloc.metrics.thresholds import area_threshold, median_threshold
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    x, truth = case.inputs["k"].float() * case.config["scale"], case.inputs["gt"].float()
    frame, nonempty = torch.arange(len(x)), truth.flatten(1).any(1)
    curves = fscore_curve(x, truth)
    fixed = {m[1] for name in case.expected if (m := re.match(r"fixed([\d.]*\d)\.", name))}
    modes = {"adaptive": area_threshold(x, truth), "median": median_threshold(x)}
    modes |= {f"fixed{t}": x.new_tensor([float(t)]) for t in fixed}
    out = {"area": (truth != 0).flatten(1).sum(1), "f_curves": curves[nonempty]}
    for mode, cut in modes.items():
        # stored in float32 by that repository, and compared with the levels there
        values = ciou(x, truth, cut, ">=", eps=1e-12)[:, 0].float()
        share = image_share(x, cut, ">=")[:, 0].float()
        out |= {
            f"{mode}.ciou": values,
            f"{mode}.ciou50": success_rate(values),
            f"{mode}.auc": auc(values),
            f"{mode}.mean_ciou": values.double().mean(),
            f"{mode}.pia": share,
            f"{mode}.mean_pia": share.double().mean(),
            f"{mode}.pia50": (share < 0.5).double().mean(),
            f"{mode}.auc_n": share_auc(share, strict=True),
        }
        for size in case.config["batch_sizes"]:
            miou = batch_means(iou(x, truth, cut)[:, 0], frame // size)
            out[f"{mode}.bs{size}.batch_miou"] = miou
            out[f"{mode}.bs{size}.miou"] = miou.mean()
            out[f"{mode}.bs{size}.f"] = dataset_fscore(curves, nonempty)[0]
    return out
