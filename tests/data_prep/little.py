"""Little pictures, sounds and masks on the disk, and what a conversion of them left behind."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avloc.data.schema import Sample
from avloc.data.shards import Job, Skipped, make

ANNOTATIONS = Path(__file__).parents[2] / ".." / "shared" / "annotations"
needs_annotations = pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="the annotation files of the sets are not here")


class InThisProcess:
    """Stands in for the converters' pool: no process is started."""

    def __init__(self, processes: int) -> None:
        pass

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Sample | Skipped]:
        return map(make, jobs)

    def close(self) -> None:
        pass


def write_picture(path: Path, value: int = 100, size: tuple[int, int] = (32, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def write_sound(path: Path, value: float = 0.25, seconds: float = 1.0, rate: int = 16000, channels: int = 1) -> Path:
    """A constant; in stereo, the right channel is its negative."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.full((round(seconds * rate), channels), value)
    wave[:, 1:] *= -1
    soundfile.write(path, wave, rate, subtype="PCM_16")
    return path


def write_mask(path: Path, pixels: np.ndarray, mode: str = "L", palette: list[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.astype(np.uint8))
    if palette:
        image.putpalette(palette)
    elif mode == "1":
        image = image.point(lambda v: 255 * (v > 0)).convert("1")
    image.save(path)
    return path


def block(top: int, left: int, value: int = 255, size: int = 224, side: int = 56) -> np.ndarray:
    """Zeros with a square of ``value``."""
    pixels = np.zeros((size, size), np.uint8)
    pixels[top : top + side, left : left + side] = value
    return pixels


def left_out(folder: Path, split: str = "test") -> dict[str, str]:
    """Key to the countable part of the reason, of ``skipped-<split>.csv``."""
    with (folder / f"skipped-{split}.csv").open() as f:
        return {r["key"]: r["reason"].partition(": ")[0] for r in csv.DictReader(f)}


def notes(folder: Path, split: str = "test") -> list[str]:
    return json.loads((folder / f"{folder.name}-{split}.json").read_text()).get("notes", [])
