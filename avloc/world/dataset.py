"""The embedded world as data sets: the same shards and the same reader as VGGSound.

=============  ====================================================================================
split          what it holds
=============  ====================================================================================
train          two or three objects of different classes, one sounds; no ground truth
train_heard    the same with the twelve heard classes alone
val, single    as train, with the sounding object's mask: for choosing a model, for testing it
heard          as single, heard classes alone
unheard        as single, the four classes that ``train_heard`` never shows
mixture        two of the objects sound: two sounds, two masks
negative       silence, noise, or the sound of something out of the picture: nothing to be found
pairs          every picture twice, each time with the sound of another of its objects
=============  ====================================================================================
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from avloc.data.schema import Audio, Frame, Negative, Provenance, Record, Sample, Target
from avloc.data.shards import write_shards
from avloc.world.scenes import HEARD, NAMES, UNHEARD, Scenes, render, sample_scenes
from avloc.world.sounds import RATE, noise, sound

__all__ = ["SPLITS", "Split", "ensure", "samples", "write_world"]

log = logging.getLogger(__name__)

SIZE = 128  # pixels of a stored picture
SECONDS = 2.0
VERSION = 1  # of this recipe; another one gets another folder
NEGATIVES = ("silence", "noise", "offscreen")


@dataclass(frozen=True)
class Split:
    """Number of scenes of a split, the classes in its pictures, and its own seed."""

    scenes: int
    seed: int
    classes: tuple[int, ...] = tuple(range(len(NAMES)))


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
}


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
        drawn = sample_scenes(rng, min(250, total - start), classes=spec.classes)
        image, mask = render(drawn, SIZE)
        for i in range(len(drawn)):
            yield from scene_samples(rng, split, start + i, drawn, i, image[i], mask[i])


def scene_samples(
    rng: np.random.Generator, split: str, number: int, scenes: Scenes, i: int, image: Tensor, mask: Tensor
) -> Iterator[Sample]:
    labels = [int(c) for c, there in zip(scenes.label[i], scenes.present[i], strict=True) if there]
    picture = f"scene{number:05d}"
    if split == "negative":
        yield negative_sample(rng, picture, labels, image, NEGATIVES[number % len(NEGATIVES)])
    elif split == "mixture":
        yield world_sample(rng, split, picture, labels, [0, 1], image, mask)
    elif split == "pairs":
        for k in (0, 1):
            sample = world_sample(rng, split, f"{picture}_{k}", labels, [k], image, mask)
            sample.record.group, sample.record.group_size = picture, 2
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
    members = {"f0.jpg" if training else "f0.png": encode_image(image, training)}
    audios, targets = [], []
    for t, k in enumerate(sounding):
        members[f"a{t}.flac"] = encode_audio(sound(rng, labels[k], SECONDS))
        audios.append(Audio(f"a{t}.flac", "source", src_id=id, duration=SECONDS))
        target = Target(labels[k], NAMES[labels[k]], "world16", audio=t)
        if not training:
            target.masks = [f"m.f0.t{t}.png"]
            target.boxes = [box(mask[k])]
            members[target.masks[0]] = encode_mask(mask[k])
        targets.append(target)
    heard = "heard" if labels[sounding[0]] in HEARD else "unheard"
    record = base_record(split, id, labels, next(iter(members)), annotated=not training)
    record.tags, record.audios, record.targets = [heard], audios, targets
    record.map_rule = "none" if training else "mask"
    record.text["audio"] = "the sound of " + " and ".join(f"a {NAMES[labels[k]]}" for k in sounding)
    return Sample(record, members)


def negative_sample(rng: np.random.Generator, id: str, labels: list[int], image: Tensor, kind: str) -> Sample:
    """A picture with a sound that comes from nothing in it."""
    members = {"f0.png": encode_image(image, False)}
    record = base_record("negative", id, labels, "f0.png", annotated=True)
    record.sounding, record.map_rule = False, "mask"
    record.negative = Negative(kind, recipe=f"avloc.world {VERSION}")  # type: ignore[arg-type]
    if kind == "silence":
        record.audios = [Audio(None, "negative", duration=SECONDS)]
    else:
        absent = int(rng.choice([c for c in range(len(NAMES)) if c not in labels]))
        hiss = (0.2 * noise(rng, round(SECONDS * RATE), 0.5)).clip(-1, 1).astype(np.float32)
        members["n0.flac"] = encode_audio(hiss if kind == "noise" else sound(rng, absent, SECONDS))
        record.audios = [Audio("n0.flac", "negative", duration=SECONDS)]
    return Sample(record, members)


def base_record(split: str, id: str, labels: list[int], picture: str, annotated: bool) -> Record:
    return Record(
        dataset="world",
        id=f"{split}_{id}",
        split=split,
        frames=[Frame(picture, SIZE, SIZE, SIZE, SIZE, annotated=annotated)],
        text={"image": "a picture of " + " and ".join(f"a {NAMES[c]}" for c in labels)},
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


def encode_audio(wave: np.ndarray) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave, RATE, format="FLAC", subtype="PCM_16")
    return out.getvalue()
