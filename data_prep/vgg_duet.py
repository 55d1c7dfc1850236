"""VGGSound-Duet: two VGG-SS pictures side by side, the sum of their sounds, and the boxes of both; mixtures of more.

    python -m data_prep.vgg_duet --videos clips --boxes vggss.json --annotations vggsound_duet_test.csv --out data
    python -m data_prep.vgg_duet --media VGGSS   --boxes vggss.json --annotations vggsound_duet_test.csv --out data
    python -m data_prep.vgg_duet --media VGGSS   --boxes vggss.json --annotations vggsound_single_test.csv --sources 3

Media are the clips that `data_prep.vggsound` reads, or ``frames/<key>.jpg`` and ``audio/<key>.wav`` (the layout of
ACL-SSL, AVGN and T-VSL). With ``vggsound_single_test.csv`` instead, the set ``vgg_single`` is written: VGG-SS itself,
as T-VSL calls it. AVGN scores [partner, partner's partner] against the frames [own, partner], and T-VSL's loader moves
the partner's boxes a second time when a sample is read again; neither is imitated.

T-VSL also tests mixtures of three and four sources, whose lists are not published. With ``--sources``, this project's
own are written, as ``vgg_mix3`` and ``vgg_mix4``: every clip of the single list with partners drawn from the others,
the same for every user (``--seed``), all classes different. ``vgg_mix2`` is VGGSound-Duet under another name, for the
table of models that saw single sources alone: ``--annotations vggsound_duet_test.csv --name vgg_mix2``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from avloc.data.media import Library, MediaError, Source
from avloc.data.schema import Audio, Frame, MapRule, Provenance, Record, Sample, Target, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.common import Plan, convert, options, rate_option
from data_prep.loose import Files, pictures, sounds
from data_prep.members import AS_PUBLISHED, flac, picture, sound
from data_prep.tables import no_twins, read_table, unlisted
from data_prep.vggsound import (
    FRAME_TIME,
    LICENCE,
    Row,
    box_notes,
    class_ids,
    clip_from,
    encode_frame,
    read_boxes,
    vggss_target,
)

__all__ = ["Pair", "draw_mixtures", "main", "read_pairs", "underscored"]

REPOSITORY = "stoneMo/AVGN"
Boxes = dict[str, tuple[str, list[list[float]]]]


@dataclass(frozen=True)
class Pair:
    """A line of the csv: one clip or several, ``<YouTube id>_<start, 6 digits>``, and the class of each."""

    ids: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def same_class(self) -> bool:
        return len(set(self.labels)) < len(self.labels)


def underscored(name: str) -> str:
    """A class name as the lists of AVGN and T-VSL write it: ``female_speech_woman_speaking``."""
    return name.replace(", ", "_").replace(" ", "_")


def read_pairs(path: Path, boxes: Boxes) -> list[Pair]:
    """``key,class,partner key,partner class``, or the first two; classes become VGGSound's own names.

    Args:
        path: ``vggsound_duet_test.csv`` or ``vggsound_single_test.csv``.
        boxes: of ``vggss.json``.

    Raises:
        ValueError: a class that VGG-SS does not have, one that is not the class of the clip's boxes, a key that
            occurs twice, or rows with and without a partner.
    """
    names = {underscored(label): label for label, _ in boxes.values()}
    pairs = []
    table = read_table(path, ["key", "class", "partner", "partner class"], clips=("key", "partner"))
    for n, r in enumerate(table, start=1):
        ids = (r["key"], r["partner"]) if r["partner"] else (r["key"],)
        labels = (r["class"], r["partner class"])[: len(ids)]
        for id, label in zip(ids, labels, strict=True):
            if label not in names or (id in boxes and boxes[id][0] != names[label]):
                raise ValueError(f"{path}, row {n}: {id} is of class {label!r} here, not in vggss.json. Check both.")
        pairs.append(Pair(ids, tuple(names[label] for label in labels)))
    no_twins((p.ids[0] for p in pairs), path)
    if len({len(p.ids) for p in pairs}) > 1:
        raise ValueError(f"{path} has rows with and without a partner. Get the official file again.")
    return pairs


def draw_mixtures(singles: Sequence[Pair], sources: int, seed: int = 0) -> list[Pair]:
    """Each clip with ``sources - 1`` others, drawn uniformly and one by one from those of classes not yet in it.

    Raises:
        ValueError: pairs instead of single clips, or fewer classes than sources.
    """
    if any(len(p.ids) > 1 for p in singles) or len({p.labels for p in singles}) < sources:
        raise ValueError(f"--sources {sources} mixes single clips of as many classes: give vggsound_single_test.csv.")
    rng = np.random.default_rng([seed, sources])
    labels = np.unique([p.labels[0] for p in singles], return_inverse=True)[1]
    mixtures = []
    for i in range(len(singles)):
        row, free = [i], labels != labels[i]
        while len(row) < sources:
            row.append(int(rng.choice(np.flatnonzero(free))))
            free &= labels != labels[row[-1]]
        mixtures.append(Pair(tuple(singles[k].ids[0] for k in row), tuple(singles[k].labels[0] for k in row)))
    return mixtures


def clip_of(key: str) -> Row:
    """The clip of a key. The YouTube id may hold ``_``: it ends at the eleventh character.

    Raises:
        ValueError: not such a key.
    """
    if len(key) < 13 or key[11] != "_" or not key[12:].isdigit():
        raise ValueError(f"{key!r} is not <11-letter YouTube id>_<start second>. Get the official csv.")
    return Row(key[:11], int(key[12:]), "", "test")


def from_video(i: int, key: str, path: Source, rate: int, upright: bool) -> tuple[dict[str, bytes], Frame, Audio]:
    """Frame at 5 s, losslessly, and ten seconds of mono of a clip. Raises as `read_clip`."""
    clip = clip_from(path, clip_of(key), rate, upright=upright)
    data, image = encode_frame(clip.frame, None)
    frame = Frame(f"f{i}.png", *image.size, *image.size, clip.frame_time, annotated=True)
    audio = Audio(f"a{i}.flac", "source", key, clip_of(key).start, len(clip.audio) / rate, rate, 1)
    return {f"f{i}.png": data, f"a{i}.flac": flac(clip.audio, rate)}, frame, audio


def from_files(i: int, key: str, image: Path, wave: Path, rate: int) -> tuple[dict[str, bytes], Frame, Audio]:
    """The same of a loose picture and sound, whole. Raises as `picture` and `sound`."""
    pixels, frame = picture(image, f"f{i}", t=FRAME_TIME, annotated=True)
    heard, audio = sound(wave, f"a{i}", rate=rate, src_id=key, clip_start=float(clip_of(key).start))
    return {frame.member: pixels, str(audio.member): heard}, frame, audio


def make_sample(record: Record, rate: int, files: Sequence[tuple[str, tuple[Source, ...]]]) -> Sample:
    """Both clips of a pair; the rest of the record is given.

    Args:
        record: without frames and audios.
        rate: Hz of the sounds.
        files: key and ``(video,)`` or ``(picture, sound)`` of each.

    Raises:
        MediaError: one is broken.
    """
    clips = [
        from_video(i, key, paths[0], rate, AS_PUBLISHED not in record.tags)
        if len(paths) == 1
        else from_files(i, key, Path(str(paths[0])), Path(str(paths[1])), rate)
        for i, (key, paths) in enumerate(files)
    ]
    members = {name: data for own, _, _ in clips for name, data in own.items()}
    return Sample(replace(record, frames=[f for _, f, _ in clips], audios=[a for _, _, a in clips]), members)


def files_of(key: str, videos: Library | None, images: Files | None, waves: Files | None) -> tuple[Source, ...]:
    """The clip's video, or its picture and sound.

    Raises:
        MediaError: not there.
    """
    if videos:
        clip = clip_of(key)
        return (videos.find(clip.video, clip.start),)
    assert images is not None
    assert waves is not None
    return images.find(key), waves.find(key)


def target_of(i: int, key: str, boxes: Boxes, ids: dict[str, int]) -> Target:
    """The boxes of clip i of a pair.

    Raises:
        MediaError: vggss.json does not have it.
    """
    if key not in boxes:
        raise MediaError(f"boxes missing: {key} is not in vggss.json. Get the official box file.")
    label, raw = boxes[key]
    return replace(vggss_target(ids[label], label, raw), audio=i)


def plans(args: argparse.Namespace) -> list[Plan]:
    if bool(args.videos) == bool(args.media):
        raise ValueError("Give either --videos or --media.")
    if args.videos and not args.videos.is_dir():
        raise ValueError(f"--videos {args.videos} is not a folder")
    boxes = read_boxes(args.boxes)
    pairs = read_pairs(args.annotations, boxes)
    if args.sources:
        pairs = draw_mixtures(pairs, args.sources, args.seed)
    duet = bool(pairs) and len(pairs[0].ids) > 1
    name = args.name or (f"vgg_mix{args.sources}" if args.sources else "vgg_duet" if duet else "vgg_single")
    ids = class_ids(label for label, _ in boxes.values())
    videos = Library(args.videos, args.out / name / ".parts") if args.videos else None
    images = pictures(args.media, "frames") if args.media else None
    waves = sounds(args.media, "audio") if args.media else None
    rule: MapRule = "sum" if args.as_published else "union"
    note = "overlapping boxes add up, as published" if args.as_published else ""
    same = sum(p.same_class for p in pairs)
    jobs, missing = [], []
    for n, pair in enumerate(pairs):
        key = sample_key(name, pair.ids[0])
        tags = (["duet"] if duet else []) + (["same_class"] if pair.same_class else [])
        record = Record(
            name,
            pair.ids[0],
            "test",
            tags + ([AS_PUBLISHED] if args.as_published else []),
            video=pair.ids[0][:11],
            map_rule=rule,
            provenance=Provenance(REPOSITORY, file=args.annotations.name, row=n, licence=LICENCE, note=note),
        )
        try:
            files = [(id, files_of(id, videos, images, waves)) for id in pair.ids]
            record.targets = [target_of(i, id, boxes, ids) for i, id in enumerate(pair.ids)]
        except MediaError as e:
            missing.append(Skipped(key, str(e)))
        else:
            jobs.append(Job(key, partial(make_sample, record, args.rate, files)))
    used = {id for p in pairs for id in p.ids}
    if images:
        missing += unlisted(name, images.stems, used)
    notes = (videos.remarks if videos else []) + box_notes({id: boxes[id] for id in boxes if id in used})
    if args.sources:
        notes.append(f"partners are drawn by this project (seed {args.seed}); T-VSL's list is not published")
    if same:
        notes.append(f"{same} pairs have the same class (tag same_class)")
    if args.as_published:
        notes.append("as published: overlapping boxes add up (T-VSL and AVGN do not clip the sum)")
    return [Plan(name, "test", jobs, missing, notes, LICENCE)]


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when at least one record was written."""
    p = options("data_prep.vgg_duet", __doc__, {}, "overlapping boxes add up instead of uniting (T-VSL, AVGN)")
    p.add_argument("--videos", type=Path, help="folder of <id>_<start>.mp4 files")
    p.add_argument("--media", type=Path, help="or folder with frames and audio")
    p.add_argument("--boxes", type=Path, required=True, help="vggss.json")
    p.add_argument("--annotations", type=Path, required=True, help="vggsound_duet_test.csv, or ..._single_test.csv")
    rate_option(p)
    p.add_argument("--sources", type=int, choices=[3, 4], help="mix each clip of the single list with two or three")
    return convert(p, plans, argv)


if __name__ == "__main__":
    sys.exit(main())
