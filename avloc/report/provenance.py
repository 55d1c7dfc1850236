"""Where a run came from: its configuration, code, packages and weights, in ``run.json``."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from avloc.methods.base import global_seed
from avloc.report.published import Reference
from avloc.report.telemetry import run_folder, write_json

__all__ = ["Provenance", "git_state"]

PACKAGE = Path(__file__).resolve().parents[1]
PACKAGES = (
    "avloc",
    "torch",
    "lightning",
    "torchmetrics",
    "transformers",
    "webdataset",
    "numpy",
    "pillow",
    "av",
)


class Provenance(Callback):
    """Writes ``run.json`` and the loggers' configuration: what ran, from which code, on which weights.

    Args:
        experiment: the run's name in reports; "" for its folder's name.
        reproduces: the published row that the run is to be compared with.
    """

    def __init__(self, experiment: str = "", reproduces: Reference | None = None) -> None:
        self.experiment, self.reproduces = experiment, reproduces

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record(trainer, pl_module)

    def record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        frozen = getattr(pl_module, "frozen_files", {})
        about: dict[str, Any] = {
            "experiment": self.experiment,
            "seed": global_seed() if trainer.state.fn == "fit" else getattr(pl_module, "trained_with_seed", None),
            "method": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
            "reproduces": asdict(self.reproduces) if self.reproduces else None,
            "git": git_state(),
            "packages": versions(),
            "weights": {name: {"source": f.source, "sha256": f.sha256} for name, f in frozen.items()},
            "parameters": parameters(pl_module),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "config": configuration(trainer),
            "started_by": os.environ.get("AVLOC_STARTED_BY"),
        }
        print(parameter_line(pl_module))
        for logger in trainer.loggers:
            logger.log_hyperparams({"provenance": about})
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", about)


def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether it was changed since; empty outside of a checkout."""
    try:
        top = git("rev-parse", "--show-toplevel")
        if Path(top).resolve() != PACKAGE.parent:
            return {}
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cuda": torch.version.cuda or ""}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found


def configuration(trainer: Trainer) -> Any:
    """What LightningCLI was configured with; None for a trainer built in Python."""
    saver = next((c for c in trainer.callbacks if isinstance(c, SaveConfigCallback)), None)  # type: ignore[attr-defined]
    return None if saver is None else yaml.safe_load(saver.parser.dump(saver.config, skip_none=False))


def parameters(module: LightningModule) -> dict[str, int]:
    counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return {"trainable": sum(n for n, trained in counts if trained), "total": sum(n for n, _ in counts)}


def parameter_line(module: LightningModule) -> str:
    """``trainable parameters: 1.77 M of 238.10 M (paper: 2.38 M)``; the paper's from ``paper_parameters``."""
    counts = {name: f"{n / 1e6:.2f} M" for name, n in parameters(module).items()}
    paper = getattr(module, "paper_parameters", None)
    printed = f" (paper: {paper / 1e6:.2f} M)" if paper else ""
    return f"trainable parameters: {counts['trainable']} of {counts['total']}{printed}"
