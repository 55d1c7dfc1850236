"""The contract of a method: two functions, everything else is inherited."""

from __future__ import annotations

import inspect
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.serialization import get_safe_globals

from avloc.methods.checkpoint import IDENTITY, CheckpointError, read_checkpoint, tensors_of
from avloc.methods.schedules import OverRun
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import WeightFile, given_by, names_of

__all__ = ["IDENTITY", "CheckpointError", "Localizer", "global_seed"]

OF_TRAINING = ("optimizer", "lr_scheduler")
"""Arguments that a rebuilt method does without: it is used; a resumed one has them from its YAML."""


class Remembering:
    """Keeps what an object was built with. A class of its own, for where one with arguments has a ``__new__``,
    jsonargparse reads them from that."""

    arguments: dict[str, Any] | None = None
    """What the method was built with; None where a checkpoint cannot hold it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        built = super().__new__(cls)
        built.__dict__["arguments"] = plain_arguments(cls, args, kwargs)
        return built


class Localizer(Remembering, LightningModule):
    """A method that says where in a picture a sound comes from.

    A subclass declares ``input_spec`` and writes `training_losses` and `localize`; a method without training
    leaves the former alone. Metrics are not its business: an evaluation callback reads what `localize` returns.

    Args:
        optimizer: called with the trainable parameters. ``fused`` is switched on where they are on a GPU, unless it or
            ``foreach`` is set, or gradients are clipped, which a fused optimiser does not go with in mixed precision.
        lr_scheduler: called with the optimiser; stepped once per optimiser step, and told the length of the run where
            it is an `avloc.methods.schedules.OverRun`. None for a constant rate.
    """

    input_spec: InputSpec
    not_stored: ClassVar[tuple[str, ...] | None] = None
    """Arguments that are needed in training alone, besides those of `Localizer`: a checkpoint's hyper-parameters leave
    them out, and the method is rebuilt without. None where they hold none, and what it was built with counts."""
    conditioned: bool = False
    """Whether a picture conditions the method's prompt, and `localize` takes that of `AVBatch.context` where there is
    one."""
    configured: dict[str, Any] | None = None
    """The same as a command line wrote it, nested classes as ``class_path`` and ``init_args``."""

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if self.not_stored is not None:  # Lightning reads the arguments of the subclass that calls
            self.save_hyperparameters(ignore=[*OF_TRAINING, *self.not_stored], logger=False)
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

    def on_validation_start(self) -> None:
        # Processes may have different numbers of batches, so within them none may wait for another: buffers, which DDP
        # would copy from process zero before each batch, are copied once.
        wrapped = self.trainer.model
        if isinstance(wrapped, DistributedDataParallel):
            if wrapped.will_sync_module_buffers():
                wrapped._sync_buffers()
            self._copies_buffers, wrapped.broadcast_buffers = wrapped.broadcast_buffers, False

    def on_validation_end(self) -> None:
        if isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model.broadcast_buffers = self._copies_buffers

    def test_step(  # type: ignore[override]
        self, batch: AVBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> Localization:
        return self.localize(batch)

    def predict_step(self, batch: AVBatch, batch_idx: int, dataloader_idx: int = 0) -> Localization:
        return self.localize(batch)

    def evaluated_sets(self) -> list[Any]:
        """The sets that are being validated or tested, in the order of ``dataloader_idx``."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.val_sets if self.trainer.validating else data.test_sets

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.trainable())
        if self.device.type == "cuda" and may_be_fused(optimizer) and not self.clips():
            optimizer = with_fused_kernels(optimizer)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, OverRun) and self._trainer:
            scheduler.over(self._trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def clips(self) -> bool:
        """Whether gradients are clipped, which Lightning refuses with fused kernels in mixed precision."""
        trainer = self._trainer
        return bool(trainer and trainer.gradient_clip_val) or is_overridden("configure_gradient_clipping", self)

    def learned_keys(self) -> set[str]:
        """State-dict keys that a checkpoint holds: `trained_keys`, and all others but those of tensors that one of
        ``frozen_files`` gave and that still are what the file gave. So a copy that follows the weights, a queue,
        prototypes and drifting statistics are held, and so are frozen towers that no file gave."""
        state = self.state_dict()
        given = given_by(self, state, [f.path for f in self.frozen_files.values() if f.path is not None])
        return self.trained_keys() | (state.keys() - given)

    def trained_keys(self) -> set[str]:
        """State-dict keys of trainable parameters and the buffers beside them: all that older checkpoints held."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        for prefix, module in self.named_modules():
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                trained |= {f"{prefix}.{b}".lstrip(".") for b, _ in module.named_buffers(recurse=False)}
        return trained & self.state_dict().keys()

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
        stored = read_checkpoint(checkpoint)
        self.on_load_checkpoint(stored)
        self.load_state_dict(stored["state_dict"], strict=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep = self.learned_keys()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keep}
        built = {"arguments": self.arguments, "configured": self.configured}
        checkpoint[IDENTITY] = self.identity() | {"seed": global_seed(), "holds": "all"} | built

    def check_frozen(self, checkpoint: dict[str, Any]) -> None:
        """That a checkpoint of avloc was trained on top of the frozen weights that are loaded.

        Raises:
            CheckpointError: it was trained on top of others.
        """
        theirs, ours = checkpoint[IDENTITY], self.identity()
        for name, file in ours["frozen"].items():
            was = {"source": "nothing", "sha256": ""} | ((theirs.get("frozen") or {}).get(name) or {})
            if was["sha256"] != file["sha256"]:
                raise CheckpointError(
                    f"This checkpoint was trained on top of {name} weights {was['source']} "
                    f"(sha256 {was['sha256'][:12] or 'none'}), but {file['source']} (sha256 "
                    f"{file['sha256'][:12] or 'none'}) is loaded. Put the file that it was trained with in place."
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what does not fit.

        A layer that was frozen when the checkpoint was written is not in it; it has to be as its file gave it.

        Raises:
            CheckpointError: the checkpoint is of another method, other frozen weights, or other tensors or sizes.
        """
        theirs, ours = checkpoint.get(IDENTITY), self.identity()
        if not isinstance(theirs, dict):
            raise CheckpointError("This checkpoint was not written by avloc: it has no 'avloc' entry.")
        if theirs.get("method") != ours["method"]:
            raise CheckpointError(
                f"This checkpoint belongs to {theirs.get('method')}, but the configuration builds {ours['method']}. "
                "Use the YAML that the checkpoint was trained with."
            )
        self.check_frozen(checkpoint)
        stored, own, older = tensors_of(checkpoint), self.state_dict(), theirs.get("holds") != "all"
        learned = self.learned_keys()
        missing = sorted((self.trained_keys() if older else learned) - stored.keys())
        extra = sorted(stored.keys() - own.keys())
        if missing or extra:
            raise CheckpointError(
                f"This checkpoint's trainable tensors are not those of the configuration: missing {missing[:3]}, "
                f"unknown {extra[:3]}. A hyper-parameter differs from the training run's."
            )
        if strange := [k for k, v in stored.items() if v.is_floating_point() and bool(v.isnan().any())]:
            raise CheckpointError(
                f"This checkpoint's {names_of(strange)} hold NaN: its training diverged, or the file is damaged. Go on "
                "from an earlier one, with a lower learning rate."
            )
        shapes = [
            f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}"
            for k, v in sorted(stored.items())
            if v.shape != own[k].shape
        ]
        if shapes:
            raise CheckpointError(
                f"This checkpoint's tensors are of another size than the configuration's: {names_of(shapes)}. A "
                "hyper-parameter differs from the training run's."
            )
        if older and (absent := sorted(learned - stored.keys())):
            rank_zero_warn(
                f"This checkpoint is of an older avloc, which did not keep {names_of(absent)}: left as they are built."
            )
        self.trained_with_seed = theirs.get("seed")


