"""From encoded bytes to what a method is fed, and from boxes and masks to ground-truth maps.

Pictures are resized by Pillow, as in every published code, so that pixels agree. Nothing is normalised here.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import default_collate

from avloc.data.schema import Audio, Record, Sample, SampleError, Target
from avloc.types import AVBatch, InputSpec

__all__ = [
    "Item",
    "collate",
    "decode_audio",
    "decode_image",
    "fit_audio",
    "fit_image",
    "make_item",
    "make_sound",
    "sample_rng",
    "truth_maps",
]

Floats = NDArray[np.float32]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass
class Item:
    """One row of an `AVBatch`.

    Attributes:
        key: name of the scored or trained unit.
        image: uint8 ``[3, H, W]``, or ``[F, 3, H, W]``.
        audio: float32 ``[T]``.
        index: place in its evaluation set; -1 in training and for a missing sample.
        truth: float32 ``[S, G, G]``, or None.
        class_id, label: of each target.
        sounding, negative, group, video, caption: as in `AVBatch`.
    """

    key: str
    image: NDArray[np.uint8]
    audio: Floats
    index: int = -1
    truth: Floats | None = None
    class_id: list[int] = field(default_factory=list)
    label: list[str] = field(default_factory=list)
    sounding: bool = True
    negative: str = ""
    group: str = ""
    video: str = ""
    caption: str = ""


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """Randomness of one sample's augmentation: it follows from these three alone, not from worker or rank."""
    return np.random.default_rng([seed, epoch, zlib.crc32(key.encode())])


def decode_image(data: bytes, name: str) -> Image.Image:
    """An RGB picture.

    Raises:
        SampleError: truncated or not a picture.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise SampleError(f"{name} cannot be decoded as a picture ({e}). Write its shard again.") from e


def fit_image(image: Image.Image, spec: InputSpec, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
    """The picture as a method wants it.

    Args:
        image: RGB.
        spec: size, resize, filter, and the training crop and flip.
        rng: draws crop and flip; None for the evaluation view (no ``train_scale``, no flip).

    Returns:
        uint8 ``[3, image_size, image_size]``, a view of the resized picture; collating copies it.
    """
    size = spec.image_size
    scaled = size if rng is None else max(size, int(size * spec.train_scale))
    width = height = scaled
    if spec.resize == "crop":
        short = min(image.size)
        width, height = (max(scaled, round(side * scaled / short)) for side in image.size)
    image = image.resize((width, height), FILTERS[spec.interpolation])
    if rng is None:
        left, top = (width - size) // 2, (height - size) // 2
    else:
        left, top = int(rng.integers(width - size + 1)), int(rng.integers(height - size + 1))
    pixels = np.asarray(image)[top : top + size, left : left + size]
    if rng is not None and rng.random() < spec.train_flip:
        pixels = pixels[:, ::-1]
    return pixels.transpose(2, 0, 1)


def decode_audio(data: bytes, name: str, rate: int, duration: float = 0.0) -> Floats:
    """Samples of a FLAC, Opus, Ogg or WAV.

    Args:
        data: the file's bytes.
        name: for messages.
        rate: Hz that the sound must have.
        duration: seconds that it must have within 1 %, since a cut-off file decodes without complaint; 0 for
            any.

    Returns:
        float32 ``[n, channels]`` in [-1, 1].

    Raises:
        SampleError: truncated, empty, of another rate, or with samples that are not finite.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as f:
            found, promised = f.samplerate, f.frames
            sound = f.read(dtype="float32", always_2d=True) if found == rate else np.zeros((1, 1), np.float32)
    except (soundfile.SoundFileError, ValueError, TypeError) as e:
        raise SampleError(f"{name} cannot be decoded as sound ({e}). Write its shard again.") from e
    if found != rate:
        raise SampleError(
            f"{name} has {found} Hz, the method wants {rate} Hz. Write the shards at that rate "
            "(sounds are resampled when shards are written, never while reading)."
        )
    if not len(sound):
        raise SampleError(f"{name} has no samples at all. Leave this clip out when the shards are written.")
    if len(sound) < promised or len(sound) < 0.99 * duration * rate:
        wanted = max(promised, round(duration * rate))
        raise SampleError(f"{name} is cut off: {len(sound)} samples of {wanted}. Write its shard again.")
    if not np.isfinite(sound.sum()):
        raise SampleError(f"{name} has samples that are NaN or infinite. Leave this clip out of the shards.")
    return sound


