"""VGGSound-Instruments: 446 frames with a mask of the instrument; alone, or two pictures with the sum of their sounds.

    python -m data_prep.vgg_instruments --media VGGSound-Instruments --annotations vgginstruments_test.csv --out data
    python -m data_prep.vgg_instruments_mixed --media ... --annotations vgginstruments_multi_test.csv --out data

VGGSound-Instruments holds ``frames/sampleNNNN.jpg``, ``audio/sampleNNNN.wav`` and ``anno/sampleNNNN.pkl``. The masks
are pickles, read by `data_prep.array_pickle`, which runs nothing of them. Samples carry no YouTube id, so overlap with
a training set cannot be checked. Training clips are VGGSound's, under the names of the 37
classes; 868 of them are test clips of VGG-SS. Both sets train on them, the mixed one on random mixtures:

    python -m data_prep.vgg_instruments --videos clips --annotations vgginstruments_train.txt --out data
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avloc.data.labels import LABEL_SPACES
from avloc.data.media import Library, MediaError, Source
from avloc.data.schema import Provenance, Record, Sample, Target, sample_key
from avloc.data.shards import Job, Skipped
from data_prep import vggsound
from data_prep.array_pickle import read_array
from data_prep.common import Plan, convert, options, rate_option
from data_prep.loose import Files, pictures, sounds, subfolder
from data_prep.members import AS_PUBLISHED, mask_png, picture, sound
from data_prep.tables import no_twins, read_table, unlisted
from data_prep.vgg_duet import clip_of
from data_prep.vggsound import Media
from data_prep.vggsound import Row as Clip

__all__ = ["Row", "convert_instruments", "main", "read_mask", "read_rows"]

LICENCE = "none stated"
REPOSITORY = "stoneMo/AVGN"
CLASSES = LABEL_SPACES["instruments37"]


@dataclass(frozen=True)
class Row:
    """A line of the csv: the samples and the class of each, one or two."""

    ids: tuple[str, ...]
    labels: tuple[str, ...]


def read_rows(path: Path) -> list[Row]:
    """``id,class`` or ``id,class,partner,partner class``.

    Raises:
        ValueError: another number of fields, a class that is none of the 37, or a first id that occurs twice.
    """
    rows = []
    table = read_table(path, ["id", "class", "partner", "partner class"], clips=("id", "partner"))
    for n, r in enumerate(table, start=1):
        ids = (r["id"], r["partner"]) if r["partner"] else (r["id"],)
        labels = (r["class"], r["partner class"])[: len(ids)]
        if bad := [label for label in labels if label not in CLASSES]:
            raise ValueError(f"{path}, row {n}: {bad[0]!r} is none of the 37 instruments. Is it the official file?")
        rows.append(Row(ids, labels))
    no_twins((r.ids[0] for r in rows), path)
    if len({len(r.ids) for r in rows}) > 1:
        raise ValueError(f"{path} has rows with and without a partner. Get the official file again.")
    return rows


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Where the pickled array is not zero, bool ``[h, w]``.

    Raises:
        MediaError: not a finite two-dimensional array of numbers.
    """
    values = read_array(path)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise MediaError(f"{path} cannot be decoded as a mask (shape {values.shape}, or not finite). Leave it out.")
    return values != 0


def make_sample(record: Record, rate: int, files: Sequence[tuple[Path, Path, Path]]) -> Sample:
    """Frame, sound and mask of each sample of a row; the rest of the record is given.

    Args:
        record: without frames and audios.
        rate: Hz of the sounds.
        files: picture, sound and mask of each.

    Raises:
        MediaError: one is broken.
    """
    members: dict[str, bytes] = {}
    frames, audios, targets = [], [], []
    for i, (image, wave, mask) in enumerate(files):
        pixels, frame = picture(image, f"f{i}", annotated=True)
        heard, audio = sound(wave, f"a{i}", rate=rate, src_id=wave.stem)
        name = f"m.f{i}.t{i}.png"
        members |= {frame.member: pixels, str(audio.member): heard, name: mask_png(read_mask(mask))}
        frames.append(frame)
        audios.append(audio)
        targets.append(replace(record.targets[i], masks=[name]))
    return Sample(replace(record, frames=frames, audios=audios, targets=targets), members)


