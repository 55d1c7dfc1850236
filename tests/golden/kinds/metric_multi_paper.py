"""ACL-SSL's journal paper: CAP, PIAP, CIoU and AUC of mixtures."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.metrics.ciou import auc, success_rate
from avloc.metrics.multi import pair_sources
from avloc.metrics.thresholds import SWEEP
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    maps, truth = case.inputs["maps"].float(), case.inputs["truth"].float()
    sources, answered = (torch.tensor(case.config[name]) for name in ("sources", "answered"))
    real = torch.arange(truth.shape[1]) < sources[:, None]
    found = pair_sources(maps, answered, truth, real)
    overlap, ap = found.ciou[real].float(), found.ap[real]
    areas = auc(overlap)
    best = int(areas.argmax())
    return {
        "ap_of_sources": ap,
        "cap": ap.mean(),
        "piap_of_samples": found.union,
        "piap": found.union.mean(),
        "sweep_auc": areas,
        "auc": areas[best],
        "threshold": torch.tensor(SWEEP[best]),
        **{f"ciou@{level}": success_rate(overlap[:, best], level / 100) for level in (10, 30, 50)},
    }
