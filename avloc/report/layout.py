"""Which number stands in which cell: runs' own rows, controls and published rows, by test set or as a paper's table.

``shuffled sound``, ``silenced`` and ``noise`` belong to their run; the other controls see no model, so runs that agree
on them share one row. Every number that is a mean over samples comes with its 95 % interval (`Bounds`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations

from avloc.report import published
from avloc.report.intervals import Bounds, Interval
from avloc.report.results import HEARD, MODEL, Measured, Run, Scores

__all__ = ["ResultTable", "compare", "paper_table", "universal_table", "with_distinct_names"]

LOWER_IS_BETTER = re.compile(r"^(g?fpr|pia|recall_precision_gap|share)")
NO_FRACTION = re.compile(r"threshold|^n(_|$)|^count$")
UNIVERSAL = "universal"
"""Protocol of the threshold that all sets share."""

Column = tuple[str, str]


@dataclass(frozen=True)
class ResultTable:
    """A table whose cells are ready to print.

    Attributes:
        title: the set and its number of samples, or the paper's table.
        columns: headings; the first is the row's name.
        rows: as many cells as columns; "" where there is no value.
        notes: what a reader must know: missing samples, doubts about printed cells.
        kinds: of each row: ``own``, ``heard`` (the model under other sounds), ``control``, ``published``, ``target``
            (the published row that a run reproduces) or ``difference``.
        groups: heading above each column, "" for none; empty where no column has one.
        findings: sentences on differences between runs.
        set: the test set, "" for a paper's table.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    kinds: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    set: str = ""

    def add(self, kind: str, cells: list[str]) -> None:
        self.kinds.append(kind)
        self.rows.append(cells)


def compare(runs: Sequence[Run], metrics: str = "headline", bounds: Bounds | None = None) -> list[ResultTable]:
    """One table per test set, over all runs.

    Args:
        runs: in the order in which their rows shall stand.
        metrics: ``headline`` for the primary protocol's published metrics and whatever the published row
            holds; ``all`` for everything measured.
        bounds: gives the intervals; None for none.
    """
    runs = with_distinct_names(runs)
    names = dict.fromkeys(name for run in runs for name in run.sets)
    return [set_table(name, [r for r in runs if name in r.sets], metrics, bounds) for name in names]


def set_table(name: str, runs: Sequence[Run], metrics: str, bounds: Bounds | None) -> ResultTable:
    """The table of one test set."""
    goal = runs[0].sets[name].primary
    targets = {run.name: target for run in runs if (target := published_row(run)) is not None}
    columns = columns_of(name, runs, targets, metrics)
    size = ", ".join(dict.fromkeys(str(run.sets[name].n) for run in runs))
    headings = ["", *[heading(column, columns) for column in columns], f"{goal[1]} over best control"]
    table = ResultTable(f"{name} ({size} samples), percent", headings, [], [], set=name)
    notes: list[str] = []
    for run in runs:
        entry = run.sets[name]
        table.add("own", [run.name, *own_cells(run, name, columns, bounds), gain(run, name, bounds)])
        for row in HEARD:
            if row in entry.rows:
                table.add("heard", [f"{run.name}, {row}", *cells(entry.rows[row], columns), ""])
        notes += notes_on(run, name)
        if entry.primary != goal:
            notes.append(f"{run.name} was selected by {'/'.join(entry.primary)}, not by {'/'.join(goal)}.")
        if target := targets.get(run.name):
            assert run.reproduces
            source = f"{run.reproduces['paper']} table {run.reproduces['table']}"
            printed = [target.value(entry.published, published_name(*column)) for column in columns]
            if any(printed):
                table.add(
                    "target", [f"published: {target.name}, {source}", *[v.percent if v else "" for v in printed], ""]
                )
                table.add(
                    "difference", [f"{run.name} - published", *differences(entry.rows[MODEL], columns, printed), ""]
                )
                notes += [f"{source}: {doubt}" for doubt in target.doubts]
            else:
                notes.append(f"{run.name} reproduces {target.name}, {source}, which has no number on {name}.")
    for row, values in blind_controls((run.name, cells_of_rows(run, name, columns)) for run in runs):
        table.add("control", [row, *values, ""])
    table.findings.extend(findings(name, runs, goal, bounds))
    table.notes.extend(dict.fromkeys(notes))
    return table


