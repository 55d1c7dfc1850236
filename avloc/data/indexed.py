"""Evaluation sets: every sample once, by its place, however many processes share the work."""

from __future__ import annotations

import logging
import tarfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from avloc.bounds import refuse_more
from avloc.data.index import UNREADABLE, ShardError, digest_of, members, other_bytes, read_index, remote
from avloc.data.items import Item, clip_frames, make_item, make_sound, make_truth, sample_rng
from avloc.data.labels import LABEL_SPACES
from avloc.data.media import Floats
from avloc.data.schema import Record, Sample, SampleError
from avloc.data.stored import FeatureStore
from avloc.data.views import Grid, grid_of
from avloc.types import InputSpec

__all__ = ["ANOTHER_CONTEXT", "ROWS", "Clips", "Context", "EvalSet", "Sound", "WholeBatches"]

log = logging.getLogger(__name__)

Sound = Literal["own", "shuffled", "silence", "noise"]
Context = Literal["own", "shuffled"]
ROWS = {"own": "model", "shuffled": "shuffled sound", "silence": "silenced", "noise": "noise"}
ANOTHER_CONTEXT = "another context"
NOISE_RMS = 0.1
MOST_OPEN = 64  # shards of a process: each holds a file descriptor
IGNORE = 255  # of semantic maps: not to be scored


