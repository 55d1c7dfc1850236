"""The published evaluation protocols, as data.

A protocol is a `Measure` (what is kept of every sample) and a summary (what the table prints), under the
names of ``facts/metrics.md`` section 12. Protocols that need the same per-sample values share one measure,
which is then computed once. All metrics are fractions 0..1.

====================  ==========================================================================
``ciou``              share of samples with cIoU >= 0.5 (the "cIoU" of the tables, not a mean)
``auc``               area under the share of samples with cIoU >= 0, 0.05 .. 1
``mean_ciou``         mean cIoU; NaN if a sample has neither truth nor prediction
``threshold``         where the map was cut, if the protocol searched for it
``miou``, ``fscore``  AVSBench
``pia``               share of the image predicted, under sound that is not in the picture
====================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from avloc.metrics import avs
from avloc.metrics.ciou import auc, ciou, success_rate
from avloc.metrics.maps import flip_minmax, minmax, resize
from avloc.metrics.thresholds import SWEEP, Operator, area_threshold, median_threshold
from avloc.types import AVBatch

__all__ = ["PROTOCOLS", "Measure", "Protocol", "Samples", "Summary"]

Samples = Mapping[str, Tensor]
"""Per-sample columns, each float64 ``[n, k]``, in the order of the set; beside those of a measure always
``clip`` (equal for the frames of one clip) and ``group`` (interactive group, 0 for none)."""

Summary = dict[str, "float | list[float]"]
"""Metric name to value; lists are curves over a sweep, kept for reports and not logged."""


@dataclass(frozen=True)
class Measure:
    """What a protocol keeps of every sample.

    Attributes:
        name: unique; prefixes the columns.
        columns: name to width k.
        function: (heat map ``[B, S, H, W]`` float32, truth ``[B, S, G, G]`` or None, batch) to one ``[B, k]``
            per column.
        needs_truth: whether a batch without ground-truth maps is an error.
    """

    name: str
    columns: Mapping[str, int]
    function: Callable[[Tensor, Tensor | None, AVBatch], dict[str, Tensor]]
    needs_truth: bool = True


@dataclass(frozen=True)
class Protocol:
    """A named way from heat maps to the numbers of a table.

    Attributes:
        name: as in ``facts/metrics.md`` section 12.
        measure: per-sample values.
        summary: (the measure's columns and the identities) to metrics.
        note: what a reader of the numbers must know.
    """

    name: str
    measure: Measure
    summary: Callable[[Samples], Summary]
    note: str = ""


def joined(heatmap: Tensor, truth: Tensor | None) -> tuple[Tensor, Tensor]:
    """One map and one truth per sample, on the truth's grid: the largest over the sources.

    Maps of another size are resized bilinearly, align_corners False.
    """
    assert truth is not None  # Measure.needs_truth
    target = truth.amax(1)
    return resize(heatmap.amax(1), (target.shape[-2], target.shape[-1])), target


def cut(
    heatmap: Tensor,
    truth: Tensor | None,
    batch: AVBatch,
    *,
    normalise: Callable[[Tensor], Tensor] | None = None,
    threshold: Callable[[Tensor, Tensor], Tensor],
    operator: Operator,
) -> dict[str, Tensor]:
    """cIoU at one threshold per map."""
    maps, target = joined(heatmap, truth)
    maps = normalise(maps) if normalise else maps
    return {"ciou": ciou(maps, target, threshold(maps, target), operator)}


def cut_sweep(heatmap: Tensor, truth: Tensor | None, batch: AVBatch) -> dict[str, Tensor]:
    return {"ciou": ciou(*joined(heatmap, truth), SWEEP, ">=")}


def cut_sources(heatmap: Tensor, truth: Tensor | None, batch: AVBatch) -> dict[str, Tensor]:
    """cIoU of each of two sources, in the truth's order; a method with one map answers it for both."""
    assert truth is not None
    if truth.shape[1] != 2 or heatmap.shape[1] not in (1, 2):
        raise ValueError(
            f"mixture/top50 scores two sources; the truth has {truth.shape[1]} and the method gave "
            f"{heatmap.shape[1]} maps (samples {', '.join(batch.key[:3])}, ...)."
        )
    target = truth.flatten(0, 1)
    maps = heatmap.expand(-1, 2, -1, -1).flatten(0, 1)
    maps = minmax(resize(maps, (target.shape[-2], target.shape[-1])))
    return {"ciou": ciou(maps, target, median_threshold(maps), ">=").view(-1, 2)}


def score_frames(heatmap: Tensor, truth: Tensor | None, batch: AVBatch) -> dict[str, Tensor]:
    maps, target = joined(heatmap, truth)
    return {
        "iou": avs.iou(maps, target, SWEEP),
        "curve": avs.fscore_curve(maps, target),
        "nonempty": (target > 0).flatten(1).any(1),
    }


def score_frames_adaptive(heatmap: Tensor, truth: Tensor | None, batch: AVBatch) -> dict[str, Tensor]:
    maps, target = joined(heatmap, truth)
    return {"iou": avs.iou(maps, target, area_threshold(maps, target))}


def predicted_share(heatmap: Tensor, truth: Tensor | None, batch: AVBatch, *, threshold: float) -> dict[str, Tensor]:
    return {"pia": (heatmap.amax(1) >= threshold).flatten(1).double().mean(1)}


def summarise_ciou(samples: Samples, column: int = 0) -> Summary:
    values = samples["ciou"][:, column]
    return {"ciou": success_rate(values).item(), "auc": auc(values).item(), "mean_ciou": values.mean().item()}


def summarise_sweep(samples: Samples) -> Summary:
    """The row of the best AUC, one threshold for both columns; and, flagged by its name, the best cIoU of all
    rows."""
    values = samples["ciou"]
    rates, areas, means = success_rate(values), auc(values), values.mean(0)
    best, best_rate = int(areas.argmax()), int(rates.argmax())
    return {
        "ciou": rates[best].item(),
        "auc": areas[best].item(),
        "mean_ciou": means[best].item(),
        "threshold": SWEEP[best],
        "column_best_ciou": rates[best_rate].item(),
        "column_best_ciou_threshold": SWEEP[best_rate],
        "sweep_threshold": list(SWEEP),
        "sweep_ciou": rates.tolist(),
        "sweep_auc": areas.tolist(),
        "sweep_mean_ciou": means.tolist(),
    }


def summarise_sources(samples: Samples) -> Summary:
    return summarise_ciou({"ciou": samples["ciou"].reshape(-1, 1)})


def batches(samples: Samples, videos: int) -> Tensor:
    """Number of each frame's batch when ``videos`` videos share one, in the set's order. int64 ``[n]``."""
    ids, number = samples["clip"][:, 0].unique(return_inverse=True)
    place = torch.arange(len(number), device=number.device)
    first = place.new_full((len(ids),), len(place)).scatter_reduce(0, number, place, "amin")
    return first.argsort().argsort()[number] // videos


def frame_columns(samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    return samples["iou"], samples["curve"], samples["nonempty"][:, 0] > 0


def summarise_batches(samples: Samples, videos: int, threshold: float) -> Summary:
    iou, curves, nonempty = frame_columns(samples)
    batch = batches(samples, videos)
    miou = avs.batch_means(iou[:, SWEEP.index(threshold)], batch).mean()
    return {"miou": miou.item(), "fscore": avs.batch_fscores(curves, nonempty, batch).mean().item()}


def summarise_dataset(samples: Samples) -> Summary:
    iou, curves, nonempty = frame_columns(samples)
    fscore, threshold = avs.dataset_fscore(curves, nonempty)
    miou = iou[:, SWEEP.index(0.5)].mean()
    return {"miou": miou.item(), "fscore": fscore.item(), "fscore_threshold": threshold.item()}


def summarise_acl_frames(samples: Samples) -> Summary:
    iou, curves, nonempty = frame_columns(samples)
    mious = avs.batch_means(iou, batches(samples, 1)).mean(0)
    best = int(mious.argmax())
    return {
        "miou": mious[best].item(),
        "fscore": avs.dataset_fscore(curves, nonempty)[0].item(),
        "threshold": SWEEP[best],
        "sweep_threshold": list(SWEEP),
        "sweep_miou": mious.tolist(),
    }


def summarise_adaptive_frames(samples: Samples) -> Summary:
    return {"miou": samples["iou"].mean().item()}


def summarise_pia(samples: Samples) -> Summary:
    """``auc``: area under the share of samples with pIA <= 0, 0.05 .. 1 (vssl_eval's <=), larger is
    better."""
    pia = samples["pia"][:, 0]
    levels = torch.tensor([0.05 * i for i in range(21)], dtype=torch.float64, device=pia.device)
    curve = (pia <= levels[:, None]).double().mean(1)
    return {"pia": pia.mean().item(), "auc": torch.trapezoid(curve, levels).item()}


def median(maps: Tensor, truth: Tensor) -> Tensor:
    return median_threshold(maps)


ONE = {"ciou": 1}
FRAMES = Measure("frames", {"iou": len(SWEEP), "curve": len(avs.THRESHOLDS), "nonempty": 1}, score_frames)
BOX_SWEEP = Measure("sweep", {"ciou": len(SWEEP)}, cut_sweep)
TOP50 = Measure("top50", ONE, partial(cut, normalise=minmax, threshold=median, operator=">="))
STRICT = Measure("top50-strict", ONE, partial(cut, normalise=minmax, threshold=median, operator=">"))
LVS = Measure("lvs", ONE, partial(cut, normalise=flip_minmax, threshold=median, operator="lvs"))
MEDIAN = Measure("median", ONE, partial(cut, threshold=median, operator=">="))
ADAPTIVE = Measure("adaptive", ONE, partial(cut, normalise=minmax, threshold=area_threshold, operator=">"))
ADAPTIVE_GE = Measure("adaptive-ge", ONE, partial(cut, threshold=area_threshold, operator=">="))

BOXES: dict[str, tuple[Measure, Callable[[Samples], Summary], str]] = {
    "acl": (
        BOX_SWEEP,
        summarise_sweep,
        "19 fixed thresholds, >=; the row of the best AUC, chosen on this set",
    ),
    "fixed": (BOX_SWEEP, partial(summarise_ciou, column=SWEEP.index(0.5)), "map >= 0.5"),
    "median": (
        MEDIAN,
        summarise_ciou,
        "the larger half of the map, >=, no normalisation (ACL-SSL, thr=None)",
    ),
    "top50": (TOP50, summarise_ciou, "min-max, sorted index HW//2, >= (EZ-VSL, SLAVC)"),
    "top50-strict": (STRICT, summarise_ciou, "min-max, sorted index HW//2, > (SSLalign)"),
    "lvs": (LVS, summarise_ciou, "negate, min-max, flip; > or >= 1 (LVS)"),
    "adaptive": (ADAPTIVE, summarise_ciou, "as many pixels as the truth has, > (SSLalign)"),
    "adaptive-ge": (ADAPTIVE_GE, summarise_ciou, "as many pixels as the truth has, >= (ACL-SaN)"),
}

ALL = [
    *(Protocol(f"{test}/{name}", *rule) for test in ("vggss", "flickr") for name, rule in BOXES.items()),
    Protocol("avs/dataset", FRAMES, summarise_dataset, "map > 0.5; F from the mean curve of the whole set"),
    Protocol(
        "avs/acl",
        FRAMES,
        summarise_acl_frames,
        "best of 19 thresholds, chosen on this set, >; F of the whole set",
    ),
    Protocol(
        "avs/official",
        FRAMES,
        partial(summarise_batches, videos=4, threshold=0.5),
        "map > 0.5; F is a maximum per batch of 4 videos (AVSBench)",
    ),
    Protocol(
        "avs/gavs",
        FRAMES,
        partial(summarise_batches, videos=1, threshold=SWEEP[7]),
        "map > 0.4; F is a maximum per video (GAVS)",
    ),
    Protocol(
        "avs/adaptive",
        Measure("frames-adaptive", {"iou": 1}, score_frames_adaptive),
        summarise_adaptive_frames,
        "as many pixels as the truth has, > (third party: ACL-SaN)",
    ),
    Protocol(
        "mixture/top50",
        Measure("mixture-top50", {"ciou": 2}, cut_sources),
        summarise_sources,
        "each of two sources on its own map, top50; own definition, values are over sources",
    ),
    Protocol(
        "negative/pia",
        Measure("pia", {"pia": 1}, partial(predicted_share, threshold=0.5), needs_truth=False),
        summarise_pia,
        "share of the image with map >= 0.5; lower is better",
    ),
]

PROTOCOLS: dict[str, Protocol] = {p.name: p for p in ALL}
