"""What a run logs: where to, how fast it learns and in how much memory, and what its files are called."""

from __future__ import annotations

import json
import os
import time
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from avloc.files import write_whole
from avloc.report.results import MODEL
from avloc.types import AVBatch

__all__ = ["Throughput", "default_loggers", "file_name", "run_folder", "set_name", "wandb_offline", "write_json"]


def wandb_offline() -> bool:
    """Whether W&B shall stay on this machine: as ``WANDB_MODE`` says, else unless the user is logged in.

    Logged in means a key in ``WANDB_API_KEY`` or, for ``WANDB_BASE_URL``, in netrc; nothing is sent anywhere.
    """
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode not in ("online", "shared")
    # Not wandb.setup(): it freezes W&B's settings before Lightning sets the mode; init would ask for a key.
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return not (os.environ.get("WANDB_API_KEY") or in_netrc(host))


def in_netrc(url: str) -> bool:
    """Whether netrc (``$NETRC``, else that of the home folder) knows a server; a damaged file knows none."""
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    path = next((p for p in map(Path, map(os.path.expanduser, files)) if p.is_file()), None)
    try:
        return path is not None and netrc(path).authenticators(urlsplit(url).netloc) is not None
    except (NetrcParseError, OSError):
        return False


def default_loggers(
    save_dir: Path | str, name: str, log: CSVLogger | None = None, wandb_id: str | None = None
) -> list[Logger]:
    """A CSV logger, whose folder is the run's, and W&B beside it; no network unless `wandb_offline` says so.

    Args:
        save_dir: folder of all runs.
        name: the experiment's; the run's folder is ``save_dir/name/version_N``.
        log: of a run that goes on, in place of a new one.
        wandb_id: W&B's name of that run.
    """
    offline = wandb_offline()
    # An offline run's pictures and sounds wait there for `wandb sync`; W&B's own choice is the home folder.
    os.environ.setdefault("WANDB_DATA_DIR", str(Path(save_dir).absolute() / "wandb"))
    # Lightning turns offline into WANDB_MODE=dryrun, which would override a user's "disabled".
    mode = os.environ.get("WANDB_MODE") or ("offline" if offline else "online")
    options: dict[str, Any] = {"name": name, "save_dir": save_dir, "project": "avloc", "mode": mode}
    if wandb_id:
        options |= {"version": wandb_id, "resume": "allow"}
    wandb = WandbLogger(offline=offline, **options)
    # Lightning passes a setting on that newer releases of W&B warn of, whatever its value.
    getattr(wandb, "_wandb_init", {}).pop("anonymous", None)
    return [log or CSVLogger(save_dir, name=name), wandb]


class Throughput(Callback):
    """Logs ``time/samples_per_s`` over all processes, ``memory/gpu_peak_gb`` and ``lr`` while training.

    Speed is a mean over ``log_every_n_steps`` batches, with their loading and without validation. Lightning's
    ``LearningRateMonitor`` refuses a trainer without a logger, and it and ``ThroughputMonitor`` name their numbers
    after the optimiser and the device, so that curves of two methods would not lie over each other.
    """

    def __init__(self) -> None:
        self.started, self.samples = 0.0, 0

    def restart(self) -> None:
        self.started, self.samples = time.perf_counter(), 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: AVBatch, batch_idx: int
    ) -> None:
        # Every process trains on equally many samples, so nothing has to be gathered.
        self.samples += len(batch) * trainer.world_size
        every: int = getattr(trainer, "log_every_n_steps", 50)
        if not every or (batch_idx + 1) % every:
            return
        values = {"time/samples_per_s": self.samples / max(time.perf_counter() - self.started, 1e-9)}
        if pl_module.device.type == "cuda":
            values["memory/gpu_peak_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        values |= {"lr" if not i else f"lr/{i}": float(group["lr"]) for i, group in enumerate(groups)}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        self.restart()


def write_json(path: Path, content: Any) -> None:
    """The file gets its own name only when it is complete."""
    write_whole(path, json.dumps(content, indent=1, default=str) + "\n")


def run_folder(trainer: Trainer) -> Path:
    """The first logger's folder. To be asked on every process, since Lightning broadcasts it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def file_name(name: str) -> str:
    """The name of a set as that of a file."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def set_name(trainer: Trainer, loader: int, stage: str) -> str:
    """The evaluation set behind a loader, marked where its sounds are not its own."""
    sets = getattr(getattr(trainer, "datamodule", None), f"{stage}_sets", None)
    if not sets:
        return f"set{loader}"
    data = sets[loader]
    return str(data.name) if data.row == MODEL else f"{data.name} {data.row}"
