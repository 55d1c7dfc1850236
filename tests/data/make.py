"""Tiny samples for the tests of this folder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from avloc.data.schema import Audio, Frame, Record, Sample, Target
from avloc.data.shards import write_shards
from avloc.types import InputSpec

RATE = 1000
SPEC = InputSpec(image_size=16, sample_rate=RATE, seconds=0.5)


def jpeg(value: int, size: tuple[int, int] = (24, 20)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(data, "JPEG", quality=95)
    return data.getvalue()


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def sound(wave: np.ndarray, rate: int = RATE, format: str = "FLAC", subtype: str = "PCM_16") -> bytes:
    data = io.BytesIO()
    soundfile.write(data, wave, rate, format=format, subtype=subtype)
    return data.getvalue()


def sample(i: int, label: str = "", tags: tuple[str, ...] = (), group: str | None = None) -> Sample:
    """Record i: a grey picture and a constant sound that both tell its number."""
    wave = np.full(RATE // 2, (i + 1) / 1000)
    record = Record(
        "toy",
        f"s{i:04d}",
        tags=list(tags),
        group=group,
        video=f"v{i}",
        frames=[Frame("f0.jpg", 24, 20, annotated=True)],
        audios=[Audio("a0.flac", duration=0.5, rate=RATE)],
        targets=[Target(i % 3, label or f"c{i % 3}", "none", audio=0, boxes=[[0.25, 0.25, 0.75, 0.5]])],
        map_rule="union",
    )
    return Sample(record, {"f0.jpg": jpeg(i % 256), "a0.flac": sound(wave)})


def number(key: str) -> int:
    return int(key[-4:])


def toy_set(
    folder: Path, n: int, per_shard: int = 7, split: str = "train", samples: list[Sample] | None = None
) -> Path:
    """A written set; gives the path of its index."""
    samples = samples or [sample(i) for i in range(n)]
    index = write_shards(folder / "toy", "toy", split, samples, records_per_shard=per_shard).index
    assert index
    return index
