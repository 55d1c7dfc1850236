"""Runs' numbers next to the published row that they reproduce, with the controls in the same table.

Reads each run's ``results.json``, which the evaluator writes, and beside it ``run.json`` (`Provenance`) for
the experiment's name and for the row that it reproduces::

    {"sets": {"vggss": {"samples": int, "primary": {"protocol": str, "metric": str}, "missing": {row: int},
                        "rows": {"model": {protocol: {metric: fraction}}, "full frame": {...}, ...}}}}
    {"experiment": str, "reproduces": {"paper": str, "table": str, "method": str, "variant": str} | null}

Every row but ``model`` is a control. ``shuffled sound`` belongs to its run; the other controls see no model,
so runs that agree on them share one row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable

from avloc.report import published

__all__ = [
    "ResultTable",
    "ResultsError",
    "Run",
    "compare",
    "read_run",
    "report",
    "to_frame",
    "to_latex",
    "to_markdown",
]

MODEL = "model"
SHUFFLED = "shuffled sound"
LOWER_IS_BETTER = re.compile(r"^(g?fpr|pia|recall_precision_gap)")
NO_FRACTION = re.compile(r"threshold|^(n|count)$")


class ResultsError(ValueError):
    """A run without readable results, or results that do not hang together."""


@dataclass(frozen=True)
class Scores:
    """One test set's numbers in one run.

    Attributes:
        n: samples of the set.
        missing: how many of them the model's row lacks.
        whole: False where the run was told to score a part only.
        primary: (protocol, metric) by which the set is judged.
        published: the set's name in the papers' tables.
        rows: row to protocol to metric to fraction; None where a number could not be computed.
    """

    n: int
    missing: int
    whole: bool
    primary: tuple[str, str]
    published: str
    rows: dict[str, dict[str, dict[str, float | None]]]


@dataclass(frozen=True)
class Run:
    """One run's results: the experiment's name, its folder, its test sets, and the row that it reproduces."""

    name: str
    folder: Path
    sets: dict[str, Scores]
    reproduces: dict[str, Any] | None


@dataclass(frozen=True)
class ResultTable:
    """One test set's table, cells ready to print.

    Attributes:
        title: the set and its number of samples.
        columns: headings; the first is the row's name.
        rows: as many cells as columns; "" where there is no value.
        notes: what a reader must know: missing samples, doubts about printed cells.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def read_run(folder: Path | str) -> Run:
    """The results of a run, from its folder or from the ``results.json`` itself.

    Raises:
        ResultsError: no results there, or a damaged file.
    """
    path = Path(folder)
    path = path if path.suffix == ".json" else path / "results.json"
    if not path.is_file():
        raise ResultsError(f"{path} does not exist. `avloc test` writes it; name the folder of a tested run.")
    try:
        content = json.loads(path.read_text())
        about = path.with_name("run.json")
        content = (json.loads(about.read_text()) if about.is_file() else {}) | content
        sets = {name: read_scores(name, entry) for name, entry in content["sets"].items()}
        name = content.get("experiment") or path.absolute().parent.name
        return Run(name, path.parent, sets, content.get("reproduces"))
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError, ValueError) as e:
        raise ResultsError(f"{path} is damaged ({type(e).__name__}: {e}). Test the run again.") from e


def read_scores(name: str, entry: dict[str, Any]) -> Scores:
    """One set of a ``results.json``; curves are left out.

    Raises:
        ValueError: the model's row or its primary metric is not there.
    """
    goal, missing = entry["primary"], entry.get("missing", 0)
    primary = (goal["protocol"], goal["metric"]) if isinstance(goal, dict) else (goal[0], goal[1])
    rows = {
        row: {
            protocol: {metric: value for metric, value in metrics.items() if not isinstance(value, list)}
            for protocol, metrics in protocols.items()
        }
        for row, protocols in entry["rows"].items()
    }
    if MODEL not in rows:
        raise ValueError(f"set {name!r} has no row 'model'")
    if primary[1] not in rows[MODEL].get(primary[0], {}):
        raise ValueError(f"the model's numbers on {name!r} lack the primary metric {'/'.join(primary)}")
    return Scores(
        n=entry.get("samples", entry.get("n", 0)),
        missing=missing.get(MODEL, 0) if isinstance(missing, dict) else missing,
        whole=entry.get("whole", True),
        primary=primary,
        published=entry.get("published") or name,
        rows=rows,
    )


