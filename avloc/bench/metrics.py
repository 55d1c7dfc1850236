"""Every metric against a plain loop of its definition, from one run on one machine.

The loops treat one sample after another and one threshold after another, with NumPy's whole-array operations: a
comparison, products and sums, no histogram, nothing kept between thresholds; they select with ``np.partition`` where a
definition sorts. "as published" does cIoU's arithmetic as the released evaluators write it, with a float64 map of
zeros and ones for each threshold; the other loops use bools, which is about five times as fast.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avloc.bench.step import Result
from avloc.metrics import extended, multi, semantic
from avloc.metrics.avs import THRESHOLDS, fscore_curve, iou
from avloc.metrics.ciou import ciou
from avloc.metrics.interactive import group_minima
from avloc.metrics.maps import minmax
from avloc.metrics.negative import image_share
from avloc.metrics.thresholds import SWEEP, area_threshold, median_threshold
from avloc.metrics.universal import GRID, choose_threshold

__all__ = ["SLOWER", "TARGET", "measure_metrics"]

Array = NDArray[Any]
Cuts = Array | Sequence[float]

TARGET = 20.0  # times as fast as the loop: F-score and threshold sweeps
SLOWER = 1.0  # nothing may be slower than its loop

CLASSES = 71


def measure_metrics(maps: int = 500, size: int = 224, repeats: int = 3) -> list[Result]:
    """Measure every family on random smooth maps with box-shaped ground truth.

    Args:
        maps: number of samples.
        size: their height and width, pixels.
        repeats: times that both are run, in turn; the fastest run of each counts, as `timeit` advises.

    Returns:
        Per metric: ``metric``, ``loop_s``, ``avloc_s``, ``ratio``, ``target`` (what the ratio should reach), and the
        ``worst`` absolute difference of the two results.
    """
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(maps, 1, 14, 14, generator=generator)
    x = torch.nn.functional.interpolate(low, size=(size, size), mode="bilinear", align_corners=True)[:, 0]
    corner = torch.randint(0, size // 2, (maps, 2, 1), generator=generator)
    side = torch.randint(size // 8, size // 2, (maps, 2, 1), generator=generator)
    line = torch.arange(size)
    rows, columns = ((line >= corner[:, i]) & (line < (corner + side)[:, i]) for i in (0, 1))
    truth = (rows[:, :, None] & columns[:, None]).float()
    labels = (minmax(x) * CLASSES).long().clamp(max=CLASSES - 1)
    actual = labels.roll(size // 20, 2)
    overlap = torch.rand(maps, generator=generator, dtype=torch.float64)
    confidence = torch.rand(maps, generator=generator, dtype=torch.float64)
    visible = torch.rand(maps, generator=generator) > 0.5
    group = torch.arange(maps) // 2
    at_grid = torch.rand(maps, len(GRID), generator=generator, dtype=torch.float64)

    tall = x[: maps // 2 * 2].reshape(-1, 1, 2 * size, size)
    stacked, goals = torch.cat([tall, tall.flip(2)], 1), truth[: maps // 2 * 2].reshape(-1, 2, size, size)

    X, T, L, A = (a.numpy() for a in (x, truth, labels, actual))
    sweep, grid = np.array(SWEEP, np.float32), np.array(GRID, np.float32)
    values, C, V, at = overlap.numpy(), confidence.numpy(), visible.numpy(), at_grid.numpy()

    pairs: dict[str, tuple[float, Callable[[], torch.Tensor], Callable[[], object]]] = {
        "cIoU, 19 thresholds, as published": (
            TARGET,
            lambda: ciou(x, truth, SWEEP),
            lambda: each(X, T, sweep, loop_published_ciou),
        ),
        "cIoU, 19 thresholds": (TARGET, lambda: ciou(x, truth, SWEEP), lambda: each(X, T, sweep, loop_ciou)),
        "cIoU, 99 thresholds": (TARGET, lambda: ciou(x, truth, GRID), lambda: each(X, T, grid, loop_ciou)),
        "image share, 99 thresholds": (TARGET, lambda: image_share(x, GRID), lambda: each(X, T, grid, loop_share)),
        "IoU, 19 thresholds": (TARGET, lambda: iou(x, truth, SWEEP), lambda: each(X, T, sweep, loop_iou)),
        "F-score, 255 thresholds": (
            TARGET,
            lambda: fscore_curve(x, truth),
            lambda: each(X, T, THRESHOLDS.numpy(), loop_fscore),
        ),
        "cIoU, threshold 0.5": (SLOWER, lambda: ciou(x, truth, (0.5,)), lambda: each(X, T, [0.5], loop_ciou)),
        "cIoU, median": (
            SLOWER,
            lambda: ciou(x, truth, median_threshold(x)),
            lambda: [loop_ciou(m, t, [place(m, m.size // 2)]) for m, t in zip(X, T, strict=True)],
        ),
        "cIoU, area of the truth": (
            SLOWER,
            lambda: ciou(x, truth, area_threshold(x, truth), ">"),
            lambda: [
                loop_ciou(m, t, [place(m, m.size - np.count_nonzero(t))], np.greater) for m, t in zip(X, T, strict=True)
            ],
        ),
        "IoU, threshold 0.5": (SLOWER, lambda: iou(x, truth), lambda: each(X, T, [0.5], loop_iou)),
        "FPR": (SLOWER, lambda: image_share(x), lambda: each(X, T, [0.5], loop_share)),
        "top quarter": (SLOWER, lambda: extended.top_quarter(x), lambda: [loop_top_quarter(m) for m in X]),
        "extended AP": (
            SLOWER,
            lambda: extended.average_precision(overlap, confidence, visible),
            lambda: loop_extended_ap(values, C, V),
        ),
        "IIoU": (SLOWER, lambda: group_minima(overlap, group), lambda: loop_groups(values, group.numpy())),
        "semantic IoU and F": (
            SLOWER,
            lambda: scores(semantic.label_counts(labels, actual, CLASSES)),
            lambda: [loop_semantic(p, t) for p, t in zip(L, A, strict=True)],
        ),
        "pixel AP": (
            SLOWER,
            lambda: multi.pixel_average_precision(x, truth),
            lambda: [loop_ap(m, t) for m, t in zip(X, T, strict=True)],
        ),
        "duet IoU": (SLOWER, lambda: multi.smooth_iou(x, truth), lambda: each(X, T, [0.3], loop_smooth_iou)),
        "greedy matching": (
            SLOWER,
            lambda: torch.stack(multi.greedy_matches(stacked, torch.full((len(stacked),), 2), goals), 1),
            lambda: [loop_greedy(X[i : i + 2], T[i : i + 2]) for i in range(0, maps // 2 * 2, 2)],
        ),
        "universal threshold": (
            SLOWER,
            lambda: torch.tensor(choose_threshold(at_grid, at_grid.flip(0))),
            lambda: loop_choice(at, at[::-1]),
        ),
    }
    return [measure(name, repeats, *pair) for name, pair in pairs.items()]


def measure(
    name: str, repeats: int, target: float, fast: Callable[[], torch.Tensor], loop: Callable[[], object]
) -> Result:
    """Run both in turn after one warm-up of the fast one."""
    fast()
    times = []
    for _ in range(repeats):
        a, b, c = time.perf_counter(), fast(), time.perf_counter()
        want, d = loop(), time.perf_counter()
        times.append((c - a, d - c))
    avloc_s, loop_s = (min(t) for t in zip(*times, strict=True))
    got = b.double().numpy()
    return {
        "metric": name,
        "loop_s": loop_s,
        "avloc_s": avloc_s,
        "ratio": loop_s / avloc_s,
        "target": target,
        "worst": float(np.abs(got - np.asarray(want).reshape(got.shape)).max()),
    }


def each(
    maps: Array,
    truth: Array,
    cuts: Cuts,
    metric: Callable[[Array, Array, Cuts], object],
) -> list[object]:
    return [metric(m, t, cuts) for m, t in zip(maps, truth, strict=True)]


def place(m: Array, rank: int) -> Any:
    return np.partition(m.ravel(), rank)[rank]


def loop_published_ciou(m: Array, t: Array, cuts: Cuts) -> list[float]:
    values = []
    for cut in cuts:
        chosen = np.zeros(m.shape)
        chosen[m >= cut] = 1
        values.append(np.sum(chosen * t) / (np.sum(t) + np.sum(chosen * (t == 0))))
    return values


def loop_ciou(m: Array, t: Array, cuts: Cuts, above: np.ufunc = np.greater_equal) -> list[float]:
    values = []
    for cut in cuts:
        chosen = above(m, cut)
        values.append((chosen * t).sum() / (t.sum() + (chosen & (t == 0)).sum()))
    return values


def loop_share(m: Array, t: Array, cuts: Cuts) -> list[float]:
    return [(m > cut).mean() for cut in cuts]


def loop_iou(m: Array, t: Array, cuts: Cuts) -> list[float]:
    mask, values = t > 0, []
    for cut in cuts:
        chosen = m > cut
        values.append((chosen & mask).sum() / (chosen | mask).sum())
    return values


def loop_smooth_iou(m: Array, t: Array, cuts: Cuts) -> list[float]:
    mask, values = t > 0, []
    for cut in cuts:
        chosen = m >= cut
        values.append(((chosen & mask).sum() + 1e-4) / ((chosen | mask).sum() + 1e-4))
    return values


def loop_fscore(m: Array, t: Array, cuts: Cuts) -> list[float]:
    mask, values = t > 0, []
    for cut in cuts:
        chosen = m >= cut
        hit = (chosen & mask).sum()
        precision, recall = hit / max(chosen.sum(), 1), hit / mask.sum()
        values.append(1.3 * precision * recall / max(0.3 * precision + recall, 1e-12))
    return values


def loop_top_quarter(m: Array) -> float:
    count = -(-m.size // 4)
    return np.partition(m.ravel(), m.size - count)[m.size - count :].mean(dtype=np.float64)


def loop_extended_ap(ciou: Array, confidence: Array, visible: Array) -> float:
    precision, recall = [], []
    for c in np.sort(confidence)[:-1][:: -max(1, len(ciou) // 200)]:
        detected = confidence >= c
        true = (detected & visible & (ciou >= 0.5)).sum()
        missed = (~detected & visible).sum()
        precision.append(true / detected.sum())
        recall.append(true / (true + missed) if true + missed else 1.0)
    return sum(max(precision[i:]) * (recall[i + 1] - recall[i]) for i in range(len(recall) - 1))


def loop_groups(ciou: Array, group: Array) -> list[float]:
    members: dict[int, list[float]] = {}
    for value, number in zip(ciou, group, strict=True):
        members.setdefault(number, []).append(value)
    return [min(values) for values in members.values()]


def scores(counts: semantic.LabelCounts) -> torch.Tensor:
    return torch.stack([semantic.class_iou(counts), semantic.class_fscore(counts)], 1)


def loop_semantic(pred: Array, truth: Array) -> Array:
    values = np.zeros((2, CLASSES))
    for c in range(CLASSES):
        p, t = pred == c, truth == c
        hit, predicted, actual = (p & t).sum(), p.sum(), t.sum()
        if hit:
            values[:, c] = hit / (predicted + actual - hit), 1.3 * hit / (0.3 * actual + predicted)
    return values


def loop_ap(m: Array, t: Array) -> float:
    order = np.argsort(-m.ravel())
    score, found = m.ravel()[order], np.cumsum(t.ravel()[order] > 0)
    last = np.append(np.flatnonzero(np.diff(score)), score.size - 1)
    recall = found[last] / found[-1]
    return float(np.sum(np.diff(recall, prepend=0) * found[last] / (last + 1)))


def loop_greedy(tiles: Array, truth: Array) -> Array:
    tall = tiles.reshape(-1, tiles.shape[2])
    left, values = truth.copy(), np.zeros((2, 2))
    for i, m in enumerate((tall, tall[::-1])):
        fits, precisions = [], []
        for tile, goal in zip(np.split(m, 2), left, strict=True):
            scaled = (tile - tile.min()) / (tile.max() - tile.min())
            cut = place(scaled, scaled.size // 2)
            chosen = (scaled > cut) | (scaled >= 1)
            fits += loop_ciou(chosen, goal, [True])
            hit, area = (chosen * goal).sum(), goal.sum()
            recall = float(hit) / max(float(area), 1.0)
            precisions.append(recall * hit / chosen.sum() + (1 - recall) * area / goal.size)
        best = int(np.argmax(fits))
        values[:, i] = fits[best], precisions[best]
        left[best] = 0
    return values


def loop_choice(ciou: Array, pia: Array) -> int:
    best, chosen = -1.0, 0
    for k in range(ciou.shape[1]):
        a, b = ciou[:, k].mean(), 1 - pia[:, k].mean()
        if 2 * a * b / (a + b) > best:
            best, chosen = 2 * a * b / (a + b), k
    return chosen