def paper_table(runs: Sequence[Run], paper: str, table: str, bounds: Bounds | None = None) -> ResultTable:
    """A published table, whole, with runs' rows and the controls under the same columns.

    A run stands below the row that it reproduces, with the difference, or below all rows.

    Args:
        paper, table: as in `avloc.report.published.find_table`.

    Raises:
        PublishedError: there is no such table.
    """
    printed, about = published.find_table(paper, table), published.load(paper)
    columns = printed.columns
    runs = with_distinct_names(runs)
    places = {run.name: [place(run, paper, column) for column in columns] for run in runs}
    out = ResultTable(
        f"{paper} table {table}: {printed.caption}, percent",
        ["", *[metric for _, metric in columns]],
        [],
        [],
        groups=["", *[benchmark for benchmark, _ in columns]],
    )
    targets = {run.name: target_in(run, paper, table) for run in runs}
    for row in printed.rows:
        mine = [run for run in runs if targets[run.name] == row]
        values = [row.value(*column) for column in columns]
        out.add("target" if mine else "published", [row.name, *[v.percent if v else "" for v in values]])
        for run in mine:
            measured = [value(run, at) for at in places[run.name]]
            names = [metric for _, metric in columns]
            apart = [f"{run.name} - {row.name}", *map(signed, names, measured, values)]
            add_run(out, run, places[run.name], bounds, apart)
    for run in runs:
        if targets[run.name] is None:
            add_run(out, run, places[run.name], bounds)
            out.notes.append(f"{run.name} reproduces no row of this table, so no difference is given.")
    for name, control in blind_controls((run.name, placed_rows(run, places[run.name])) for run in runs):
        out.add("control", [name, *control])
    for run in runs:
        used = dict.fromkeys((name, protocol) for at in places[run.name] if at for name, (protocol, _) in [at])
        told = ", ".join(f"{name} by {protocol}" for name, protocol in used)
        out.notes.append(f"{run.name}: {told}." if used else f"{run.name} was scored on none of these sets.")
        out.notes.extend(
            f"{name}: {note}" for name in dict.fromkeys(n for n, _ in used) for note in notes_on(run, name)
        )
    for name in dict.fromkeys(at[0] for run in runs for at in places[run.name] if at):
        scored = [run for run in runs if name in run.sets]
        out.findings.extend(f"{name}: {f}" for f in findings(name, scored, scored[0].sets[name].primary, bounds))
    out.notes[:] = dict.fromkeys([*out.notes, *printed.doubts, f"Source: {about.authors}, {about.title!r}."])
    return out


def add_run(
    out: ResultTable,
    run: Run,
    places: Sequence[tuple[str, Column] | None],
    bounds: Bounds | None,
    apart: list[str] | None = None,
) -> None:
    """A run's own row, how far it is apart from the published one, and its rows under other sounds."""
    out.add("own", [run.name, *[with_interval(run, at, bounds) for at in places]])
    if apart:
        out.add("difference", apart)
    for row, values in placed_rows(run, places).items():
        if row in HEARD:
            out.add("heard", [f"{run.name}, {row}", *values])


def universal_table(runs: Sequence[Run], bounds: Bounds | None = None) -> ResultTable | None:
    """Every set at the one threshold that a run chose for all; None where no run chose one."""
    runs = [run for run in with_distinct_names(runs) if run.universal]
    if not runs:
        return None
    found = dict.fromkeys(m for run in runs for s in run.sets.values() for m in s.rows[MODEL].get(UNIVERSAL, {}))
    metrics = [m for m in found if "threshold" not in m]
    columns = [(UNIVERSAL, m) for m in metrics]
    out = ResultTable("One threshold for all sets, percent", ["", "set", "threshold", *metrics], [], [])
    for name in dict.fromkeys(name for run in runs for name in run.sets):
        scored = [run for run in runs if name in run.sets and UNIVERSAL in run.sets[name].rows[MODEL]]
        for run in scored:
            own = [run.name, name, threshold_of(run), *own_cells(run, name, columns, bounds)]
            out.add("own", own)
            for row, values in run.sets[name].rows.items():
                if row in HEARD and UNIVERSAL in values:
                    out.add("heard", [f"{run.name}, {row}", name, own[2], *cells(values, columns)])
        for row, control in blind_controls((run.name, cells_at_threshold(run, name, columns)) for run in scored):
            out.add("control", [row, name, *control])
    for run in runs:
        about = run.universal or {}
        chosen = ", ".join(about.get("chosen_on", [])) or "unnamed sets"
        out.notes.append(f"{run.name}: {threshold_of(run)}, chosen on {chosen} by {about.get('criterion', 'no rule')}.")
    return out