def compare(runs: Sequence[Run], metrics: str = "headline") -> list[ResultTable]:
    """One table per test set, over all runs.

    Args:
        runs: in the order in which their rows shall stand.
        metrics: ``headline`` for the primary protocol's published metrics and whatever the published row
            holds; ``all`` for everything measured.
    """
    runs = with_distinct_names(runs)
    names = dict.fromkeys(name for run in runs for name in run.sets)
    return [table_of(name, [r for r in runs if name in r.sets], metrics) for name in names]


def to_markdown(table: ResultTable) -> str:
    """A GitHub table under its title."""
    lines = [row_of(table.columns), row_of(["---", *["---:"] * (len(table.columns) - 1)])]
    lines += [row_of([cell.replace("|", r"\|") for cell in row]) for row in table.rows]
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"### {table.title}", "", *lines, *([""] if notes else []), *notes, ""])


def to_latex(table: ResultTable) -> str:
    """A ``booktabs`` table environment."""
    body = [" & ".join(latex(cell) for cell in row) + r" \\" for row in [table.columns, *table.rows]]
    return "\n".join(
        [
            r"\begin{table}",
            rf"  \caption{{{latex(table.title)}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"    \toprule",
            f"    {body[0]}",
            r"    \midrule",
            *[f"    {line}" for line in body[1:]],
            r"    \bottomrule",
            r"  \end{tabular}",
            *[f"  % {note}" for note in table.notes],
            r"\end{table}",
            "",
        ]
    )


