"""What all converters share: their options, the writing of shards with a progress bar, a process pool, the reading of
loose pictures, sounds and masks, and the report of what was left out.

A converter is a function from parsed options to `Plan`s; `convert` does the rest::

    def main(argv=None):
        return convert(options("data_prep.x", __doc__, {"media": "the folder of the archive"}), plans, argv)
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from avloc.data.index import ShardError
from avloc.data.lists import read_lines, unmatched
from avloc.data.media import (
    PICTURES,
    SOUNDS,
    MediaError,
    clip_id,
    decode_picture,
    faults,
    load_picture,
    read_sound,
)
from avloc.data.schema import Audio, Frame, Sample, sample_key
from avloc.data.shards import Job, Skipped, WriteReport, make, write_json, write_shards
from avloc.files import write_whole
from avloc.processes import end_with_parent

__all__ = [
    "AS_PUBLISHED",
    "PICTURES",
    "RATE",
    "SOUNDS",
    "Plan",
    "Pool",
    "clip_boxes",
    "convert",
    "files_by_stem",
    "flac",
    "mask_png",
    "met",
    "no_twins",
    "options",
    "picture",
    "rate_option",
    "read_ids",
    "read_lines",
    "read_mask",
    "read_table",
    "read_tags",
    "run",
    "sound",
    "stored_mask",
    "unlisted",
    "unmatched",
    "unmatched_tags",
]

RATE = 16000
AS_PUBLISHED = "as_published"  # the tag of records that are read as published code reads them
ORIENTATION = 0x0112  # of EXIF
MISSING = re.compile(r"\w+ missing: ")  # reasons of records whose media may come later


@dataclass(frozen=True)
class Plan:
    """A split that a converter is ready to write.

    Attributes:
        dataset, split: of the records and of the shards' names.
        jobs: the records whose media are there; unique keys.
        missing: annotation rows without media, and media without an annotation row, each with its reason. A
            reason starts with what can be counted, then a colon: ``picture missing: <path>``.
        notes: defects met and fixes made, a sentence each; printed, and kept in the index.
        licence: for the index.
        counted: defects that only show when media are read: tag of such records to a sentence, which becomes a
            note with their number.
    """

    dataset: str
    split: str
    jobs: list[Job]
    missing: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    licence: str = ""
    counted: dict[str, str] = field(default_factory=dict)


def options(
    module: str,
    doc: str | None,
    folders: Mapping[str, str],
    published: str = "nothing differs for this set; its records get the tag as_published",
) -> argparse.ArgumentParser:
    """The options that every converter has; it adds its own.

    Args:
        module: ``data_prep.flickr``.
        doc: the module's docstring.
        folders: names of its required folder options to their help.
        published: what ``--as-published`` does.
    """
    p = argparse.ArgumentParser(
        f"python -m {module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.allow_abbrev = False
    for name, says in folders.items():
        p.add_argument(f"--{name}", type=Path, required=True, help=says)
    p.set_defaults(folders=[name.replace("-", "_") for name in folders])
    p.add_argument("--out", type=Path, required=True, help="data root; shards go to OUT/NAME")
    p.add_argument("--name", default="", help="of the set (default: the set's own)")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    p.add_argument("--num-parts", type=int, default=1, help="number of jobs that share the work")
    p.add_argument("--part", type=int, default=0, help="which of them this is, from 0")
    p.add_argument("--records-per-shard", type=int, default=500, help="(default: 500)")
    p.add_argument("--seed", type=int, default=0, help="of the order of records over shards, and of random choices")
    p.add_argument("--dry-run", action="store_true", help="count, report, and write nothing")
    p.add_argument("--as-published", action="store_true", help=published)
    return p


def rate_option(parser: argparse.ArgumentParser) -> None:
    """``--rate``, of converters whose sets are listened to at more than one. A method reads its own rate alone."""
    says = "Hz of stored sounds (default: 16000; 44100 for AudioCLIP and T-VSL, in another data root)"
    parser.add_argument("--rate", type=int, default=RATE, help=says)


def convert(
    parser: argparse.ArgumentParser,
    plans: Callable[[argparse.Namespace], Iterable[Plan]],
    argv: Sequence[str] | None = None,
) -> int:
    """A converter's ``main``: parse, plan, write. Bad options and unreadable annotations end it with a message.

    Returns:
        0 when every plan wrote at least one record (with ``--dry-run``: would have tried to).
    """
    args = parser.parse_args(argv)
    if not 0 <= args.part < args.num_parts:
        parser.error(f"--part {args.part} must lie between 0 and --num-parts {args.num_parts} minus 1")
    for name in args.folders:
        if not getattr(args, name).is_dir():
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} is not a folder")
    if args.name and not re.fullmatch(r"[a-z0-9_]+", args.name):
        parser.error(f"--name {args.name} must be of lower-case letters, digits and underscores")
    try:
        return max([run(plan, args) for plan in list(plans(args))], default=1)
    except (OSError, ValueError, ShardError) as e:
        parser.error(str(e))


MET: ContextVar[dict[str, float] | None] = ContextVar("MET", default=None)  # what the media of a record hold
AS_STORED: ContextVar[bool] = ContextVar("AS_STORED", default=False)  # pictures stay as published


def met(found: Mapping[str, float]) -> None:
    """Tell of the record that is being made what its media hold; see `avloc.data.schema.Record.media`."""
    kinds = MET.get()
    if kinds is not None:
        for kind, extent in found.items():
            kinds[kind] = max(extent, kinds.get(kind, 0.0))


def collected(make: Callable[[], Sample | None], as_stored: bool) -> Sample | None:
    """A job's sample, with what was met of its media in the record."""
    kinds, stored = MET.set({}), AS_STORED.set(as_stored)
    try:
        sample = make()
        found = MET.get()
        if sample is not None and found:
            sample.record.media = dict(sorted((found | sample.record.media).items()))
        return sample
    finally:
        MET.reset(kinds)
        AS_STORED.reset(stored)


