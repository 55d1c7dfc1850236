"""AVSBench-object: five-second videos with a picture and a mask for each second. Shared by ``data_prep.avs_s4``,
``data_prep.avs_ms3`` and ``data_prep.avs_robust``.

Two layouts are read. The official one: ``Single-source/s4_meta_data.csv`` with ``s4_data/visual_frames/<split>/
<category>/<name>/<name>_<k>.png``, ``gt_masks/...`` alike, ``audio_wav/<split>/<category>/<name>.wav``; and
``Multi-sources/ms3_meta_data.csv`` with ``ms3_data/visual_frames/<name>/<name>.mp4_<k>.png``, ``gt_masks/<split>/
<name>/<name>_<k>.png``, ``audio_wav/<split>/<name>.wav``. And ACL-SSL's: ``s4`` or ``ms3`` with flat
``visual_frames``, ``gt_masks`` and ``audio_wav``, whose ``avs1_*_test.csv`` (``<name>_<k>,labels``) must be given as
``--list``.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avloc.bounds import parsed_json
from avloc.data.labels import LABEL_SPACES
from avloc.data.media import PICTURES, SOUNDS
from avloc.data.schema import Frame, Provenance, Record, Sample, Target, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.common import Plan, convert, options
from data_prep.members import AS_PUBLISHED, mask_png, picture, read_mask, sound, stored_mask
from data_prep.tables import files_by_stem, no_twins, read_table, unlisted
from data_prep.telling import lacking, unannotated

__all__ = [
    "MS3",
    "S4",
    "Clip",
    "Subset",
    "box_plans",
    "convert_subset",
    "find_clips",
    "make_sample",
    "mask_plans",
    "parser",
    "read_objects",
]

SECONDS = 5
VIDEO = "video"
LICENCE = "AVSBench: on request from its site; videos belong to their uploaders"


@dataclass(frozen=True)
class Subset:
    """What differs between S4 and MS3.

    Attributes:
        name: of the set, and of its variant with boxes plus ``_box``.
        short: ``s4`` or ``ms3``, as in the official file names.
        folder: of the official archive.
        label_space: of the labels.
        above: stored value above which a mask is foreground.
    """

    name: str
    short: str
    folder: str
    label_space: str
    above: int

    def expected(self, split: str) -> range:
        """Seconds, from 1, that the official set annotates."""
        return range(1, 2) if self.short == "s4" and split == "train" else range(1, SECONDS + 1)


S4 = Subset("avs_s4", "s4", "Single-source", "avs_s4_23", 127)
MS3 = Subset("avs_ms3", "ms3", "Multi-sources", "avss71", 0)


@dataclass(frozen=True)
class Clip:
    """A video.

    Attributes:
        name: YouTube id, for MS3 perhaps with ``_<part>``.
        split: of the official set.
        labels: category (S4), objects that sound (MS3); () where unknown.
        frames, masks: picture and mask of each second, from 1.
        sound: its file.
        start: of the clip within its VGGSound clip (S4), as published.
    """

    name: str
    split: str
    labels: tuple[str, ...]
    frames: Mapping[int, Path]
    masks: Mapping[int, Path]
    sound: Path | None
    start: str = ""


def find_clips(
    subset: Subset, media: Path, split: str, list_file: Path | None = None, objects: Mapping[str, tuple[str, ...]] = {}
) -> tuple[list[Clip], list[str]]:
    """The annotated videos of a split, and names of those that no row speaks of.

    Args:
        media: the official archive, or the folder that holds it, or ACL-SSL's.
        list_file: ACL-SSL's list; needed for its layout.
        objects: labels of MS3's videos, which its own table lacks.

    Raises:
        ValueError: neither layout is there, or a table names a video twice.
    """
    root = next((r for r in (media / subset.folder, media) if (r / f"{subset.short}_data").is_dir()), None)
    flat = next((r for r in (media / subset.short, media) if (r / "visual_frames").is_dir()), None)
    if root:
        clips, extra = official(subset, root, split)
    elif flat and list_file:
        clips, extra = flattened(flat, split, list_file)
    elif flat:
        raise ValueError(f"{flat} has ACL-SSL's layout: give its list too, --list avs1_{subset.short}_{split}.csv")
    else:
        raise ValueError(
            f"{media} holds neither {subset.folder}/{subset.short}_data (official) nor {subset.short}/visual_frames "
            "(ACL-SSL). Give the folder that holds one of them."
        )
    if objects:
        clips = [replace(c, labels=objects.get(c.name, c.labels)) for c in clips]
    return clips, extra


def official(subset: Subset, root: Path, split: str) -> tuple[list[Clip], list[str]]:
    data = root / f"{subset.short}_data"
    table = next((t for r in (root, data) if (t := r / f"{subset.short}_meta_data.csv").is_file()), None)
    if table is None:
        raise ValueError(f"{root} lacks {subset.short}_meta_data.csv. Unpack the whole archive.")
    single = subset.short == "s4"
    rows = read_table(table, ("name", "category", "split") if single else ("name", "split"), header=True)
    no_twins((r["name"] for r in rows), table)
    clips = []
    for row in rows:
        if row["split"] != split:
            continue
        name, category = row["name"], row.get("category", "") if single else ""
        inside = Path(split) / category
        frames = data / "visual_frames" / (inside if single else "") / name
        sounds = sound_of(data / "audio_wav" / inside, name)
        clips.append(
            Clip(
                name,
                split,
                (category,) if single else (),
                by_second(frames).get(name, {}),
                by_second(data / "gt_masks" / inside / name).get(name, {}),
                sounds,
                row.get("start", ""),
            )
        )
    places = (data / "visual_frames" / split).glob("*/*") if single else (data / "gt_masks" / split).glob("*")
    return clips, sorted({p.name for p in places if p.is_dir()} - {r["name"] for r in rows})


def sound_of(folder: Path, name: str) -> Path | None:
    return next((p for suffix in SOUNDS if (p := folder / f"{name}{suffix}").is_file()), None)


def flattened(root: Path, split: str, list_file: Path) -> tuple[list[Clip], list[str]]:
    rows = read_table(list_file, ("frame", "labels"))
    no_twins((r["frame"] for r in rows), list_file)
    frames, masks = by_second(root / "visual_frames"), by_second(root / "gt_masks")
    sounds = files_by_stem(root / "audio_wav", SOUNDS)
    seconds: dict[str, dict[int, tuple[str, ...]]] = {}
    for row in rows:
        name, k = name_and_second(row["frame"])
        labels = tuple(label.strip() for label in row["labels"].split(",") if label.strip())
        seconds.setdefault(name, {})[k] = labels
    clips = [
        Clip(
            name,
            split,
            next(iter(listed.values())),
            {k: p for k, p in frames.get(name, {}).items() if k in listed},
            {k: p for k, p in masks.get(name, {}).items() if k in listed},
            sounds.get(name),
        )
        for name, listed in seconds.items()
    ]
    return clips, sorted(set(frames) - set(seconds))


def name_and_second(stem: str) -> tuple[str, int]:
    """``<name>_<k>`` or ``<name>.mp4_<k>`` to name and second, from 1; the name may hold ``_`` itself.

    Raises:
        ValueError: neither of both.
    """
    found = re.fullmatch(r"(.+?)(?:\.mp4)?_(\d+)", stem)
    if not found:
        raise ValueError(f"{stem!r} is not of the form <name>_<second> or <name>.mp4_<second>.")
    return found[1], int(found[2])


def by_second(folder: Path) -> dict[str, dict[int, Path]]:
    """Pictures of a folder by video and second; others are nothing."""
    found: dict[str, dict[int, Path]] = {}
    for stem, path in files_by_stem(folder, PICTURES).items():
        if re.fullmatch(r".+_\d+", stem):
            name, k = name_and_second(stem)
            found.setdefault(name, {})[k] = path
    return found


def read_objects(path: Path) -> dict[str, tuple[str, ...]]:
    """Objects of MS3's videos: the v1m rows of AVSS's ``metadata.csv``.

    Raises:
        ValueError: not that file.
    """
    rows = read_table(path, ("uid", "a_obj", "label"), header=True)
    return {r["uid"]: tuple(r["a_obj"].split("_")) for r in rows if r["label"] == "v1m"}


def time_of(k: int) -> float:
    """When the picture of second k, from 1, was taken: the last of sixteen a second."""
    return k - 1 + 15 / 16


def published_mask(path: Path, subset: Subset) -> NDArray[np.bool_]:
    """A mask as published loaders open it: S4 in Pillow's mode "1", which dithers grey; MS3 as palette index over
    255."""
    image = stored_mask(path)
    if subset.short == "s4":
        return np.asarray(image.convert("1")) > 0
    return np.asarray(image.convert("P")) > 127


def target_of(subset: Subset, labels: Sequence[str]) -> Target:
    """One target for all that sounds, because the masks do not tell objects apart; classed where there is only one."""
    space = LABEL_SPACES[subset.label_space]
    single = labels[0] if len(labels) == 1 else ""
    return Target(space.index(single) if single in space else -1, ", ".join(labels), subset.label_space, audio=0)


def make_sample(dataset: str, subset: Subset, clip: Clip, tags: Sequence[str], as_published: bool) -> Sample:
    """All pictures of a video, the masks that there are, and its sound.

    Raises:
        MediaError: a file is absent or broken.
    """
    assert clip.sound
    members: dict[str, bytes] = {}
    frames: list[Frame] = []
    target = target_of(subset, clip.labels)
    for i, (k, path) in enumerate(sorted(clip.frames.items())):
        data, frame = picture(path, f"f{i}", t=time_of(k), annotated=k in clip.masks)
        members[frame.member] = data
        frames.append(frame)
        if k in clip.masks:
            mask = published_mask(clip.masks[k], subset) if as_published else read_mask(clip.masks[k], subset.above)
            target.masks.append(f"m.f{i}.t0.png")
            members[target.masks[-1]] = mask_png(mask)
    members["a0.flac"], audio = sound(clip.sound, src_id=clip.name)
    record = Record(
        dataset,
        clip.name,
        split=clip.split,
        tags=[*tags, *([AS_PUBLISHED] if as_published else [])],
        video=clip.name[:11],
        frames=frames,
        audios=[audio],
        targets=[target],
        map_rule="mask",
        provenance=Provenance(
            file=f"{subset.short}_meta_data.csv",
            licence=LICENCE,
            note="; ".join(
                [f"starts at {clip.start} s of its VGGSound clip"] * bool(clip.start)
                + ["masks opened as published loaders do"] * as_published
            ),
        ),
    )
    return Sample(record, members)


def usable(dataset: str, subset: Subset, clips: Sequence[Clip]) -> tuple[list[Clip], list[Skipped]]:
    """Videos of which something can be scored, and everything that is not there: a record's key for a video that is
    left out, ``<key>.f<second - 1>`` for a picture or mask of one that is kept."""
    kept, missing = [], []
    for clip in clips:
        key = sample_key(dataset, clip.name)
        lost = [
            Skipped(f"{key}.f{k - 1}", lacking(what, f"second {k} of {clip.name}"))
            for what, of, wanted in (
                ("picture", clip.frames, range(1, SECONDS + 1)),
                ("mask", clip.masks, subset.expected(clip.split)),
            )
            for k in wanted
            if k not in of
        ]
        scored = {k: p for k, p in clip.masks.items() if k in clip.frames}
        if clip.sound is None:
            missing.append(Skipped(key, lacking("sound", f"no audio of {clip.name}")))
        elif not clip.frames:
            missing.append(Skipped(key, lacking("picture", f"no frame of {clip.name}")))
        elif not scored:
            missing.append(Skipped(key, lacking("mask", f"no mask of {clip.name}")))
        else:
            missing += lost
            kept.append(replace(clip, masks=scored))
    return kept, missing


def label_notes(subset: Subset, clips: Sequence[Clip]) -> list[str]:
    space = LABEL_SPACES[subset.label_space]
    unknown = sorted({label for c in clips for label in c.labels} - set(space))
    notes = [f"labels that are not of {subset.label_space}: {', '.join(unknown)}"] if unknown else []
    if bare := sum(not c.labels for c in clips):
        notes.append(f"{bare} videos have no label: AVSS's metadata.csv (--avss) has MS3's")
    return notes


def parser(subset: Subset, module: str, doc: str | None) -> argparse.ArgumentParser:
    """Options of a converter of this benchmark."""
    published = (
        "open masks as published loaders do: grey ones are dithered"
        if subset.short == "s4"
        else "open masks as published loaders do: foreground is a palette index above 127, not above 0"
    )
    p = options(module, doc, {"media": f"folder that holds {subset.folder}, or ACL-SSL's {subset.short}"}, published)
    p.add_argument(
        "--split", nargs="+", choices=["train", "val", "test"], default=["test"], help="which (default: test)"
    )
    p.add_argument("--list", type=Path, help=f"avs1_{subset.short}_test.csv, for ACL-SSL's layout")
    p.add_argument(
        "--boxes",
        type=Path,
        help=f"{subset.short}_box.json: write the set {subset.name}_box, a record for each test frame",
    )
    p.set_defaults(avss=None)
    if subset.short == "ms3":
        p.add_argument("--avss", type=Path, help="metadata.csv of AVSS, whose v1m rows name the objects")
    return p


def convert_subset(subset: Subset, module: str, doc: str | None, argv: Sequence[str] | None) -> int:
    """The converter of S4 or MS3; 0 when every split gave at least one record."""

    def plans(args: argparse.Namespace) -> list[Plan]:
        return (box_plans if args.boxes else mask_plans)(subset, args)

    return convert(parser(subset, module, doc), plans, argv)


def clips_of(subset: Subset, args: argparse.Namespace, split: str) -> tuple[list[Clip], list[str]]:
    """`find_clips` by a converter's options."""
    if args.list and len(args.split) > 1:
        raise ValueError("--list is of one split: give one --split with it")
    return find_clips(subset, args.media, split, args.list, read_objects(args.avss) if args.avss else {})


