"""What `avloc predict` writes: one file a sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from avloc.files import complete
from avloc.report.telemetry import file_name, run_folder, set_name
from avloc.types import AVBatch, Localization

__all__ = ["Predictions"]


class Predictions(BasePredictionWriter):
    """Writes ``predictions/<set>/<key>.npz`` with ``heatmap`` float16 ``[S, H, W]`` and ``confidence`` float32 ``[S]``.

    Every process writes its own samples; nothing is kept in memory.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self.root = Path()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Asked once: the answer is broadcast, and processes may have different numbers of batches.
        self.root = run_folder(trainer) / "predictions"

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: AVBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        assert isinstance(prediction, Localization)
        folder = self.root / file_name(set_name(trainer, dataloader_idx, "test"))
        folder.mkdir(parents=True, exist_ok=True)
        heatmap = prediction.heatmap.half().cpu().numpy()
        confidence = prediction.confidence.float().cpu().numpy()
        for key, h, c in zip(batch.key, heatmap, confidence, strict=True):
            with complete(folder / f"{key}.npz", durable=False) as part, part.open("wb") as f:
                np.savez_compressed(f, heatmap=h, confidence=c)
