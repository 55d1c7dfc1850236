"""Files that are whole or not there."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from avloc.processes import alive

__all__ = ["WriteError", "complete", "one_at_a_time", "part_of", "sweep", "write_whole"]

log = logging.getLogger(__name__)

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
"""Of temporary files: a process number says nothing on a disk that machines share."""

ABANDONED = 24 * 3600.0
"""Seconds after which what another machine began to write, and has not gone on with, is nobody's."""


class WriteError(OSError):
    """A file that could not be written, for want of room or of permission; the message says that nothing was lost."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"{path} could not be written ({error}). An older file of that name is untouched; free some space, or "
            "choose another place."
        )
        self.errno = error.errno


@contextmanager
def complete(path: Path, durable: bool = True) -> Iterator[Path]:
    """A path to write to, beside the file's own, which it gets only when it is complete and on the disk. Nobody else
    writes to that path.

    Args:
        path: the file.
        durable: whether the disk is waited for. Not for many small files that can be made again: those are whole after
            a kill, if not after a power cut.

    Raises:
        WriteError: it could not be written; a file of that name is as it was.
    """
    if durable:  # of many small files a folder is not searched for each
        sweep(path.parent, path.name)
    part = part_of(path)
    try:
        yield part
        if durable:
            flush(part)
        os.replace(part, path)
        if durable:
            with suppress(OSError):  # not every file system can
                flush(path.parent)
    except OSError as e:
        own = (None, str(part), str(path), str(path.parent))
        if isinstance(e, WriteError) or (e.filename and str(e.filename)) not in own:
            raise  # of something that is read meanwhile
        raise WriteError(path, e) from e
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """A name beside a file's that no other writer of it has, and that tells whose it is."""
    return path.with_name(f".tmp-{path.name}-{HOST}-{os.getpid()}-{uuid4().hex[:8]}")


def sweep(folder: Path, name: str, more: str = "") -> None:
    """Take away what killed writers left in a folder: those of this machine that run no more, and of others what
    nobody has written to for `ABANDONED`.

    Args:
        folder: where.
        name: of the file; of several files, how their names begin,
        more: and a pattern of how they go on.
    """
    with suppress(OSError):
        for left in folder.glob(f".tmp-{escape(name)}{more}-????????-*-????????"):
            *_, host, process, _ = left.name.split("-")
            if host == HOST and process.isdecimal():
                dead = not alive(int(process))
            else:
                dead = left.stat().st_mtime < time.time() - ABANDONED
            if dead:
                left.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(lock: Path, what: str) -> Iterator[None]:
    """Write something that one process writes at a time: another one waits, and says so.

    Args:
        lock: a file for this alone, which stays.
        what: is written, for people.
    """
    own, held = FileLock(lock), True
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            own.acquire(timeout=0)
        except Timeout:
            log.warning("%s is being written by another process: waiting for it", what)
            own.acquire()
    except (OSError, NotImplementedError):  # a file system without locks, or one that tells its lack of room later
        held = False
    try:
        yield
    finally:
        if held:
            own.release()


def write_whole(path: Path, content: str | bytes, durable: bool = True) -> None:
    """Write a file of text, in UTF-8, or of bytes.

    Raises:
        WriteError: see `complete`.
    """
    with complete(path, durable) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def flush(path: Path) -> None:
    """Ask the disk to keep a file, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
