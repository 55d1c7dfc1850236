"""Which number stands in which cell: runs' own rows, controls and published rows, by test set or as a paper's table.

``with OGL``, ``shuffled sound``, ``silenced`` and ``noise`` belong to their run; the controls see no model, so runs
that agree on them share one row. Every number that is a mean over samples comes with its 95 % interval (`Bounds`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from avloc.report import published
from avloc.report.cells import (
    OWN,
    UNIVERSAL,
    Column,
    cells,
    cells_at_threshold,
    cells_of_rows,
    columns_of,
    differences,
    goal_of,
    heading,
    listed,
    own_cells,
    place,
    placed_rows,
    published_name,
    rules_of,
    rules_of_value,
    signed,
    threshold_of,
    value,
    with_distinct_names,
    with_interval,
)
from avloc.report.findings import about_seeds, findings, gain
from avloc.report.intervals import Bounds
from avloc.report.results import GUIDED, HEARD, MODEL, Run
from avloc.report.seeds import Seeds

__all__ = ["ResultTable", "compare", "paper_table", "tables_with_rows", "universal_table"]

NAMED = 3
"""Runs that a control's row names."""


@dataclass(frozen=True)
class ResultTable:
    """A table whose cells are ready to print.

    Attributes:
        title: the set and its number of samples, or the paper's table.
        columns: headings; the first is the row's name.
        rows: as many cells as columns; "" where there is no value.
        notes: what a reader must know: missing samples, doubts about printed cells.
        kinds: of each row: ``own``, ``heard`` (the model under other sounds), ``control``, ``published``, ``target``
            (the published row that a run reproduces), ``difference`` or ``group`` (a heading above rows, no cells).
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
    """The table of one test set; where runs were told to judge it by different metrics, by that of most."""
    goal = goal_of(name, runs)
    answers = [Answer(run, row) for run in runs for row in run.own_rows if row in run.sets[name].rows]
    targets = {a.name: found for a in answers if (found := a.printed_on(name)) is not None}
    columns = columns_of(name, runs, [row for _, row in targets.values()], metrics)
    size = ", ".join(dict.fromkeys(str(run.sets[name].n) for run in runs))
    headings = ["", *[heading(column, columns) for column in columns], f"{goal[1]} over best control"]
    table = ResultTable(f"{name} ({size} samples), percent", headings, [], [], set=name)
    notes: list[str] = []
    for a in answers:
        run, entry = a.run, a.run.sets[name]
        table.add("own", [a.name, *own_cells(run, name, columns, bounds, a.row), gain(run, name, goal, bounds, a.row)])
        if a.row == MODEL:
            for row in HEARD:
                if row in entry.rows:
                    table.add("heard", [f"{run.name}, {row}", *cells(entry.rows[row], columns), ""])
            notes += [*notes_on(run, name), *filter(None, [a.lost])]
            if entry.primary != goal:
                notes.append(f"{run.name} was selected by {'/'.join(entry.primary)}, not by {'/'.join(goal)}.")
        if a.name in targets:
            source, target = targets[a.name]
            printed = [target.comparable(entry.published, *column) for column in columns]
            shown = [
                v or target.value(entry.published, published_name(*c)) for v, c in zip(printed, columns, strict=True)
            ]
            if any(shown):
                told = [v.percent if v else "" for v in shown]
                table.add("target", [f"published: {target.name}, {source}", *told, ""])
                if any(printed):
                    apart = differences(entry.rows[a.row], columns, printed)
                    table.add("difference", [f"{a.name} - published", *apart, ""])
                notes += [f"{source}: {why}" for why in incomparable(shown, printed)]
                notes += [f"{source}: {doubt}" for doubt in target.doubts]
            else:
                notes.append(f"{a.name} was scored by no metric that {source} prints of {name}.")
        elif (wanted := a.reproduced) is not None:
            assert run.reproduces
            source = f"{run.reproduces['paper']} table {run.reproduces['table']}"
            notes.append(f"{a.name} reproduces {wanted.name}, {source}, which has no number on {name}.")
    for row, values in blind_controls((run.name, cells_of_rows(run, name, columns)) for run in runs):
        table.add("control", [row, *values, ""])
    table.findings.extend(findings(name, runs, goal, bounds))
    table.notes.extend(dict.fromkeys([*notes, *about_seeds(runs)]))
    return table


@dataclass(frozen=True)
class Answer:
    """A row of a run that is its method's own answer: as it is, or with object guidance."""

    run: Run
    row: str

    @property
    def name(self) -> str:
        return self.run.name if self.row == MODEL else f"{self.run.name} + OGL"

    @property
    def reproduced(self) -> published.Row | None:
        """The published row to compare with: with OGL for the answer with OGL; None where there is none."""
        wanted = self.run.reproduces
        if not wanted:
            return None
        try:
            return published.find(**wanted | ({"ogl": self.row == GUIDED} if len(self.run.own_rows) > 1 else {}))
        except published.PublishedError:
            return None

    @property
    def lost(self) -> str:
        """Why the row that the run says it reproduces is not here; "" if it is."""
        if not self.run.reproduces:
            return ""
        try:
            published.find(**self.run.reproduces)
        except published.PublishedError as e:
            return f"{self.run.name} is compared with no published row: {e}"
        return ""

    @property
    def alike(self) -> dict[published.Place, published.Row]:
        """Every published row of the model that is reproduced, by (paper, table), the named one first."""
        row, wanted = self.reproduced, self.run.reproduces
        return {} if row is None or not wanted else published.alike(wanted["paper"], wanted["table"], row)

    def printed_on(self, name: str) -> tuple[str, published.Row] | None:
        """(paper and table, row) of the first published row of the reproduced model with a number on a test set."""
        benchmark, wanted = self.run.sets[name].published, self.run.reproduces
        for (paper, table), row in self.alike.items():
            if wanted and paper == wanted["paper"] and any(v.benchmark == benchmark for v in row.values):
                return f"{paper} table {table}", row
        return None