def threshold_of(run: Run) -> str:
    return f"{run.universal['threshold']:.4g}" if run.universal else ""


def cells_at_threshold(run: Run, name: str, columns: Sequence[Column]) -> dict[str, list[str]]:
    rows = run.sets[name].rows
    return {row: [threshold_of(run), *cells(v, columns)] for row, v in rows.items() if row != MODEL and UNIVERSAL in v}


def notes_on(run: Run, name: str) -> list[str]:
    entry = run.sets[name]
    notes = list(entry.notes)
    if entry.missing:
        notes.append(f"{run.name}: {entry.missing} of {entry.n} samples are missing from these numbers.")
    if not entry.whole:
        notes.append(f"{run.name}: only a part of {name} was scored.")
    return notes


def findings(name: str, runs: Sequence[Run], goal: Column, bounds: Bounds | None) -> list[str]:
    """Each pair of runs that saw the same samples: the difference in the primary metric and its interval."""
    if bounds is None:
        return []
    told = []
    for first, second in combinations(runs, 2):
        found = bounds.between((first, MODEL), (second, MODEL), name, goal)
        if found is None:
            known = all(bounds.statistic(run, name, goal) for run in (first, second))
            why = "the runs did not keep the same samples" if known else f"{goal[1]} is no mean over kept samples"
            told.append(f"{first.name} - {second.name}: no paired interval, {why}.")
            continue
        samples = len(first.samples(name) or ())
        sure = "" if found.low > 0 or found.high < 0 else "; the interval holds zero"
        text = f"{100 * found.value:+.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
        told.append(f"{first.name} - {second.name}: {text} points of {goal[1]} on the same {samples} samples{sure}.")
    return told


def place(run: Run, paper: str, column: Column) -> tuple[str, Column] | None:
    """(set, (protocol, metric)) that belongs under a paper's (benchmark, metric); None where nothing was measured.

    The paper's own rule comes first (``avs/gavs`` for gavs), then the set's primary one.
    """
    benchmark, metric = column
    for name, entry in run.sets.items():
        if entry.published != benchmark:
            continue
        measured = [(p, m) for p, values in entry.rows[MODEL].items() for m in values if published_name(p, m) == metric]
        own = paper.partition("_")[0]
        order = sorted(measured, key=lambda c: (c[0].rpartition("/")[2] != own, c[0] != entry.primary[0]))
        if order:
            return name, order[0]
    return None


def target_in(run: Run, paper: str, table: str) -> published.Row | None:
    wanted = run.reproduces
    return (
        published.find(**wanted) if wanted and (wanted["paper"], str(wanted["table"])) == (paper, str(table)) else None
    )


def value(run: Run, at: tuple[str, Column] | None, row: str = MODEL) -> float | None:
    return None if at is None else run.sets[at[0]].rows.get(row, {}).get(at[1][0], {}).get(at[1][1])


def with_interval(run: Run, at: tuple[str, Column] | None, bounds: Bounds | None) -> str:
    return "" if at is None else own_cells(run, at[0], [at[1]], bounds)[0]


def placed_rows(run: Run, places: Sequence[tuple[str, Column] | None]) -> dict[str, list[str]]:
    """The other rows of a run under a paper's columns."""
    names = dict.fromkeys(row for at in places if at for row in run.sets[at[0]].rows if row != MODEL)
    return {row: [cell(at[1][1] if at else "", value(run, at, row)) for at in places] for row in names}


def cells_of_rows(run: Run, name: str, columns: Sequence[Column]) -> dict[str, list[str]]:
    return {row: cells(values, columns) for row, values in run.sets[name].rows.items() if row != MODEL}


