"""VGG-SS from loose pictures and sounds, as the evaluation archives hold them.

    python -m data_prep.vggss --media VGGSS --boxes vggss.json --out data
    python -m data_prep.vggss --media VGGSS --boxes vggss.json --heard vggss_heard_test.csv \\
        --unheard vggss_unheard_test.csv --out data

``VGGSS`` holds ``frames/<key>.jpg`` and ``audio/<key>.wav``, with keys ``<YouTube id>_<start, 6 digits>`` or
``<YouTube id>_<start ms>_<end ms>`` (SSLalignment). From videos, use ``data_prep.vggsound --boxes``. The set is called
``vggss``; ``vggss/heard`` and ``vggss/unheard`` are its open-set halves.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from avloc.data.media import PICTURES, SOUNDS
from avloc.data.schema import Provenance, Record, Sample, Target, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.common import Plan, convert, options
from data_prep.members import AS_PUBLISHED, picture, sound
from data_prep.tables import files_by_stem, no_twins, read_ids, read_tags, unlisted, unmatched_tags
from data_prep.telling import lacking
from data_prep.vggsound import FRAME_TIME, LICENCE, box_notes, class_ids, read_boxes, vggss_target

__all__ = ["Media", "clip_key", "main", "make_positive", "positives"]


@dataclass(frozen=True)
class Media:
    """Loose media by clip: ``frames[key]`` and ``sounds[key]``."""

    frames: dict[str, Path]
    sounds: dict[str, Path]


def clip_key(text: str) -> str:
    """``<YouTube id>_<start, 6 digits>`` of a key in that spelling or in ``<YouTube id>_<start ms>_<end ms>``.

    The id is cut at its fixed length 11, because it may hold ``_`` itself.

    Raises:
        ValueError: neither of both.
    """
    found = re.fullmatch(r"(.{11})_(\d+)(?:_(\d+))?", text)
    if not found:
        raise ValueError(f"{text!r} is neither <YouTube id>_<start second> nor <YouTube id>_<start ms>_<end ms>.")
    video, start, end = found.groups()
    return f"{video}_{int(start) // (1000 if end else 1):06d}"


def find_media(folder: Path, frames: str = "frames", sounds: str = "audio") -> Media:
    """Pictures and sounds of two sub-folders, by clip.

    Raises:
        ValueError: two files of one clip.
    """
    return Media(by_key(folder / frames, PICTURES), by_key(folder / sounds, SOUNDS))


def by_key(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    files = files_by_stem(folder, suffixes)
    keys = [clip_key(stem) if re.fullmatch(r".{11}_\d+(_\d+)?", stem) else stem for stem in files]
    no_twins(keys, folder)
    return dict(zip(keys, files.values(), strict=True))


def make_positive(
    dataset: str, id: str, target: Target, frame: Path, heard: Path, tags: Sequence[str] = (), file: str = "vggss.json"
) -> Sample:
    """The picture at 5 s with its own sound.

    Raises:
        MediaError: a file is absent or broken.
    """
    shown, f0 = picture(frame, t=FRAME_TIME, annotated=True)
    wave, a0 = sound(heard, src_id=id, clip_start=float(id[12:]))
    record = Record(
        dataset,
        id,
        split="test",
        tags=list(tags),
        video=id[:11],
        frames=[f0],
        audios=[a0],
        targets=[target],
        map_rule="union",
        provenance=Provenance(file=file, licence=LICENCE),
    )
    return Sample(record, {f0.member: shown, "a0.flac": wave})


NOT_IN_FILE = (
    "no annotation row: the list names a clip that the box file does not hold. Leave it out, or get the annotation "
    "file that speaks of it."
)


def positives(
    dataset: str,
    boxes: Mapping[str, tuple[str, list[list[float]]]],
    media: Media,
    tags: Mapping[str, set[str]],
    wanted: Iterable[str] | None = None,
    as_published: bool = False,
) -> tuple[list[Job], list[Skipped]]:
    """Jobs of the annotated clips (of ``wanted``, if given), and those without media."""
    ids = class_ids(label for label, _ in boxes.values())
    jobs, missing = [], []
    for id in sorted(set(boxes) if wanted is None else set(wanted)):
        key = sample_key(dataset, id)
        if id not in boxes:
            missing.append(Skipped(key, NOT_IN_FILE))
        elif lacks := absent(id, media):
            missing.append(Skipped(key, lacks))
        else:
            label, raw = boxes[id]
            own = [tag for tag, of in tags.items() if id in of] + [AS_PUBLISHED] * as_published
            target = vggss_target(ids[label], label, raw)
            job = partial(make_positive, dataset, id, target, media.frames[id], media.sounds[id], own)
            jobs.append(Job(key, job))
    return jobs, missing


def absent(id: str, media: Media) -> str:
    """Why a clip cannot be written, "" if it can."""
    if id not in media.frames:
        return lacking("picture", f"no frame of {id}")
    return "" if id in media.sounds else lacking("sound", f"no audio of {id}")


def parser() -> argparse.ArgumentParser:
    p = options("data_prep.vggss", __doc__, {"media": "folder with frames/<key>.jpg and audio/<key>.wav"})
    p.add_argument("--boxes", type=Path, required=True, help="vggss.json")
    p.add_argument("--heard", type=Path, help="vggss_heard_test.csv: its clips get the tag heard")
    p.add_argument("--unheard", type=Path, help="vggss_unheard_test.csv: its clips get the tag unheard")
    p.add_argument("--tag", action="append", default=[], help="TAG=FILE: clips in FILE carry TAG")
    p.add_argument("--list", type=Path, help="only the clips in its first column, e.g. ours_vggss.txt")
    return p


def plans(args: argparse.Namespace) -> list[Plan]:
    dataset = args.name or "vggss"
    boxes = read_boxes(args.boxes)
    tags = read_tags(args.tag)
    tags |= {tag: read_ids(f) for tag in ("heard", "unheard") if (f := getattr(args, tag))}
    wanted = read_ids(args.list) if args.list else None
    media = find_media(args.media)
    jobs, missing = positives(dataset, boxes, media, tags, wanted, args.as_published)
    missing += unlisted(dataset, {*media.frames, *media.sounds}, boxes)
    return [Plan(dataset, "test", jobs, missing, box_notes(boxes) + unmatched_tags(tags, boxes), LICENCE)]


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when at least one record was written."""
    return convert(parser(), plans, argv)


if __name__ == "__main__":
    sys.exit(main())
