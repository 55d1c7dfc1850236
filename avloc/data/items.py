"""One row of a batch: a record's picture, sound and maps as a method is fed them, and rows put together."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import default_collate

from avloc.data.decoding import decode_audio, decode_image, fit_audio
from avloc.data.media import Floats
from avloc.data.mixtures import side_by_side
from avloc.data.schema import Audio, Record, Sample, SampleError
from avloc.data.truth import Integers, semantic_map, truth_maps
from avloc.data.views import FILTERS, Grid, draw_view, seen
from avloc.types import AVBatch, InputSpec

__all__ = [
    "Item",
    "clip_frames",
    "collate",
    "evened",
    "first_scored",
    "make_item",
    "make_sound",
    "make_truth",
    "sample_rng",
]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Item:
    """One row of an `AVBatch`.

    Attributes:
        key: name of the scored or trained unit.
        image: uint8 ``[3, H, W]``, or ``[F, 3, H, W]``.
        audio: float32 ``[T]``.
        index: place in its evaluation set; -1 in training and for a missing sample.
        size: height and width of the picture in a padded square, or None.
        truth: float32 ``[S, G, G']``, ``[n, G, n G']`` for a duet of n pictures, or None.
        semantic: int64 ``[G, G']``, ``[G, n G']`` for a duet, or None.
        class_id, label: of each target.
        sounding, negative, group, group_size, video, caption: as in `AVBatch`.
        clip: name of the clip that the frame is of, "" for none.
        annotated: as in `AVBatch`.
        phrase: as in `AVBatch`; None where phrases were not asked for.
        context: picture as in `AVBatch`, or None.
        stored: features that were stored beside the shards, by name.
    """

    key: str
    image: NDArray[np.uint8]
    audio: Floats
    index: int = -1
    truth: Floats | None = None
    semantic: Integers | None = None
    class_id: list[int] = field(default_factory=list)
    label: list[str] = field(default_factory=list)
    sounding: bool = True
    negative: str = ""
    group: str = ""
    group_size: int = 1
    video: str = ""
    caption: str = ""
    clip: str = ""
    annotated: bool = True
    phrase: str | None = None
    size: tuple[int, int] | None = None
    context: NDArray[np.uint8] | None = None
    stored: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """Randomness of one sample's augmentation: it follows from these three alone, not from worker or rank."""
    return np.random.default_rng([seed, epoch, zlib.crc32(key.encode())])


def make_sound(sample: Sample, spec: InputSpec, condition: str = "", t: float = 0.0) -> Floats:
    """What is heard: the plain sum of the record's sources (T-VSL's and CAVP's mixture), or a negative's own
    sound.

    Args:
        sample: record and bytes.
        spec: what the method wants.
        condition: kind of the negative sound to hear instead (`Audio.kind`); "" for the record's own.
        t: seconds, time of the scored frame; in a duet, the sound of each picture is that of its own frame's time.

    Returns:
        float32 ``[T]``. Silence where the record stores none; several loud sources may add up to more than 1.

    Raises:
        SampleError: a member is missing or broken.
    """
    record = sample.record
    heard = [a for a in record.audios if a.role in ("source", "mixture")]
    if record.negative:
        heard = [a for a in record.audios if a.role == "negative"] or heard
    if condition:
        heard = [a for a in record.audios if a.kind == condition]
    own = record.tiles > 1 and not condition
    times = [record.frames[i].t if own and i < record.tiles else t for i in range(len(heard))]
    waves = [fit_audio(_sound(sample, a, spec), spec, t) for a, t in zip(heard, times, strict=True) if a.member]
    if not waves:
        return np.zeros(spec.samples, np.float32)
    return waves[0] if len(waves) == 1 else np.sum(waves, axis=0, dtype=np.float32)


def _sound(sample: Sample, audio: Audio, spec: InputSpec) -> Floats:
    assert audio.member
    name = f"{sample.key}.{audio.member}"
    return decode_audio(sample.member(audio.member), name, spec.sample_rate, audio.duration)