class EvalSet(Dataset[Item]):
    """The scored units of a set, map-style: with ``spec.frames`` 1, every annotated frame of every record, under the
    record's own sound and under each of its conditions. A duet is one unit. A method that takes clips
    (``InputSpec.clip``) needs all units of a clip in one batch: `Clips`.

    Tar headers and every ``meta.json`` are read once, here; media when a unit is asked for. Collate its items
    with `avloc.data.items.collate`.

    Args:
        index_path: the set's index JSON, a local file.
        spec: what the method wants.
        tags: only records with all of these.
        truth_size: side G of the ground-truth maps, or their height and width; None for no maps.
        sound: what is heard in every unit, whatever its condition. ``shuffled`` gives every record the sound of
            another one, of another class wherever that is possible; ``silence`` is zeros; ``noise`` is Gaussian
            of rms 0.1, clipped to [-1, 1]: the controls for a method that does not listen.
        context: which picture conditions a method whose prompt depends on one. ``shuffled`` adds to every unit the
            picture of another record (`AVBatch.context`), of another class wherever that is possible; picture, sound
            and truth stay: the control for a method whose context does nothing.
        seed: of the shuffles, and of the noise together with the unit's key.
        allow_missing: how many broken units are tolerated. Such a unit becomes a blank row with ``index`` -1,
            which must not be scored, and is listed in `missing`. Counted per process.
        calibration: whether thresholds are chosen on this set instead of scored.
        name: what results are called by; the set's own name by default.
        store: features of all units, which go into ``AVBatch.stored``; None for none.
        verify: compare the SHA-256 of every shard with what the index says.

    Attributes:
        row: row of the results that the set fills: by ``sound`` "model", "shuffled sound", "silenced" or "noise", and
            "another context" for a shuffled one.

    Raises:
        ShardError: the index or a shard is unreadable or damaged, a key occurs twice, there is no record or none
            with the tags, too few records to shuffle, only some units have a semantic map, rows of different
            numbers of pictures, or a video without some frame or truth of its clip.
        SampleError: a ``meta.json`` is invalid.
    """

    def __init__(
        self,
        index_path: Path | str,
        spec: InputSpec,
        tags: tuple[str, ...] = (),
        truth_size: Grid | None = 224,
        sound: Sound = "own",
        context: Context = "own",
        seed: int = 0,
        allow_missing: int = 0,
        calibration: bool = False,
        name: str | None = None,
        store: FeatureStore | None = None,
        verify: bool = False,
    ) -> None:
        if remote(str(index_path)):
            raise ShardError(f"{index_path}: evaluation reads by place and needs local files. Download the set first.")
        self.spec, self.truth_size, self.allow_missing = spec, truth_size, allow_missing
        self.index = read_index(index_path)
        self.name = name or self.index.dataset
        if sound != "own" and context != "own":
            raise ShardError(
                f"{self.name}: sound {sound} and context {context} are two controls; ask for one at a time."
            )
        self.sound, self.context, self.seed = sound, context, seed
        self.row = ROWS[sound] if context == "own" else ANOTHER_CONTEXT
        self.calibration, self.store, self.verify = calibration, store, verify
        self.records: list[Record] = []
        self.places: list[dict[str, tuple[int, int, int]]] = []  # member -> shard, offset, bytes
        self.shard: list[int] = []  # of each record
        seen: dict[str, str] = {}
        for shard in range(len(self.index.shards)):
            self._scan(shard, set(tags), seen)
        if not seen:
            raise ShardError(f"{self.name}: {index_path} lists no record at all. Run data_prep again with its media.")
        if not self.records:
            raise ShardError(f"{self.name}: no record has the tags {', '.join(tags)}. Check them for a misspelling.")
        self.units = [
            (r, frame, condition)
            for r, record in enumerate(self.records)
            for condition in ["", *record.conditions]
            for frame in self._scored(r)
        ]
        self._check_alike()
        self.partner = derangement(self.records, seed) if sound == "shuffled" else None
        self.seen_with = derangement(self.records, seed) if context == "shuffled" else None
        self._missing = torch.zeros(len(self.units), dtype=torch.bool).share_memory_()  # seen by all workers
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()

    def __len__(self) -> int:
        return len(self.units)

    @property
    def clips(self) -> list[list[int]]:
        """The units of each clip in the order of its frames: those of one record under one sound."""
        found: dict[tuple[int, str], list[int]] = {}
        for i, (record, _, condition) in enumerate(self.units):
            found.setdefault((record, condition), []).append(i)
        return list(found.values())

    @property
    def count(self) -> int:
        """Units that an evaluation must have counted at its end."""
        return len(self.units)

    @property
    def missing(self) -> list[str]:
        """Keys of the broken units that this process met."""
        return [self.key(i) for i in self._missing.nonzero().flatten().tolist()]

    def key(self, i: int) -> str:
        """Name of unit i: the record's key, with ``.f<frame>`` where several frames of it are scored, and
        ``@<kind>`` under a condition."""
        record, frame, condition = self.units[i]
        name = self.records[record].unit(frame)
        return f"{name}@{condition}" if condition else name

    def picture(self, i: int) -> str:
        """What unit i shares with the units that show the same picture under other sounds: its interactive group, else
        its key without the condition."""
        record, frame, _ = self.units[i]
        return self.records[record].group or self.records[record].unit(frame)

    def sample(self, record: int) -> Sample:
        """A record with the bytes of all of its members."""
        return Sample(self.records[record], {m: self._read(*place) for m, place in self.places[record].items()})

    def __getitem__(self, i: int) -> Item:
        record, frame, condition = self.units[i]
        try:
            item = make_item(
                self.sample(record),
                self.spec,
                frame,
                truth_size=self.truth_size,
                sound=self._control(i),
                condition=condition,
            )
            item.index = i
            if self.seen_with is not None:
                other = self.sample(self.seen_with[self.units[i][0]])
                item.context = make_item(other, self.spec, sound=np.zeros(0, np.float32)).image
            if self.store:
                item.stored = self.store.row(self.key(i))
        except SampleError as e:
            item = self._blank(i, e)
        item.key = self.key(i)
        if self.spec.clip > 1:
            # What could not be read is nobody's neighbour.
            item.clip = item.key if item.index < 0 else f"{self.records[record].key}@{condition}"
        return item

    def mean_truth(self, rank: int = 0, world: int = 1) -> tuple[Tensor, int]:
        """Sum of the true maps of this process's share of the units, ``range(rank, n, world)``: summed over all
        processes and divided, it is the map that knows where things usually are. Reads masks alone.

        Units under a condition, whose map is that of the record's own sound, and units without a map are left
        out, and so are broken ones where ``allow_missing`` permits any.

        Returns:
            sum: float64 ``[G, G']``, ``[G, n G']`` for duets, of each unit's union over its sources.
            count: number of maps in the sum.

        Raises:
            SampleError: a mask is missing or broken, and no unit may be missing.
        """
        size = self.truth_size or 1
        height, width = grid_of(size)
        total = torch.zeros(height, width * self.records[0].tiles, dtype=torch.float64)
        count = 0
        for i in range(rank, len(self.units), world):
            record, frame, condition = self.units[i]
            if condition or not self.records[record].has_maps or self.truth_size is None:
                continue
            try:
                truth = make_truth(self.sample(record), self.spec, frame, size)
            except SampleError:
                if not self.allow_missing:
                    raise
                continue
            assert truth is not None
            total += torch.from_numpy(truth.max(0))
            count += 1
        return total, count

    @property
    def notes(self) -> list[str]:
        """Known defects of the source, and what its converter did about them."""
        return self.index.notes

    @property
    def semantic_offset(self) -> int:
        """What is added to a class id for its number in semantic maps, where 0 is the background: 1 unless the label
        space counts the background itself."""
        spaces = {t.label_space for record in self.records for t in record.targets}
        return 0 if any(LABEL_SPACES.get(s, ("",))[0] == "background" for s in spaces) else 1

    def class_counts(self) -> dict[int, int]:
        """How many records have a target of each known class, in the order of the classes; no media are read."""
        counts = Counter(c for record in self.records for c in {t.class_id for t in record.targets} if c >= 0)
        return dict(sorted(counts.items()))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}  # file handles stay in their process

    def _control(self, i: int) -> Floats | None:
        """What is heard instead of the unit's own sound; None to hear that."""
        if self.partner is not None:
            record, frame, _ = self.units[i]
            frames = self.records[record].frames
            return make_sound(self.sample(self.partner[record]), self.spec, t=frames[frame].t if frames else 0.0)
        if self.sound == "silence":
            return np.zeros(self.spec.samples, np.float32)
        if self.sound == "noise":
            wave = NOISE_RMS * sample_rng(self.seed, 0, self.key(i)).standard_normal(self.spec.samples)
            return wave.clip(-1, 1).astype(np.float32)
        return None

    def _scored(self, record: int) -> list[int]:
        if self.spec.clip > 1:
            return self._clip(self.records[record])
        if self.records[record].tiles > 1:
            if self.spec.frames > 1:
                raise ShardError(
                    f"{self.name}: {self.records[record].key} is a row of pictures, the method takes "
                    f"{self.spec.frames} frames at once; such a set is scored with InputSpec.frames 1."
                )
            if self.spec.resize == "pad":
                raise ShardError(
                    f"{self.name}: {self.records[record].key} is a row of pictures that fill their squares, the method "
                    "pads pictures; such a set is scored with InputSpec.resize squash or crop."
                )
            return [0]
        frames = self.records[record].scored or [0]
        if self.spec.frames > 1 and len(frames) > 1:
            raise ShardError(
                f"{self.name}: {self.records[record].key} has {len(frames)} scored frames, the method takes "
                f"{self.spec.frames} at once; such a set is scored frame by frame, with InputSpec.frames 1."
            )
        return frames

    def _clip(self, record: Record) -> list[int]:
        try:
            frames = clip_frames(record, self.spec)
        except SampleError as e:
            raise ShardError(f"{self.name}: {e}") from e
        if len(frames) > 1 and record.scored != frames:
            raise ShardError(
                f"{self.name}: of the {len(frames)} frames of {record.key}, only {len(record.scored)} are annotated, "
                "and clips are scored as a whole. Get the missing truth and write the set again, or set the method's "
                "frames to 1."
            )
        return frames

    def _check_alike(self) -> None:
        """Batches need units of one kind, whichever come together."""
        first = self.records[0]
        for record, frame, _ in self.units:
            other = self.records[record]
            if other.tiles != first.tiles:
                raise ShardError(
                    f"{self.name}: {first.key} shows {first.tiles} pictures side by side, {other.key} {other.tiles}. "
                    "Write them as sets of their own."
                )
            if self._has_semantic(record, frame) != self._has_semantic(*self.units[0][:2]):
                raise ShardError(
                    f"{self.name}: of {first.key} and {other.key} (frame {frame}), only one has a semantic map. "
                    "Write maps of all annotated frames, or of none."
                )

    def _has_semantic(self, record: int, frame: int) -> bool:
        frames = self.records[record].frames
        return self.truth_size is not None and bool(frames) and frames[frame].semantic is not None

    def _scan(self, shard: int, tags: set[str], seen: dict[str, str]) -> None:
        """Find the records of a shard; ``seen`` tells the shards of the keys before."""
        path, entry = Path(self.index.locate(shard)), self.index.shards[shard]
        found: defaultdict[str, dict[str, tuple[int, int, int]]] = defaultdict(dict)
        try:
            state = path.stat()
            if state.st_size != entry.bytes:
                raise ShardError(f"{path} has {state.st_size} bytes, its index says {entry.bytes}. Get it again.")
            if self.verify and digest_of(str(path), state.st_mtime_ns) != entry.sha256:
                raise other_bytes(str(path))
            with tarfile.open(path, "r:") as tar:
                for info in members(tar, str(path), state.st_size):
                    key, dot, member = info.name.removeprefix("./").partition(".")
                    if not key or not dot:
                        continue
                    if member in found[key]:
                        raise ShardError(f"{path} holds {key}.{member} twice. Get or write this shard again.")
                    found[key][member] = (shard, info.offset_data, info.size)
                    refuse_more(len(found[key]), "MEMBERS", f"{key} has {len(found[key]):,} members")
            if len(found) != entry.count:
                raise ShardError(
                    f"{path} holds {len(found)} records, its index promises {entry.count}. Write it again."
                )
            with path.open("rb") as f:
                for key, places in found.items():
                    self._add(key, places, f, path, shard, tags, seen)
        except UNREADABLE as e:
            if isinstance(e, SampleError):
                raise
            raise ShardError(f"{path} cannot be read ({e}). Get or write this shard again.") from e

    def _add(
        self,
        key: str,
        places: dict[str, tuple[int, int, int]],
        file: BinaryIO,
        path: Path,
        shard: int,
        tags: set[str],
        seen: dict[str, str],
    ) -> None:
        """One record of a shard."""
        if "meta.json" not in places:
            raise SampleError(f"{key}: member meta.json is missing from {path}. Write this shard again.")
        _, offset, size = places.pop("meta.json")
        file.seek(offset)
        record = Record.from_json(file.read(size))
        if record.key in seen:
            raise ShardError(
                f"{self.name}: key {record.key} occurs twice, in {seen[record.key]} and {path.name}. "
                "Every sample counts once: write the set again."
            )
        if record.key != key:
            raise ShardError(
                f"{path}: the record {record.key} lies under the key {key}. Get or write this shard again."
            )
        seen[record.key] = path.name
        if tags <= set(record.tags):
            self.records.append(record)
            self.places.append(places)
            self.shard.append(shard)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        path = self.index.locate(shard)
        try:
            if shard not in self._files:
                self._files[shard] = open(path, "rb")  # noqa: SIM115 kept open for the next units
                if len(self._files) > MOST_OPEN:
                    self._files.popitem(last=False)[1].close()
            self._files.move_to_end(shard)
            self._files[shard].seek(offset)
            data = self._files[shard].read(size)
        except OSError as e:
            raise ShardError(f"{path} cannot be read any more ({e.strerror or e}). Get or write it again.") from e
        if len(data) < size:
            raise SampleError(f"{path} was cut off since its index was read. Get or write it again.")
        return data

    def _blank(self, i: int, error: SampleError) -> Item:
        if not self._missing[i]:
            self._missing[i] = True
            log.warning("Missing in %s: %s", self.name, error)
        if int(self._missing.sum()) > self.allow_missing:
            raise SampleError(
                f"{self.name}: {error} An evaluation counts every sample; set allow_missing above "
                f"{self.allow_missing} to go on without some, and the report will say how many."
            ) from error
        number, frame, condition = self.units[i]
        record, size, n = self.records[number], self.spec.image_size, self.records[number].tiles
        G, G2 = grid_of(self.truth_size or 0)
        width = n * size if self.spec.duet == "wide" else size
        shape = (3, size, width) if self.spec.frames == 1 else (self.spec.frames, 3, size, size)
        sources = max(n, len(record.targets))
        return Item(
            key=record.key,
            image=np.zeros(shape, np.uint8),
            audio=np.zeros(self.spec.samples, np.float32),
            size=(size, size) if self.spec.resize == "pad" else None,
            context=None if self.seen_with is None else np.zeros(shape, np.uint8),
            truth=np.zeros((sources, G, n * G2), np.float32) if record.has_maps and self.truth_size else None,
            semantic=np.full((G, n * G2), IGNORE, np.int64) if self._has_semantic(number, frame) else None,
            class_id=[-1] * len(record.targets),
            label=[""] * len(record.targets),
            sounding=False,
            negative=condition,
            stored=self.store.blank() if self.store else {},
        )


