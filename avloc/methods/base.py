"""The contract of a method: two functions, everything else is inherited."""

from __future__ import annotations

import inspect
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import WeightFile

__all__ = ["CheckpointError", "Localizer", "global_seed"]

IDENTITY = "avloc"  # the checkpoint's entry with the method's name and its frozen files


class CheckpointError(RuntimeError):
    """A checkpoint of another method, of other frozen weights, or with other trainable tensors."""


class Localizer(LightningModule):
    """A method that says where in a picture a sound comes from.

    A subclass declares ``input_spec`` and writes `training_losses` and `localize`; a method without training
    leaves the former alone. Metrics are not its business: an evaluation callback reads what `localize` returns.

    Args:
        optimizer: called with the trainable parameters; ``fused`` is switched on where they are on a GPU.
        lr_scheduler: called with the optimiser; stepped once per optimiser step. None for a constant rate.
    """

    input_spec: InputSpec
    conditioned: bool = False
    """Whether a picture conditions the method's prompt, and `localize` takes that of `AVBatch.context` where there is
    one."""

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.frozen_files: dict[str, WeightFile] = {}
        self.trained_with_seed: int | None = None  # of a loaded checkpoint
        self.strict_loading = False  # checkpoints hold the trainable part; on_load_checkpoint is the strict one

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """Named scalar terms; ``loss`` is their weighted sum and the one that is minimised."""
        raise TypeError(f"{type(self).__name__} has nothing to train; use `validate`, `test` or `predict`.")

    def localize(self, batch: AVBatch) -> Localization:
        """Where each sound of the batch comes from."""
        raise TypeError(f"{type(self).__name__} must define localize().")

    def class_names(self) -> Mapping[int, str]:
        """Names of the classes in ``Localization.label``; empty for a method that names no sources."""
        return {}

    def training_step(self, batch: AVBatch, batch_idx: int) -> Tensor:
        # The noise of a step depends on its samples alone, so a resumed run draws what an unbroken one draws.
        torch.manual_seed(step_seed(batch.key, self.current_epoch))
        losses = self.training_losses(batch)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()}, batch_size=len(batch))
        loss = losses["loss"]
        if (loss.device.type == "cpu" or batch_idx % 50 == 0) and not torch.isfinite(loss):
            terms = ", ".join(f"{k} {v.item():.4g}" for k, v in losses.items())
            raise FloatingPointError(
                f"The loss is not finite in epoch {self.current_epoch}, batch {batch_idx} ({terms}; samples "
                f"{', '.join(batch.key[:4])}, ...). Lower the learning rate or start from the last checkpoint."
            )
        return loss

    def validation_step(  # type: ignore[override]
        self, batch: AVBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> Localization:
        return self.localize(batch)

    def test_step(  # type: ignore[override]
        self, batch: AVBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> Localization:
        return self.localize(batch)

    def predict_step(self, batch: AVBatch, batch_idx: int, dataloader_idx: int = 0) -> Localization:
        return self.localize(batch)

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.trainable())
        if self.device.type == "cuda" and "fused" in optimizer.defaults:
            optimizer = with_fused_kernels(optimizer)
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    def learned_keys(self) -> set[str]:
        """State-dict keys that training changes: trainable parameters, and buffers beside them."""
        learned = {name for name, p in self.named_parameters() if p.requires_grad}
        for prefix, module in self.named_modules():
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                learned |= {f"{prefix}.{b}".lstrip(".") for b, _ in module.named_buffers(recurse=False)}
        return learned & self.state_dict().keys()

    def identity(self) -> dict[str, Any]:
        return {
            "method": f"{type(self).__module__}.{type(self).__qualname__}",
            "frozen": {k: {"source": f.source, "sha256": f.sha256} for k, f in self.frozen_files.items()},
        }

    def start_from(self, checkpoint: Path) -> None:
        """Take over the learned weights of another run of this method, and nothing else of it.

        Raises:
            CheckpointError: the file is absent or damaged, or of another method, other frozen weights or sizes.
        """
        try:
            stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except Exception as e:
            # torch's own text advises to load unsafely
            raise CheckpointError(f"{checkpoint} cannot be read as a checkpoint ({type(e).__name__}).") from e
        self.on_load_checkpoint(stored)
        self.load_state_dict(stored["state_dict"], strict=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep = self.learned_keys()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keep}
        checkpoint[IDENTITY] = self.identity() | {"seed": global_seed()}

    def check_frozen(self, checkpoint: dict[str, Any]) -> None:
        """That a checkpoint of avloc was trained on top of the frozen weights that are loaded.

        Raises:
            CheckpointError: it was trained on top of others.
        """
        theirs, ours = checkpoint[IDENTITY], self.identity()
        for name, file in ours["frozen"].items():
            was = theirs["frozen"].get(name, {"source": "nothing", "sha256": ""})
            if was["sha256"] != file["sha256"]:
                raise CheckpointError(
                    f"This checkpoint was trained on top of {name} weights {was['source']} "
                    f"(sha256 {was['sha256'][:12] or 'none'}), but {file['source']} (sha256 "
                    f"{file['sha256'][:12] or 'none'}) is loaded. Put the file that it was trained with in place."
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs, ours = checkpoint.get(IDENTITY), self.identity()
        if theirs is None:
            raise CheckpointError("This checkpoint was not written by avloc: it has no 'avloc' entry.")
        if theirs["method"] != ours["method"]:
            raise CheckpointError(
                f"This checkpoint belongs to {theirs['method']}, but the configuration builds {ours['method']}. "
                "Use the YAML that the checkpoint was trained with."
            )
        self.check_frozen(checkpoint)
        stored, wanted = checkpoint["state_dict"], self.learned_keys()
        if stored.keys() != wanted:
            missing, extra = sorted(wanted - stored.keys()), sorted(stored.keys() - wanted)
            raise CheckpointError(
                f"This checkpoint's trainable tensors are not those of the configuration: missing {missing[:3]}, "
                f"unknown {extra[:3]}. A hyper-parameter differs from the training run's."
            )
        self.trained_with_seed = theirs.get("seed")


def step_seed(keys: list[str], epoch: int) -> int:
    """Seed of a training step: from the run's seed, the epoch and the step's samples."""
    return zlib.crc32("\n".join([str(global_seed()), str(epoch), *keys]).encode())


def global_seed() -> int:
    """The run's seed, as Lightning keeps it; 0 where none was set."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def with_fused_kernels(optimizer: Optimizer) -> Optimizer:
    """The same optimiser over the same parameters, with one kernel for all of them."""
    accepted = inspect.signature(type(optimizer)).parameters
    settings = {k: v for k, v in optimizer.defaults.items() if k in accepted}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return type(optimizer)(parameters, **{**settings, "foreach": None, "fused": True})
