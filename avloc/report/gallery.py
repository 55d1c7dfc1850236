"""The samples that a tested run kept as pictures with sound, chosen for a report and grouped over runs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
from pydantic import Field

from avloc.checked import Fields, checked, read_checked
from avloc.data.media import load_sound
from avloc.report.keys import aliases
from avloc.report.panels import inline
from avloc.report.results import ResultsError, Run

__all__ = ["Entry", "Figure", "Kept", "asked", "chosen", "entries", "figures", "read_kept", "rows_of", "sound"]

ABREAST = 6
"""Most samples side by side in one row of a figure."""

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
        shows: name of the picture, shared by the samples that show it under several sounds.
        true, heat: JPEG of the picture with the sounding regions alone, and under the heat map; None in the folder of
            an older test, which kept ``picture`` alone.
        sources: (name, ``#rrggbb``) of each source that has a colour of its own; [] where none has.
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
    shows: str = ""
    true: Path | None = None
    heat: Path | None = None
    sources: Sequence[tuple[str, str]] = ()

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


@dataclass(frozen=True, eq=False)
class Entry:
    """One sample, with the answers of those runs that kept it."""

    answers: list[tuple[str, Kept]]

    @property
    def first(self) -> Kept:
        return self.answers[0][1]

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(kept.kind for _, kept in self.answers))

    @property
    def names(self) -> list[str]:
        """Every key that means this sample."""
        return aliases(self.first.key, self.first.shows)


@dataclass(frozen=True)
class Figure:
    """Samples side by side: one picture under several sounds, or what somebody asked for; else one sample."""

    entries: list[Entry]

    @property
    def first(self) -> Kept:
        return self.entries[0].first


class KeptList(Fields):
    """``panels.<process>.json``."""

    processes: Annotated[int, Field(ge=0, le=100_000)]
    samples: list[dict[str, Any]]


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
        for process in range(read_checked(first, KeptList)["processes"]):
            path = first.with_name(f"panels.{process}.json")
            for told in read_checked(path, KeptList)["samples"] if path.is_file() else ():
                files = {k: told.get(k) for k in ("picture", "sound", "true", "heat")}
                out.append(checked(told | {k: within(first, name) for k, name in files.items()}, Kept))
    except (OSError, ValueError) as e:
        raise ResultsError(f"{path} is damaged ({type(e).__name__}: {e}). Test the run again.") from e
    return [kept for kept in out if kept.picture.is_file()]


def within(told: Path, name: Any) -> Path | None:
    """A file that a list names; None for none.

    Raises:
        ValueError: it lies outside of the list's folder, by its name or by a link: no list makes a report show that.
    """
    if not name:
        return None
    path = told.parent / str(name)
    if "\0" in str(name) or not path.resolve().is_relative_to(told.parent.resolve()):
        raise ValueError(f"{str(name)[:80]!r} is no file of its folder")
    return path


def entries(name: str, runs: Sequence[Run]) -> list[Entry]:
    """The kept samples of a set, the first run's best first; runs that kept the same sample share an entry."""
    found: dict[str, list[tuple[str, Kept]]] = {}
    for run in runs:
        for kept in read_kept(run.folder):
            if kept.set == name:
                found.setdefault(kept.key, []).append((run.name, kept))
    return sorted((Entry(answers) for answers in found.values()), key=lambda e: (e.first.rank, e.first.index))


def figures(found: Sequence[Entry]) -> list[Figure]:
    """The entries with those of one picture together, these by their index; the order is that of the first of each."""
    shown: dict[str, list[Entry]] = {}
    for entry in found:
        shown.setdefault(entry.first.shows or entry.first.key, []).append(entry)
    return [Figure(sorted(together, key=lambda e: e.first.index)) for together in shown.values()]


def chosen(found: Sequence[Figure], limit: int) -> list[Figure]:
    """Figures with about ``limit`` samples, evenly over their order, the best and the worst among them."""
    samples = sum(len(figure.entries) for figure in found)
    if samples <= limit:
        return list(found)
    several = min(len(found), max(2, round(limit * len(found) / samples)))
    return [found[i] for i in np.linspace(0, len(found) - 1, several).round().astype(int)]


def asked(name: str, runs: Sequence[Run], keys: Sequence[str]) -> list[Figure]:
    """The kept samples of a set that ``keys`` name, in the order of the keys: every picture with several of them is a
    figure, the others stand `ABREAST`."""
    place = {key: i for i, key in enumerate(keys)}
    found = {e: min(place[n] for n in e.names if n in place) for e in entries(name, runs) if place.keys() & e.names}
    ordered = sorted(found, key=lambda e: (found[e], e.first.index))
    out: list[Figure] = []
    loose: list[Entry] = []
    for figure in figures(ordered):
        if len(figure.entries) > 1:
            out.append(figure)
        else:
            loose += figure.entries
    return [Figure(loose[i : i + ABREAST]) for i in range(0, len(loose), ABREAST)] + out


def rows_of(figure: Figure) -> dict[str, list[Kept | None]]:
    """Run to its answer to each sample of the figure, None where it kept none."""
    names = dict.fromkeys(run for entry in figure.entries for run, _ in entry.answers)
    answers = [dict(entry.answers) for entry in figure.entries]
    return {name: [of.get(name) for of in answers] for name in names}


def sound(path: Path) -> str:
    """A sound as a ``data:`` address: MP3, a tenth of the size, where its rate allows, else as it is."""
    content = path.read_bytes()
    try:
        wave, rate, _ = load_sound(content)
        file = io.BytesIO()
        soundfile.write(file, wave, rate, format="MP3", subtype="MPEG_LAYER_III")
        return inline(file.getvalue(), "audio/mpeg")
    except (soundfile.SoundFileError, ValueError):
        return inline(content, "audio/wav")
