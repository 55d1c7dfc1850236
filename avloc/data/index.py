"""A set's index, and its shards read front to back: what `avloc.data.shards` wrote."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import webdataset

from avloc.data.schema import SCHEMA_VERSION

__all__ = ["Index", "Shard", "ShardError", "check_member", "read_index", "read_shard", "remote"]


class ShardError(RuntimeError):
    """A shard or index cannot be written or read as a whole."""


@dataclass(frozen=True)
class Shard:
    """One tar of a set: file name (or path, URL, ``pipe:`` command), records, bytes, SHA-256 of the bytes, and scored
    frames of all records (`Record.scored`), which indexes of earlier versions do not tell (None)."""

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
        """Path, URL or ``pipe:`` command of a shard."""
        file = self.shards[shard].file
        if remote(file) or os.path.isabs(file):
            return file
        return f"{self.url.rpartition('/')[0]}/{file}" if "/" in self.url else file


def read_index(url: Path | str) -> Index:
    """The index of a set.

    Args:
        url: local path, URL, or ``pipe:`` command.

    Raises:
        ShardError: absent, not an index, or of an unknown schema version.
    """
    url = str(url)
    try:
        with webdataset.gopen(url) as f:
            data = json.loads(f.read())
        if data["schema"] != SCHEMA_VERSION:
            raise ShardError(
                f"{url}: schema version {data['schema']!r} is unknown, this avloc reads {SCHEMA_VERSION}. "
                "Update avloc, or write the shards again."
            )
        shards = [Shard(s["file"], s["count"], s["bytes"], s["sha256"], s.get("units")) for s in data["shards"]]
        index = Index(data["dataset"], data["split"], data["count"], shards, data["classes"], data["licence"], url=url)
        index.notes = [str(note) for note in data.get("notes", [])]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ShardError(
            f"{url} cannot be read as an index of shards ({type(e).__name__}: {e}). "
            "Name the JSON that data_prep wrote beside the tars, or run data_prep again to write it."
        ) from e
    if any(s.units is not None and not isinstance(s.units, int) for s in shards):
        raise ShardError(f"{url}: the units of a shard are no number. Run data_prep again.")
    if index.count != sum(s.count for s in shards):
        raise ShardError(f"{url}: count {index.count} is not the sum of its shards. Run data_prep again.")
    return index


def remote(url: str) -> bool:
    """Whether ``url`` is a ``pipe:`` command or has a scheme, so that it is no path."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url))


def check_member(name: str, where: str) -> str:
    """``name`` itself, if it stays inside of the tar.

    Raises:
        ShardError: an absolute path or one that climbs out.
    """
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
        raise ShardError(
            f"{where} holds a member called {name!r}, which points outside of the archive. "
            "It was not written by avloc: do not use it, get the shard from its source again."
        )
    return name


def read_shard(url: str) -> Iterator[dict[str, bytes]]:
    """Records of a tar, front to back: member name to bytes, and ``__key__``.

    Args:
        url: local path, URL, or ``pipe:`` command.

    Raises:
        ShardError: absent, unreadable or cut off, or with a member that points outside.
    """
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    try:
        with webdataset.gopen(url) as stream:
            files = tar_file_iterator(stream, rename_files=lambda n: check_member(n, url), skip_meta=None)
            yield from group_by_keys((f | {"__url__": url} for f in files), lcase=False)
    except ShardError:
        raise
    except (OSError, tarfile.TarError, ValueError, EOFError) as e:
        raise ShardError(f"{url} cannot be read ({type(e).__name__}: {e}). Get or write this shard again.") from e
