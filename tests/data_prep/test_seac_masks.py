"""SeAC's stage one as a command: on the embedded world, in parts, stopped and resumed, and when it cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from avloc.data.index import read_index
from avloc.data.indexed import EvalSet
from avloc.data.items import collate
from avloc.data.shards import write_shards
from avloc.data.stored import open_features
from avloc.experiment.run import instantiate
from avloc.methods.seac import SeAC
from avloc.names import find_config
from avloc.world.dataset import samples
from data_prep import seac_masks
from data_prep.seac_masks import main

POINTS = "--model.segmentation.boxes.init_args.points=3"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """An experiment with one set of seven pictures in three shards."""
    write_shards(tmp_path / "world", "world", "single", samples("single", scenes=7), records_per_shard=3)
    content = yaml.safe_load(find_config("seac_world").read_text())
    content["data"] |= {"train": "world:single", "val": [], "test": ["world:single"], "root": str(tmp_path)}
    path = tmp_path / "little.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def built(config: Path) -> tuple[SeAC, Path]:
    model, data = instantiate(config, [POINTS])
    assert isinstance(model, SeAC)
    return model, Path(data.find("world:single", "test"))


def stores(config: Path) -> list[Path]:
    return sorted(config.parent.glob("world/stored/*/*.json"))


def test_parts_and_runs_make_one_store(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-c", str(config), "--jobs", "0", "--batch-size", "2", POINTS]
    assert main([*options, "--num-parts", "2", "--part", "1"]) == 0
    assert [p.name for p in stores(config)] == ["000001.json", "store.json"]
    assert main([*options, "--dry-run"]) == 0
    assert "world-single: 4 pictures to do, 3 are there" in capsys.readouterr().err
    assert main(options) == 0
    assert "4 pictures stored, 3 were there, 0 broken" in capsys.readouterr().err
    model, index = built(config)
    store = open_features(model, read_index(index))
    data = EvalSet(index, model.input_spec, truth_size=None)
    assert len(store) == 7
    item = data[3]
    with torch.no_grad():
        (made,) = model.make(collate([item]), strict=True)
    row = store.read([item.key])
    assert row["count"].tolist() == [len(made)]
    assert torch.equal(row["features"][0].view(len(made), -1), made.embedded["features"].half())


def test_a_dry_run_writes_nothing_and_tells_the_size(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", str(config), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "world-single: 7 pictures to do, 0 are there" in said
    assert "KB a picture" in said
    assert "GB are free" in said
    assert stores(config) == []


def test_the_estimate_is_an_upper_bound_of_the_size(config: Path) -> None:
    assert main(["-c", str(config), "--jobs", "0"]) == 0
    model, _ = instantiate(config, [])
    assert isinstance(model, SeAC)
    size = sum(p.stat().st_size for p in config.parent.glob("world/stored/*/*.npy"))
    assert size < 7 * seac_masks.frame_bytes(model) + 3 * 5 * 128  # heads of files
    assert seac_masks.frame_bytes(published()) == 50 * (2 * 1024 + 18 + 400) + 2


def published() -> SeAC:
    return SeAC("random", "random")


def test_what_cannot_work_is_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["-c", str(config), "--part", "2", "--num-parts", "2"], "--part 2 must lie between 0"),
        (["-c", "quickstart"], "quickstart builds SOUPLE, not SeAC"),
        (["-c", str(config), "--sets", "nothing"], "Set 'nothing'"),
        (["-c", "no_such_experiment"], "no_such_experiment"),
        (["-c", str(config), "--model.segmentation.sam=sam_vit_h"], "sam_vit_h"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*options, "--dry-run"])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_a_full_disk_is_told_before(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seac_masks.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert main(["-c", str(config), "--dry-run"]) == 1
