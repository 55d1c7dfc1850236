"""A run of the embedded world's EZ-VSL with random weights: its folder, read again, answers the same to every bit."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import avloc
from avloc import weights
from avloc.cli import main
from avloc.download import DownloadError
from avloc.errors import UsageError
from avloc.export.card import Card
from avloc.export.write import export
from avloc.methods.base import Localizer
from avloc.methods.checkpoint import CheckpointError, read_checkpoint
from avloc.methods.two_tower import EZVSL
from avloc.methods.two_tower.losses import EZVSL as Objective  # noqa: N811
from avloc.report.entries import validated
from tests.report.test_tables import run_folder
from tests.test_download import Site, site  # noqa: F401

SETTINGS = dict(
    image_weights="world:resnet18",
    tower={"channels": [8, 16, 32, 64], "stem_width": 8, "output_stride": 8},
    dim=32,
    image_size=64,
    seconds=1.0,
    hop=512,
)
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
SOUND = np.random.default_rng(1).normal(0, 0.1, 16000).astype(np.float32)
OVERLAP = np.repeat([0.6, 0.2], 200)


def method() -> Localizer:
    torch.manual_seed(3)
    made = EZVSL(**SETTINGS)  # type: ignore[arg-type]
    made.configured = SETTINGS
    return made.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of 400 clips are found: cIoU 50 with +- 1.96 * sqrt(.25 / 400)."""
    folder = tmp_path_factory.mktemp("runs") / "mine" / "version_0"
    made = method()
    head: dict[str, Any] = {"state_dict": made.state_dict()}
    made.on_save_checkpoint(head)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(head, folder / "checkpoints" / "best.ckpt")
    run_folder(
        folder,
        OVERLAP,
        name="mine",
        seed=3,
        method="avloc.methods.two_tower.method.EZVSL",
        config={"data": {"train": "vggsound_144k"}},
        parameters={"trainable": 10, "total": 12},
        packages={"torch": "2.9.0"},
        weights={"image": {"source": "world:resnet18", "sha256": "ab" * 32}},
    )
    content = json.loads((folder / "results.json").read_text())
    content["universal"] = {"threshold": 0.45, "chosen_on": ["world:val"]}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    main(["export", str(run), "-o", str(out), "--program"])
    return out


def answer(place: Path | str) -> avloc.find.Found:  # type: ignore[name-defined]
    return avloc.load(place).find(PICTURE, SOUND, rate=16000)


def test_the_folder_answers_as_the_run_does(run: Path, exported: Path) -> None:
    own, theirs = answer(run), answer(exported)
    assert np.array_equal(own.maps, theirs.maps)
    assert np.array_equal(own.confidence, theirs.confidence)
    assert own.regions == theirs.regions
    assert (own.threshold.value, theirs.threshold.value) == (0.45, 0.45)
    assert theirs.threshold.origin == f"universal, chosen on world:val: {exported / 'config.json'}"
    stored = load_file(exported / "model.safetensors")
    learned = torch.load(run / "checkpoints" / "best.ckpt", weights_only=False)["state_dict"]
    assert stored.keys() == learned.keys()
    assert all(torch.equal(stored[k], learned[k]) for k in stored)


def test_the_graph_answers_as_the_method_does(run: Path, exported: Path) -> None:
    """By the program alone: picture and sound as the method's spec wants them."""
    graph = torch.export.load(exported / "program.pt2").module()
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    sound = torch.from_numpy(SOUND)[None]
    with torch.no_grad():
        heat, confidence = graph(image, sound)
    found = avloc.load(run).find(image[0], sound[0], rate=16000)
    np.testing.assert_allclose(heat[0].numpy(), found.maps, atol=1e-5)
    np.testing.assert_allclose(confidence[0].numpy(), found.confidence, atol=1e-4)


