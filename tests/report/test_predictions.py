"""Predictions land under the set's and the sample's name, as answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lightning import Trainer

from avloc.data.module import AVDataModule
from avloc.methods.baselines.controls import CentreBox
from avloc.report.predictions import Predictions
from avloc.world import write_world


@pytest.mark.filterwarnings("ignore")
def test_one_file_a_sample(tmp_path: Path) -> None:
    write_world(tmp_path / "world", "single", scenes=5)
    data = AVDataModule(test=["world:single"], root=str(tmp_path), eval_batch_size=2, num_workers=0)
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[Predictions()], enable_progress_bar=False
    )
    trainer.predict(CentreBox(), data, return_predictions=False)
    files = sorted((tmp_path / "predictions" / "world-single").glob("*.npz"))
    assert [f.stem for f in files] == [f"world__single_scene{i:05d}" for i in range(5)]
    with np.load(files[0]) as stored:
        heatmap = stored["heatmap"]
        assert stored["confidence"].shape == (1,)
    side = heatmap.shape[-1]
    assert heatmap.shape == (1, side, side)
    assert heatmap[0, side // 2, side // 2] == 1
    assert heatmap[0, 0, 0] == 0
    assert heatmap.mean() == pytest.approx(0.25, abs=0.02)