def within_memory(make: Callable[Concatenate[Sample, P], T]) -> Callable[Concatenate[Sample, P], T]:
    """A sample that takes more memory than there is is a broken one."""

    @wraps(make)
    def told(sample: Sample, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return make(sample, *args, **kwargs)
        except MemoryError as e:
            why = f" ({e})" if str(e) else ""
            raise SampleError(
                f"{sample.key} takes more memory than there is{why}. Leave it out of the shards, or use fewer workers."
            ) from e

    return told


@within_memory
def make_item(
    sample: Sample,
    spec: InputSpec,
    frame: int | None = None,
    rng: np.random.Generator | None = None,
    truth_size: Grid | None = None,
    sound: Floats | None = None,
    condition: str = "",
    picture: bool = True,
) -> Item:
    """Decode one unit.

    Args:
        sample: record and bytes; of a duet, all pictures are seen, side by side.
        spec: what the method wants; with ``frames`` F > 1, the first F frames, the last repeated if there are
            fewer.
        frame: which frame is seen and scored; None for the first annotated one, or the first.
        rng: training augmentation; None for evaluation.
        truth_size: side G of the ground-truth map, or its height and width; None for no map.
        sound: hear this instead, float32 ``[T]``.
        condition: kind of the negative sound that is heard instead of the record's own; the maps stay.
        picture: False to leave pixels out where they are not needed: ``image`` is ``[3, 0, 0]``.

    Raises:
        SampleError: something is missing or broken, or a duet is to be seen as a sequence; names record and
            member.
    """
    record = sample.record
    scored = first_scored(record) if frame is None else frame
    frames = frames_seen(sample, spec, scored)
    # The frames of a clip are cropped and flipped alike, the pictures of a duet each in its own way.
    rngs = [rng] * len(frames) if record.tiles > 1 else same(rng, len(frames))
    if picture:
        images = [_picture(sample, i) for i in frames]
        views = [draw_view(image.size, spec, r) for image, r in zip(images, rngs, strict=True)]
        resampling = FILTERS[spec.interpolation]
        pictures = [seen(image, view, resampling) for image, view in zip(images, views, strict=True)]
        if record.tiles > 1:
            image = side_by_side(pictures, resampling if spec.duet == "squash" else None)
        else:
            image = pictures[0] if spec.frames == 1 else np.stack(pictures)
    else:
        views = [draw_view(picture_size(sample, i, spec), spec, r) for i, r in zip(frames, rngs, strict=True)]
        image = np.zeros((3, 0, 0), np.uint8)
    sizes = {view.size for view in views}
    if spec.resize == "pad" and len(sizes) > 1:
        raise SampleError(f"{sample.key}: its frames have different shapes, and cannot be padded alike.")
    if record.tiles == 1:
        views = [views[frames.index(scored)] if scored in frames else views[-1]]
    if sound is None:
        sound = make_sound(sample, spec, condition, record.frames[scored].t)
    maps = [view.of_maps for view in views]
    text = record.text.get("image") or record.text.get("audio") or ""
    return Item(
        key=sample.key,
        image=image,
        audio=sound,
        size=views[0].size if spec.resize == "pad" else None,
        truth=None if truth_size is None else truth_maps(sample, scored, truth_size, maps),
        semantic=None if truth_size is None else semantic_map(sample, scored, truth_size, maps),
        class_id=[t.class_id for t in record.targets],
        label=[t.class_name for t in record.targets],
        sounding=record.sounding and not condition,
        negative=condition or (record.negative.kind if record.negative else ""),
        group=record.group or "",
        group_size=record.group_size,
        video=record.video or "",
        caption=text if isinstance(text, str) else "",
    )


@within_memory
def make_truth(sample: Sample, spec: InputSpec, frame: int, size: Grid) -> Floats | None:
    """The ``truth`` of a unit as `make_item` gives it for evaluation, without decoding picture and sound.

    Raises:
        SampleError: something is missing or broken.
    """
    tiles = range(sample.record.tiles) if sample.record.tiles > 1 else [frame]
    # What maps show depends on the picture's shape for "crop" alone.
    sizes = [_picture(sample, i).size if spec.resize == "crop" else (1, 1) for i in tiles]
    return truth_maps(sample, frame, size, [draw_view(s, spec).of_maps for s in sizes])


def picture_size(sample: Sample, frame: int, spec: InputSpec) -> tuple[int, int]:
    """Width and height of a stored picture; (1, 1) where ``spec`` makes all pictures square anyway."""
    if spec.resize == "squash":
        return 1, 1
    told = sample.record.frames[frame]
    return (told.width, told.height) if told.width and told.height else _picture(sample, frame).size


def _picture(sample: Sample, frame: int) -> Image.Image:
    member = sample.record.frames[frame].member
    return decode_image(sample.member(member), f"{sample.key}.{member}")


def frames_seen(sample: Sample, spec: InputSpec, scored: int) -> list[int]:
    """Places in ``record.frames`` of the pictures that are decoded."""
    record = sample.record
    if not record.frames:
        raise SampleError(f"{sample.key} has no frame. Leave it out when the shards are written.")
    if record.tiles > 1:
        if spec.frames > 1:
            raise SampleError(
                f"{sample.key} is a duet of {record.tiles} pictures, which lie side by side, but the method takes "
                f"{spec.frames} frames at once. Such a set needs InputSpec.frames 1."
            )
        if spec.resize == "pad":
            raise SampleError(
                f"{sample.key} is a duet of {record.tiles} pictures, which fill the squares that lie side by side, but "
                "the method pads pictures. Such a set needs InputSpec.resize squash or crop."
            )
        return list(range(record.tiles))
    return [min(i, len(record.frames) - 1) for i in ([scored] if spec.frames == 1 else range(spec.frames))]


def clip_frames(record: Record, spec: InputSpec) -> list[int]:
    """Places in ``record.frames`` of the rows of its clip: all of them, in order.

    Raises:
        SampleError: a row of pictures, no frame, more than ``spec.clip``, or fewer where ``spec.short_clips`` is off.
    """
    n = len(record.frames)
    if record.tiles > 1:
        raise SampleError(
            f"{record.key} is a duet of {record.tiles} pictures, which lie side by side, but the method takes clips of "
            f"{spec.clip} frames. Such a set needs InputSpec.clip 1."
        )
    if not n:
        raise SampleError(f"{record.key} has no frame. Leave it out when the shards are written.")
    if n > spec.clip:
        raise SampleError(
            f"{record.key} has {n} frames, the method takes clips of {spec.clip}. Set the method's frames to {n}."
        )
    if n < spec.clip and not spec.short_clips:
        times = ", ".join(f"{frame.t:g}" for frame in record.frames)
        raise SampleError(
            f"{record.key} has {n} frames (at {times} s), the method takes clips of {spec.clip}: pictures are missing. "
            "Get them and write the set again, or set short_clips to true to take what there is as a shorter clip."
        )
    return list(range(n))


def same(rng: np.random.Generator | None, n: int) -> list[np.random.Generator | None]:
    """n generators in the same state, so that all frames of a sample are cropped and flipped alike."""
    if rng is None or n == 1:
        return [rng] * n
    seed = int(rng.integers(2**63))
    return [np.random.default_rng(seed) for _ in range(n)]


def first_scored(record: Record) -> int:
    return next((i for i, f in enumerate(record.frames) if f.annotated), 0)


def collate(items: Sequence[Item]) -> AVBatch:
    """A batch of decoded units. Fewer targets than the batch's most are filled up with empty maps and class
    -1.

    Raises:
        SampleError: some units have ground truth, or a semantic map, and some have none; or some pictures are rows
            of another number of pictures.
    """
    truths = [i.truth for i in items]
    for what in ("image", "truth"):
        shapes = {x.shape[-2:]: i.key for i in items if (x := getattr(i, what)) is not None}
        if len(shapes) > 1:
            raise SampleError(
                f"{' and '.join(list(shapes.values())[:2])} cannot share a batch: {what} of "
                f"{' and '.join(str(list(x)) for x in list(shapes)[:2])}. Keep rows of different numbers of "
                "pictures in sets of their own."
            )
    without = [i.key for i in items if i.truth is None]
    if without and len(without) < len(items):
        raise SampleError(
            f"{without[0]} has no ground-truth map (map_rule none) but others of its batch have. "
            "Give it a map rule, or keep it in a set of its own."
        )
    unlabelled = [i.key for i in items if i.semantic is None]
    if unlabelled and len(unlabelled) < len(items):
        raise SampleError(
            f"{unlabelled[0]} has no semantic map but others of its batch have. Write one, or keep it in a set of "
            "its own."
        )
    S = max(1, *(len(i.class_id) for i in items), *(len(t) for t in truths if t is not None))
    truth = None
    if not without:
        truth = np.zeros((len(items), S, *truths[0].shape[1:]), np.float32)  # type: ignore[union-attr]
        for row, t in zip(truth, truths, strict=True):
            row[: len(t)] = t  # type: ignore[arg-type]
    names = [i.clip for i in items]
    clips = torch.tensor([names.index(name) for name in names]) if all(names) else None
    class_id = np.full((len(items), S), -1, np.int64)
    for row, item in zip(class_id, items, strict=True):
        row[: len(item.class_id)] = item.class_id
    return AVBatch(
        key=[i.key for i in items],
        image=tensor([i.image for i in items]),
        audio=tensor([i.audio for i in items]),
        size=torch.tensor(sizes) if (sizes := [i.size for i in items if i.size]) else None,
        index=torch.tensor([i.index for i in items], dtype=torch.int64),
        truth=None if truth is None else torch.from_numpy(truth),
        semantic=None if unlabelled else tensor([i.semantic for i in items if i.semantic is not None]),
        class_id=torch.from_numpy(class_id),
        sounding=torch.tensor([i.sounding for i in items]),
        label=[i.label for i in items],
        negative=[i.negative for i in items],
        group=[i.group for i in items],
        group_size=[i.group_size for i in items],
        video=[i.video for i in items],
        clip=clips,
        annotated=None if clips is None else torch.tensor([i.annotated for i in items]),
        caption=[i.caption for i in items],
        phrase=[i.phrase for i in items if i.phrase is not None],
        context=tensor(contexts) if (contexts := [i.context for i in items if i.context is not None]) else None,
        stored={name: tensor(evened([i.stored[name] for i in items])) for name in items[0].stored},
    )


def evened(rows: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
    """Rows of different lengths with zeros up to the longest; others as they are."""
    if len({row.shape for row in rows}) == 1:
        return rows
    longest = max(len(row) for row in rows)
    return [np.pad(row, (0, longest - len(row))) for row in rows]


def tensor(arrays: Sequence[NDArray[Any]]) -> torch.Tensor:
    # In a loader worker default_collate stacks into shared memory, so the batch is not copied again on its way out.
    return default_collate([torch.from_numpy(np.require(a, requirements=["C", "W"])) for a in arrays])
