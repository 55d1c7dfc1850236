"""Negatives of the extended sets (SLAVC): a picture with a sound that nothing in it makes.

The list ``*_plus_silent.csv`` is the definition: how its pairs were drawn is unpublished. A row whose picture and sound
are of one clip is a real clip without a visible or audible source (kind ``natural``); any other is a ``mismatch``, of
which a quarter pairs two clips of the same class (tag ``same_class_negative``). Everything else of a set with known
classes carries the tag ``other_class``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from avloc.data.schema import Negative, Provenance, Record, Sample, sample_key
from avloc.data.shards import Job, Skipped
from data_prep.members import AS_PUBLISHED, picture, sound
from data_prep.tables import no_twins, read_table
from data_prep.telling import lacking
from data_prep.vggss import clip_key

__all__ = ["NegativeRow", "make_negative", "negatives", "notes", "read_negatives"]

RECIPE = "slavc_plus_silent"


@dataclass(frozen=True)
class NegativeRow:
    """A row of the list: clip that is seen, clip that is heard, and whether both are of one class (None: unknown)."""

    video: str
    audio: str
    same_class: bool | None = None

    @property
    def tags(self) -> list[str]:
        if self.same_class:
            return ["same_class_negative"]
        return ["other_class"] if self.natural or self.same_class is False else []

    @property
    def id(self) -> str:
        return f"{self.video}+{self.audio}"

    @property
    def natural(self) -> bool:
        return self.video == self.audio


def read_negatives(path: Path, labels: Mapping[str, str] | None = None) -> list[NegativeRow]:
    """Rows of ``*_plus_silent.csv``, in its order.

    Args:
        path: with the header ``video,audio,label``.
        labels: class of each clip; None where there are no classes.

    Raises:
        ValueError: not that file, another label than ``non-sounding``, or a pair that occurs twice.
    """
    rows = []
    table = read_table(path, ("video", "audio", "label"), header=True, clips=("video", "audio"))
    for n, row in enumerate(table, start=2):
        if row["label"] != "non-sounding" or not row["video"] or not row["audio"]:
            raise ValueError(f"{path}, row {n}: expected video,audio,non-sounding, got {list(row.values())}.")
        video, audio = row["video"], row["audio"]
        known = labels is not None and video != audio and video in labels and audio in labels
        rows.append(NegativeRow(video, audio, labels[video] == labels[audio] if known and labels else None))
    no_twins((r.id for r in rows), path)
    return rows


def make_negative(
    dataset: str,
    row: NegativeRow,
    frame: Path,
    heard: Path,
    t: float,
    clip_start: float,
    video: str,
    tags: Sequence[str],
    file: str,
    licence: str,
) -> Sample:
    """A picture with another's sound; its true map is the zero map.

    Raises:
        MediaError: a file is absent or broken.
    """
    kind = "natural" if row.natural else "mismatch"
    shown, f0 = picture(frame, t=t, annotated=True)
    wave, a0 = sound(heard, role="negative", src_id=row.audio, clip_start=clip_start)
    record = Record(
        dataset,
        row.id,
        split="test",
        tags=[*tags, *row.tags],
        video=video,
        frames=[f0],
        audios=[a0],
        map_rule="union",
        sounding=False,
        negative=Negative(kind, RECIPE, src_id=row.audio, same_class=row.same_class),  # type: ignore[arg-type]
        provenance=Provenance(file=file, licence=licence),
    )
    return Sample(record, {f0.member: shown, "a0.flac": wave})


def negatives(
    dataset: str,
    rows: Sequence[NegativeRow],
    frames: Mapping[str, Path],
    sounds: Mapping[str, Path],
    *,
    t: float,
    file: Path,
    licence: str,
    youtube: bool,
    as_published: bool = False,
) -> tuple[list[Job], list[Skipped]]:
    """Jobs of the rows with media, and those without.

    Args:
        t: time of the frame in its clip, seconds.
        youtube: ids are VGGSound's ``<YouTube id>_<start>``, so that video and start follow from them.
    """
    jobs, missing = [], []
    for row in rows:
        key = sample_key(dataset, row.id)
        if row.video not in frames:
            missing.append(Skipped(key, lacking("picture", f"no frame of {row.video}")))
        elif row.audio not in sounds:
            missing.append(Skipped(key, lacking("sound", f"no audio of {row.audio}")))
        else:
            start, video = (float(clip_key(row.audio)[12:]), row.video[:11]) if youtube else (0.0, row.video)
            tags = [AS_PUBLISHED] * as_published
            place = (frames[row.video], sounds[row.audio], t, start, video, tags, file.name, licence)
            jobs.append(Job(key, partial(make_negative, dataset, row, *place)))
    return jobs, missing


def notes(rows: Sequence[NegativeRow]) -> list[str]:
    """What a reader of results must know of the list."""
    natural = sum(r.natural for r in rows)
    said = [f"{len(rows)} negatives: {natural} natural, {len(rows) - natural} mismatched, of the published list"]
    if same := sum(bool(r.same_class) for r in rows):
        said.append(
            f"{same} mismatched negatives have the picture's own class (tag same_class_negative): report results also "
            "without them (tag other_class)"
        )
    return said