def incomparable(shown: Sequence[published.Value | None], printed: Sequence[published.Value | None]) -> list[str]:
    """Of the cells that stand in a table without a difference: what they may be compared with instead, or why not."""
    told = []
    for shown_value, same in zip(shown, printed, strict=True):
        if shown_value is not None and same is None:
            why = shown_value.reason or f"may be compared with {shown_value.measured} of {shown_value.protocol} only"
            told.append(f"{shown_value.benchmark} {shown_value.metric} has no difference: {why}.")
    return list(dict.fromkeys(told))


GROUPS = {"prior": "published methods", "baseline": "published baselines", "ours": "the paper's own"}


def paper_table(runs: Sequence[Run], paper: str, table: str, bounds: Bounds | None = None) -> ResultTable:
    """A published table, whole, with runs' rows and the controls under the same columns.

    A run stands below the row of the model that it reproduces, whatever table its experiment names, with the
    difference, or below all rows. Runs that were scored on none of the table's sets are left out.

    Args:
        paper, table: as in `avloc.report.published.find_table`.

    Raises:
        PublishedError: there is no such table.
    """
    printed, about = published.find_table(paper, table), published.load(paper)
    columns = printed.columns
    named = with_distinct_names(runs)
    named_rules = [rules_of(printed, column) for column in columns]
    places = {
        run.name: [place(run, paper, column, rules) for column, rules in zip(columns, named_rules, strict=True)]
        for run in named
    }
    runs = [run for run in named if any(places[run.name])]
    answers = [Answer(run, row) for run in runs for row in run.own_rows]
    out = ResultTable(
        f"{paper} table {table}: {printed.caption}, percent",
        ["", *[metric for _, metric in columns]],
        [],
        [],
        groups=["", *[benchmark for benchmark, _ in columns]],
    )
    targets = {a.name: a.alike.get((paper, str(table))) for a in answers}
    grouped = len({row.group for row in printed.rows}) > 1
    for group, rows in groupby(printed.rows, key=lambda row: row.group):
        if grouped:
            out.add("group", [GROUPS.get(group, group), *[""] * len(columns)])
        for row in rows:
            mine = [a for a in answers if targets[a.name] == row]
            values = [row.value(*column) for column in columns]
            out.add("target" if mine else "published", [row.name, *[v.percent if v else "" for v in values]])
            for a in mine:
                mine_at = [place(a.run, paper, c, rules_of_value(v)) for c, v in zip(columns, values, strict=True)]
                measured = [value(a.run, at, a.row) for at in mine_at]
                names = [metric for _, metric in columns]
                same = [
                    v if v and at and at[1] == (v.protocol, v.measured) else None
                    for v, at in zip(values, mine_at, strict=True)
                ]
                apart = [f"{a.name} - {row.name}", *map(signed, names, measured, same)]
                add_answer(out, a, mine_at, bounds, apart)
                why = incomparable([v if at else None for v, at in zip(values, mine_at, strict=True)], same)
                out.notes.extend(f"{row.name}: {each}" for each in why)
    others = [a for a in answers if targets[a.name] is None]
    if others and grouped:
        out.add("group", ["runs without a row of this table", *[""] * len(columns)])
    for a in others:
        add_answer(out, a, places[a.run.name], bounds)
    out.notes.extend(filter(None, (a.lost for a in others)))
    if others:
        out.notes.append(
            f"{listed(a.name for a in others)}: reproduces no row of this table, so no difference is given."
        )
    controls = blind_controls((run.name, placed_rows(run, places[run.name])) for run in runs)
    if controls and grouped:
        out.add("group", ["controls that see no model", *[""] * len(columns)])
    for name, control in controls:
        out.add("control", [name, *control])
    scored: dict[str, list[str]] = {}
    for run in runs:
        used = dict.fromkeys((name, protocol) for at in places[run.name] if at for name, (protocol, _) in [at])
        scored.setdefault(", ".join(f"{name} by {protocol}" for name, protocol in used), []).append(run.name)
        out.notes.extend(
            f"{name}: {note}" for name in dict.fromkeys(n for n, _ in used) for note in notes_on(run, name)
        )
    out.notes.extend(f"{listed(names)}: {told}." for told, names in scored.items())
    if absent := [run.name for run in named if not any(places[run.name])]:
        out.notes.append(f"{listed(absent)}: scored on none of these sets.")
    for name in dict.fromkeys(at[0] for run in runs for at in places[run.name] if at):
        mine_too = [run for run in runs if name in run.sets]
        out.findings.extend(f"{name}: {f}" for f in findings(name, mine_too, goal_of(name, mine_too), bounds))
    out.notes.extend(
        f"{e.name}, {listed(e.benchmarks)}: no experiment measures it: {e.why}"
        for e in published.unreached()
        if (e.paper, e.table) == (paper, str(table))
    )
    out.notes[:] = dict.fromkeys(
        [*out.notes, *about_seeds(runs), *printed.doubts, f"Source: {about.authors}, {about.title!r}."]
    )
    return out


