"""Lists of clips in every known format, and what an id says about its clip.

An id is read by what its spelling says. A YouTube id may hold ``_`` and ``-`` (718 of VGG-SS's 5,158 hold ``_``), so it
is cut at its eleventh character, never at ``_``:

==================================  ===================================================================
``<yt>_<second>``                   VGGSound, six digits: ten seconds from there
``<yt>_<start ms>_<end ms>``        SSLalignment, AVSBench-semantic: the same clip in milliseconds
``<yt>``                            AVSBench S4: somewhere in that video
``<yt>_<0 to 9000>_<5000 later>``   the same, in AVSBench-semantic: time within a VGGSound clip, not within the video
``<yt>_<k>``, ``<yt>_<part>_<k>``   AVSBench frames; ``<yt>_<part>.mp4_<k>`` in MS3
``<yt>_<second>_<frame>``           MUSIC: somewhere in that video, for every frame hears the whole of it
8 to 11 digits                      Flickr
anything else                       no video is known (VPO, IS3, ``sample0000``): only equal names are found
==================================  ===================================================================
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avloc.bounds import parsed_json
from avloc.data.index import read_index, remote
from avloc.data.lists import refuse_long
from avloc.data.schema import Record

__all__ = ["FORMATS", "AuditError", "Clip", "Listing", "Row", "read_id", "read_list", "spelling"]

WINDOW = 10_000  # ms, of a VGGSound clip
LONGEST = 20_000  # ms; what would be longer is a MUSIC second with its frame
# A YouTube id is 64 bits in base 64, so its last character has two bits to spare and takes 16 values.
YOUTUBE = r"[A-Za-z0-9_-]{10}[AEIMQUYcgkosw048]"
WORD = re.compile(r"[a-z_-]+\d*")  # dog_barking has eleven letters too; no YouTube id in the lists looks like that
SECONDS = re.compile(r"(?P<video>[\w-]{11})_(?P<start>\d{6}(?=_\d{1,2}$|$)|\d{3,5}$)(_\d{1,2})?", re.ASCII)
MILLISECONDS = re.compile(r"(?P<video>[\w-]{11})_(?P<start>0|[1-9]\d*)_(?P<end>[1-9]\d{3,})(_\d{1,2})?", re.ASCII)
MUSIC = re.compile(r"(?P<video>[\w-]{11})_\d{3}_\d{5}", re.ASCII)
UNTIMED = re.compile(rf"(?P<video>{YOUTUBE})(_(?P<first>\d+))?(_(?P<second>\d+))?", re.ASCII)
FLICKR = re.compile(r"[1-9]\d{7,10}", re.ASCII)
MEDIA = re.compile(r"\.(mp4|mkv|webm|mov|avi|wav|mp3|m4a|flac|ogg|opus|jpe?g|png|npy|pkl)$", re.IGNORECASE)

# Names of id columns, the most telling first: AVSBench's metadata have both vid and uid.
ID_COLUMNS: tuple[str, ...] = ("uid", "id", "ids", "key", "clip", "clip_id", "ytid", "youtube_id", "video_id")
ID_COLUMNS += ("video", "vid", "file", "filename", "name", "image", "path", "audio")
# Not "start": in S4's metadata that is the time within a VGGSound clip.
START_COLUMNS = ("start_seconds", "start_second", "start_sec", "time_start")
FORMATS = (
    "It takes lists of ids (text or CSV, the id in the first column), JSON lists with file, image or audio, and the "
    "index JSON that data_prep wrote beside the shards."
)


class AuditError(ValueError):
    """A list cannot be read, or nothing can be said about it."""


@dataclass(frozen=True)
class Clip:
    """What an id says about its origin.

    Attributes:
        id: as written, without folder and suffix.
        video: YouTube or Flickr id, or what a shard's record calls its video; None where unknown.
        start, end: milliseconds in the video; None where unknown.
        part: what tells clips of one video apart that have no time: number of the part of an MS3 video, id of a
            record whose video is not in its id; "" for none.
        suffix: a number that is a frame or a part: the other ids of its list decide (`settled`).
    """

    id: str
    video: str | None = None
    start: int | None = None
    end: int | None = None
    part: str = ""
    suffix: str = ""

    @property
    def source(self) -> str:
        """The video, or the name where none is known."""
        return self.video if self.video is not None else f"name {self.id}"

    @property
    def key(self) -> tuple[str, int | None, str]:
        """Equal for two spellings of one clip."""
        return self.source, self.start, self.part

    @property
    def detail(self) -> int:
        """How closely the id says where in the video the clip is."""
        return 3 if self.start is not None else 2 if self.part else 1 if self.suffix else 0

    def overlaps(self, other: Clip) -> bool:
        """Whether both show some instant of the same video; False where a time is unknown."""
        if self.start is None or self.end is None or other.start is None or other.end is None:
            return False
        return self.source == other.source and self.start < other.end and other.start < self.end

    def comparable(self, other: Clip) -> bool:
        """Whether the ids say if the clips are the same one."""
        return None not in (self.start, other.start) or bool(self.part and other.part) or self.key == other.key


@dataclass(frozen=True)
class Row:
    """A training or evaluation sample: its id, the clips that it is made of (a duet has two), its line from 0."""

    id: str
    clips: tuple[Clip, ...]
    line: int = -1


@dataclass
class Listing:
    """The rows of a list.

    Attributes:
        path: its file.
        rows: those of the wanted split.
        lines: of a text list, with their line ends; None for JSON.
        other_split: rows left alone because their split column names another split.
    """

    path: Path
    rows: list[Row]
    lines: list[bytes] | None = None
    other_split: int = 0

    @property
    def clips(self) -> list[Clip]:
        """Distinct clips in order."""
        distinct: dict[Any, Clip] = {}
        for row in self.rows:
            for clip in row.clips:
                distinct.setdefault(clip.key, clip)
        return list(distinct.values())


def read_id(text: str) -> Clip:
    """What an id or file name says about its clip."""
    name = MEDIA.sub("", re.split(r"[/\\]", text.strip())[-1])
    stem = name.partition(".")[0]  # MS3's frames are called <yt>_<part>.mp4_<k>
    if m := MUSIC.fullmatch(stem):
        return Clip(name, m["video"])
    if m := SECONDS.fullmatch(stem):
        return Clip(name, m["video"], 1000 * int(m["start"]), 1000 * int(m["start"]) + WINDOW)
    if m := MILLISECONDS.fullmatch(stem):
        start, end = int(m["start"]), int(m["end"])
        if end - start == WINDOW // 2 and start < WINDOW:
            return Clip(name, m["video"])
        if 0 < end - start <= LONGEST:
            return Clip(name, m["video"], start, end)
    if FLICKR.fullmatch(stem):
        return Clip(name, stem)
    if (m := UNTIMED.fullmatch(stem)) and not WORD.fullmatch(m["video"]):
        first = m["first"] if m["first"] and len(m["first"]) <= 2 else ""
        framed = m["second"] is not None or name != stem
        return Clip(name, m["video"], part=first if framed else "", suffix="" if framed else first)
    return Clip(name)


def spelling(id: str) -> str:
    """The id of a ten-second clip as ``<yt>_<six digits>``, any other as it is."""
    clip = read_id(id)
    if clip.start is None or clip.end is None or clip.end - clip.start != WINDOW or clip.start % 1000:
        return id
    return f"{clip.video}_{clip.start // 1000:06d}"


def settled(rows: list[Row]) -> list[Row]:
    """Decide whether ``<yt>_<k>`` is a frame or a part. Frames count from 1 to 5 and stand beside ids with a part and
    a frame; parts count from 0."""
    clips = [c for row in rows for c in row.clips]
    numbers = {c.suffix for c in clips if c.suffix}
    if not numbers or any(c.part for c in clips) or numbers <= set("12345"):
        return rows
    return [replace(r, clips=tuple(replace(c, part=c.part or c.suffix) for c in r.clips)) for r in rows]


def read_list(path: Path, split: str) -> Listing:
    """A training list or evaluation set of any known format.

    Args:
        path: of the file.
        split: whose rows are wanted where the file tells splits apart.

    Raises:
        AuditError: missing, empty, or of an unknown format.
        ShardError, SampleError: shards cannot be read.
    """
    if remote(str(path)):
        raise AuditError(f"{path} is no local file. Download it first.")
    if path.is_dir():
        inside = ", ".join(sorted(p.name for p in path.glob("*.json"))) or "it holds no JSON"
        raise AuditError(f"{path} is a folder. Name the index JSON in it ({inside}).")
    try:
        refuse_long(path)
        data = path.read_bytes()
    except FileNotFoundError:
        raise AuditError(f"{path} does not exist. {FORMATS}") from None
    except OSError as e:
        raise AuditError(f"{path} cannot be read ({e}). Check its permissions.") from e
    # A damaged one is no list of ids, line by line.
    is_json = path.suffix.lower() == ".json" or data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{")
    listing = read_json(path, data) if is_json else read_text(path, data, split)
    if not listing.rows:
        raise AuditError(f"{path} holds no ids. {FORMATS}")
    listing.rows = settled(listing.rows)
    return listing


def read_json(path: Path, data: bytes) -> Listing:
    """VGG-SS and MUSIC annotations (``file``), SSLalignment's (``image``, ``audio``), MUSIC's video lists, plain lists
    of ids, or an index of shards."""
    try:
        content = parsed_json(data)
    except ValueError as e:
        raise AuditError(f"{path} should be JSON, but is not ({e}). Get it from its source again.") from e
    if isinstance(content, dict) and "shards" in content:
        return Listing(path, read_records(path))
    if isinstance(content, dict) and isinstance(content.get("videos"), dict):
        content = [id for ids in content["videos"].values() for id in ids]
    if not isinstance(content, list):
        raise AuditError(f"{path} is JSON, but no list of annotations and no index of shards. {FORMATS}")
    rows = []
    for n, entry in enumerate(content):
        fields = entry if isinstance(entry, dict) else {"id": entry}
        ids = [fields[k] for k in ("file", "id", "uid", "image", "audio") if isinstance(fields.get(k), str)]
        if not all(i.strip() for i in ids) or not ids:
            raise AuditError(f"{path}: entry {n} has no file, image, audio or id. {FORMATS}")
        rows.append(Row(read_id(ids[0]).id, merged(map(read_id, ids))))
    return Listing(path, rows)


def read_records(path: Path) -> list[Row]:
    """Ids and videos of the records of shards; media are not read."""
    from avloc.data.indexed import EvalSet
    from avloc.types import InputSpec

    if not read_index(path).count:
        return []
    return [Row(r.id, record_clips(r)) for r in EvalSet(path, InputSpec(), verify=True).records]


def record_clips(record: Record) -> tuple[Clip, ...]:
    """The record's own clip, and those that its sounds come from."""
    own = read_id(record.id)
    if record.video is not None and own.video != record.video:
        own = Clip(record.id, record.video, part=record.id)
    sounds = [a.src_id for a in record.audios] + ([record.negative.src_id] if record.negative else [])
    return merged([own, *(c for c in map(read_id, filter(None, sounds)) if c.video is not None)])


