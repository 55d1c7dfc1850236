"""The experiments with the table row that each reproduces: what `avloc experiments` prints."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from avloc import weights
from avloc.data.index import ShardError
from avloc.data.module import WORLD, AVDataModule, named_split
from avloc.errors import UsageError
from avloc.escapes import markup
from avloc.experiment.weights import sources_of
from avloc.names import experiments_folder, known, settings_in
from avloc.report.experiments import Experiment, read_experiment

__all__ = ["Entry", "chosen", "count", "table"]


class Entry:
    """An experiment with what it needs on this machine.

    Attributes:
        path: its YAML.
        about: what its comment and its keys say.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.about: Experiment = read_experiment(path)

    @property
    def row(self) -> str:
        """Paper, table and name of the published row; for an overlay and without one, what it is."""
        row = self.about.reproduces
        if self.about.overlay:
            return "(laid over another)"
        return f"{row.paper} table {row.table}, {row.variant or row.method}" if row else "(none)"

    @property
    def sets(self) -> dict[str, str]:
        """Its sets, in the order of training, validation and test, with the split that a bare name means."""
        data = settings_in(self.path).get("data") or {}
        found = {data["train"]: "train"} if data.get("train") else {}
        return found | dict.fromkeys([*(data.get("val") or []), *(data.get("test") or [])], "test")

    @property
    def weights(self) -> list[str]:
        """Every weight file that it needs, defaults of its method included; of an overlay none."""
        return [] if self.about.overlay else sources_of(self.path)

    def says(self, word: str) -> bool:
        """Whether its name, folder, title, purpose or published row holds a word, in whatever case."""
        text = f"{self.path.parent.name}/{self.about.name} {self.about.title} {self.about.about} {self.row}"
        return word.lower() in text.lower()

    def missing(self, sources: list[str]) -> list[str]:
        """Those of its weights and sets that are not on this machine; the world is rendered where it is asked for."""
        files = [w for w in sources if weights.present(w) is None]
        data = AVDataModule(root=(settings_in(self.path).get("data") or {}).get("root"))
        return [*files, *(name for name, split in self.sets.items() if not is_here(data, name, split))]


def is_here(data: AVDataModule, name: str, split: str) -> bool:
    try:
        return named_split(name, split)[0] == WORLD or Path(data.find(name, split)).is_file()
    except ShardError:
        return False


def chosen(word: str | None = None) -> list[Entry]:
    """All experiments that say ``word``: those at the top of the folder first, then folder by folder.

    Raises:
        UsageError: none does.
    """
    top = experiments_folder()
    paths = sorted(known().values(), key=lambda p: (p.parent != top, p))
    found = [entry for entry in map(Entry, paths) if entry.says(word or "")]
    if not found:
        raise UsageError(f"No experiment is called, or says, {word!r}. `avloc experiments` lists all.")
    return found


def table(word: str | None = None) -> None:
    """Print them; given a word, also their sets and weights, and which of those are not here."""
    more = ("sets", "weights", "not here") if word else ()
    rows = Table(Column("experiment", no_wrap=True), "what", "published row", *more, title="experiments")
    folder = None
    for entry in chosen(word):
        if folder not in (None, entry.path.parent):
            rows.add_section()
        folder = entry.path.parent
        cells = [entry.about.name, entry.about.title, entry.row]
        if word:
            needed = entry.weights
            absent = ", ".join(entry.missing(needed)) or "all here"
            cells += [", ".join(entry.sets), ", ".join(needed), absent]
        rows.add_row(*map(markup, cells))
    Console().print(rows)
    if not word:
        print("avloc experiments WORD tells of some their sets and weights, and which of those are not here.")


def count() -> None:
    """Print how many published rows the experiments reach, how many printed values are compared, and why the others
    are not."""
    from avloc.evaluation.benchmarks import BENCHMARKS
    from avloc.report.experiments import told_rows
    from avloc.report.published import told_comparisons

    every = [read_experiment(path) for path in known().values()]
    print(told_rows(every, {name: benchmark.published for name, benchmark in BENCHMARKS.items()}))
    print(told_comparisons())