def test_the_card_tells_numbers_rules_data_and_terms(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "avloc"
    (row,) = [line for line in text.splitlines() if line.startswith("| vggss |")]
    name, count, protocol, metric, model, centre, silenced = [c.strip() for c in row.strip("|").split("|")]
    assert (name, count, protocol, metric) == ("vggss", "400", "vggss/top50", "ciou")
    value, low, high = map(float, model.replace("[", "").replace("]", "").replace(",", "").split())
    assert (value, low, high) == (50, pytest.approx(45.1, abs=0.6), pytest.approx(54.9, abs=0.6))
    assert (centre, silenced) == ("0.00", "0.00")
    for told in (
        "`vggss/top50`: by each map (min-max, sorted index",
        "Trained on `vggsound_144k`.",
        "- vggss: whether its clips are in the training list was not checked",
        "No other file is needed.",
        "cuts maps at 0.45, chosen on world:val.",
        "`program.pt2`: the inference path as `torch.export`: `image` uint8 [1, 3, 64, 64] (squash)",
    ):
        assert told in text
    config = json.loads((exported / "config.json").read_text())
    assert (config["format"], config["version"], config["trained_on"]) == ("avloc export", 1, "vggsound_144k")
    assert config["licences"] == {"image": "Apache-2.0"}


def test_a_card_of_frozen_files_and_of_leaks() -> None:
    frozen = {
        "hears": {"source": "imagebind", "sha256": "ab" * 32},
        "sees": {"source": "file:/home/me/mine.pt", "sha256": "cd" * 32},
        "toy": {"source": "world:beats", "sha256": ""},
    }
    about = {"avloc": "1.0", "trained_on": "mine", "identity": {"method": "a.B", "frozen": frozen, "seed": 4}}
    tested = {
        "samples": 4, "missing": 1, "benchmark": "vggss", "primary": "vggss/acl",
        "protocols": {"vggss/acl": {"headline": "ciou", "cut": "test set"}},
        "rows": {"model": {"vggss/acl": {"ciou": {"value": 0.25}}}},
        "leaks": {"clips": 4, "by_clip": 1, "by_video": 2, "unchecked": 3},
    }  # fmt: skip
    entry = validated(
        {"schema": "avloc leaderboard entry", "version": 1, "experiment": "b", "method": "a.B", "recipe": "0" * 12,
         "sets": {"vggss": tested}}, "here", "again"
    )  # fmt: skip
    text = Card("b", about, entry, {}, "toy weights: they know nothing.", {}).text()
    for told in (
        "**toy weights: they know nothing.**",
        "trained on `mine` with seed 4.",
        "| vggss | 4 | vggss/acl | ciou | 25.00 |",
        "- `vggss/acl`: chosen on the test set itself, which no user has",
        "- vggss: 1 missing",
        "1 of 4 clips are in the training list, 2 by their video; 3 unchecked",
        f"| hears | `imagebind` | CC-BY-NC 4.0 | `{'ab' * 8}` | the README of facebookresearch/ImageBind",
        "| sees | `a file of its maker` | unknown |",
        "| toy | `world:beats` | Apache-2.0 |  | this package |",
        "**Not for commercial use: imagebind.**",
    ):
        assert told in text
    assert "/home/me" not in text


def test_a_method_without_training(tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    run.mkdir()
    settings = {"class_path": "avloc.methods.baselines.controls.CentreBox", "init_args": {}}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": settings}))
    assert set(export(run, tmp_path / "out")) == {"model.safetensors", "config.json", "README.md"}
    assert np.array_equal(answer(run).maps, answer(tmp_path / "out").maps)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "The run was not tested." in text
    assert "Nothing was trained." in text
    assert "No other file is needed." in text


def test_an_older_export_is_replaced_and_nothing_else_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"taken holds something that is no export\. Name an empty"):
        export(run, tmp_path / "taken")
    export(run, tmp_path / "out", name="one")
    export(run / "checkpoints" / "best.ckpt", tmp_path / "out", name="two")
    assert "# two" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UsageError, match=r"no folder of a run"):
        export(tmp_path / "taken", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, r"exported in version 2 of the format, and this avloc reads version 1\. Update avloc"),
        ({"version": None}, "exported in version None"),
        ({"identity": None}, "does not say what method"),
        ({"identity": {"method": "os.system"}}, r"names os\.system, which is no Localizer"),
        ({"built_with": {"configured": {"tower": {"class_path": "os.system"}}}}, "asks for 'os.system'"),
        ({"built_with": {"arguments": [1]}}, "arguments are no names with values"),
        ({"built_with": {"configured": SETTINGS | {"dim": 16}}}, "of another size than the configuration's"),
    ],
)
def test_what_a_stranger_may_write_is_refused(copy: Path, change: dict, told: str) -> None:
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(CheckpointError, match=told):
        avloc.load(copy)


def test_damaged_folders(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        avloc.load(copy)
    save_file(dict(list(tensors.items())[1:]), copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="trainable tensors are not those"):
        avloc.load(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        avloc.load(copy)


def test_what_json_cannot_hold_is_refused(run: Path, tmp_path: Path) -> None:
    head = read_checkpoint(run / "checkpoints" / "best.ckpt")
    head["avloc"] |= {"configured": None, "arguments": {"objective": Objective()}}  # built in Python
    head["hyper_parameters"] = {}
    torch.save(head, tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match="was built in Python, of objects that"):
        export(tmp_path / "best.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_from_the_hub(
    site: Site,  # noqa: F811
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["config.json", "model.safetensors"]
    content = {name: (exported / name).read_bytes() for name in names}
    listing = {"id": "o/n", "sha": "a" * 40, "siblings": [{"rfilename": n} for n in names]}
    tree = [{"type": "file", "path": n, "size": len(content[n]), "oid": "0"} for n in names]
    for revision in ("", "/revision/main"):
        site.files[f"/api/models/o/n{revision}"] = json.dumps(listing).encode()
    site.files[f"/api/models/o/n/tree/{'a' * 40}"] = json.dumps(tree).encode()
    for revision in ("main", "a" * 40):
        site.files |= {f"/o/n/resolve/{revision}/{name}": content[name] for name in names}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVLOC_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("AVLOC_MIRROR", raising=False)
    monkeypatch.setattr(weights, "hub_cache", lambda name: [])
    monkeypatch.setattr(constants, "ENDPOINT", site.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", site.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("o/n", "hf:o/n"):
        assert np.array_equal(answer(name).maps, answer(exported).maps)
    with pytest.raises(DownloadError, match=r"o/absent is no experiment, run or export on this machine"):
        avloc.load("o/absent")


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is not None, reason="the exporter is installed")
def test_without_the_exporter_the_extra_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--onnx needs onnx.*pip install 'avloc\[onnx\]'"):
        export(run, tmp_path / "out", onnx=True)


@pytest.mark.slow
def test_onnx_answers_as_the_method_does(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    export(run, tmp_path / "out", onnx=True)
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    heat, _ = session.run(None, {"image": image.numpy(), "audio": SOUND[None]})
    np.testing.assert_allclose(heat[0], avloc.load(run).find(image[0], SOUND, rate=16000).maps, atol=1e-4)
