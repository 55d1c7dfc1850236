"""One page of all methods on all test sets under one named protocol, from runs and from entries of other people's."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from rich.console import Console
from scipy.special import stdtrit

from avloc.escapes import one_line
from avloc.files import write_whole
from avloc.report import published
from avloc.report.cells import UNIVERSAL, cell, published_name
from avloc.report.document import Section, write_document
from avloc.report.entries import Cut, Entry, EntryError, Leaks, entry_of, once, read_entry, write_entry
from avloc.report.intervals import TAIL, Bounds, Rescore
from avloc.report.layout import ResultTable, blind_controls
from avloc.report.results import GUIDED, HEARD, LOWER_IS_BETTER, MODEL, read_run
from avloc.report.tables import WIDTH, in_csv, to_latex, to_markdown, to_rich

__all__ = ["Board", "board", "leaderboard", "leaks_in", "to_frame", "to_table"]

PRIMARY = "primary"
"""Stands for each set's own protocol."""
Judged = Mapping[str, tuple[str, str]]
"""Protocol to its headline metric and who chooses its cut."""

CUTS: dict[Cut, str] = {
    "test set": "chosen on the test set itself, which a user of the method could not do",
    "fixed": "fixed beforehand",
    "map": "each map's own larger half, or another share of it",
    "truth": "as many pixels as the ground truth has, which a user does not know",
    "none": "nowhere: the number counts every cut",
    "calibration": "one threshold for all sets, chosen on calibration sets",
    "unknown": "the protocol does not say",
}


@dataclass(frozen=True)
class Column:
    """A test set, the protocol that judges it, and its headline metric."""

    set: str
    protocol: str
    metric: str
    cut: Cut = field(default="unknown", compare=False)
    benchmark: str = field(default="", compare=False)

    @property
    def heading(self) -> str:
        return f"{self.protocol} {self.metric}, cut: {self.cut}"


@dataclass(frozen=True)
class Cell:
    """A number of a board.

    Attributes:
        value: mean over seeds, a fraction.
        each: of every seed.
        low, high: 95 % interval, None for none.
        printed: the published value, and where it stands.
        same: whether that is known to be the same number: of this protocol and metric. Else there is no difference.
        leaks: of the set into the training list; None where nobody looked.
    """

    value: float
    each: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    printed: tuple[published.Value, str] | None = None
    same: bool = True
    leaks: Leaks | None = None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds (n - 1); None for one."""
        return float(np.std(self.each, ddof=1)) if len(self.each) > 1 else None

    @property
    def difference(self) -> float | None:
        """What it is above the published one; None where they are not known to be the same number."""
        return self.value - self.printed[0].fraction if self.printed is not None and self.same else None


@dataclass(frozen=True)
class Line:
    """A row of a board.

    Attributes:
        name: of the method, or of the published row.
        kind: as in `ResultTable.kinds`.
        cells: column to its number.
        row: of the results; "" for a published line.
        entries: of its seeds; none for a published line.
    """

    name: str
    kind: str
    cells: Mapping[Column, Cell]
    row: str = ""
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Board:
    """All lines under all columns.

    Attributes:
        protocol: the one that was asked for.
        columns: by test set.
        lines: methods and published rows by the first column, then what methods answer to other sounds.
        controls: row that sees no model to its cells as text, once for all methods that agree.
        notes: what a reader must know.
    """

    protocol: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    controls: tuple[tuple[str, list[str]], ...]
    notes: tuple[str, ...]


def leaderboard(
    places: Sequence[Path],
    protocol: str = PRIMARY,
    out: Path | None = None,
    data: Path | None = None,
    quote: bool = True,
    judged: Judged | None = None,
    rescore: Rescore | None = None,
    console: Console | None = None,
) -> Board:
    """Print the board; given ``out``, write ``leaderboard.html``, ``.md``, ``.tex``, ``.csv`` and runs' entries there.

    Args:
        places: folders of tested runs, entries, folders of entries.
        protocol: ``primary`` for each set's own; a rule, ``acl``, for every protocol of that rule; or one in full.
        out: folder of the files; entries of runs go into ``out/entries``.
        data: folder of training and test lists, of which it is counted what a test set shares with a training list;
            None leaves it unknown.
        quote: add the published rows that no run reproduces.
        judged: of the protocols that are known here.
        rescore: see `avloc.report.tables.report`.
        console: to print on.

    Raises:
        EntryError: no place, an entry is damaged, of another version or there twice, or none has such a protocol.
        ResultsError: a run's results cannot be read.
    """
    if not places:
        raise EntryError("Nothing to lay out: name folders of tested runs, or entries that a leaderboard wrote.")
    bounds = Bounds(rescore)
    leaks = None if data is None else leaks_in(data)
    found = [
        (place, is_run, entry_of(read_run(place), bounds, judged, leaks) if is_run else read_entry(place))
        for place, is_run in spelt_out(places)
    ]
    once((str(place), entry) for place, _, entry in found)
    made = board([entry for *_, entry in found], protocol, quote)
    table = to_table(made)
    console = console or Console(width=None if sys.stdout.isatty() else WIDTH, emoji=False)
    console.print(to_rich(table))
    for note in table.notes:
        console.print(f"  {one_line(note)}", style="dim", markup=False, highlight=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for _, is_run, entry in found:
            if is_run:
                write_entry(entry, out / "entries")
        write_whole(out / "leaderboard.md", to_markdown(table))
        write_whole(out / "leaderboard.tex", to_latex(table))
        write_whole(out / "leaderboard.csv", in_csv(to_frame(made)))
        write_document(out / "leaderboard.html", table.title, [], [Section(table.title, table, sortable=True)])
        console.print(f"  {out / 'leaderboard.html'}", highlight=False)
    return made


def spelt_out(places: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Each run's folder or entry's file, and whether it is a run; a folder without results stands for its entries.

    Raises:
        EntryError: a folder holds neither.
    """
    for place in dict.fromkeys(places):
        if not place.is_dir():
            yield place, False
        elif (place / "results.json").is_file():
            yield place, True
        elif entries := sorted(place.glob("*.json")):
            yield from ((entry, False) for entry in entries)
        else:
            raise EntryError(
                f"{place} holds neither results.json nor entries. `avloc test` writes the one, `avloc leaderboard "
                "RUN... --out FOLDER` the others."
            )


