"""Localisation with silent frames: average precision, maximal F1 and LocAcc over confidences (SLAVC, ACL).

Source: the evaluators of SLAVC (stoneMo/SLAVC, 05b429c) and ACL-SSL (57f4a6c). A frame is a true positive at confidence
c if it is visible, its confidence is at least c and its cIoU at least the level; every other frame at or above c is a
false positive, every visible frame below c a false negative. So a misplaced frame leaves the recall's denominator, and
the published curve is not the textbook's: `average_precision` and `max_f1` follow the publication, `exact_curve` the
textbook.

Everywhere ``ciou`` is ``[N]`` or ``[N, K]`` (K variants of the map, such as 19 thresholds), NaN being a miss,
``confidence`` is ``[N]``, and ``visible`` is bool ``[N]``, False for a pair labelled non-sounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from avloc.metrics.thresholds import largest_mean, one_thread

__all__ = [
    "SIZES",
    "PRCurve",
    "average_precision",
    "exact_average_precision",
    "exact_curve",
    "exact_max_f1",
    "f1_at",
    "f1_curve",
    "loc_acc",
    "max_f1",
    "precision_recall",
    "size_group",
    "top_quarter",
]

SIZES: tuple[str, ...] = ("small", "medium", "large", "huge")
"""Size groups of `size_group`, by the summed ground truth in pixels of the 224 x 224 map."""

BOUNDS = (32**2, 96**2, 144**2)


def top_quarter(maps: Tensor) -> Tensor:
    """SLAVC's confidence: the mean of the largest quarter of the pixels, their number rounded up.

    Args:
        maps: ``[N, H, W]``, before any min-max.

    Returns:
        float64 ``[N]``.
    """
    return largest_mean(maps, math.ceil(maps.shape[1:].numel() / 4))


def precision_recall(
    ciou: Tensor, confidence: Tensor, visible: Tensor, thresholds: Tensor, level: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Published precision and recall of the frames whose confidence is ``>=`` each threshold.

    Args:
        ciou: ``[N]`` or ``[N, K]``.
        confidence: ``[N]``.
        visible: bool ``[N]``.
        thresholds: ``[T]`` in any order, compared in the confidences' dtype; -inf detects every frame.
        level: cIoU that counts as found, ``>=``.

    Returns:
        Precision and recall, float64 ``[T]`` or ``[T, K]``; an empty denominator gives 1.
    """
    confidence, order = confidence.sort()
    start = torch.searchsorted(confidence, thresholds.to(confidence).contiguous())
    seen = visible[order].view(-1, *[1] * (ciou.ndim - 1))
    hits = below((ciou[order] >= level) & seen)
    found = hits[-1] - hits[start]
    detected = (len(confidence) - start).view(-1, *[1] * (ciou.ndim - 1)).expand(found.shape)
    missed = below(seen)[start].expand(found.shape)
    return share(found, detected), share(found, found + missed)


