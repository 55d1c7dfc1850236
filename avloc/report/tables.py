"""Runs' numbers beside the published ones, with the controls: on the screen, and as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Literal

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable

from avloc.escapes import csv_cell, latex, markdown, markup, one_line
from avloc.files import write_whole
from avloc.plugins import VARIABLE
from avloc.report import published
from avloc.report.breakdown import breakdowns
from avloc.report.cells import UNIVERSAL, with_distinct_names
from avloc.report.curves import plots_of
from avloc.report.document import Section, write_document
from avloc.report.figures import write_figures
from avloc.report.gallery import Figure, asked, chosen, entries, figures, read_kept
from avloc.report.intervals import Bounds, Rescore
from avloc.report.keys import KeysError, aliases, near, read_keys
from avloc.report.layout import ResultTable, compare, paper_table, tables_with_rows, universal_table
from avloc.report.results import GUIDED, MODEL, ResultsError, Run, Scores, read_run
from avloc.report.seeds import Seeds, first_seeds, spread, with_seeds

__all__ = ["ResultTable", "ResultsError", "compare", "read_run", "report", "to_frame", "to_latex", "to_markdown"]

WIDTH = 160  # columns of a table that goes to a file

PICTURES, FEWEST = 120, 6
"""Samples in all galleries of a page together, and the fewest of one set."""
STRIPS = 480
"""Pictures in all galleries of a page together: a sample has one of each run."""
NAMED = 6
"""Runs that a page's title names."""
EVERY = "all"
"""Stands for the papers whose numbers are here."""


def report(
    folders: Sequence[Path | str],
    out: Path | str | None = None,
    metrics: str = "headline",
    paper: str | None = None,
    table: str | None = None,
    intervals: bool = True,
    seeds: Literal["together", "apart"] = "together",
    rescore: Rescore | None = None,
    console: Console | None = None,
    keys: str | Path | Sequence[str] | None = None,
    protocols: Collection[str] | None = None,
) -> list[ResultTable]:
    """Print runs beside the published numbers; given ``out``, write ``report.md``, ``.csv``, ``.tex``, ``.html`` there.

    Args:
        folders: of tested runs, each with a ``results.json``.
        out: folder of the files.
        metrics: ``headline`` for the published columns, ``all`` for everything measured.
        paper, table: one published table, whole, with the runs' rows in it, instead of a table for every test set.
            Without ``table``, every table of the paper, for the paper ``all`` of every paper, in which a run has a row.
        seeds: runs of one experiment that differ in their seed alone are one row, ``together``, or stand ``apart``.
        intervals: compute 95 % intervals from ``per_sample.parquet``.
        rescore: computes a protocol's numbers from per-sample values; without it, numbers that are no mean over samples
            (AP, max-F1, F-score) have no interval.
        console: to print on.
        keys: samples that the page shows first, every run's answers side by side, as `avloc.report.keys.read_keys`
            takes them; ``chosen.pdf`` holds the same figures for a paper.
        protocols: names of those known here; a note tells of a run's others, whose numbers are shown as they are
            stored. None for no such note.

    Raises:
        KeysError: no run tested one of the ``keys``, or they cannot be read.
        ResultsError: no folder was given, one of them holds no results, a ``table`` without its ``paper``, no table
            has a row of these runs, or ``keys`` without ``out``.
        PublishedError: there is no such table.
    """
    if not folders:
        raise ResultsError("No run to report on: name one or more run folders.")
    if table is not None and paper in (None, EVERY):
        raise ResultsError(f"--table needs one --paper: --paper souple --table {table}.")
    read = [read_run(folder) for folder in dict.fromkeys(map(Path, folders))]
    runs = with_distinct_names(with_seeds(read) if seeds == "together" else read)
    wanted = read_keys(keys)
    if wanted and out is None:
        raise ResultsError("--keys shows pictures: name a folder for the page with --out.")
    absent_pictures = unkept(first_seeds(runs), wanted)
    bounds = Bounds(rescore) if intervals else None
    printed = published_tables(runs, paper, table) if paper else []
    tables = [paper_table(mine, *place, bounds) for place, mine in printed] or compare(runs, metrics, bounds)
    places = [place for place, _ in printed]
    if shared := universal_table(runs, bounds):
        tables.append(shared)
    if bounds:
        absent = [
            f"{run.name} kept no per_sample.parquet, so it has no intervals."
            for each in runs
            for run in (each.members if isinstance(each, Seeds) else (each,))
            if not run.per_sample
        ]
        for each in tables:
            each.notes.extend(absent)
    for each in tables:
        shown = [run.sets[each.set] for run in runs if each.set in run.sets]
        each.notes.extend(unknown_protocols(shown or [s for run in runs for s in run.sets.values()], protocols))
    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    for each in tables:
        console.print(to_rich(each))
        for note in [*each.findings, *each.notes]:
            console.print(f"  {one_line(note)}", style="dim", markup=False, highlight=False)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "report.md", "\n".join(to_markdown(t) for t in tables))
        write_whole(folder / "report.tex", "\n".join(to_latex(t) for t in tables))
        write_whole(folder / "report.csv", in_csv(to_frame(runs, bounds, places)))
        names = " and ".join(dict.fromkeys(run.name for run in runs)) if len(runs) <= NAMED else f"{len(runs)} runs"
        beside = f"{paper} table {table}" if table else "the papers' tables" if paper == EVERY else f"{paper}'s tables"
        title = f"{names} beside {beside}" if paper else names
        picked = picked_sections(first_seeds(runs), wanted, absent_pictures)
        write_document(folder / "report.html", title, runs, [*picked, *sections(tables, runs, places)])
        if drawn := [figure for section in picked for figure in section.figures]:
            write_figures(folder / "chosen.pdf", drawn)
            console.print(f"  {folder / 'chosen.pdf'}", highlight=False)
        for note in absent_pictures:
            console.print(f"  {one_line(note)}", markup=False, highlight=False)
        console.print(f"  {folder / 'report.html'}", highlight=False)
    return tables