def leaks_in(root: Path) -> Callable[[str, str], Leaks | None]:
    """What a test set shares with a training list, both looked for in a data folder as `avloc test` does.

    A set with tags is looked up as a whole. None where a list is not there or cannot be compared.
    """
    from avloc.audit.leaks import AuditError, find_leaks
    from avloc.data.module import named_split

    def index(name: str, split: str) -> Path:
        dataset, own = named_split(name, split)
        return root / dataset / f"{dataset}-{own}.json"

    @cache
    def counted(train: Path, test: Path) -> Leaks | None:
        if not (train.is_file() and test.is_file()):
            return None
        try:
            found = find_leaks(train, [test]).sets[0]
        except AuditError:
            return None
        return Leaks(
            clips=found.clips,
            by_clip=found.leaked_clips,
            by_video=found.leaked_videos,
            unchecked=found.unchecked,
        )

    return lambda train, test: counted(index(train, "train"), index(test, "test"))


def board(entries: Sequence[Entry], protocol: str = PRIMARY, quote: bool = True) -> Board:
    """Lay entries out; see `leaderboard` for the arguments and errors."""
    columns = columns_of(entries, protocol)
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.of, []).append(entry)
    recipes = Counter(name for name, _ in groups)
    own, heard, controls, notes = [], [], [], [*notes_on(entries, columns)]
    taken: set[tuple[str, str, str]] = set()
    for (experiment, recipe), members in groups.items():
        name = experiment if recipes[experiment] == 1 else f"{experiment} [{recipe[:6]}]"
        rows = dict.fromkeys(row for e in members for tested in e.sets.values() for row in tested.rows)
        blind: dict[str, list[str]] = {}
        for row in rows:
            target, why = printed_row(members[0], row, GUIDED in rows) if row in (MODEL, GUIDED) else (None, "")
            notes += [why] * bool(why)
            cells = {c: found for c in columns if (found := cell_of(members, c, row, target)) is not None}
            if not cells:
                continue
            if row in (MODEL, GUIDED):
                own.append(Line(f"{name} + OGL" if row == GUIDED else name, "own", cells, row, tuple(members)))
                taken |= {(paper, table, printed.name) for (paper, table), printed in (target or {}).items()}
            elif row in HEARD:
                heard.append(Line(f"{name}, {row}", "heard", cells, row, tuple(members)))
            else:
                blind[row] = [cell(c.metric, cells[c].value) if c in cells else "" for c in columns]
        controls.append((name, blind))
    lines = [*own, *(quoted_lines(columns, taken) if quote else [])]
    lines.sort(key=lambda line: place_of(line, columns))
    return Board(
        protocol, tuple(columns), (*lines, *heard), tuple(blind_controls(controls)), tuple(dict.fromkeys(notes))
    )


