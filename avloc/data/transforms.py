"""From encoded bytes to what a method is fed, and from boxes and masks to ground-truth maps.

Pictures are resized by Pillow, as in every published code, so that pixels agree. Nothing is normalised here. What
is cut out of a picture, and mirrored, is a `View`; maps are cut and mirrored by the same one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import default_collate

from avloc.data.media import load_picture, load_sound
from avloc.data.media.pictures import MOST_PIXELS
from avloc.data.media.sounds import is_antiphase
from avloc.data.mixtures import per_tile, side_by_side
from avloc.data.schema import Audio, Record, Sample, SampleError, Target
from avloc.types import AVBatch, InputSpec

__all__ = [
    "WHOLE",
    "Grid",
    "Item",
    "View",
    "clip_frames",
    "collate",
    "decode_audio",
    "decode_image",
    "draw_view",
    "fit_audio",
    "fit_image",
    "grid_of",
    "make_item",
    "make_sound",
    "make_truth",
    "sample_rng",
    "semantic_map",
    "truth_maps",
]

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Grid = int | Sequence[int]  # of ground truth: a side, or height and width
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class View:
    """What is seen of a picture: scaled to ``width`` x ``height``, the square of ``side`` at (``left``, ``top``) is
    cut out, and mirrored where ``flip`` says so. Where the scaled picture is smaller than the square, it lies at the
    top left of it, mirrored in itself, and zeros fill the rest. All in pixels."""

    width: int
    height: int
    left: int
    top: int
    side: int
    flip: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is picture in the square."""
        return min(self.height, self.side), min(self.width, self.side)

    @property
    def of_maps(self) -> View:
        """What maps show: the same, but without the zeros around a small picture."""
        return self if self.size == (self.side, self.side) else replace(WHOLE, flip=self.flip)


WHOLE = View(1, 1, 0, 0, 1)


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


def grid_of(size: Grid) -> tuple[int, int]:
    """Height and width of a grid of ground truth."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """Randomness of one sample's augmentation: it follows from these three alone, not from worker or rank."""
    return np.random.default_rng([seed, epoch, zlib.crc32(key.encode())])


def decode_image(data: bytes, name: str) -> Image.Image:
    """An RGB picture.

    Raises:
        SampleError: truncated or not a picture.
    """
    try:
        image = load_picture(data)
        return image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, ValueError) as e:
        raise SampleError(f"{name} cannot be decoded as a picture ({e}). Write its shard again.") from e


