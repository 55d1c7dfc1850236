"""The experiments with the table row that each reproduces: what `avloc experiments` prints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from avloc import weights
from avloc.errors import UsageError
from avloc.names import known

__all__ = ["Entry", "count", "entries", "read", "table"]


@dataclass(frozen=True)
class Entry:
    """One YAML.

    Attributes:
        name: its stem.
        heading: the first sentence of its comment.
        row: paper, table and row that it reproduces; empty where there is none.
        sets: training and test sets.
        overlay: it names no method and goes behind another ``-c``.
    """

    name: str
    heading: str
    row: str
    sets: tuple[str, ...]
    overlay: bool
    weights: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """Weight files and sets that are not on this machine."""
        files = [w for w in self.weights if not any(p.is_file() for p in weights.candidates(w))]
        root = Path("data")
        sets = [s for s in self.sets if ":" not in s and not (root / s.partition("/")[0]).exists()]
        return [*files, *sets]


def read(path: Path) -> Entry:
    """An entry from a YAML's comment and keys; no method is built."""
    text = path.read_text()
    content: dict[str, Any] = yaml.safe_load(text) or {}
    comment = " ".join(line.lstrip("# ").strip() for line in re.match(r"(#.*\n)*", text)[0].splitlines())  # type: ignore[index]
    heading = re.split(r"(?<=\.)\s", comment, maxsplit=1)[0]
    of = content.get("reproduces")
    row = "" if not of else " ".join(str(of[k]) for k in ("paper", "table", "method", "variant") if of.get(k))
    data = content.get("data") or {}
    sets = [*([data["train"]] if data.get("train") else []), *(data.get("test") or [])]
    return Entry(
        path.stem, heading, row, tuple(sets), "model" not in content, tuple(named_weights(content.get("model")))
    )


def named_weights(settings: Any) -> list[str]:
    """The weight sources that a YAML spells out; defaults are `avloc weights`' business."""
    if isinstance(settings, str):
        return [settings] if weights.is_source(settings) and settings != "random" else []
    parts = settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ()
    return list(dict.fromkeys(source for part in parts for source in named_weights(part)))


def entries(word: str | None = None) -> list[Entry]:
    """All experiments whose name, heading or row holds ``word``.

    Raises:
        UsageError: none does.
    """
    found = [read(path) for path in known().values()]
    wanted = (word or "").lower()
    found = [e for e in found if wanted in f"{e.name} {e.heading} {e.row}".lower()]
    if not found:
        raise UsageError(f"No experiment is called, or says, {word!r}. `avloc experiments` lists all.")
    return found


def table(word: str | None = None) -> None:
    """Print them."""
    rows = Table("experiment", "what", "published row", "sets", "not here", title="experiments")
    for e in entries(word):
        name = f"{e.name} (overlay)" if e.overlay else e.name
        missing = ", ".join(e.missing) or "all here"
        rows.add_row(*map(escape, (name, e.heading, e.row, ", ".join(e.sets), missing)))
    Console().print(rows)


def count() -> None:
    """Print how many published rows the experiments reach, how many printed values are compared, and why the others
    are not."""
    from avloc.evaluation.benchmarks import BENCHMARKS  # with torch, which a list of experiments does without
    from avloc.report.experiments import read_experiment, told_rows
    from avloc.report.published import told_comparisons

    every = [read_experiment(path) for path in known().values()]
    print(told_rows(every, {name: benchmark.published for name, benchmark in BENCHMARKS.items()}))
    print(told_comparisons())