def blind_controls(runs: Iterable[tuple[str, dict[str, list[str]]]]) -> list[tuple[str, list[str]]]:
    """The controls that see no model, from each run's rows: once where no two runs disagree, else once a run."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for run, rows in runs:
        for row, values in rows.items():
            if row not in HEARD:
                found.setdefault(row, []).append((run, values))
    out = []
    for row, measured in found.items():
        columns = [set(filter(None, column)) for column in zip(*(values for _, values in measured), strict=True)]
        if all(len(column) <= 1 for column in columns):
            out.append((row, [next(iter(column), "") for column in columns]))
        else:
            out += [(f"{row} ({run})", values) for run, values in measured]
    return out


def columns_of(name: str, runs: Sequence[Run], targets: dict[str, published.Row], metrics: str) -> list[Column]:
    """(protocol, metric) of each column, the primary one first."""
    measured = dict.fromkeys(
        (protocol, metric)
        for run in runs
        for protocol, values in run.sets[name].rows[MODEL].items()
        for metric in values
    )
    goal = runs[0].sets[name].primary
    ordered = [
        goal,
        *[c for c in measured if c != goal and c[0] == goal[0]],
        *[c for c in measured if c[0] != goal[0]],
    ]
    if metrics == "all":
        return ordered
    benchmark = runs[0].sets[name].published
    printed = {v.metric for target in targets.values() for v in target.values if v.benchmark == benchmark}
    taken: dict[str, Column] = {}
    for column in ordered:
        metric = published_name(*column)
        if column == goal or metric in printed or (column[0] == goal[0] and metric in known_metrics()):
            taken.setdefault(metric, column)
    return list(taken.values())


def published_name(protocol: str, metric: str) -> str:
    """What the papers' tables call a protocol's metric: the adaptive ones carry a suffix there."""
    return f"{metric}_adap" if protocol.endswith("adaptive") and not metric.endswith("_adap") else metric


@cache
def known_metrics() -> frozenset[str]:
    """Every metric that some paper prints."""
    tables = (t for p in published.papers() for t in published.load(p).tables)
    return frozenset(v.metric for table in tables for row in table.rows for v in row.values)


def published_row(run: Run) -> published.Row | None:
    return published.find(**run.reproduces) if run.reproduces else None


def gain(run: Run, name: str, bounds: Bounds | None) -> str:
    """Points of the primary metric over the best control, signed, with their paired interval; "" without controls."""
    entry: Scores = run.sets[name]
    protocol, metric = entry.primary
    found = {row: values.get(protocol, {}).get(metric) for row, values in entry.rows.items() if row != MODEL}
    controls = {row: value for row, value in found.items() if value is not None}
    value = entry.rows[MODEL][protocol][metric]
    if not controls or value is None:
        return ""
    lower = bool(LOWER_IS_BETTER.match(metric))
    best = (min if lower else max)(controls, key=controls.__getitem__)
    pair = [(run, best), (run, MODEL)] if lower else [(run, MODEL), (run, best)]
    between = bounds.between(pair[0], pair[1], name, entry.primary) if bounds else None
    points = controls[best] - value if lower else value - controls[best]
    return f"{100 * points:+.2f}{bracketed(between)} ({best})"


def differences(values: Measured, columns: Sequence[Column], printed: Sequence[published.Value | None]) -> list[str]:
    measured = [values.get(protocol, {}).get(metric) for protocol, metric in columns]
    return [signed(metric, m, p) for (_, metric), m, p in zip(columns, measured, printed, strict=True)]


def signed(metric: str, measured: float | None, printed: published.Value | None) -> str:
    """Points by which a number is above the printed one; "" where either is missing."""
    if measured is None or printed is None or NO_FRACTION.search(metric):
        return ""
    return f"{100 * (measured - printed.fraction):+.2f}"


def own_cells(run: Run, name: str, columns: Iterable[Column], bounds: Bounds | None) -> list[str]:
    values = run.sets[name].rows[MODEL]
    out = []
    for column in columns:
        number = values.get(column[0], {}).get(column[1])
        known = number is not None and bounds is not None and not NO_FRACTION.search(column[1])
        out.append(cell(column[1], number) + bracketed(bounds.of(run, name, column) if known and bounds else None))
    return out


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
