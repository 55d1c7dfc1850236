"""Which method, weights and threshold answer, by what is named on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from avloc.bench.step import build
from avloc.errors import UsageError
from avloc.localize import models
from avloc.localize.models import best_of, choose, name_classes, threshold_of, toy_warning
from avloc.localize.regions import Threshold
from avloc.methods.acl.method import ACL
from avloc.methods.base import IDENTITY, CheckpointError
from avloc.methods.baselines.controls import CentreBox
from tests.localize.test_run import Known


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a tested run, whose checkpoint loads as a `Known`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load_method", lambda path: Known())
    folder = tmp_path / "runs" / "quickstart" / "version_3"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("best", "resume"):
        (folder / "checkpoints" / f"{name}.ckpt").write_bytes(b"weights")
    universal = {"threshold": 0.37, "place": 36, "chosen_on": ["world:val", "world:val_negative"]}
    (folder / "results.json").write_text(json.dumps({"universal": universal, "sets": {}}))
    return folder


def test_a_run_its_checkpoint_or_nothing_mean_the_same(run: Path) -> None:
    best = run / "checkpoints" / "best.ckpt"
    for checkpoint in (run, run.parent, run / "checkpoints", best):
        chosen = choose(checkpoint=checkpoint)
        assert chosen.told == f"Known of {best}"
        assert chosen.threshold.value == 0.37
        origin = f"universal, chosen on world:val, world:val_negative: {run / 'results.json'}"
        assert chosen.threshold.origin == origin
    assert choose().told == "Known of runs/quickstart/version_3/checkpoints/best.ckpt"
    assert choose(checkpoint=run / "checkpoints" / "resume.ckpt").told.endswith("resume.ckpt")


def test_of_several_runs_the_newest_counts(run: Path) -> None:
    newer = run.parent / "version_4" / "checkpoints"
    newer.mkdir(parents=True)
    (newer / "best.ckpt").write_bytes(b"weights")
    os.utime(run / "checkpoints" / "best.ckpt", (1, 1))
    assert best_of(run.parent) == newer / "best.ckpt"
    assert threshold_of(newer / "best.ckpt") == Threshold(0.5, "the default"), "that run was not tested"


@pytest.mark.parametrize("content", ['{"universal": null}', "{}"])
def test_a_run_without_calibration_has_the_default(run: Path, content: str) -> None:
    (run / "results.json").write_text(content)
    assert choose(checkpoint=run).threshold == Threshold()


@pytest.mark.parametrize("content", ["", '{"universal": {"threshold": "much"}}', "[]"])
def test_damaged_results_are_named(run: Path, content: str) -> None:
    (run / "results.json").write_text(content)
    with pytest.raises(UsageError, match=r"results\.json cannot be read.*--threshold"):
        choose(checkpoint=run)


def test_what_is_no_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is no folder of a run"):
        choose(checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"There is no checkpoint none\.ckpt"):
        choose(checkpoint=Path("none.ckpt"))
    with pytest.raises(UsageError, match="make train EXP=quickstart"):
        choose()


def test_a_method_without_training_by_its_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "centre" / "version_0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("model: {class_path: avloc.methods.baselines.controls.CentreBox}\nseed: 1\n")
    (run / "results.json").write_text('{"universal": {"threshold": 0.9, "chosen_on": ["x"]}}')
    for chosen in (choose(str(run / "config.yaml")), choose(checkpoint=run)):
        assert isinstance(chosen.model, CentreBox)
        assert chosen.threshold == Threshold(0.9, f"universal, chosen on x: {run / 'results.json'}")


def test_settings_of_a_yaml_with_the_weights_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="quickstart_acl has to be trained"):
        choose("quickstart_acl")
    options = {"image_size": 64, "seconds": 2.0, "feature_layers": (1, 2, 3)}
    trained = ACL(clipseg="world:clipseg", beats="world:beats", **options)  # type: ignore[arg-type]
    with torch.no_grad():
        trained.network.masker_i.b.fill_(7.5)
    learned = {k: v for k, v in trained.state_dict().items() if k in trained.learned_keys()}
    path = tmp_path / "runs" / "quickstart_acl" / "version_0" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": learned, IDENTITY: trained.identity()}, path)
    for chosen in (choose("quickstart_acl"), choose("quickstart_acl", path), choose("quickstart_acl", path.parents[1])):
        assert chosen.model.network.masker_i.b.item() == 7.5  # type: ignore[union-attr, operator]
        assert "quickstart_acl.yaml, trained by " in chosen.told


def test_toy_weights_are_told_in_words() -> None:
    assert toy_warning(Known()) == ""
    told = toy_warning(build("souple", False))
    assert told.startswith("toy weights: SOUPLE stands on world:beats, world:clipseg")


def test_a_method_that_asks_for_classes_asks_for_the_phrases() -> None:
    from avloc.methods.baselines.classes import ClassQuery

    own, told = ClassQuery(["cat", "dog"]), ClassQuery()
    name_classes(own, ["bell"])
    name_classes(told, ["bell", "horn"])
    assert own.class_names() == {0: "cat", 1: "dog"}
    assert told.class_names() == {0: "bell", 1: "horn"}
