"""What stands in a cell: columns and their protocols, a number with its interval, deviations, differences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

from avloc.report import published
from avloc.report.intervals import Bounds, Interval
from avloc.report.results import ANOTHER_CONTEXT, GUIDED, MODEL, Measured, Run
from avloc.report.seeds import spread

__all__ = [
    "LISTENS",
    "OWN",
    "UNIVERSAL",
    "Column",
    "bracketed",
    "cell",
    "cells",
    "cells_at_threshold",
    "cells_of_rows",
    "columns_of",
    "differences",
    "goal_of",
    "heading",
    "listed",
    "own_cells",
    "place",
    "placed_rows",
    "published_name",
    "rules_of",
    "rules_of_value",
    "signed",
    "threshold_of",
    "value",
    "with_distinct_names",
    "with_interval",
]

NO_FRACTION = re.compile(r"threshold|^n(_|$)|^count$")

UNIVERSAL = "universal"
"""Protocol of the threshold that all sets share."""

OWN = (MODEL, GUIDED)

LISTENS = (*OWN, ANOTHER_CONTEXT)

Column = tuple[str, str]


def listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def threshold_of(run: Run) -> str:
    return f"{run.universal['threshold']:.4g}" if run.universal else ""


def cells_at_threshold(run: Run, name: str, columns: Sequence[Column]) -> dict[str, list[str]]:
    rows = run.sets[name].rows
    return {row: [threshold_of(run), *cells(v, columns)] for row, v in rows.items() if row != MODEL and UNIVERSAL in v}


def rules_of_value(value: published.Value | None) -> list[Column]:
    return [(value.protocol, value.measured)] if value and value.protocol else []


def rules_of(table: published.Table, column: Column) -> list[Column]:
    """The (protocol, metric) that values of a published column may be compared with, the most frequent first."""
    found = [r for row in table.rows for r in rules_of_value(row.value(*column))]
    return [rule for rule, _ in Counter(found).most_common()]


def place(run: Run, paper: str, column: Column, rules: Sequence[Column] = ()) -> tuple[str, Column] | None:
    """(set, (protocol, metric)) that belongs under a paper's (benchmark, metric); None where nothing was measured.

    First come ``rules``, what the paper's values may be compared with. Without a number by them: success rates are
    those of boxes where a benchmark is scored by boxes and by masks; then comes the paper's own rule (``avs/gavs``
    for gavs), then the set's primary one, then the first of the first set.
    """
    benchmark, metric = column
    for protocol, found in rules:
        for name, entry in run.sets.items():
            if entry.published == benchmark and found in entry.rows[MODEL].get(protocol, {}):
                return name, (protocol, found)
    measured = [
        (name, (protocol, found))
        for name, entry in run.sets.items()
        if entry.published == benchmark
        for protocol, values in entry.rows[MODEL].items()
        for found in values
        if published_name(protocol, found) == metric
    ]

    def order(at: tuple[str, Column]) -> tuple[bool, bool, bool]:
        name, (protocol, found) = at
        family, _, rule = protocol.partition("/")
        of_masks = family == "avs" and found.startswith(("ciou", "auc"))
        return of_masks, rule != paper.partition("_")[0], protocol != run.sets[name].primary[0]

    return min(measured, key=order, default=None)


def value(run: Run, at: tuple[str, Column] | None, row: str = MODEL) -> float | None:
    return None if at is None else run.sets[at[0]].rows.get(row, {}).get(at[1][0], {}).get(at[1][1])


def with_interval(run: Run, at: tuple[str, Column] | None, bounds: Bounds | None, row: str = MODEL) -> str:
    return "" if at is None or row not in run.sets[at[0]].rows else own_cells(run, at[0], [at[1]], bounds, row)[0]


def placed_rows(run: Run, places: Sequence[tuple[str, Column] | None]) -> dict[str, list[str]]:
    """The other rows of a run under a paper's columns."""
    names = dict.fromkeys(row for at in places if at for row in run.sets[at[0]].rows if row != MODEL)
    return {row: [cell(at[1][1] if at else "", value(run, at, row)) for at in places] for row in names}


def cells_of_rows(run: Run, name: str, columns: Sequence[Column]) -> dict[str, list[str]]:
    return {row: cells(values, columns) for row, values in run.sets[name].rows.items() if row not in OWN}


