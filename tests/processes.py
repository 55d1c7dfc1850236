"""Ranks that a test runs side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

__all__ = ["together"]


def together(run: Callable[..., None], args: tuple[Any, ...], ranks: int = 2) -> None:
    """``run(rank, *args)`` in a process for each rank. They are forked from a new one, since importing PyTorch and
    Lightning for each would take longer than most of what they do, and a process that has gone backward must not be."""
    mp.spawn(forked, (run, args, ranks), nprocs=1)


def forked(_: int, run: Callable[..., None], args: tuple[Any, ...], ranks: int) -> None:
    mp.start_processes(run, args, ranks, start_method="fork")
