"""Writing shards, and the index that says what is in them. Reading them is `avloc.data.index`.

``<folder>/<name>-<split>-000000.tar`` ... and ``<folder>/<name>-<split>.json``. What goes into which shard follows from
the keys, the groups and the seed alone, so it is decided before any media is read: a writer that was killed goes on
where it stopped, several jobs can write parts of one set, and media never pile up in memory.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import webdataset

from avloc.data.index import Index, Shard, ShardError, read_shard
from avloc.data.media.files import signature
from avloc.data.schema import SCHEMA_VERSION, Record, Sample
from avloc.files import one_at_a_time, part_of, sweep, write_whole

__all__ = ["Job", "ShardWriter", "Skipped", "WriteReport", "make", "write_json", "write_shards"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A sample that can be made when its turn comes.

    Attributes:
        key: the record's key (`avloc.data.schema.sample_key`).
        make: gives the sample, or None to skip it; what it raises is reported as the reason for skipping.
        group: jobs of one group end up side by side in one shard; "" for none.
    """

    key: str
    make: Callable[[], Sample | None]
    group: str = ""


@dataclass(frozen=True)
class Skipped:
    """A job without a sample, and why."""

    key: str
    reason: str


@dataclass
class WriteReport:
    """What `write_shards` did.

    Attributes:
        index: path of the index; None while other parts are unwritten.
        written: records in the shards of this part, kept ones included.
        skipped: every job of this part that gave no sample.
        found: key, kind and extent of what was met when media were read (`Record.media`).
        seconds: of all sounds.
        tags: how many records of the whole set, as far as it is written, have each tag.
    """

    index: Path | None
    written: int
    skipped: list[Skipped]
    found: list[tuple[str, str, float]] = field(default_factory=list)
    seconds: float = 0.0
    tags: Counter[str] = field(default_factory=Counter)


UNFORESEEN = "{}: {}. Get the file again, or leave it out."


def make(job: Job) -> Sample | Skipped:
    """The sample of a job, or why there is none. Runs in a worker process where the caller maps with a
    pool."""
    try:
        sample = job.make()
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise
        return Skipped(job.key, UNFORESEEN.format(type(e).__name__, e))
    except ValueError as e:
        return Skipped(job.key, str(e))  # those name their remedy
    except Exception as e:
        return Skipped(job.key, UNFORESEEN.format(type(e).__name__, e))
    return sample or Skipped(job.key, "nothing was made")


def write_shards(
    folder: Path | str,
    name: str,
    split: str,
    jobs: Iterable[Job | Sample],
    *,
    records_per_shard: int = 500,
    seed: int = 0,
    licence: str = "",
    num_parts: int = 1,
    part: int = 0,
    mapper: Callable[[Sequence[Job]], Iterator[Sample | Skipped]] = lambda jobs: map(make, jobs),
    progress: Callable[[int], None] = lambda n: None,
) -> WriteReport:
    """Write a set, or the rest of it: finished shards with the same plan are kept. A job that was skipped, or whose
    media were damaged, is done again when its files are others than before, or there at last. Of two processes that
    write the same, the second waits for the first.

    Args:
        folder: made when absent.
        name, split: of the set; part of the file names.
        jobs: samples, or jobs that make them; unique keys. Their order does not matter.
        records_per_shard: jobs per shard; skipped ones leave a shard with fewer records.
        seed: of the order of records over shards.
        licence: for the index.
        num_parts, part: write only the part-th of num_parts ranges of shards; the job that finishes the last
            of all ranges writes the index.
        mapper: ``map(make, jobs)`` in another way, e.g. with a pool of processes; keeps the order.
        progress: called with the number of further jobs done.

    Raises:
        ShardError: duplicate keys, a job's sample with another key, no space left (nothing half-written
            stays), or the folder holds a set of that name with other records.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    todo = sorted((j if isinstance(j, Job) else as_job(j) for j in jobs), key=lambda j: j.key)
    twins = [a.key for a, b in pairwise(todo) if a.key == b.key]
    if twins:
        raise ShardError(f"{name}-{split}: key {twins[0]} occurs twice ({len(twins)} such keys). Keys must be unique.")
    plan = pack(todo, records_per_shard, seed)
    files = [f"{name}-{split}-{i:06d}.tar" for i in range(len(plan))]
    mine = np.array_split(np.arange(len(plan)), num_parts)[part].tolist()
    share = f"{name}-{split}" + (f"-{part}-of-{num_parts}" if num_parts > 1 else "")
    with one_at_a_time(folder / ".parts" / f"{share}.lock", str(folder / share)):
        refuse_other_plan(
            folder, f"{name}-{split}", {f: fingerprint(jobs) for f, jobs in zip(files, plan, strict=True)}
        )
        for i in mine:
            note = finished(folder, files[i], fingerprint(plan[i]))
            if note is None:
                write_one(folder, files[i], plan[i], mapper, progress)
            elif again := to_try_again(note, plan[i]):
                write_one(folder, files[i], plan[i], mapper, progress, note, again)
            else:
                progress(len(plan[i]))
    notes = {i: finished(folder, files[i], fingerprint(plan[i])) for i in range(len(plan))}
    own = [note for i in mine if (note := notes[i])]
    report = WriteReport(
        index=None,
        written=sum(n["count"] for n in own),
        skipped=[Skipped(*s) for n in own for s in n["skipped"]],
        found=[(key, kind, extent) for n in own for key, kind, extent in n.get("found", [])],
        seconds=sum(n.get("seconds", 0.0) for n in own),
        tags=sum((Counter(n.get("tags", {})) for n in notes.values() if n), Counter()),
    )
    if all(notes.values()):
        report.index = write_index(folder, name, split, [n for n in notes.values() if n], licence)
    return report


class ShardWriter:
    """Collect samples of a small set and write them when the ``with`` block ends without an error.

    Media stay in memory until then: for a large set, use `write_shards` with jobs.

    Args:
        folder, name, split, records_per_shard, seed, licence: see `write_shards`.
    """

    def __init__(
        self,
        folder: Path | str,
        name: str,
        split: str,
        records_per_shard: int = 500,
        seed: int = 0,
        licence: str = "",
    ) -> None:
        self.folder, self.name, self.split = Path(folder), name, split
        self.options: dict[str, Any] = dict(records_per_shard=records_per_shard, seed=seed, licence=licence)
        self.samples: list[Sample] = []
        self.report: WriteReport | None = None

    def add(self, record: Record, members: dict[str, bytes]) -> None:
        """One more sample.

        Raises:
            SchemaError: the record is invalid, or promises a member that is not there.
        """
        sample = Sample(record, members)
        record.validate()
        for member in record.members:
            sample.member(member)
        self.samples.append(sample)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.report = write_shards(self.folder, self.name, self.split, self.samples, **self.options)


def as_job(sample: Sample) -> Job:
    return Job(sample.key, lambda: sample, sample.record.group or "")


def pack(jobs: Sequence[Job], per_shard: int, seed: int) -> list[list[Job]]:
    """Jobs of each shard: groups in a random order, never cut (a group larger than a shard makes one of its
    own)."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault(("group", job.group) if job.group else ("key", job.key), []).append(job)
    units = list(groups.values())
    shards: list[list[Job]] = []
    for i in np.random.default_rng(seed).permutation(len(units)):
        if not shards or len(shards[-1]) + len(units[i]) > per_shard:
            shards.append([])
        shards[-1].extend(units[i])
    return shards


