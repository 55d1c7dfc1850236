"""What one record of a shard says about itself: ``meta.json``, the same for every dataset.

Pixels and sounds are stored once, in ordinary codecs; ground-truth maps are not: boxes stay as their authors wrote them
beside a normalised copy, and a named rule turns them into a map when they are read, so a published rounding can be
repeated exactly and left on purpose. ``dataset`` and ``split`` may be any lower-case name: users bring sets of their
own.
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from avloc.bounds import parsed_json, refuse_more

__all__ = [
    "SCHEMA_VERSION",
    "Audio",
    "Frame",
    "Negative",
    "Provenance",
    "Record",
    "Sample",
    "SampleError",
    "SchemaError",
    "Target",
    "sample_key",
]

SCHEMA_VERSION = 1
NAME = re.compile(r"[a-z0-9_]+")
MEMBER = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")
MASK = re.compile(r"m\.f(\d+)\..*")
LARGEST = sys.float_info.max
MOST_TILES = 4  # pictures of a duet

MapRule = Literal["union", "consensus2", "sum", "mask", "none"]
Role = Literal["source", "mixture", "partner", "negative"]
RawFormat = Literal["xyxy_norm", "xywh_norm", "xyxy_224_excl", "xyxy_224_incl", "xyxy_256"]
NegativeKind = Literal["silence", "noise", "offscreen", "mismatch", "natural"]
Condition = Literal["", "silence", "noise", "offscreen", "mismatch", "natural"]


class SampleError(ValueError):
    """One sample is broken: unreadable picture or sound, a missing member, a wrong rate, a bad
    ``meta.json``."""


class SchemaError(SampleError):
    """A ``meta.json`` does not say what its schema promises."""


@dataclass
class Frame:
    """A picture of the record.

    Attributes:
        member: its name in the tar, without the key, e.g. ``f0.jpg``.
        width, height: pixels of the stored picture.
        src_width, src_height: pixels of the source; 0 where unknown.
        t: seconds from the start of the clip.
        annotated: whether the targets speak of this frame.
        semantic: member ``sem.f<i>.png``, an index map of 8 or 16 bits: 0 background, 255 "do not score"; None
            for none.
    """

    member: str
    width: int = 0
    height: int = 0
    src_width: int = 0
    src_height: int = 0
    t: float = 0.0
    annotated: bool = False
    semantic: str | None = None


@dataclass
class Audio:
    """A sound of the record.

    Attributes:
        member: its name in the tar, e.g. ``a0.flac``; None for silence.
        role: ``source`` sounds are summed; a ``mixture`` is stored mixed; ``negative`` replaces them in a
            negative.
        src_id: id of the clip that it comes from.
        clip_start: seconds into the video.
        duration: seconds; 0 where unknown.
        rate: Hz.
        channels: 1 or 2.
        kind: for a ``negative`` sound of a positive record: the condition that it makes. The record is scored
            once with its own sound and once under each condition, against the same map
            (AVSBench-Robust).
    """

    member: str | None
    role: Role = "source"
    src_id: str = ""
    clip_start: float = 0.0
    duration: float = 0.0
    rate: int = 16000
    channels: int = 1
    kind: Condition = ""


@dataclass
class Target:
    """Something that sounds, and where it is.

    Attributes:
        class_id: place in ``label_space``; -1 where unknown.
        class_name, label_space: the label and the list that it is of.
        audio: place in `Record.audios` of the sound that it makes; -1 for none.
        instance: number among the objects of its class.
        boxes: ``[n, 4]`` x0, y0, x1, y1 as fractions of the frame, clipped to [0, 1].
        boxes_raw: ``[n, 4]`` as published, in ``raw_format``; None where not finite or absurd.
        annotator: ``[n]`` who drew each box.
        masks: member names ``m.f<i>.t<t>.png``; a frame without one is not annotated, all zero is empty. A mask
            covers the whole frame, whatever its own size.
    """

    class_id: int = -1
    class_name: str = ""
    label_space: str = "none"
    audio: int = -1
    instance: int = 0
    boxes: list[list[float]] = field(default_factory=list)
    boxes_raw: list[list[float]] | None = None
    raw_format: RawFormat = "xyxy_norm"
    annotator: list[int] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)


@dataclass
class Negative:
    """Why nothing in the picture makes the sound.

    Attributes:
        kind: what was done to the sound.
        recipe: name and version of how it was made.
        seed: of the recipe.
        src_id: clip whose sound is heard.
        same_class: whether that clip has the picture's class; None where unknown.
        original_target: score against the positive's map instead of the empty one.
    """

    kind: NegativeKind
    recipe: str = ""
    seed: int = 0
    src_id: str = ""
    same_class: bool | None = None
    original_target: bool = False


@dataclass
class Provenance:
    """Where the record's content was published."""

    repository: str = ""
    commit: str = ""
    file: str = ""
    row: int | None = None
    media_sha256: str = ""
    licence: str = ""
    note: str = ""


