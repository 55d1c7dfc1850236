"""Which weight files an experiment needs, which are here, and how the others come."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from avloc import weights
from avloc.download import fetch, missing
from avloc.errors import UsageError
from avloc.escapes import markup
from avloc.experiment.run import model_settings
from avloc.methods.baselines.ogl import ObjectGuide
from avloc.names import settings_in

__all__ = ["Row", "digests", "get", "rows", "sources_in", "sources_of", "table"]


@dataclass(frozen=True)
class Row:
    """One weight file, as ``avloc weights --json`` tells it.

    Attributes:
        source: the name by which experiments ask for it.
        path: where it lies, or where it belongs.
        here: whether it is there.
        licence: "" where none is known.
        urls: where it is fetched from, in order; the hub's repository for ``hf:``.
        homepage: where its authors publish it, in words.
        megabytes: its size: of the file if it is here, else about what is published; None where that is unknown.
        sha256: of the file; "" if it is not here.
        note: what it is.
    """

    source: str
    path: str
    here: bool
    licence: str
    urls: list[str]
    homepage: str
    megabytes: int | None
    sha256: str
    note: str


def rows(config: Path | None) -> list[Row]:
    """The files of an experiment, or all known ones."""
    return [row(source) for source in (sources_of(config) if config else sorted(weights.KNOWN))]


def row(source: str) -> Row:
    known = weights.KNOWN.get(source)
    path = weights.present(source)
    licence = known.licence if known else ("Apache-2.0" if source.startswith("world:") else "")
    hub = [f"{weights.HUB}/{source.removeprefix('hf:')}"] if source.startswith("hf:") else []
    size = round(path.stat().st_size / 1e6) if path else (known.megabytes or None if known else None)
    return Row(
        source,
        str(path or weights.candidates(source)[0]),
        path is not None,
        licence,
        [*(known.urls if known else ()), *hub],
        known.homepage if known else "",
        size,
        weights.sha256(path) if path else "",
        known.note if known else "",
    )


def table(config: Path | None, as_json: bool = False) -> None:
    """Print them; no name, address or path is cut, whatever the terminal's width."""
    found = rows(config)
    if as_json:
        print(json.dumps([asdict(r) for r in found], indent=1))
        return
    out = Console(highlight=False, soft_wrap=True)
    for r in found:
        size = "" if r.megabytes is None else f", {'' if r.here else 'about '}{r.megabytes:,} MB"
        state = "[green]here[/]   " if r.here else "[yellow]missing[/]"
        out.print(f"{state} [bold]{markup(r.source)}[/]  {markup(r.licence or 'licence unknown')}{size}")
        lines = [r.note, f"{'at' if r.here else 'belongs at'} {r.path}"]
        lines += [f"SHA-256 {r.sha256}"] if r.here else [f"from {url}" for url in r.urls]
        lines += [f"published in {r.homepage}"] if r.homepage and not r.here else []
        for line in filter(None, lines):
            out.print(f"          {markup(line)}")
    absent = [r for r in found if not r.here]
    if any(r.urls for r in absent):
        out.print("Fetch what is missing by the same command with --get.")


def digests(config: Path | None) -> None:
    """Print the SHA-256 of the files that are here, as `avloc.weights.KNOWN` wants them, to be contributed."""
    found = [r for r in rows(config) if r.here and not r.source.startswith(("world:", "file:"))]
    print(yaml.safe_dump({r.source: r.sha256 for r in found}, sort_keys=True), end="")


def get(sources: list[str], origin: str | None = None, yes: bool = False) -> None:
    """Fetch those of the sources that are missing, after their licences were shown.

    Args:
        sources: what an experiment needs.
        origin: a folder or address to look in first.
        yes: do not ask.

    Raises:
        UsageError: somebody must be asked and there is no terminal, or the answer is no.
        DownloadError: some file could not be fetched.
    """
    wanted = missing(sources)
    if not wanted:
        print("weights: all that can be fetched is here.")
        return
    for r in map(row, wanted):
        size = f", about {r.megabytes:,} MB" if r.megabytes else ""
        print(f"{r.source}: licence {r.licence or 'unknown: see ' + ', '.join(r.urls)}{size}")
    bound = [s for s in wanted if s in weights.KNOWN and not weights.KNOWN[s].commercial]
    if bound:
        print(f"Not for commercial use: {', '.join(bound)}.")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                "The licences above are yours to accept and there is no terminal to ask: "
                "avloc weights --experiment NAME --get --yes."
            )
        if not typer.confirm("Fetch under these licences?"):
            raise UsageError("Nothing was fetched: the licences were not accepted.")
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bars:
        shown: dict[str, Any] = {}

        def tell(name: str, done: int, total: int | None) -> None:
            if name not in shown:
                shown[name] = bars.add_task(markup(name))
            bars.update(shown[name], completed=done, total=total)

        found = fetch(wanted, origin, tell)
    for source, path in found.items():
        print(f"{source}: {path}")


def sources_of(config: Path) -> list[str]:
    """Every weight source that a YAML names, its defaults and object guide included, each once."""
    sources = sources_in(model_settings(config))
    ogl = (settings_in(config).get("evaluator") or {}).get("ogl")
    if ogl is not None:
        sources += sources_in({"weights": ObjectGuide.weights} | ogl)
    return sources


def sources_in(settings: Any) -> list[str]:
    """The weight sources in settings, however deep, each once; ``path`` of an option is a file too."""
    if isinstance(settings, str):
        return [settings] if weights.is_source(settings) else []
    if isinstance(settings, dict):
        parts = [f"file:{v}" if k == "path" else v for k, v in settings.items()]
    elif isinstance(settings, list | tuple):
        parts = list(settings)
    else:
        parts = [vars(settings)] if hasattr(settings, "__dict__") else []  # a default that is no plain value
    return list(dict.fromkeys(source for part in parts for source in sources_in(part)))
