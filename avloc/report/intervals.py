"""Bootstrap confidence intervals of a run's own numbers, and of the difference of two runs on the same samples.

Most published numbers are means of one score a sample: a success rate of 0 or 1, an AUC of the area that the sample
contributes, a mIoU of the frame's IoU. All are written as a ratio of sums, ``sum of scores / sum of weights``, so a
thousand resamples are one matrix product (`scipy.stats.bootstrap` would draw them anew for each number and knows no
clusters). Samples that are not independent (the frames of a clip, the members of an interactive group) are drawn
together. Percentile intervals (Efron, 1979), 95 %, fixed seed.

Over several seeds of a method (`over_seeds`) both are drawn with replacement, the seeds and the samples, and every
drawn seed is scored on the same drawn samples. It assumes that the seeds are independent draws of a training run, and
that the samples are independent draws of the set. A difference of two methods shares the drawn samples and draws each
method's seeds by itself, since an equal seed gives two methods nothing in common but the order of their batches. A
bootstrap of few seeds is too narrow; the seeds' deviations from their mean are stretched by
``t(k - 1) / z * sqrt(k / (k - 1))``, the factor of Hesterberg's expanded percentile interval ("What Teachers Should
Know About the Bootstrap", 2015): 1.6 for five seeds, 9.2 for two, of which little can be said.

How a number follows from the stored values is found, not assumed: a candidate counts only if, over all samples, it
gives the very number of ``results.json``. A threshold that was chosen on the set is held fixed. Numbers that are no
such mean (AP, max-F1, F-score) have an interval only where a function is given that computes them again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from avloc.metrics.ciou import LEVELS
from avloc.metrics.thresholds import SWEEP
from avloc.report.results import MODEL, Floats, Run, Samples
from avloc.report.seeds import Seeds

__all__ = [
    "Bounds",
    "Interval",
    "Rescore",
    "Statistic",
    "difference",
    "find_statistic",
    "interval",
    "over_seeds",
    "rescored",
]

RESAMPLES, SEED, COVERAGE = 1000, 0, 0.95
TAIL = (1 + COVERAGE) / 2
MOST_SOURCES = 8
"""Most sources of a sample that a column holds side by side, each with up to 5 values or with a sweep."""
EQUAL = 1e-9
"""How far a number that is computed again may be from the stored one."""

Rescore = Callable[[Sequence[str], Mapping[str, NDArray]], Mapping[str, Mapping[str, "float | list[float] | None"]]]
"""(protocols, columns of some samples) to protocol to metric to value. The columns are those of `Samples`: ``negative``
str, ``clip``, ``group``, ``group_size`` and ``sounding`` float64, all ``[n]``, and the measures' ``[n, k]``."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds, in the estimate's own unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Statistic:
    """A number as ``score.sum() / weight.sum()``.

    Attributes:
        score, weight: float64 ``[u]``, one per unit.
        cluster: int64 ``[u]`` in 0..c-1; units of one cluster are drawn together.
        name: str ``[u]``, which sample, clip or group a unit is.
    """

    score: Floats
    weight: Floats
    cluster: NDArray[np.int64]
    name: NDArray[np.str_]

    @property
    def value(self) -> float:
        return float(self.score.sum() / self.weight.sum())


def interval(statistic: Statistic, resamples: int = RESAMPLES, seed: int = SEED) -> Interval | None:
    """Percentile interval of a statistic; None with fewer than two clusters, which say nothing of the spread."""
    count = int(statistic.cluster.max(initial=-1)) + 1
    if count < 2:
        return None
    drawn = draws(count, resamples, seed)
    sums = [np.bincount(statistic.cluster, x, count) for x in (statistic.score, statistic.weight)]
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may hold no sample that counts
        values = (drawn @ sums[0]) / (drawn @ sums[1])
    return bounded(statistic.value, values)


def difference(first: Statistic, second: Statistic, resamples: int = RESAMPLES, seed: int = SEED) -> Interval | None:
    """Paired interval of ``first - second``: both are drawn on the same samples.

    Returns:
        None unless both have the same units, in whatever order, with the same weights.
    """
    both = aligned([first, second])
    if both is None:
        return None
    a, b = both
    return interval(replace(a, score=a.score - b.score), resamples, seed)