def mask_plans(subset: Subset, args: argparse.Namespace) -> list[Plan]:
    """A plan for each split, with masks."""
    dataset, plans = args.name or subset.name, []
    for split in args.split:
        clips, extra = clips_of(subset, args, split)
        kept, missing = usable(dataset, subset, clips)
        jobs = [
            Job(sample_key(dataset, c.name), partial(make_sample, dataset, subset, c, (), args.as_published))
            for c in kept
        ]
        missing += unlisted(dataset, extra, (), VIDEO)
        notes = mask_notes(subset, args, kept)
        if args.avss and (bare := sorted(c.name for c in kept if not c.labels)):
            shown = ", ".join(bare[:5]) + (", ..." if len(bare) > 5 else "")
            notes.append(f"{len(bare)} videos have no row in {args.avss}, so no object names ({shown})")
        plans.append(Plan(dataset, split, jobs, missing, notes, LICENCE))
    return plans


def mask_notes(subset: Subset, args: argparse.Namespace, clips: Sequence[Clip]) -> list[str]:
    fix = f"fix threshold_masks: a mask's foreground is a stored value above {subset.above}, never dithered"
    return [*([] if args.as_published else [fix]), *label_notes(subset, clips)]


def read_boxes(path: Path) -> dict[tuple[str, int], list[float]]:
    """SSLalignment's ``s4_box.json`` or ``ms3_box.json``: video and second to its box on the 224 grid.

    Raises:
        ValueError: not that file, or a frame occurs twice.
    """
    try:
        rows = [
            (name_and_second(Path(r["image"]).stem), [float(v) for v in r["gt_box"]])
            for r in parsed_json(path.read_text())
        ]
        if bad := [name for (name, _), box in rows if len(box) != 4]:
            raise ValueError(f"{bad[0]} has no box of four numbers")
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is not SSLalignment's box file ({type(e).__name__}: {e}). Get it again.") from e
    no_twins((f"{name}_{k}" for (name, k), _ in rows), path)
    return dict(rows)


