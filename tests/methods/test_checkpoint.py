"""What a checkpoint holds, whom it lets in, and how a method is built from it again."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from avloc.methods.base import CheckpointError, Localizer
from avloc.methods.checkpoint import read_checkpoint
from avloc.methods.load import load_method
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import load_into, locate, read_state

pytestmark = pytest.mark.filterwarnings("ignore")


class Part:
    """A setting that is a class of its own, as a space or a box source is."""

    def __init__(self, size: int = 3) -> None:
        self.size = size


class Following(Localizer):
    """A frozen tower of a file, a copy that follows it, a queue, prototypes and statistics without weights."""

    input_spec = InputSpec(image_size=32)

    def __init__(self, tower: str, width: int = 4, part: Part | None = None, anything: Any = None) -> None:
        super().__init__()
        self.width, self.part, self.anything = width, part, anything
        file = locate(tower)
        self.frozen_files = {"tower": file}
        self.tower = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))
        if file.path is not None:
            load_into(self.tower, read_state(file.path), str(file.path))
        self.tower.requires_grad_(False).eval()
        self.copy = copy.deepcopy(self.tower)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.prototypes = nn.Parameter(torch.randn(5, width), requires_grad=False)
        self.register_buffer("queue", torch.randn(6, width))
        self.head = nn.Linear(width, 1)

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        raise NotImplementedError

    def localize(self, batch: AVBatch) -> Localization:
        raise NotImplementedError


@pytest.fixture
def source(tmp_path: Path) -> str:
    tower = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    save_file(tower.state_dict(), tmp_path / "tower.safetensors")
    return f"file:{tmp_path / 'tower.safetensors'}"


def checkpoint_of(method: Localizer, path: Path, **more: Any) -> Path:
    content: dict[str, Any] = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(content)
    torch.save(content | more, path)
    return path


def train(method: Following) -> None:
    """As an epoch moves everything but the tower."""
    with torch.no_grad():
        for x in (method.copy[0].weight, method.prototypes, method.queue, method.head.weight):  # type: ignore[union-attr]
            x.add_(1)
    method.norm(torch.randn(8, 4))


def same(a: Localizer, b: Localizer) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for k, v in a.state_dict().items():
        assert torch.equal(b.state_dict()[k], v), k


def test_all_that_training_changes_is_kept(source: str, tmp_path: Path) -> None:
    method = Following(source)
    train(method)
    path = checkpoint_of(method, tmp_path / "a.ckpt")
    stored = torch.load(path, weights_only=True)["state_dict"]
    left_out = {f"tower.{k}" for k in method.tower.state_dict()} | {
        f"copy.{k}" for k in method.copy.state_dict() if k != "0.weight"
    }
    assert stored.keys() == method.state_dict().keys() - left_out
    same(method, load_method(path, "cpu"))


def test_statistics_that_drift_in_a_frozen_tower_are_kept(source: str, tmp_path: Path) -> None:
    method = Following(source)
    method.tower.train()
    method.tower(torch.randn(8, 4))
    path = checkpoint_of(method, tmp_path / "a.ckpt")
    kept = {k for k in torch.load(path, weights_only=True)["state_dict"] if k.startswith("tower.")}
    assert kept == {"tower.1.running_mean", "tower.1.running_var", "tower.1.num_batches_tracked"}
    same(method, load_method(path, "cpu"))


def test_a_frozen_tower_that_no_file_gave_is_kept(tmp_path: Path) -> None:
    method = Following("random")
    same(method, load_method(checkpoint_of(method, tmp_path / "a.ckpt"), "cpu"))


def test_a_run_that_unfreezes_layers_can_be_tested_from_every_epoch(source: str, tmp_path: Path) -> None:
    method = Following(source)
    train(method)
    early = checkpoint_of(method, tmp_path / "early.ckpt")
    then = copy.deepcopy(method)
    method.tower.requires_grad_()
    with torch.no_grad():
        method.tower[0].weight.add_(1)
    late = checkpoint_of(method, tmp_path / "late.ckpt")
    same(method, load_method(late, "cpu"))
    same(then, load_method(early, "cpu"))
    method.tower.requires_grad_(False)  # frozen again, and no longer what the file gave
    assert "tower.0.weight" in method.learned_keys()
    with pytest.raises(CheckpointError, match=r"missing \['tower\.0\.weight'\]"):
        method.on_load_checkpoint(read_checkpoint(early))


def test_an_older_checkpoint_still_loads(source: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    method = Following(source)
    state = {k: v for k, v in method.state_dict().items() if k.startswith("head.")}
    hparams = {"tower": source, "width": 4}
    torch.save({"state_dict": state, "avloc": method.identity(), "hyper_parameters": hparams}, tmp_path / "a.ckpt")
    with pytest.warns(
        UserWarning, match=r"older avloc, which did not keep norm\.num_batches_tracked, .*, \.\.\.: left"
    ):
        again = load_method(tmp_path / "a.ckpt", "cpu")
    assert torch.equal(again.get_parameter("head.weight"), method.head.weight)


def test_what_does_not_fit_is_refused_by_name(source: str, tmp_path: Path) -> None:
    path = checkpoint_of(Following(source), tmp_path / "a.ckpt")
    head = torch.load(path, weights_only=True)
    head["state_dict"]["queue"] = torch.zeros(7, 4)
    with pytest.raises(CheckpointError, match=r"of another size .*: queue \(7, 4\) instead of \(6, 4\)"):
        Following(source).on_load_checkpoint(head)
    head["state_dict"] = {"queue": "much"}
    with pytest.raises(CheckpointError, match="no named tensors"):
        Following(source).on_load_checkpoint(head)


def test_a_method_that_forgets_its_arguments_is_built_with_them(tmp_path: Path) -> None:
    method = Following("random", 7, anything={"names": ["a", "b"]})
    again = load_method(checkpoint_of(method, tmp_path / "a.ckpt"), "cpu")
    assert isinstance(again, Following)
    assert (again.width, again.anything) == (7, {"names": ["a", "b"]})
    unsaid = Following("random", part=Part())
    with pytest.raises(CheckpointError, match=r"does not say what .*Following was built with"):
        load_method(checkpoint_of(unsaid, tmp_path / "b.ckpt"), "cpu")
    unsaid.configured = {"tower": "random", "part": {"class_path": f"{__name__}.Part", "init_args": {"size": 9}}}
    built = load_method(checkpoint_of(unsaid, tmp_path / "c.ckpt"), "cpu")
    assert isinstance(built, Following)
    assert built.part is not None
    assert built.part.size == 9


EVIL = "open('ran.txt', 'w').close()\n\n\nclass Thing:\n    def __init__(self, **_):\n        pass\n"
ASKED: dict[str, Any] = {
    "a part": {"part": {"class_path": "evil.Thing"}},
    "a part's part": {"part": {"class_path": f"{__name__}.Part", "init_args": {"size": {"class_path": "evil.Thing"}}}},
    "anything": {"anything": {"class_path": "evil.Thing"}},
    "in a list": {"anything": [[{"class_path": "evil.Thing"}]]},
    "an instantiator": {"_instantiator": "evil.Thing", "anything": {"_instantiator": "evil.Thing"}},
    "a class": {"_class_path": "evil.Thing", "anything": {"_class_path": "evil.Thing"}},
    "imported already": {"anything": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "ran.txt"]}}},
    "through this package": {"part": {"class_path": "avloc.weights.os.system"}},
}
LIGHTNINGS = {"_class_path": f"{__name__}.Following", "_instantiator": "lightning.pytorch.cli.instantiate_module"}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("place", ["hyper_parameters", "configured"])
def test_a_strangers_checkpoint_runs_nothing(
    asked: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    method = Following("random")
    settings = {"tower": "random", **LIGHTNINGS, **ASKED[asked]}
    if place == "configured":
        method.configured = settings
    more = {"hyper_parameters": settings} if place == "hyper_parameters" else {}
    path = checkpoint_of(method, tmp_path / "a.ckpt", **more)
    with pytest.raises(CheckpointError, match=r"asks for .* not imported on a checkpoint's word.*AVLOC_PLUGINS"):
        load_method(path, "cpu")
    assert "evil" not in sys.modules
    assert not (tmp_path / "ran.txt").exists()


def test_a_strangers_optimiser_is_never_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {
        "tower": "random",
        **LIGHTNINGS,
        "optimizer": {"class_path": "evil.Thing"},
        "lr_scheduler": "evil.Thing",
    }
    load_method(checkpoint_of(Following("random"), tmp_path / "a.ckpt", hyper_parameters=settings), "cpu")
    assert not (tmp_path / "ran.txt").exists()


def test_torchs_advice_is_never_shown(tmp_path: Path) -> None:
    import traceback

    class Own:
        pass

    Own.__qualname__ = "Own"
    monkey = sys.modules[__name__]
    monkey.Own = Own  # type: ignore[attr-defined]
    torch.save({"avloc": {}, "thing": Own()}, tmp_path / "a.ckpt")
    for read in (lambda p: load_method(p), Following("random").start_from):
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint") as e:
            read(tmp_path / "a.ckpt")
        assert "weights_only" not in "".join(traceback.format_exception(e.value))


@pytest.mark.parametrize("entry", [5, "x", {1: 2}, torch.zeros(2)])
@pytest.mark.parametrize("where", ["hyper_parameters", "arguments", "configured"])
def test_settings_that_are_none_are_told(tmp_path: Path, where: str, entry: Any) -> None:
    path = tmp_path / "x.ckpt"
    about = {
        "method": "avloc.methods.baselines.controls.CentreBox",
        "frozen": {},
        "holds": "all",
        "arguments": {},
        "configured": None,
    }
    content: dict[str, Any] = {"state_dict": {}, "avloc": about, "hyper_parameters": {}}
    (content if where == "hyper_parameters" else about)[where] = entry
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"x\.ckpt is damaged: its {where} are no names"):
        load_method(path, "cpu")


def test_weights_that_are_no_numbers_are_refused(source: str, tmp_path: Path) -> None:
    method = Following(source)
    method.head.weight.data[0, 1] = float("nan")
    content = torch.load(checkpoint_of(method, tmp_path / "x.ckpt"), weights_only=True)
    with pytest.raises(CheckpointError, match=r"head\.weight hold NaN: its training diverged"):
        Following(source).on_load_checkpoint(content)
