"""What the YAMLs in ``experiments/`` are for, and which published rows they reach.

The first sentence of a YAML's comment has one of three forms::

    # GAVS on V1M, GAVS table 1, row "VGGish + ViT-Base": V1S mIoU 80.06, ... .
    # SOUPLE on the embedded world, no published row: learns to listen within minutes.
    # Sets of ACL-SSL, laid over another experiment: ...

A row without a name of its own in the paper goes without ``row "..."``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from avloc.report.published import Place, Reference, Row, alike, find, find_table, load, papers, quoted, unreached

__all__ = ["PAPERS", "Block", "Experiment", "ExperimentError", "blocks", "reached", "read_experiment", "told_rows"]

PAPERS = {"SOUPLE": "souple", "ACL-SSL": "acl_ssl", "GAVS": "gavs", "SeAC": "seac", "T-VSL": "tvsl"}
"""Names of the papers in comments, with their keys."""

OF_EACH_SET = ("target set", "avsbench")
"""What tables say of rows whose model is another one on each test set."""

END = r"\.(?:\s|$)"
ROW = re.compile(
    rf'(?P<title>.+?), (?P<paper>{"|".join(PAPERS)}) table (?P<table>\d+)(?:, row "(?P<variant>[^"]*)")?: '
)
NO_ROW = re.compile(r"(?P<title>.+?), no published row: ")
SETS = re.compile(r"Sets of (?P<title>[^,:(]+?)(?: \([^)]*\))?, laid over another experiment: ?")


class ExperimentError(ValueError):
    """A YAML whose comment has none of the forms, or says another row than its ``reproduces``."""


@dataclass(frozen=True)
class Experiment:
    """A YAML of ``experiments/``.

    Attributes:
        name: its file's.
        title: method and what is special about it.
        about: the rest of the first sentence: the printed numbers, or what it is for.
        reproduces: the published row; None where there is none.
        sets_of: key of the paper whose sets it names, laid over another experiment; "" for an experiment of its own, or
            if they are no paper's.
        overlay: it has no method of its own.
        train: training set, None for none.
        test: test sets.
    """

    name: str
    title: str
    about: str
    reproduces: Reference | None
    sets_of: str
    overlay: bool
    train: str | None
    test: tuple[str, ...]


def read_experiment(path: Path) -> Experiment:
    """A YAML's purpose.

    Raises:
        ExperimentError: its first sentence has none of the three forms, or names another row than ``reproduces``.
    """
    text = path.read_text()
    content: dict[str, Any] = yaml.safe_load(text)
    head = " ".join(line[2:] for line in takewhile(lambda line: line.startswith("# "), text.splitlines()))
    overlay, given, data = "model" not in content, content.get("reproduces"), content.get("data", {})
    form = SETS if overlay else ROW if given else NO_ROW
    found = form.match(head)
    if found is None:
        raise ExperimentError(
            f"{path.name}: its comment must begin with "
            + {
                SETS: '"Sets of PAPER, laid over another experiment: ..."',
                ROW: '"METHOD, PAPER table N, row "NAME": the printed numbers."',
                NO_ROW: '"METHOD, no published row: what it is."',
            }[form]
            + f", not with {head[:60]!r}."
        )
    reference = Reference(**given) if given else None
    if reference is not None:
        told = (PAPERS[found["paper"]], found["table"], found["variant"])
        if told != (reference.paper, reference.table, reference.variant):
            raise ExperimentError(f"{path.name}: its comment tells of {told}, its key reproduces of {reference}.")
    about = re.split(END, head[found.end() :], maxsplit=1)[0]
    paper = PAPERS.get(found["title"], "") if overlay else ""
    tests = tuple(data.get("test", ()))
    return Experiment(path.stem, found["title"], about, reference, paper, overlay, data.get("train"), tests)


@dataclass(frozen=True)
class Block:
    """The cells of a published row on one of its test sets.

    Attributes:
        paper, table: where it stands.
        row: with the cells of all sets.
        benchmark: the set's key in the published tables.
    """

    paper: str
    table: str
    row: Row
    benchmark: str

    @property
    def name(self) -> str:
        return f"{self.paper} table {self.table}, {self.row.name}, {self.benchmark}"

    @property
    def key(self) -> tuple[str, str, str, str | None, bool, str]:
        return self.paper, self.table, self.row.method, self.row.variant, bool(self.row.flags["ogl"]), self.benchmark


def blocks() -> list[Block]:
    """Every row of every table of the papers, one for each of its test sets."""
    return [
        Block(paper, table.id, row, benchmark)
        for paper in papers()
        for table in load(paper).tables
        for row in find_table(paper, table.id).rows
        for benchmark in dict.fromkeys(v.benchmark for v in row.values)
    ]


def reached(experiments: Iterable[Experiment], keys: Mapping[str, str]) -> dict[Any, list[str]]:
    """Which experiments measure a block, by `Block.key`: those that test its set, then those that do under an overlay.

    An experiment measures the row that it reproduces and all that print the same model (`published.alike`). An overlay
    of a paper counts for the experiments with a row of that paper, but not where each set has a model of its own.

    Args:
        experiments: all of them, overlays too.
        keys: test set to its key in the published tables.
    """
    known = list(experiments)
    overlays = [e for e in known if e.overlay and e.sets_of]
    found: dict[Any, list[str]] = {}
    for laid in [None, *overlays]:
        for each in known:
            wanted = each.reproduces
            if wanted is None or (laid is not None and laid.sets_of != wanted.paper):
                continue
            tests = each.test if laid is None else laid.test
            tested = {keys.get(name, "") for name in tests}
            name = each.name if laid is None else f"{each.name} + {laid.name}"
            for (paper, table), row in rows_of(wanted).items():
                if laid is not None and row.trained_on in OF_EACH_SET:
                    continue
                for benchmark in dict.fromkeys(v.benchmark for v in row.values if v.benchmark in tested):
                    found.setdefault(Block(paper, table, row, benchmark).key, []).append(name)
    return found


def rows_of(wanted: Reference) -> dict[Place, Row]:
    row = find(wanted.paper, wanted.table, wanted.method, wanted.variant, wanted.ogl)
    return alike(wanted.paper, wanted.table, row)


def told_rows(experiments: Iterable[Experiment], keys: Mapping[str, str]) -> str:
    """How many published rows the experiments reach, and why the others are not.

    Args:
        experiments: as in `reached`.
        keys: as in `reached`.
    """
    by, every = reached(experiments, keys), blocks()
    of_suite = [block for block in every if block.row.method not in quoted()]
    excused = {(u.paper, u.table, u.method, u.variant, u.ogl, b): u.why for u in unreached() for b in u.benchmarks}
    measured = [by[block.key] for block in of_suite if block.key in by]
    alone = sum(any(" + " not in name for name in names) for names in measured)
    rows = {block.key[:-1] for block in of_suite}
    whole = rows - {block.key[:-1] for block in of_suite if block.key not in by}
    lines = [
        f"{len({block.key[:-1] for block in every})} published rows, {len(rows)} of the suite's methods, {len(whole)} "
        f"reached on all of their sets; of {len(of_suite)} pairs of row and set {alone} by a YAML, "
        f"{len(measured) - alone} under an overlay, {len(of_suite) - len(measured)} not"
    ]
    left = {b.name: excused.get(b.key, "nobody says why.") for b in of_suite if b.key not in by}
    return "\n".join([*lines, *(f"  not: {name}: {why}" for name, why in left.items())])
