"""The embedded world as data sets: the same shards and the same reader as VGGSound.

=================  ====================================================================================
split              what it holds
=================  ====================================================================================
train              two or three objects of different classes, one sounds; no ground truth
train_heard        the same with the twelve heard classes alone
train_masks        as train, with the sounding object's mask: for methods that learn from masks
train_masks_heard  the same with the heard classes alone
val, single        as train, with the sounding object's mask: for choosing a model, for testing it
heard              as single, heard classes alone
unheard            as single, the four classes that ``train_heard`` never shows
mixture            two of the objects sound: two sounds, two masks
negative           silence, noise, or the sound of something out of the picture: nothing to be found
val_negative       the same, for choosing a threshold
extended           half as single, half with another picture's kind of sound, silence or noise: nothing to be found
robust             as single, and each picture again under silence, noise and a sound from out of it
semantic           one to three of the objects sound: a map of their classes (class + 1), and a mask of each
duet               two pictures side by side, an object sounds in each
val_duet           the same, for choosing a model
trio, quartet      three and four pictures side by side, an object sounds in each, all of different classes
pairs              every picture twice, each time with the sound of another of its objects
crowd              four or five smaller objects, two of them sound: two sounds, two masks
val_crowd          the same, for choosing a model
sizes              as single, objects of different sizes; tagged ``small``, ``usual`` or ``large`` by what sounds
context            two classes share a sound, both are seen, and the ground tells which one sounds: the same objects
                   and the same sound once in a ``warm`` scene, once in a ``cold`` one
val_context        the same, for choosing a model
train_context      two or three objects in a warm or a cold scene; what sounds is one that does so there
train_factors      classes made of factors that looks and sounds share, the heard ones alone, with masks
val_factors        the same, for choosing a model
factors_heard      the same, for testing
factors_unheard    the classes that none of these three shows
train_factors_1shot, train_factors_3shot, train_factors_5shot
                   1, 3 and 5 samples of each class of ``factors_unheard``, with masks; the more hold the fewer
=================  ====================================================================================
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from avloc.data.schema import Audio, Frame, Negative, Provenance, Record, Sample, Target
from avloc.data.shards import write_shards
from avloc.world.kinds import FACTORS, OBJECTS, PAIRS, TWINS, Kinds, at_home
from avloc.world.scenes import (
    HEARD,
    NAMES,
    STYLES,
    UNHEARD,
    Scenes,
    arranged,
    band_of,
    render,
    sample_scenes,
    sample_sizes,
    styled,
)
from avloc.world.sounds import RATE, noise, sound

__all__ = ["SPLITS", "Split", "ensure", "samples", "write_world"]

log = logging.getLogger(__name__)

SIZE = 128  # pixels of a stored picture
SECONDS = 2.0
VERSION = 1  # of this recipe; another one gets another folder
NEGATIVES = ("silence", "noise", "offscreen")
MISMATCHES = ("mismatch", "silence", "noise")  # of the extended benchmarks


@dataclass(frozen=True)
class Split:
    """Number of scenes of a split, its own seed, the classes in its pictures, the least and most objects of one, their
    size as a share of the usual one, pictures side by side, and how classes look and sound."""

    scenes: int
    seed: int
    classes: tuple[int, ...] = tuple(range(len(NAMES)))
    objects: tuple[int, int] = (2, 3)
    scale: float = 1.0
    pictures: int = 1
    kinds: Kinds = OBJECTS


SPLITS = {
    "train": Split(2400, 11),
    "train_heard": Split(2000, 12, HEARD),
    "val": Split(150, 13),
    "single": Split(300, 14),
    "heard": Split(200, 15, HEARD),
    "unheard": Split(200, 16, UNHEARD),
    "mixture": Split(200, 17),
    "negative": Split(210, 18),
    "pairs": Split(150, 19),
    "semantic": Split(200, 20),
    "val_negative": Split(120, 21),
    "extended": Split(200, 22),
    "robust": Split(100, 23),
    "duet": Split(150, 24, pictures=2),
    "train_masks": Split(2000, 25),
    "train_masks_heard": Split(2000, 26, HEARD),
    "crowd": Split(200, 27, objects=(4, 5), scale=0.75),
    "val_crowd": Split(100, 28, objects=(4, 5), scale=0.75),
    "val_duet": Split(150, 29, pictures=2),
    "trio": Split(150, 30, pictures=3),
    "quartet": Split(150, 31, pictures=4),
    "sizes": Split(300, 32),
    "context": Split(150, 33, kinds=TWINS),
    "val_context": Split(75, 34, kinds=TWINS),
    "train_context": Split(2400, 35, kinds=TWINS),
    "train_factors": Split(2000, 36, FACTORS.heard, kinds=FACTORS),
    "val_factors": Split(150, 37, FACTORS.heard, kinds=FACTORS),
    "factors_heard": Split(200, 38, FACTORS.heard, kinds=FACTORS),
    "factors_unheard": Split(200, 39, FACTORS.unheard, kinds=FACTORS),
    # One seed, and so one list of which each split is the beginning.
    "train_factors_1shot": Split(9, 40, FACTORS.unheard, kinds=FACTORS),
    "train_factors_3shot": Split(27, 40, FACTORS.unheard, kinds=FACTORS),
    "train_factors_5shot": Split(45, 40, FACTORS.unheard, kinds=FACTORS),
}
FEW_SHOT = 45  # samples of that list: five of each class


def ensure(root: Path, *splits: str) -> None:
    """Write the world's shards under ``<root>/world`` where they are not there yet.

    Args:
        root: the data folder.
        splits: those wanted; all by default.

    Raises:
        KeyError: an unknown split; the message lists the known ones.
    """
    for split in splits or SPLITS:
        if split not in SPLITS:
            raise KeyError(f"The embedded world has no split {split!r}; it has {', '.join(SPLITS)}.")
        if not (root / "world" / f"world-{split}.json").is_file():
            write_world(root / "world", split)


def write_world(folder: Path, split: str, scenes: int | None = None, seed: int = 0) -> Path:
    """Write one split; the same seed gives the same bytes.

    Args:
        folder: receives ``world-<split>-*.tar`` and ``world-<split>.json``.
        split: a key of `SPLITS`.
        scenes: number of scenes, the split's own by default.
        seed: of the whole world.

    Returns:
        path of the index.
    """
    log.info("writing the embedded world's %s split to %s", split, folder)
    report = write_shards(
        folder, "world", split, samples(split, scenes, seed), records_per_shard=250, licence="Apache-2.0"
    )
    assert report.index is not None
    assert not report.skipped
    return report.index


def samples(split: str, scenes: int | None = None, seed: int = 0) -> Iterator[Sample]:
    """The samples of a split, rendered in batches."""
    spec = SPLITS[split]
    rng = np.random.default_rng([VERSION, seed, spec.seed])
    total = spec.scenes if scenes is None else scenes
    for start in range(0, total, 250):
        count = min(250, total - start)
        if split in ("context", "val_context"):
            yield from context_samples(rng, split, start, count)
            continue
        drawn = draw(rng, split, count * spec.pictures)
        image, mask = render(drawn, SIZE, spec.kinds.looks)
        for i in range(count):
            if spec.pictures > 1:
                row = [(present(drawn, k), image[k], mask[k]) for k in range(i, spec.pictures * count, count)]
                yield duet_sample(rng, split, f"scene{start + i:05d}", row)
            else:
                yield from scene_samples(rng, split, start + i, drawn, i, image[i], mask[i])


def draw(rng: np.random.Generator, split: str, count: int) -> Scenes:
    spec = SPLITS[split]
    if split == "sizes":
        return sample_sizes(rng, count)
    if split == "train_context":
        styles = [str(style) for style in rng.choice(list(STYLES), count)]
        first = [int(rng.choice([c for c in spec.classes if at_home(c, style)])) for style in styles]
        label = [[c, *rng.permutation([o for o in spec.classes if o != c])[:2]] for c in first]
        return styled(rng, arranged(rng, np.array(label), spec.objects[0]), styles)
    if split.endswith("shot"):
        first = list(spec.classes) * (FEW_SHOT // len(spec.classes))
        label = [[c, *rng.permutation([o for o in spec.classes if o != c])[:2]] for c in first]
        return arranged(rng, np.array(label), spec.objects[0], spec.kinds.looks)
    scenes = sample_scenes(rng, count, spec.objects, spec.classes, spec.kinds.looks)
    scenes.pose[..., 2] *= spec.scale
    return scenes


def context_samples(rng: np.random.Generator, split: str, start: int, count: int) -> Iterator[Sample]:
    """The same objects and the same sound in a warm and in a cold scene: another of the two sounds in each."""
    twins = rng.permuted(np.array(PAIRS)[rng.integers(len(PAIRS), size=count)], axis=1)
    label = [[a, b, rng.choice([c for c in range(len(NAMES)) if c not in (a, b)])] for a, b in twins]
    scenes = arranged(rng, np.array(label), 2)
    seeds = rng.integers(2**32, size=count)
    rendered = {style: render(styled(rng, scenes, [style] * count), SIZE) for style in STYLES}
    for i in range(count):
        labels, picture = present(scenes, i), f"scene{start + i:05d}"
        for style, (image, mask) in rendered.items():
            k = next(k for k in (0, 1) if at_home(labels[k], style))
            same = np.random.default_rng(seeds[i])  # the two share their sound, and so it is drawn alike
            sample = world_sample(same, split, f"{picture}_{style}", labels, [k], image[i], mask[i])
            sample.record.group, sample.record.group_size = picture, len(STYLES)
            sample.record.tags.append(style)
            yield sample


def scene_samples(
    rng: np.random.Generator, split: str, number: int, scenes: Scenes, i: int, image: Tensor, mask: Tensor
) -> Iterator[Sample]:
    labels = present(scenes, i)
    picture = f"scene{number:05d}"
    if split in ("negative", "val_negative"):
        yield negative_sample(rng, split, picture, labels, image, NEGATIVES[number % len(NEGATIVES)])
    elif split == "extended" and number % 2:
        yield negative_sample(rng, split, picture, labels, image, MISMATCHES[number // 2 % len(MISMATCHES)])
    elif split == "robust":
        yield robust_sample(rng, picture, labels, image, mask)
    elif split == "semantic":
        sounding = list(range(int(rng.integers(1, len(labels) + 1))))
        yield semantic_sample(rng, picture, labels, sounding, image, mask)
    elif split in ("mixture", "crowd", "val_crowd"):
        yield world_sample(rng, split, picture, labels, [0, 1], image, mask)
    elif split == "pairs":
        for k in (0, 1):
            sample = world_sample(rng, split, f"{picture}_{k}", labels, [k], image, mask)
            sample.record.group, sample.record.group_size = picture, 2
            yield sample
    elif split == "sizes":
        k = int(rng.integers(len(labels)))
        sample = world_sample(rng, split, picture, labels, [k], image, mask)
        sample.record.tags.append(band_of(float(scenes.pose[i, k, 2])))
        yield sample
    else:
        yield world_sample(rng, split, picture, labels, [0], image, mask)


def world_sample(
    rng: np.random.Generator,
    split: str,
    id: str,
    labels: list[int],
    sounding: list[int],
    image: Tensor,
    mask: Tensor,
) -> Sample:
    """A picture in which the objects ``sounding`` sound, with their masks where the split has ground truth."""
    training = split.startswith("train")
    masked = not training or split.startswith(("train_masks", "train_factors"))
    kinds = SPLITS[split].kinds
    members = {"f0.jpg" if training else "f0.png": encode_image(image, training)}
    audios, targets = [], []
    for t, k in enumerate(sounding):
        members[f"a{t}.flac"] = encode_audio(kinds.sound(rng, labels[k], SECONDS))
        audios.append(Audio(f"a{t}.flac", "source", src_id=id, duration=SECONDS))
        target = Target(labels[k], kinds.name(labels[k]), kinds.space, audio=t)
        if masked:
            target.masks = [f"m.f0.t{t}.png"]
            target.boxes = [box(mask[k])]
            members[target.masks[0]] = encode_mask(mask[k])
        targets.append(target)
    heard = "heard" if labels[sounding[0]] in kinds.heard else "unheard"
    record = base_record(split, id, labels, next(iter(members)), annotated=masked)
    record.tags, record.audios, record.targets = [heard], audios, targets
    record.map_rule = "mask" if masked else "none"
    record.text["audio"] = "the sound of " + " and ".join(f"a {kinds.name(labels[k])}" for k in sounding)
    record.text |= phrases(id, labels, labels[sounding[0]], kinds)
    return Sample(record, members)


def negative_sample(
    rng: np.random.Generator, split: str, id: str, labels: list[int], image: Tensor, kind: str
) -> Sample:
    """A picture with a sound that comes from nothing in it."""
    members = {"f0.png": encode_image(image, False)}
    record = base_record(split, id, labels, "f0.png", annotated=True)
    record.sounding, record.map_rule = False, "mask"
    record.negative = Negative(kind, recipe=f"avloc.world {VERSION}")  # type: ignore[arg-type]
    if kind == "silence":
        record.audios = [Audio(None, "negative", duration=SECONDS)]
    else:
        # Both are drawn whichever is heard: the scenes after it do not depend on it.
        absent = absent_class(rng, labels)
        hiss = hissing(rng)
        members["n0.flac"] = encode_audio(hiss if kind == "noise" else sound(rng, absent, SECONDS))
        record.audios = [Audio("n0.flac", "negative", duration=SECONDS)]
    return Sample(record, members)


def robust_sample(rng: np.random.Generator, id: str, labels: list[int], image: Tensor, mask: Tensor) -> Sample:
    """A positive that carries the three negative conditions of AVSBench-Robust."""
    sample = world_sample(rng, "robust", id, labels, [0], image, mask)
    sample.members["n0.flac"] = encode_audio(hissing(rng))
    sample.members["n1.flac"] = encode_audio(sound(rng, absent_class(rng, labels), SECONDS))
    sample.record.audios += [
        Audio(None, "negative", duration=SECONDS, kind="silence"),
        Audio("n0.flac", "negative", duration=SECONDS, kind="noise"),
        Audio("n1.flac", "negative", duration=SECONDS, kind="offscreen"),
    ]
    return sample


def semantic_sample(
    rng: np.random.Generator, id: str, labels: list[int], sounding: list[int], image: Tensor, mask: Tensor
) -> Sample:
    """A picture with the classes of the objects ``sounding``, plus one; 0 elsewhere."""
    sample = world_sample(rng, "semantic", id, labels, sounding, image, mask)
    classes = np.zeros((SIZE, SIZE), np.uint8)
    for k in sounding:
        classes[mask[k].numpy()] = labels[k] + 1
    sample.record.frames[0].semantic = "sem.f0.png"
    sample.members["sem.f0.png"] = encode_indices(classes)
    return sample


def duet_sample(
    rng: np.random.Generator, split: str, id: str, pictures: list[tuple[list[int], Tensor, Tensor]]
) -> Sample:
    """Several pictures (labels, image, mask) with one sounding object each. Their classes differ, and as many as can be
    are in their own picture alone."""
    shown = [set(labels) for labels, _, _ in pictures]

    def told_apart(classes: tuple[int, ...]) -> tuple[int, int]:
        return len(set(classes)), sum(sum(c in other for other in shown) == 1 for c in classes)

    sounding = max(product(*(labels for labels, _, _ in pictures)), key=told_apart)
    record = base_record(split, id, [c for labels, _, _ in pictures for c in labels], "f0.png", annotated=True)
    record.tags, record.map_rule = ["duet"], "mask"
    record.frames = [replace(record.frames[0], member=f"f{t}.png") for t in range(len(pictures))]
    record.text["audio"] = "the sound of " + " and ".join(f"a {NAMES[c]}" for c in sounding)
    record.text |= phrases(id, [c for labels, _, _ in pictures for c in labels], sounding[0])
    members: dict[str, bytes] = {}
    for t, (label, (labels, image, mask)) in enumerate(zip(sounding, pictures, strict=True)):
        visible = mask[labels.index(label)]
        members[f"f{t}.png"] = encode_image(image, False)
        members[f"a{t}.flac"] = encode_audio(sound(rng, label, SECONDS))
        members[f"m.f{t}.t{t}.png"] = encode_mask(visible)
        record.audios.append(Audio(f"a{t}.flac", src_id=f"{id}_{t}", duration=SECONDS))
        record.targets.append(
            Target(label, NAMES[label], "world16", audio=t, boxes=[box(visible)], masks=[f"m.f{t}.t{t}.png"])
        )
    return Sample(record, members)


def phrases(id: str, labels: list[int], sounding: int, kinds: Kinds = OBJECTS) -> dict[str, str]:
    """What a language model would answer to the two captions, and to one of them alone.

    The sound's caption names the class itself. The picture's does not tell which of its objects sounds, so one is
    picked by the scene's name: right once in as many times as there are objects.
    """
    picked = labels[zlib.crc32(id.encode()) % len(labels)]
    heard = kinds.name(sounding)
    return {"llm": heard, "llm_audio": heard, "llm_image": kinds.name(picked)}


def present(scenes: Scenes, i: int) -> list[int]:
    """Classes of the objects of scene i."""
    return [int(c) for c, there in zip(scenes.label[i], scenes.present[i], strict=True) if there]


def absent_class(rng: np.random.Generator, labels: list[int]) -> int:
    return int(rng.choice([c for c in range(len(NAMES)) if c not in labels]))


def hissing(rng: np.random.Generator) -> np.ndarray:
    return (0.2 * noise(rng, round(SECONDS * RATE), 0.5)).clip(-1, 1).astype(np.float32)


def base_record(split: str, id: str, labels: list[int], picture: str, annotated: bool) -> Record:
    kinds = SPLITS[split].kinds
    return Record(
        dataset="world",
        id=f"{split}_{id}",
        split=split,
        frames=[Frame(picture, SIZE, SIZE, SIZE, SIZE, annotated=annotated)],
        text={"image": "a picture of " + " and ".join(f"a {kinds.name(c)}" for c in labels)},
        provenance=Provenance(repository="avloc.world", commit=str(VERSION), licence="Apache-2.0"),
    )


def box(mask: Tensor) -> list[float]:
    """Tight box of a mask, as fractions of the side; all zero where nothing is seen."""
    rows, columns = torch.where(mask)
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return [float(c) / len(mask) for c in corners]


def encode_image(image: Tensor, lossy: bool) -> bytes:
    out = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    if lossy:
        picture.save(out, "JPEG", quality=95)
    else:
        picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def encode_mask(mask: Tensor) -> bytes:
    out = io.BytesIO()
    Image.fromarray(mask.numpy().astype(np.uint8) * 255).convert("1").save(out, "PNG")
    return out.getvalue()


def encode_indices(indices: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(indices).save(out, "PNG")
    return out.getvalue()


def encode_audio(wave: np.ndarray) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave, RATE, format="FLAC", subtype="PCM_16")
    return out.getvalue()