def merged(clips: Iterable[Clip]) -> tuple[Clip, ...]:
    """Clips of one sample, without those of which a sibling of the same video tells more, and without mere names
    beside clips of a video."""
    distinct = list(dict.fromkeys(clips))
    best: dict[str | None, int] = {}
    for c in distinct:
        best[c.video] = max(best.get(c.video, 0), c.detail)
    return tuple(c for c in distinct if c.detail == best[c.video] and (c.video is not None or len(best) == 1))


def read_text(path: Path, data: bytes, split: str) -> Listing:
    """A text, CSV or tab-separated list, with or without header; lines that begin with ``#`` are comments."""
    if b"\0" in data:
        raise AuditError(f"{path} is not text. {FORMATS}")
    lines = data.splitlines(keepends=True)
    table: list[tuple[int, list[str]]] = []
    delimiter = "\t" if b"\t" in next((s for s in lines if s.strip() and not s.startswith(b"#")), b"") else ","
    for n, line in enumerate(lines):
        try:
            text = line.decode("utf-8" if n else "utf-8-sig")
            # Line by line and strictly: an unclosed quote would otherwise hide the rest of the list.
            cells = next(csv.reader([text], delimiter=delimiter, strict=True, skipinitialspace=True), [])
        except (UnicodeDecodeError, csv.Error) as e:
            raise AuditError(f"{path}, line {n + 1}: cannot be read as text or CSV ({e}). Mend this line.") from e
        if any(cell.strip() for cell in cells) and not text.startswith("#"):
            table.append((n, [cell.strip() for cell in cells]))
    header = [cell.lower() for cell in table[0][1]] if table else []
    named = set(header) & set(ID_COLUMNS) and all(read_id(c).video is None for c in table[0][1])
    if named:
        del table[0]
    else:
        header = []
    columns = id_columns(header, [cells for _, cells in table])
    splits = split_column(header, [cells for _, cells in table])
    rows = []
    for n, cells in table:
        ids = [cells[c] for c in columns if c < len(cells)]
        if len(ids) < len(columns) or not all(ids):
            raise AuditError(f"{path}, line {n + 1}: has no id in column {max(columns) + 1}. Mend this line.")
        if splits is None or cells[splits] == split:
            rows.append(Row(ids[0], merged(timed(read_id(i), header, cells) for i in ids), n))
    return Listing(path, rows, lines, len(table) - len(rows))