def step_seed(keys: list[str], epoch: int) -> int:
    """Seed of a training step: from the run's seed, the epoch and the step's samples."""
    return zlib.crc32("\n".join([str(global_seed()), str(epoch), *keys]).encode())


def global_seed() -> int:
    """The run's seed, as Lightning keeps it; 0 where none was set."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def plain_arguments(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments of a constructor by their names, without those of the training; None where one of them is an object
    that a checkpoint cannot hold, or where they do not fit, which the constructor tells."""
    try:
        bound = inspect.signature(cls).bind(*args, **kwargs)
    except TypeError:
        return None
    flat: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            return None
        flat |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    flat = {name: value for name, value in flat.items() if name not in OF_TRAINING}
    return flat if all(is_plain(value) for value in flat.values()) else None


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(is_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str) or type(value) in get_safe_globals()


def may_be_fused(optimizer: Optimizer) -> bool:
    """Whether an optimiser has fused kernels, and its user has said nothing of how it is to run."""
    said = [optimizer.defaults.get(name) for name in ("fused", "foreach")]
    return "fused" in optimizer.defaults and said == [None, None] and not optimizer.defaults.get("differentiable")


def with_fused_kernels(optimizer: Optimizer) -> Optimizer:
    """The same optimiser over the same parameters, with one kernel for all of them."""
    accepted = inspect.signature(type(optimizer)).parameters
    settings = {k: v for k, v in optimizer.defaults.items() if k in accepted}
    fused = {"foreach": None, "fused": True}
    return type(optimizer)([group | fused for group in optimizer.param_groups], **settings | fused)
