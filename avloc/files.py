"""Files that are whole or not there."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from uuid import uuid4

__all__ = ["WriteError", "complete", "write_whole"]

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
"""Of temporary files: a process number says nothing on a disk that machines share."""


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
        sweep(path)
    part = path.with_name(f".tmp-{path.name}-{HOST}-{os.getpid()}-{uuid4().hex[:8]}")
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


def sweep(path: Path) -> None:
    """Take away what killed writers of a file on this machine left beside it."""
    with suppress(OSError):
        for left in path.parent.glob(f".tmp-{escape(path.name)}-{HOST}-*-*"):
            process = left.name.split("-")[-2]
            if process.isdecimal() and not is_alive(int(process)):
                left.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


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