def unknown_protocols(sets: Sequence[Scores], known: Collection[str] | None) -> list[str]:
    """A note on each protocol of some sets that is not known here."""
    used = dict.fromkeys(protocol for scores in sets for protocol in scores.rows[MODEL] if protocol != UNIVERSAL)
    return [
        f"{name} is no protocol that is known here: its numbers are those of results.json, with an interval only if "
        f"they are means of per_sample.parquet. If a module of yours adds it, name that: {VARIABLE}=MODULE before the "
        "command."
        for name in used
        if known is not None and name not in known
    ]


def published_tables(runs: Sequence[Run], paper: str, table: str | None) -> list[tuple[published.Place, Sequence[Run]]]:
    """The published tables to lay out, each with its runs."""
    if table is not None:
        return [((paper, table), runs)]
    found = tables_with_rows(runs, published.papers() if paper == EVERY else [paper])
    if not found:
        which = "any paper" if paper == EVERY else f"paper {paper!r}"
        raise ResultsError(
            f"No table of {which} has a row that one of these runs reproduces and was scored for. Name one table with "
            "--paper and --table, or leave both out for a table of every test set."
        )
    return list(found)


def sections(
    tables: Sequence[ResultTable], runs: Sequence[Run], places: Sequence[published.Place] = ()
) -> list[Section]:
    """The chapters of the page: every table, with the curves and pictures of its set; papers' tables are followed by
    those of their sets."""
    benchmarks = {b for place in places for b in published.find_table(*place).benchmarks}
    sets = dict.fromkeys(n for run in runs for n, s in run.sets.items() if not places or s.published in benchmarks)
    several = max(len(sets), 1) * len(runs)
    limit = max(FEWEST, min(24, PICTURES // max(len(sets), 1), STRIPS // several))
    out = []
    for each in tables:
        short = each.title.partition(":")[0]  # "souple table 1"
        out.append(pictured(each.set, runs, limit, each) if each.set else Section(each.title, each, short=short))
    return out + [pictured(name, runs, limit, None) for name in sets if places]


def pictured(name: str, runs: Sequence[Run], limit: int, table: ResultTable | None) -> Section:
    mine = [run for run in runs if name in run.sets]
    kept = entries(name, first_seeds(mine))
    title = table.title if table else f"{name}: curves and pictures"
    shown = chosen(figures(kept), limit)
    tables, notes = breakdowns(name, first_seeds(mine))
    return Section(
        title,
        table,
        plots_of(name, mine),
        shown,
        len(kept),
        mine[0].sets[name].n,
        name,
        notes=notes,
        breakdowns=tables,
    )


def unkept(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Of which chosen samples a run that tested them kept no picture, with the command that makes one.

    Raises:
        KeysError: no run tested a sample of this name.
    """
    if not keys:
        return []
    kept = {run.name: {k.key: aliases(k.key, k.shows) for k in read_kept(run.folder)} for run in runs}
    tested = {
        run.name: {str(key) for name in run.sets if (s := run.samples(name)) is not None for key in s.key} | set(k)
        for run, k in zip(runs, kept.values(), strict=True)
    }
    named: dict[str, set[str]] = {}
    for key in {k for names in tested.values() for k in names}:
        for alias in {*aliases(key), *(n for names in kept.values() for n in names.get(key, ()))}:
            named.setdefault(alias, set()).add(key)
    if unknown := [key for key in keys if key not in named]:
        told = ", ".join(near(key, named) for key in unknown)
        raise KeysError(
            f"No run tested {told}. A key is a sample's in per_sample.parquet; "
            "an interactive group is known by its own name only where its pictures were kept."
        )
    notes = []
    for run in runs:
        met = {key: named[key] & tested[run.name] for key in keys}
        if missing := [key for key, samples in met.items() if samples - kept[run.name].keys()]:
            notes.append(f"{run.name} kept no picture of {', '.join(missing)}. Make them: {remedy(run, missing)}")
        if strange := [key for key, samples in met.items() if not samples]:
            notes.append(f"{run.name} was not tested on {', '.join(strange)}.")
    return notes


def remedy(run: Run, keys: Sequence[str]) -> str:
    """The command that tests a run again with pictures of ``keys``, into a folder beside it."""
    folder = run.folder
    config, best = folder / "config.yaml", folder / "checkpoints" / "best.ckpt"
    words = ["avloc", "test", "-c", str(config) if config.is_file() else "EXPERIMENT"]
    words += ["--ckpt_path", str(best)] if best.is_file() else []
    return f"{shlex.join([*words, '--panels.keys', ','.join(keys)])} (then report the folder that it writes)."


def picked_sections(runs: Sequence[Run], keys: Sequence[str], notes: Sequence[str]) -> list[Section]:
    """A chapter of chosen samples for every set that has some."""
    names = dict.fromkeys(name for run in runs for name in run.sets) if keys else ()
    found: dict[str, list[Figure]] = {
        name: mine for name in names if (mine := asked(name, [run for run in runs if name in run.sets], keys))
    }
    out = [Section(f"{name}: chosen samples", figures=mine, asked=True) for name, mine in found.items()]
    if notes:
        head = out[0] if out else Section("Chosen samples", asked=True)
        out[:1] = [replace(head, notes=notes)]
    return out


def to_markdown(table: ResultTable) -> str:
    """A GitHub table under its title."""
    heads = [" ".join(filter(None, pair)) for pair in zip(table.groups, table.columns, strict=False)]
    lines = [
        row_of([markdown(head) for head in heads or table.columns]),
        row_of(["---", *["---:"] * (len(table.columns) - 1)]),
    ]
    for kind, row in zip(table.kinds, table.rows, strict=True):
        cells = [markdown(cell) for cell in row]
        lines.append(row_of([f"**{cells[0]}**", *cells[1:]] if kind == "group" else cells))
    notes = [f"- {markdown(note)}" for note in [*table.findings, *table.notes]]
    return "\n".join([f"### {markdown(table.title)}", "", *lines, *([""] if notes else []), *notes, ""])


def to_latex(table: ResultTable) -> str:
    """A ``booktabs`` table environment; the notes are comments."""
    head, *body = [" & ".join(latex(cell) for cell in row) + r" \\" for row in [table.columns, *table.rows]]
    width = len(table.columns)
    for i, kind in enumerate(table.kinds):
        if kind == "group":
            over_rows = rf"\multicolumn{{{width}}}{{l}}{{\emph{{{latex(table.rows[i][0])}}}}} \\"
            body[i] = (r"\midrule " if i else "") + over_rows
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
            *[f"  % {one_line(note)}" for note in [*table.findings, *table.notes]],
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


def to_frame(runs: Sequence[Run], bounds: Bounds | None = None, places: Sequence[published.Place] = ()) -> pd.DataFrame:
    """Every number of every run, unrounded, one per line, with the interval of the methods' own; of several seeds the
    means with their standard deviation ``sd``, and then each seed's; at last those of
    published tables (paper, table), whose ``set`` is the benchmark and whose ``protocol`` is empty."""
    lines: list[tuple[object, ...]] = []
    named = with_distinct_names(runs)
    for run in [m for each in named for m in (each, *(each.members if isinstance(each, Seeds) else ()))]:
        for name, entry in run.sets.items():
            for row, protocols in entry.rows.items():
                for protocol, measured in protocols.items():
                    for metric, value in measured.items():
                        found = (
                            bounds.of(run, name, (protocol, metric), again=False, row=row)
                            if bounds and row in (MODEL, GUIDED)
                            else None
                        )
                        low, high = (found.low, found.high) if found else (None, None)
                        sizes = (entry.n, entry.missing, spread(run, name, (protocol, metric), row))
                        lines.append((run.name, name, row, protocol, metric, value, low, high, *sizes))
    for paper, table in places:
        for printed in published.find_table(paper, table).rows:
            for v in printed.values:
                where = (printed.name, v.benchmark, f"published: {paper} table {table}", "", v.metric)
                lines.append((*where, v.fraction, None, None, None, None, None))
    names = ["experiment", "set", "row", "protocol", "metric", "value", "low", "high", "n", "missing", "sd"]
    return pd.DataFrame(lines, columns=names)


def in_csv(frame: pd.DataFrame) -> str:
    """As CSV, in which no name is a spreadsheet's formula."""
    return frame.map(lambda value: csv_cell(value) if isinstance(value, str) else value).to_csv(index=False)


def to_rich(table: ResultTable) -> RichTable:
    grid = RichTable(title=markup(table.title), title_justify="left")
    for i, column in enumerate(table.columns):
        heads = [table.groups[i], column] if table.groups and table.groups[i] else [column]
        grid.add_column("\n".join(map(markup, heads)), justify="right" if i else "left", overflow="fold")
    styles = {
        "group": "underline",
        "own": "bold",
        "target": "cyan",
        "difference": "italic",
        "control": "dim",
        "heard": "dim",
    }
    for kind, row in zip(table.kinds, table.rows, strict=True):
        grid.add_row(*map(markup, row), style=styles.get(kind))
    return grid


def row_of(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