def tables_with_rows(runs: Sequence[Run], papers: Sequence[str]) -> list[tuple[published.Place, list[Run]]]:
    """The published tables in which at least one run has a row with a number, each with the runs that belong in it:
    those, and runs that were scored on its sets and reproduce no published row at all.

    Raises:
        PublishedError: there is no such paper.
    """
    out = []
    alike = {run.name: {p for row in run.own_rows for p in Answer(run, row).alike} for run in runs}
    for paper in papers:
        for table in published.load(paper).tables:
            columns = published.find_table(paper, table.id).columns
            placed = [run for run in runs if any(place(run, paper, column) for column in columns)]
            if any((paper, table.id) in alike[run.name] for run in placed):
                mine = [run for run in placed if (paper, table.id) in alike[run.name] or not run.reproduces]
                out.append(((paper, table.id), mine))
    return out


def add_answer(
    out: ResultTable,
    answer: Answer,
    places: Sequence[tuple[str, Column] | None],
    bounds: Bounds | None,
    apart: list[str] | None = None,
) -> None:
    """A run's own row, how far it is apart from the published one, and its rows under other sounds."""
    run = answer.run
    out.add("own", [answer.name, *[with_interval(run, at, bounds, answer.row) for at in places]])
    if apart:
        out.add("difference", apart)
    for row, values in placed_rows(run, places).items():
        if row in HEARD and answer.row == MODEL:
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
                if row in (GUIDED, *HEARD) and UNIVERSAL in values:
                    kind, told = ("own", " + OGL") if row == GUIDED else ("heard", f", {row}")
                    out.add(kind, [f"{run.name}{told}", name, own[2], *cells(values, columns)])
        for row, control in blind_controls((run.name, cells_at_threshold(run, name, columns)) for run in scored):
            out.add("control", [row, name, *control])
    for run in runs:
        about = run.universal or {}
        chosen = ", ".join(about.get("chosen_on", [])) or "unnamed sets"
        out.notes.append(f"{run.name}: {threshold_of(run)}, chosen on {chosen} by {about.get('criterion', 'no rule')}.")
    return out


def notes_on(run: Run, name: str) -> list[str]:
    entry = run.sets[name]
    notes = list(entry.notes)
    for each in run.members if isinstance(run, Seeds) else (run,):
        mine = each.sets[name]
        if mine.missing:
            notes.append(f"{each.name}: {mine.missing} of {mine.n} samples are missing from these numbers.")
        if not mine.whole:
            notes.append(f"{each.name}: only a part of {name} was scored.")
    return notes


def blind_controls(runs: Iterable[tuple[str, dict[str, list[str]]]]) -> list[tuple[str, list[str]]]:
    """The controls that see no model, from each run's rows: once for all runs that agree."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for run, rows in runs:
        for row, values in rows.items():
            if row not in (*OWN, *HEARD):
                found.setdefault(row, []).append((run, values))
    out = []
    for row, measured in found.items():
        agreed: list[tuple[list[str], list[str]]] = []
        for run, values in measured:
            for names, known in agreed:
                if all(a == b or not a or not b for a, b in zip(known, values, strict=True)):
                    names.append(run)
                    known[:] = [a or b for a, b in zip(known, values, strict=True)]
                    break
            else:
                agreed.append(([run], list(values)))
        for names, known in agreed:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            out.append((f"{row} ({listed(names[:NAMED])}{more})" if len(agreed) > 1 else row, known))
    return out
