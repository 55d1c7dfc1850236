"""MUSIC-Solo and MUSIC-Duet: frames of YouTube videos with the box of each instrument.

    python -m data_prep.music_solo --media MUSIC --annotations music_solo.json --out data
    python -m data_prep.music_duet --media MUSIC --annotations music_duet.json --out data
    python -m data_prep.music_solo --media MUSIC --annotations music_solo_train.txt --out data

MUSIC holds ``frames/<key>.jpg`` and ``audio/<YouTube id>.wav``, the sound of the whole video; a key is ``<YouTube
id>_<second>_<frame>``. The third command writes training frames: classes, no boxes. Two things are put right here that
the loaders of AVGN and T-VSL do not do, and ``--as-published`` leaves them as they are there:

- Boxes are x, y, width, height. Read as two corners, three quarters of the solo maps are empty.
- A frame is heard with the ten seconds around it. There, all frames of a video share the middle of its sound.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from avloc.data.labels import LABEL_SPACES
from avloc.data.media import MediaError, audio_16k, duration, without_suffix
from avloc.data.schema import Audio, Provenance, Record, Role, Sample, Target, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.common import Plan, convert, options, rate_option
from data_prep.loose import pictures, sounds
from data_prep.members import AS_PUBLISHED, flac, picture
from data_prep.sslalign import read_json
from data_prep.tables import clip_boxes, no_twins, read_table, unlisted

__all__ = ["Row", "main", "music_target", "read_rows", "window"]

LICENCE = "none stated; videos belong to their uploaders"
REPOSITORY = "stoneMo/AVGN"
CLASSES = LABEL_SPACES["music11"]
SECONDS = 10.0
KEY = re.compile(r"(?P<video>.{11})_(?P<second>\d{3,})_(?P<frame>\d{5,})")
FIELDS = {1: (("class", "bbox"),), 2: (("class_src1", "bbox_src1"), ("class_src2", "bbox_src2"))}


@dataclass(frozen=True)
class Row:
    """A frame and its instruments.

    Attributes:
        key: ``<YouTube id>_<second>_<frame>``.
        labels: a class per source.
        boxes: as published, one per source; () for training.
    """

    key: str
    labels: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...] = ()

    @property
    def video(self) -> str:
        return self.key[:11]

    @property
    def time(self) -> float:
        """Seconds into the video. All test keys are at 30 fps; at another rate, the middle of the key's second."""
        match = KEY.fullmatch(self.key)
        assert match
        second, frame = int(match["second"]), int(match["frame"])
        return frame / 30 if frame // 30 == second else second + 0.5


def read_rows(path: Path, sources: int) -> list[Row]:
    """``music_solo.json`` or ``music_duet.json``, or a training list ``key,class[,class]``.

    Args:
        path: json or txt.
        sources: 1 or 2.

    Raises:
        ValueError: not such a file, a class that is none of the 11, a bad key, or a key that occurs twice.
    """
    rows = []
    if path.suffix == ".json":
        for n, r in enumerate(read_json(path)):
            try:
                labels = tuple(str(r[label]) for label, _ in FIELDS[sources])
                boxes = tuple(tuple(map(float, r[box])) for _, box in FIELDS[sources])
                rows.append(Row(str(r["file"]), labels, boxes))
            except (KeyError, TypeError, ValueError) as e:
                raise ValueError(f"{path}, row {n}: fields missing or wrong ({type(e).__name__}: {e}).") from e
            if any(len(b) != 4 or not np.isfinite(b).all() for b in boxes):
                raise ValueError(f"{path}, row {n} ({r['file']}): a box is not four finite numbers.")
    else:
        names = ["key", *(f"class {i}" for i in range(sources))]
        rows = [Row(without_suffix(r["key"]), tuple(r[n] for n in names[1:])) for r in read_table(path, names)]
    for row in rows:
        if not KEY.fullmatch(row.key):
            raise ValueError(f"{path}: {row.key!r} is not <YouTube id>_<second>_<frame>. Is it the official file?")
        if bad := [label for label in row.labels if label not in CLASSES]:
            raise ValueError(f"{path}: {row.key} has the class {bad[0]!r}, none of MUSIC's 11. Is it the right list?")
    no_twins((r.key for r in rows), path)
    return rows


def music_target(label: str, box: Sequence[float] | None, as_published: bool) -> Target:
    """A source of a frame.

    Args:
        label: its class.
        box: as published, x, y, width, height; None in training.
        as_published: read them as x0, y0, x1, y1.
    """
    target = Target(CLASSES.index(label), label, "music11", audio=0)
    if box:
        x, y, w, h = box
        target.boxes, _ = clip_boxes([list(box) if as_published else [x, y, x + w, y + h]])
        target.boxes_raw = [list(box)]
        target.raw_format = "xyxy_norm" if as_published else "xywh_norm"
    return target


