"""A process pool that a video which kills its decoder costs that video only."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from avloc.data.schema import Sample
from avloc.data.shards import Job, Skipped, make
from avloc.processes import end_with_parent

__all__ = ["CRASHED", "Pool"]

CRASHED = "the decoder crashed on this video: convert it with FFmpeg, or leave it out."


class Pool:
    """``map(make, jobs)`` over processes, in order. A video that kills its process costs that video only.

    Args:
        processes: their number.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.executor = self.start()

    def start(self, processes: int | None = None) -> ProcessPoolExecutor:
        context = get_context("forkserver")
        context.set_forkserver_preload(["data_prep.common"])
        return ProcessPoolExecutor(processes or self.processes, mp_context=context, initializer=end_with_parent)

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Sample | Skipped]:
        waiting: deque[tuple[Job, Future[Sample | Skipped]]] = deque()
        for job in jobs:
            waiting.append((job, self.submit(job)))
            if len(waiting) >= 4 * self.processes:  # enough to keep all busy, few enough to hold in memory
                yield self.result(*waiting.popleft())
        while waiting:
            yield self.result(*waiting.popleft())

    def submit(self, job: Job) -> Future[Sample | Skipped]:
        try:
            return self.executor.submit(make, job)
        except BrokenProcessPool:
            self.executor = self.start()
            return self.executor.submit(make, job)

    def result(self, job: Job, future: Future[Sample | Skipped]) -> Sample | Skipped:
        try:
            return future.result()
        except BrokenProcessPool:
            with self.start(1) as alone:  # all jobs in flight fail together; alone, only the guilty one does
                try:
                    return alone.submit(make, job).result()
                except BrokenProcessPool:
                    return Skipped(job.key, CRASHED)

    def close(self) -> None:
        self.executor.shutdown(cancel_futures=True)
