"""Little files of official layouts for the tests of this folder, and what is asked of every converted set."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avloc.data.indexed import EvalSet
from avloc.data.schema import MapRule, Record, Sample, Target
from avloc.data.truth import truth_maps
from avloc.types import InputSpec

ANNOTATIONS = Path(__file__).parents[3] / "shared" / "annotations"
SPEC = InputSpec(image_size=32, seconds=2.0)


def official(name: str) -> Path:
    """A file as its authors publish it; the test is skipped where it is not there."""
    path = ANNOTATIONS / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return path


def write_picture(path: Path, grey: int, size: tuple[int, int] = (48, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)
    return path


def write_sound(path: Path, level: float = 0.25, seconds: float = 2.0, rate: int = 16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(seconds * rate), level), rate, subtype="PCM_16")
    return path


def rectangle(x0: int, y0: int, x1: int, y1: int, size: int = 224) -> np.ndarray:
    """Plain definition of a half-open box on a grid."""
    return np.array([[float(x0 <= x < x1 and y0 <= y < y1) for x in range(size)] for y in range(size)])


def areas(targets: Sequence[Target], rule: MapRule = "union") -> np.ndarray:
    """Sum of each target's map as a fraction of the 224 grid."""
    found = []
    for target in targets:
        maps = truth_maps(Sample(Record("toy", "x", targets=[target], map_rule=rule), {}), 0, 224)
        assert maps is not None
        found.append(maps.sum() / 224**2)
    return np.array(found)


def read(out: Path, name: str, split: str = "test", **options: object) -> EvalSet:
    return EvalSet(out / name / f"{name}-{split}.json", SPEC, **options)  # type: ignore[arg-type]


def skipped(out: Path, name: str, split: str = "test") -> dict[str, str]:
    """Key to the countable part of the reason."""
    with (out / name / f"skipped-{split}.csv").open() as f:
        return {r["key"].partition("__")[2]: r["reason"].partition(": ")[0] for r in csv.DictReader(f)}
