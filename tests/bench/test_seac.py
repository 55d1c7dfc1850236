"""SeAC's bench counts what it says it counts."""

from __future__ import annotations

import json

import pytest
import torch

from avloc.bench import seac as bench
from avloc.bench.command import bench_step
from avloc.bench.step import count_flops
from avloc.cli import main
from avloc.errors import UsageError
from avloc.methods.seac.network import Design


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_step_costs_what_cannot_be_avoided(batch_size: int) -> None:
    """Beyond the unavoidable products a step has those of the loss: under 5 % of FLOPs at any batch size."""
    model = bench.build_seac(False)
    batch = bench.stored_batch(model, batch_size)
    whole = count_flops(lambda: model.training_losses(batch)["loss"].backward())
    least = sum(count_flops(run) for run in bench.unavoidable_seac(model, batch))
    assert 0.99 <= whole / least < 1.05


def test_flops_of_the_association_module_by_hand() -> None:
    """One layer of width w over B x N masks: forward, and backward twice that but for what feeds no parameter."""
    B, N, D, w, hidden, d, T, a = 3, 4, 64, 32, 48, 16, 2, 128
    design = Design(layers=1, heads=2, hidden=hidden, dropout=0.0, width=w, size=d)
    model = bench.build_seac(False, design=design, count=N)
    batch = bench.stored_batch(model, B)
    tokens = B * N
    encoder = 2 * tokens * (4 * w * w + 2 * w * hidden) + 2 * (2 * B * N * N * w)
    masks = 2 * tokens * D * w + encoder + 2 * tokens * w * d
    pool = 2 * B * T * (2 * a * a + a) + 2 * B * T * a
    sounds = pool + 2 * B * a * d
    similarity = 2 * tokens * d * B
    inputs = 2 * tokens * D * w + 2 * B * T * 2 * a * a  # features and seconds need no gradient
    vggish, association = bench.unavoidable_seac(model, batch)
    assert count_flops(association) == pytest.approx(3 * (masks + sounds + similarity) - inputs, rel=0.01)
    assert count_flops(vggish) > 0


def test_shares_add_up() -> None:
    result = bench.measure_seac(2, steps=1)
    names = ("vggish_share", "association_share", "rest_share")
    assert sum(float(result[n]) for n in names) == pytest.approx(1)
    assert float(result["vggish_flops_share"]) + float(result["association_flops_share"]) == pytest.approx(
        1 / float(result["flops_ratio"])
    )
    assert all(float(result[n]) > 0 for n in ("step_s", "flops", "samples_per_s"))
    assert result["masks"] == 16


def test_a_stored_batch_is_read_as_one() -> None:
    model = bench.build_seac(False, count=5)
    masks = model.masks(bench.stored_batch(model, 3), pixels=False)
    assert masks.count.tolist() == [5, 5, 5]
    assert masks.embedded["features"].shape == (3, 5, 64)
    assert masks.embedded["features"].dtype == torch.float16


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "step", "--method", "seac", "--batch_size", "2", "--steps", "1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["method"], result["batch_size"], result["masks"]) == ("seac", 2, 16)
    assert result["flops_ratio"] <= 1.05
    with pytest.raises(UsageError, match="has no --recompute"):
        bench_step("seac", recompute=True)
