from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from avloc import weights
from avloc.weights import WeightError, load_into, locate, read_state


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AVLOC_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(weights, "hub_cache", lambda name: [])
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


class Boom:
    """Pickled, it wants to make a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.target,)


def test_missing_file_says_which_whence_and_where(folder: Path) -> None:
    with pytest.raises(WeightError) as e:
        locate("beats")
    assert str(folder / "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt") in str(e.value)
    assert "microsoft/unilm" in str(e.value)
    assert "MIT" in str(e.value)


@pytest.mark.parametrize("source", ["beat", "hf:clipseg", "file:", "world:", "https://example.org/x.pt", ""])
def test_malformed_source_lists_the_forms(source: str) -> None:
    with pytest.raises(WeightError, match=r"is no weight source\. Use hf:OWNER/NAME, file:PATH, world:NAME, random"):
        locate(source)


def test_every_scheme_finds_its_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "WORLD_ASSETS", tmp_path / "assets")
    places = {
        "hf:CIDAS/clipseg-rd64-refined": folder / "CIDAS--clipseg-rd64-refined" / "pytorch_model.bin",
        f"file:{tmp_path / 'mine.pt'}": tmp_path / "mine.pt",
        "world:beats": tmp_path / "assets" / "beats.safetensors",
        "beats": folder / "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt",
    }
    for source, path in places.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(source.encode())
        found = locate(source)
        assert (found.source, found.path) == (source, path)
        assert found.sha256 == hashlib.sha256(source.encode()).hexdigest()


def test_safetensors_is_preferred_to_the_pickle_of_the_same_model(folder: Path) -> None:
    for name in ("pytorch_model.bin", "model.safetensors"):
        path = folder / "CIDAS--clipseg-rd64-refined" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert locate("hf:CIDAS/clipseg-rd64-refined").path == path


def test_hash_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    for content in (b"one", b"three"):
        path.write_bytes(content)
        assert locate(f"file:{path}").sha256 == hashlib.sha256(content).hexdigest()


def test_random_needs_no_file() -> None:
    assert locate("random") == weights.WeightFile("random", None, "")


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_both_formats_are_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.arange(3)}, path, _use_new_zipfile_serialization=zipped)
    assert read_state(path)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    path, target = tmp_path / "evil.pt", tmp_path / "made_by_the_pickle"
    torch.save({"a": Boom(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightError, match=r"evil\.pt is refused.*would run code") as e:
        read_state(path)
    assert "weights_only" not in str(e.value)  # torch's own message advises to switch the guard off
    assert not target.exists()


def damaged() -> dict[str, bytes]:
    return {
        "empty.safetensors": b"",
        "empty.pt": b"",
        "page.pt": b"<!doctype html><title>Not found</title>",
        "page.safetensors": b"<!doctype html><title>Not found</title>",
    }


@pytest.mark.parametrize("name", damaged())
def test_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(damaged()[name])
    with pytest.raises(WeightError, match=name + ".*Download it"):
        read_state(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    state = {"a": torch.ones(1000)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(WeightError, match=rf"cut\{suffix} cannot be read as weights.*Download it again"):
        read_state(path)


def test_file_without_names_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(WeightError, match=r"list\.pt holds a list"):
        read_state(tmp_path / "list.pt")


def test_half_precision_is_widened() -> None:
    linear = nn.Linear(3, 2)
    state = {"weight": torch.full((2, 3), 0.1).half(), "bias": torch.tensor([1.0, 2.0]).half()}
    load_into(linear, state, "x")
    assert linear.weight.dtype == torch.float32
    assert torch.equal(linear.weight, state["weight"].float())


def test_another_models_file_says_what_differs() -> None:
    linear = nn.Linear(3, 2)
    before = linear.weight.clone()
    state = {"weight": torch.zeros(2, 4), "extra.scale": torch.zeros(1)}
    with pytest.raises(WeightError) as e:
        load_into(linear, state, "w.pt")
    message = str(e.value)
    assert message.startswith("w.pt does not fit Linear: 1 missing (bias); 1 unknown (extra.scale);")
    assert "weight (2, 4) instead of (2, 3)" in message
    assert torch.equal(linear.weight, before)


def test_ignored_keys_are_by_suffix() -> None:
    linear = nn.Linear(3, 2)
    state = {**nn.Linear(3, 2).state_dict(), "text.position_ids": torch.arange(3)}
    load_into(linear, state, "x", ignore=("position_ids",))
    assert torch.equal(linear.bias, state["bias"])


def test_values_that_are_no_numbers_are_told() -> None:
    module = nn.Linear(2, 3)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    state["bias"][1] = float("nan")
    with pytest.raises(WeightError, match=r"x\.pt is damaged: bias hold NaN"):
        load_into(module, state, "x.pt")
    assert bool(module.bias.isfinite().all())
    state["bias"][1] = float("-inf")  # as in a mask
    load_into(module, state, "x.pt")