def window(time: float, length: float, as_published: bool) -> tuple[float, float]:
    """Start and length in seconds of what is heard.

    Args:
        time: of the frame.
        length: of the video's sound.
        as_published: the middle of the video, whose own middle 3 or 5 s are what AVGN and T-VSL hear.
    """
    middle = length / 2 if as_published else time
    start, end = max(0.0, middle - SECONDS / 2), min(length, middle + SECONDS / 2)
    return start, end - start


def make_sample(
    record: Record, time: float, image: Path, wave: Path, role: Role, as_published: bool, rate: int
) -> Sample:
    """Frame and the part of the sound that belongs to it; the rest of the record is given.

    Raises:
        MediaError: one is broken, or the sound ends before the frame.
    """
    pixels, frame = picture(image, t=time, annotated=record.map_rule != "none")
    start, seconds = window(time, duration(wave), as_published)
    if seconds <= 0:
        raise MediaError(f"sound ends early: {wave} is over before the frame at {time:.1f} s. Get it again.")
    heard = audio_16k(wave, rate, start, seconds)
    audio = Audio("a0.flac", role, wave.stem, start, len(heard) / rate, rate, 1)
    return Sample(replace(record, frames=[frame], audios=[audio]), {frame.member: pixels, "a0.flac": flac(heard, rate)})


def plans(sources: int, args: argparse.Namespace) -> list[Plan]:
    rows = read_rows(args.annotations, sources)
    split = "test" if args.annotations.suffix == ".json" else "train"
    name = args.name or ("music_solo" if sources == 1 else "music_duet")
    images, waves = pictures(args.media, "frames"), sounds(args.media, "audio")
    note = "boxes read as corners, the middle of the video heard, as published" if args.as_published else ""
    jobs, missing = [], []
    for n, row in enumerate(rows):
        key = sample_key(name, row.key)
        boxes = row.boxes or [None] * sources
        record = Record(
            name,
            row.key,
            split,
            [AS_PUBLISHED] if args.as_published else [],
            video=row.video,
            targets=[music_target(c, b, args.as_published) for c, b in zip(row.labels, boxes, strict=True)],
            map_rule="union" if row.boxes else "none",
            provenance=Provenance(REPOSITORY, file=args.annotations.name, row=n, licence=LICENCE, note=note),
        )
        try:
            paths = images.find(row.key), waves.find(row.video)
        except MediaError as e:
            missing.append(Skipped(key, str(e)))
        else:
            role: Role = "source" if sources == 1 else "mixture"
            jobs.append(Job(key, partial(make_sample, record, row.time, *paths, role, args.as_published, args.rate)))
    missing += unlisted(name, images.stems, (r.key for r in rows))
    return [Plan(name, split, jobs, missing, music_notes(rows, args.as_published), LICENCE)]


def music_notes(rows: Sequence[Row], as_published: bool) -> list[str]:
    """What is put right, or left as published."""
    boxes = [b for r in rows for b in r.boxes]
    videos = len({r.video for r in rows})
    notes = [f"{len(rows)} frames of {videos} videos"]
    if as_published:
        empty = sum(int(224 * x1) <= int(224 * x0) or int(224 * y1) <= int(224 * y0) for x0, y0, x1, y1 in boxes)
        if boxes:
            notes.append(f"as published: boxes are read as corners, which leaves {empty} of {len(boxes)} maps empty")
        return [*notes, "as published: all frames of a video are heard with the middle ten seconds of the video"]
    outside = sum(clip_boxes([[x, y, x + w, y + h]])[1] for x, y, w, h in boxes)
    if boxes:
        notes.append("fix xywh: boxes are x, y, width, height; published code reads corners (--as-published)")
    if outside:
        notes.append(f"fix clip_boxes: {outside} boxes leave the frame and are clipped")
    return [*notes, "fix window: a frame is heard with the ten seconds around it, not with its video's middle"]


def main(sources: int, argv: Sequence[str] | None = None) -> int:
    """Convert MUSIC-Solo (1) or MUSIC-Duet (2); 0 when at least one record was written."""
    name = ("music_solo", "music_duet")[sources - 1]
    published = "read boxes as corners, and hear the middle of the video with all of its frames"
    p = options(f"data_prep.{name}", __doc__, {"media": "folder with frames and audio"}, published)
    rate_option(p)
    p.add_argument("--annotations", type=Path, required=True, help=f"{name}.json, or {name}_train.txt")
    return convert(p, partial(plans, sources), argv)
