"""Success by the size of what sounds and by the number of sources, from the per-sample values of tested runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from avloc.report.cells import goal_of
from avloc.report.intervals import Statistic, find_statistic
from avloc.report.layout import ResultTable
from avloc.report.results import EXTENTS, GUIDED, MODEL, Floats, Run, Samples

__all__ = ["Group", "Grouped", "breakdowns", "grouped", "success_by"]

EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
"""Sizes of what sounds, as shares of the picture, between which samples are told apart: the same for every set."""
BLIND = ("full frame", "centre box")
"""Controls whose success by size says what a size alone is worth."""


@dataclass(frozen=True)
class Group:
    """Samples that are alike in size or number.

    Attributes:
        name: what they have in common.
        n: samples of a set's positives that belong to it.
        mean: of the size (a share of the picture) or number.
        success: of the metric over them, NaN where none counts.
    """

    name: str
    n: int
    mean: float
    success: float


@dataclass(frozen=True)
class Grouped:
    """One row of one run, by group."""

    run: str
    row: str
    metric: str
    groups: list[Group]

    @property
    def name(self) -> str:
        return self.run if self.row == MODEL else f"{self.run} + OGL" if self.row == GUIDED else self.row


def grouped(samples: Samples, statistic: Statistic, by: str) -> list[Group]:
    """The mean of a statistic over the samples of each size (``truth_area``) or number (``sources``).

    A unit of the statistic (a sample, one of its sources, a clip, an interactive group) counts where the sample that
    names it does; for a clip or group the size is that of its first sample. Samples in which nothing sounds have no
    size.

    Returns:
        the groups that hold a sample, in order.
    """
    extent = samples.extents[by]
    owner = {key: i for i, key in enumerate(samples.key.tolist())}
    row = np.array(
        [owner[name if name in owner else name.rpartition("#")[0]] for name in statistic.name.tolist()], np.int64
    )
    known = samples.sounding & np.isfinite(extent) & (extent > 0)
    size = np.where(known[row] & (statistic.weight > 0), extent[row], np.nan)
    out = []
    for name, inside in bins(size, by):
        members = np.unique(row[inside])
        score, weight = statistic.score[inside].sum(), statistic.weight[inside].sum()
        out.append(Group(name, len(members), float(extent[members].mean()), float(score / weight)))
    return out


def bins(values: Floats, by: str) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Name and members of each group that is not empty; NaN belongs to none."""
    if by != "truth_area":
        for number in np.unique(values[np.isfinite(values)]):
            yield f"{number:g}", values == number
        return
    last = len(EDGES) - 2
    for i, (low, high) in enumerate(pairwise(EDGES)):
        with np.errstate(invalid="ignore"):
            inside = (values >= low) & ((values <= high) if i == last else (values < high))
        if inside.any():
            yield f"{100 * low:g} to {100 * high:g} %", inside


def success_by(name: str, runs: Sequence[Run], by: str) -> list[Grouped]:
    """The primary metric of a set by group: every run's own rows, then the controls that see nothing at all, once."""
    goal = goal_of(name, runs)
    out: list[Grouped] = []
    told: set[str] = set()
    for run in runs:
        for row in (*run.own_rows, *BLIND):
            samples = run.samples(name, row) if row in run.sets[name].rows and row not in told else None
            if samples is None or by not in samples.extents:
                continue
            found = find_statistic(samples, *goal, run.sets[name].rows[row].get(goal[0], {}))
            if found is None:
                continue
            groups = grouped(samples, found, by)
            if groups:
                out.append(Grouped(run.name, row, goal[1], groups))
                told.update({row} & set(BLIND))
    return sorted(out, key=lambda g: g.row in BLIND)


def breakdowns(name: str, runs: Sequence[Run]) -> tuple[list[ResultTable], list[str]]:
    """The tables of a set, and what is to be told where there are none.

    Success by size and by the number of sources, where there is more than one size or number; and how much each run
    answers in how many pieces.
    """
    old = [run.name for run in runs if lacks_extents(run, name)]
    what = "tested before sizes and numbers of sources were kept, so it stands in no breakdown. Test it again for that."
    notes = [f"{run}: {what}" for run in old]
    tables = []
    titles = {"truth_area": "size of what sounds, as a share of the picture", "sources": "number of sources"}
    for by, title in titles.items():
        rows = success_by(name, runs, by)
        columns = list(dict.fromkeys(g.name for row in rows for g in row.groups))
        if len(columns) > 1:
            order = {g.name: g.mean for row in rows for g in row.groups}
            columns.sort(key=order.__getitem__)
            tables.append(table_of(f"{rows[0].metric} by {title}, percent", columns, rows))
    if answered := answers_table(name, runs):
        tables.append(answered)
    return tables, notes


def lacks_extents(run: Run, name: str) -> bool:
    samples = run.samples(name)
    return samples is not None and not all(column in samples.extents for column in EXTENTS)


def table_of(title: str, columns: Sequence[str], rows: Sequence[Grouped]) -> ResultTable:
    """Success with the number of samples in brackets."""
    table = ResultTable(title, ["", *columns], [], ["The smaller number: samples, of those in which something sounds."])
    for row in rows:
        found = {g.name: f"{100 * g.success:.2f} ({g.n})" for g in row.groups}
        table.add("control" if row.row in BLIND else "own", [row.name, *[found.get(c, "") for c in columns]])
    return table


def answers_table(name: str, runs: Sequence[Run]) -> ResultTable | None:
    """Means over the samples in which something sounds, and over the others: true and predicted share of the picture,
    connected regions, sources; None where no run kept them."""
    heads = ["true share, %", "predicted share, %", "regions", "sources answered", "true sources"]
    table = ResultTable("What is answered at 0.5, means", ["", *heads, "predicted when silent, %"], [], [])
    for run in runs:
        for row in run.own_rows:
            samples = run.samples(name, row) if row in run.sets[name].rows else None
            if samples is None or not all(column in samples.extents for column in EXTENTS):
                continue
            extents, sounding = samples.extents, samples.sounding
            cells = [
                told(extents["truth_area"][sounding], 100),
                told(extents["predicted_share"][sounding], 100),
                told(extents["regions"][sounding]),
                told(extents["answered"][sounding]),
                told(extents["sources"][sounding]),
                told(extents["predicted_share"][~sounding], 100),
            ]
            table.add("own", [run.name if row == MODEL else f"{run.name} + OGL", *cells])
    return table if table.rows else None


def told(values: Floats, times: float = 1.0) -> str:
    known = values[np.isfinite(values)]
    return f"{times * known.mean():.2f}" if len(known) else ""
