"""Evaluation sets: every sample once, by its place, however many processes share the work."""

from __future__ import annotations

import logging
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from avloc.data.schema import Record, Sample, SampleError
from avloc.data.shards import ShardError, check_member, read_index, remote
from avloc.data.transforms import Item, make_item, make_sound
from avloc.types import InputSpec

__all__ = ["EvalSet", "StridedSampler"]

log = logging.getLogger(__name__)


class EvalSet(Dataset[Item]):
    """The scored units of a set, map-style: with ``spec.frames`` 1, every annotated frame of every record.

    Tar headers and every ``meta.json`` are read once, here; media when a unit is asked for. Collate its items
    with `avloc.data.transforms.collate`.

    Args:
        index_path: the set's index JSON, a local file.
        spec: what the method wants.
        tags: only records with all of these.
        truth_size: side G of the ground-truth maps.
        shuffle_sound: a seed gives every record the sound of another one, of another class wherever that is
            possible: the control for a method that does not listen.
        allow_missing: how many broken units are tolerated. Such a unit becomes a blank row with ``index`` -1,
            which must not be scored, and is listed in `missing`. Counted per process.
        name: what results are called by; the set's own name by default.

    Raises:
        ShardError: the index or a shard is unreadable or damaged, no record has the tags, or too few records
            to shuffle.
        SampleError: a ``meta.json`` is invalid.
    """

    def __init__(
        self,
        index_path: Path | str,
        spec: InputSpec,
        tags: tuple[str, ...] = (),
        truth_size: int = 224,
        shuffle_sound: int | None = None,
        allow_missing: int = 0,
        name: str | None = None,
    ) -> None:
        if remote(str(index_path)):
            raise ShardError(f"{index_path}: evaluation reads by place and needs local files. Download the set first.")
        self.spec, self.truth_size, self.allow_missing = spec, truth_size, allow_missing
        self.index = read_index(index_path)
        self.name = name or self.index.dataset
        self.shuffled = shuffle_sound is not None
        self.records: list[Record] = []
        self.places: list[dict[str, tuple[int, int, int]]] = []  # member -> shard, offset, bytes
        for shard in range(len(self.index.shards)):
            self._scan(shard, set(tags))
        if not self.records:
            raise ShardError(f"{self.name}: no record has the tags {', '.join(tags)}. Check them for a misspelling.")
        self.units = [(r, frame) for r in range(len(self.records)) for frame in self._scored(r)]
        self.partner = derangement(self.records, shuffle_sound) if shuffle_sound is not None else None
        self._missing = torch.zeros(len(self.units), dtype=torch.bool).share_memory_()  # seen by all workers
        self._files: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.units)

    @property
    def count(self) -> int:
        """Units that an evaluation must have counted at its end."""
        return len(self.units)

    @property
    def missing(self) -> list[str]:
        """Keys of the broken units that this process met."""
        return [self.key(i) for i in self._missing.nonzero().flatten().tolist()]

    def key(self, i: int) -> str:
        """Name of unit i: the record's key, with ``.f<frame>`` where several frames of it are scored."""
        record, frame = self.units[i]
        several = len(self._scored(record)) > 1
        return self.records[record].key + (f".f{frame}" if several else "")

    def sample(self, record: int) -> Sample:
        """A record with the bytes of all of its members."""
        return Sample(self.records[record], {m: self._read(*place) for m, place in self.places[record].items()})

    def __getitem__(self, i: int) -> Item:
        record, frame = self.units[i]
        try:
            sound = None if self.partner is None else make_sound(self.sample(self.partner[record]), self.spec)
            item = make_item(self.sample(record), self.spec, frame, truth_size=self.truth_size, sound=sound)
            item.index = i
        except SampleError as e:
            item = self._blank(i, e)
        item.key = self.key(i)
        return item

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}  # file handles stay in their process

    def _scored(self, record: int) -> list[int]:
        frames = [f for f, frame in enumerate(self.records[record].frames) if frame.annotated] or [0]
        if self.spec.frames > 1 and len(frames) > 1:
            raise ShardError(
                f"{self.name}: {self.records[record].key} has {len(frames)} scored frames, the method takes "
                f"{self.spec.frames} at once; such a set is scored frame by frame, with InputSpec.frames 1."
            )
        return frames

    def _scan(self, shard: int, tags: set[str]) -> None:
        path, entry = Path(self.index.locate(shard)), self.index.shards[shard]
        found: defaultdict[str, dict[str, tuple[int, int, int]]] = defaultdict(dict)
        try:
            if path.stat().st_size != entry.bytes:
                raise ShardError(f"{path} has {path.stat().st_size} bytes, its index says {entry.bytes}. Get it again.")
            with tarfile.open(path, "r:") as tar:
                for info in tar:
                    if info.isreg():
                        key, _, member = check_member(info.name, str(path)).partition(".")
                        found[key][member] = (shard, info.offset_data, info.size)
        except (OSError, tarfile.TarError) as e:
            raise ShardError(f"{path} cannot be read ({e}). Get or write this shard again.") from e
        if len(found) != entry.count:
            raise ShardError(f"{path} holds {len(found)} records, its index promises {entry.count}. Write it again.")
        with path.open("rb") as f:
            for key, places in found.items():
                if "meta.json" not in places:
                    raise SampleError(f"{key}: member meta.json is missing from {path}. Write this shard again.")
                _, offset, size = places.pop("meta.json")
                f.seek(offset)
                record = Record.from_json(f.read(size))
                if tags <= set(record.tags):
                    self.records.append(record)
                    self.places.append(places)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        if shard not in self._files:
            self._files[shard] = open(self.index.locate(shard), "rb")  # noqa: SIM115 kept open for the next units
        self._files[shard].seek(offset)
        return self._files[shard].read(size)

    def _blank(self, i: int, error: SampleError) -> Item:
        if not self._missing[i]:
            self._missing[i] = True
            log.warning("Missing in %s: %s", self.name, error)
        if int(self._missing.sum()) > self.allow_missing:
            raise SampleError(
                f"{self.name}: {error} An evaluation counts every sample; set allow_missing above "
                f"{self.allow_missing} to go on without some, and the report will say how many."
            ) from error
        record, size, spec = self.records[self.units[i][0]], self.spec.image_size, self.spec
        shape = (3, size, size) if spec.frames == 1 else (spec.frames, 3, size, size)
        no_truth = record.map_rule == "none" and record.sounding
        empty = np.zeros((max(1, len(record.targets)), self.truth_size, self.truth_size), np.float32)
        return Item(
            key=record.key,
            image=np.zeros(shape, np.uint8),
            audio=np.zeros(spec.samples, np.float32),
            truth=None if no_truth else empty,
            class_id=[-1] * len(record.targets),
            label=[""] * len(record.targets),
            sounding=False,
        )


