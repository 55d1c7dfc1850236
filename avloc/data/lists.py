"""Lists as people write them: one reader for csv files, lists of ids, of names and of phrases."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from avloc.bounds import refuse_more

__all__ = ["read_lines", "refuse_long", "text_lines", "unmatched"]


def text_lines(path: Path) -> list[tuple[int, str]]:
    """Lines of a text with their numbers, from 1: stripped, without a byte order mark, with LF or CRLF, blank ones left
    out.

    Raises:
        OSError: absent, or not readable.
        ValueError: no UTF-8 text.
    """
    refuse_long(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} cannot be read as a list ({e}). Save it as UTF-8 text.") from e
    return [(n, text) for n, line in enumerate(lines, start=1) if (text := line.strip())]


def refuse_long(path: Path) -> None:
    """Raises:
    OSError: absent.
    ValueError: too long a list to be held; names the file.
    """
    size = path.stat().st_size
    try:
        refuse_more(size, "LIST_BYTES", f"it has {size:,} bytes")
    except ValueError as e:
        raise ValueError(f"{path} cannot be read as a list ({e}). Cut it into several.") from None


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Lines of any csv or list, as `text_lines`, with their fields, stripped; lines of empty fields are left out, too.

    Raises:
        OSError: absent, or not readable.
        ValueError: no UTF-8 text, or a quote that is not closed, which would hide what follows; names the file.
    """
    refuse_long(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            reader = csv.reader(f, strict=True, skipinitialspace=True)
            lines = [(reader.line_num, [v.strip() for v in line]) for line in reader]
    except (UnicodeDecodeError, csv.Error) as e:
        raise ValueError(f"{path} cannot be read as a table ({e}). Save it as UTF-8 text.") from e
    return [(n, line) for n, line in lines if any(line)]


def unmatched(ids: Iterable[str], known: Iterable[str], where: object) -> list[str]:
    """A note that counts and names the ids of a list that match nothing; [] where all do."""
    lost = sorted(set(ids) - set(known))
    if not lost:
        return []
    shown = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
    return [f"{len(lost)} ids of {where} match nothing ({shown}). Is it the list of this set?"]
