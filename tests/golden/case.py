"""Reader of the golden cases: load, rebuild weights, call, compare, name the first tensor that differs."""

from __future__ import annotations

import importlib.util
import json
import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent


def golden_folder() -> Path:
    """``$AVLOC_GOLDEN``, else ``../shared/golden`` beside the project, else the committed selection."""
    if folder := os.environ.get("AVLOC_GOLDEN"):
        return Path(folder)
    shared = HERE.parents[2] / "shared" / "golden"
    return shared if shared.is_dir() else HERE / "cases"


def find_cases(folder: Path) -> list[Case]:
    return [Case(p.parent) for p in sorted(folder.glob("*/*/case.json"))]


@dataclass(frozen=True)
class Case:
    folder: Path

    @property
    def kind(self) -> str:
        return self.folder.parent.name

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}"

    @cached_property
    def spec(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())

    @property
    def config(self) -> dict[str, Any]:
        return self.spec["config"]

    @property
    def full_size(self) -> bool:
        return (self.folder / "shapes.json").exists()

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """As stored, but float16 tensors cast to float32."""
        stored = load_file(self.folder / "inputs.safetensors")
        return {k: v.float() if v.dtype == torch.float16 else v for k, v in stored.items()}

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return load_file(self.folder / "expected.safetensors")

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """State dict under the official checkpoint's key names."""
        path = self.folder / "weights.safetensors"
        stored = load_file(path) if path.exists() else {}
        if self.spec["weights"] == "recipe":
            shapes = json.loads((self.folder / "shapes.json").read_text())
            return {key: recipe(key, shape) for key, shape in shapes.items()} | stored
        return stored

    def runner(self) -> Any | None:
        """The module that computes this kind, None if the kind is unknown here."""
        name = f"tests.golden.kinds.{self.kind}"
        return importlib.import_module(name) if importlib.util.find_spec(name) else None

    def compare(self, actual: dict[str, Tensor]) -> str:
        """Empty when every expected tensor agrees, else the first that differs and by how much."""
        tolerance = self.spec["tolerance"]
        for name, want in self.expected.items():
            if name not in actual:
                return f"{self.id}: {name} was not computed"
            got = torch.as_tensor(actual[name]).detach().cpu()
            if got.shape != want.shape:
                return f"{self.id}: {name} has shape {tuple(got.shape)}, expected {tuple(want.shape)}"
            a, b = got.to(torch.float64), want.to(torch.float64)
            # Either of the case's two bounds suffices: processors add float32 up differently, and a gradient that went
            # through a logarithm of small powers shows it, for which the case names a bound of its own.
            bounds = [tolerance, tolerance.get("per_tensor", {}).get(name, tolerance)]
            bound = torch.stack([t["atol"] + t["rtol"] * b.abs() for t in bounds]).amax(0)
            wrong = ~torch.isclose(a, b, atol=0, rtol=0, equal_nan=True) & ~((a - b).abs() <= bound)
            if wrong.any():
                worst = torch.where(wrong, (a - b).abs().nan_to_num(float("inf")), 0).flatten().argmax()
                return (
                    f"{self.id}: {name} differs in {int(wrong.sum())} of {wrong.numel()} values; worst "
                    f"{a.flatten()[worst]:.9g} instead of {b.flatten()[worst]:.9g} "
                    f"(atol {tolerance['atol']}, rtol {tolerance['rtol']})"
                )
        return ""


def recipe(key: str, shape: list[int]) -> Tensor:
    """Full-size weights from their name alone (``cases/README.md``)."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    x = torch.randn(shape, generator=generator)
    if len(shape) >= 2:
        fan_in = 1
        for n in shape[1:]:
            fan_in *= n
        return x / fan_in**0.5
    if key.endswith(".weight"):
        return 1 + 0.02 * x
    if key.endswith("running_var"):
        return 1 + 0.02 * x.abs()
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    return 0.02 * x