def id_columns(header: list[str], table: list[list[str]]) -> list[int]:
    """Columns with ids: those that the header names, or the first one and any other full of clips (duets)."""
    if {"video", "audio"} <= set(header):
        return [header.index("video"), header.index("audio")]
    if header:
        return [header.index(next(name for name in ID_COLUMNS if name in header))]
    width = min(map(len, table), default=1)
    return [0] + [c for c in range(1, width) if all(read_id(cells[c]).start is not None for cells in table)]


def split_column(header: list[str], table: list[list[str]]) -> int | None:
    """The column that tells ``train`` from ``test``: the one so named, or the fourth of the official vggsound.csv."""
    column = header.index("split") if "split" in header else 3
    full = all(len(cells) > column for cells in table)
    values = {cells[column] for cells in table} if full else set()
    official = bool(header) or values == {"train", "test"}
    return column if official and {"train", "test"} <= values else None


def timed(clip: Clip, header: list[str], cells: list[str]) -> Clip:
    """A bare YouTube id with the time that its row states in seconds: ``id,start,class,split`` as in vggsound.csv,
    ``id,start,end,labels`` as in AudioSet, or a column so named."""
    if clip.video is None or clip.id != clip.video or FLICKR.fullmatch(clip.id):
        return clip
    named = next((header.index(name) for name in START_COLUMNS if name in header), None)
    start = number(cells, 1 if named is None else named)
    end = number(cells, 2)
    if start is None or (header and named is None):
        return clip
    if header or (len(cells) == 4 and cells[3] in ("train", "val", "test")):
        return replace(clip, start=round(1000 * start), end=round(1000 * start) + WINDOW)
    if end is not None and end > start:
        return replace(clip, start=round(1000 * start), end=round(1000 * end))
    return clip


def number(cells: list[str], column: int) -> float | None:
    """The number in a column; None where there is none."""
    found = column < len(cells) and re.fullmatch(r"\d+(\.\d*)?", cells[column], re.ASCII)
    return float(cells[column]) if found else None
