"""What a converter says: why a clip is left out, each reason with its remedy, and what the set holds."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from avloc.data.shards import Skipped, WriteReport
from avloc.files import write_whole

__all__ = ["holds", "kind_of", "lacking", "summarise", "unannotated", "write_table"]

KINDS = {
    "silent": "silent: no sample above -80 dB",
    "constant": "a constant instead of a sound",
    "clipped": "clipped: samples over 1",
    "antiphase": "antiphase: right undoes left, the left one is heard",
    "short": "short: the sound ends early",
    "gaps": "gaps in the sound, silence of their length",
    "damaged": "damaged: what decodes is used",
    "first_frame_late": "pictures begin late: the first one is taken",
    "turned": "turned upright",
    "hdr": "high dynamic range, mapped to that of a screen",
    "converted": "pictures scaled to 8 bits, or laid on black",
}


ALWAYS = ("silent", "short", "turned", "damaged")  # are counted in the table where there are none, too


def holds(console: Console, written: WriteReport) -> None:
    """The table of what a set holds."""
    table = Table("the set holds", "", box=None, show_header=False)
    table.add_row("clips", str(written.written))
    table.add_row("seconds of sound", f"{written.seconds:.1f}")
    kinds = Counter(kind for _, kind, _ in written.found)
    for kind in (*ALWAYS, *sorted(set(kinds) - set(ALWAYS))):
        extent = sum(e for _, k, e in written.found if k == kind)
        lost = f" ({extent:.2f} s lost)" if kind == "damaged" and extent else ""
        table.add_row(KINDS.get(kind, kind), f"{kinds[kind]}{lost}")
    console.print(table)


def summarise(console: Console, skipped: Sequence[Skipped], notes: Sequence[str]) -> None:
    for reason, n in Counter(kind_of(s.reason) for s in skipped).most_common():
        console.print(f"  {n:6d}  {reason}", highlight=False, markup=False, soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def kind_of(reason: str) -> str:
    """A reason without its file name, so that equal ones can be counted."""
    for kind in (
        "video missing",
        "several videos of one id",
        "is damaged",
        "changed while it was read",
        "no sound",
        "no picture",
        "zero length",
        "cannot be decoded",
        "no decodable frame",
    ):
        if kind in reason:
            return kind
    return reason.partition(": ")[0]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode(errors="backslashreplace"))  # names may be no UTF-8


def lacking(what: str, where: str) -> str:
    """The reason of a record that a file is missing of: it may come."""
    return f"{what} missing: {where}. Get the file and run again: it is taken then."


def unannotated(what: str) -> str:
    """The reason of media that no annotation speaks of."""
    return f"no annotation row for this {what}: leave it out, or get the annotation file that speaks of it."