def columns_of(entries: Sequence[Entry], protocol: str) -> list[Column]:
    """The columns: for each set the protocol of this name or rule, and the one threshold for all sets where it was
    chosen.

    Raises:
        EntryError: no entry was scored by it.
    """
    out = []
    for name in dict.fromkeys(name for entry in entries for name in entry.sets):
        tested = [entry.sets[name] for entry in entries if name in entry.sets]
        known = list(dict.fromkeys(p for t in tested for p in t.protocols if p != UNIVERSAL))
        if protocol == PRIMARY:
            wanted = [Counter(t.primary for t in tested).most_common(1)[0][0]]
        else:
            wanted = [p for p in known if protocol in (p, p.partition("/")[2])][:1]
        if wanted and any(UNIVERSAL in t.protocols for t in tested):
            wanted.append(UNIVERSAL)
        for each in wanted:
            judged = [t.protocols[each] for t in tested if each in t.protocols]
            headline = Counter(j.headline for j in judged).most_common(1)[0][0]
            out.append(Column(name, each, headline, judged[0].cut, tested[0].benchmark))
    if not out:
        names = sorted({p for e in entries for t in e.sets.values() for p in t.protocols if p != UNIVERSAL})
        rules = sorted({p.partition("/")[2] for p in names})
        raise EntryError(
            f"None of these results was scored by {protocol!r}. They know the protocols {', '.join(names)}, the rules "
            f"{', '.join(rules)}, and primary."
        )
    return out


def cell_of(
    members: Sequence[Entry], column: Column, row: str, target: Mapping[published.Place, published.Row] | None
) -> Cell | None:
    """The number of a row under a column, over the seeds that have it; None where none has."""
    tested = [entry.sets[column.set] for entry in members if column.set in entry.sets]
    numbers = [
        number
        for each in tested
        if (number := each.rows.get(row, {}).get(column.protocol, {}).get(column.metric)) is not None
    ]
    if not numbers:
        return None
    each = tuple(number.value for number in numbers)
    low, high = over_all(
        [(n.value - n.low, n.high - n.value) for n in numbers if n.low is not None and n.high is not None], each
    )
    printed, same = printed_of(target or {}, column)
    return Cell(float(np.mean(each)), each, low, high, printed, same, tested[0].leaks)


def printed_of(
    rows: Mapping[published.Place, published.Row], column: Column
) -> tuple[tuple[published.Value, str] | None, bool]:
    """What papers print under a column: first the number that is known to be the same, else one of the same name."""
    for same in (True, False):
        for (paper, table), row in rows.items():
            name = published_name(column.protocol, column.metric)
            found = (
                row.comparable(column.benchmark, column.protocol, column.metric)
                if same
                else row.value(column.benchmark, name)
            )
            if found is not None:
                return (found, f"{paper} table {table}"), same
    return None, False


