"""AVS-V3 (GAVS): AVSBench-semantic by object classes that are seen or unseen in training.

    python -m data_prep.avs_v3 --media avs_released --lists v3 --split train val test --out data

``v3`` holds GAVS's ``meta_v3_*.csv`` and ``v3_{1,3,5}_shot/{train,test}.csv``; rows are found in AVSS's
``metadata.csv`` by uid and part. Splits: ``train`` and ``val`` (seen classes), ``test`` (unseen, the 0-shot test), and
``train_1shot``, ``train_3shot``, ``train_5shot``. The k-shot test is ``avs_v3/v3_1shot_test`` and so on: it lacks harp,
bell and squirrel, so it is another test than the 0-shot one, which is published beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avloc.data.schema import sample_key
from avloc.data.shards import Skipped
from data_prep.avss import (
    COUNTED,
    LICENCE,
    PUBLISHED,
    Row,
    metadata_of,
    object_notes,
    plan_rows,
    read_metadata,
    root_of,
)
from data_prep.common import Plan, convert, options
from data_prep.tables import no_twins, read_table

__all__ = ["Lists", "main", "read_lists"]

SHOTS = (1, 3, 5)
FILES = {"train": "meta_v3_seen_train.csv", "val": "meta_v3_seen_val.csv", "test": "meta_v3_unseen.csv"}
Id = tuple[str, str]


@dataclass(frozen=True)
class Lists:
    """The re-split.

    Attributes:
        splits: (uid, part) of each, by split.
        tags: of each (uid, part).
        notes: what the lists themselves say that a reader must know.
    """

    splits: dict[str, list[Id]]
    tags: dict[Id, list[str]]
    notes: list[str]


def read_ids(path: Path) -> list[Id]:
    rows = read_table(path, ("uid", "label"), header=True)
    no_twins((f"{r['label']}/{r['uid']}" for r in rows), path)
    return [(r["uid"], r["label"]) for r in rows]


def read_lists(folder: Path, rows: dict[Id, Row]) -> Lists:
    """GAVS's csv files.

    Args:
        folder: holds them.
        rows: of ``metadata.csv``, by uid and part, for the classes.

    Raises:
        OSError, ValueError: a file is absent, has other columns, or names a clip twice.
    """
    splits = {split: read_ids(folder / file) for split, file in FILES.items()}
    tags: dict[Id, list[str]] = {}
    for split, names in (
        ("train", ["v3_seen", "v3_seen_train"]),
        ("val", ["v3_seen", "v3_seen_val"]),
        ("test", ["v3_unseen"]),
    ):
        for id in splits[split]:
            tags.setdefault(id, []).extend(names)
    few: set[Id] = set()
    for k in SHOTS:
        for part in ("train", "test"):
            ids = read_ids(folder / f"v3_{k}_shot" / f"{part}.csv")
            few |= set(ids)
            for id in ids:
                tags.setdefault(id, []).append(f"v3_{k}shot_{part}")
            if part == "train":
                splits[f"train_{k}shot"] = ids
    notes = []
    seen = folder / "meta_v3_seen.csv"
    if seen.is_file() and set(read_ids(seen)) != {*splits["train"], *splits["val"]}:
        notes.append("meta_v3_seen.csv is not the union of its train and val files")
    if stray := few - set(splits["test"]):
        notes.append(f"{len(stray)} clips of the few-shot files are not among the unseen ones ({min(stray)[0]})")
    absent = objects(splits["test"], rows) - objects(list(few), rows)
    if absent:
        notes.append(
            f"{len(absent)} of the unseen classes are in no few-shot file ({', '.join(sorted(absent))}): "
            f"{len(few)} of {len(splits['test'])} clips are, so 0-shot and few-shot tests differ"
        )
    return Lists(splits, tags, notes)


def objects(ids: Sequence[Id], rows: dict[Id, Row]) -> set[str]:
    return {o for id in ids if id in rows for o in rows[id].objects}


def parser() -> argparse.ArgumentParser:
    p = options(
        "data_prep.avs_v3",
        __doc__,
        {
            "media": "folder avs_released of AVSBench-semantic",
            "lists": "folder with GAVS's meta_v3_*.csv and v3_*_shot",
        },
        PUBLISHED,
    )
    p.add_argument("--metadata", type=Path, help="metadata.csv of AVSS (default: that of the folder)")
    splits = [*FILES, *(f"train_{k}shot" for k in SHOTS)]
    p.add_argument("--split", nargs="+", choices=splits, default=["test"], help="which (default: test)")
    return p


def plans(args: argparse.Namespace) -> list[Plan]:
    dataset, root = args.name or "avs_v3", root_of(args.media)
    rows = {(r.uid, r.label): r for r in read_metadata(metadata_of(args, root))}
    lists = read_lists(args.lists, rows)
    made = []
    for split in args.split:
        ids = lists.splits[split]
        own = [rows[id] for id in ids if id in rows]
        jobs, missing = plan_rows(dataset, split, own, root, lists.tags, args.as_published)
        missing += [
            Skipped(
                sample_key(dataset, uid),
                f"no annotation row: {part}/{uid} is not in metadata.csv. Leave it out, or get the file that has it.",
            )
            for uid, part in ids
            if (uid, part) not in rows
        ]
        notes = lists.notes + object_notes(own, args.as_published)
        made.append(Plan(dataset, split, jobs, missing, notes, LICENCE, COUNTED))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when every split gave at least one record."""
    return convert(parser(), plans, argv)


if __name__ == "__main__":
    sys.exit(main())
