"""The benchmarks count what they say they count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from avloc.bench import step as bench
from avloc.bench.loader import measure_loader
from avloc.cli import main
from avloc.methods.acl import ACL
from avloc.world import write_world
from tests.methods.tiny import tiny_files

FIELDS = [
    "step_s",
    "unavoidable_s",
    "time_ratio",
    "flops",
    "unavoidable_flops",
    "flops_ratio",
    "samples_per_s",
    "peak_bytes",
]


def test_flops_of_a_product_by_hand() -> None:
    linear, x = nn.Linear(8, 16, bias=False), torch.randn(4, 8)
    assert bench.count_flops(lambda: linear(x)) == 2 * 4 * 8 * 16
    q = torch.randn(1, 2, 5, 3)  # heads 2, length 5, width 3
    attention = bench.count_flops(lambda: nn.functional.scaled_dot_product_attention(q, q, q))
    assert attention == 2 * (2 * 2 * 5 * 5 * 3)


def test_step_prints_every_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "WORLD", tiny_files(tmp_path))
    main(["bench", "step", "--method", "acl", "--batch_size", "2", "--steps", "1", "--json"])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(FIELDS) <= result.keys()
    assert all(result[f] > 0 for f in FIELDS)
    assert result["time_ratio"] == pytest.approx(result["step_s"] / result["unavoidable_s"])


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_step_costs_what_cannot_be_avoided(tmp_path: Path, batch_size: int) -> None:
    """Beyond the unavoidable products a step has those of the losses: under 5 % of FLOPs at any batch size."""
    model = ACL(**tiny_files(tmp_path))  # type: ignore[arg-type]
    batch = bench.random_batch(model, batch_size)
    whole = bench.count_flops(lambda: model.training_losses(batch)["loss"].backward())
    least = bench.count_flops(lambda: bench.unavoidable_passes(model, batch))
    assert 1 <= whole / least < 1.05


def test_loader_reports_a_ratio(tmp_path: Path) -> None:
    write_world(tmp_path / "world", "train", scenes=40)
    result = measure_loader("world:train", tmp_path, 0, 4, 64, 2.0, 4)
    assert result["samples"] == 16
    assert float(result["ratio"]) > 0
