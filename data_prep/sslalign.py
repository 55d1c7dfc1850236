"""Evaluation lists of SSLalignment: a json array of ``{image, audio, gt_box}``, one row an annotation with its own
picture and sound. `data_prep.is3` and `data_prep.vpo` are made of them.

``gt_box`` is a box in whole cells of a 224 grid (``*_bbox.json``) or the path of a mask (``*_seg.json``). Paths are
the authors' own: only their stems count, ``<group>_<last token>``.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from avloc.bounds import parsed_json
from avloc.data.media import MediaError
from avloc.data.schema import Provenance, Record, Sample, Target, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.common import Plan, options
from data_prep.loose import Files
from data_prep.members import AS_PUBLISHED, mask_png, picture, read_mask, sound, stored_mask
from data_prep.tables import clip_boxes, no_twins, unlisted

__all__ = ["Annotation", "box_target", "group_notes", "make_sample", "parser", "plan", "read_annotations"]

GRID = 224
REPOSITORY = "kaistmm/SSLalignment"
NO_LICENCE = "none stated"


@dataclass(frozen=True)
class Annotation:
    """A row of the list.

    Attributes:
        stem: of its picture, sound and mask.
        box: x0, y0, x1, y1 on the 224 grid, half-open; None where the list names a mask.
        row: place in the list, from 0.
    """

    stem: str
    box: tuple[float, ...] | None
    row: int

    @property
    def group(self) -> str:
        """The stem without its last token: what SSLalignment's interactive metric groups by."""
        return self.stem.rpartition("_")[0]


def read_annotations(path: Path) -> list[Annotation]:
    """The rows of a list.

    Raises:
        ValueError: not such a list, a box that is not four finite numbers, a picture and a sound of different
            stems, or a stem that occurs twice; names the row.
    """
    try:
        rows = [(PurePosixPath(r["image"]).stem, PurePosixPath(r["audio"]).stem, r["gt_box"]) for r in read_json(path)]
    except (KeyError, TypeError) as e:
        raise ValueError(
            f"{path} is no list of SSLalignment ({type(e).__name__}: {e}): rows must have image, audio, gt_box."
        ) from e
    found = []
    for n, (image, audio, truth) in enumerate(rows):
        numbers = isinstance(truth, list) and len(truth) == 4
        if not (isinstance(truth, str) or (numbers and all(isinstance(v, int | float) for v in truth))):
            raise ValueError(f"{path}, row {n} ({image}): gt_box {truth!r} is neither four numbers nor a mask's path.")
        if numbers and not all(map(math.isfinite, truth)):
            raise ValueError(f"{path}, row {n} ({image}): gt_box {truth} is not finite. Get the list again.")
        if image != audio or "_" not in image:
            raise ValueError(f"{path}, row {n}: picture {image} and sound {audio} must share a stem <group>_<token>.")
        found.append(Annotation(image, tuple(map(float, truth)) if numbers else None, n))
    no_twins((a.stem for a in found), path)
    return found


def read_json(path: Path) -> list[dict]:
    """A json array of objects.

    Raises:
        ValueError: something else.
    """
    try:
        rows = parsed_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as e:
        raise ValueError(f"{path} is not JSON ({e}). Get the official file again.") from e
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise ValueError(f"{path} is not an array of objects. Is it the official file?")
    return rows


def box_target(box: Sequence[float] | None, class_id: int = -1, label: str = "", space: str = "none") -> Target:
    """The target of a box on the 224 grid; of a mask, without one."""
    boxes = clip_boxes([[v / GRID for v in box]])[0] if box else []
    raw = [list(box)] if box else None
    return Target(class_id, label, space, audio=0, boxes=boxes, boxes_raw=raw, raw_format="xyxy_224_excl")


def parser(module: str, doc: str | None, media: str, lists: str) -> argparse.ArgumentParser:
    """Options of a set of this kind.

    Args:
        module, doc: as `data_prep.common.options`.
        media: help of ``--media``.
        lists: help of ``--annotations``.
    """
    p = options(module, doc, {"media": media})
    p.add_argument("--annotations", type=Path, required=True, help=lists)
    p.add_argument("--truth", choices=["box", "mask"], default="box", help="mask: write the set NAME_seg")
    return p


