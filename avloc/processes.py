"""No process outlives the one that it works for, however that one ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait

__all__ = ["GRACE", "STARTED_BY", "TERMINATED", "alive", "end_with_my_parent", "end_with_parent", "name_to_children"]

PARENT = "AVLOC_PARENT"
STARTED_BY = "AVLOC_STARTED_BY"
"""Which `avloc train` started a run: two that train one experiment at once tell theirs by it."""
TERMINATED = 143
"""Exit code of what a signal ended: 128 and SIGTERM's number, as shells say."""
GRACE = float(os.environ.get("AVLOC_GRACE", "60"))
"""Seconds from a signal to a process's end, whatever holds it up. ``AVLOC_GRACE`` sets another time."""
PATIENCE = 5.0
"""Seconds that a process has to end by itself where the one that started it may just have been the faster."""


def end_with_parent(*_: object) -> None:
    """In a worker of `multiprocessing`, however it was started: end when the process that asked for it has ended.

    A worker that waits for work never learns of that otherwise: its siblings hold the other end of its queue. An
    initialiser, of pools as of a loader's workers, whose number it is given.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True, name="end-with-parent").start()


def watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(TERMINATED)


def end_with_my_parent() -> None:
    """In a program that `name_to_children`'s process started: be asked to end (SIGTERM) `PATIENCE` after that
    one has ended, and end `GRACE` later at the latest."""
    named = os.environ.pop(PARENT, None)
    if named is not None and (os.getppid() == int(named) or not alive(int(named))):
        threading.Thread(target=follow, args=(int(named),), daemon=True, name="end-with-my-parent").start()


def follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(PATIENCE)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(TERMINATED)


def alive(process: int) -> bool:
    """Whether a process of this machine lives, whoever's it is."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def name_to_children() -> Iterator[None]:
    """Programs of avloc that are started meanwhile know whom to end with."""
    before = os.environ.get(PARENT)
    os.environ[PARENT] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(PARENT, None)
        if before is not None:
            os.environ[PARENT] = before
