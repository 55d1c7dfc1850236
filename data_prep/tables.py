"""Annotation files and folders, read: tables by column name, lists of ids, boxes, files by their stem."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from avloc.data.lists import read_lines, unmatched
from avloc.data.media import PICTURES, clip_id
from avloc.data.schema import sample_key
from avloc.data.shards import Skipped
from data_prep.telling import unannotated

__all__ = [
    "clip_boxes",
    "files_by_stem",
    "no_twins",
    "read_ids",
    "read_table",
    "read_tags",
    "unlisted",
    "unmatched_tags",
]


def clip_boxes(raw: Sequence[Sequence[float]]) -> tuple[list[list[float]], bool]:
    """Boxes ``[n, 4]`` clipped to [0, 1], and whether that changed any. Infinite corners are clipped, NaN is an error.

    Raises:
        ValueError: a box without four numbers, or with NaN.
    """
    if any(len(b) != 4 or any(math.isnan(v) for v in b) for b in raw):
        raise ValueError(f"boxes {raw} are not four numbers each. Get the annotation file again.")
    boxes = np.array(raw, np.float64).reshape(-1, 4)
    clipped = np.clip(boxes, 0.0, 1.0)
    return clipped.tolist(), bool((clipped != boxes).any())


def read_table(
    path: Path, columns: Sequence[str], header: bool = False, clips: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Rows of a csv by column name, stripped; empty lines are nothing, quoted commas stay, missing last columns are "".

    Args:
        path: the file; with or without a final newline, LF or CRLF.
        columns: what its columns are called.
        header: whether the first line names the columns; then ``columns`` must all be among them.
        clips: columns that name clips, which are read however they are written (see `avloc.data.media.clip_id`).

    Raises:
        ValueError: a line with more fields than columns, or a header without one of them; names the line.
    """
    lines = read_lines(path)
    names = list(columns)
    if header:
        names = lines[0][1] if lines else []
        if absent := [c for c in columns if c not in names]:
            raise ValueError(f"{path} has no column {absent[0]}, only {', '.join(names)}. Is it the official file?")
        lines = lines[1:]
    for n, line in lines:
        if len(line) > len(names):
            raise ValueError(f"{path}, line {n}: expected {','.join(names)}, got {line}. Quote what holds a comma.")
    rows = [dict(zip(names, line + [""] * (len(names) - len(line)), strict=True)) for _, line in lines]
    return [row | {name: clip_id(row[name]) for name in clips} for row in rows] if clips else rows


def read_ids(path: Path) -> set[str]:
    """The first column of a list, with or without further columns; clips as ``<id>_<start, 6 digits>`` however they
    are written (see `avloc.data.media.parse_id`)."""
    return {clip_id(line[0]) for _, line in read_lines(path) if line[0]}


def unmatched_tags(tags: Mapping[str, Iterable[str]], known: Iterable[str]) -> list[str]:
    """`unmatched` of the lists of tags."""
    ids = set(known)
    return [note for tag, of in tags.items() for note in unmatched(of, ids, f"the list of the tag {tag}")]


def read_tags(options: Sequence[str]) -> dict[str, set[str]]:
    """``TAG=FILE`` options to the ids that carry each tag.

    Raises:
        ValueError: an option of another form.
    """
    pairs = [option.partition("=") for option in options]
    if bad := [option for option, (tag, _, file) in zip(options, pairs, strict=True) if not (tag and file)]:
        raise ValueError(f"--tag {bad[0]} is not of the form TAG=FILE, e.g. heard=vggss_heard_test.csv")
    return {tag: read_ids(Path(file)) for tag, _, file in pairs}


def no_twins(ids: Iterable[str], where: Path | str) -> None:
    """Refuse ids that occur twice.

    Raises:
        ValueError: names the first of them.
    """
    twins = [id for id, n in Counter(ids).items() if n > 1]
    if twins:
        shown = ", ".join(twins[:5]) + (", ..." if len(twins) > 5 else "")
        raise ValueError(f"{where}: {len(twins)} ids occur more than once ({shown}). Get the official file again.")


def files_by_stem(folder: Path, suffixes: Sequence[str] = PICTURES) -> dict[str, Path]:
    """Files of a folder by name without suffix, sorted; {} when the folder is absent.

    Raises:
        ValueError: two files of one stem, e.g. ``a.jpg`` and ``a.png``, or a folder that cannot be read.
    """
    try:
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as e:
        raise ValueError(f"{folder} cannot be read ({e.strerror or e}). Check its rights.") from e
    paths = [p for p in inside if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    no_twins((p.stem for p in paths), folder)
    return {p.stem: p for p in paths}


def unlisted(dataset: str, found: Iterable[str], listed: Iterable[str], what: str = "picture") -> list[Skipped]:
    """Media that no annotation row speaks of, for `Plan.missing`."""
    known = {name for id in listed for name in (id, clip_id(id))}
    return [
        Skipped(sample_key(dataset, id), unannotated(what))
        for id in sorted(set(found))
        if id not in known and clip_id(id) not in known
    ]