def columns_of(name: str, runs: Sequence[Run], targets: Sequence[published.Row], metrics: str) -> list[Column]:
    """(protocol, metric) of each column, the primary one first."""
    measured = dict.fromkeys(
        (protocol, metric)
        for run in runs
        for protocol, values in run.sets[name].rows[MODEL].items()
        for metric in values
    )
    goal = goal_of(name, runs)
    goals = {run.sets[name].primary for run in runs}
    ordered = [
        goal,
        *[c for c in measured if c != goal and c[0] == goal[0]],
        *[c for c in measured if c[0] != goal[0]],
    ]
    if metrics == "all":
        return ordered
    benchmark = runs[0].sets[name].published
    cells = [v for target in targets for v in target.values if v.benchmark == benchmark]
    printed = {v.metric for v in cells}
    alike = {(v.protocol, v.measured): v.metric for v in cells if v.protocol}
    taken: dict[str, Column] = {metric: column for column, metric in alike.items() if column in measured}
    if goal in measured:
        taken = {alike.get(goal, published_name(*goal)): goal} | taken
    for column in ordered:
        metric = published_name(*column)
        if (
            column in goals
            or metric in printed
            or (column[0] == goal[0] and metric in known_metrics(tuple(published.papers())))
        ):
            taken.setdefault(metric, column)
    return list(taken.values())


def published_name(protocol: str, metric: str) -> str:
    """What the papers' tables call a protocol's metric: the adaptive ones carry a suffix there."""
    return f"{metric}_adap" if protocol.endswith("adaptive") and not metric.endswith("_adap") else metric


@cache
def known_metrics(papers: tuple[str, ...]) -> frozenset[str]:
    """Every metric that one of the papers prints."""
    tables = (t for p in papers for t in published.load(p).tables)
    return frozenset(v.metric for table in tables for row in table.rows for v in row.values)


def goal_of(name: str, runs: Sequence[Run]) -> Column:
    """The primary (protocol, metric) of most runs, of the first one among equals."""
    return Counter(run.sets[name].primary for run in runs).most_common(1)[0][0]


def differences(values: Measured, columns: Sequence[Column], printed: Sequence[published.Value | None]) -> list[str]:
    measured = [values.get(protocol, {}).get(metric) for protocol, metric in columns]
    return [signed(metric, m, p) for (_, metric), m, p in zip(columns, measured, printed, strict=True)]


def signed(metric: str, measured: float | None, printed: published.Value | None) -> str:
    """Points by which a number is above the printed one; "" where either is missing."""
    if measured is None or printed is None or NO_FRACTION.search(metric):
        return ""
    return f"{100 * (measured - printed.fraction):+.2f}"


def own_cells(run: Run, name: str, columns: Iterable[Column], bounds: Bounds | None, row: str = MODEL) -> list[str]:
    values = run.sets[name].rows[row]
    out = []
    for column in columns:
        number = values.get(column[0], {}).get(column[1])
        known = number is not None and bounds is not None and not NO_FRACTION.search(column[1])
        out.append(
            cell(column[1], number)
            + give_or_take(column[1], spread(run, name, column, row))
            + bracketed(bounds.of(run, name, column, column[0] != UNIVERSAL, row) if known and bounds else None)
        )
    return out


def give_or_take(metric: str, deviation: float | None) -> str:
    """A standard deviation over seeds behind its mean; "" without any."""
    return "" if deviation is None else f" ± {cell(metric, deviation)}"


def bracketed(interval: Interval | None) -> str:
    return "" if interval is None else f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def cells(values: Measured, columns: Sequence[Column]) -> list[str]:
    return [cell(metric, values.get(protocol, {}).get(metric)) for protocol, metric in columns]


def cell(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if NO_FRACTION.search(metric) else f"{100 * value:.2f}"


def heading(column: Column, columns: Sequence[Column]) -> str:
    """The metric's name, with its protocol where another column has the same metric or protocols differ."""
    return column[1] if len({protocol for protocol, _ in columns}) == 1 else "/".join(column)


def with_distinct_names(runs: Sequence[Run]) -> list[Run]:
    """Runs of one experiment get their folder's name beside the experiment's, or its whole path if they share that."""
    for told in (lambda run: run.folder.name, lambda run: str(run.folder)):
        names = [run.name for run in runs]
        if len(set(names)) < len(names):
            plain = [run.name.partition(" [")[0] for run in runs]
            runs = [
                replace(run, name=f"{base} [{told(run)}]") if names.count(run.name) > 1 else run
                for run, base in zip(runs, plain, strict=True)
            ]
    return list(runs)
