"""Runs' numbers beside the published ones, with the controls: on the screen, and as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable

from avloc.report import published
from avloc.report.curves import plots_of
from avloc.report.document import Section, write_document
from avloc.report.gallery import chosen, entries
from avloc.report.intervals import Bounds, Rescore
from avloc.report.layout import ResultTable, compare, paper_table, universal_table, with_distinct_names
from avloc.report.results import MODEL, ResultsError, Run, read_run

__all__ = ["ResultTable", "ResultsError", "compare", "read_run", "report", "to_frame", "to_latex", "to_markdown"]

WIDTH = 160  # columns of a table that goes to a file

PICTURES, FEWEST = 120, 6
"""Samples in all galleries of a page together, and the fewest of one set."""


def report(
    folders: Sequence[Path | str],
    out: Path | str | None = None,
    metrics: str = "headline",
    paper: str | None = None,
    table: str | None = None,
    intervals: bool = True,
    rescore: Rescore | None = None,
    console: Console | None = None,
) -> list[ResultTable]:
    """Print runs beside the published numbers; given ``out``, write ``report.md``, ``.csv``, ``.tex``, ``.html`` there.

    Args:
        folders: of tested runs, each with a ``results.json``.
        out: folder of the files.
        metrics: ``headline`` for the published columns, ``all`` for everything measured.
        paper, table: one published table, whole, with the runs' rows in it, instead of a table for every test set.
        intervals: compute 95 % intervals from ``per_sample.parquet``.
        rescore: computes a protocol's numbers from per-sample values; without it, numbers that are no mean over samples
            (AP, max-F1, F-score) have no interval.
        console: to print on.

    Raises:
        ResultsError: no folder was given, one of them holds no results, or only one of ``paper`` and ``table``.
        PublishedError: there is no such table.
    """
    if not folders:
        raise ResultsError("No run to report on: name one or more run folders.")
    if (paper is None) != (table is None):
        raise ResultsError(f"--paper and --table go together: --paper {paper or 'souple'} --table {table or '1'}.")
    runs = with_distinct_names([read_run(folder) for folder in dict.fromkeys(map(Path, folders))])
    bounds = Bounds(rescore) if intervals else None
    if paper is not None and table is not None:
        tables = [paper_table(runs, paper, table, bounds)]
    else:
        tables = compare(runs, metrics, bounds)
    if shared := universal_table(runs, bounds):
        tables.append(shared)
    if bounds:
        absent = [
            f"{run.name} kept no per_sample.parquet, so it has no intervals." for run in runs if not run.per_sample
        ]
        for each in tables:
            each.notes.extend(absent)
    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    for each in tables:
        console.print(to_rich(each))
        for note in [*each.findings, *each.notes]:
            console.print(f"  {note}", style="dim", markup=False, highlight=False)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text("\n".join(to_markdown(t) for t in tables))
        (folder / "report.tex").write_text("\n".join(to_latex(t) for t in tables))
        to_frame(runs, bounds, paper, table).to_csv(folder / "report.csv", index=False)
        names = " and ".join(dict.fromkeys(run.name for run in runs))
        title = f"{names} beside {paper} table {table}" if paper else names
        write_document(folder / "report.html", title, runs, sections(tables, runs, paper, table))
        console.print(f"  {folder / 'report.html'}", highlight=False)
    return tables


def sections(tables: Sequence[ResultTable], runs: Sequence[Run], paper: str | None, table: str | None) -> list[Section]:
    """The chapters of the page: every table, with the curves and pictures of its set; a paper's table is followed by
    those of its sets."""
    benchmarks = published.find_table(paper, table).benchmarks if paper and table else ()
    sets = dict.fromkeys(n for run in runs for n, s in run.sets.items() if not paper or s.published in benchmarks)
    limit = max(FEWEST, min(24, PICTURES // max(len(sets), 1)))
    out = []
    for each in tables:
        out.append(pictured(each.set, runs, limit, each) if each.set else Section(each.title, each))
    return out + [pictured(name, runs, limit, None) for name in sets if paper]


def pictured(name: str, runs: Sequence[Run], limit: int, table: ResultTable | None) -> Section:
    mine = [run for run in runs if name in run.sets]
    kept = entries(name, mine)
    title = table.title if table else f"{name}: curves and pictures"
    shown = chosen(kept, limit)
    return Section(title, table, plots_of(name, mine), shown, len(kept), mine[0].sets[name].n)


def to_markdown(table: ResultTable) -> str:
    """A GitHub table under its title."""
    heads = [" ".join(filter(None, pair)) for pair in zip(table.groups, table.columns, strict=False)]
    lines = [row_of(heads or table.columns), row_of(["---", *["---:"] * (len(table.columns) - 1)])]
    lines += [row_of([cell.replace("|", r"\|") for cell in row]) for row in table.rows]
    notes = [f"- {note}" for note in [*table.findings, *table.notes]]
    return "\n".join([f"### {table.title}", "", *lines, *([""] if notes else []), *notes, ""])


def to_latex(table: ResultTable) -> str:
    """A ``booktabs`` table environment; the notes are comments."""
    head, *body = [" & ".join(latex(cell) for cell in row) + r" \\" for row in [table.columns, *table.rows]]
    return "\n".join(
        [
            r"\begin{table}",
            rf"  \caption{{{latex(table.title)}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"    \toprule",
            *over(table.groups),
            f"    {head}",
            r"    \midrule",
            *[f"    {line}" for line in body],
            r"    \bottomrule",
            r"  \end{tabular}",
            *[f"  % {note}" for note in [*table.findings, *table.notes]],
            r"\end{table}",
            "",
        ]
    )


def over(groups: Sequence[str]) -> list[str]:
    """The line of group headings, with a rule under each."""
    if not groups:
        return []
    spans = [(name, len(list(same))) for name, same in groupby(groups[1:])]
    cells, rules, first = [], [], 2
    for name, width in spans:
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{latex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return [f"    & {' & '.join(cells)} \\\\", f"    {' '.join(rules)}"]


def to_frame(
    runs: Sequence[Run], bounds: Bounds | None = None, paper: str | None = None, table: str | None = None
) -> pd.DataFrame:
    """Every number of every run, unrounded, one per line, with the interval of the model's; then those of a published
    table, whose ``set`` is the benchmark and whose ``protocol`` is empty."""
    lines: list[tuple[object, ...]] = []
    for run in with_distinct_names(runs):
        for name, entry in run.sets.items():
            for row, protocols in entry.rows.items():
                for protocol, measured in protocols.items():
                    for metric, value in measured.items():
                        found = (
                            bounds.of(run, name, (protocol, metric), again=False) if bounds and row == MODEL else None
                        )
                        low, high = (found.low, found.high) if found else (None, None)
                        lines.append((run.name, name, row, protocol, metric, value, low, high, entry.n, entry.missing))
    if paper is not None and table is not None:
        for printed in published.find_table(paper, table).rows:
            for v in printed.values:
                where = (printed.name, v.benchmark, f"published: {paper} table {table}", "", v.metric)
                lines.append((*where, v.fraction, None, None, None, None))
    names = ["experiment", "set", "row", "protocol", "metric", "value", "low", "high", "n", "missing"]
    return pd.DataFrame(lines, columns=names)


def to_rich(table: ResultTable) -> RichTable:
    grid = RichTable(title=table.title, title_justify="left")
    for i, column in enumerate(table.columns):
        group = f"{table.groups[i]}\n" if table.groups and table.groups[i] else ""
        grid.add_column(group + column, justify="right" if i else "left", overflow="fold")
    styles = {"own": "bold", "target": "cyan", "difference": "italic", "control": "dim", "heard": "dim"}
    for kind, row in zip(table.kinds, table.rows, strict=True):
        grid.add_row(*[cell.replace("[", r"\[") for cell in row], style=styles.get(kind))
    return grid


def row_of(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def latex(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    return re.sub(r"[\\^~%&_#${}]", lambda found: named.get(found[0], "\\" + found[0]), text)
