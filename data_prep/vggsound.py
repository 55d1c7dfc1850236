"""VGGSound videos to shards; with VGG-SS boxes, the VGG-SS evaluation set.

    python -m data_prep.vggsound --videos clips --csv vggsound.csv --out data
    python -m data_prep.vggsound --videos clips --csv vggsound.csv --out data --split test --boxes vggss.json
    python -m data_prep.vggsound --videos clips --csv vggsound.csv --out data --classes vggss221 --name vggsound_221

Videos are the ten-second clips, named ``<YouTube id>_<start second>`` with or without leading zeros or
``<YouTube id>_<start ms>_<end ms>``, or whole videos named ``<YouTube id>``, in any container; they lie in the folder,
in folders of it, or in ``.tar`` and ``.tar.gz`` there, which are not unpacked. The csv is the official one: no header,
``id,start second,"class",split``. Run it again to go on after an interruption, and to try those clips again that were
missing or broken and are other files now. On a cluster,
give job i of N ``--num-parts N --part i``; the job that finishes last writes the index.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from avloc.bounds import parsed_json
from avloc.data.labels import LABEL_SPACES
from avloc.data.lists import read_lines, unmatched
from avloc.data.media import (
    Clip,
    Library,
    MediaError,
    Source,
    clip_id,
    duration,
    parse_id,
    probe,
    read_clip,
    without_suffix,
)
from avloc.data.schema import Audio, Frame, Provenance, Record, Sample, Target, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.common import Plan, convert, options, rate_option
from data_prep.members import AS_PUBLISHED, RATE, met
from data_prep.tables import clip_boxes, no_twins, read_ids, read_tags, unmatched_tags

__all__ = ["Row", "box_notes", "class_ids", "main", "read_boxes", "read_rows", "vggss_target"]

SECONDS = 10.0
FRAME_TIME = 5.0  # annotations belong to the 125th frame at 25 fps (ACL-SSL's data note)
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

    dataset: str
    split: str
    codec: str
    short_side: int | None  # None keeps the source's resolution, losslessly
    as_published: bool = False
    frames: int = 1  # a second apart, around FRAME_TIME
    rate: int = RATE


def read_rows(path: Path) -> list[Row]:
    """The official csv; class names may hold commas.

    Raises:
        ValueError: a line without four fields, or a start that is no number; names the line.
    """
    rows = []
    for n, line in read_lines(path):
        if len(line) != 4 or not line[1].isdigit():
            raise ValueError(
                f'{path}, line {n}: expected id,start second,"class",split, got {line}. Use the official '
                "vggsound.csv; a class name with a comma must be quoted."
            )
        rows.append(Row(without_suffix(line[0]), int(line[1]), line[2], line[3]))
    return rows


def read_boxes(path: Path) -> dict[str, tuple[str, list[list[float]]]]:
    """``vggss.json``: id to class name and raw boxes.

    Raises:
        ValueError: not that file, or an id occurs twice.
    """
    try:
        rows = [
            (clip_id(r["file"]), (r["class"], [list(map(float, b)) for b in r["bbox"]]))
            for r in parsed_json(path.read_text(encoding="utf-8-sig"))
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as e:  # the last of a number in a name's place
        raise ValueError(f"{path} is not VGG-SS's vggss.json ({type(e).__name__}: {e}). Get it from its page.") from e
    no_twins((id for id, _ in rows), path)
    return dict(rows)


def vggss_target(class_id: int, label: str, raw: list[list[float]]) -> Target:
    """A VGG-SS annotation. Twelve samples hold a coordinate near -2.9e16: such raw boxes are dropped, the
    clipped ones stay."""
    boxes, _ = clip_boxes(raw)
    sane = all(math.isfinite(v) and abs(v) <= 2 for b in raw for v in b)
    return Target(class_id, label, "vggss221", audio=0, boxes=boxes, boxes_raw=raw if sane else None)


WHOLE = SECONDS + 1.0  # seconds from which a file named by its video alone is the video, and no clip of it


def clip_from(
    source: Source,
    row: Row,
    rate: int,
    frames: int = 1,
    beside: Source | None = None,
    upright: bool = True,
) -> Clip:
    """Frames around 5 s and ten seconds of sound of a clip. A file that is named by the video's id alone, and is longer
    than a clip, is cut at the row's second. Raises as `read_clip`."""
    start = begin_of(source, row)
    clip = read_clip(source, SECONDS, FRAME_TIME, rate, frames=frames, start=start, upright=upright, beside=beside)
    met(clip.found)
    return clip


