"""What `avloc predict` writes: one file a sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from avloc.types import AVBatch, Localization

__all__ = ["Predictions"]


class Predictions(BasePredictionWriter):
    """Writes ``predictions/<set>/<key>.npz`` with ``heatmap`` float16 ``[S, H, W]`` and ``confidence`` float32 ``[S]``.

    Every process writes its own samples; nothing is kept in memory.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

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
        sets = getattr(getattr(trainer, "datamodule", None), "test_sets", [])
        name = sets[dataloader_idx].name if sets else f"set{dataloader_idx}"
        shuffled = "_shuffled_sound" if sets and sets[dataloader_idx].shuffled else ""
        root = Path(trainer.log_dir or trainer.default_root_dir)
        folder = root / "predictions" / f"{name.replace(':', '-').replace('/', '-')}{shuffled}"
        folder.mkdir(parents=True, exist_ok=True)
        heatmap = prediction.heatmap.half().cpu().numpy()
        confidence = prediction.confidence.float().cpu().numpy()
        for key, h, c in zip(batch.key, heatmap, confidence, strict=True):
            np.savez_compressed(folder / f"{key}.npz", heatmap=h, confidence=c)
