"""Training batches from tars: every process reads its own share, in an order that can be resumed.

Raw bytes wait in a window until the plan (`avloc.data.plan`) emits them; only what is emitted is decoded, in
the worker, into ready batches. The epoch and the first batch are shared with the workers through shared
memory, so workers that live on from epoch to epoch see them, under every start method and without a process
group.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from avloc.data.plan import EpochPlan, WorkerShare
from avloc.data.schema import Record, Sample, SampleError, SchemaError
from avloc.data.shards import Index, ShardError, read_shard
from avloc.data.transforms import Item, collate, make_item, sample_rng
from avloc.types import AVBatch, InputSpec

__all__ = ["ResumableLoader", "TrainStream"]

log = logging.getLogger(__name__)
Raw = dict[str, bytes]


class TrainStream(IterableDataset[AVBatch]):
    """Ready-collated training batches; give it to a ``DataLoader(batch_size=None)``.

    Pictures are cropped and flipped at random, and so are the maps where there are any, by the same draw. Each
    record is seen once per epoch: of several annotated frames, with ``truth_size``, a random one.

    Args:
        index: of the set.
        spec: what the method wants.
        batch: samples per batch of this process.
        rank, world: this process and their number, passed explicitly: neither the environment nor a process
            group can be relied on inside of a loader worker (``facts/platform.md`` section 1).
        workers: of the loader; 0 and 1 give the same order.
        seed: of order and augmentation.
        buffer: window of the shuffle, records per worker.
        truth_size: side G of the ground-truth and semantic maps for supervised training; None for no maps. A
            record without any is a broken one.

    Raises:
        ShardError: the set does not fill one batch per process.
    """

    def __init__(
        self,
        index: Index,
        spec: InputSpec,
        batch: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        seed: int = 0,
        buffer: int = 2000,
        truth_size: int | None = None,
    ) -> None:
        self.index, self.spec, self.rank, self.seed, self.truth_size = index, spec, rank, seed, truth_size
        try:
            self.plan = EpochPlan(tuple(s.count for s in index.shards), batch, world, max(1, workers), seed, buffer)
        except ValueError as e:
            raise ShardError(f"{index.dataset}-{index.split}: {e}") from e
        self.place = torch.zeros(2, dtype=torch.int64).share_memory_()
        self.broken_by_worker = torch.zeros(self.plan.workers, dtype=torch.int64).share_memory_()
        self.named: set[str] = set()

    def __len__(self) -> int:
        """Batches of this process per epoch."""
        return self.plan.length

    @property
    def broken(self) -> int:
        """How many broken samples were replaced so far, over all workers of this process."""
        return int(self.broken_by_worker.sum())

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration be that of ``epoch``, from ``batch`` on."""
        self.place.copy_(torch.tensor([epoch, batch]))

    def __iter__(self) -> Iterator[AVBatch]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        if workers != self.plan.workers:
            raise ShardError(
                f"The stream was planned for {self.plan.workers} workers but the loader has {workers}. "
                "Give both the same number."
            )
        epoch, batch = self.place.tolist()
        worker, skip = self.plan.worker_at(batch, number)
        share = self.plan.share(epoch, self.rank, worker)
        for rows, window in self._windows(share, skip):
            yield collate(self._batch(rows, window, share, epoch, number))

    def _windows(self, share: WorkerShare, skip: int) -> Iterator[tuple[list[int], dict[int, Raw]]]:
        """Batches as places, and raw records by place; reads no further than the next batch needs."""
        batches = share.batches[skip:].tolist()
        wanted = {place for rows in batches for place in rows}
        arrivals = self._read(share.shard.tolist(), share.position.tolist())
        window: dict[int, Raw] = {}
        seen = -1
        for rows in batches:
            while seen < max(rows):
                seen, raw = next(arrivals)
                if seen in wanted:
                    window[seen] = raw
            yield rows, {place: window.pop(place) for place in rows}

    def _read(self, shards: list[int], positions: list[int]) -> Iterator[tuple[int, Raw]]:
        """(place, raw record) for consecutive runs of ascending positions in a shard."""
        place = 0
        while place < len(shards):
            shard, url = shards[place], self.index.locate(shards[place])
            count = 0
            for count, raw in enumerate(read_shard(url), start=1):
                if count - 1 == positions[place]:
                    yield place, raw
                    place += 1
                    if place == len(shards) or shards[place] != shard or positions[place] < count:
                        break
            else:
                raise ShardError(
                    f"{url} holds {count} records, its index promises {self.index.shards[shard].count}. "
                    "Get or write this shard again."
                )

    def _batch(
        self, rows: list[int], window: dict[int, Raw], share: WorkerShare, epoch: int, worker: int
    ) -> list[Item]:
        """The decoded rows; a broken one gives way to a spare that is not in the batch yet."""
        items = [self._decode(window[place], epoch, worker) for place in rows]
        if all(items):
            return [i for i in items if i]
        good = [i for i in items if i]
        if not good:
            raise SampleError(
                f"All {len(rows)} samples of a training batch of {self.index.dataset} are broken "
                "(the log names them). Write the set again, or check that sample rate and method agree."
            )
        keys = {i.key for i in good}
        spares = (s for s in self._spares(share, rows[0], epoch, worker) if s.key not in keys)
        # When no spare is good, a neighbour is seen twice: batches stay full, so no rank waits for another.
        return [item or next(spares, good[n % len(good)]) for n, item in enumerate(items)]

    def _spares(self, share: WorkerShare, first: int, epoch: int, worker: int) -> Iterator[Item]:
        """Good spares, beginning at one that depends on the batch alone, so that a resumed run takes the
        same."""
        n = len(share.spares)
        for i in range(n):
            shard, position = share.spares[(first + i) % n].tolist()
            for _, raw in self._read([shard], [position]):
                if item := self._decode(raw, epoch, worker):
                    yield item

    def _decode(self, raw: Raw, epoch: int, worker: int) -> Item | None:
        key = str(raw["__key__"])
        try:
            if "meta.json" not in raw:
                raise SchemaError(f"{key}: member meta.json is missing. Write its shard again.")
            sample = Sample(Record.from_json(raw["meta.json"]), raw)
            rng = sample_rng(self.seed, epoch, key)
            frame = self._frame(sample.record, rng) if self.truth_size else None
            return make_item(sample, self.spec, frame, rng, self.truth_size)
        except SampleError as e:
            if key not in self.named:
                self.named.add(key)
                log.warning("Replaced a broken training sample: %s (shard record %s)", e, key)
            self.broken_by_worker[worker] += 1
            return None

    def _frame(self, record: Record, rng: np.random.Generator) -> int:
        """The annotated frame that is trained on.

        Raises:
            SampleError: there is none, or there are no maps.
            ShardError: several, of which the method would see more than one at once.
        """
        frames = [i for i, frame in enumerate(record.frames) if frame.annotated]
        semantic = bool(frames) and record.frames[frames[0]].semantic is not None
        if not frames or not (record.has_maps or semantic):
            raise SampleError(
                f"{record.key} has no annotated frame with maps, and supervised training needs one. "
                "Train on another set, or with data.truth false."
            )
        if record.tiles > 1:
            return 0
        if self.spec.frames > 1 and len(frames) > 1:
            raise ShardError(
                f"{record.key} has {len(frames)} annotated frames, the method takes {self.spec.frames} at once; "
                "supervised training goes frame by frame, with InputSpec.frames 1."
            )
        return frames[int(rng.integers(len(frames)))]


