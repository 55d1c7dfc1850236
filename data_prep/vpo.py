"""VPO-SS and VPO-MS: COCO pictures with VGGSound sounds of the same class, one row an annotated object.

    python -m data_prep.vpo_ms --media COCO_AV_MS --annotations vpo_ms_bbox.json --out data
    python -m data_prep.vpo_ms --media COCO_AV_MS --annotations vpo_ms_bbox.json --out data --truth mask
    python -m data_prep.vpo_ms --media VPO-MS --annotations vpo_ms.csv --sounds vggsound/audios --out data --truth mask

The first two read SSLalignment's release, whose lists ACL-X scores: folders ``visual_frames``, ``audio_wav`` and
``gray_masks``. The third reads CAVP's own: ``data`` and ``mask`` (of VPO-SS in sub-folders by class), and its csv. The
set of masks is called ``vpo_ms_seg``. The pictures of a COCO image lie side by side in a shard; where it has more
than one, they carry the tag ``true_group``: half of VPO-MS's interactive groups have a single member.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from avloc.data.labels import LABEL_SPACES
from avloc.data.media import SOUNDS, MediaError
from avloc.data.schema import Provenance, Record, Target, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.common import Plan, convert
from data_prep.loose import Files, existing, pictures, sounds, subfolder
from data_prep.members import AS_PUBLISHED
from data_prep.sslalign import group_notes, make_sample, parser, plan
from data_prep.tables import no_twins, read_table

__all__ = ["cavp_plan", "main"]

LICENCE = "none stated for VPO; COCO annotations CC BY 4.0, pictures under Flickr licences; VGGSound CC BY 4.0"
COLUMNS = ("cateName", "cateId", "img_Id", "ann_Ids", "vgg_file", "split")


def unknown(stem: str) -> tuple[int, str, str]:
    """SSLalignment's lists do not say the class."""
    return -1, "", "none"


def plans(dataset: str, args: argparse.Namespace) -> list[Plan]:
    if args.annotations.suffix == ".csv":
        return [cavp_plan(dataset, args)]
    images = pictures(args.media, "visual_frames", "images")
    waves = sounds(args.media, "audio_wav", "audio")
    masks = pictures(args.media, "gray_masks", "gt_masks", what="mask") if args.truth == "mask" else None
    return [plan(args, dataset, images, waves, masks, unknown, tag_groups=True, licence=LICENCE)]


def cavp_plan(dataset: str, args: argparse.Namespace) -> Plan:
    """CAVP's release: the rows of its csv that are of the split ``val`` (renamed ``test`` by its code) or ``test``.

    Args:
        dataset: ``vpo_ss`` or ``vpo_ms``.
        args: parsed options, with ``--sounds`` and ``--truth mask``.

    Raises:
        ValueError: box truth or no sounds, a bad csv, or an annotation that occurs twice.
    """
    if args.truth == "box" or not args.sounds:
        raise ValueError("CAVP's csv comes with masks and without sounds: give --truth mask and --sounds FOLDER.")
    name = args.name or f"{dataset}_seg"
    rows = [r for r in read_table(args.annotations, COLUMNS, header=True) if r["split"] in ("val", "test")]
    stems = [f"{r['img_Id'].zfill(12)}_{r['ann_Ids']}" for r in rows]
    no_twins(stems, args.annotations)
    sizes = Counter(s.partition("_")[0] for s in stems)
    waves = Files(args.sounds, "sound", SOUNDS)
    folders = subfolder(args.media, ["data"], "picture"), subfolder(args.media, ["mask"], "mask")
    jobs, missing = [], []
    for n, (row, stem) in enumerate(zip(rows, stems, strict=True)):
        key, group = sample_key(name, stem), stem.partition("_")[0]
        tags = [AS_PUBLISHED] if args.as_published else []
        record = Record(
            name,
            stem,
            "test",
            tags + (["true_group"] if sizes[group] > 1 else []),
            group=group,
            group_size=sizes[group],
            targets=[coco_target(row, args.annotations)],
            map_rule="mask",
            provenance=Provenance("cyh-0/CAVP", file=args.annotations.name, row=n, licence=LICENCE),
        )
        try:
            image, mask = cavp_files(*folders, row)
            wave = waves.find(row["vgg_file"])
        except MediaError as e:
            missing.append(Skipped(key, str(e)))
        else:
            jobs.append(Job(key, partial(make_sample, record, image, wave, mask, int(row["cateId"])), group))
    return Plan(name, "test", jobs, missing, group_notes(jobs, sizes), LICENCE)


def coco_target(row: dict[str, str], path: Path) -> Target:
    """Class of a row of CAVP's csv.

    Raises:
        ValueError: a class id that is no number.
    """
    if not row["cateId"].isdigit():
        raise ValueError(f"{path}: cateId {row['cateId']!r} of image {row['img_Id']} is not a class number.")
    names, label = LABEL_SPACES["coco_vpo22"], row["cateName"]
    return Target(names.index(label) if label in names else -1, label, "coco_vpo22", audio=0)


def cavp_files(data: Path, mask: Path, row: dict[str, str]) -> tuple[Path, Path]:
    """Picture and mask of a row: ``<image>.jpg`` and ``<image>.png``, or with ``_<annotation>``, in a folder of the
    class or not.

    Raises:
        MediaError: one is not there.
    """
    image = row["img_Id"].zfill(12)
    stems = [f"{image}_{row['ann_Ids'].zfill(12)}", image]
    found = []
    for what, folder, suffix in (("picture", data, ".jpg"), ("mask", mask, ".png")):
        names = [f"{place}{stem}{suffix}" for place in (f"{row['cateName']}/", "") for stem in stems]
        there = [name for name in names if (folder / name).is_file()]
        found.append(existing(folder, (there or names)[0], what))
    return found[0], found[1]


def main(dataset: str, argv: Sequence[str] | None = None) -> int:
    """Convert ``vpo_ss`` or ``vpo_ms``; 0 when at least one record was written."""
    media = "SSLalignment's folder (visual_frames, audio_wav, gray_masks), or CAVP's (data, mask)"
    p = parser(f"data_prep.{dataset}", __doc__, media, f"SSLalignment's {dataset}_bbox.json, or CAVP's csv")
    p.add_argument("--sounds", type=Path, help="with the csv: folder of VGGSound's <vgg_file>.wav")
    return convert(p, partial(plans, dataset), argv)