def aligned(statistics: Sequence[Statistic]) -> list[Statistic] | None:
    """The statistics with their units in one order; None unless all have the same units with the same weights."""
    first = statistics[0]
    if len(set(first.name)) < len(first.name):
        return None
    out = []
    for each in statistics:
        order = np.argsort(each.name)
        out.append(Statistic(each.score[order], each.weight[order], each.cluster[order], each.name[order]))
        same = len(each.name) == len(first.name) and (out[-1].name == out[0].name).all()
        if not same or (out[-1].weight != out[0].weight).any():
            return None
    # Clusters are numbered by each run; the first one's numbers hold for all.
    return [replace(s, cluster=out[0].cluster) for s in out]


def over_seeds(
    first: Sequence[Statistic], second: Sequence[Statistic] = (), resamples: int = RESAMPLES, seed: int = SEED
) -> Interval | None:
    """Percentile interval of the mean of ``first`` over seeds, less that of ``second``, over seeds and samples.

    Args:
        first, second: the same number in each seed of a method. Of one seed alone only the samples are drawn, and the
            interval says nothing of other seeds.
        resamples, seed: of the bootstrap.

    Returns:
        None unless all have the same units with the same weights, and for fewer than two clusters.
    """
    every = aligned([*first, *second])
    if every is None:
        return None
    count = int(every[0].cluster.max(initial=-1)) + 1
    if count < 2:
        return None
    drawn = draws(count, resamples, seed)
    sums = np.stack([np.bincount(s.cluster, s.score, count) for s in every], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = (drawn @ sums) / (drawn @ np.bincount(every[0].cluster, every[0].weight, count))[:, None]
    random = np.random.default_rng(seed + 1)
    values = mean_of_drawn(ratios[:, : len(first)], random)
    estimate = np.mean([s.value for s in first])
    if second:
        values = values - mean_of_drawn(ratios[:, len(first) :], random)
        estimate = estimate - np.mean([s.value for s in second])
    return bounded(float(estimate), values)


def mean_of_drawn(ratios: Floats, random: np.random.Generator) -> Floats:
    """The mean over drawn seeds of values ``[R, k]``, its distance from the mean over all of them stretched."""
    k = ratios.shape[1]
    centre: Floats = ratios.mean(1)
    if k < 2:
        return centre
    pick = random.integers(k, size=ratios.shape)
    stretch = stdtrit(k - 1, TAIL) / ndtri(TAIL) * np.sqrt(k / (k - 1))
    return centre + stretch * (np.take_along_axis(ratios, pick, 1).mean(1) - centre)


def find_statistic(
    samples: Samples, protocol: str, metric: str, numbers: Mapping[str, float | None]
) -> Statistic | None:
    """The statistic of the stored values that is a protocol's metric; None where there is none.

    Args:
        samples: of one row.
        protocol, metric: the number's name.
        numbers: all of the protocol's, of which the metric's is to be met and a ``threshold`` tells the column.
    """
    wanted = numbers.get(metric)
    if wanted is None or not len(samples):
        return None
    columns = [c for c in samples.values if not c.endswith(":curve")]
    for name in sorted(columns, key=lambda c: nearness(c, protocol)):
        for unit, values in units(samples, name, metric):
            for scores, weights in scored(values, metric, name):
                for chosen in subsets(samples, unit):
                    mass = weights * chosen[:, None]
                    with np.errstate(invalid="ignore", divide="ignore"):
                        estimates = (scores * mass).sum(0) / mass.sum(0)
                    met = np.flatnonzero(np.abs(estimates - wanted) <= EQUAL)
                    if len(met):
                        k = min(met, key=lambda i: distance(int(i), len(estimates), numbers))
                        return Statistic(scores[:, k] * mass[:, k], mass[:, k], unit.cluster, unit.name)
    return None


@dataclass(frozen=True)
class Units:
    """What a mean is taken over: samples, clips or groups; ``first`` is a sample of each."""

    first: NDArray[np.int64]
    cluster: NDArray[np.int64]
    name: NDArray[np.str_]


def units(samples: Samples, column: str, metric: str) -> Iterator[tuple[Units, Floats]]:
    """Readings of a column: by source, by sample, by group (its worst member) or by clip (its mean)."""
    values = samples.values[column]
    each = np.arange(len(samples))
    width = values.shape[1]
    # A sample's sources lie side by side, NaN where it has fewer; the columns of a sweep are no sources.
    several = (S for S in range(2, MOST_SOURCES + 1) if width % S == 0 and (width // S <= 5 or width == S * len(SWEEP)))
    for S in several:
        owner = np.repeat(each, S)
        names = np.char.add(np.char.add(samples.key[owner], "#"), np.tile(np.arange(S), len(each)).astype(np.str_))
        yield Units(owner, samples.cluster[owner], names), values.reshape(len(owner), -1)
    if metric.startswith(("iiou", "iauc")):
        members = np.flatnonzero(samples.group)
        _, first, number = np.unique(samples.group[members], return_index=True, return_inverse=True)
        worst = np.full((len(first), values.shape[1]), np.inf)
        np.minimum.at(worst, number, np.nan_to_num(values[members], nan=-1.0))
        first = members[first]
        yield Units(first, samples.cluster[first], samples.key[first]), worst
        return
    yield Units(each, samples.cluster, samples.key), values
    _, first, clip = np.unique(samples.clip, return_index=True, return_inverse=True)
    if len(first) < len(each):
        means = np.stack([np.bincount(clip, v) for v in values.T], 1) / np.bincount(clip)[:, None]
        yield Units(first, samples.cluster[first], samples.key[first]), means


def scored(values: Floats, metric: str, column: str) -> Iterator[tuple[Floats, Floats]]:
    """(score, weight) ``[u, k]`` of each way in which a metric of this name is a mean; a missing value is a miss, or
    does not count."""
    stem, of_map = metric.removesuffix("_adap"), column.endswith(("ap", "swapped"))
    there = ~np.isnan(values)
    filled = np.where(there, values, -1.0)
    if "@" in stem or stem in ("ciou", "iiou", "loc_acc"):
        hit = (filled >= (float(stem.split("@")[1]) / 100 if "@" in stem else 0.5)).astype(np.float64)
        yield hit, np.ones_like(hit)
        yield hit, there.astype(np.float64)
    if stem.partition("@")[0] in ("auc", "iauc"):
        width = np.full(len(LEVELS), LEVELS[1])
        width[[0, -1]] /= 2
        # pIA is better when small, so its curve counts the samples below a level.
        below = "pia" in column
        steps = ((filled <= level) if below else (filled >= level) for level in LEVELS)
        area = np.sum([w * step for w, step in zip(width, steps, strict=True)], axis=0)
        yield area, np.ones_like(area)
        yield area, there.astype(np.float64)
    # The AP of each map has a mean; that of a whole set of detections is none.
    if re.match(r"(mean_)?(ciou|iou|miou|pia(?!p)|fpr|share)", metric) or (stem in ("ap", "cap", "piap") and of_map):
        yield np.where(there, values, 0.0), there.astype(np.float64)


def subsets(samples: Samples, unit: Units) -> Iterator[NDArray[np.bool_]]:
    """Which units a mean may be restricted to: none, those that sound, those that do not, each kind of negative."""
    yield np.ones(len(unit.first), np.bool_)
    sounding, negative = samples.sounding[unit.first], samples.negative[unit.first]
    kinds = [sounding, ~sounding, *(negative == kind for kind in np.unique(negative))]
    yield from (kind for kind in kinds if kind.any() and not kind.all())


def nearness(column: str, protocol: str) -> tuple[bool, bool]:
    """Sorts the columns of a protocol's own measure first."""
    measure, rule = column.partition(":")[0], protocol.rpartition("/")[2]
    return measure != rule, measure not in rule and rule not in measure


def distance(place: int, width: int, numbers: Mapping[str, float | None]) -> float:
    """How far a column of a sweep is from the protocol's threshold, 0.5 where it has none."""
    threshold = numbers.get("threshold")
    return abs(SWEEP[place] - (0.5 if threshold is None else threshold)) if width == len(SWEEP) else float(place)


def rescored(
    samples: Samples, protocol: str, rescore: Rescore, resamples: int = 200, seed: int = SEED
) -> dict[str, Interval]:
    """Intervals of all metrics of a protocol by computing them again on every resample.

    Args:
        samples: of one row.
        protocol: its name.
        rescore: computes the metrics; it leaves out a protocol that it does not know, whose numbers have no interval.
        resamples: fewer than elsewhere, for each takes as long as the table itself.
    """
    count = int(samples.cluster.max(initial=-1)) + 1
    if count < 2:
        return {}
    each = np.arange(len(samples))
    whole = rescore([protocol], columns(samples, each, np.zeros_like(each))).get(protocol)
    if whole is None:
        return {}
    members = np.split(np.argsort(samples.cluster, kind="stable"), np.cumsum(np.bincount(samples.cluster))[:-1])
    random = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        drawn = [members[c] for c in random.integers(count, size=count)]
        copy = np.repeat(np.arange(count), [len(d) for d in drawn])
        for metric, value in rescore([protocol], columns(samples, np.concatenate(drawn), copy))[protocol].items():
            if isinstance(value, float):
                found.setdefault(metric, []).append(value)
    bounds = {m: bounded(v, np.array(found[m])) for m, v in whole.items() if isinstance(v, float) and m in found}
    return {metric: bound for metric, bound in bounds.items() if bound is not None}


def columns(samples: Samples, rows: NDArray[np.int64], copy: NDArray[np.int64]) -> dict[str, NDArray]:
    """The columns of drawn rows; a clip or group that is drawn twice becomes two."""

    def renamed(ids: Floats) -> Floats:
        number = np.unique(ids[rows], return_inverse=True)[1]
        own = np.unique(copy * len(rows) + number, return_inverse=True)[1] + 1.0
        return np.where(ids[rows] == 0, 0.0, own)

    return {
        "negative": samples.negative[rows],
        "clip": renamed(samples.clip),
        "group": renamed(samples.group),
        "group_size": samples.group_size[rows],
        "sounding": samples.sounding[rows].astype(np.float64),
    } | {c: v[rows] for c, v in samples.values.items()}


def bounded(value: float, resampled: Floats) -> Interval | None:
    kept = resampled[np.isfinite(resampled)]
    if not len(kept):
        return None
    low, high = np.quantile(kept, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(value, float(low), float(high))


class Bounds:
    """The intervals of runs' numbers, each computed when it is first asked for.

    Args:
        rescore: computes the numbers that are no mean of per-sample scores; without it they have no interval.
    """

    def __init__(self, rescore: Rescore | None = None) -> None:
        self.rescore = rescore
        self.found: dict[tuple[str, str, str, str, str], Statistic | None] = {}
        self.computed: dict[tuple[str, str, str, str], dict[str, Interval]] = {}

    def statistic(self, run: Run, name: str, column: tuple[str, str], row: str = MODEL) -> Statistic | None:
        """What a metric of a row of a set is a mean of; ``column`` is (protocol, metric)."""
        key = (str(run.folder), name, row, *column)
        if key not in self.found:
            samples, numbers = run.samples(name, row), run.sets[name].rows.get(row, {}).get(column[0], {})
            self.found[key] = None if samples is None else find_statistic(samples, *column, numbers)
        return self.found[key]

    def of(self, run: Run, name: str, column: tuple[str, str], again: bool = True, row: str = MODEL) -> Interval | None:
        """The interval of a number of a row.

        Args:
            column: (protocol, metric).
            again: compute a number that is no mean again on every resample, which takes seconds; else it has an
                interval only if somebody asked for its protocol before.
            row: the model's by default.
        """
        if isinstance(run, Seeds):
            each = self.of_seeds(run, name, column, row)
            return over_seeds(each) if each else None
        statistic = self.statistic(run, name, column, row)
        if statistic is not None:
            return interval(statistic)
        key = (str(run.folder), name, row, column[0])
        samples = run.samples(name, row)
        if key not in self.computed and again and self.rescore is not None and samples is not None:
            self.computed[key] = rescored(samples, column[0], self.rescore)
        return self.computed.get(key, {}).get(column[1])

    def between(
        self, first: tuple[Run, str], second: tuple[Run, str], name: str, goal: tuple[str, str]
    ) -> Interval | None:
        """Paired interval of the difference of two (run, row) on a set; None where they saw different samples.

        Two rows of the same seeds are compared seed by seed; two methods over seeds and samples (`over_seeds`).
        """
        a, b = first[0], second[0]
        mine, theirs = (self.of_seeds(run, name, goal, row) for run, row in (first, second))
        if not mine or not theirs:
            return None
        if not isinstance(a, Seeds) and not isinstance(b, Seeds):
            return difference(mine[0], theirs[0])
        if a is b:
            pairs = [aligned([x, y]) for x, y in zip(mine, theirs, strict=True)]
            apart = [replace(p[0], score=p[0].score - p[1].score) for p in pairs if p]
            return over_seeds(apart) if len(apart) == len(pairs) else None
        return over_seeds(mine, theirs)

    def of_seeds(self, run: Run, name: str, column: tuple[str, str], row: str = MODEL) -> list[Statistic]:
        """The statistic of each seed of a run, of a single run its only one; [] where one has none."""
        members = run.members if isinstance(run, Seeds) else (run,)
        found = [self.statistic(member, name, column, row) for member in members]
        return [s for s in found if s is not None] if None not in found else []


@lru_cache(maxsize=2)
def draws(count: int, resamples: int, seed: int) -> Floats:
    """How often each of ``count`` clusters is drawn, ``[resamples, count]``; every row adds up to ``count``."""
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    drawn += np.arange(resamples)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count).astype(np.float64)