def fit_audio(sound: Floats, spec: InputSpec) -> Floats:
    """The waveform as a method wants it: one channel, then the window, then padding.

    Args:
        sound: ``[n, channels]``, n > 0.
        spec: channels, window, pad and length. ``left_then_right`` leaves mono as it is.

    Returns:
        float32 ``[T]``.
    """
    if spec.channels == "left_then_right":
        wave = sound[:, :2].T.reshape(-1)
    else:
        wave = sound[:, 0] if spec.channels == "first" or sound.shape[1] == 1 else sound.mean(1, dtype=np.float32)
    T = spec.samples
    if len(wave) >= T:
        start = (len(wave) - T) // 2 if spec.window == "centre" else 0
        return np.ascontiguousarray(wave[start : start + T])
    return np.resize(wave, T) if spec.pad == "tile" else np.pad(wave, (0, T - len(wave)))


def make_sound(sample: Sample, spec: InputSpec) -> Floats:
    """What is heard: the plain sum of the record's sources (T-VSL's and CAVP's mixture), or a negative's own
    sound.

    Returns:
        float32 ``[T]``. Silence where the record stores none; several loud sources may add up to more than 1.

    Raises:
        SampleError: a member is missing or broken.
    """
    record = sample.record
    heard = [a for a in record.audios if a.role in ("source", "mixture")]
    if record.negative:
        heard = [a for a in record.audios if a.role == "negative"] or heard
    waves = [fit_audio(_sound(sample, a, spec), spec) for a in heard if a.member]
    return np.sum(waves, axis=0, dtype=np.float32) if waves else np.zeros(spec.samples, np.float32)


def _sound(sample: Sample, audio: Audio, spec: InputSpec) -> Floats:
    assert audio.member
    name = f"{sample.key}.{audio.member}"
    return decode_audio(sample.member(audio.member), name, spec.sample_rate, audio.duration)


def make_item(
    sample: Sample,
    spec: InputSpec,
    frame: int | None = None,
    rng: np.random.Generator | None = None,
    truth_size: int | None = None,
    sound: Floats | None = None,
) -> Item:
    """Decode one unit.

    Args:
        sample: record and bytes.
        spec: what the method wants; with ``frames`` F > 1, the first F frames, the last repeated if there are
            fewer.
        frame: which frame is seen and scored; None for the first annotated one, or the first.
        rng: training augmentation; None for evaluation.
        truth_size: side G of the ground-truth map; None for no map.
        sound: hear this instead, float32 ``[T]``.

    Raises:
        SampleError: something is missing or broken; names record and member.
    """
    record = sample.record
    if len(record.frames) > 1 and sum(a.role == "source" for a in record.audios) > 1:
        raise SampleError(
            f"{sample.key} is a duet of {len(record.frames)} pictures with sounds, which this version "
            "does not read. Leave such sets out."
        )
    if not record.frames:
        raise SampleError(f"{sample.key} has no frame. Leave it out when the shards are written.")
    scored = first_scored(record) if frame is None else frame
    images = []
    for i in [scored] if spec.frames == 1 else range(spec.frames):
        member = record.frames[min(i, len(record.frames) - 1)].member
        images.append(decode_image(sample.member(member), f"{sample.key}.{member}"))
    views = [fit_image(image, spec, r) for image, r in zip(images, same(rng, len(images)), strict=True)]
    text = record.text.get("image") or record.text.get("audio") or ""
    return Item(
        key=sample.key,
        image=views[0] if spec.frames == 1 else np.stack(views),
        audio=make_sound(sample, spec) if sound is None else sound,
        truth=None if truth_size is None else truth_maps(sample, scored, truth_size),
        class_id=[t.class_id for t in record.targets],
        label=[t.class_name for t in record.targets],
        sounding=record.sounding,
        negative=record.negative.kind if record.negative else "",
        group=record.group or "",
        video=record.video or "",
        caption=text if isinstance(text, str) else "",
    )


def same(rng: np.random.Generator | None, n: int) -> list[np.random.Generator | None]:
    """n generators in the same state, so that all frames of a sample are cropped and flipped alike."""
    if rng is None or n == 1:
        return [rng] * n
    seed = int(rng.integers(2**63))
    return [np.random.default_rng(seed) for _ in range(n)]


def first_scored(record: Record) -> int:
    return next((i for i, f in enumerate(record.frames) if f.annotated), 0)


