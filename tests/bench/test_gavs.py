"""The loop over single frames computes what the batched step does, and stored features spare the encoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avloc.bench import gavs as bench
from avloc.bench.command import bench_step
from avloc.cli import main
from avloc.errors import UsageError
from avloc.methods.gavs import GAVS
from avloc.methods.gavs.losses import Objective
from tests.methods.tiny import tiny_sam_files


def tiny_gavs(folder: Path, tune_v: int | None = 2) -> GAVS:
    torch.manual_seed(1)
    model = GAVS(**tiny_sam_files(folder), tune_v=tune_v, objective=Objective("dice_loss"))  # type: ignore[arg-type]
    return model.train()


def test_one_by_one_is_the_same_step(tmp_path: Path) -> None:
    model = tiny_gavs(tmp_path)
    batch = bench.random_batch(model, 7, full_size=False)
    assert batch.video == ["video0"] * 5 + ["video1"] * 2
    losses = []
    for loss in (
        lambda: model.training_losses(batch)["loss"],
        lambda: bench.one_by_one(model, batch, model.hear(batch.audio)),
    ):
        model.zero_grad()
        value = loss()
        value.backward()
        losses.append((value.detach(), [p.grad for p in model.trainable()]))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-3)
    assert all(g.abs().max() > 0 for g in losses[0][1])
    before = model.network.encode(model.network.prepare(batch.image))
    with bench.adapters_inside(model):
        pass
    after = model.network.model_v.image_encoder(model.network.prepare(batch.image))
    assert not torch.allclose(before, after)  # the package knows no adapters any more


@pytest.mark.parametrize("tune_v", [None, 0, 2])
def test_stored_features_spare_the_encoder_below_its_adapters(tmp_path: Path, tune_v: int | None) -> None:
    model = tiny_gavs(tmp_path, tune_v)
    pictures = bench.random_batch(model, 3, full_size=False)
    features = replace(pictures, stored={"frozen": model.frozen(pictures).half()})
    encoder, called = model.network.model_v.image_encoder, set()
    below = [encoder.patch_embed.proj, *(block.mlp.lin1 for block in encoder.blocks[: model.network.first_adapter])]
    if tune_v is None:
        below.append(encoder.neck[0])
    for module in below:
        module.register_forward_hook(lambda module, a, out: called.add(module))
    flops, spent = {}, {}
    for name, batch in {"pictures": pictures, "features": features}.items():
        called.clear()
        flops[name], spent[name] = bench.count_flops(model, lambda batch=batch: model.training_losses(batch))
        assert called == (set(below) if name == "pictures" else set())
    assert spent["features"] == 0
    assert flops["pictures"] - flops["features"] == spent["pictures"]
    # three pictures of 8 x 8 patches of 3 x 8 x 8 values become 64 channels; then the MLPs of the blocks, at least
    least = 2 * 3 * 64 * 192 * 64 + model.network.first_adapter * 2 * 2 * 3 * 64 * 64 * 128
    assert spent["pictures"] >= least


def test_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "WORLD", tiny_sam_files(tmp_path) | {"tune_v": 2})
    args = ["--batch_size", "2", "--steps", "1", "--stored", "--json"]
    main(["bench", "step", "--method", "gavs", *args])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["speedup"] == pytest.approx(result["loop_s"] / result["step_s"])
    assert result["frames_per_s"] == pytest.approx(2 / result["step_s"])
    whole = (result["loop_s"] + result["loop_hear_s"]) / (result["step_s"] + result["hear_s"])
    assert result["hearing_speedup"] == pytest.approx(whole)
    assert result["input"] == "stored features"
    assert result["stored_encoder_flops"] == 0
    assert result["flops"] == result["stored_flops"] + result["encoder_flops"]
    assert min(result["peak_bytes"], result["loop_peak_bytes"]) > 1e6


def test_options_of_other_methods_are_refused() -> None:
    with pytest.raises(UsageError, match="has no --recompute"):
        bench_step("gavs", recompute=True)
    with pytest.raises(UsageError, match="souple has no --stored"):
        bench_step("souple", stored=True)