def begin_of(source: Source, row: Row) -> float:
    """Second of a file at which a row's clip begins: the row's own in the whole video, 0 in a clip. A length that the
    file claims counts only where there is a picture at that second."""
    alone = parse_id(source.name)[1] is None and parse_id(row.id) != parse_id(source.name)
    if not alone or not row.start or duration(source) <= max(WHOLE, row.start):
        return 0.0
    (shown,) = probe(source).at([float(row.start)])
    return float(row.start) if shown.end is None else 0.0


def make_sample(
    media: Media,
    row: Row,
    video: Source,
    beside: Source | None,
    target: Target | None,
    class_id: int,
    tags: Sequence[str],
) -> Sample:
    """Frame at 5 s (the middle of a shorter clip), or several around it, and up to ten seconds of mono.

    Raises:
        MediaError: the video is missing, broken, or has no sound.
    """
    n = media.frames
    clip = clip_from(video, row, media.rate, n, beside, not media.as_published)
    times, shown = clip.times, clip.frames
    width, height = clip.frame.size
    container, subtype = CODECS[media.codec]
    sound = io.BytesIO()
    soundfile.write(sound, np.clip(clip.audio, -1, 1), media.rate, format=container, subtype=subtype)
    suffix = "png" if media.short_side is None else "jpg"
    members, frames = {}, []
    for k, (image, t) in enumerate(zip(shown, times, strict=True)):
        members[f"f{k}.{suffix}"], picture = encode_frame(image, media.short_side)
        frames.append(Frame(f"f{k}.{suffix}", *picture.size, width, height, t, annotated=target is not None or n > 1))
    members[f"a0.{media.codec}"] = sound.getvalue()
    record = Record(
        dataset=media.dataset,
        id=row.id,
        split=media.split,
        tags=[*tags, *([AS_PUBLISHED] if media.as_published else [])],
        video=row.video,
        frames=frames,
        audios=[Audio(f"a0.{media.codec}", "source", row.id, row.start, len(clip.audio) / media.rate, media.rate, 1)],
        targets=[target or Target(class_id, row.label, "vggsound309", audio=0)],
        map_rule="union" if target else "none",
        provenance=Provenance(file="vggss.json" if target else "vggsound.csv", licence=LICENCE),
    )
    return Sample(record, members)


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


def select(args: argparse.Namespace) -> tuple[list[Row], dict[str, tuple[str, list[list[float]]]], list[str]]:
    """Rows to convert, boxes by id ({} for a training set), and notes."""
    rows, notes = read_rows(args.csv), list[str]()
    boxes = read_boxes(args.boxes) if args.boxes else {}
    wanted = set(boxes) if args.boxes else None
    if args.list:
        ids = read_ids(args.list)
        notes += unmatched(ids, (r.id for r in rows), args.list)
        wanted = ids if wanted is None else wanted & ids
    # A list or box file says by itself what is in; the official split is asked only when there is none.
    chosen = [r for r in rows if (r.id in wanted if wanted is not None else r.split == args.split)]
    if args.classes:
        chosen = [r for r in chosen if r.label in space(args.classes)]
    return list({r.id: r for r in chosen}.values()), boxes, notes