class ResumableLoader(DataLoader[AVBatch]):
    """A loader of a `TrainStream` that begins each epoch where ``where`` says.

    The trainer already keeps the place of the run, and corrects it after a restart, before it asks for the
    first batch. So the loader keeps no second count that could disagree: it asks when that first batch is
    wanted.

    Args:
        stream: what is loaded.
        where: gives (epoch, first batch); None to count epochs from 0.
        **options: of `torch.utils.data.DataLoader`.
    """

    def __init__(self, stream: TrainStream, where: Callable[[], tuple[int, int]] | None = None, **options: Any) -> None:
        super().__init__(stream, batch_size=None, num_workers=options.pop("num_workers", 0), **options)
        self.stream, self.epoch = stream, 0
        self.where = where or (lambda: (self.epoch, 0))

    def __iter__(self) -> Iterator[AVBatch]:  # type: ignore[override]
        epoch, batch = self.where()
        self.stream.start_at(epoch, batch)
        self.epoch = epoch + 1
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """What decides the order; the place in it is the trainer's."""
        plan = self.stream.plan
        return {"order": [plan.total, plan.batch, plan.world, plan.workers, plan.seed, plan.buffer]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Say so when a resumed run will not see what the unbroken one would have seen."""
        names = ("records", "batch_size", "processes", "num_workers", "seed", "shuffle_buffer")
        pairs = zip(names, state["order"], self.state_dict()["order"], strict=True)
        changed = [f"{name} was {was}, is {now}" for name, was, now in pairs if was != now]
        if changed:
            log.warning("The order of training samples changes after this checkpoint: %s.", "; ".join(changed))
