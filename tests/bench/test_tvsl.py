"""T-VSL's bench counts what it says it counts."""

from __future__ import annotations

import json

import pytest
import torch

from avloc.bench import tvsl as bench
from avloc.bench.command import bench_step
from avloc.bench.step import count_flops
from avloc.cli import main
from avloc.errors import UsageError


@pytest.mark.parametrize("sources", [2, 4])
def test_a_step_costs_what_cannot_be_avoided(sources: int) -> None:
    model = bench.build_tvsl(False)
    model.bank()  # texts are read once a run
    batch = bench.mixture_batch(model, 3, sources, tiles=2)
    whole = count_flops(lambda: model.training_losses(batch)["loss"].backward())
    least = count_flops(bench.unavoidable_tvsl(model, batch))
    assert 1 <= whole / least < 1.05


def test_flops_of_the_projectors_by_hand() -> None:
    """Linear layers of D channels over n_v + n_a tokens, P_f of 2D to D: forward, and the backward to their weights;
    the class head's product with N texts, and its backward to f and P_f's inputs."""
    model = bench.build_tvsl(False)
    batch = bench.mixture_batch(model, 3, sources=2, tiles=2)
    model.bank()
    with torch.no_grad():
        image = model.towers.image_tokens(batch.image.float(), "grid")
        audio = model.towers.audio_tokens(batch.audio)
    towers = count_flops(
        lambda: (model.towers.image_tokens(batch.image.float(), "grid"), model.towers.audio_tokens(batch.audio))
    )
    B, D, N = 3, model.towers.width, 16
    tokens = image.shape[1] + audio.shape[1]
    projected = 2 * (2 * B * tokens * D * D)
    head = 3 * (2 * B * 2 * D * D) + 2 * (2 * B * D * N)
    assert count_flops(bench.unavoidable_tvsl(model, batch)) == pytest.approx(towers + projected + head, rel=0.01)


def test_mixtures_have_different_classes_under_rows_of_pictures() -> None:
    model = bench.build_tvsl(False)
    batch = bench.mixture_batch(model, 5, sources=4, tiles=2)
    assert batch.image.shape == (5, 3, 64, 128)
    assert all(len(set(row)) == 4 for row in batch.class_id.tolist())


def test_fields(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "step", "--method", "tvsl", "--batch_size", "2", "--steps", "1", "--json"])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["sources_ratio"] == pytest.approx(result["step4_s"] / result["step_s"])
    assert result["flops_ratio"] == pytest.approx(result["flops"] / result["unavoidable_flops"])
    assert 1 <= result["flops_ratio"] <= result["flops4_ratio"] < 1.05
    assert result["samples_per_s"] == pytest.approx(2 / result["step_s"])
    assert result["peak_bytes"] > 0
    with pytest.raises(UsageError, match="tvsl has no --stored"):
        bench_step("tvsl", stored=True)