def training_sample(media: Media, clip: Clip, video: Source) -> Sample:
    """A clip of VGGSound as the instrument that it is listed as. Raises as `data_prep.vggsound.make_sample`."""
    sample = vggsound.make_sample(media, clip, video, None, None, CLASSES.index(clip.label), [])
    sample.record.targets[0].label_space = "instruments37"
    return sample


def training_plans(name: str, args: argparse.Namespace) -> list[Plan]:
    if not args.videos or not args.videos.is_dir():
        raise ValueError(f"{args.annotations} lists clips of VGGSound: give their folder as --videos.")
    media = Media(name, "train", "flac", 400, args.as_published, rate=args.rate)
    library = Library(args.videos, args.out / name / ".parts")
    clips = [replace(clip_of(row.ids[0]), label=row.labels[0]) for row in read_rows(args.annotations)]
    jobs, missing = vggsound.found(library, name, clips, partial(partial, training_sample, media))
    return [Plan(name, "train", jobs, missing, library.remarks, vggsound.LICENCE)]


def plans(dataset: str, args: argparse.Namespace) -> list[Plan]:
    if args.annotations.suffix == ".txt":
        return training_plans(args.name or dataset, args)
    if not args.media or not args.media.is_dir():
        raise ValueError(f"{args.annotations} lists test samples: give the folder of frames, audio, anno as --media.")
    rows = read_rows(args.annotations)
    mixed = dataset.endswith("_mixed")
    if any((len(r.ids) > 1) != mixed for r in rows):
        right = "vgginstruments_multi_test.csv" if mixed else "vgginstruments_test.csv"
        raise ValueError(f"{args.annotations} is not {right}: it has {'no ' if mixed else ''}partners.")
    name = args.name or dataset
    images, waves = pictures(args.media, "frames"), sounds(args.media, "audio")
    masks = Files(subfolder(args.media, ["anno"], "mask"), "mask", [".pkl"])
    jobs, missing = [], []
    for n, row in enumerate(rows):
        key = sample_key(name, row.ids[0])
        record = Record(
            name,
            row.ids[0],
            "test",
            (["duet"] if mixed else []) + ([AS_PUBLISHED] if args.as_published else []),
            targets=[
                Target(CLASSES.index(label), label, "instruments37", audio=i) for i, label in enumerate(row.labels)
            ],
            map_rule="mask",
            provenance=Provenance(REPOSITORY, file=args.annotations.name, row=n, licence=LICENCE),
        )
        try:
            files = [(images.find(i), waves.find(i), masks.find(i)) for i in row.ids]
        except MediaError as e:
            missing.append(Skipped(key, str(e)))
        else:
            jobs.append(Job(key, partial(make_sample, record, args.rate, files)))
    missing += unlisted(name, images.stems, (i for r in rows for i in r.ids))
    return [Plan(name, "test", jobs, missing, [], LICENCE)]


def convert_instruments(dataset: str, argv: Sequence[str] | None = None) -> int:
    """Convert ``vgg_instruments`` or ``vgg_instruments_mixed``; 0 when at least one record was written."""
    p = options(f"data_prep.{dataset}", __doc__, {})
    p.add_argument("--media", type=Path, help="folder with frames, audio and anno, of the test set")
    p.add_argument("--videos", type=Path, help="folder of <id>_<start>.mp4 files, of the training set")
    rate_option(p)
    p.add_argument("--annotations", type=Path, required=True, help="the official csv, or vgginstruments_train.txt")
    return convert(p, partial(plans, dataset), argv)


main = partial(convert_instruments, "vgg_instruments")

if __name__ == "__main__":
    sys.exit(main())