def draw_view(size: tuple[int, int], spec: InputSpec, rng: np.random.Generator | None = None) -> View:
    """What a method sees of a picture.

    Args:
        size: width and height of the picture.
        spec: size, resize, and the training crop and flip.
        rng: draws crop and flip; None for the evaluation view (no ``train_scale``, no flip).
    """
    side = spec.image_size
    if spec.resize == "pad":
        # Rounded half up, as SAM does.
        width, height = (max(1, int(length * side / max(size) + 0.5)) for length in size)
        return View(width, height, 0, 0, side, rng is not None and rng.random() < spec.train_flip)
    scaled = side if rng is None else max(side, int(side * spec.train_scale))
    width = height = scaled
    if spec.resize == "crop":
        width, height = (max(scaled, round(length * scaled / min(size))) for length in size)
    if rng is None:
        return View(width, height, (width - side) // 2, (height - side) // 2, side)
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    return View(width, height, left, top, side, rng.random() < spec.train_flip)


def fit_image(image: Image.Image, spec: InputSpec, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
    """The picture as a method wants it: `draw_view`, then `seen`."""
    return seen(image, draw_view(image.size, spec, rng), FILTERS[spec.interpolation])


def seen(image: Image.Image, view: View, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """The view of an RGB picture, uint8 ``[3, side, side]``; of the resized pixels a view too: collating copies
    it."""
    if view.width * view.height > MOST_PIXELS:
        # A picture of 60,000 x 1 would be scaled to millions of columns, of which one square is seen.
        x, y = image.width / view.width, image.height / view.height
        box = (view.left * x, view.top * y, (view.left + view.side) * x, (view.top + view.side) * y)
        part = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
        pixels = np.asarray(image.resize((view.side, view.side), resampling, part))
    else:
        pixels = np.asarray(image.resize((view.width, view.height), resampling))
        pixels = pixels[view.top : view.top + view.side, view.left : view.left + view.side]
    if view.flip:
        pixels = pixels[:, ::-1]
    if view.of_maps is not view:
        padded = np.zeros((view.side, view.side, 3), np.uint8)
        padded[: pixels.shape[0], : pixels.shape[1]] = pixels
        pixels = padded
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
        sound, found, promised = load_sound(data, rate)
    except ValueError as e:
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


def fit_audio(sound: Floats, spec: InputSpec, t: float = 0.0) -> Floats:
    """The waveform as a method wants it: one channel, then the window, then padding.

    Args:
        sound: ``[n, channels]``, n > 0.
        spec: channels, window, pad and length. ``left_then_right`` leaves mono as it is.
        t: seconds into the clip at which the scored frame was taken; for the window ``frame``.

    Returns:
        float32 ``[T]``.
    """
    if spec.channels == "left_then_right":
        wave = sound[:, :2].T.reshape(-1)
    else:
        # Channels that would cancel are a mistake of the recording: the left one is heard.
        one = spec.channels == "first" or sound.shape[1] == 1 or is_antiphase(sound.T)
        wave = sound[:, 0] if one else sound.mean(1, dtype=np.float32)
    T = spec.samples
    if spec.window == "frame":
        wave = wave[frame_start(t, len(wave), spec) :]
    if len(wave) >= T:
        start = (len(wave) - T) // 2 if spec.window == "centre" else 0
        return np.ascontiguousarray(wave[start : start + T])
    return np.resize(wave, T) if spec.pad == "tile" else np.pad(wave, (0, T - len(wave)))


def frame_start(t: float, n: int, spec: InputSpec) -> int:
    """First of n samples that belongs to the frame of time t: see ``InputSpec.window``."""
    stretch = math.floor(t / spec.seconds + 1e-6)  # 0.3 / 0.1 is a little below 3
    length = spec.seconds * spec.sample_rate
    return round(max(0, min(stretch, int((n - 1) / length))) * length)


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


def truth_maps(sample: Sample, frame: int, size: Grid = 224, views: Sequence[View] | None = None) -> Floats | None:
    """Ground-truth maps by the record's ``map_rule``, one per target, of what is seen.

    Published evaluators multiply coordinates by the grid, truncate towards zero, and fill half-open rectangles (on
    VGG-SS rounding instead gives maps whose mean IoU with these is 0.98). ``union``: 1 inside of any box of the target.
    ``consensus2``: half the number of boxes, at most 1 (Flickr; boxes are counted, not annotators). ``sum``: the number
    of boxes, which exceeds 1 where they overlap (T-VSL and AVGN do not clip; for published readings only). ``mask``:
    nearest resize, then ``> 0``.

    Args:
        sample: record and bytes; the latter for ``mask`` only.
        frame: place in ``record.frames``; a duet has maps of all of its pictures.
        size: side G of the map, or its height and width.
        views: what is seen of the picture, or of each picture of a duet; all of it by default.

    Returns:
        float32 ``[S, G, G']``, of a duet of n pictures ``[n, G, n G']`` with each target in its own tile; all zero
        where nothing sounds (unless the negative is scored against its positive's map); None for the rule
        ``none``.

    Raises:
        SampleError: a mask is missing from the shard or broken.
    """
    record = sample.record
    n = record.tiles
    if not record.has_maps:
        return None
    height, width = grid_of(size)
    if record.is_empty or not record.targets:
        return np.zeros((n if n > 1 else max(1, len(record.targets)), height, n * width), np.float32)
    views = views or [WHOLE] * n
    if n > 1:
        return per_tile([_target_map(sample, t, i, size, views[i]) for i, t in enumerate(record.targets)])
    return np.stack([_target_map(sample, t, frame, size, views[0]) for t in record.targets])


def semantic_map(sample: Sample, frame: int, size: Grid = 224, views: Sequence[View] | None = None) -> Integers | None:
    """The class of each pixel of what is seen, by nearest resize; a palette picture's indices, not its colours.

    Args:
        sample, frame, size, views: as of `truth_maps`.

    Returns:
        int64 ``[G, G']``, of a duet of n pictures ``[G, n G']``: 0 background, 255 "do not score"; all zero where
        nothing sounds; None where the record has none of this frame.

    Raises:
        SampleError: it is missing from the shard, broken, or a colour picture.
    """
    record = sample.record
    n = record.tiles
    members = [f.semantic for f in (record.frames if n > 1 else record.frames[frame : frame + 1])]
    if not members or None in members:
        return None
    if record.is_empty:
        height, width = grid_of(size)
        return np.zeros((height, n * width), np.int64)
    views = views or [WHOLE] * n
    maps = [_indices(sample, m, size, v) for m, v in zip(members, views, strict=True) if m]
    return np.concatenate(maps, axis=1).astype(np.int64)


def _target_map(sample: Sample, target: Target, frame: int, size: Grid, view: View) -> Floats:
    """float32 ``[G, G']``."""
    rule = sample.record.map_rule
    if rule == "mask":
        covered = np.zeros(grid_of(size), bool)
        for member in target.masks:
            if f".f{frame}." in member:
                covered |= _indices(sample, member, size, view) > 0
        return covered.astype(np.float32)
    count = box_count(target, size, view)
    if rule != "sum":
        most = 1.0 if rule == "union" else 2.0
        count = np.minimum(count, most) / most
    return count.astype(np.float32)


def box_count(target: Target, size: Grid, view: View = WHOLE) -> NDArray[np.float64]:
    """How many of a target's boxes cover each cell of a grid over the view."""
    count = np.zeros(grid_of(size))
    for x0, y0, x1, y1 in grid_boxes(target, size, view):
        count[y0:y1, x0:x1] += 1
    return count[:, ::-1] if view.flip else count


def grid_boxes(target: Target, size: Grid, view: View = WHOLE) -> NDArray[np.int64]:
    """A target's boxes in cells of the view before it is mirrored, int64 ``[n, 4]``, truncated towards zero.

    Integer boxes on a 224 or 256 grid are scaled from the published integers: k/224 is not exact in floating
    point, and truncation would lose a cell. Inclusive corners are read as half-open, as published (section
    2.6).
    """
    grid = {"xyxy_224_excl": 224, "xyxy_224_incl": 224, "xyxy_256": 256}.get(target.raw_format)
    height, width = grid_of(size)
    cells = np.array([width, height] * 2)
    # Of the whole picture these are exactly [width, height] and [0, 0].
    scale = np.array([view.width, view.height] * 2) * cells / view.side
    corner = np.array([view.left, view.top] * 2) * cells / view.side
    if grid and target.boxes_raw is not None:
        boxes = np.asarray(target.boxes_raw, np.float64).reshape(-1, 4) * scale / grid
    else:
        boxes = np.asarray(target.boxes, np.float64).reshape(-1, 4) * scale
    return np.clip(boxes - corner, 0, cells).astype(np.int64)


def _indices(sample: Sample, member: str, size: Grid, view: View) -> NDArray[Any]:
    """The view of an index map or mask that covers the whole picture, ``[G, G']``, by nearest neighbour."""
    name, data = f"{sample.key}.{member}", sample.member(member)
    sides = np.array([view.left, view.top, view.left + view.side, view.top + view.side])
    try:
        image = load_picture(data)
        box = tuple(sides * (image.size * 2) / ([view.width, view.height] * 2))
        # As stored: converting a palette picture would turn its indices into colours.
        pixels = np.asarray(image.resize(grid_of(size)[::-1], Image.Resampling.NEAREST, box))
    except (OSError, ValueError) as e:
        raise SampleError(f"{name} cannot be decoded as a mask ({e}). Write its shard again.") from e
    if pixels.ndim != 2:
        raise SampleError(
            f"{name} is a colour picture (mode {image.mode}), a mask or index map has one channel. Convert it when "
            "the shards are written (avloc.data.labels.colours_to_index)."
        )
    return pixels[:, ::-1] if view.flip else pixels


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
