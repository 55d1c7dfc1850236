"""Your own pictures with sounds, or clips, with masks or boxes: a test set; without truth, a training set.

    avloc prep folder --media DIR --name mine                         # to train on
    avloc prep folder --media DIR --boxes boxes.csv --name mine       # to test on; columns key,x0,y0,x1,y1, in pixels
    avloc prep folder --media DIR --masks DIR --name mine             # to test on; one black and white picture a key
    avloc test -c acl_ssl --ckpt_path CHECKPOINT --data.test '[mine]'
    avloc test -c acl_ssl --ckpt_path CHECKPOINT --data.test '[mine]' --evaluator.protocols '{mine: [avs/dataset]}'

In a YAML, the same is ``data: {train: mine}`` or ``data: {test: [mine]}``. Boxes are scored by ``vggss/acl`` and
``vggss/adaptive``; the last line scores masks by their IoU.

The key is a file's name without its suffix: ``a.jpg`` and ``a.wav`` are the picture and the sound of ``a``, ``b.mp4``
is the clip ``b``; folders inside of DIR are looked into, their names do not matter. ``--boxes`` is a csv with those
columns and, where it is known, ``class``, or a json array of objects with the same names; several rows of a key are
several boxes of what sounds there. x and y count pixels of the picture from its upper left corner, and x1, y1 are not
inside any more. A mask is as large as its picture, and what sounds is brighter than 127 in it (or not 0, where it holds
zeros and ones alone, or palette colours). Of a clip, the frame at ``--at`` seconds (its middle by default) is the
picture, heard with the ``--seconds`` around it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avloc.data.media import PICTURES, SOUNDS, VIDEOS, MediaError, duration, read_clip, without_suffix
from avloc.data.schema import Audio, Frame, Provenance, Record, Sample, Target, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.common import Plan, convert, options, rate_option
from data_prep.members import AS_PUBLISHED, flac, mask_png, met, picture, read_mask, sound, stored_mask
from data_prep.sslalign import read_json
from data_prep.tables import read_table
from data_prep.telling import lacking, unannotated
from data_prep.vggsound import encode_frame

__all__ = ["Media", "main", "read_boxes"]

SIDES = ("x0", "y0", "x1", "y1")
REMEDY = "Correct it, or leave the key out."
EMPTY = "empty_mask"  # tag of records in whose mask nothing sounds
SHORT_SIDE = 400  # pixels of a clip's frame to train on; to be scored, it keeps its own size


@dataclass(frozen=True)
class Media:
    """The files of a key: a picture with a sound, or a clip (with its sound beside it, where it has none itself)."""

    picture: Path | None
    clip: Path | None
    sound: Path | None

    @property
    def lacks(self) -> str:
        """What is missing, "" for nothing."""
        if self.clip:
            return ""
        return ("" if self.sound else "sound") if self.picture else "picture"


@dataclass(frozen=True)
class Boxes:
    """What sounds in a picture: corners in pixels, and its class ("" where unknown)."""

    corners: tuple[tuple[float, ...], ...]
    label: str


@dataclass(frozen=True)
class Cut:
    """How clips are cut: second of the frame (None: the middle), seconds and Hz of the sound."""

    at: float | None
    seconds: float
    rate: int


def read_boxes(path: Path) -> dict[str, Boxes]:
    """Boxes by key, of a csv or a json array with ``key``, ``x0``, ``y0``, ``x1``, ``y1`` and perhaps ``class``.

    Raises:
        ValueError: not such a file, or a coordinate that is no number; names the row.
        OSError: absent.
    """
    columns = ("key", *SIDES)
    rows = read_json(path) if path.suffix.lower() == ".json" else read_table(path, columns, header=True)
    corners, labels = defaultdict[str, list[tuple[float, ...]]](list), dict[str, str]()
    for n, row in enumerate(rows, start=1):
        if absent := [c for c in columns if c not in row]:
            raise ValueError(f"{path}, row {n}: no {absent[0]}, only {', '.join(map(str, row))}. It needs {columns}.")
        key, label = without_suffix(str(row["key"])), str(row.get("class") or "").strip()
        try:
            box = tuple(float(row[side]) for side in SIDES)
        except (TypeError, ValueError):
            box = (math.nan,) * 4
        if not key or not all(map(math.isfinite, box)):
            raise ValueError(f"{path}, row {n} ({key}): {[row[s] for s in SIDES]} are not four numbers. {REMEDY}")
        if labels.setdefault(key, label) != label:
            raise ValueError(
                f"{path}, row {n}: {key} is a {label!r} here and a {labels[key]!r} above. All boxes of a key are of "
                "what makes its one sound: give them one class, or none."
            )
        corners[key].append(box)
    if corners and all(0 <= v <= 1 for boxes in corners.values() for box in boxes for v in box):
        raise ValueError(f"{path}: all coordinates lie between 0 and 1. Multiply them by the picture's size: pixels.")
    return {key: Boxes(tuple(boxes), labels[key]) for key, boxes in corners.items()}


def files_below(folder: Path, suffixes: Iterable[str], apart: Path | None = None) -> dict[str, list[Path]]:
    """Files by name without suffix, of a folder and all inside of it (but for the folder ``apart``)."""
    found = defaultdict[str, list[Path]](list)
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in suffixes and path.is_file() and not hidden and apart not in path.resolve().parents:
            found[path.stem].append(path)
    return found


def sorted_out(key: str, files: Sequence[Path]) -> Media:
    """Which of a key's files is what.

    Raises:
        MediaError: two pictures, two sounds or two clips.
    """
    pictures = [p for p in files if p.suffix.lower() in PICTURES]
    sounds = [p for p in files if p.suffix.lower() in SOUNDS and p.suffix.lower() not in VIDEOS]
    clips = [p for p in files if p.suffix.lower() in VIDEOS]
    if pictures and clips and not sounds:  # .mp4 without pictures are sounds, too
        sounds, clips = clips, []
    for several in (pictures, sounds, clips, pictures[:1] + clips[:1]):
        if len(several) > 1:
            names = ", ".join(str(p) for p in several)
            raise MediaError(f"several files of one name: {key} is {names}. Rename or remove all but one.")
    picture, sound, clip = (next(iter(kind), None) for kind in (pictures, sounds, clips))
    return Media(picture, clip, sound)


def check_boxes(boxes: Boxes, width: int, height: int, where: Path) -> list[list[float]]:
    """Boxes as fractions of the picture. What leaves it by no more than one pixel is clipped.

    Raises:
        ValueError: a box that leaves it further, or is empty.
    """
    found = []
    for box in boxes.corners:
        x0, y0, x1, y1 = box
        said = f"{list(box)} in {where}, which is {width} x {height}"
        if x1 <= x0 or y1 <= y0:
            raise ValueError(f"box empty: {said}. Write x0 < x1 and y0 < y1. {REMEDY}")
        if min(x0, y0) < -1 or x1 > width + 1 or y1 > height + 1 or x0 >= width or y0 >= height:
            raise ValueError(f"box outside the picture: {said}. Was it drawn on another size? {REMEDY}")
        fractions = (x0 / width, y0 / height, x1 / width, y1 / height)
        found.append([min(max(v, 0.0), 1.0) for v in fractions])
    return found


def check_mask(path: Path, width: int, height: int) -> NDArray[np.bool_]:
    """What sounds, bool ``[height, width]``.

    Raises:
        MediaError: unreadable.
        ValueError: of another size than its picture, or neither of zeros and ones nor black and white.
    """
    stored = stored_mask(path)
    if stored.size != (width, height):
        w, h = stored.size
        raise ValueError(f"mask of another size: {path} is {w} x {h}, its picture {width} x {height}. Resize it.")
    mask = read_mask(path, 0 if stored.mode == "P" else 127)
    if not mask.any() and (most := int(np.asarray(stored).max(initial=0))) > 1 and "A" not in stored.mode:
        raise ValueError(f"mask neither black nor white: the brightest value of {path} is {most}. Write 255 for it.")
    return mask


def make_sample(record: Record, media: Media, cut: Cut, truth: Boxes | Path | None) -> Sample:
    """A key's record with its media.

    Raises:
        MediaError: a file is broken, or has no sound or no picture.
        ValueError: the truth does not fit the picture.
    """
    members: dict[str, bytes] = {}
    scored, where = truth is not None, media.clip or media.picture
    assert where is not None
    if media.clip:
        frame, audio = from_clip(media.clip, media.sound, cut, scored, members)
    else:
        assert media.picture is not None
        assert media.sound is not None
        shown, frame = picture(media.picture, annotated=scored)
        wave, audio = sound(media.sound, rate=cut.rate, src_id=record.id)
        members |= {frame.member: shown, str(audio.member): wave}
    target, tags = record.targets[0], record.tags
    if isinstance(truth, Boxes):
        target = replace(target, boxes=check_boxes(truth, frame.src_width, frame.src_height, where))
    elif truth is not None:
        mask = check_mask(truth, frame.src_width, frame.src_height)
        members["m.f0.t0.png"] = mask_png(mask)
        target, tags = replace(target, masks=["m.f0.t0.png"]), tags + [EMPTY] * (not mask.any())
    return Sample(replace(record, tags=tags, frames=[frame], audios=[audio], targets=[target]), members)


def from_clip(
    path: Path, beside: Path | None, cut: Cut, scored: bool, members: dict[str, bytes]
) -> tuple[Frame, Audio]:
    """Frame and sound of a clip; their bytes go into ``members``.

    Raises:
        MediaError: the clip is broken, has no picture or sound, or ends before the frame.
    """
    length = duration(path)
    at = length / 2 if cut.at is None else cut.at
    start = max(0.0, min(at - cut.seconds / 2, length - cut.seconds))
    clip = read_clip(path, cut.seconds, at - start, cut.rate, start=start, beside=beside)
    if cut.at is not None and abs(clip.frame_time - (at - start)) > 1e-6:
        raise MediaError(f"clip ends early: {path} has {length:g} s, so no frame at --at {cut.at:g}. {REMEDY}")
    met(clip.found)
    data, shown = encode_frame(clip.frame, None if scored else SHORT_SIDE)
    member = "f0.png" if scored else "f0.jpg"
    members |= {member: data, "a0.flac": flac(clip.audio, cut.rate)}
    audio = Audio("a0.flac", "source", path.stem, start, len(clip.audio) / cut.rate, cut.rate, 1)
    return Frame(member, *shown.size, *clip.frame.size, t=clip.frame_time, annotated=scored), audio


def truths(args: argparse.Namespace) -> tuple[dict[str, Boxes | Path], dict[str, str]]:
    """What is known of each key, and why it is not of some."""
    if args.boxes:
        return {**read_boxes(args.boxes)}, {}
    if not args.masks:
        return {}, {}
    files = files_below(args.masks, PICTURES)
    doubled = {
        key: f"several masks of one name: {', '.join(map(str, paths))}. Remove all but one."
        for key, paths in files.items()
        if len(paths) > 1
    }
    return {key: paths[0] for key, paths in files.items() if key not in doubled}, doubled


def plans(args: argparse.Namespace) -> list[Plan]:
    refuse_known(args.name)
    if args.masks and not args.masks.is_dir():
        raise ValueError(f"--masks {args.masks} is not a folder.")
    if not args.seconds > 0 or (args.at is not None and not args.at >= 0):
        raise ValueError("--seconds must be more than 0, and --at 0 or more.")
    known, bad = truths(args)
    scored = bool(args.boxes or args.masks)
    split = args.split or ("test" if scored else "train")
    files = files_below(args.media, {*PICTURES, *SOUNDS, *VIDEOS}, args.masks.resolve() if args.masks else None)
    labels = sorted({b.label for b in known.values() if isinstance(b, Boxes) and b.label})
    cut, jobs, missing = Cut(args.at, args.seconds, args.rate), list[Job](), list[Skipped]()
    twins = Counter(sample_key(args.name, id) for id in {*files, *known})
    for id in sorted({*files, *known}):
        key, truth = sample_key(args.name, id), known.get(id)
        label = truth.label if isinstance(truth, Boxes) else ""
        record = Record(
            args.name,
            id,
            split,
            [AS_PUBLISHED] if args.as_published else [],
            video=id,
            targets=[Target(labels.index(label) if label else -1, label, args.name if label else "none", audio=0)],
            map_rule=("mask" if args.masks else "union") if scored else "none",
            provenance=Provenance(file=args.boxes.name if args.boxes else "", licence=args.licence),
        )
        try:
            if twins[key] > 1:
                raise MediaError(f"names alike: several keys become {key} ({id}). Use letters, digits, _ and -.")
            media = sorted_out(id, files.get(id, []))
            if id in bad or (scored and truth is None):
                raise MediaError(bad.get(id) or unannotated("clip" if media.clip else "file"))
            if lacks := media.lacks:
                raise MediaError(lacking(lacks, f"no {lacks} {id} in {args.media}"))
        except MediaError as e:
            missing.append(Skipped(f"{key}-{len(missing)}" if twins[key] > 1 else key, str(e)))
        else:
            jobs.append(Job(key, partial(make_sample, record, media, cut, truth)))
    counted = {EMPTY: "have an empty mask: kept, but no prediction can be right there"}
    return [Plan(args.name, split, jobs, missing, [], args.licence, counted)]


def refuse_known(name: str) -> None:
    """Raises:
    ValueError: a published set is called so, and its numbers would stand beside this one's.
    """
    from avloc.evaluation.benchmarks import BENCHMARKS  # imports torch, which --help does without

    if not name or name in {known.partition("/")[0] for known in BENCHMARKS}:
        raise ValueError(f"--name {name} is a published set's. Give yours a name of its own.")


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when at least one record was written."""
    p = options("data_prep.folder", __doc__, {"media": "folder of pictures with sounds, or of clips"})
    out = next(action for action in p._actions if action.dest == "out")
    out.required, out.default = False, Path(os.environ.get("AVLOC_DATA") or "data")
    out.help = "data root; shards go to OUT/NAME (default: $AVLOC_DATA, else ./data)"
    p.set_defaults(name="mine")
    truth = p.add_mutually_exclusive_group()
    truth.add_argument("--boxes", type=Path, help="csv or json: key,x0,y0,x1,y1[,class]")
    truth.add_argument("--masks", type=Path, help="folder of <key>.png")
    p.add_argument("--split", choices=["train", "val", "test"], help="(default: test with masks or boxes, else train)")
    p.add_argument("--at", type=float, help="second of a clip's frame (default: the middle)")
    p.add_argument("--seconds", type=float, default=10.0, help="of sound around a clip's frame (default: 10)")
    p.add_argument("--licence", default="", help="of the media, kept in the index")
    rate_option(p)
    return convert(p, plans, argv)


if __name__ == "__main__":
    sys.exit(main())
