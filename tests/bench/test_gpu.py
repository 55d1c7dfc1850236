"""The command for a machine with a GPU, on one without."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from avloc.bench import gpu
from avloc.bench.gpu import METHODS, Case, agreement, cases, measure_gpu


def test_every_method_comes_before_what_is_optional_and_large() -> None:
    found = list(cases(32))
    assert [(c.method, c.precision) for c in found[:27]] == [(m, p) for p in ("32", "tf32", "bf16") for m in METHODS]
    sizes = [c.batch_size for c in found]
    assert sizes == sorted(sizes)
    assert {16, 32} <= set(sizes)
    assert len(set(found)) == len(found)


def test_what_fails_does_not_fit_or_is_not_reached_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(case: Case, tiny: bool, device: torch.device, flops: int | None) -> dict[str, float]:
        if case.method == "gavs" and case.batch_size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if case.method == "seac":
            raise RuntimeError("no kernel\nmore")
        return {"step_s": 0.5, "samples_per_s": case.batch_size / 0.5, "peak_bytes": 2**30, "flops": 10**12}

    monkeypatch.setattr(gpu, "measured", measured)
    monkeypatch.setattr(gpu, "agreement", lambda *_: {"loss_difference": 0.001, "cosine": 0.99, "length": 1.0})
    told = measure_gpu(tmp_path, minutes=5, tiny=True, most=32)
    rows = {(r["method"], r["precision"], r["batch_size"], r["recompute"]): r for r in told["rows"]}
    assert rows["seac", "32", 8, False]["why"] == "failed: RuntimeError: no kernel"
    assert rows["gavs", "bf16", 16, False]["why"] == "does not fit"
    assert ("gavs", "bf16", 32, False) not in rows  # a larger one would not either
    assert rows["acl", "bf16", 32, True]["samples_per_s"] == 64
    assert json.loads((tmp_path / "gpu.json").read_text()) == told
    text = (tmp_path / "gpu.md").read_text()
    assert "| acl | bf16 | 32 | recompute | 0.5 | 64 | 1.00 | 1 |  |" in text
    assert "| ezvsl | 0.001 | 0.9900 | 1.000 | no device |" in text
    late = measure_gpu(tmp_path, minutes=0, tiny=True, most=8)
    assert {r["why"] for r in late["rows"]} == {"not reached: the time is up"}


def test_bf16_is_compared_with_the_same_weights_samples_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    found = agreement("seac", tiny=True, device=torch.device("cpu"))
    assert found["cosine"] > 0.99
    assert found["loss_difference"] < 0.05
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    same = agreement("seac", tiny=True, device=torch.device("cpu"))
    assert same == {"loss_difference": 0.0, "cosine": pytest.approx(1.0), "length": pytest.approx(1.0)}