def fingerprint(jobs: Sequence[Job]) -> str:
    """Identity of a shard's plan: schema version and keys in order."""
    return hashlib.sha256("\n".join([str(SCHEMA_VERSION), *(j.key for j in jobs)]).encode()).hexdigest()


def refuse_other_plan(folder: Path, name: str, plan: dict[str, str]) -> None:
    """Finished shards of other records are somebody's work, and are not written over.

    Raises:
        ShardError: the folder holds such shards of the same name.
    """
    for note in sorted((folder / ".parts").glob(f"{name}-[0-9]*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            known = json.loads(note.read_text())
            if known["plan"] != plan.get(known["file"]):
                raise ShardError(
                    f"{folder} already holds {name} made of other records, or with another seed or shard size "
                    f"({known['file']}). Choose another name or folder, or delete the old {name} files first."
                )


def note_path(folder: Path, file: str) -> Path:
    return folder / ".parts" / f"{file.removesuffix('.tar')}.json"


def finished(folder: Path, file: str, plan: str) -> dict[str, Any] | None:
    """The note about a shard that is complete and of this plan, else None."""
    try:
        note = json.loads(note_path(folder, file).read_text())
        same = note["plan"] == plan and (not note["count"] or (folder / file).stat().st_size == note["bytes"])
    except (OSError, ValueError, KeyError):
        return None
    return note if same else None


def media_state(value: Any) -> str:
    """Sizes and times of the files that a job reads: of all paths, and members of archives, that its function is bound
    to. "" for none."""
    if isinstance(value, Job):
        return media_state(value.make)
    if isinstance(value, Path) or type(value).__name__ == "Member":
        return signature(value)
    if isinstance(value, functools.partial):
        value = [*value.args, *value.keywords.values()]
    elif is_dataclass(value) and not isinstance(value, type | Record):
        value = [getattr(value, f.name) for f in fields(value)]
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return " ".join(filter(None, map(media_state, value)))
    return ""


def to_try_again(note: dict[str, Any], jobs: Sequence[Job]) -> set[str]:
    """Keys of jobs that gave nothing, or something damaged, whose files are others now."""
    states = note.get("states", {})
    reasons = dict(note["skipped"])
    damaged = {key for key, kind, _ in note.get("found", []) if kind == "damaged"}
    again = set()
    for job in jobs:
        if job.key in reasons or job.key in damaged:
            now = media_state(job)
            # Shards of earlier versions do not tell states: what was missing is looked for.
            known = states.get(job.key, "" if "missing" in reasons.get(job.key, "") else now)
            if now and now != known:
                again.add(job.key)
    return again


def kept_records(url: Path, again: set[str]) -> dict[str, dict[str, bytes]]:
    """Members of the records of a finished shard that stay, by key; none of a shard that cannot be read."""
    try:
        raws = {str(raw["__key__"]): raw for raw in read_shard(str(url))} if url.is_file() else {}
    except ShardError:
        return {}
    return {
        key: {name: data for name, data in raw.items() if not name.startswith("__")}
        for key, raw in raws.items()
        if key not in again
    }


def write_one(
    folder: Path,
    file: str,
    jobs: Sequence[Job],
    mapper: Callable[[Sequence[Job]], Iterator[Sample | Skipped]],
    progress: Callable[[int], None],
    before: dict[str, Any] | None = None,
    again: set[str] = frozenset(),  # type: ignore[assignment]
) -> None:
    """Make and write one shard under a temporary name; give it its own name when it is whole and on the
    disk.

    Args:
        before: the note about the finished shard that it replaces, whose records stay, but for those of the keys
        again: that are to be made anew.
    """
    sweep(folder, file)
    temporary = part_of(folder / file)
    skipped: list[tuple[str, str]] = []
    found: list[tuple[str, str, float]] = []
    states: dict[str, str] = {}
    classes: Counter[str] = Counter()
    tags: Counter[str] = Counter()
    count = units = 0
    seconds = 0.0
    kept = kept_records(folder / file, again) if before else {}
    reasons = {key: reason for key, reason in before["skipped"] if key not in again} if before else {}
    old_states = before.get("states", {}) if before else {}
    todo = [j for j in jobs if j.key not in kept and j.key not in reasons]
    try:
        with temporary.open("wb") as f:
            with webdataset.TarWriter(f, encoder=False, mtime=0, user="avloc", group="avloc") as tar:
                fresh = mapper(todo)
                for job in jobs:
                    made: Sample | Skipped
                    if job.key in kept:
                        meta = kept[job.key].pop("meta.json")
                        made = Sample(Record.from_json(meta), kept[job.key])
                        state = old_states.get(job.key)
                    elif job.key in reasons:
                        made, state = Skipped(job.key, reasons[job.key]), old_states.get(job.key)
                    else:
                        state = media_state(job)
                        made = next(fresh)
                        if isinstance(made, Sample):
                            meta = made.record.to_json().encode()
                    if isinstance(made, Skipped):
                        skipped.append((made.key, made.reason))
                    else:
                        if made.key != job.key:
                            raise ShardError(f"{file}: the job {job.key} made a sample with the key {made.key}.")
                        tar.write({"__key__": made.key, "meta.json": meta, **made.members})
                        classes[made.record.label] += 1
                        tags.update(made.record.tags)
                        count += 1
                        units += len(made.record.scored)
                        seconds += sum(a.duration for a in made.record.audios)
                        found += [(made.key, kind, extent) for kind, extent in made.record.media.items()]
                    if state is not None and (isinstance(made, Skipped) or "damaged" in made.record.media):
                        states[job.key] = state
                    progress(1)
            f.flush()
            os.fsync(f.fileno())
        size = temporary.stat().st_size
        with temporary.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        note = dict(
            file=file,
            count=count,
            bytes=size,
            sha256=digest,
            units=units,
            plan=fingerprint(jobs),
            classes=classes,
            tags=tags,
            skipped=skipped,
            found=found,
            seconds=round(seconds, 3),
            states=states,
        )
        if count:
            temporary.replace(folder / file)
        write_json(note_path(folder, file), note)
    except OSError as e:
        raise no_space(folder, file, e) from e
    finally:
        temporary.unlink(missing_ok=True)


def write_index(folder: Path, name: str, split: str, notes: Sequence[dict[str, Any]], licence: str) -> Path:
    shards = [
        Shard(n["file"], n["count"], n["bytes"], n["sha256"], n["units"] if "units" in n else units_of(folder, n))
        for n in notes
        if n["count"]
    ]
    classes = sum((Counter(n["classes"]) for n in notes), Counter())
    index = Index(name, split, sum(s.count for s in shards), shards, dict(sorted(classes.items())), licence)
    path = folder / f"{name}-{split}.json"
    content = {"schema": index.schema} | asdict(index)
    del content["url"]
    try:
        write_json(path, content)
    except OSError as e:
        raise no_space(folder, path.name, e) from e
    return path


def units_of(folder: Path, note: dict[str, Any]) -> int:
    """Scored frames in a shard whose note is of an earlier version."""
    return sum(len(Record.from_json(raw["meta.json"]).scored) for raw in read_shard(str(folder / note["file"])))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1))


def no_space(folder: Path, file: str, error: OSError) -> Exception:
    if error.errno != errno.ENOSPC:
        return error
    return ShardError(
        f"No space left in {folder} while writing {file}; what was begun is removed, finished shards stay. "
        "Free some space and run the same command again: it goes on from there."
    )