def over_all(arms: Sequence[tuple[float, float]], each: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Bounds of a mean over seeds, of what other samples and other seeds would change.

    The arms of the seeds' own intervals are averaged, for all seeds saw the same samples; what seeds add is
    ``t(k - 1) * deviation / sqrt(k)``, and both are added as squares, since they are independent. An entry holds no
    samples, so `avloc.report.intervals.over_seeds` cannot be asked.
    """
    if len(arms) < len(each):
        return None, None
    value, arm, k = float(np.mean(each)), np.mean(arms, 0), len(each)
    seeds = float(stdtrit(k - 1, TAIL)) * float(np.std(each, ddof=1)) / k**0.5 if k > 1 else 0.0
    below, above = (float(np.hypot(side, seeds)) for side in arm)
    return value - below, value + above


def printed_row(entry: Entry, row: str, guided: bool) -> tuple[Mapping[published.Place, published.Row] | None, str]:
    """Where papers print the model that an entry reproduces, and why that is not known, or ""."""
    source = entry.reproduces
    if source is None or (guided and source.ogl and row == MODEL):
        return None, ""
    wanted = source.model_dump() | ({"ogl": row == GUIDED} if guided else {})
    try:
        found = published.find(**wanted)
    except published.PublishedError as e:
        return None, "" if row == GUIDED else f"{entry.experiment} is compared with no published row: {e}"
    return published.alike(source.paper, source.table, found), ""


def quoted_lines(columns: Sequence[Column], taken: set[tuple[str, str, str]]) -> list[Line]:
    """The published rows that no run reproduces. Of ablations none, of a row that several tables print the first."""
    asked = [c for c in columns if c.benchmark and c.protocol != UNIVERSAL]
    out, met = [], set(taken)
    for paper in published.papers() if asked else ():
        for table in published.load(paper).tables:
            for row in published.find_table(paper, table.id).rows:
                here = {(paper, table.id): row}
                if row.group == "ablation" or (paper, table.id, row.name) in met:
                    continue
                cells = {}
                for column in asked:
                    printed, same = printed_of(here, column)
                    if printed is not None:
                        cells[column] = Cell(printed[0].fraction, printed=printed, same=same)
                if cells:
                    met |= {(p, t, r.name) for (p, t), r in published.alike(paper, table.id, row).items()}
                    out.append(Line(f"{row.name}, {paper} table {table.id}", "published", cells))
    return out


def place_of(line: Line, columns: Sequence[Column]) -> tuple[float, ...]:
    """Best first by the first column, by the next one where that is empty; at last what was judged by another rule."""
    first = next(i for i, c in enumerate(columns) if c in line.cells)
    found = line.cells[columns[first]]
    apart, value = line.kind == "published" and not found.same, found.value
    return apart, first, value if LOWER_IS_BETTER.match(columns[first].metric) else -value


def notes_on(entries: Sequence[Entry], columns: Sequence[Column]) -> list[str]:
    used = dict.fromkeys(c.cut for c in columns)
    notes = [f'Maps are cut, "{cut}": {CUTS[cut]}.' for cut in get_args(Cut) if cut in used]
    several = Counter(entry.of for entry in entries)
    if any(n > 1 for n in several.values()):
        notes.append(
            "± is the standard deviation over seeds. Brackets of several seeds allow for other samples and other seeds."
        )
    alone = dict.fromkeys(e.experiment for e in entries if several[e.of] == 1 and e.seed is not None)
    if alone:
        notes.append(
            f"One seed each ({', '.join(alone)}): brackets tell what other test samples would change, not what another "
            "seed would."
        )
    for entry in entries:
        seed = "" if entry.seed is None else f", seed {entry.seed}"
        if entry.threshold:
            on = ", ".join(entry.threshold.chosen_on) or "unnamed sets"
            notes.append(f"{entry.experiment}{seed}: the one threshold is {entry.threshold.value:.4g}, chosen on {on}.")
        for name, tested in entry.sets.items():
            if tested.missing:
                notes.append(
                    f"{entry.experiment}{seed}: {tested.missing} of {tested.samples} samples of {name} are missing."
                )
            if not tested.whole:
                notes.append(f"{entry.experiment}{seed}: only a part of {name} was scored.")
            notes += [f"{name}: {note}" for note in tested.notes]
    timed = {(e.cost.device, e.cost.precision, e.cost.pictures) for e in entries if e.cost}
    notes += [
        f"Milliseconds a picture were measured on {device}, {precision or 'unknown precision'}, {n} pictures at once."
        for device, precision, n in sorted(timed)
    ]
    return notes


ANOTHER = "another rule"
FACTS = ("seeds", "trained on", "parameters, M", "GFLOPs a picture", "ms a picture")


def facts(line: Line) -> list[str]:
    """A line's cells under `FACTS`."""
    if not line.entries:
        return ["", "", "", "", ""]
    first, costs = line.entries[0], [e.cost for e in line.entries if e.cost is not None]
    seeds = sorted(e.seed for e in line.entries if e.seed is not None)
    millions = f"{first.parameters.total / 1e6:.2f}" if first.parameters else ""
    if first.parameters and first.parameters.trainable not in (0, first.parameters.total):
        millions += f" ({first.parameters.trainable / 1e6:.2f} trained)"
    flops = next((c.flops for c in costs if c.flops), None)
    ms = 1000 * float(np.median([c.seconds for c in costs])) if costs else None
    return [
        str(len(seeds)) if seeds else "",
        f"{first.trained_on}: {leak_status(line.entries)}" if first.trained_on else "nothing",
        millions,
        "" if flops is None else f"{flops / 1e9:.3g}",
        "" if ms is None else f"{ms:.3g}",
    ]


def leak_status(entries: Sequence[Entry]) -> str:
    """What of the test sets is in the training list."""
    found = {name: tested.leaks for e in entries for name, tested in e.sets.items()}
    leaking = [f"{n} {k.by_video} of {k.clips} by video" for n, k in found.items() if k and k.by_video]
    unknown = [name for name, k in found.items() if k is None or k.unchecked]
    if leaking:
        return "leaks " + ", ".join(leaking)
    return (
        "no leak"
        if not unknown
        else "leaks not checked"
        if len(unknown) == len(found)
        else f"no leak, {', '.join(unknown)} not checked"
    )


def text_of(column: Column, found: Cell | None, quoted: bool) -> str:
    """A cell of the table: ``37.18 ± 0.40 [35.9, 38.4] (published 38.85, -1.67, acl_ssl table 1)``."""
    if found is None:
        return ""
    if quoted:
        return (found.printed[0].percent if found.printed else "") + (f" ({ANOTHER})" if not found.same else "")
    text = cell(column.metric, found.value)
    if found.deviation is not None:
        text += f" ± {cell(column.metric, found.deviation)}"
    if found.low is not None and found.high is not None:
        text += f" [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    told = []
    if found.printed is not None:
        apart = ANOTHER if found.difference is None else f"{100 * found.difference:+.2f}"
        told.append(f"published {found.printed[0].percent}, {apart}, {found.printed[1]}")
    if found.leaks is not None and found.leaks.by_video:
        told.append(f"{found.leaks.by_video} of {found.leaks.clips} clips leak")
    return f"{text} ({'; '.join(told)})" if told else text


def to_table(made: Board) -> ResultTable:
    """The board ready to print."""
    under = "each set's own protocol" if made.protocol == PRIMARY else made.protocol
    out = ResultTable(
        f"Leaderboard under {under}, percent",
        ["", *FACTS, *[column.heading for column in made.columns]],
        [],
        [*made.notes],
        groups=["", *[""] * len(FACTS), *[column.set for column in made.columns]],
    )
    for line in made.lines:
        about = facts(line) if line.kind != "heard" else [""] * len(FACTS)
        cells = [text_of(c, line.cells.get(c), line.kind == "published") for c in made.columns]
        out.add(line.kind, [line.name, *about, *cells])
    for name, cells in made.controls:
        out.add("control", [name, *[""] * len(FACTS), *cells])
    return out


def to_frame(made: Board) -> pd.DataFrame:
    """Every number of the methods and the published rows, unrounded, one a line."""
    lines = []
    for line in made.lines:
        first = line.entries[0] if line.entries else None
        cost = next((e.cost for e in line.entries if e.cost), None)
        for column, found in line.cells.items():
            quoted, leaks = line.kind == "published", found.leaks
            lines.append(
                {
                    "name": line.name,
                    "kind": line.kind,
                    "row": line.row,
                    "set": column.set,
                    "protocol": column.protocol,
                    "metric": column.metric,
                    "cut": column.cut,
                    "value": None if quoted else found.value,
                    "sd": found.deviation,
                    "seeds": len(found.each) or None,
                    "low": found.low,
                    "high": found.high,
                    "published": found.printed[0].fraction if found.printed else None,
                    "difference": None if quoted else found.difference,
                    "source": found.printed[1] if found.printed else "",
                    "trained_on": first.trained_on if first else "",
                    "clips": leaks.clips if leaks else None,
                    "leaked_by_clip": leaks.by_clip if leaks else None,
                    "leaked_by_video": leaks.by_video if leaks else None,
                    "unchecked": leaks.unchecked if leaks else None,
                    "trainable": first.parameters.trainable if first and first.parameters else None,
                    "parameters": first.parameters.total if first and first.parameters else None,
                    "flops": cost.flops if cost else None,
                    "seconds": cost.seconds if cost else None,
                    "device": cost.device if cost else "",
                    "commit": first.code.commit if first else "",
                }
            )
    return pd.DataFrame(lines)
