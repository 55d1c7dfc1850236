"""VGG-SS-Sub, on which GAVS learns from a few clips of a class: a draw of this project's own.

    python -m data_prep.vggss_sub --videos clips --boxes vggss.json --split test train_5shot --out data
    python -m data_prep.vggss_sub --media VGGSS  --boxes vggss.json --split test train_5shot --out data

GAVS's article names neither the clips nor the classes of its subset, so the printed numbers and those on this set are
of different clips. Here, of every class of VGG-SS, five clips are for learning and up to five others for testing, the
same for every user (``--seed``) whatever media are at hand: ``train_1shot`` holds the first of a class, ``train_3shot``
and ``train_5shot`` the first three and five; ``test`` is the same for all of them. No test clip is of a video with a
clip for learning, and clips whose boxes are empty on the grid of 224 cells are in neither.

Media are the clips that `data_prep.vggsound` reads, or ``frames/<key>.jpg`` and ``audio/<key>.wav``. A mask to learn
from is the union of a clip's boxes.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from avloc.data.media import Library, MediaError
from avloc.data.schema import Provenance, Record, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.common import Plan, convert, options, rate_option
from data_prep.loose import pictures, sounds
from data_prep.members import AS_PUBLISHED
from data_prep.tables import clip_boxes
from data_prep.vgg_duet import files_of, make_sample, target_of
from data_prep.vggsound import LICENCE, box_notes, class_ids, read_boxes

__all__ = ["SHOTS", "draw", "main"]

SHOTS = (1, 3, 5)
TESTED = 5  # clips of a class
GRID = 224
Boxes = Mapping[str, tuple[str, list[list[float]]]]


def draw(boxes: Boxes, seed: int = 0) -> dict[str, list[str]]:
    """Clips of each split, in the order of their classes: ``train_1shot``, ``train_3shot``, ``train_5shot``, ``test``.

    A class's clips are shuffled by a generator of its own, so they do not depend on the other classes.

    Args:
        boxes: of ``vggss.json``: id to class name and raw boxes.
        seed: of the draw.
    """
    shuffled = {label: shuffle(boxes, label, seed) for label in sorted({label for label, _ in boxes.values()})}
    most = max(SHOTS)
    splits = {f"train_{k}shot": [id for ids in shuffled.values() for id in ids[:k]] for k in SHOTS}
    learned = {id[:11] for id in splits[f"train_{most}shot"]}
    others = ([id for id in ids[most:] if id[:11] not in learned] for ids in shuffled.values())
    return splits | {"test": [id for ids in others for id in ids[:TESTED]]}


def shuffle(boxes: Boxes, label: str, seed: int) -> list[str]:
    """The clips of a class whose boxes hold a cell."""
    ids = sorted(id for id, (own, raw) in boxes.items() if own == label and any(map(holds, clip_boxes(raw)[0])))
    order = np.random.default_rng([seed, zlib.crc32(label.encode())]).permutation(len(ids))
    return [ids[i] for i in order]


def holds(box: Sequence[float]) -> bool:
    """Whether a box of fractions has a cell as published evaluators rasterise it."""
    x0, y0, x1, y1 = (int(v * GRID) for v in box)
    return x1 > x0 and y1 > y0


def plans(args: argparse.Namespace) -> list[Plan]:
    if bool(args.videos) == bool(args.media):
        raise ValueError("Give either --videos or --media.")
    if args.videos and not args.videos.is_dir():
        raise ValueError(f"--videos {args.videos} is not a folder")
    boxes, name = read_boxes(args.boxes), args.name or "vggss_sub"
    drawn, ids = draw(boxes, args.seed), class_ids(label for label, _ in boxes.values())
    images = pictures(args.media, "frames") if args.media else None
    waves = sounds(args.media, "audio") if args.media else None
    videos = Library(args.videos, args.out / name / ".parts") if args.videos else None
    made = []
    for split in args.split:
        jobs, missing = [], []
        for id in drawn[split]:
            key = sample_key(name, id)
            record = Record(
                name,
                id,
                "test" if split == "test" else "train",
                [AS_PUBLISHED] * args.as_published,
                video=id[:11],
                targets=[target_of(0, id, boxes, ids)],
                map_rule="union",
                provenance=Provenance(file=args.boxes.name, licence=LICENCE),
            )
            try:
                files = [(id, files_of(id, videos, images, waves))]
            except MediaError as e:
                missing.append(Skipped(key, str(e)))
            else:
                jobs.append(Job(key, partial(make_sample, record, args.rate, files)))
        notes = [f"clips are drawn by this project (seed {args.seed}); the list of GAVS is not published"]
        notes += [*box_notes({id: boxes[id] for id in drawn[split]}), *(videos.remarks if videos else [])]
        made.append(Plan(name, split, jobs, missing, notes, LICENCE))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when every split gave at least one record."""
    p = options("data_prep.vggss_sub", __doc__, {})
    p.add_argument("--videos", type=Path, help="folder of <id>_<start>.mp4 files")
    p.add_argument("--media", type=Path, help="or folder with frames and audio")
    p.add_argument("--boxes", type=Path, required=True, help="vggss.json")
    rate_option(p)
    splits = [*(f"train_{k}shot" for k in SHOTS), "test"]
    p.add_argument("--split", nargs="+", choices=splits, default=["test"], help="which (default: test)")
    return convert(p, plans, argv)


if __name__ == "__main__":
    sys.exit(main())
