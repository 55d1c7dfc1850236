"""A run that was interrupted is the run that was not: its folder, its logs, its best model; and whole files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from avloc.errors import UsageError
from avloc.files import WriteError, complete
from avloc.methods.checkpoint import CheckpointError, read_checkpoint

__all__ = [
    "AtomicCheckpoints",
    "BestModel",
    "Journal",
    "OwnFolder",
    "ResumePoint",
    "alone",
    "leads",
    "newest_readable",
    "own_folder",
]


class AtomicCheckpoints(TorchCheckpointIO):
    """A checkpoint is written beside its place, flushed to the disk, and then takes the older one's name.

    Lightning writes to ``$TMPDIR`` and moves from there: over a border of file systems that is a copy, which a kill or
    a full disk leaves torn where the older checkpoint was.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write it.

        Raises:
            CheckpointError: it cannot be written; the older file of that name is as it was.
        """
        if "://" in str(path):  # of another kind of storage, which has its own way
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with complete(path) as part, part.open("wb") as f:
                torch.save(checkpoint, f)
        except (OSError, RuntimeError) as e:  # torch's writer says so of a full disk
            why = e.__cause__ if isinstance(e, WriteError) else e
            raise CheckpointError(
                f"{path} could not be written ({why}). An older file of that name is untouched; free some space and "
                "go on with --resume."
            ) from e

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read one of avloc's, whatever asks for it; nothing is unpickled.

        Raises:
            CheckpointError: see `read_checkpoint`.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(Path(path), mmap=False)


class ResumePoint(ModelCheckpoint):
    """The newest state of a run, to go on from; a class of its own, so that its state is told from the best model's.

    A run that is asked to end (SIGTERM, as by a cluster that wants its machine back) leaves it behind the step that it
    is in. In the middle of a validation the state of the epoch's begin stands: validation has none of its own.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, SIGTERMException):
            super().on_exception(trainer, pl_module, exception)
            return
        saved = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch  # at the epoch's end, just now
        if trainer.state.fn == "fit" and not (trainer.validating or trainer.sanity_checking or saved) and self.dirpath:
            trainer.save_checkpoint(Path(self.dirpath) / "resume.ckpt")
        print("stopped by a signal; --resume goes on", flush=True)


class BestModel(ModelCheckpoint):
    """The best model, whose score and file are known after any number of resumes, wherever the run's folder was moved.

    Lightning forgets the score when the folder has another path than when the checkpoint was written.
    """

    @property
    def state_key(self) -> str:
        return super().state_key.replace(type(self).__name__, ModelCheckpoint.__name__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here = Path(self.dirpath or ".")

        def moved(path: str) -> str:
            return str(here / Path(path).name) if path and (here / Path(path).name).is_file() else path

        state = dict(state_dict)
        if not state.get("best_model_path") or Path(moved(state["best_model_path"])).is_file():
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[key] = moved(state.get(key) or "")
            state["best_k_models"] = {moved(k): v for k, v in (state.get("best_k_models") or {}).items()}
            super().load_state_dict(state | {"dirpath": self.dirpath})
        else:
            print(f"{state['best_model_path']} is gone: which model was the best is forgotten.", flush=True)


class OwnFolder(CSVLogger):
    """The CSV of a run in a folder of its own; or one that goes on where a checkpoint of the run was written.

    Args:
        save_dir, name: the folder is ``save_dir/name/version_N``.
        version: N of a run that goes on; None for the next free one, which is made at once, so that two runs that start
            together have two.
        rows: of ``metrics.csv`` that were there when the checkpoint was written.
        step: optimiser steps that it had seen. What was logged of later ones is logged again.

    Raises:
        UsageError: the folder cannot be made.
    """

    def __init__(
        self, save_dir: Path | str, name: str, version: int | None = None, rows: int = 0, step: int = 0
    ) -> None:
        super().__init__(save_dir, name=name, version=version)
        self.rows, self.step = rows, step

    @property
    def version(self) -> int | str:
        if self._version is None:
            version = self._get_next_version()
            while leads() and not claimed(Path(self.root_dir) / f"version_{version}"):
                version += 1
            self._version = version
        return self._version

    @property
    def experiment(self) -> Any:
        if self._experiment is not None or (torch.distributed.is_initialized() and torch.distributed.get_rank()):
            return super().experiment
        path = Path(self.log_dir) / "metrics.csv"
        aside = path.with_name("metrics.csv.kept")  # Lightning's writer deletes metrics.csv before it writes
        source = path if path.is_file() else aside
        kept: list[dict[str, str]] = []
        if source.is_file():
            with source.open(newline="") as f:
                lines = list(csv.DictReader(f))
            kept = [line for i, line in enumerate(lines) if i < self.rows or float(line.get("step") or 0) < self.step]
        keys = sorted({key for line in kept for key in line})
        if kept:
            with complete(aside) as part, part.open("w", newline="") as f:
                table = csv.DictWriter(f, fieldnames=keys)
                table.writeheader()
                table.writerows(kept)
        writer = super().experiment
        if kept:
            aside.replace(path)
            writer.metrics_keys = keys
        return writer


class Journal(Callback):
    """Puts into each checkpoint how far the run's logs were: rows of its CSV, and W&B's id of it."""

    def __init__(self) -> None:
        self.trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        rows, wandb_id = 0, None
        for logger in self.trainer.loggers if self.trainer and self.trainer.is_global_zero else []:
            if isinstance(logger, CSVLogger):
                logger.save()
                path = Path(logger.log_dir) / "metrics.csv"
                if path.is_file():
                    with path.open(newline="") as f:
                        rows = max(0, sum(1 for _ in csv.reader(f)) - 1)
            elif isinstance(logger, WandbLogger):
                wandb_id = logger.version
        return {"rows": rows, "wandb_id": wandb_id}


def leads() -> bool:
    """Whether this is process zero, before and after the processes know each other."""
    return not getattr(rank_zero_only, "rank", 0)


def claimed(folder: Path) -> bool:
    """Make a run's folder; False where another run has it.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if folder.is_dir():
            return False
        raise UsageError(f"{folder} cannot be made: a file of that name is there.") from None
    except OSError as e:
        raise UsageError(f"{folder} cannot be made ({e}). Choose where: --trainer.default_root_dir=FOLDER.") from e
    return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that writes a run.

    Raises:
        UsageError: another one does.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{folder} is being written by another process. Wait for it, or end it.") from None
    except (OSError, NotImplementedError):  # a file system without locks, or one that tells its lack of room later
        yield
        return
    try:
        yield
    finally:
        lock.release()


def newest_readable(checkpoints: Sequence[Path]) -> Path | None:
    """The newest of them that training can go on from; the others are named and skipped."""
    for path in sorted(checkpoints, key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            read_checkpoint(path, resumable=True)
        except CheckpointError as e:
            print(f"skipped: {e}", flush=True)
        else:
            return path
    return None


def own_folder(checkpoint: Path, runs: Path, name: str) -> int | None:
    """N where a checkpoint lies in ``runs/name/version_N/checkpoints``; None for one from elsewhere."""
    folder = checkpoint.resolve().parent
    run = folder.parent
    number = run.name.removeprefix("version_")
    if folder.name != "checkpoints" or run.parent != (runs / name).resolve() or not number.isdigit():
        return None
    return int(number)