@one_thread()
def average_precision(
    ciou: Tensor, confidence: Tensor, visible: Tensor, level: float = 0.5, skip: int | None = 200
) -> Tensor:
    """Published AP: ``sum_i max(precision[i:]) * (recall[i+1] - recall[i])``.

    The thresholds are the sorted confidences without the largest one, walked downwards in steps of
    ``max(1, N // skip)``. The recall that is reached at the first threshold is not credited, and terms are negative
    where recall falls.

    Args:
        ciou: ``[N]`` or ``[N, K]``.
        confidence: ``[N]``.
        visible: bool ``[N]``.
        level: cIoU that counts as found.
        skip: number of steps that the published walk aims at; None visits every confidence.

    Returns:
        float64, scalar or ``[K]``; 0 for N = 1, NaN for N = 0.
    """
    n = len(confidence)
    if n < 2:
        return ciou.new_full(ciou.shape[1:], 0.0 if n else math.nan, dtype=torch.float64)
    step = 1 if skip is None else max(1, n // skip)
    thresholds = confidence.sort().values[:-1].flip(0)[::step]
    precision, recall = precision_recall(ciou, confidence, visible, thresholds, level)
    best = precision.flip(0).cummax(0).values.flip(0)
    return (best[:-1] * recall.diff(dim=0)).sum(0)


def f1_curve(
    ciou: Tensor, confidence: Tensor, visible: Tensor, level: float = 0.5, skip: int | None = 10
) -> tuple[Tensor, Tensor]:
    """Published F1 at the thresholds ``sorted(confidence)[:: max(1, N // skip)]``, about ten of them.

    Args:
        ciou: ``[N]`` or ``[N, K]``.
        confidence: ``[N]``.
        visible: bool ``[N]``.
        level: cIoU that counts as found.
        skip: None takes every confidence.

    Returns:
        Thresholds ``[T]`` and F1, float64 ``[T]`` or ``[T, K]``.
    """
    thresholds = confidence.sort().values[:: 1 if skip is None else max(1, len(confidence) // skip)]
    return thresholds, harmonic(*precision_recall(ciou, confidence, visible, thresholds, level))


def max_f1(
    ciou: Tensor,
    confidence: Tensor,
    visible: Tensor,
    level: float = 0.5,
    skip: int | None = 10,
    rounded: bool = False,
) -> Tensor:
    """The maximum of `f1_curve`.

    Args:
        ciou: ``[N]`` or ``[N, K]``.
        confidence: ``[N]``.
        visible: bool ``[N]``.
        level: cIoU that counts as found.
        skip: as in `f1_curve`.
        rounded: as the papers report it: rounded to one decimal of a percent.

    Returns:
        float64 in 0..1, scalar or ``[K]``; NaN for N = 0.
    """
    if not len(confidence):
        return ciou.new_full(ciou.shape[1:], math.nan, dtype=torch.float64)
    best = f1_curve(ciou, confidence, visible, level, skip)[1].amax(0)
    if not rounded:
        return best
    # As text, since that rounds the exact value; scaling by ten and rounding moves values such as 0.0005.
    digits = [float(f"{100 * v:.1f}") / 100 for v in best.reshape(-1).tolist()]
    return best.new_tensor(digits).reshape(best.shape)


def f1_at(ciou: Tensor, confidence: Tensor, visible: Tensor, threshold: float = 0.5, level: float = 0.5) -> Tensor:
    """Published F1 of the frames with ``confidence >= threshold`` (SLAVC 0.5; AVGN 0 for its mixed map).

    Args:
        ciou: ``[N]`` or ``[N, K]``.
        confidence: ``[N]``.
        visible: bool ``[N]``.
        threshold: of the confidence.
        level: cIoU that counts as found.

    Returns:
        float64, scalar or ``[K]``.
    """
    at = confidence.new_tensor([threshold])
    return harmonic(*precision_recall(ciou, confidence, visible, at, level))[0]


def loc_acc(ciou: Tensor, visible: Tensor, level: float = 0.5) -> Tensor:
    """LocAcc, the README's "Precision": the share of visible frames with a cIoU strictly above the level.

    Args:
        ciou: ``[N]`` or ``[N, K]``.
        visible: bool ``[N]``.
        level: 0.5; AVGN also 0.1 and 0.3.

    Returns:
        float64, scalar or ``[K]``; NaN without visible frames.
    """
    return (ciou[visible] > level).double().mean(0)


class PRCurve(NamedTuple):
    """Precision and recall over every distinct confidence, from the highest to the lowest.

    Attributes:
        thresholds: ``[T]``, descending.
        precision: float64 ``[T]``, true positives of the detected frames.
        recall: float64 ``[T]``, true positives of all visible frames: never falls; 0 without visible frames.
    """

    thresholds: Tensor
    precision: Tensor
    recall: Tensor


def exact_curve(ciou: Tensor, confidence: Tensor, visible: Tensor, level: float = 0.5) -> PRCurve:
    """The textbook's precision-recall curve; not what the papers report, but what a plot should show.

    Args:
        ciou: ``[N]``.
        confidence: ``[N]``.
        visible: bool ``[N]``.
        level: cIoU that counts as found.
    """
    ordered, order = confidence.sort(descending=True)
    found = ((ciou[order] >= level) & visible[order]).long().cumsum(0)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]  # frames of one confidence are detected together
    found, detected = found[last].double(), last.nonzero()[:, 0] + 1
    return PRCurve(ordered[last], found / detected, found / visible.sum().clamp(min=1))


def exact_average_precision(curve: PRCurve) -> Tensor:
    """``sum_k precision[k] * (recall[k] - recall[k-1])`` with a recall of 0 before the first threshold; float64."""
    return (curve.precision * curve.recall.diff(prepend=curve.recall.new_zeros(1))).sum()


def exact_max_f1(curve: PRCurve) -> Tensor:
    """The maximum of F1 over the whole curve; float64, NaN for a curve without points."""
    if not len(curve.thresholds):
        return curve.precision.new_tensor(math.nan)
    return harmonic(curve.precision, curve.recall).amax()


def size_group(area: Tensor) -> Tensor:
    """Which of `SIZES` a frame belongs to: small < 32² <= medium < 96² <= large < 144² <= huge.

    The published groups hold visible frames only.

    Args:
        area: ``[N]``, summed ground truth of each frame in pixels.

    Returns:
        int64 ``[N]``.
    """
    return torch.bucketize(area.double(), torch.tensor(BOUNDS, dtype=torch.float64, device=area.device), right=True)


def below(flags: Tensor) -> Tensor:
    """How many flags precede each place, int64 ``[N + 1, ...]``."""
    return torch.cat([flags.new_zeros(1, *flags.shape[1:], dtype=torch.int64), flags.long().cumsum(0)])


def share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole == 0, 1.0, part.double() / whole)


def harmonic(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a + b > 0, 2 * a * b / (a + b), 0.0)