@dataclass
class Record:
    """One scored or trained unit: a picture (or a short sequence), its sounds, its targets.

    A record of several frames and several ``source`` sounds is a duet: two to four pictures that are laid side
    by side under the sum of their sounds; ``audios[t]`` and ``targets[t]`` belong to ``frames[t]``.

    Attributes:
        dataset: lower-case name of the set.
        id: the source's own id, unaltered.
        split: ``train``, ``val``, ``test``, or a part of that.
        tags: subsets that it is in.
        group: interactive group whose members lie side by side in one shard; None for none.
        group_size: number of members of the group.
        video: id of the video, for leak checks.
        frames, audios, targets: see `Frame`, `Audio`, `Target`.
        map_rule: how a target becomes a ground-truth map (`avloc.data.truth.truth_maps`).
        sounding: False where the true map is the zero map.
        negative: what kind of negative; None for a positive.
        text: captions and other text by kind (``image``, ``audio``, ``llm``).
        provenance: where it comes from.
        media: what was met when its media were read: kind to extent, such as ``damaged`` to the seconds of sound that
            are lost, ``first_frame_late`` to the seconds by which pictures begin too late, ``silent`` to 1.
        schema: version of this schema.
    """

    dataset: str
    id: str
    split: str = "train"
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    group_size: int = 1
    video: str | None = None
    frames: list[Frame] = field(default_factory=list)
    audios: list[Audio] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    map_rule: MapRule = "none"
    sounding: bool = True
    negative: Negative | None = None
    text: dict[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    media: dict[str, float] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        return sample_key(self.dataset, self.id)

    @property
    def members(self) -> list[str]:
        """Names of the members that this record promises, ``meta.json`` aside."""
        names = [f.member for f in self.frames] + [a.member for a in self.audios if a.member]
        names += [m for t in self.targets for m in t.masks]
        return names + [f.semantic for f in self.frames if f.semantic]

    @property
    def tiles(self) -> int:
        """How many pictures lie side by side in what is seen: those of a duet, else 1."""
        return len(self.frames) if len(self.frames) > 1 and self._sources() > 1 else 1

    @property
    def scored(self) -> list[int]:
        """Places of the frames that are scored, and trained on, one by one: the annotated ones; of a duet, which is
        seen as a whole, the first."""
        annotated = [i for i, frame in enumerate(self.frames) if frame.annotated]
        return annotated[:1] if self.tiles > 1 else annotated

    def unit(self, frame: int) -> str:
        """Name of one frame as a sample: the key, with ``.f<frame>`` where several frames are scored."""
        return f"{self.key}.f{frame}" if len(self.scored) > 1 else self.key

    @property
    def conditions(self) -> list[str]:
        """Kinds of the sounds that replace its own: the record is scored under each of them too."""
        return [a.kind for a in self.audios if a.kind]

    @property
    def has_maps(self) -> bool:
        """Whether there are ground-truth maps, be they empty."""
        return self.map_rule != "none" or self.is_empty

    @property
    def is_empty(self) -> bool:
        """Whether the true map is the zero map because nothing in the picture sounds."""
        return not self.sounding and not (self.negative and self.negative.original_target)

    @property
    def label(self) -> str:
        """Class name of the first target, "" for none."""
        return self.targets[0].class_name if self.targets else ""

    def to_json(self) -> str:
        """The content of ``meta.json``: one line, keys in the order of the schema.

        Raises:
            SchemaError: the record would not be accepted by `from_json`.
        """
        self.validate()
        data = {"schema": self.schema} | asdict(self)
        # Younger than the first shards, whose bytes must not change: left out where they say nothing.
        data["frames"] = [without(f, "semantic") for f in data["frames"]]
        data["audios"] = [without(a, "kind") for a in data["audios"]]
        data = without(data, "media")
        return json.dumps(data, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """A validated record. Unknown keys are ignored, missing optional ones get their defaults.

        Raises:
            SchemaError: not JSON, a schema version that this code does not know, or a field with a wrong type
                or value; the message names record, field and remedy.
        """
        try:
            data = parsed_json(text, "RECORD_BYTES")
        except ValueError as e:
            raise SchemaError(f"meta.json is not JSON ({e}). Write the shard again.") from e
        if not isinstance(data, dict):
            raise SchemaError(f"meta.json holds a {type(data).__name__}, not an object. Write the shard again.")
        where = f"record {data.get('dataset')}__{data.get('id')}"
        if data.get("schema") != SCHEMA_VERSION:
            raise SchemaError(
                f"{where}: schema version {data.get('schema')!r} is unknown, avloc reads {SCHEMA_VERSION}. "
                "Update avloc, or write the shards again with its data_prep."
            )
        record = build(cls, data, where, "")
        record.check_values()
        return record

    def validate(self) -> None:
        """Check every type, enum and value.

        Raises:
            SchemaError: names record, field and remedy.
        """
        build(Record, asdict(self), f"record {self.dataset}__{self.id}", "")
        self.check_values()

    def check_values(self) -> None:
        """What the types cannot say: ranges, lengths, references between fields."""

        def need(ok: bool, name: str, remedy: str) -> None:
            if not ok:
                raise SchemaError(f"record {self.dataset}__{self.id}, field {name}: {remedy}")

        need(self.schema == SCHEMA_VERSION, "schema", f"must be {SCHEMA_VERSION}.")
        need(bool(NAME.fullmatch(self.dataset)), "dataset", "use lower-case letters, digits and _ only.")
        need(bool(NAME.fullmatch(self.split)), "split", "use lower-case letters, digits and _ only.")
        need(bool(self.id), "id", "must not be empty.")
        for name in self.members:
            need(bool(MEMBER.fullmatch(name)), f"member {name!r}", "name members like f0.jpg, without folders.")
        for i, frame in enumerate(self.frames):
            name = f"sem.f{i}.png"
            need(frame.semantic in (None, name), f"frames[{i}].semantic", f"name this frame's index map {name}.")
        self._check_conditions(need)
        self._check_duet(need)
        for i, target in enumerate(self.targets):
            at = f"targets[{i}]"
            need(-1 <= target.audio < len(self.audios), f"{at}.audio", "must be a place in audios, or -1.")
            for name, boxes in (("boxes", target.boxes), ("boxes_raw", target.boxes_raw or [])):
                need(all(len(b) == 4 for b in boxes), f"{at}.{name}", "every box has four numbers.")
            need(
                all(0 <= v <= 1 for b in target.boxes for v in b),
                f"{at}.boxes",
                "must be clipped to [0, 1]; the published numbers belong in boxes_raw.",
            )
            raw = target.boxes_raw
            need(
                raw is None or len(raw) == len(target.boxes),
                f"{at}.boxes_raw",
                "must match boxes one to one.",
            )
            need(
                len(target.annotator) in (0, len(target.boxes)),
                f"{at}.annotator",
                "must match boxes one to one.",
            )
            frames = [int(m[1]) for name in target.masks if (m := MASK.fullmatch(name))]
            need(max(frames, default=-1) < len(self.frames), f"{at}.masks", "names a frame that is not in frames.")

    def _check_conditions(self, need: Callable[[bool, str, str], None]) -> None:
        for i, audio in enumerate(self.audios):
            at = f"audios[{i}].kind"
            need(not audio.kind or audio.role == "negative", at, "only a sound of the role negative has a kind.")
            need(not audio.kind or self.negative is None, at, "a record that is a negative itself has no conditions.")
            fits = (audio.member is None) == (audio.kind == "silence")
            need(not audio.kind or fits, at, "silence has no member, every other condition has one.")
        need(len(set(self.conditions)) == len(self.conditions), "audios", "no two conditions may be of one kind.")

    def _check_duet(self, need: Callable[[bool, str, str], None]) -> None:
        n, sounds = self.tiles, self._sources()
        need(
            "duet" not in self.tags or sounds in (0, len(self.frames)),
            "frames",
            f"is tagged duet with {len(self.frames)} pictures and {sounds} source sounds; a duet of several pictures "
            "has one sound for each.",
        )
        if n == 1:
            return
        need(n <= MOST_TILES, "frames", f"a duet has two to {MOST_TILES} pictures, this one has {n}.")
        paired = [a.role == "source" for a in self.audios] == [True] * n + [False] * (len(self.audios) - n)
        need(paired, "audios", f"a duet of {n} pictures begins with {n} source sounds, one for each, and has no more.")
        audios = [t.audio for t in self.targets]
        need(
            audios in ([], list(range(n))),
            "targets",
            f"a duet of {n} pictures has {n} targets, of which target t is in frame t and has audio t; here the "
            f"targets' audios are {audios}.",
        )
        for t, target in enumerate(self.targets):
            own = all(m[1] == str(t) for name in target.masks if (m := MASK.fullmatch(name)))
            need(own, f"targets[{t}].masks", f"in a duet, target {t} is in frame {t} alone.")
        semantic = {f.semantic is None for f in self.frames}
        need(len(semantic) == 1, "frames", "either every picture of a duet has a semantic map or none has.")

    def _sources(self) -> int:
        return sum(a.role == "source" for a in self.audios)


@dataclass
class Sample:
    """A record with its media.

    Attributes:
        record: what ``meta.json`` says.
        members: encoded bytes by member name (``f0.jpg``, ``a0.flac``, ...).
    """

    record: Record
    members: dict[str, bytes]

    @property
    def key(self) -> str:
        return self.record.key

    def member(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            SampleError: the tar does not hold it.
        """
        try:
            return self.members[name]
        except KeyError:
            raise SampleError(f"{self.key}: member {name} is missing from its shard. Write the shard again.") from None


def sample_key(dataset: str, id: str) -> str:
    """Key of a record in a tar: ``<dataset>__<id>``; what is not in ``[A-Za-z0-9_-]`` becomes ``-``.

    A dot would end the key (webdataset cuts at the first one), so MS3's ``.mp4_1`` names must lose theirs.
    """
    return f"{dataset}__" + re.sub(r"[^A-Za-z0-9_-]", "-", id)


def without(data: dict[str, Any], name: str) -> dict[str, Any]:
    """``data`` without the field ``name`` if that is empty."""
    return {k: v for k, v in data.items() if k != name or v}


@cache
def hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def build(cls: type, data: Any, where: str, path: str) -> Any:
    """An instance of the dataclass ``cls`` from parsed JSON, every field checked against its annotation."""
    if not isinstance(data, dict):
        raise SchemaError(f"{where}, field {path or 'meta.json'}: expected an object, got {data!r}.")
    values = {}
    for f in fields(cls):
        name = f"{path}.{f.name}" if path else f.name
        if f.name in data:
            values[f.name] = check(data[f.name], hints(cls)[f.name], where, name)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise SchemaError(f"{where}, field {name}: is missing. Write the shard again with it.")
    return cls(**values)


def check(value: Any, hint: Any, where: str, path: str) -> Any:
    """``value`` as the type ``hint``; floats must be finite and take integers, integers take no booleans."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return check(value, next(a for a in args if a is not type(None)), where, path)
    if is_dataclass(hint):
        return build(hint, value, where, path)  # type: ignore[arg-type]
    if origin is list and isinstance(value, list):
        try:
            refuse_more(len(value), "TARGETS", f"{len(value):,} entries")
        except ValueError as e:
            raise SchemaError(f"{where}, field {path}: {e}. Write the shard again.") from None
        return [check(v, args[0], where, f"{path}[{i}]") for i, v in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return value
    if origin is Literal and value in args:
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number and abs(value) <= LARGEST:
        return float(value)
    if hint is int and number and isinstance(value, int):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    wanted = f"one of {', '.join(map(str, args))}" if origin is Literal else getattr(hint, "__name__", str(hint))
    finite = "finite " if hint is float else ""
    raise SchemaError(f"{where}, field {path}: expected {finite}{wanted}, got {value!r}. Write the shard again.")
