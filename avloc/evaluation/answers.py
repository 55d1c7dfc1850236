"""What every callback does that looks at a method's answers: the same in validation and in test."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from avloc.types import AVBatch

__all__ = ["AnswersCallback"]


class AnswersCallback(Callback):
    """Hands `take` what a method's step returned, batch by batch, in validation and test."""

    def take(self, stage: str, trainer: Trainer, outputs: Any, batch: AVBatch, loader: int) -> None:
        """One batch.

        Args:
            stage: ``val`` or ``test``.
            outputs: what the step returned.
            loader: place of the batch's set among those of the stage.
        """
        raise NotImplementedError

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *of: Any, **named: Any) -> None:
        self.take("val", trainer, *taken(*of, **named))

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *of: Any, **named: Any) -> None:
        self.take("test", trainer, *taken(*of, **named))


def taken(outputs: Any, batch: AVBatch, batch_idx: int, dataloader_idx: int = 0) -> tuple[Any, AVBatch, int]:
    """Lightning's arguments of a batch's end, without the batch's number."""
    return outputs, batch, dataloader_idx
