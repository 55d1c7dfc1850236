"""SoundNet-Flickr with the boxes of three annotators.

    python -m data_prep.flickr --media Flickr --list flickr_test.csv --out data
    python -m data_prep.flickr --media Flickr --list flickr_test.csv --sup-train flickr_sup_train.txt --out data

``Flickr`` is the official archive (``Annotations/<id>.xml``, ``Data/<digit>/<digit>/<digit>/<id>.mp4/``), or holds
``Annotations``, ``frames`` and ``audio``, by itself or under ``test`` (ACL-SSL, SLAVC). A frame is a picture, or a
folder of pictures, of which the first by name is taken. ``flickr/test249`` is the list without 3908875350 (LVS,
EZ-VSL, FNAC), which the oldest list calls 3908875357. The classes in some lists are guesses of a network, kept as
``text["pseudo_class"]``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from avloc.data.media import PICTURES, SOUNDS
from avloc.data.schema import Provenance, Record, Sample, Target, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.common import Plan, convert, options
from data_prep.members import AS_PUBLISHED, picture, sound
from data_prep.tables import no_twins, read_table, read_tags, unlisted, unmatched_tags
from data_prep.telling import lacking

__all__ = ["LICENCE", "Annotation", "Media", "find_media", "main", "positives", "read_list", "read_xml"]

GRID = 256
LICENCE = "SoundNet-Flickr annotations: research use only; pictures and sounds under the terms of YFCC100M"
# In the first list (learning_to_localize_sound_source) it ends in 7, in those of SLAVC, ACL-SSL and SSLalignment in 0;
# LVS, EZ-VSL and FNAC leave it out. Which of both the archive holds could not be checked.
NOT_IN_249 = ("3908875350", "3908875357")


@dataclass(frozen=True)
class Annotation:
    """Boxes ``[n, 4]`` on the 256 grid, and who drew each, from 0."""

    boxes: list[list[float]]
    annotator: list[int]


@dataclass(frozen=True)
class Media:
    """What there is of each id; ``choices`` are ids whose frame is one of several pictures of a folder."""

    frames: dict[str, Path]
    sounds: dict[str, Path]
    xml: dict[str, Path]
    choices: frozenset[str]


def read_xml(path: Path) -> Annotation:
    """An annotation file: below its root an element for each annotator, below that ``bbox`` elements of five children,
    of which the last four are x0, y0, x1, y1 on the 256 grid. (Inferred from five published parsers.)

    Raises:
        ValueError: not such a file.
    """
    boxes, annotator = [], []
    try:
        for n, person in enumerate(ElementTree.parse(path).getroot()):
            for box in person.iter("bbox"):
                _, x0, y0, x1, y1 = box
                boxes.append([float(int(corner.text or "")) for corner in (x0, y0, x1, y1)])
                annotator.append(n)
    except (ElementTree.ParseError, ValueError, TypeError) as e:
        raise ValueError(f"annotation unreadable: {path} ({e}). Get the archive of annotations again.") from e
    return Annotation(boxes, annotator)


def read_list(path: Path) -> dict[str, str]:
    """Ids of a list, in its order, with its second column ("" where there is none, or a frame number).

    Lines are ``id``, ``id.jpg``, ``id.png``, ``id,number`` or ``id,class``.

    Raises:
        ValueError: an id occurs twice, or a line has more columns.
    """
    rows = [(Path(r["id"]), r["label"]) for r in read_table(path, ("id", "label"))]
    ids = [id.stem if id.suffix.lower() in PICTURES else id.name for id, _ in rows]
    no_twins(ids, path)
    return {id: "" if label.isdigit() else label for id, (_, label) in zip(ids, rows, strict=True)}


def find_media(folder: Path) -> Media:
    """Frames, sounds and annotations of the official archive or of the flat layouts.

    Raises:
        ValueError: nothing of the kind is there.
    """
    roots = [r for r in (folder / "test", folder) if r.is_dir()]
    xml = {p.stem: p for root in reversed(roots) for p in sorted((root / "Annotations").glob("*.xml"))}
    frames: dict[str, Path] = {}
    sounds: dict[str, Path] = {}
    choices: set[str] = set()
    places = [p for root in roots for sub in ("frames", "audio") for p in sorted((root / sub).glob("*"))]
    places += sorted((folder / "Data").glob("*/*/*/*"))
    for place in places:
        id = place.name.partition(".")[0]
        if place.is_dir():
            inside = sorted(p for p in place.iterdir() if p.suffix.lower() in PICTURES)
            if inside and id not in frames:
                frames[id] = inside[0]
                choices |= {id} if len(inside) > 1 else set()
        elif place.suffix.lower() in PICTURES:
            frames.setdefault(id, place)
        elif place.suffix.lower() in SOUNDS:
            sounds.setdefault(id, place)
    if not frames or not sounds:
        raise ValueError(
            f"{folder} holds {len(frames)} frames and {len(sounds)} sounds. Expected Annotations, frames and audio in "
            "it or in its folder test, or the official archive's Annotations and Data."
        )
    return Media(frames, sounds, xml, frozenset(choices))


def target_of(annotation: Annotation) -> Target:
    boxes = np.clip(np.array(annotation.boxes, np.float64).reshape(-1, 4) / GRID, 0, 1).tolist()
    return Target(
        audio=0,
        boxes=boxes,
        boxes_raw=annotation.boxes,
        raw_format="xyxy_256",
        annotator=annotation.annotator,
    )


def make_sample(
    dataset: str, split: str, id: str, annotation: Annotation, frame: Path, heard: Path, tags: Sequence[str], guess: str
) -> Sample:
    """A frame with all of its sound.

    Raises:
        MediaError: a file is absent or broken.
    """
    shown, f0 = picture(frame, annotated=True)
    wave, a0 = sound(heard, src_id=id)
    record = Record(
        dataset,
        id,
        split=split,
        tags=list(tags),
        video=id,
        frames=[f0],
        audios=[a0],
        targets=[target_of(annotation)],
        map_rule="consensus2",
        text={"pseudo_class": guess} if guess else {},
        provenance=Provenance(file=f"Annotations/{id}.xml", licence=LICENCE),
    )
    return Sample(record, {f0.member: shown, "a0.flac": wave})


NO_XML = "annotation missing: nothing for {}. Get the archive of annotations, and run again."


def positives(
    dataset: str, split: str, ids: dict[str, str], media: Media, tags: dict[str, set[str]], as_published: bool
) -> tuple[list[Job], list[Skipped], list[str]]:
    """Jobs of the listed ids, those that lack something, and notes.

    Args:
        ids: to the guessed class, "" for none.
    """
    jobs, missing = [], []
    outside, empty = [], []
    for id, guess in ids.items():
        key = sample_key(dataset, id)
        lacks = next((w for w, of in (("picture", media.frames), ("sound", media.sounds)) if id not in of), "")
        if lacks or id not in media.xml:
            missing.append(Skipped(key, lacking(lacks, f"nothing for {id}") if lacks else NO_XML.format(id)))
            continue
        try:
            annotation = read_xml(media.xml[id])
        except ValueError as e:
            missing.append(Skipped(key, str(e)))
            continue
        outside += [id] if any(not 0 <= v <= GRID for b in annotation.boxes for v in b) else []
        empty += [id] if not any(b[0] < b[2] and b[1] < b[3] for b in annotation.boxes) else []
        own = [tag for tag, of in tags.items() if id in of]
        own += ["test249"] if split == "test" and id not in NOT_IN_249 else []
        own += [AS_PUBLISHED] * as_published
        place = (media.frames[id], media.sounds[id], own, guess)
        jobs.append(Job(key, partial(make_sample, dataset, split, id, annotation, *place)))
    notes = []
    if outside:
        notes.append(f"fix clip_boxes: {len(outside)} records have a box that leaves the 256 grid and are clipped")
    if empty:
        notes.append(f"{len(empty)} records have no box with an area, so their map is empty ({empty[0]})")
    if several := media.choices & set(ids):
        notes.append(f"{len(several)} frame folders hold several pictures: the first by name is taken ({min(several)})")
    return jobs, missing, notes


def parser() -> argparse.ArgumentParser:
    p = options(
        "data_prep.flickr",
        __doc__,
        {"media": "the official archive, or a folder with Annotations, frames and audio"},
    )
    p.add_argument("--list", type=Path, required=True, help="ids of the test set, e.g. flickr_test.csv")
    p.add_argument("--sup-train", type=Path, help="flickr_sup_train.txt: write these as split train too")
    p.add_argument(
        "--tag", action="append", default=[], help="TAG=FILE: ids in FILE carry TAG, e.g. leak_144k=list.txt"
    )
    return p


def plans(args: argparse.Namespace) -> list[Plan]:
    dataset = args.name or "flickr"
    lists = {"test": read_list(args.list)} | ({"train": read_list(args.sup_train)} if args.sup_train else {})
    if both := sorted(set(lists["test"]) & set(lists.get("train", {}))):
        raise ValueError(f"{args.sup_train}: {len(both)} ids are in {args.list} too ({both[0]}). Train on others.")
    tags = read_tags(args.tag)
    media = find_media(args.media)
    unknown = unmatched_tags(tags, {id for ids in lists.values() for id in ids})
    made = []
    for split, ids in lists.items():
        jobs, missing, notes = positives(dataset, split, ids, media, tags, args.as_published)
        if split == "test":
            missing += unlisted(dataset, media.xml, {id for ids in lists.values() for id in ids}, "annotation")
        made.append(Plan(dataset, split, jobs, missing, notes + unknown, LICENCE))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when at least one record was written."""
    return convert(parser(), plans, argv)


if __name__ == "__main__":
    sys.exit(main())