def to_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Every number of every run, unrounded, one per line."""
    return pd.DataFrame(
        [
            (run.name, name, row, protocol, metric, value, entry.n, entry.missing)
            for run in with_distinct_names(runs)
            for name, entry in run.sets.items()
            for row, protocols in entry.rows.items()
            for protocol, measured in protocols.items()
            for metric, value in measured.items()
        ],
        columns=["experiment", "set", "row", "protocol", "metric", "value", "n", "missing"],
    )


def report(
    folders: Sequence[Path | str],
    out: Path | str | None = None,
    metrics: str = "headline",
    console: Console | None = None,
) -> list[ResultTable]:
    """Print the comparison of runs; given ``out``, write it as ``report.md``, ``.csv`` and ``.tex`` there.

    Raises:
        ResultsError: no folder was given, or one of them holds no results.
    """
    if not folders:
        raise ResultsError("No run to report on: name one or more run folders.")
    runs = [read_run(folder) for folder in folders]
    tables = compare(runs, metrics)
    console = console or Console()
    for table in tables:
        console.print(to_rich(table))
        for note in table.notes:
            console.print(f"  {note}", style="dim", markup=False, highlight=False)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text("\n".join(to_markdown(t) for t in tables))
        (folder / "report.tex").write_text("\n".join(to_latex(t) for t in tables))
        to_frame(runs).to_csv(folder / "report.csv", index=False)
    return tables


def table_of(name: str, runs: Sequence[Run], metrics: str) -> ResultTable:
    """The table of one test set."""
    goal = runs[0].sets[name].primary
    targets = {run.name: target for run in runs if (target := published_row(run)) is not None}
    columns = columns_of(name, runs, targets, metrics)
    rows: list[list[str]] = []
    notes: list[str] = []
    for run in runs:
        entry = run.sets[name]
        rows.append([run.name, *cells(entry.rows[MODEL], columns), gain(entry)])
        if SHUFFLED in entry.rows:
            rows.append([f"{run.name}, {SHUFFLED}", *cells(entry.rows[SHUFFLED], columns), ""])
        if entry.missing:
            notes.append(f"{run.name}: {entry.missing} of {entry.n} samples are missing from these numbers.")
        if not entry.whole:
            notes.append(f"{run.name}: only a part of {name} was scored.")
        if entry.primary != goal:
            notes.append(f"{run.name} was selected by {'/'.join(entry.primary)}, not by {'/'.join(goal)}.")
        if target := targets.get(run.name):
            source = f"{run.reproduces['paper']} table {run.reproduces['table']}" if run.reproduces else ""
            printed = [target.value(entry.published, published_name(*column)) for column in columns]
            if any(printed):
                rows.append([f"published: {target.name}, {source}", *[v.percent if v else "" for v in printed], ""])
                notes += [f"{source}: {doubt}" for doubt in target.doubts]
            else:
                notes.append(f"{run.name} reproduces {target.name}, {source}, which has no number on {name}.")
    rows += [[row, *cells(values, columns), ""] for row, values in blind_controls(name, runs)]
    headings = [heading(column, columns) for column in columns]
    size = ", ".join(dict.fromkeys(str(run.sets[name].n) for run in runs))
    return ResultTable(
        f"{name} ({size} samples), percent",
        ["", *headings, f"{goal[1]} over best control"],
        rows,
        list(dict.fromkeys(notes)),
    )


def blind_controls(name: str, runs: Sequence[Run]) -> list[tuple[str, dict[str, dict[str, float | None]]]]:
    """The controls that see no model: once where all runs agree, else once a run."""
    found: dict[str, list[tuple[str, dict[str, dict[str, float | None]]]]] = {}
    for run in runs:
        for row, values in run.sets[name].rows.items():
            if row not in (MODEL, SHUFFLED):
                found.setdefault(row, []).append((run.name, values))
    rows = []
    for row, measured in found.items():
        if all(values == measured[0][1] for _, values in measured):
            rows.append((row, measured[0][1]))
        else:
            rows += [(f"{row} ({run})", values) for run, values in measured]
    return rows


def columns_of(
    name: str, runs: Sequence[Run], targets: dict[str, published.Row], metrics: str
) -> list[tuple[str, str]]:
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
    taken: dict[str, tuple[str, str]] = {}
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


def gain(entry: Scores) -> str:
    """Points of the primary metric over the best control, signed; "" without controls."""
    protocol, metric = entry.primary
    found = {row: values.get(protocol, {}).get(metric) for row, values in entry.rows.items() if row != MODEL}
    controls = {row: value for row, value in found.items() if value is not None}
    value = entry.rows[MODEL][protocol][metric]
    if not controls or value is None:
        return ""
    lower = bool(LOWER_IS_BETTER.match(metric))
    best = (min if lower else max)(controls, key=controls.__getitem__)
    difference = controls[best] - value if lower else value - controls[best]
    return f"{100 * difference:+.2f} ({best})"


def cells(values: dict[str, dict[str, float | None]], columns: list[tuple[str, str]]) -> list[str]:
    return [cell(metric, values.get(protocol, {}).get(metric)) for protocol, metric in columns]


def cell(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if NO_FRACTION.search(metric) else f"{100 * value:.2f}"


def heading(column: tuple[str, str], columns: list[tuple[str, str]]) -> str:
    """The metric's name, with its protocol where another column has the same metric or protocols differ."""
    return column[1] if len({protocol for protocol, _ in columns}) == 1 else "/".join(column)


def with_distinct_names(runs: Sequence[Run]) -> list[Run]:
    """Runs of one experiment get their folder's name beside the experiment's."""
    names = [run.name for run in runs]
    return [replace(r, name=f"{r.name} [{r.folder.name}]") if names.count(r.name) > 1 else r for r in runs]


def to_rich(table: ResultTable) -> RichTable:
    grid = RichTable(title=table.title, title_justify="left")
    for i, column in enumerate(table.columns):
        grid.add_column(column, justify="right" if i else "left")
    for row in table.rows:
        style = "cyan" if row[0].startswith("published: ") else "bold" if row[-1] else None
        grid.add_row(*[cell.replace("[", r"\[") for cell in row], style=style)
    return grid


def row_of(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def latex(text: str) -> str:
    return re.sub(r"([%&_#$])", r"\\\1", text)
