"""The bench of the loader runs on the set that it makes."""

from __future__ import annotations

import pytest

from avloc.bench import loader


@pytest.mark.parametrize("workers", [0, 1])
def test_it_measures_the_set_that_it_makes(monkeypatch, tmp_path, workers):
    made = loader.write_like_vggsound
    monkeypatch.setattr(loader, "EPOCH", 24)
    monkeypatch.setattr(loader, "write_like_vggsound", lambda folder: made(folder, records=8))
    found = loader.measure_loader(
        loader.LIKE_VGGSOUND, tmp_path, workers, batch_size=4, image_size=32, seconds=1.0, batches=3
    )
    assert found["set"] == loader.LIKE_VGGSOUND
    assert found["samples"] == 12
    assert found["ratio"] == pytest.approx(found["samples_per_s_per_worker"] / found["bare_samples_per_s"])