class StridedSampler(DistributedSampler[int]):
    """Units ``range(rank, n, world)``: all of them once over all processes, none padded, none dropped.

    It is a ``DistributedSampler`` because Lightning leaves those alone, whatever ``use_distributed_sampler``
    says.

    Args:
        rank: this process.
        n: units of the set.
        world: number of processes.

    Raises:
        ValueError: fewer units than processes; an idle process makes its peers crash or hang.
    """

    def __init__(self, rank: int, n: int, world: int) -> None:
        if n < world:
            raise ValueError(f"A set of {n} samples cannot be shared by {world} processes. Use at most {n}.")
        super().__init__(range(n), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.places = range(rank, n, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def derangement(records: list[Record], seed: int) -> list[int]:
    """For each record another one, and one of another class unless a class holds more than half of all.

    With records sorted by class, a step by the size of the largest class leaves every class behind.

    Raises:
        ShardError: a single record.
    """
    n = len(records)
    if n < 2:
        raise ShardError("Sounds cannot be shuffled in a set of one record.")
    random = np.random.default_rng(seed)
    labels = np.array([r.label for r in records])
    names, kind, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((random.permutation(n), random.permutation(len(names))[kind]))
    step = min(int(sizes.max()), n // 2) if len(names) > 1 else int(random.integers(1, n))
    partner = np.empty(n, np.int64)
    partner[order] = np.roll(order, -step)
    return partner.tolist()
