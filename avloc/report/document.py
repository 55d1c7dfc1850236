"""A report as one HTML file that opens offline: tables, curves and a gallery with sound."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from avloc.files import write_whole
from avloc.report.curves import Plot, svg
from avloc.report.gallery import Entry, Figure, Kept, rows_of, sound
from avloc.report.layout import ResultTable
from avloc.report.panels import inline
from avloc.report.results import Run
from avloc.report.seeds import Seeds

__all__ = ["Section", "write_document"]

LONG = 12
"""Rows from which a table can be shortened."""
OPTIONAL = {
    "heard": "the methods under other sounds",
    "published": "published rows that no run reproduces",
    "target": "published rows that runs reproduce",
    "difference": "differences",
    "control": "controls",
}
"""Kinds of rows that a reader can hide, and how they are called."""
COLOUR = re.compile(r"#[0-9a-f]{6}")
CELL = re.compile(r"(?P<number>[-+]?[\d.]+(?: ± [\d.]+)?)(?: (?P<interval>\[[^\]]*\]))?(?: \((?P<told>.*)\))?")


@dataclass(frozen=True)
class Section:
    """One chapter of the page.

    Attributes:
        title: its heading.
        table: its table, or None.
        plots: its curves.
        figures: its gallery; those of several samples have a column for each.
        kept: how many samples the runs kept, of which those of ``figures`` are shown.
        samples: size of the set.
        short: what the contents call it, its title by default.
        asked: whether the figures were asked for by their keys: all are drawn with a column for each sample.
        notes: what is told besides the table's own notes.
        breakdowns: smaller tables below it.
        sortable: whether a click on a column's heading sorts the rows by it.
    """

    title: str
    table: ResultTable | None = None
    plots: Sequence[Plot] = ()
    figures: Sequence[Figure] = field(default_factory=list)
    kept: int = 0
    samples: int = 0
    short: str = ""
    asked: bool = False
    notes: Sequence[str] = ()
    breakdowns: Sequence[ResultTable] = ()
    sortable: bool = False


def write_document(path: Path, title: str, runs: Sequence[Run], sections: Sequence[Section]) -> None:
    """Write the page; nothing in it is fetched from anywhere."""
    templates = PackageLoader("avloc.report")
    environment = Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = [chapter(i, section) for i, section in enumerate(sections)]
    text = environment.get_template("report.html").render(
        title=title,
        runs=[about(run) for run in runs],
        sections=shown,
        scripted=any(s["filtered"] or (len(s["rows"]) > LONG and len(s["optional"]) > 1) for s in shown),
        long=LONG,
        sorted=any(s["sortable"] for s in shown),
        inverted=any(a["heard_as"] for s in shown for f in s["figures"] for a in f["answers"]),
        coloured=any(e["sources"] for s in shown for f in s["figures"] for e in f["samples"]),
        intervals=any(c["interval"] for s in shown for row in s["rows"] for c in row["cells"]),
    )
    write_whole(path, text)


def chapter(number: int, section: Section) -> dict[str, Any]:
    table = section.table
    groups = [(name, len(list(same))) for name, same in groupby(table.groups[1:])] if table else []
    rows = zip(table.kinds, table.rows, strict=True) if table else ()
    return {
        "id": f"s{number}",
        "title": section.title,
        "short": section.short or section.title,
        "columns": table.columns if table else [],
        "groups": groups,
        "rows": [{"kind": kind, "name": cells[0], "cells": [parts(c) for c in cells[1:]]} for kind, cells in rows],
        "optional": [(k, told) for k, told in OPTIONAL.items() if table and k in table.kinds],
        "notes": [*(table.notes if table else []), *section.notes],
        "findings": table.findings if table else [],
        "plots": [(p.title, Markup(svg(p, f"s{number}-{i}"))) for i, p in enumerate(section.plots)],
        "figures": [drawn(figure, section.asked or len(figure.entries) > 1) for figure in section.figures],
        "filtered": bool(section.figures) and not section.asked,
        "asked": section.asked,
        "labels": sorted({label for f in section.figures for label in labels_of(f)}),
        "kinds": sorted({kind for f in section.figures for e in f.entries for kind in e.kinds}),
        "shown": sum(len(f.entries) for f in section.figures),
        "breakdowns": [broken_down(f"s{number}b{i}", each) for i, each in enumerate(section.breakdowns)],
        "kept": section.kept,
        "samples": section.samples,
        "sortable": section.sortable,
    }


def parts(cell: str) -> Mapping[str, str]:
    """A cell as ``number``, ``interval`` and what stands in brackets behind them."""
    found = CELL.fullmatch(cell)
    return {k: v or "" for k, v in found.groupdict().items()} if found else {"number": cell, "interval": "", "told": ""}


def broken_down(name: str, table: ResultTable) -> dict[str, Any]:
    rows = zip(table.kinds, table.rows, strict=True)
    return {
        "id": name,
        "title": table.title,
        "columns": table.columns,
        "rows": [{"kind": kind, "name": cells[0], "cells": [parts(c) for c in cells[1:]]} for kind, cells in rows],
        "notes": table.notes,
    }


def labels_of(figure: Figure) -> list[str]:
    return list(dict.fromkeys(e.first.label for e in figure.entries if e.first.label))


def drawn(figure: Figure, beside: bool) -> dict[str, Any]:
    """A figure for the page: a strip of pictures for each run, or a column for each sample and a row for each run."""
    rows = rows_of(figure)
    answers = {run: [None if k is None else answer(run, k, beside) for k in kept] for run, kept in rows.items()}
    one_picture = len({e.first.shows or e.first.key for e in figure.entries}) == 1
    return {
        "beside": beside,
        "title": figure.first.shows or figure.first.key if one_picture else "",
        "labels": labels_of(figure),
        "kinds": list(dict.fromkeys(kind for e in figure.entries for kind in e.kinds)),
        "samples": [shown(entry, beside) for entry in figure.entries],
        "rows": [{"run": run, "answers": found} for run, found in answers.items()],
        "answers": [a for found in answers.values() for a in found if a],
    }


def shown(entry: Entry, beside: bool) -> dict[str, Any]:
    first = entry.first
    heard = next((kept.sound for _, kept in entry.answers if kept.sound and kept.sound.is_file()), None)
    true = next((kept.true for _, kept in entry.answers if kept.true and kept.true.is_file()), None)
    return {
        "key": first.key,
        "label": first.label,
        "negative": first.negative,
        "sources": legend(kept for _, kept in entry.answers),
        "sound": None if heard is None else Markup(sound(heard)),
        "true": Markup(inline(true.read_bytes(), "image/jpeg")) if true and beside else None,
    }


def legend(answers: Iterable[Kept]) -> list[Mapping[str, str]]:
    """Name and colour of each source, once."""
    found = dict.fromkeys((str(name), str(colour)) for kept in answers for name, colour in kept.sources)
    return [{"name": name, "colour": colour} for name, colour in found if COLOUR.fullmatch(colour)]


def answer(run: str, kept: Kept, beside: bool) -> dict[str, Any]:
    picture = kept.heat if beside and kept.heat and kept.heat.is_file() else kept.picture
    return {
        "run": run,
        "label": kept.label or kept.key,
        "kind": kept.kind,
        "overlap": kept.overlap,
        "share": kept.share,
        "confidence": kept.confidence,
        "heard_as": ", ".join(f"{phrase} {cosine:.2f}" for phrase, cosine in kept.heard_as),
        "picture": Markup(inline(picture.read_bytes(), "image/jpeg")),
    }


def about(run: Run) -> dict[str, Any]:
    """What identifies a run: its code, its size, how it ran."""
    git, parameters = run.about.get("git") or {}, run.about.get("parameters") or {}
    commit = git.get("commit", "")[:10] + (" and changes" if git.get("dirty") else "")
    trained = f"{parameters['trainable'] / 1e6:.2f} M of {parameters['total'] / 1e6:.2f} M" if parameters else ""
    facts = {
        "method": run.about.get("method", "").rpartition(".")[2],
        "code": commit,
        "trainable parameters": trained,
        "precision": run.about.get("precision", ""),
        "processes": str(run.about.get("processes", "")),
        "seeds": ", ".join(map(str, run.about.get("seeds", ()))),
        "folder": ", ".join(str(each.folder) for each in (run.members if isinstance(run, Seeds) else (run,))),
    }
    return {"name": run.name, "facts": {k: v for k, v in facts.items() if v}}
