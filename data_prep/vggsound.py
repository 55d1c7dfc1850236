"""VGGSound videos to shards; with VGG-SS boxes, the VGG-SS evaluation set.

    python -m data_prep.vggsound --videos clips --csv vggsound.csv --out data
    python -m data_prep.vggsound --videos clips --csv vggsound.csv --out data --split test --boxes vggss.json

Videos are the ten-second clips, named ``<YouTube id>_<start second>.mp4`` with or without leading zeros. The
csv is the official one: no header, ``id,start second,"class",split``. Run it again to go on after an
interruption. On a cluster,
give job i of N ``--num-parts N --part i``; the job that finishes last writes the index.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from avloc.data.media import MediaError, read_clip
from avloc.data.schema import Audio, Frame, Provenance, Record, Sample, Target, sample_key
from avloc.data.shards import Job, Skipped, make, write_shards

__all__ = ["Row", "main", "read_boxes", "read_rows", "vggss_target"]

RATE = 16000
SECONDS = 10.0
FRAME_TIME = 5.0  # annotations belong to the 125th frame at 25 fps (facts/datasets.md section 2.1)
LICENCE = "VGGSound annotations CC BY 4.0; videos belong to their uploaders"
CODECS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}


@dataclass(frozen=True)
class Row:
    """A line of the csv: YouTube id, start in seconds, class, official split."""

    video: str
    start: int
    label: str
    split: str

    @property
    def id(self) -> str:
        return f"{self.video}_{self.start:06d}"


@dataclass(frozen=True)
class Media:
    """How a clip is stored."""

    videos: Path
    dataset: str
    split: str
    codec: str
    short_side: int | None  # None keeps the source's resolution, losslessly


def read_rows(path: Path) -> list[Row]:
    """The official csv; class names may hold commas.

    Raises:
        ValueError: a line without four fields, or a start that is no number; names the line.
    """
    rows = []
    with path.open(newline="", encoding="utf-8") as f:
        for n, line in enumerate(csv.reader(f), start=1):
            if not line:
                continue
            if len(line) != 4 or not line[1].strip().isdigit():
                raise ValueError(
                    f'{path}, line {n}: expected id,start second,"class",split, got {line}. Use the official '
                    "vggsound.csv; a class name with a comma must be quoted."
                )
            rows.append(Row(line[0], int(line[1]), line[2], line[3].strip()))
    return rows


def read_ids(path: Path) -> set[str]:
    """Ids ``<YouTube id>_<start, 6 digits>`` of the first column of a list, with or without further
    columns."""
    with path.open(newline="", encoding="utf-8") as f:
        return {line[0].strip() for line in csv.reader(f) if line and line[0].strip()}


def read_tags(options: Sequence[str]) -> dict[str, set[str]]:
    """``TAG=FILE`` options to the ids that carry each tag.

    Raises:
        ValueError: an option of another form.
    """
    pairs = [option.partition("=") for option in options]
    if bad := [option for option, (tag, _, file) in zip(options, pairs, strict=True) if not (tag and file)]:
        raise ValueError(f"--tag {bad[0]} is not of the form TAG=FILE, e.g. heard=vggss_heard_test.csv")
    return {tag: read_ids(Path(file)) for tag, _, file in pairs}


def read_boxes(path: Path) -> dict[str, tuple[str, list[list[float]]]]:
    """``vggss.json``: id to class name and raw boxes.

    Raises:
        ValueError: not that file.
    """
    try:
        return {r["file"]: (r["class"], [list(map(float, b)) for b in r["bbox"]]) for r in json.loads(path.read_text())}
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is not VGG-SS's vggss.json ({type(e).__name__}: {e}). Get it from its page.") from e


def vggss_target(class_id: int, label: str, raw: list[list[float]]) -> Target:
    """A VGG-SS annotation. Twelve samples hold a coordinate near -2.9e16: such raw boxes are dropped, the
    clipped ones stay (``facts/datasets.md`` section 2.2)."""
    boxes = np.clip(np.array(raw, np.float64).reshape(-1, 4), 0.0, 1.0).tolist()
    sane = all(math.isfinite(v) and abs(v) <= 2 for b in raw for v in b)
    return Target(class_id, label, "vggss221", audio=0, boxes=boxes, boxes_raw=raw if sane else None)


def find_video(videos: Path, row: Row) -> Path:
    names = [f"{row.id}.mp4", f"{row.video}_{row.start}.mp4"]
    for name in names:
        if (videos / name).is_file():
            return videos / name
    raise MediaError(f"video missing: neither {names[0]} nor {names[1]} is in {videos}")


def make_sample(media: Media, row: Row, target: Target | None, class_id: int, tags: Sequence[str]) -> Sample:
    """Frame at 5 s (the middle of a shorter clip) and up to ten seconds of 16 kHz mono.

    Raises:
        MediaError: the video is missing, broken, or has no sound.
    """
    clip = read_clip(find_video(media.videos, row), SECONDS, FRAME_TIME, RATE)
    width, height = clip.frame.size
    frame, picture = encode_frame(clip.frame, media.short_side)
    container, subtype = CODECS[media.codec]
    sound = io.BytesIO()
    soundfile.write(sound, np.clip(clip.audio, -1, 1), RATE, format=container, subtype=subtype)
    suffix = "png" if media.short_side is None else "jpg"
    record = Record(
        dataset=media.dataset,
        id=row.id,
        split=media.split,
        tags=list(tags),
        video=row.video,
        frames=[Frame(f"f0.{suffix}", *picture.size, width, height, clip.frame_time, annotated=target is not None)],
        audios=[Audio(f"a0.{media.codec}", "source", row.id, row.start, len(clip.audio) / RATE, RATE, 1)],
        targets=[target or Target(class_id, row.label, "vggsound309", audio=0)],
        map_rule="union" if target else "none",
        provenance=Provenance(file="vggss.json" if target else "vggsound.csv", licence=LICENCE),
    )
    return Sample(record, {f"f0.{suffix}": frame, f"a0.{media.codec}": sound.getvalue()})


def encode_frame(image: Image.Image, short_side: int | None) -> tuple[bytes, Image.Image]:
    """JPEG of quality 90 with the given short side (never enlarged), or PNG at the source's resolution."""
    data = io.BytesIO()
    if short_side is None:
        image.save(data, "PNG")
        return data.getvalue(), image
    scale = min(1.0, short_side / min(image.size))
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    image.save(data, "JPEG", quality=90)
    return data.getvalue(), image


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
        context.set_forkserver_preload(["data_prep.vggsound"])
        return ProcessPoolExecutor(processes or self.processes, mp_context=context)

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


