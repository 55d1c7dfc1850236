"""Which weight files an experiment needs, and which are here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from avloc import weights
from avloc.experiment.run import model_settings
from avloc.methods.baselines.ogl import ObjectGuide

__all__ = ["sources_in", "sources_of", "table"]


def table(config: Path | None) -> None:
    """Print the files of an experiment, or all known ones: present or not, from where, licence, SHA-256."""
    rows = Table("source", "here", "file", "licence", "SHA-256", title="weights")
    for source in sources_of(config) if config else sorted(weights.KNOWN):
        known = weights.KNOWN.get(source)
        places = weights.candidates(source)
        path = next((p for p in places if p.is_file()), None)
        origin = f"{path or places[0]}" + ("" if path or not known else f"\nget it from {known.homepage}")
        licence = known.licence if known else ("Apache-2.0" if source.startswith("world:") else "")
        digest = weights.sha256(path) if path else ""
        rows.add_row(source, "yes" if path else "no", origin, licence, digest)
    Console().print(rows)


def sources_of(config: Path) -> list[str]:
    """Every weight source that a YAML names, its defaults and object guide included, each once."""
    sources = sources_in(model_settings(config))
    ogl = (yaml.safe_load(config.read_text()).get("evaluator") or {}).get("ogl")
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
