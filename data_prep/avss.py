"""AVSBench-semantic (AVSS): videos of five or ten seconds with a class for each pixel of each second.

    python -m data_prep.avss --media avs_released --split train val test --out data

``avs_released`` holds ``metadata.csv`` and ``<v1s|v1m|v2>/<uid>/{frames/<i>.jpg, labels_rgb/<i>.png, audio.wav}``. A
record is a video: its pictures, the index map of each annotated one, a target with masks for each class, and the tag
``v1s``, ``v1m`` or ``v2``: ``avss`` is SeAC's test set of 1,554 videos, ``avss/v2`` that of GAVS.

Fixes: ``unknown_colours`` (what is not of the palette is not scored, instead of background), ``off_the_screen`` (27
videos have it as an object: it becomes the tag ``off_screen``), ``h_orse`` (a typo for horse), ``background_object`` (5
videos have it as an object: left out).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avloc.data.labels import LABEL_SPACES, UNKNOWN, colours_to_index, voc_palette
from avloc.data.media import PICTURES
from avloc.data.schema import Frame, Provenance, Record, Sample, Target, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.common import Plan, convert, options
from data_prep.members import AS_PUBLISHED, mask_png, picture, png, sound, stored_mask
from data_prep.tables import files_by_stem, no_twins, read_table, unlisted
from data_prep.telling import lacking

__all__ = ["COUNTED", "LICENCE", "Row", "main", "object_notes", "plan_rows", "read_metadata"]

CLASSES = LABEL_SPACES["avss71"]
PALETTE = voc_palette(len(CLASSES))
PUBLISHED = "unknown colours are background, and odd object names stay as they are"
LICENCE = "AVSBench: on request from its site; videos belong to their uploaders"
PARTS = ("v1s", "v1m", "v2")
COUNTED = {"unknown_colour": "have label colours that are not of the PASCAL VOC palette (tag unknown_colour)"}


@dataclass(frozen=True)
class Row:
    """A line of ``metadata.csv``: id, start in seconds (in the YouTube video; v1s: in its VGGSound clip), objects,
    official split, and which part (``v1s``, ``v1m``, ``v2``)."""

    uid: str
    video: str
    start: int
    objects: tuple[str, ...]
    split: str
    label: str

    @property
    def seconds(self) -> int:
        return 10 if self.label == "v2" else 5

    @property
    def labelled(self) -> range:
        """Frames, from 0, that the official set labels."""
        return range(1) if (self.label, self.split) == ("v1s", "train") else range(self.seconds)


def read_metadata(path: Path) -> list[Row]:
    """The official ``metadata.csv``.

    Raises:
        ValueError: not that file, or an id occurs twice.
    """
    rows = []
    for n, r in enumerate(read_table(path, ("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"), True), start=2):
        if r["label"] not in PARTS or not (r["s_min"] + r["s_sec"]).isdigit():
            raise ValueError(f"{path}, row {n}: expected vid,uid,s_min,s_sec,a_obj,split,label, got {list(r.values())}")
        start = int(r["s_min"]) * 60 + int(r["s_sec"])
        rows.append(Row(r["uid"], r["vid"][:11], start, tuple(r["a_obj"].split("_")), r["split"], r["label"]))
    no_twins((f"{r.label}/{r.uid}" for r in rows), path)
    return rows


def fixed_objects(objects: Sequence[str]) -> tuple[list[str], list[str]]:
    """Classes of the objects, and tags."""
    named = ["horse" if name == "h orse" else name for name in objects]
    tags = ["off_screen"] if "off-the-screen" in named else []
    return [name for name in named if name not in ("off-the-screen", "background")], tags


def object_notes(rows: Iterable[Row], as_published: bool) -> list[str]:
    """How often each odd name occurs, and what became of it."""
    notes = []
    for odd, fix in (
        ("off-the-screen", "off_the_screen: it becomes the tag off_screen"),
        ("h orse", "h_orse: it is read as horse"),
        ("background", "background_object: it is left out"),
    ):
        if n := sum(odd in r.objects for r in rows):
            notes.append(f"{n} videos have the object {odd!r}" + ("" if as_published else f"; fix {fix}"))
    unknown = {o for r in rows for o in r.objects} - {*CLASSES, "off-the-screen", "h orse"}
    return notes + ([f"objects that are no class: {', '.join(sorted(unknown))}"] if unknown else [])


def read_labels(path: Path, as_published: bool) -> tuple[NDArray[np.uint8], int]:
    """Index map ``[h, w]`` of a coloured one, and how many pixels have another colour: 255 there, 0 as published.

    Raises:
        MediaError: unreadable.
    """
    rgb = np.asarray(stored_mask(path).convert("RGB"))
    index, unknown = colours_to_index(rgb, PALETTE)
    return (np.where(index == UNKNOWN, 0, index).astype(np.uint8) if as_published else index), unknown


def make_sample(
    dataset: str, split: str, row: Row, frames: Mapping[int, Path], labels: Mapping[int, Path], heard: Path,
    tags: Sequence[str], as_published: bool,
) -> Sample:  # fmt: skip
    """A video.

    Raises:
        MediaError: a file is absent or broken.
    """
    members: dict[str, bytes] = {}
    shown: list[Frame] = []
    maps: dict[int, NDArray[np.uint8]] = {}
    unknown = 0
    for i, (k, path) in enumerate(sorted(frames.items())):
        data, frame = picture(path, f"f{i}", t=float(k), annotated=k in labels)
        members[frame.member] = data
        shown.append(frame)
        if k in labels:
            maps[i], odd = read_labels(labels[k], as_published)
            unknown += odd
            frame.semantic = f"sem.f{i}.png"
            members[frame.semantic] = png(Image.fromarray(maps[i]))
    names, more = (list(row.objects), []) if as_published else fixed_objects(row.objects)
    targets = targets_of(names, maps)
    for t, target in enumerate(targets):
        for i, index in maps.items():
            target.masks.append(f"m.f{i}.t{t}.png")
            members[target.masks[-1]] = mask_png(index == target.class_id if target.class_id > 0 else index < 0)
    # A v1s start counts within the ten seconds of a VGGSound clip whose own start is not told.
    start = 0.0 if row.label == "v1s" else float(row.start)
    members["a0.flac"], audio = sound(heard, src_id=row.uid, clip_start=start)
    record = Record(
        dataset,
        row.uid,
        split=split,
        tags=[
            row.label,
            *tags,
            *more,
            *(["unknown_colour"] if unknown else []),
            *([AS_PUBLISHED] if as_published else []),
        ],
        video=row.video,
        frames=shown,
        audios=[audio],
        targets=targets,
        map_rule="mask",
        provenance=Provenance(
            file="metadata.csv",
            licence=LICENCE,
            note="; ".join([f"{unknown} label pixels of unknown colours"] * bool(unknown) + [PUBLISHED] * as_published),
        ),
    )
    return Sample(record, members)


def targets_of(names: Sequence[str], maps: Mapping[int, NDArray[np.uint8]]) -> list[Target]:
    """A target for each object that is named or drawn, in the order of the classes; names of no class come last."""
    drawn = {int(c) for index in maps.values() for c in np.unique(index)} - {0, UNKNOWN}
    ids = sorted(drawn | {CLASSES.index(n) for n in names if n in CLASSES[1:]})
    others = [Target(-1, n, "avss71", audio=0) for n in names if n not in CLASSES[1:]]
    return [Target(c, CLASSES[c], "avss71", audio=0) for c in ids] + others


def plan_rows(
    dataset: str, split: str, rows: Sequence[Row], root: Path, tags: Mapping[tuple[str, str], Sequence[str]],
    as_published: bool,
) -> tuple[list[Job], list[Skipped]]:  # fmt: skip
    """Jobs of the rows with media, and all that is not there: a record's key for a video that is left out,
    ``<key>.f<second>`` for a picture or label map of one that is kept.

    Args:
        split: of the records, whatever the rows' own.
        tags: by uid and part.
    """
    jobs, missing = [], []
    for row in rows:
        key, folder = sample_key(dataset, row.uid), root / row.label / row.uid
        frames, labels = numbered(folder / "frames"), numbered(folder / "labels_rgb")
        lost = [
            Skipped(f"{key}.f{k}", lacking(what, f"{folder / sub}, {k}"))
            for what, sub, of, wanted in (
                ("picture", "frames", frames, range(row.seconds)),
                ("mask", "labels_rgb", labels, row.labelled),
            )
            for k in wanted
            if k not in of
        ]
        scored = {k: p for k, p in labels.items() if k in frames}
        heard = folder / "audio.wav"
        if not heard.is_file():
            missing.append(Skipped(key, lacking("sound", str(heard))))
        elif not frames or not scored:
            missing.append(Skipped(key, lacking("mask" if frames else "picture", f"none in {folder}")))
        else:
            missing += lost
            own = tags.get((row.uid, row.label), ())
            jobs.append(Job(key, partial(make_sample, dataset, split, row, frames, scored, heard, own, as_published)))
    return jobs, missing


def numbered(folder: Path) -> dict[int, Path]:
    """Pictures of a folder that are called by a number."""
    return {int(stem): path for stem, path in files_by_stem(folder, PICTURES).items() if stem.isdigit()}


def root_of(media: Path) -> Path:
    """The folder that holds ``v1s``, ``v1m`` or ``v2``.

    Raises:
        ValueError: there is none.
    """
    for root in (media, media / "avs_released"):
        if any((root / part).is_dir() for part in ("v1s", "v1m", "v2")):
            return root
    raise ValueError(f"{media} holds none of v1s, v1m and v2. Give the folder avs_released of AVSBench-semantic.")


def metadata_of(args: argparse.Namespace, root: Path) -> Path:
    """``--metadata``, else the ``metadata.csv`` of the archive.

    Raises:
        ValueError: there is none.
    """
    path = args.metadata or next((p for r in (root, root.parent) if (p := r / "metadata.csv").is_file()), None)
    if path is None:
        raise ValueError(f"{root} holds no metadata.csv. Give it with --metadata.")
    return path


def parser() -> argparse.ArgumentParser:
    p = options("data_prep.avss", __doc__, {"media": "folder avs_released of AVSBench-semantic"}, PUBLISHED)
    p.add_argument("--metadata", type=Path, help="metadata.csv (default: that of the folder)")
    splits = ["train", "val", "test"]
    p.add_argument("--split", nargs="+", choices=splits, default=["test"], help="which (default: test)")
    p.add_argument("--only", choices=PARTS, help="one part, as a set of its own: avss_v2 (GAVS's V2)")
    return p


def plans(args: argparse.Namespace) -> list[Plan]:
    dataset, root = args.name or "_".join(filter(None, ("avss", args.only))), root_of(args.media)
    rows = [r for r in read_metadata(metadata_of(args, root)) if args.only in (None, r.label)]
    listed = {f"{r.label}/{r.uid}" for r in rows}
    parts = [args.only] if args.only else PARTS
    found = {f"{p.parent.name}/{p.name}" for part in parts for p in (root / part).glob("*")}
    made = []
    for n, split in enumerate(args.split):
        own = [r for r in rows if r.split == split]
        jobs, missing = plan_rows(dataset, split, own, root, {}, args.as_published)
        missing += unlisted(dataset, found, listed, "video") if n == 0 else []  # they are of no split
        made.append(Plan(dataset, split, jobs, missing, object_notes(own, args.as_published), LICENCE, COUNTED))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when every split gave at least one record."""
    return convert(parser(), plans, argv)


if __name__ == "__main__":
    sys.exit(main())
