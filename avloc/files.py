"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["complete"]


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A path to write to, beside the file's own, which it gets only when it is complete and on the disk."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        flush(part)
        os.replace(part, path)
        flush(path.parent)
    finally:
        part.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Ask the disk to keep a file, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