def box_target(subset: Subset, labels: Sequence[str], raw: Sequence[float]) -> Target:
    """A box whose upper corners are inclusive; ``boxes`` says what it encloses, ``boxes_raw`` what is published."""
    target = target_of(subset, labels)
    x0, y0, x1, y1 = raw
    if any(raw):
        target.boxes = np.clip(np.array([[x0, y0, x1 + 1, y1 + 1]]) / 224, 0, 1).tolist()
    else:
        target.boxes = [[0.0, 0.0, 0.0, 0.0]]
    target.boxes_raw, target.raw_format = [list(raw)], "xyxy_224_incl"
    return target


def make_box_sample(
    dataset: str, subset: Subset, clip: Clip, k: int, raw: Sequence[float], group_size: int, as_published: bool
) -> Sample:
    """One picture of a video, with its box and all of the sound. The video is its interactive group, as published.

    Raises:
        MediaError: a file is absent or broken.
    """
    assert clip.sound
    data, frame = picture(clip.frames[k], t=time_of(k), annotated=True)
    wave, audio = sound(clip.sound, src_id=clip.name)
    record = Record(
        dataset,
        f"{clip.name}_{k}",
        split=clip.split,
        tags=[*([] if any(raw) else ["empty"]), *([AS_PUBLISHED] if as_published else [])],
        video=clip.name[:11],
        group=clip.name,
        group_size=group_size,
        frames=[frame],
        audios=[audio],
        targets=[box_target(subset, clip.labels, raw)],
        map_rule="union",
        provenance=Provenance(file=f"{subset.short}_box.json", licence=LICENCE),
    )
    return Sample(record, {frame.member: data, "a0.flac": wave})


