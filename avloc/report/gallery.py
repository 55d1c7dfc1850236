"""The samples that a tested run kept as pictures with sound, chosen for a report and grouped over runs."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from avloc.report.panels import inline
from avloc.report.results import ResultsError, Run

__all__ = ["Entry", "Kept", "chosen", "entries", "read_kept", "sound"]

FALSE_ALARM = 0.01
"""Share of the picture from which an answer to a sample in which nothing sounds is a false alarm."""


@dataclass(frozen=True)
class Kept:
    """One sample as one run answered it.

    Attributes:
        set, index, key, label, negative: of the sample; ``negative`` is "" for a positive.
        sounding: whether something in the picture sounds.
        overlap: IoU of the map at 0.5 with the truth, None without a truth.
        share: of the picture that the map covers at 0.5.
        confidence: the method's own.
        picture: JPEG.
        sound: WAV, or None.
        heard_as: the class phrases nearest to the sound with their cosines, the nearest first; [] for a method that
            cannot be read (`avloc.methods.acl.inversion`).
    """

    set: str
    index: int
    key: str
    label: str
    negative: str
    sounding: bool
    overlap: float | None
    share: float
    confidence: float
    picture: Path
    sound: Path | None
    heard_as: Sequence[tuple[str, float]] = ()

    @property
    def kind(self) -> str:
        """``missed`` below an IoU of 0.1, ``partly`` below 0.5, else ``found``; without a sounding object
        ``false alarm`` or ``rightly silent``."""
        if not self.sounding or self.overlap is None:
            return "false alarm" if self.share >= FALSE_ALARM else "rightly silent"
        return "missed" if self.overlap < 0.1 else "partly" if self.overlap < 0.5 else "found"

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts the best first: positives by IoU, then negatives by how much they cover."""
        silent = not self.sounding or self.overlap is None
        return silent, self.share if silent else -(self.overlap or 0.0)


@dataclass(frozen=True)
class Entry:
    """One sample, with the answers of those runs that kept it."""

    answers: list[tuple[str, Kept]]

    @property
    def first(self) -> Kept:
        return self.answers[0][1]

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(kept.kind for _, kept in self.answers))


def read_kept(folder: Path) -> list[Kept]:
    """What all processes of a run's test kept; [] where it kept nothing.

    Raises:
        ResultsError: a damaged list.
    """
    first = folder / "panels" / "panels.0.json"
    if not first.is_file():
        return []
    path = first
    out = []
    try:
        for process in range(json.loads(first.read_text())["processes"]):
            path = first.with_name(f"panels.{process}.json")
            for told in json.loads(path.read_text())["samples"] if path.is_file() else ():
                files = {k: first.parent / told[k] if told[k] else None for k in ("picture", "sound")}
                out.append(Kept(**told | files))
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise ResultsError(f"{path} is damaged ({type(e).__name__}: {e}). Test the run again.") from e
    return [kept for kept in out if kept.picture.is_file()]


def entries(name: str, runs: Sequence[Run]) -> list[Entry]:
    """The kept samples of a set, the first run's best first; runs that kept the same sample share an entry."""
    found: dict[str, list[tuple[str, Kept]]] = {}
    for run in runs:
        for kept in read_kept(run.folder):
            if kept.set == name:
                found.setdefault(kept.key, []).append((run.name, kept))
    return sorted((Entry(answers) for answers in found.values()), key=lambda e: (e.first.rank, e.first.index))


def chosen(found: Sequence[Entry], limit: int) -> list[Entry]:
    """``limit`` of the entries, evenly over their order, the best and the worst among them."""
    if len(found) <= limit:
        return list(found)
    return [found[i] for i in np.linspace(0, len(found) - 1, limit).round().astype(int)]


def sound(path: Path) -> str:
    """A sound as a ``data:`` address: MP3, a tenth of the size, where its rate allows, else as it is."""
    content = path.read_bytes()
    try:
        wave, rate = soundfile.read(io.BytesIO(content), dtype="float32")
        file = io.BytesIO()
        soundfile.write(file, wave, rate, format="MP3", subtype="MPEG_LAYER_III")
        return inline(file.getvalue(), "audio/mpeg")
    except (soundfile.LibsndfileError, ValueError):
        return inline(content, "audio/wav")
