"""Which sample is trained on when, by which process: pure functions of numbers, without any reading.

A sample is a record, or one of its annotated frames where each of them is trained on. The global order of an epoch
is the shards, permuted by (seed, epoch), with their samples side by side. It is cut into one contiguous region per
rank and, in there, one contiguous chunk per worker, counted in samples: shards of any size, and fewer shards than
workers, give every rank the same number of batches. Each worker permutes its chunk within a window, so that it can
read its tars front to back while it holds no more than that window in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EpochPlan", "WorkerShare"]


@dataclass(frozen=True)
class WorkerShare:
    """What one worker does in one epoch. Place p is the p-th sample of its chunk, in reading order.

    Attributes:
        shard: int64 ``[n]``, shard of each place; non-decreasing runs, so each tar is read once.
        position: int64 ``[n]``, place of the sample in its shard.
        batches: int64 ``[m, batch]``, the places that make up each batch.
        spares: int64 ``[batch, 2]``, (shard, position) of samples outside of the chunk that may stand in for
            broken ones; they follow it in the global order. A single chunk that is the whole epoch names its
            own.
    """

    shard: NDArray[np.int64]
    position: NDArray[np.int64]
    batches: NDArray[np.int64]
    spares: NDArray[np.int64]


@dataclass(frozen=True)
class EpochPlan:
    """The order of training.

    Args:
        counts: samples per shard.
        batch: samples per batch of a process.
        world: processes.
        workers: loader workers per process, at least 1.
        seed: of all permutations.
        buffer: window of the workers' shuffle, samples; 1 for none.

    Raises:
        ValueError: fewer samples than one batch for each process.
    """

    counts: tuple[int, ...]
    batch: int
    world: int = 1
    workers: int = 1
    seed: int = 0
    buffer: int = 2000

    def __post_init__(self) -> None:
        if min(self.batch, self.world, self.workers) < 1:
            raise ValueError(f"batch, world and workers must be at least 1: {self}.")
        if not self.length:
            raise ValueError(
                f"{self.total} samples do not fill a batch of {self.batch} on {self.world} processes. "
                "Lower batch_size or use fewer processes."
            )

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def length(self) -> int:
        """Batches per process and epoch, the same for all processes."""
        return self.total // (self.world * self.batch)

    def share(self, epoch: int, rank: int, worker: int) -> WorkerShare:
        """The chunk of one worker: batches ``worker``, ``worker + workers``, ... of its rank.

        Args:
            epoch: from 0.
            rank: below ``world``.
            worker: below ``workers``.
        """
        shards, starts = self._order(epoch)
        full = [len(range(w, self.length, self.workers)) for w in range(worker + 1)]
        start = rank * self.total // self.world + sum(full[:-1]) * self.batch
        size = full[-1] * self.batch
        place = np.arange(start, start + size + self.batch) % self.total
        run = np.searchsorted(starts, place, side="right") - 1
        shard, position = shards[run], place - starts[run]
        random = np.random.default_rng([self.seed, epoch, rank, worker])
        # Sorting by place + jitter is a shuffle in which nothing leaves its place by more than the window.
        jitter = np.arange(size) + self.buffer * random.random(size)
        batches = np.argsort(jitter, kind="stable").reshape(full[-1], self.batch)
        spares = np.stack([shard[size:], position[size:]], axis=1)
        return WorkerShare(shard[:size], position[:size], batches, spares)

    def worker_at(self, batch: int, loader_worker: int) -> tuple[int, int]:
        """Which share a DataLoader worker plays when a rank resumes at ``batch``, and how many batches it
        skips.

        A DataLoader asks its workers in turn and begins with worker 0, so that one must own batch ``batch``.
        """
        worker = (batch + loader_worker) % self.workers
        return worker, len(range(worker, batch, self.workers))

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Non-empty shards in the order of the epoch, and the global place where each begins."""
        counts = np.asarray(self.counts, dtype=np.int64)
        shards = np.random.default_rng([self.seed, epoch]).permutation(len(counts))
        shards = shards[counts[shards] > 0]
        return shards, np.concatenate([[0], np.cumsum(counts[shards])[:-1]])