def absent(reason: str) -> Sample | None:
    """A job whose media are not there. It keeps their place, so that they are taken when they come."""
    raise MediaError(reason)


def jobs_of(plan: Plan, as_stored: bool) -> tuple[list[Job], list[Skipped]]:
    """The jobs of a plan, those whose media are missing too, and what else is left out."""
    jobs = [replace(job, make=partial(collected, job.make, as_stored)) for job in plan.jobs]
    taken = Counter(j.key for j in plan.jobs) + Counter(s.key for s in plan.missing)
    waiting = [s for s in plan.missing if MISSING.match(s.reason) and taken[s.key] == 1]
    keys = {s.key for s in waiting}
    return [*jobs, *(Job(s.key, partial(absent, s.reason)) for s in waiting)], [
        s for s in plan.missing if s.key not in keys
    ]


NOT_MADE_OF = ("out", "name", "jobs", "num_parts", "part", "dry_run", "folders", "records_per_shard", "seed")


def recipe(args: argparse.Namespace) -> dict[str, str]:
    """What the records of a set follow from, apart from media: the options, and the content of the files among
    them."""
    made = {}
    for name, value in vars(args).items():
        if name in NOT_MADE_OF:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        parts = []
        for v in values:
            tag, _, file = str(v).rpartition("=")
            path = Path(file)
            if v is not None and not isinstance(v, bool | int | float) and path.is_file():
                # As it is read: without its byte order mark, blank lines, the kind of line ends, and its order.
                raw = [text.strip(b" \t\xef\xbb\xbf") for text in path.read_bytes().splitlines()]
                lines = sorted(filter(None, raw))
                content = hashlib.sha256(b"\n".join(lines)).hexdigest()[:16]
                parts.append(f"{tag}={content}")
            elif not path.is_dir() or not isinstance(v, Path):
                parts.append(str(v))
        made[name] = " ".join(parts)
    return made