def truth_maps(sample: Sample, frame: int, size: int = 224) -> Floats | None:
    """Ground-truth maps of a frame by the record's ``map_rule``, one per target.

    Published evaluators multiply coordinates by the grid, truncate towards zero, and fill half-open
    rectangles (``facts/datasets.md`` section 1). ``union``: 1 inside of any box of the target.
    ``consensus2``: half the number of boxes, at most 1 (section 2.5; boxes are counted, not annotators).
    ``mask``: nearest resize, then ``> 0``.

    Args:
        sample: record and bytes; the latter for ``mask`` only.
        frame: place in ``record.frames``.
        size: side G of the map.

    Returns:
        float32 ``[S, G, G]``; all zero where nothing sounds (unless the negative is scored against its
        positive's map); None for the rule ``none``.

    Raises:
        SampleError: a mask is missing from the shard or broken.
    """
    record = sample.record
    if not record.sounding and not (record.negative and record.negative.original_target):
        return np.zeros((max(1, len(record.targets)), size, size), np.float32)
    if record.map_rule == "none":
        return None
    maps: list[NDArray[Any]]
    if record.map_rule == "mask":
        maps = [_mask(sample, t, frame, size) for t in record.targets]
    else:
        most = 1.0 if record.map_rule == "union" else 2.0
        maps = [np.minimum(box_count(t, size), most) / most for t in record.targets]
    return np.stack(maps or [np.zeros((size, size))]).astype(np.float32)


def box_count(target: Target, size: int) -> NDArray[np.float64]:
    """How many of a target's boxes cover each cell of a ``[size, size]`` grid."""
    count = np.zeros((size, size))
    for x0, y0, x1, y1 in grid_boxes(target, size):
        count[y0:y1, x0:x1] += 1
    return count


def grid_boxes(target: Target, size: int) -> NDArray[np.int64]:
    """A target's boxes in cells, int64 ``[n, 4]``, truncated towards zero.

    Integer boxes on a 224 or 256 grid are scaled from the published integers: k/224 is not exact in floating
    point, and truncation would lose a cell. Inclusive corners are read as half-open, as published (section
    2.6).
    """
    grid = {"xyxy_224_excl": 224, "xyxy_224_incl": 224, "xyxy_256": 256}.get(target.raw_format)
    if grid and target.boxes_raw is not None:
        boxes = np.asarray(target.boxes_raw, np.float64).reshape(-1, 4) * size / grid
    else:
        boxes = np.asarray(target.boxes, np.float64).reshape(-1, 4) * size
    return np.clip(boxes, 0, size).astype(np.int64)


def _mask(sample: Sample, target: Target, frame: int, size: int) -> Floats:
    total = np.zeros((size, size), np.float32)
    for member in target.masks:
        if f".f{frame}." in member:
            try:
                mask = Image.open(io.BytesIO(sample.member(member)))
                # As stored: converting a palette mask would turn its indices into colours.
                pixels = np.asarray(mask.resize((size, size), Image.Resampling.NEAREST))
            except (OSError, SyntaxError, ValueError) as e:
                raise SampleError(
                    f"{sample.key}.{member} cannot be decoded as a mask ({e}). Write its shard again."
                ) from e
            total = np.maximum(total, pixels > 0)
    return total


def collate(items: Sequence[Item]) -> AVBatch:
    """A batch of decoded units. Fewer targets than the batch's most are filled up with empty maps and class
    -1.

    Raises:
        SampleError: some units have ground truth and some have none.
    """
    truths = [i.truth for i in items]
    without = [i.key for i in items if i.truth is None]
    if without and len(without) < len(items):
        raise SampleError(
            f"{without[0]} has no ground-truth map (map_rule none) but others of its batch have. "
            "Give it a map rule, or keep it in a set of its own."
        )
    S = max(1, *(len(i.class_id) for i in items), *(len(t) for t in truths if t is not None))
    truth = None
    if not without:
        truth = np.zeros((len(items), S, *truths[0].shape[1:]), np.float32)  # type: ignore[union-attr]
        for row, t in zip(truth, truths, strict=True):
            row[: len(t)] = t  # type: ignore[arg-type]
    class_id = np.full((len(items), S), -1, np.int64)
    for row, item in zip(class_id, items, strict=True):
        row[: len(item.class_id)] = item.class_id
    return AVBatch(
        key=[i.key for i in items],
        image=tensor([i.image for i in items]),
        audio=tensor([i.audio for i in items]),
        index=torch.tensor([i.index for i in items], dtype=torch.int64),
        truth=None if truth is None else torch.from_numpy(truth),
        class_id=torch.from_numpy(class_id),
        sounding=torch.tensor([i.sounding for i in items]),
        label=[i.label for i in items],
        negative=[i.negative for i in items],
        group=[i.group for i in items],
        video=[i.video for i in items],
        caption=[i.caption for i in items],
    )


def tensor(arrays: Sequence[NDArray[Any]]) -> torch.Tensor:
    # In a loader worker default_collate stacks into shared memory, so the batch is not copied again on its way out.
    return default_collate([torch.from_numpy(np.require(a, requirements=["C", "W"])) for a in arrays])
