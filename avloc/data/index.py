"""A set's index, and its shards read front to back: what `avloc.data.shards` wrote.

An index and a tar may come from strangers. An index names files beside it and nothing else: only the user names a URL
or a ``pipe:`` command, that of the index, and shards are then looked for at the same place. Of a tar, regular members
with plain names are read, and no more bytes than are there.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from avloc.bounds import most, parsed_json, refuse_more
from avloc.data.schema import SCHEMA_VERSION

__all__ = [
    "Index",
    "Shard",
    "ShardError",
    "members",
    "read_index",
    "read_shard",
    "remote",
    "verify",
]

PLAIN = re.compile(r"[A-Za-z0-9_][\w.+=@-]*(/[A-Za-z0-9_][\w.+=@-]*)*", re.ASCII)
DIGEST = re.compile(r"[0-9a-f]{64}|")
UNREADABLE = (OSError, tarfile.TarError, ValueError, EOFError, MemoryError, OverflowError)


class ShardError(RuntimeError):
    """A shard or index cannot be written or read as a whole."""


@dataclass(frozen=True)
class Shard:
    """One tar of a set: its file beside the index, records, bytes, SHA-256 of the bytes, and scored frames of all
    records (`Record.scored`), which indexes of earlier versions do not tell (None)."""

    file: str
    count: int
    bytes: int
    sha256: str
    units: int | None = None


@dataclass
class Index:
    """What a set's index JSON says.

    Attributes:
        dataset, split: the set.
        count: records of all shards.
        shards: in the order of their numbers; ``file`` is relative to the index.
        classes: records per class name of their first target.
        licence: of the content.
        notes: known defects of the source and what its converter did about them.
        schema: version of the records' schema.
        url: where the index was read from.
    """

    dataset: str
    split: str
    count: int
    shards: list[Shard]
    classes: dict[str, int] = field(default_factory=dict)
    licence: str = ""
    notes: list[str] = field(default_factory=list)
    schema: int = SCHEMA_VERSION
    url: str = ""

    def locate(self, shard: int) -> str:
        """Path, URL or ``pipe:`` command of a shard: its file in the place of the index."""
        file = self.shards[shard].file
        return f"{self.url.rpartition('/')[0]}/{file}" if "/" in self.url else file


def read_index(url: Path | str) -> Index:
    """The index of a set.

    Args:
        url: local path, URL, or ``pipe:`` command.

    Raises:
        ShardError: absent, not an index, of an unknown schema version, or it names a file elsewhere or a program.
    """
    url = str(url)
    try:
        with opened(url) as f:
            data = parsed_json(f.read(int(min(most("JSON_BYTES"), 2**40)) + 1))
        if data["schema"] != SCHEMA_VERSION:
            raise ShardError(
                f"{url}: schema version {data['schema']!r} is unknown, this avloc reads {SCHEMA_VERSION}. "
                "Update avloc, or write the shards again."
            )
        refuse_more(len(data["shards"]), "SHARDS", f"it lists {len(data['shards']):,} shards")
        shards = [shard_of(s) for s in data["shards"]]
        dataset, split, licence = (text(data[name], name) for name in ("dataset", "split", "licence"))
        classes = {str(name): number(n, "the records of a class") for name, n in dict(data["classes"]).items()}
        notes = [text(note, "notes") for note in data.get("notes", [])]
        count = number(data["count"], "the records of the set")
        index = Index(dataset, split, count, shards, classes, licence, notes, url=url)
    except ShardError:
        raise
    except (*UNREADABLE, KeyError, TypeError, AttributeError) as e:
        raise ShardError(
            f"{url} cannot be read as an index of shards ({type(e).__name__}: {e}). "
            "Name the JSON that data_prep wrote beside the tars, or run data_prep again to write it."
        ) from e
    strange = [s.file[:200] for s in shards if not PLAIN.fullmatch(s.file)]
    if strange:
        raise ShardError(
            f"{url} names the shard {strange[0]!r}. An index names files beside it, and neither another place nor a "
            "program: put the shards beside it. For a remote set name the index itself by its URL or pipe: command."
        )
    if len({s.file for s in shards}) < len(shards):
        raise ShardError(f"{url} lists a shard twice. Run data_prep again.")
    if index.count != sum(s.count for s in shards):
        raise ShardError(f"{url}: count {index.count} is not the sum of its shards. Run data_prep again.")
    return index


def shard_of(told: dict[str, Any]) -> Shard:
    """One entry of an index. Raises `ValueError`, `KeyError` or `TypeError` for what is none."""
    units = told.get("units")
    digest = text(told["sha256"], "sha256")
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"sha256 {digest[:70]!r} is no digest")
    return Shard(
        text(told["file"], "file"),
        number(told["count"], "the records of a shard"),
        number(told["bytes"], "the bytes of a shard"),
        digest,
        None if units is None else number(units, "the units of a shard"),
    )


def number(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{name} are no number from 0 but {str(value)[:40]!r}")
    return value


def text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {str(value)[:40]!r} instead of a text")
    return value


def remote(url: str) -> bool:
    """Whether ``url`` is a ``pipe:`` command or has a scheme, so that it is no path."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url))


