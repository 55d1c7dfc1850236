"""Where a run came from: its configuration, code, packages and weights, in ``run.json``."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from torch.utils.flop_counter import FlopCounterMode

from avloc.methods.base import Localizer, global_seed
from avloc.processes import STARTED_BY
from avloc.report.published import Reference
from avloc.report.telemetry import run_folder, write_json
from avloc.types import AVBatch

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


COST_OF = 8
"""Pictures of the batch on which the cost of an answer is measured."""


class Provenance(Callback):
    """Writes ``run.json`` and the loggers' configuration: what ran, from which code, on which weights.

    A test adds ``cost``: floating-point operations and seconds of an answer, per picture.

    Args:
        experiment: the run's name in reports; "" for its folder's name.
        reproduces: the published row that the run is to be compared with.
    """

    def __init__(self, experiment: str = "", reproduces: Reference | None = None) -> None:
        self.experiment, self.reproduces = experiment, reproduces
        self.about: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: AVBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or dataloader_idx:
            return
        folder = run_folder(trainer)
        if trainer.is_global_zero and isinstance(pl_module, Localizer):
            with trainer.precision_plugin.test_step_context():
                self.about["cost"] = cost(pl_module, batch) | {"precision": str(trainer.precision)}
            write_json(folder / "run.json", self.about)

    def record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        frozen = getattr(pl_module, "frozen_files", {})
        about = self.about = {
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
            "started_by": os.environ.get(STARTED_BY),
        }
        print(parameter_line(pl_module))
        for logger in trainer.loggers:
            logger.log_hyperparams({"provenance": about})
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", about)


def cost(method: Localizer, batch: AVBatch) -> dict[str, Any]:
    """What an answer costs, from two answers to the first `COST_OF` samples of a batch: one counts, one is timed.

    Returns:
        ``flops`` (matrix products, convolutions and attention; None where the method runs none in torch) and
        ``seconds``, both per picture; ``pictures`` of the batch; ``device``.
    """
    few = batch.take(range(min(COST_OF, len(batch))))
    on_gpu = method.device.type == "cuda"
    with torch.random.fork_rng(devices=[method.device] if on_gpu else []):
        with FlopCounterMode(display=False) as counter:
            method.localize(few)
        if on_gpu:
            torch.cuda.synchronize(method.device)
        started = time.perf_counter()
        method.localize(few)
        if on_gpu:
            torch.cuda.synchronize(method.device)
        seconds = time.perf_counter() - started
    device = torch.cuda.get_device_name(method.device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    flops = counter.get_total_flops() / len(few)
    return {"flops": flops or None, "seconds": seconds / len(few), "pictures": len(few), "device": device}


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
