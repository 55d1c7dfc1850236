"""Tiny samples for the tests of this folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

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
    return int(key.partition(".")[0][-4:])


def toy_set(
    folder: Path, n: int, per_shard: int = 7, split: str = "train", samples: list[Sample] | None = None
) -> Path:
    """A written set; gives the path of its index."""
    samples = samples or [sample(i) for i in range(n)]
    index = write_shards(folder / "toy", "toy", split, samples, records_per_shard=per_shard).index
    assert index
    return index


def painted(i: int = 0, side: int = 24, **changes: Any) -> Sample:
    """A random mask and a random semantic map that are also the red and the green channel of the picture."""
    rng = np.random.default_rng(i)
    mask, classes = rng.random((side, side)) < 0.4, rng.integers(0, 9, (side, side)).astype(np.uint8)
    pixels = np.stack([mask * np.uint8(255), classes * 10, 0 * classes], axis=2).astype(np.uint8)
    record = sample(i).record
    record.frames = [Frame("f0.png", side, side, annotated=True, semantic="sem.f0.png")]
    record.targets = [Target(0, "x", audio=0, masks=["m.f0.t0.png"])]
    record.map_rule = "mask"
    for name, value in changes.items():
        setattr(record, name, value)
    members = {"f0.png": png(pixels), "m.f0.t0.png": png(mask), "sem.f0.png": png(classes)}
    return Sample(record, members | {"a0.flac": sample(i).members["a0.flac"]})


def robust(i: int) -> Sample:
    """Record i under its own sound 0.001 (i + 1), noise 0.25 and an off-screen sound 0.5."""
    x = sample(i)
    x.record.audios += [
        Audio("n0.flac", "negative", rate=RATE, kind="noise"),
        Audio(None, "negative", rate=RATE, kind="silence"),
        Audio("n1.flac", "negative", rate=RATE, kind="offscreen"),
    ]
    x.members |= {"n0.flac": sound(np.full(500, 0.25)), "n1.flac": sound(np.full(500, 0.5))}
    return x


def clip(i: int, frames: int = 5, bare: tuple[int, ...] = (1,)) -> Sample:
    """Frames of grey 40 k + 10 at second k, all but ``bare`` annotated with a mask that covers k quarters."""
    x = sample(i)
    kept = [k for k in range(frames) if k not in bare]
    x.record.frames = [Frame(f"f{k}.png", 4, 4, t=k, annotated=k in kept) for k in range(frames)]
    x.record.map_rule = "mask"
    x.record.targets = [Target(0, audio=0, masks=[f"m.f{k}.t0.png" for k in kept])]
    x.members = {"a0.flac": x.members["a0.flac"]}
    x.members |= {f"f{k}.png": png(np.full((4, 4, 3), 40 * k + 10, np.uint8)) for k in range(frames)}
    x.members |= {f"m.f{k}.t0.png": png(np.arange(4)[None].repeat(4, 0) < k) for k in kept}
    return x


def duet(i: int, n: int = 2) -> Sample:
    """n pictures of grey 50 (t + 1) with sounds 0.1 (t + 1); box t covers the first t + 1 quarters of its width."""
    x = sample(i)
    x.record.tags = ["duet"]
    x.record.frames = [Frame(f"f{t}.jpg", 24, 20, annotated=True) for t in range(n)]
    x.record.audios = [Audio(f"a{t}.flac", rate=RATE) for t in range(n)]
    x.record.targets = [Target(t, f"c{t}", audio=t, boxes=[[0, 0, (t + 1) / 4, 1]]) for t in range(n)]
    x.members = {f"f{t}.jpg": jpeg(50 * (t + 1)) for t in range(n)}
    x.members |= {f"a{t}.flac": sound(np.full(500, 0.1 * (t + 1))) for t in range(n)}
    return x


def boxed(boxes: list[list[float]], rule: str = "union", **target: object) -> Sample:
    record = Record("toy", "x", frames=[Frame("f0.jpg", annotated=True)], map_rule=rule)  # type: ignore[arg-type]
    record.targets = [Target(boxes=boxes, **target)]  # type: ignore[arg-type]
    return Sample(record, {})


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 0 * x], 2).astype(np.uint8))
