"""Maps by key: what `avloc predict` wrote comes back digit for digit, and what is wrong is told in a sentence."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from avloc.evaluation.evaluator import Evaluator
from avloc.methods.baselines.stored_maps import MapsError, StoredMaps
from avloc.types import AVBatch
from tests.evaluation.test_evaluator import ToyData, ToySet, trainer


def batch(*keys: str) -> AVBatch:
    B = len(keys)
    return AVBatch(list(keys), torch.zeros(B, 3, 8, 8, dtype=torch.uint8), torch.zeros(B, 10), torch.arange(B))


def maps(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float16)


def test_each_format_is_read(tmp_path: Path) -> None:
    a, b, c = maps(1, 4, 5), maps(4, 5, seed=1), np.arange(20, dtype=np.uint8).reshape(4, 5) * 10
    deep = tmp_path / "deeper"
    deep.mkdir()
    np.savez_compressed(tmp_path / "a.b-1.npz", heatmap=a, confidence=np.float32([0.3]))
    np.save(deep / "b.npy", b)
    Image.fromarray(c).save(tmp_path / "c.png")
    Image.fromarray(c.astype(np.uint16) * 257).save(tmp_path / "d.png")
    answer = StoredMaps(str(tmp_path)).localize(batch("c", "a.b-1", "b", "d"))
    np.testing.assert_array_equal(answer.heatmap[1], a.astype(np.float32))
    np.testing.assert_array_equal(answer.heatmap[2, 0], b.astype(np.float32))
    for i in (0, 3):
        np.testing.assert_allclose(answer.heatmap[i, 0], c / 255, rtol=1e-6)
    wanted = [c.max() / 255, 0.3, b.max(), c.max() / 255]
    np.testing.assert_allclose(answer.confidence[:, 0], wanted, rtol=1e-6)


def test_scores_of_any_range_are_brought_to_fractions_where_that_is_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.float32([[-3, 1], [5, 1]]))
    with pytest.raises(MapsError, match="reach from -3 to 5, but heat maps lie in 0 to 1"):
        StoredMaps(str(tmp_path)).localize(batch("a"))
    answer = StoredMaps(str(tmp_path), scaling="minmax").localize(batch("a"))
    assert answer.heatmap.flatten().tolist() == [0, 0.5, 1, 0.5]


def broken(folder: Path, what: str) -> None:
    good = maps(1, 4, 4)
    np.savez(folder / "a.npz", heatmap=good)
    if what == "size":
        np.savez(folder / "b.npz", heatmap=maps(1, 4, 5))
    elif what == "sources":
        np.savez(folder / "b.npz", heatmap=maps(2, 4, 4))
    elif what == "nan":
        good[0, 1, 1] = np.nan
        np.savez(folder / "b.npz", heatmap=good)
    elif what == "confidence":
        np.savez(folder / "b.npz", heatmap=good, confidence=np.float32([np.inf]))
    elif what == "two":
        np.savez(folder / "b.npz", heatmap=good, confidence=np.float32([0.1, 0.2]))
    elif what == "name":
        np.savez(folder / "b.npz", map=good)
    elif what == "torn":
        (folder / "b.npz").write_bytes((folder / "a.npz").read_bytes()[:40])
    elif what == "code":
        np.save(folder / "b.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif what == "colour":
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "b.png")
    elif what == "words":
        np.save(folder / "b.npy", np.array([["x"]]))


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("missing", r"has no map for b\. A map is called KEY\.npz"),
        ("size", r"b\.npz: a map of 4 x 5 among maps of 4 x 4\. Make them alike, or set heatmap_size"),
        ("sources", r"different numbers of maps \(a 1, b 2\)"),
        ("nan", r"b\.npz: 1 values are not finite"),
        ("confidence", r"b\.npz: 1 values are not finite"),
        ("two", r"b\.npz: 1 maps, but confidences of shape \[2\]"),
        ("name", r"b\.npz has no entry 'heatmap'"),
        ("torn", r"b\.npz cannot be read as a map"),
        ("code", r"b\.npy cannot be read as a map"),
        ("colour", r"A picture must be grey"),
        ("words", r"values of type <U1, not numbers"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, what: str, told: str) -> None:
    broken(tmp_path, what)
    with pytest.raises(MapsError, match=told):
        StoredMaps(str(tmp_path)).localize(batch("a", "b"))


def test_other_sizes_are_brought_to_one_where_that_is_asked_for(tmp_path: Path) -> None:
    broken(tmp_path, "size")
    answer = StoredMaps(str(tmp_path), heatmap_size=8)
    assert [tuple(answer.localize(batch(key)).heatmap.shape) for key in "ab"] == [(1, 1, 8, 8)] * 2


def test_a_folder_is_checked_when_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(MapsError, match="There is no folder"):
        StoredMaps(str(tmp_path / "x"))
    (tmp_path / "read.me").touch()
    with pytest.raises(MapsError, match="holds no map"):
        StoredMaps(str(tmp_path))
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "a.npy", maps(4, 4))
    np.save(tmp_path / "other" / "a.npy", maps(4, 4))
    with pytest.raises(MapsError, match=r"two maps or more for a: a is a\.npy and other/a\.npy\. Keep one"):
        StoredMaps(str(tmp_path))


def test_it_is_scored_like_a_method_and_tells_what_nobody_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = ToySet("vggss", 6)
    for i in range(6):
        truth = data.collate([i]).truth
        assert truth is not None
        np.savez(tmp_path / f"k{i}.npz", heatmap=truth[0].numpy(), confidence=np.float32([0.5]))
    np.save(tmp_path / "nobody.npy", np.zeros((8, 8), np.float32))
    evaluator = Evaluator(controls=False)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path / "run", evaluator).test(StoredMaps(str(tmp_path)), ToyData(data), verbose=False)
    assert "holds 1 maps that no tested sample asked for (nobody)" in caplog.text
    found = evaluator.results["sets"]["vggss"]["rows"]["model"]
    assert any(value == 1 for numbers in found.values() for value in numbers.values())  # a perfect cIoU


@pytest.mark.parametrize("entry", ["heatmap", "confidence"])
def test_an_entry_that_is_no_array_is_told(tmp_path: Path, entry: str) -> None:
    with ZipFile(tmp_path / "k.npz", "w") as content:
        for name in ("heatmap", "confidence"):
            data = io.BytesIO()
            np.save(data, np.zeros((1, 3, 3) if name == "heatmap" else 1, np.float32))
            content.writestr(f"{name}.npy", b"x" + data.getvalue()[1:] if name == entry else data.getvalue())
    with pytest.raises(MapsError, match=r"k\.npz cannot be read as a map \(an entry is no array\)"):
        StoredMaps(str(tmp_path)).read("k")