def plan(
    args: argparse.Namespace,
    dataset: str,
    images: Files,
    waves: Files,
    masks: Files | None,
    classify: Callable[[str], tuple[int, str, str]],
    tag_groups: bool,
    licence: str,
) -> Plan:
    """The set of a list whose files all go by the annotation's stem.

    Args:
        args: parsed options.
        dataset: its name, without ``_seg``.
        images, waves, masks: its files; masks for ``--truth mask`` only.
        classify: stem to class id, class name and label space.
        tag_groups: members of groups with more than one member carry the tag ``true_group``.
        licence: for index and records.

    Raises:
        ValueError: a list without boxes where boxes are wanted; and as `read_annotations`.
    """
    annotations = read_annotations(args.annotations)
    if args.truth == "box" and any(a.box is None for a in annotations):
        raise ValueError(f"{args.annotations} names masks, not boxes. Give the *_bbox.json, or --truth mask.")
    name = args.name or dataset + ("_seg" if masks else "")
    sizes = Counter(a.group for a in annotations)
    jobs, missing = [], []
    for a in annotations:
        key = sample_key(name, a.stem)
        tags = [AS_PUBLISHED] if args.as_published else []
        tags += ["true_group"] if tag_groups and sizes[a.group] > 1 else []
        record = Record(
            name,
            a.stem,
            "test",
            tags,
            group=a.group,
            group_size=sizes[a.group],
            targets=[box_target(a.box, *classify(a.stem))],
            map_rule="mask" if masks else "union",
            provenance=Provenance(REPOSITORY, file=args.annotations.name, row=a.row, licence=licence),
        )
        try:
            paths = images.find(a.stem), waves.find(a.stem), masks.find(a.stem) if masks else None
        except MediaError as e:
            missing.append(Skipped(key, str(e)))
        else:
            jobs.append(Job(key, partial(make_sample, record, *paths), a.group))
    notes = box_notes(annotations) + group_notes(jobs, sizes)
    missing += unlisted(name, images.stems, (a.stem for a in annotations))
    return Plan(name, "test", jobs, missing, notes, licence)


def make_sample(record: Record, image: Path, wave: Path, mask: Path | None, value: int | None = None) -> Sample:
    """Picture, sound and mask of an annotation; the rest of the record is given.

    Args:
        record: without frames and audios.
        image, wave: files.
        mask: file; None for box truth.
        value: the mask's pixels of this value count; None for those above 127, as JPEG's rings spread around 0.

    Raises:
        MediaError: one is broken.
    """
    pixels, frame = picture(image, annotated=True)
    heard, audio = sound(wave, src_id=wave.stem)
    members = {frame.member: pixels, str(audio.member): heard}
    target = record.targets[0]
    if mask:
        members["m.f0.t0.png"] = mask_png(read_mask(mask) if value is None else class_mask(mask, value))
        target = replace(target, masks=["m.f0.t0.png"])
    return Sample(replace(record, frames=[frame], audios=[audio], targets=[target]), members)


def class_mask(path: Path, value: int) -> NDArray[np.bool_]:
    """Where an index map (or palette picture) has this value, bool ``[h, w]``.

    Raises:
        MediaError: absent, broken, or a colour picture.
    """
    pixels = np.asarray(stored_mask(path))
    if pixels.ndim != 2:
        raise MediaError(f"{path} cannot be decoded as a mask (it has colours, not class numbers). Get it again.")
    return pixels == value


def box_notes(annotations: Sequence[Annotation]) -> list[str]:
    """What is odd about the boxes."""
    boxes = {a.stem: a.box for a in annotations if a.box}
    outside = [s for s, b in boxes.items() if min(b) < 0 or max(b) > GRID]
    empty = [s for s, (x0, y0, x1, y1) in boxes.items() if x1 <= x0 or y1 <= y0]
    notes = []
    if outside:
        notes.append(f"fix clip_boxes: {len(outside)} boxes leave the 224 grid and are clipped ({outside[0]}, ...)")
    if empty:
        notes.append(
            f"{len(empty)} boxes are empty ({', '.join(empty[:5])}): kept, but no prediction can be right there"
        )
    return notes


def group_notes(jobs: Sequence[Job], sizes: Counter[str]) -> list[str]:
    """Which groups the interactive metric sees."""
    present = Counter(j.group for j in jobs)
    cut = [g for g, n in present.items() if n < sizes[g]]
    single = sum(n == 1 for n in sizes.values())
    notes = [f"{len(sizes)} groups, {single} of them with a single member"]
    if cut:
        notes.append(f"{len(cut)} groups lack members whose media are missing ({cut[0]}, ...)")
    return notes
