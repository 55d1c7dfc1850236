"""What every room may raise for its user to read, and the sentence that a user reads of anything else."""

from __future__ import annotations

import errno
import os
import re

__all__ = ["UsageError", "sentence", "told_by"]


class UsageError(ValueError):
    """What was asked for does not exist or does not go together; the message names it and the remedy."""


REMEDIES = {
    errno.ENOSPC: "Free some space, or name another folder, and run the same command again.",
    errno.EDQUOT: "Your share of this disk is used up: free some space, or name another folder.",
    errno.EROFS: "That disk cannot be written to: name another folder.",
    errno.EACCES: "Check its rights, or name another file or folder.",
    errno.EPERM: "Check its rights, or name another file or folder.",
    errno.ENOENT: "Check the name.",
    errno.ENOTDIR: "A file lies where a folder is needed: name another folder.",
    errno.EISDIR: "A folder lies where a file is needed: name another file.",
    errno.ENAMETOOLONG: "Name a shorter one.",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n), or use fewer loader workers.",
    errno.EIO: "The disk reports an error: copy what is left, and check it.",
}
WORKER = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.\n")


def told_by(error: BaseException) -> BaseException | None:
    """The package's own exception in a chain of causes: those are written for users, anything else is a defect.

    jsonargparse wraps what a constructor raises.
    """
    told: BaseException | None = error
    while told is not None and type(told).__module__.split(".")[0] not in ("avloc", "data_prep"):
        told = told.__cause__
    return told


def sentence(error: BaseException) -> str | None:
    """What a user can read of an error, and mend: what the package says itself, or what is the matter with a file, the
    disk or the memory. None for anything else, which is a defect.

    A loader worker's exception brings its trace along in the text: what it said is at the end.
    """
    told = told_by(error)
    if told is not None:
        text = str(told)
        return last_words(text, type(told).__name__) if WORKER.match(text) else text
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, MemoryError):
            return "The memory is used up. Give smaller batches, pictures or files, or a machine with more."
        if isinstance(found, OSError) and found.errno in REMEDIES and found.filename is not None:
            where, why = os.fsdecode(found.filename), os.strerror(found.errno or 0)
            return f"{where} cannot be used ({why}). {REMEDIES[found.errno or 0]}"
        if isinstance(found, OSError) and found.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EIO):
            return f"{os.strerror(found.errno)}. {REMEDIES[found.errno]}"
        found = found.__cause__
    return None


def last_words(text: str, name: str) -> str:
    """What an exception said in a loader worker, without the trace before it."""
    return text.rpartition(f"{name}: ")[2].strip() or text.splitlines()[0]