def refuse_other_recipe(folder: Path, name: str, args: argparse.Namespace) -> None:
    """Keep what a set is made with, and refuse to go on with it in another way.

    Raises:
        ShardError: names the option that differs.
    """
    path, now = folder / ".parts" / f"{name}.made.json", recipe(args)
    if path.is_file() and list((folder / ".parts").glob(f"{name}-[0-9]*.json")):
        known = json.loads(path.read_text())
        if other := [option for option in now if option in known and known[option] != now[option]]:
            said = ", ".join(f"--{o.replace('_', '-')}" for o in other)
            raise ShardError(
                f"{folder} already holds {name}, made with another {said}. Give the new one another --name or --out, "
                f"or delete the old {name} files first."
            )
    elif not path.is_file() or json.loads(path.read_text()) != now:
        write_json(path, now)


def run(plan: Plan, args: argparse.Namespace) -> int:
    """Write a plan's shards, ``skipped-<split>.csv`` and the notes; with ``--dry-run``, say what would be written.

    Returns:
        0 when at least one record was written (or would be tried).
    """
    console = Console(stderr=True)
    if args.dry_run:
        left_out = plan.missing if args.part == 0 else []
        report = f"{plan.dataset}-{plan.split}: {len(plan.jobs)} records to write, {len(left_out)} left out"
        console.print(report, highlight=False, markup=False, soft_wrap=True)
        summarise(console, [replace(s, reason=with_remedy(s.reason)) for s in left_out], plan.notes)
        return 0 if plan.jobs else 1
    folder = args.out / plan.dataset
    refuse_other_recipe(folder, f"{plan.dataset}-{plan.split}", args)
    jobs, missing = jobs_of(plan, args.as_published)
    missing = missing if args.part == 0 else []
    tagged: Counter[str] = Counter()

    def watched(jobs: Sequence[Job]) -> Iterator[Sample | Skipped]:
        for made in pool(jobs):
            tagged.update(made.record.tags if isinstance(made, Sample) else [])
            yield made

    pool = Pool(max(1, args.jobs))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as bar:
            shown = f"{plan.dataset}-{plan.split}" + (f" part {args.part}" if args.num_parts > 1 else "")
            task = bar.add_task(shown, total=len(jobs) if args.num_parts == 1 else None)
            written = write_shards(
                folder,
                plan.dataset,
                plan.split,
                jobs,
                records_per_shard=args.records_per_shard,
                seed=args.seed,
                licence=plan.licence,
                num_parts=args.num_parts,
                part=args.part,
                mapper=watched,
                progress=lambda n: bar.advance(task, n),
            )
    finally:
        pool.close()
    skipped = [replace(s, reason=with_remedy(s.reason)) for s in (*written.skipped, *missing)]
    notes = [*plan.notes, *(f"{tagged[tag]} records {says}" for tag, says in plan.counted.items() if tagged[tag])]
    part = f"-{args.part:03d}" if args.num_parts > 1 else ""
    report_path = folder / f"skipped-{plan.split}{part}.csv"
    write_table(report_path, ["key", "reason"], ((s.key, s.reason) for s in skipped))
    if written.found:
        write_table(folder / f"media-{plan.split}{part}.csv", ["key", "what", "extent"], written.found)
    console.print(f"{written.written} records written, {len(skipped)} clips skipped", highlight=False)
    summarise(console, skipped, notes)
    if skipped:
        console.print(f"each with its reason in {report_path}", highlight=False, markup=False, soft_wrap=True)
    if written.index:
        if notes:
            write_json(written.index, json.loads(written.index.read_text()) | {"notes": notes})
        console.print(f"index: {written.index}", highlight=False, markup=False, soft_wrap=True)
    elif args.num_parts > 1:
        console.print("the index is written by the job that finishes the last part", highlight=False)
    holds(console, written)
    return 0 if written.written else 1


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode(errors="backslashreplace"))  # names may be no UTF-8


KINDS = {
    "silent": "silent: no sample above -80 dB",
    "constant": "a constant instead of a sound",
    "clipped": "clipped: samples over 1",
    "antiphase": "antiphase: right undoes left, the left one is heard",
    "short": "short: the sound ends early",
    "gaps": "gaps in the sound, silence of their length",
    "damaged": "damaged: what decodes is used",
    "first_frame_late": "pictures begin late: the first one is taken",
    "turned": "turned upright",
    "hdr": "high dynamic range, mapped to that of a screen",
    "converted": "pictures scaled to 8 bits, or laid on black",
}