def box_plans(subset: Subset, args: argparse.Namespace) -> list[Plan]:
    """The test frames with SSLalignment's boxes instead of masks, a record each."""
    dataset, boxes = args.name or f"{subset.name}_box", read_boxes(args.boxes)
    found, extra = clips_of(subset, args, "test")
    clips = {c.name: c for c in found}
    sizes = Counter(name for name, _ in boxes)
    jobs, missing = [], unlisted(dataset, extra, (), VIDEO)
    for (name, k), raw in boxes.items():
        key, clip = sample_key(dataset, f"{name}_{k}"), clips.get(name)
        if clip is None or k not in clip.frames:
            missing.append(Skipped(key, lacking("picture", f"second {k} of {name}")))
        elif clip.sound is None:
            missing.append(Skipped(key, lacking("sound", f"no audio of {name}")))
        else:
            make = partial(make_box_sample, dataset, subset, clip, k, raw, sizes[name], args.as_published)
            jobs.append(Job(key, make, name))
    unboxed = [f"{name}_{k}" for name, clip in clips.items() for k in clip.frames if (name, k) not in boxes]
    missing += [Skipped(sample_key(dataset, id), unannotated("picture")) for id in unboxed]
    notes = [
        f"{sum(not any(raw) for raw in boxes.values())} boxes are all zero: nothing can be right there (tag empty)",
        "corners are inclusive on a 224 grid and read as half-open, as published: boxes lose their last row and column",
    ]
    return [Plan(dataset, "test", jobs, missing, notes + label_notes(subset, list(clips.values())), LICENCE)]