class Clips(Dataset[list[Item]]):
    """The units of a set, those of a clip together: map-style, ``data.clips[i]`` at place i.

    Args:
        data: of a method that takes clips.
    """

    def __init__(self, data: EvalSet) -> None:
        self.data, self.places = data, data.clips

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> list[Item]:
        return [self.data[unit] for unit in self.places[i]]


class WholeBatches(DistributedSampler[int]):
    """Units of a set, dealt in whole batches: batch b, units ``b * size`` and on, is of process ``b % world``.

    All of them once over all processes, none padded, none dropped; and whatever the number of processes, the same
    units share a batch. A network's own floats differ in their last digits with the batch that a sample is in, so this
    is what makes them equal. Where there are fewer batches than processes, batches are smaller.

    It is a ``DistributedSampler`` because Lightning leaves those alone, whatever ``use_distributed_sampler``
    says.

    Args:
        rank: this process.
        n: units of the set.
        world: number of processes.
        size: units of a batch.

    Attributes:
        size: units of a batch, for the loader.

    Raises:
        ValueError: fewer units than processes; an idle process makes its peers crash or hang.
    """

    def __init__(self, rank: int, n: int, world: int, size: int) -> None:
        if n < world:
            raise ValueError(f"A set of {n} samples cannot be shared by {world} processes. Use at most {n}.")
        super().__init__(range(n), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.size = min(size, n // world)
        first = range(rank * self.size, n, world * self.size)
        self.places = [i for start in first for i in range(start, min(start + self.size, n))]

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
        raise ShardError("Sounds or contexts cannot be shuffled in a set of one record.")
    random = np.random.default_rng(seed)
    labels = np.array([r.label for r in records])
    names, kind, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((random.permutation(n), random.permutation(len(names))[kind]))
    step = min(int(sizes.max()), n // 2) if len(names) > 1 else int(random.integers(1, n))
    partner = np.empty(n, np.int64)
    partner[order] = np.roll(order, -step)
    return partner.tolist()