ALWAYS = ("silent", "short", "turned", "damaged")  # are counted in the table where there are none, too


def holds(console: Console, written: WriteReport) -> None:
    """The table of what a set holds."""
    table = Table("the set holds", "", box=None, show_header=False)
    table.add_row("clips", str(written.written))
    table.add_row("seconds of sound", f"{written.seconds:.1f}")
    kinds = Counter(kind for _, kind, _ in written.found)
    for kind in (*ALWAYS, *sorted(set(kinds) - set(ALWAYS))):
        extent = sum(e for _, k, e in written.found if k == kind)
        lost = f" ({extent:.2f} s lost)" if kind == "damaged" and extent else ""
        table.add_row(KINDS.get(kind, kind), f"{kinds[kind]}{lost}")
    console.print(table)


def summarise(console: Console, skipped: Sequence[Skipped], notes: Sequence[str]) -> None:
    for reason, n in Counter(kind_of(s.reason) for s in skipped).most_common():
        console.print(f"  {n:6d}  {reason}", highlight=False, markup=False, soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


REMEDIES = {
    "no annotation row": "Leave it out, or get the annotation file that speaks of it.",
    "not in the csv": "Get the official csv, which has it.",
    "boxes missing": "Get the official box file.",
    "annotation missing": "Get the archive of annotations, and run again.",
    "missing: ": "Get the file and run again: it is taken then.",
    "crashed": "Convert it with FFmpeg, or leave it out.",
    "several videos of one id": "Keep one of them.",
}


def with_remedy(reason: str) -> str:
    """A reason that says what to do about it, as those of damaged files do already."""
    if re.search(r"[.)] [A-Z][^.]*\.$", reason):
        return reason
    remedy = next((told for kind, told in REMEDIES.items() if kind in reason), "Get the file again, or leave it out.")
    if ": " in reason:
        return f"{reason.rstrip('.')}. {remedy}"
    return f"{reason}: {remedy[0].lower()}{remedy[1:]}"


def kind_of(reason: str) -> str:
    """A reason without its file name, so that equal ones can be counted."""
    for kind in (
        "video missing",
        "several videos of one id",
        "is damaged",
        "changed while it was read",
        "no sound",
        "no picture",
        "zero length",
        "cannot be decoded",
        "no decodable frame",
    ):
        if kind in reason:
            return kind
    return reason.partition(": ")[0]


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
                    return Skipped(job.key, "the decoder crashed on this video")

    def close(self) -> None:
        self.executor.shutdown(cancel_futures=True)


def picture(path: Path, name: str = "f0", **fields: Any) -> tuple[bytes, Frame]:
    """A loose picture as it is: PNG and JPEG keep their bytes, others become PNG. So do those that would be seen
    otherwise than they are meant: lying by their EXIF orientation, of 16 bits, or transparent (not with
    ``--as-published``).

    Args:
        path: the file.
        name: of the member, without suffix.
        fields: further fields of the `Frame`, e.g. ``t`` and ``annotated``.

    Raises:
        MediaError: absent, truncated, or no picture.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as e:
        raise MediaError(f"picture missing: {path} is not there. Check the folder, or download it.") from e
    except OSError as e:
        raise MediaError(f"{path} cannot be decoded as a picture ({e}). Check its rights, or leave it out.") from e
    shown, stored = decode_picture(data, path)
    suffix = {"PNG": "png", "JPEG": "jpg"}.get(stored.format or "")
    if suffix is None:
        data, suffix = png(shown), "png"
    elif not AS_STORED.get() and (changed := what_changes(stored, shown)):
        data, suffix = png(shown), "png"
        met({changed: 1.0})
    else:
        shown = stored
    return data, Frame(f"{name}.{suffix}", *shown.size, *shown.size, **fields)


def what_changes(stored: Image.Image, shown: Image.Image) -> str:
    """Why a picture's own bytes would be seen otherwise than they are meant; "" where they would not."""
    if stored.getexif().get(ORIENTATION, 1) not in (0, 1):
        return "turned"
    plain = stored.mode in ("RGB", "L", "P", "1", "CMYK", "YCbCr") and "transparency" not in stored.info
    return "" if plain or np.array_equal(np.asarray(stored.convert("RGB")), np.asarray(shown)) else "converted"


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def sound(
    path: Path, name: str = "a0", *, rate: int = RATE, seconds: float | None = None, **fields: Any
) -> tuple[bytes, Audio]:
    """A loose sound as 16-bit FLAC, mono or stereo as it is (more channels are mixed down to stereo, as players do).

    A 16-bit file of the wanted rate keeps its samples exactly; others are resampled by soxr.

    Args:
        path: what soundfile or FFmpeg reads.
        name: of the member, without suffix.
        rate: Hz of the result.
        seconds: keep at most that much from the start; None for all.
        fields: further fields of the `Audio`, e.g. ``role``, ``src_id``, ``clip_start``.

    Raises:
        MediaError: absent, unreadable, without samples, with samples that are not finite, or of more than an hour.
    """
    if not path.is_file():
        raise MediaError(f"sound missing: {path} is not there. Check the folder, or download it.")
    wave, own = read_sound(path, rate, seconds)
    if not len(wave):
        raise MediaError(f"{path} has no sound (no samples). Download it again, or leave it out.")
    met(faults(wave.T if wave.dtype == np.float32 else (wave.T / np.float32(32768)).astype(np.float32)))
    if own != rate:
        wave = soxr.resample(wave, own, rate)
    if seconds is not None:
        wave = wave[: round(seconds * rate)]
    return flac(wave, rate), Audio(
        f"{name}.flac", duration=len(wave) / rate, rate=rate, channels=wave.shape[1], **fields
    )


def flac(wave: NDArray[Any], rate: int = RATE) -> bytes:
    """``[n]`` or ``[n, channels]`` as 16-bit FLAC; int16 exactly, floats clipped to [-1, 1]."""
    data = io.BytesIO()
    wave = wave if wave.dtype == np.int16 else np.clip(wave, -1, 1)
    soundfile.write(data, wave, rate, format="FLAC", subtype="PCM_16")
    return data.getvalue()


def read_mask(path: Path, above: int = 127) -> NDArray[np.bool_]:
    """Foreground of a mask file, bool ``[h, w]``: stored values (palette indices as they are; of colours, the
    largest channel) greater than ``above``. A mask of zeros and ones counts its ones whatever ``above`` is.

    Raises:
        MediaError: absent or unreadable.
    """
    image = stored_mask(path)
    # As stored: converting to Pillow's mode "1" would dither, and expanding a palette would lose its indices.
    pixels = np.asarray(image.convert("RGB") if image.mode in ("RGBA", "LA", "PA", "CMYK") else image)
    if pixels.ndim == 3:
        pixels = pixels.max(2)
    return pixels > (above if pixels.max(initial=0) > 1 else 0)


def stored_mask(path: Path) -> Image.Image:
    """A mask or index map as it is stored, in whatever mode.

    Raises:
        MediaError: absent or unreadable.
    """
    try:
        return load_picture(path.read_bytes())
    except FileNotFoundError as e:
        raise MediaError(f"mask missing: {path} is not there. Check the folder, or download it.") from e
    except (OSError, ValueError) as e:
        raise MediaError(f"{path} cannot be decoded as a mask ({e}). Download it again, or leave it out.") from e


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """A bool ``[h, w]`` as 1-bit PNG."""
    return png(Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("1", dither=Image.Dither.NONE))


def clip_boxes(raw: Sequence[Sequence[float]]) -> tuple[list[list[float]], bool]:
    """Boxes ``[n, 4]`` clipped to [0, 1], and whether that changed any. Infinite corners are clipped, NaN is an error.

    Raises:
        ValueError: a box without four numbers, or with NaN.
    """
    if any(len(b) != 4 or any(math.isnan(v) for v in b) for b in raw):
        raise ValueError(f"boxes {raw} are not four numbers each. Get the annotation file again.")
    boxes = np.array(raw, np.float64).reshape(-1, 4)
    clipped = np.clip(boxes, 0.0, 1.0)
    return clipped.tolist(), bool((clipped != boxes).any())


def read_table(
    path: Path, columns: Sequence[str], header: bool = False, clips: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Rows of a csv by column name, stripped; empty lines are nothing, quoted commas stay, missing last columns are "".

    Args:
        path: the file; with or without a final newline, LF or CRLF.
        columns: what its columns are called.
        header: whether the first line names the columns; then ``columns`` must all be among them.
        clips: columns that name clips, which are read however they are written (see `avloc.data.media.clip_id`).

    Raises:
        ValueError: a line with more fields than columns, or a header without one of them; names the line.
    """
    lines = read_lines(path)
    names = list(columns)
    if header:
        names = lines[0][1] if lines else []
        if absent := [c for c in columns if c not in names]:
            raise ValueError(f"{path} has no column {absent[0]}, only {', '.join(names)}. Is it the official file?")
        lines = lines[1:]
    for n, line in lines:
        if len(line) > len(names):
            raise ValueError(f"{path}, line {n}: expected {','.join(names)}, got {line}. Quote what holds a comma.")
    rows = [dict(zip(names, line + [""] * (len(names) - len(line)), strict=True)) for _, line in lines]
    return [row | {name: clip_id(row[name]) for name in clips} for row in rows] if clips else rows


def read_ids(path: Path) -> set[str]:
    """The first column of a list, with or without further columns; clips as ``<id>_<start, 6 digits>`` however they
    are written (see `avloc.data.media.parse_id`)."""
    return {clip_id(line[0]) for _, line in read_lines(path) if line[0]}


def unmatched_tags(tags: Mapping[str, Iterable[str]], known: Iterable[str]) -> list[str]:
    """`unmatched` of the lists of tags."""
    ids = set(known)
    return [note for tag, of in tags.items() for note in unmatched(of, ids, f"the list of the tag {tag}")]


def read_tags(options: Sequence[str]) -> dict[str, set[str]]:
    """``TAG=FILE`` options to the ids that carry each tag.

    Raises:
        ValueError: an option of another form.
    """
    pairs = [option.partition("=") for option in options]
    if bad := [option for option, (tag, _, file) in zip(options, pairs, strict=True) if not (tag and file)]:
        raise ValueError(f"--tag {bad[0]} is not of the form TAG=FILE, e.g. heard=vggss_heard_test.csv")
    return {tag: read_ids(Path(file)) for tag, _, file in pairs}


def no_twins(ids: Iterable[str], where: Path | str) -> None:
    """Refuse ids that occur twice.

    Raises:
        ValueError: names the first of them.
    """
    twins = [id for id, n in Counter(ids).items() if n > 1]
    if twins:
        shown = ", ".join(twins[:5]) + (", ..." if len(twins) > 5 else "")
        raise ValueError(f"{where}: {len(twins)} ids occur more than once ({shown}). Get the official file again.")


def files_by_stem(folder: Path, suffixes: Sequence[str] = PICTURES) -> dict[str, Path]:
    """Files of a folder by name without suffix, sorted; {} when the folder is absent.

    Raises:
        ValueError: two files of one stem, e.g. ``a.jpg`` and ``a.png``, or a folder that cannot be read.
    """
    try:
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as e:
        raise ValueError(f"{folder} cannot be read ({e.strerror or e}). Check its rights.") from e
    paths = [p for p in inside if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    no_twins((p.stem for p in paths), folder)
    return {p.stem: p for p in paths}


def unlisted(dataset: str, found: Iterable[str], listed: Iterable[str], what: str = "picture") -> list[Skipped]:
    """Media that no annotation row speaks of, for `Plan.missing`."""
    known = {name for id in listed for name in (id, clip_id(id))}
    return [
        Skipped(sample_key(dataset, id), f"no annotation row for this {what}")
        for id in sorted(set(found))
        if id not in known and clip_id(id) not in known
    ]
