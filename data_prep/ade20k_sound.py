"""ADE20K, sound prompted (DenseAV): a picture, a VGGSound sound of one of its classes, and the class's pixels.

    python -m data_prep.ade20k_sound --media ADE20KSoundPrompted --out data
    python -m data_prep.ade20k_sound --media ADE20KSoundPrompted --out data --truth box

ADE20KSoundPrompted holds ``frames``, ``audio``, ``annotations`` and ``prompted_segmentation.csv``. The second command
writes the set ``ade20k_sound_box``: the smallest box around the mask, as ACL-X scores it. DenseAV crops the centre of
picture and mask; here both are whole, and squashed like every other set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from avloc.data.media import MediaError
from avloc.data.schema import Provenance, Record, Sample, Target, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.common import Plan, convert, options
from data_prep.loose import existing, sounds, subfolder
from data_prep.members import AS_PUBLISHED, mask_png, picture, sound, stored_mask
from data_prep.tables import no_twins, read_table, unlisted

__all__ = ["class_map", "main", "mask_box", "read_rows"]

LICENCE = "DenseAV MIT; ADE20K pictures under its own terms; VGGSound CC BY 4.0"
CSV = "prompted_segmentation.csv"
COLUMNS = ("image_location", "vggsound_file", "ade_class_id")


def read_rows(path: Path) -> list[tuple[str, str, int]]:
    """``(image_location, stem of the sound, class)`` of every row; "" and 0 where there is none.

    Raises:
        ValueError: a missing column, or a class that is no number; names the row.
    """
    rows = []
    for n, r in enumerate(read_table(path, COLUMNS, header=True), start=1):
        try:
            class_id = int(float(r["ade_class_id"] or 0))  # pandas writes 547.0 when a column has gaps
        except (ValueError, OverflowError) as e:
            raise ValueError(f"{path}, row {n}: ade_class_id {r['ade_class_id']!r} is not a class number.") from e
        rows.append((r["image_location"], PurePosixPath(r["vggsound_file"]).stem, class_id))
    return rows


def class_map(path: Path) -> NDArray[np.int64]:
    """Class numbers ``[h, w]`` of ADE20K's full encoding: ``(R div 10) * 256 + G``.

    Raises:
        MediaError: absent, broken, or without colours.
    """
    pixels = np.asarray(stored_mask(path))
    if pixels.ndim != 3:
        raise MediaError(
            f"{path} cannot be decoded as a mask (no colours, so not ADE20K's full encoding). Get it again."
        )
    return pixels[..., 0].astype(np.int64) // 10 * 256 + pixels[..., 1]


def mask_box(mask: NDArray[np.bool_]) -> list[list[float]]:
    """The smallest half-open box around a mask ``[h, w]`` as fractions, ``[[x0, y0, x1, y1]]``; [] if it is empty."""
    if not mask.any():
        return []
    (y0, y1), (x0, x1) = (np.flatnonzero(mask.any(axis))[[0, -1]].tolist() for axis in (1, 0))
    h, w = mask.shape
    return [[x0 / w, y0 / h, (x1 + 1) / w, (y1 + 1) / h]]


def make_sample(record: Record, image: Path, wave: Path, mask: Path, keep_empty: bool) -> Sample:
    """A row's sample; the rest of the record is given.

    Raises:
        MediaError: a file is broken, or the mask has no pixel of the class.
    """
    target = record.targets[0]
    pixels, frame = picture(image, annotated=True)
    heard, audio = sound(wave, src_id=wave.stem)
    truth = class_map(mask) == target.class_id
    if not truth.any() and not keep_empty:
        raise MediaError(
            f"mask empty: {mask} has no pixel of class {target.class_id}. Leave it out, or keep it: --as-published."
        )
    members = {frame.member: pixels, str(audio.member): heard}
    if record.map_rule == "mask":
        members["m.f0.t0.png"] = mask_png(truth)
        target = replace(target, masks=["m.f0.t0.png"])
    return Sample(
        replace(record, frames=[frame], audios=[audio], targets=[replace(target, boxes=mask_box(truth))]), members
    )


def plans(args: argparse.Namespace) -> list[Plan]:
    name = args.name or ("ade20k_sound" if args.truth == "mask" else "ade20k_sound_box")
    table = read_rows(args.media / CSV)
    rows = [(image, wave, class_id) for image, wave, class_id in table if wave and class_id]
    ids = [f"{PurePosixPath(image).with_suffix('')}_{class_id}_{wave}" for image, wave, class_id in rows]
    no_twins(ids, args.media / CSV)
    frames, masks = (subfolder(args.media, [f], what) for f, what in (("frames", "picture"), ("annotations", "mask")))
    waves = sounds(args.media, "audio")
    jobs, missing = [], []
    for n, (id, (image, wave, class_id)) in enumerate(zip(ids, rows, strict=True)):
        key = sample_key(name, id)
        record = Record(
            name,
            id,
            "test",
            [AS_PUBLISHED] if args.as_published else [],
            targets=[Target(class_id, f"ade20k {class_id}", "ade20k_full", audio=0)],
            map_rule="mask" if args.truth == "mask" else "union",
            provenance=Provenance("mhamilton723/DenseAV", file=CSV, row=n, licence=LICENCE),
        )
        try:
            image_file = existing(frames, image, "picture")
            mask = existing(masks, str(PurePosixPath(image).with_suffix("")) + "_seg.png", "mask")
            made = partial(make_sample, record, image_file, waves.find(wave), mask, args.as_published)
        except MediaError as e:
            missing.append(Skipped(key, str(e)))
        else:
            jobs.append(Job(key, made))
    found = (p.relative_to(frames).as_posix() for p in sorted(frames.rglob("*.jpg")))
    missing += unlisted(name, found, (image for image, _, _ in table))
    notes = [f"{len(table) - len(rows)} rows without a sound or of class 0 are left out, as DenseAV does"]
    return [Plan(name, "test", jobs, missing, notes if len(table) > len(rows) else [], LICENCE)]


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when at least one record was written."""
    media = f"folder with frames, audio, annotations and {CSV}"
    p = options("data_prep.ade20k_sound", __doc__, {"media": media}, "keep rows whose mask has no pixel of the class")
    p.add_argument("--truth", choices=["mask", "box"], default="mask", help="box: write ade20k_sound_box")
    return convert(p, plans, argv)


if __name__ == "__main__":
    sys.exit(main())
