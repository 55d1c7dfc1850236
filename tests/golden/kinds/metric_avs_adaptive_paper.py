"""ACL-SSL's journal paper: mIoU and F-Score Adaptive, of as many highest pixels as the object has."""

from __future__ import annotations

from torch import Tensor

from avloc.metrics.avs import top_pixels
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    iou, f = top_pixels(case.inputs["maps"].float(), case.inputs["truth"].float())
    return {"iou_of_frames": iou, "miou_adap": iou.mean(), "fscore_adap": f.nanmean()}