def opened(url: str) -> Any:
    """A local file, or what the user's URL or ``pipe:`` command gives, for reading."""
    if not remote(url):
        return open(url, "rb")
    import webdataset

    return webdataset.gopen(url)


class Counted:
    """A stream that ends with an error where it has given more bytes than were promised; and their SHA-256."""

    def __init__(self, stream: IO[bytes], limit: float, digest: bool) -> None:
        self.stream, self.left, self.digest = stream, limit, hashlib.sha256() if digest else None

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError("more bytes come than its index promises")
        if self.digest:
            self.digest.update(data)
        return data


def members(tar: tarfile.TarFile, where: str, end: float = float("inf")) -> Iterator[tarfile.TarInfo]:
    """The members of a shard: regular files whose names and sizes can be believed.

    Args:
        tar: opened for reading.
        where: path or URL, for messages.
        end: bytes of the tar, where they are known.

    Raises:
        ShardError: a link, a device, a hole, an absolute or climbing name, or more bytes than there are.
    """

    def refuse(info: tarfile.TarInfo, why: str) -> ShardError:
        return ShardError(
            f"{where} holds a member called {info.name[:200]!r}, which {why}. "
            "It was not written by avloc: do not use it, get the shard from its source again."
        )

    for info in tar:
        if info.isdir():
            continue
        if info.name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", info.name):
            raise refuse(info, "points outside of the archive")
        if not info.isreg() or info.issparse():
            raise refuse(info, "is no plain file but a link, a device or a file with holes")
        if info.size < 0 or info.size > most("MEMBER_BYTES") or info.offset_data + info.size > end:
            raise refuse(info, f"claims {info.size:,} bytes, which are not there or too many")
        yield info


def read_shard(url: str, shard: Shard | None = None, check: bool = False) -> Iterator[dict[str, bytes]]:
    """Records of a tar, front to back: member name to bytes, and ``__key__``.

    Args:
        url: local path, URL, or ``pipe:`` command.
        shard: what the index says of it: no more bytes are read.
        check: compare its SHA-256 with what the index says: of a local file before anything is read, else at its end.

    Raises:
        ShardError: absent, unreadable or cut off, with a member that is none of avloc's, or of other bytes than were
            promised.
    """
    local = not remote(url)
    try:
        size = os.stat(url).st_size if local else float("inf")
        if shard is not None and local and size != shard.bytes:
            raise ShardError(f"{url} has {size} bytes, its index says {shard.bytes}. Get it again.")
        if shard is not None and check and local and digest_of(url, os.stat(url).st_mtime_ns) != shard.sha256:
            raise other_bytes(url)
        with opened(url) as stream:
            promised = float("inf") if shard is None or local else shard.bytes
            counted = Counted(stream, promised, bool(check and shard and not local))
            with tarfile.open(fileobj=counted, mode="r|") as tar:  # type: ignore[call-overload]
                yield from grouped(tar, url, size)
            if counted.digest and shard:
                while counted.read(1 << 20):
                    pass
                if counted.digest.hexdigest() != shard.sha256:
                    raise other_bytes(url)
    except ShardError:
        raise
    except UNREADABLE as e:
        raise ShardError(f"{url} cannot be read ({type(e).__name__}: {e}). Get or write this shard again.") from e


def grouped(tar: tarfile.TarFile, url: str, size: float) -> Iterator[dict[str, bytes]]:
    """Members that follow each other under one key, as one record."""
    raw: dict[str, Any] = {}
    for info in members(tar, url, size):
        key, dot, name = info.name.removeprefix("./").partition(".")
        if not dot or not key:
            continue
        if raw and raw["__key__"] != key:
            yield raw
            raw = {}
        raw = raw or {"__key__": key, "__url__": url}
        if name in raw:
            raise ShardError(f"{url} holds {key}.{name} twice. Get or write this shard again.")
        refuse_more(len(raw), "MEMBERS", f"{key} has {len(raw):,} members")
        file = tar.extractfile(info)
        raw[name] = file.read() if file else b""
        if len(raw[name]) < info.size:
            raise EOFError(f"{key}.{name} is cut off")
    if raw:
        yield raw


@lru_cache(maxsize=4096)
def digest_of(path: str, changed: int) -> str:
    """SHA-256 of a file; computed once as long as it does not change."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def other_bytes(path: str) -> ShardError:
    return ShardError(
        f"{path} is not the file that its index promises: its SHA-256 is another. Get or write this shard again."
    )


def verify(index: Index, progress: Callable[[int], None] = lambda n: None) -> None:
    """Compare size and SHA-256 of every local shard with what the index says.

    Args:
        index: of the set.
        progress: called with the number of further shards that are right.

    Raises:
        ShardError: a shard is absent, or other bytes than the index promises.
    """
    for n, shard in enumerate(index.shards):
        path = index.locate(n)
        if remote(path):
            continue
        try:
            state = os.stat(path)
            same = state.st_size == shard.bytes and digest_of(path, state.st_mtime_ns) == shard.sha256
        except OSError as e:
            raise ShardError(f"{path} cannot be read ({e.strerror or e}). Get or write this shard again.") from e
        if not same:
            raise other_bytes(path)
        progress(1)
