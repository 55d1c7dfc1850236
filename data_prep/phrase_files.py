"""Files of object phrases: the journal of finished rows, the records of a set, and texts that were made elsewhere."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from avloc.bounds import parsed_json
from avloc.data.index import UNREADABLE, Index, ShardError, members, read_shard, remote
from avloc.data.lists import unmatched
from avloc.data.schema import Record, SchemaError
from avloc.files import write_whole

__all__ = ["Journal", "Names", "is_file_of_texts", "names_of", "read_texts", "say"]


class Journal:
    """Finished rows of one step, one JSON line each, on the disk before the next batch begins.

    Every part of a run writes a file of its own and reads those of all parts. A line that a killed run left unfinished
    is dropped. A clip is known by its key: whoever gives other media the same keys deletes the folder.

    Args:
        folder: of the set's journals; made when absent.
        step: ``image``, ``audio`` or ``phrase``.
        made_by: settings that the rows follow from; rows of others lie in other files.
        part, num_parts: of this run.

    Attributes:
        rows: texts by what they answer: a record's key, for phrases with the digest of the request.
    """

    def __init__(self, folder: Path, step: str, made_by: Mapping[str, str], part: int = 0, num_parts: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        told = json.dumps({"step": step, **made_by}, sort_keys=True)
        self.name = f"{step}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
        self.folder, self.path = folder, folder / f"{self.name}.{part}-of-{num_parts}.jsonl"
        self.rows: dict[str, str] = {}
        self.troubles: dict[str, str] = {}
        cut_torn_line(self.path)
        if not self.path.exists():
            write_whole(self.path, told + "\n")
        self.read()

    def read(self) -> dict[str, str]:
        """All finished rows, those of other parts included."""
        for path in sorted(self.folder.glob(f"{self.name}.*.jsonl")):
            for line in path.read_bytes().split(b"\n")[1:]:
                try:
                    unit, text, trouble = parsed_json(line)
                except ValueError:
                    continue  # torn, or being written by another part
                if unit not in self.rows or not trouble:
                    self.rows[unit], self.troubles[unit] = text, trouble
        return self.rows

    def add(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Write finished rows (what is answered, text, what was wrong), and wait until they are on the disk."""
        rows = list(rows)
        with self.path.open("a", encoding="utf-8") as f:
            f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            f.flush()
            os.fsync(f.fileno())
        for unit, text, trouble in rows:
            self.rows[unit], self.troubles[unit] = text, trouble


def cut_torn_line(path: Path) -> None:
    """Drop what follows the last line break."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as f:
                f.truncate(whole)
        if not whole:
            path.unlink()


@dataclass(frozen=True)
class Names:
    """The records of a set: keys by shard, and the key of each id."""

    shards: list[list[str]]
    by_id: dict[str, str]

    @property
    def all(self) -> list[str]:
        return [key for shard in self.shards for key in shard]


def names_of(index: Index, progress: Callable[[int], None] = lambda n: None) -> Names:
    """Read the keys and ids of all shards.

    Raises:
        ShardError: a shard cannot be read, or holds another number of records than the index promises.
    """
    shards: list[list[str]] = []
    by_id: dict[str, str] = {}
    for number in range(len(index.shards)):
        keys = []
        for key, meta in metas_of(index.locate(number)):
            keys.append(key)
            try:
                by_id[Record.from_json(meta).id] = key
            except SchemaError:
                continue
        if len(keys) != (promised := index.shards[number].count):
            raise ShardError(
                f"{index.locate(number)} holds {len(keys)} records, its index promises {promised}. Get or write this "
                "shard again."
            )
        shards.append(keys)
        progress(len(keys))
    return Names(shards, by_id)


def metas_of(url: str) -> Iterator[tuple[str, bytes]]:
    """Key and ``meta.json`` of each record of a shard; of a local one, nothing else is read."""
    if remote(url):
        yield from ((str(raw["__key__"]), raw.get("meta.json", b"")) for raw in read_shard(url))
        return
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(url, "r:") as tar:
            for info in members(tar, url, Path(url).stat().st_size):
                key, dot, member = info.name.removeprefix("./").partition(".")
                if not key or not dot:
                    continue
                found.setdefault(key, b"")
                if member == "meta.json" and (f := tar.extractfile(info)):
                    found[key] = f.read()
    except UNREADABLE as e:
        raise ShardError(f"{url} cannot be read ({type(e).__name__}: {e}). Get or write this shard again.") from e
    yield from found.items()


def read_texts(path: Path, column: str, names: Names, console: Console | None = None) -> dict[str, str]:
    """Texts by the records' keys from JSON lines or a csv with ``key`` and a column.

    Args:
        path: ``.jsonl``, ``.json``, ``.csv`` or ``.tsv``.
        column: ``caption`` or ``phrase``.
        names: of the set; keys of other records are passed over.
        console: is told how many these are.

    Raises:
        ValueError: a line that is no row, or no key of the file is one of the set's; names file and line.
    """
    texts: dict[str, str] = {}
    others: list[str] = []
    keys = set(names.all)
    for n, row in rows_of(path):
        if not isinstance(row.get("key"), str) or not isinstance(row.get(column), str | None) or column not in row:
            raise ValueError(f"{path}, line {n}: a row needs a text called key and one called {column}, got {row}.")
        key = row["key"] if row["key"] in keys else names.by_id.get(row["key"], "")
        if key:
            texts[key] = row[column] or ""
        else:
            others.append(row["key"])
    if not texts:
        shown = f"the file has {', '.join(others[:2]) or 'no rows'}, the set {', '.join(names.all[:2])}"
        raise ValueError(f"{path}: none of its keys is a key or id of the set: {shown}. Is it of another set?")
    if console is not None:
        for note in unmatched(others, (), path):
            say(console, f"note: {note}")
    return texts


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as f:
        if path.suffix in (".csv", ".tsv"):
            yield from enumerate(csv.DictReader(f, delimiter="," if path.suffix == ".csv" else "\t"), start=2)
            return
        for n, line in enumerate(f, start=1):
            if not line.strip():
                continue
            try:
                row = parsed_json(line)
            except ValueError as e:
                raise ValueError(f"{path}, line {n} is not JSON ({e}). Write one object per line.") from e
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {n} is no object with key and text. Write one object per line.")
            yield n, row


def is_file_of_texts(source: str) -> bool:
    return Path(source).suffix in (".jsonl", ".json", ".csv", ".tsv")


def say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
