"""Training batches from tars: every process reads its own share, in an order that can be resumed.

Raw bytes wait in a window until the plan (`avloc.data.plan`) emits them; only what is emitted is decoded, in
the worker, into ready batches. The epoch and the first batch are shared with the workers through shared
memory, so workers that live on from epoch to epoch see them, under every start method and without a process
group.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from avloc.data.index import Index, ShardError, read_shard
from avloc.data.items import Item, clip_frames, collate, first_scored, make_item, sample_rng
from avloc.data.phrases import Phrases
from avloc.data.plan import EpochPlan, WorkerShare
from avloc.data.schema import Record, Sample, SampleError, SchemaError
from avloc.data.stored import FeatureStore
from avloc.data.views import Grid, grid_of
from avloc.escapes import one_line
from avloc.processes import end_with_parent
from avloc.types import AVBatch, InputSpec

__all__ = ["Frames", "ResumableLoader", "TrainStream", "loader_options"]

log = logging.getLogger(__name__)
Raw = dict[str, bytes]
Unit = tuple[Raw, int | None]  # a record and one of its frames, or None where the frame is still to be chosen
Frames = Literal["random", "all"]
IGNORE = 255  # of semantic maps: not to be scored


class TrainStream(IterableDataset[AVBatch]):
    """Ready-collated training batches; give it to a ``DataLoader(batch_size=None)``.

    Pictures are cropped and flipped at random, and so are the maps where there are any, by the same draw. A sample
    is called by the frame that is seen of it where its record has several annotated ones: `Record.unit`. A method that
    takes clips (``InputSpec.clip``) gets all frames of a record side by side, cropped and flipped alike.

    Args:
        index: of the set.
        spec: what the method wants.
        batch: samples per batch of this process; of whole clips, a multiple of ``InputSpec.clip``.
        rank, world: this process and their number, passed explicitly: neither the environment nor a process
            group can be relied on inside of a loader worker (Lightning's own launcher sets no ``RANK``, and a worker
            that does not know it reads every shard).
        workers: of the loader; 0 and 1 give the same order.
        seed: of order and augmentation.
        buffer: window of the shuffle, records per worker.
        truth_size: side G of the ground-truth and semantic maps for supervised training, or their height and width;
            None for no maps. A record without any is a broken one.
        frames: ``random``: each record is seen once per epoch, of several annotated frames a random one. ``all``: each
            annotated frame is a sample of its own, and a record without any is none. Clips have all of them anyway.
        store: features of all samples, which go into ``AVBatch.stored``; None for none.
        fraction: train on the first part of every shard only; shards are written in random order, so it is a random
            part of the set, the same in every epoch and run.
        phrases: object phrases of all samples, which go into ``AVBatch.phrase``; None for none.
        verify: compare the SHA-256 of a shard with what the index says when a worker first opens it; of a remote one
            when it was read to its end.

    Raises:
        ShardError: the set does not fill one batch per process; or all frames are wanted of an index that does not
            tell how many there are, or by a method that takes several at once; or clips are to be fed stored features,
            or are not what a batch consists of.
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
        truth_size: Grid | None = None,
        frames: Frames = "random",
        store: FeatureStore | None = None,
        fraction: float = 1.0,
        phrases: Phrases | None = None,
        verify: bool = False,
    ) -> None:
        self.verify = verify
        self.index, self.spec, self.rank, self.seed, self.truth_size = index, spec, rank, seed, truth_size
        # A clip has the frames of a whole record, which is the unit then.
        self.frames: Frames = "random" if spec.clip > 1 else frames
        self.store, self.phrases = store, phrases
        if spec.clip > 1 and (store or batch % spec.clip):
            raise ShardError(
                f"{index.dataset}-{index.split}: the method takes clips of {spec.clip} frames, each of which needs its "
                f"picture: data.stored must be false, and the {batch} samples of a step a multiple of {spec.clip}."
            )
        counts = tuple(s.count for s in index.shards) if self.frames == "random" else self._units_of_shards()
        if not 0 < fraction <= 1:
            raise ShardError(f"data.train_fraction {fraction:g} must lie above 0 and not above 1.")
        self.counts = tuple(math.ceil(round(fraction * n, 9)) for n in counts)
        try:
            self.plan = EpochPlan(self.counts, batch // spec.clip, world, max(1, workers), seed, buffer)
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
            clips = self._batch(rows, window, share, epoch, number)
            yield collate([item for clip in clips for item in clip])

    def _windows(self, share: WorkerShare, skip: int) -> Iterator[tuple[list[int], dict[int, Unit]]]:
        """Batches as places, and raw samples by place; reads no further than the next batch needs."""
        batches = share.batches[skip:].tolist()
        wanted = {place for rows in batches for place in rows}
        arrivals = self._read(share.shard.tolist(), share.position.tolist())
        window: dict[int, Unit] = {}
        seen = -1
        for rows in batches:
            while seen < max(rows):
                seen, raw = next(arrivals)
                if seen in wanted:
                    window[seen] = raw
            yield rows, {place: window.pop(place) for place in rows}

    def _read(self, shards: list[int], positions: list[int]) -> Iterator[tuple[int, Unit]]:
        """(place, raw sample) for consecutive runs of ascending positions in a shard."""
        place = 0
        while place < len(shards):
            shard = shards[place]
            count = 0
            units = self._units(shard)
            for count, raw in enumerate(units, start=1):
                if count - 1 == positions[place]:
                    # Of a record that fell in two, one half would take the place of the last.
                    last = self.frames == "random" and count == self.index.shards[shard].count
                    if last and next(units, None):
                        raise self._other_count(shard, f"over {count}")
                    yield place, raw
                    place += 1
                    if place == len(shards) or shards[place] != shard or positions[place] < count:
                        break
            else:
                raise self._other_count(shard, str(count))

    def _other_count(self, shard: int, count: str) -> ShardError:
        what = "records" if self.frames == "random" else "annotated frames"
        return ShardError(
            f"{self.index.locate(shard)} holds {count} {what}, its index promises {self.counts[shard]}. "
            "Get or write this shard again."
        )

    def _units(self, shard: int) -> Iterator[Unit]:
        """The raw samples of a shard, front to back."""
        told, unreadable = 0, None
        for raw in read_shard(self.index.locate(shard), self.index.shards[shard], self.verify):
            if self.frames == "random":
                yield raw, None
                continue
            try:
                scored = Record.from_json(raw.get("meta.json", b"")).scored
            except SchemaError:
                unreadable = raw
                continue
            told += len(scored)
            yield from ((raw, frame) for frame in scored)
        if unreadable:
            # Nobody knows how many frames it had: the places that are left over stand for them, as broken samples.
            yield from [(unreadable, None)] * (self.counts[shard] - told)

    def _units_of_shards(self) -> tuple[int, ...]:
        name = f"{self.index.dataset}-{self.index.split}"
        if self.spec.frames > 1:
            raise ShardError(
                f"{name}: data.frames all shows one annotated frame after the other, but the method takes "
                f"{self.spec.frames} at once. Use data.frames random."
            )
        counts = [s.units for s in self.index.shards if s.units is not None]
        if len(counts) < len(self.index.shards):
            raise ShardError(
                f"{self.index.url} was written before indexes told the number of annotated frames, which data.frames "
                "all needs. Delete this file and run the command that wrote the set again (finished shards are "
                "kept), or use data.frames random."
            )
        return tuple(counts)

    def _batch(
        self, rows: list[int], window: dict[int, Unit], share: WorkerShare, epoch: int, worker: int
    ) -> list[list[Item]]:
        """The decoded samples, each of one row or of those of a clip; a broken one gives way to a spare that is not in
        the batch yet."""
        items = [self._decode(window[place], epoch, worker) for place in rows]
        if all(items):
            return [i for i in items if i]
        good = [i for i in items if i]
        if not good:
            raise SampleError(
                f"All {len(rows)} samples of a training batch of {self.index.dataset} are broken "
                "(the log names them). Write the set again, or check that sample rate and method agree."
            )
        keys = {i[0].key for i in good}
        spares = (s for s in self._spares(share, rows[0], epoch, worker) if s[0].key not in keys)
        # When no spare is good, a neighbour is seen twice: batches stay full, so no rank waits for another.
        return [item or next(spares, good[n % len(good)]) for n, item in enumerate(items)]

    def _spares(self, share: WorkerShare, first: int, epoch: int, worker: int) -> Iterator[list[Item]]:
        """Good spares, beginning at one that depends on the batch alone, so that a resumed run takes the
        same."""
        n = len(share.spares)
        for i in range(n):
            shard, position = share.spares[(first + i) % n].tolist()
            for _, unit in self._read([shard], [position]):
                if item := self._decode(unit, epoch, worker):
                    yield item

    def _decode(self, unit: Unit, epoch: int, worker: int) -> list[Item] | None:
        raw, frame = unit
        key = str(raw["__key__"])
        try:
            if "meta.json" not in raw:
                raise SchemaError(f"{key}: member meta.json is missing. Write its shard again.")
            record = Record.from_json(raw["meta.json"])
            if self.spec.clip > 1:
                return self._clip(Sample(record, raw), epoch)
            rng = sample_rng(self.seed, epoch, key if frame is None else record.unit(frame))
            frame = self._frame(record, frame, rng)
            name = record.unit(frame) if self.spec.frames == 1 else record.key
            stored = self.store.row(name) if self.store else {}
            picture = self.spec.picture or not stored
            item = make_item(Sample(record, raw), self.spec, frame, rng, self.truth_size, picture=picture)
            item.key, item.stored = name, stored
            item.phrase = self.phrases.of(record) if self.phrases else None
            return [item]
        except SampleError as e:
            if key not in self.named:
                self.named.add(key)
                log.warning("Replaced a broken training sample: %s (shard record %s)", one_line(e), one_line(key))
            self.broken_by_worker[worker] += 1
            return None

    def _clip(self, sample: Sample, epoch: int) -> list[Item]:
        """The rows of a record's clip.

        Raises:
            SampleError: it has not the frames of a clip, or no truth in supervised training, or is broken.
        """
        record = sample.record
        items: list[Item] = []
        frames = clip_frames(record, self.spec)
        if self.truth_size is not None:
            self._frame(record, first_scored(record), sample_rng(self.seed, epoch, record.key))
        for frame in frames:
            # The same draw for every frame: a clip is cropped and flipped as one.
            rng = sample_rng(self.seed, epoch, record.key)
            item = make_item(sample, self.spec, frame, rng, self.truth_size)
            item.key, item.clip, item.annotated = f"{record.key}.f{frame}", record.key, record.frames[frame].annotated
            item.phrase = self.phrases.of(record) if self.phrases else None
            items.append(item)
        if any(item.semantic is not None for item in items):
            assert self.truth_size is not None
            unknown = np.full(grid_of(self.truth_size), IGNORE, np.int64)
            for item in items:
                item.semantic = unknown if item.semantic is None or not item.annotated else item.semantic
        if not all(item.annotated for item in items):
            for item in items:
                item.truth = item.truth if item.annotated or item.truth is None else np.zeros_like(item.truth)
        return items

    def _frame(self, record: Record, frame: int | None, rng: np.random.Generator) -> int:
        """The frame that is trained on: ``frame`` where that is chosen already.

        Raises:
            SampleError: there is no annotated one, or there are no maps, in supervised training.
            ShardError: several, of which the method would see more than one at once.
        """
        frames = record.scored
        if self.truth_size is None and (frame is not None or self.spec.frames > 1 or len(frames) < 2):
            return first_scored(record) if frame is None else frame
        if self.truth_size is None:
            return frames[int(rng.integers(len(frames)))]
        semantic = bool(frames) and record.frames[frames[0]].semantic is not None
        if not frames or not (record.has_maps or semantic):
            raise SampleError(
                f"{record.key} has no annotated frame with maps, and supervised training needs one. "
                "Train on another set, or with data.truth false."
            )
        if self.spec.frames > 1 and len(frames) > 1:
            raise ShardError(
                f"{record.key} has {len(frames)} annotated frames, the method takes {self.spec.frames} at once; "
                "supervised training goes frame by frame, with InputSpec.frames 1."
            )
        return frames[int(rng.integers(len(frames)))] if frame is None else frame


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
        names = ("samples", "batch_size", "processes", "num_workers", "seed", "shuffle_buffer")
        pairs = zip(names, state["order"], self.state_dict()["order"], strict=True)
        changed = [f"{name} was {was}, is {now}" for name, was, now in pairs if was != now]
        if changed:
            log.warning("The order of training samples changes after this checkpoint: %s.", "; ".join(changed))


def loader_options(num_workers: int) -> dict[str, Any]:
    """How every loader of the package starts its workers."""
    options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": torch.cuda.is_available()}
    if num_workers:
        # Decoding sound is reported to deadlock in forked workers (open_clip starts its own so too). What is
        # imported before the fork server forks is not imported again by every worker of every loader.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["avloc.data.stream", "avloc.data.indexed"])
        options |= {"multiprocessing_context": context, "worker_init_fn": end_with_parent}
    return options