def select(args: argparse.Namespace) -> tuple[list[Row], dict[str, tuple[str, list[list[float]]]]]:
    """Rows to convert, and boxes by id ({} for a training set)."""
    rows = read_rows(args.csv)
    boxes = read_boxes(args.boxes) if args.boxes else {}
    wanted = set(boxes) if args.boxes else None
    if args.list:
        ids = read_ids(args.list)
        wanted = ids if wanted is None else wanted & ids
    # A list or box file says by itself what is in; the official split is asked only when there is none.
    chosen = [r for r in rows if (r.id in wanted if wanted is not None else r.split == args.split)]
    return list({r.id: r for r in chosen}.values()), boxes


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "python -m data_prep.vggsound",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.allow_abbrev = False
    p.add_argument("--videos", type=Path, required=True, help="folder of <id>_<start>.mp4 files")
    p.add_argument("--csv", type=Path, required=True, help="the official vggsound.csv")
    p.add_argument("--out", type=Path, required=True, help="data root; shards go to OUT/NAME")
    p.add_argument("--split", choices=["train", "test"], default="train", help="rows of the csv (default: train)")
    p.add_argument("--list", type=Path, help="only the ids in the first column of this file, whatever their split")
    p.add_argument("--boxes", type=Path, help="vggss.json: write the evaluation set vggss instead")
    p.add_argument("--name", default="", help="of the set, e.g. vggsound_144k (default: vggsound, or vggss)")
    p.add_argument("--tag", action="append", default=[], help="TAG=FILE: ids in FILE carry TAG, e.g. heard=ids.csv")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    p.add_argument("--num-parts", type=int, default=1, help="number of jobs that share the work")
    p.add_argument("--part", type=int, default=0, help="which of them this is, from 0")
    p.add_argument("--codec", choices=list(CODECS), default="flac", help="training sounds (test is always flac)")
    p.add_argument("--short-side", type=int, default=400, help="pixels, training frames; test keeps the source's")
    p.add_argument("--records-per-shard", type=int, default=500, help="(default: 500)")
    p.add_argument("--seed", type=int, default=0, help="of the order of records over shards")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when at least one record was written. ``skipped-*.csv`` beside the shards says what was
    left out."""
    options = parser()
    args = options.parse_args(argv)
    if not 0 <= args.part < args.num_parts:
        options.error(f"--part {args.part} must lie between 0 and --num-parts {args.num_parts} minus 1")
    if not args.videos.is_dir():
        options.error(f"--videos {args.videos} is not a folder")
    if args.name and not re.fullmatch(r"[a-z0-9_]+", args.name):
        options.error(f"--name {args.name} must be of lower-case letters, digits and underscores")
    try:
        rows, boxes = select(args)
        tags = read_tags(args.tag)
    except (OSError, ValueError) as e:
        options.error(str(e))
    if args.boxes:
        args.split = "test"
    dataset = args.name or ("vggss" if args.boxes else "vggsound")
    testing = args.split == "test"
    media = Media(
        args.videos,
        dataset,
        args.split,
        "flac" if testing else args.codec,
        None if testing else args.short_side,
    )
    names = sorted({label for label, _ in boxes.values()} if boxes else {r.label for r in read_rows(args.csv)})
    class_ids = {name: i for i, name in enumerate(names)}
    jobs = [Job(sample_key(dataset, r.id), job_of(media, r, boxes, class_ids, tags)) for r in rows]
    folder = args.out / dataset
    console = Console(stderr=True)
    pool = Pool(max(1, args.jobs))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as bar:
            shown = f"{dataset}-{args.split}" + (f" part {args.part}" if args.num_parts > 1 else "")
            task = bar.add_task(shown, total=len(jobs) if args.num_parts == 1 else None)
            report = write_shards(
                folder,
                dataset,
                args.split,
                jobs,
                records_per_shard=args.records_per_shard,
                seed=args.seed,
                licence=LICENCE,
                num_parts=args.num_parts,
                part=args.part,
                mapper=pool,
                progress=lambda n: bar.advance(task, n),
            )
    finally:
        pool.close()
    absent = sorted(set(boxes) - {r.id for r in rows}) if boxes and not args.list and args.part == 0 else []
    skipped = [*report.skipped, *(Skipped(sample_key(dataset, i), "id is not in the csv") for i in absent)]
    write_skipped(folder / skipped_name(args), skipped)
    summarise(console, args, report.written, skipped, report.index)
    return 0 if report.written else 1


def job_of(
    media: Media,
    row: Row,
    boxes: dict[str, tuple[str, list[list[float]]]],
    class_ids: dict[str, int],
    tags: dict[str, set[str]],
) -> Callable[[], Sample]:
    label, raw = boxes.get(row.id, (row.label, []))
    target = vggss_target(class_ids[label], label, raw) if boxes else None
    return partial(make_sample, media, row, target, class_ids[label], [t for t, ids in tags.items() if row.id in ids])


def skipped_name(args: argparse.Namespace) -> str:
    part = f"-{args.part:03d}" if args.num_parts > 1 else ""
    return f"skipped-{args.split}{part}.csv"


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["key", "reason"])
        writer.writerows([s.key, s.reason] for s in skipped)


def summarise(
    console: Console, args: argparse.Namespace, written: int, skipped: Sequence[Skipped], index: Path | None
) -> None:
    console.print(f"{written} records written, {len(skipped)} clips skipped", highlight=False)
    for reason, n in Counter(kind_of(s.reason) for s in skipped).most_common():
        console.print(f"  {n:6d}  {reason}", highlight=False)
    if skipped:
        console.print(f"each with its reason in {args.out}/.../{skipped_name(args)}", highlight=False, markup=False)
    if index:
        console.print(f"index: {index}", highlight=False, markup=False)
    elif args.num_parts > 1:
        console.print("the index is written by the job that finishes the last part", highlight=False)


def kind_of(reason: str) -> str:
    """A reason without its file name, so that equal ones can be counted."""
    for kind in (
        "video missing",
        "no sound",
        "no picture",
        "zero length",
        "cannot be decoded",
        "no decodable frame",
    ):
        if kind in reason:
            return kind
    return reason


if __name__ == "__main__":
    sys.exit(main())