def space(name: str) -> set[str]:
    """The classes of a label space.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in LABEL_SPACES:
        raise ValueError(f"--classes {name} is no label space; there are {', '.join(LABEL_SPACES)}.")
    return set(LABEL_SPACES[name])


def found(
    library: Library, dataset: str, rows: Iterable[Row], make: Callable[[Row, Source], Callable[[], Sample]]
) -> tuple[list[Job], list[Skipped]]:
    """A job of each row whose video is there, and the others."""
    jobs, missing = [], []
    for row in rows:
        key = sample_key(dataset, row.id)
        try:
            video = library.find(row.video, row.start)
        except MediaError as e:
            missing.append(Skipped(key, str(e)))
        else:
            jobs.append(Job(key, make(row, video)))
    return jobs, missing


def parser() -> argparse.ArgumentParser:
    p = options("data_prep.vggsound", __doc__, {"videos": "folder of <id>_<start>.mp4 files"})
    p.add_argument("--csv", type=Path, required=True, help="the official vggsound.csv")
    p.add_argument("--split", choices=["train", "test"], default="train", help="rows of the csv (default: train)")
    p.add_argument("--list", type=Path, help="only the ids in the first column of this file, whatever their split")
    p.add_argument("--classes", default="", help="only clips of this label space's classes, e.g. vggss221")
    p.add_argument("--boxes", type=Path, help="vggss.json: write the evaluation set vggss instead")
    p.add_argument("--tag", action="append", default=[], help="TAG=FILE: ids in FILE carry TAG, e.g. heard=ids.csv")
    p.add_argument("--codec", choices=list(CODECS), default="flac", help="training sounds (test is always flac)")
    p.add_argument("--frames", type=int, default=1, help="training frames, a second apart around the middle (SeAC: 5)")
    rate_option(p)
    p.add_argument("--short-side", type=int, default=400, help="pixels, training frames; test keeps the source's")
    return p


def plans(args: argparse.Namespace) -> list[Plan]:
    rows, boxes, notes = select(args)
    tags = read_tags(args.tag)
    notes += unmatched_tags(tags, (r.id for r in read_rows(args.csv))) if tags else []
    split = "test" if args.boxes else args.split
    dataset = args.name or ("vggss" if args.boxes else "vggsound")
    if args.codec == "opus" and args.rate not in (8000, 12000, 16000, 24000, 48000):
        raise ValueError(f"Opus has no {args.rate} Hz. Use --codec flac.")
    testing = split == "test"
    media = Media(
        dataset,
        split,
        "flac" if testing else args.codec,
        None if testing else args.short_side,
        args.as_published,
        1 if testing else max(1, args.frames),
        args.rate,
    )
    ids = class_ids((label for label, _ in boxes.values()) if boxes else (r.label for r in read_rows(args.csv)))
    library = Library(args.videos, args.out / dataset / ".parts")
    notes += library.remarks

    def make(row: Row, video: Source) -> Callable[[], Sample]:
        return job_of(media, row, video, library.beside(video), boxes, ids, tags)

    jobs, missing = found(library, dataset, rows, make)
    absent = sorted(set(boxes) - {r.id for r in rows}) if boxes and not args.list else []
    missing += [
        Skipped(sample_key(dataset, i), "id is not in the csv: get the official csv, which has it.") for i in absent
    ]
    notes += box_notes(boxes)
    if args.classes and (lacking := sorted(space(args.classes) - {r.label for r in rows})):
        notes.append(f"{len(lacking)} of the classes of {args.classes} have no clip ({lacking[0]}, ...)")
    return [Plan(dataset, split, jobs, missing, notes, LICENCE)]


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when at least one record was written. ``skipped-*.csv`` beside the shards says what was
    left out."""
    return convert(parser(), plans, argv)


def class_ids(names: Iterable[str]) -> dict[str, int]:
    """Class names to their places in alphabetical order."""
    return {name: i for i, name in enumerate(sorted(set(names)))}


def box_notes(boxes: dict[str, tuple[str, list[list[float]]]]) -> list[str]:
    """What is wrong with the boxes and was put right."""
    outside = [id for id, (_, raw) in boxes.items() if clip_boxes(raw)[1]]
    if not outside:
        return []
    return [
        f"fix clip_boxes: {len(outside)} records have a coordinate outside of [0, 1] and are clipped ({outside[0]}"
        + (", ...)" if len(outside) > 1 else ")")
    ]


def job_of(
    media: Media,
    row: Row,
    video: Source,
    beside: Source | None,
    boxes: dict[str, tuple[str, list[list[float]]]],
    ids: dict[str, int],
    tags: dict[str, set[str]],
) -> Callable[[], Sample]:
    label, raw = boxes.get(row.id, (row.label, []))
    target = vggss_target(ids[label], label, raw) if boxes else None
    return partial(
        make_sample, media, row, video, beside, target, ids[label], [t for t, of in tags.items() if row.id in of]
    )


if __name__ == "__main__":
    sys.exit(main())
