"""Leaks between a training list and evaluation sets: the same clip, the same footage, the same video.

Two ids are one clip if video and start agree, or, where neither states a time, video and part. Clips of one video that
start at different times leak by video, and overlap where their windows do.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from avloc.audit.lists import FORMATS, AuditError, Clip, Listing, read_id, read_list, spelling
from avloc.escapes import markup, printable
from avloc.files import write_whole

__all__ = ["Audit", "AuditError", "Clip", "Leaks", "audit", "find_leaks", "read_id"]

By = Literal["clip", "video"]


@dataclass
class Leaks:
    """What of an evaluation set is in the training list. All counts are of distinct clips.

    Attributes:
        name: of the set.
        clips: all.
        videos: distinct known videos.
        leaked_clips: in the training list.
        overlapping: not in it, but some of their footage is.
        leaked_videos: clips whose video is in it; counts leaked clips too.
        undecided: clips among those of which the ids do not say whether they are the same clip.
        unchecked: clips of no known video that share no name with the training list either.
        share: leaked clips, or clips whose video leaks, of those that could be checked; None for none.
        examples: the first three, as ``clip`` and ``train``.
        other_split: rows that were not looked at, because the file's split column calls them otherwise.
    """

    name: str
    clips: int
    videos: int
    leaked_clips: int
    overlapping: int
    leaked_videos: int
    undecided: int
    unchecked: int
    share: float | None
    examples: list[dict[str, str]]
    other_split: int = 0


@dataclass
class Audit:
    """Answer of `find_leaks`.

    Attributes:
        train: the training list.
        by: what a leaking row shares with an evaluation set.
        sets: one per evaluation set.
        total: of all sets together, a clip in several of them counted once.
        leaking: places in ``train.rows``, by clip and by video.
    """

    train: Listing
    by: By
    sets: list[Leaks]
    total: Leaks
    leaking: dict[By, list[int]]

    def as_json(self) -> dict[str, Any]:
        clips = self.train.clips
        train = {
            "file": str(self.train.path),
            "rows": len(self.train.rows),
            "other_split": self.train.other_split,
            "clips": len(clips),
            "videos": len({c.video for c in clips if c.video is not None}),
            "unchecked": sum(c.video is None for c in clips),
            "rows_leaking_by_clip": len(self.leaking["clip"]),
            "rows_leaking_by_video": len(self.leaking["video"]),
        }
        return {"by": self.by, "train": train, "sets": [asdict(s) for s in self.sets], "total": asdict(self.total)}


def audit(train: Path, evals: list[Path], clean: Path | None = None, by: By = "video", json: bool = False) -> None:
    """Find training clips that evaluation sets are scored on, by clip and by video; write the list without them.

    Args:
        train: training list (ids in the first column of a text or CSV file), or index JSON of shards.
        evals: evaluation sets: such lists, vggss.json and its like, AVSBench's metadata, or index JSONs of shards.
        clean: write the training list without the leaking rows to this new file.
        by: what leaks: the clip itself, or any clip of its video.
        json: print one JSON object.

    Raises:
        AuditError: a list is missing, empty or of an unknown format; nothing could be checked; or ``clean`` exists.
    """
    if clean is not None and clean.exists():
        raise AuditError(f"{clean} exists already and is not written over. Name another file, or delete it first.")
    found = find_leaks(train, evals, by)
    written: dict[str, Any] | None = None
    problem: AuditError | None = None
    if all(s.share is None for s in found.sets):
        guilty = "the evaluation sets" if any(c.video is not None for c in found.train.clips) else str(train)
        problem = AuditError(
            f"Nothing could be checked: the ids of {guilty} name no video. Give lists with YouTube or Flickr ids, or "
            "shards whose records have a video." + (f" {clean} is not written." if clean is not None else "")
        )
    elif clean is not None:
        try:
            written = write_clean(found, clean)
        except AuditError as e:
            problem = e
    if json:
        print(dumps(found.as_json() | {"clean": written}))
    else:
        print_audit(found, written)
    if problem is not None:
        raise problem


def find_leaks(train: Path, evals: Sequence[Path], by: By = "video") -> Audit:
    """Compare a training list with evaluation sets.

    Of a file whose split column holds ``train`` and ``test``, only the rows of its own purpose count.

    Args:
        train, evals, by: see `audit`.

    Raises:
        AuditError: see `audit`; that nothing could be checked is left to the caller.
        ShardError, SampleError: shards cannot be read.
    """
    if not evals:
        raise AuditError(f"No evaluation set is named. {FORMATS}")
    listing = read_list(Path(train), "train")
    sets = [read_list(Path(path), "test") for path in evals]
    names = [s.path.name for s in sets]
    if len(set(names)) < len(names):
        names = ["/".join(s.path.parts[-2:]) for s in sets]
    known: defaultdict[str, list[Clip]] = defaultdict(list)
    for clip in listing.clips:
        known[clip.source].append(clip)
    together = Listing(Path(), [row for s in sets for row in s.rows])
    keys = {c.key for c in together.clips}
    sources = {key[0] for key in keys}
    return Audit(
        train=listing,
        by=by,
        sets=[measure(n, s, known, by) for n, s in zip(names, sets, strict=True)],
        total=measure("all sets", together, known, by),
        leaking={
            "clip": [i for i, row in enumerate(listing.rows) if any(c.key in keys for c in row.clips)],
            "video": [i for i, row in enumerate(listing.rows) if any(c.source in sources for c in row.clips)],
        },
    )


def measure(name: str, listing: Listing, train: dict[str, list[Clip]], by: By) -> Leaks:
    """The leaks of one set; ``train`` are the clips of the training list by source."""
    clips = listing.clips
    any_video = any(c.video is not None for same in train.values() for c in same)
    leaked: list[tuple[Clip, Clip]] = []
    shared: list[tuple[Clip, Clip]] = []
    overlapping = undecided = unchecked = 0
    for clip in clips:
        others = train.get(clip.source, [])
        same = next((o for o in others if o.key == clip.key), None)
        if others:
            shared.append((clip, same or others[0]))
        elif clip.video is None or not any_video:
            unchecked += 1
        if same:
            leaked.append((clip, same))
        elif any(clip.overlaps(o) for o in others):
            overlapping += 1
        elif any(not clip.comparable(o) for o in others):
            undecided += 1
    found = leaked if by == "clip" else shared
    return Leaks(
        name=name,
        clips=len(clips),
        videos=len({c.video for c in clips if c.video is not None}),
        leaked_clips=len(leaked),
        overlapping=overlapping,
        leaked_videos=len(shared),
        undecided=undecided,
        unchecked=unchecked,
        share=len(found) / (len(clips) - unchecked) if len(clips) > unchecked else None,
        examples=[{"clip": clip.id, "train": other.id} for clip, other in found[:3]],
        other_split=listing.other_split,
    )


def write_clean(found: Audit, path: Path) -> dict[str, Any]:
    """Write the training list without its leaking rows: what is kept of a text list is kept byte for byte; of JSON
    and shards the ids remain, one a line, as ``data_prep.vggsound --list`` takes them.

    Returns:
        ``file``, ``kept`` and ``removed`` (rows).

    Raises:
        AuditError: the file cannot be written, or every row leaks.
    """
    train, leaking = found.train, set(found.leaking[found.by])
    if len(leaking) == len(train.rows):
        raise AuditError(
            f"Every row of {train.path} leaks by {found.by}: nothing would be left, {path} is not written."
        )
    if train.lines is not None:
        gone = {train.rows[i].line for i in leaking}
        content = b"".join(line for n, line in enumerate(train.lines) if n not in gone)
    else:
        text = io.StringIO()
        kept = dict.fromkeys(spelling(row.id) for i, row in enumerate(train.rows) if i not in leaking)
        csv.writer(text, lineterminator="\n").writerows([id] for id in kept)
        content = text.getvalue().encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as e:
        why = e.__cause__ or e
        raise AuditError(f"The clean list {path} cannot be written ({why}). Name a file in a writable folder.") from e
    return {"file": str(path), "kept": len(train.rows) - len(leaking), "removed": len(leaking)}


def print_audit(found: Audit, clean: dict[str, Any] | None) -> None:
    console = Console()

    def say(sentence: str) -> None:
        console.print(printable(sentence), markup=False, highlight=False, soft_wrap=True)

    train = found.as_json()["train"]
    table = Table(title=f"leaks by {found.by}")
    table.add_column("set", overflow="fold")
    for name in ("clips", "videos", "clip\nleaks", "overlap", "video\nleaks", "share"):
        table.add_column(name, justify="right")
    for row in [*found.sets, *([found.total] if len(found.sets) > 1 else [])]:
        numbers = (row.clips, row.videos, row.leaked_clips, row.overlapping, row.leaked_videos)
        share = "-" if row.share is None else f"{100 * row.share:.2f} %"
        table.add_row(markup(row.name), *(f"{n:,}" for n in numbers), share)
    say(
        f"{train['file']}: {train['rows']:,} rows, {train['clips']:,} clips, {train['videos']:,} videos"
        + (
            f"; {train['other_split']:,} further rows are not of split train and stay as they are"
            if train["other_split"]
            else ""
        )
    )
    console.print(table)
    if train["unchecked"]:
        example = next(c.id for c in found.train.clips if c.video is None)
        say(f"Cannot be checked: {train['unchecked']:,} ids of the training list name no video, e.g. {example}.")
    for row in found.sets:
        if row.unchecked:
            say(f"Cannot be checked: {row.unchecked:,} of {row.clips:,} clips of {row.name}; their ids name no video.")
        if row.undecided:
            say(f"{row.name}: {row.undecided:,} clips share a video, and the ids do not say if it is the same clip.")
        if row.other_split:
            say(f"{row.name}: {row.other_split:,} further rows are not of split test.")
        if row.examples:
            pairs = [e["clip"] + (f" (train: {e['train']})" if e["train"] != e["clip"] else "") for e in row.examples]
            say(f"{row.name}, e.g.: {', '.join(pairs)}")
    say(
        f"Rows of the training list that leak: {train['rows_leaking_by_clip']:,} by clip, "
        f"{train['rows_leaking_by_video']:,} by video."
    )
    if clean:
        say(f"Clean list {clean['file']}: {clean['kept']:,} rows kept, {clean['removed']:,} left out by {found.by}.")
        stay = train["rows_leaking_by_video"] - clean["removed"]
        if stay:
            say(f"{stay:,} rows of videos that are evaluated stay in it; --by video leaves them out too.")
