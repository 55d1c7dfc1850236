from __future__ import annotations

import errno
import hashlib
import json
import logging
import multiprocessing
import pickle
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avloc.data import stored as stored_module
from avloc.data.index import read_index
from avloc.data.indexed import EvalSet
from avloc.data.items import Item, collate
from avloc.data.schema import Sample, SampleError
from avloc.data.store import store_features
from avloc.data.stored import FeatureStore, Storable, StoreError, StoreWriter, made_by, open_features, stored_folder
from avloc.data.stream import ResumableLoader, TrainStream
from avloc.files import HOST
from avloc.types import AVBatch, InputSpec
from avloc.weights import WeightFile
from tests.data.make import SPEC, clip, number, robust, sample, toy_set

KEY = hashlib.sha256(b"one").hexdigest()
OTHER = hashlib.sha256(b"two").hexdigest()
PAGES = InputSpec(image_size=4, sample_rate=1000, seconds=0.5, resize="pad", interpolation="bilinear")


class Grey(nn.Module):
    """Stores each picture's mean grey, a map of it, and packed bits of it."""

    def __init__(self, gain: float = 1.0, spec: InputSpec = PAGES) -> None:
        super().__init__()
        self.gain, self.input_spec = gain, spec
        self.drop = nn.Dropout()
        self.seen: list[list[str]] = []
        self.frozen_files = {"eye": WeightFile("file:eye.pt", None, f"{gain:g}" * 64)}

    def cache_key(self) -> str:
        return hashlib.sha256(str(self.gain).encode()).hexdigest()

    def frozen(self, batch: AVBatch) -> Mapping[str, Tensor]:
        assert not self.training
        assert not self.drop.training
        assert not batch.audio.any()
        self.seen.append(batch.key)
        grey = self.gain * batch.image.float().mean((1, 2, 3))
        bits = np.unpackbits(batch.image[:, 0, 0, 0].numpy()[:, None], axis=1)
        return {
            "grey": grey,
            "map": grey[:, None, None].expand(-1, 2, 3),
            "bits": torch.from_numpy(np.packbits(bits, axis=1)),
            "count": torch.tensor(bits.sum(1).astype(np.int32)),
        }


def clips(folder: Path, n: int = 6, per_shard: int = 2) -> Path:
    """Records with three annotated frames of four."""
    return toy_set(folder, 0, per_shard, samples=[clip(i, 4) for i in range(n)])


def names(n: int = 6) -> list[str]:
    return [f"toy__s{i:04d}.f{k}" for i in range(n) for k in (0, 2, 3)]


def check_rows(store: FeatureStore, keys: list[str]) -> None:
    got = store.read(keys)
    greys = [40 * int(k.partition("@")[0][-1]) + 10 for k in keys]
    assert {k: v.dtype for k, v in got.items()} == {
        "grey": torch.float16, "map": torch.float16, "bits": torch.uint8, "count": torch.int32
    }  # fmt: skip
    assert got["grey"].tolist() == greys
    assert got["map"].shape == (len(keys), 2, 3)
    assert got["map"][:, 1, 2].tolist() == greys
    assert got["bits"].flatten().tolist() == greys
    assert got["count"].tolist() == [bin(g).count("1") for g in greys]


def test_every_scored_frame_is_stored_once_and_found_by_its_key(tmp_path: Path) -> None:
    path, method = clips(tmp_path), Grey()
    calls: list[tuple[int, int]] = []
    report = store_features(method, path, batch_size=4, progress=lambda done, total: calls.append((done, total)))
    assert (report.units, report.kept, report.skipped) == (18, 0, [])
    assert sorted(k for keys in method.seen for k in keys) == names()
    assert [len(k) for k in method.seen] == [4, 2] * 3  # batches end with their shard
    assert method.training
    assert method.drop.training
    assert sum(done for done, _ in calls) == 18
    assert {total for _, total in calls} == {18}
    assert report.folder == path.parent / "stored" / f"toy-train-grey-{method.cache_key()[:16]}"
    assert report.bytes == sum(f.stat().st_size for f in report.folder.iterdir())
    store = open_features(method, read_index(path))
    assert len(store) == 18
    check_rows(store, names())
    check_rows(store, ["toy__s0003.f2@noise", "toy__s0000.f0", "toy__s0003.f2"])


def test_files_are_plain_numpy_and_json(tmp_path: Path) -> None:
    path, method = clips(tmp_path), Grey()
    folder = store_features(method, path).folder
    about = json.loads((folder / "store.json").read_text())
    assert (about["format"], about["key"]) == (1, method.cache_key())
    assert about["made_by"] == made_by(method)
    assert about["made_by"]["eye weights"] == "file:eye.pt (sha256 111111111111)"
    for n, shard in enumerate(read_index(path).shards):
        part = json.loads((folder / f"{n:06d}.json").read_text())
        assert part["source"] == shard.sha256
        rows = np.load(folder / f"{n:06d}.map.npy")
        assert rows.dtype == np.float16
        assert rows.shape == (6, 2, 3)
        assert rows[:, 0, 0].tolist() == [40 * int(k[-1]) + 10 for k in part["keys"]]


def test_sets_of_single_frames_and_with_conditions_are_stored_by_record(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 0, 2, samples=[robust(i) for i in range(5)])
    report = store_features(Grey(), path)
    assert report.units == 5
    index = read_index(path)
    data = EvalSet(path, PAGES, store=open_features(Grey(), index))
    assert data.count == 20
    for i in range(20):
        assert round(float(data[i].stored["grey"])) == pytest.approx(
            number(data.key(i).partition("@")[0]) * 5 / 6, abs=1.5
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_training_finds_the_features_of_what_it_sees(tmp_path: Path, workers: int) -> None:
    path = clips(tmp_path)
    index = read_index(path)
    store_features(Grey(), path)
    store = open_features(Grey(), index)
    options: dict[str, Any] = dict(num_workers=workers, multiprocessing_context="forkserver") if workers else {}
    for frames, spec in (("random", PAGES), ("all", replace(PAGES, picture=False))):
        stream = TrainStream(index, spec, 3, workers=workers, truth_size=4, frames=frames, store=store)  # type: ignore[arg-type]
        batches = list(ResumableLoader(stream, **options))
        assert len(batches) == (2 if frames == "random" else 6)
        for batch in batches:
            frame = [int(k[-1]) for k in batch.key]
            assert batch.truth is not None
            assert batch.size is not None
            assert batch.stored["grey"].tolist() == [40 * f + 10 for f in frame]
            assert batch.truth.sum((1, 2, 3)).tolist() == [4 * f for f in frame]
            assert batch.size.tolist() == [[4, 4]] * 3
            assert batch.image.shape[2:] == ((4, 4) if frames == "random" else (0, 0))
            if frames == "random":
                assert batch.image[:, 0, 0, 0].tolist() == [40 * f + 10 for f in frame]


def test_evaluation_finds_them_in_workers_too_and_always_shows_pictures(tmp_path: Path) -> None:
    path = clips(tmp_path)
    store_features(Grey(), path)
    data = EvalSet(path, replace(PAGES, picture=False), store=open_features(Grey(), read_index(path)))
    data[0]
    pickle.loads(pickle.dumps(data))
    loader = DataLoader(data, 4, collate_fn=collate, num_workers=2, multiprocessing_context="forkserver")
    for batch in loader:
        assert torch.equal(batch.stored["grey"], batch.image[:, 0, 0, 0].half())


def test_an_interrupted_run_keeps_whole_parts_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, first, second = clips(tmp_path), Grey(), Grey()

    def frozen(batch: AVBatch) -> Mapping[str, Tensor]:
        if len(first.seen) == 3:  # in the middle of the second of three shards
            raise KeyboardInterrupt
        return Grey.frozen(first, batch)

    monkeypatch.setattr(first, "frozen", frozen)
    with pytest.raises(KeyboardInterrupt):
        store_features(first, path, batch_size=4)
    folder = stored_folder(path, "grey").with_name(f"toy-train-grey-{first.cache_key()[:16]}")
    assert sorted(f.name for f in folder.glob("*.json")) == ["000000.json", "store.json"]
    assert not list(folder.glob(".tmp*"))
    assert not list(folder.glob("000001*"))
    with pytest.raises(StoreError, match=r"is incomplete: 2 of 3 parts are missing .*000001.json.*goes on from there"):
        open_features(first, read_index(path))
    assert not first.seen[3:]
    (folder / f".tmp-{1:06d}.grey.npy-{HOST}-{2**22 + 1}-0123abcd").write_bytes(b"half, of a writer that was killed")
    (folder / "000001.grey.npy").write_bytes(b"whole, of one that was killed before its JSON")
    report = store_features(second, path, batch_size=4)
    assert (report.units, report.kept) == (12, 6)
    assert sum(map(len, second.seen)) == 12
    assert not list(folder.glob(".tmp*"))
    check_rows(open_features(second, read_index(path)), names())
    assert store_features(Grey(), path).units == 0


def test_several_processes_share_the_shards(tmp_path: Path) -> None:
    path = clips(tmp_path)
    reports = [store_features(Grey(), path, num_parts=2, part=p, workers=p) for p in (1, 0)]
    assert [r.units for r in reports] == [6, 12]
    check_rows(open_features(Grey(), read_index(path)), names())
    straight = clips(tmp_path / "b")
    folder = store_features(Grey(), straight).folder
    for file in folder.glob("0*.[jn]*"):
        assert file.read_bytes() == (reports[0].folder / file.name).read_bytes()


def store_slowly(path: Path, begun: Any, splits: int) -> None:
    class Slow(Grey):
        def frozen(self, batch: AVBatch) -> Mapping[str, Tensor]:
            begun.set()
            time.sleep(0.1)
            return super().frozen(batch)

    store_features(Slow(), path, "grey", batch_size=4, num_parts=splits)


@pytest.mark.parametrize("splits", [1, 2])
def test_two_at_once_delete_nothing_of_each_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, splits: int
) -> None:
    path, fork = clips(tmp_path), multiprocessing.get_context("fork")
    begun = fork.Event()
    other = fork.Process(target=store_slowly, args=(path, begun, splits))
    other.start()
    assert begun.wait(20)
    report = store_features(Grey(), path, batch_size=4)
    other.join(20)
    assert other.exitcode == 0
    assert ("is being written by another process: waiting" in caplog.text) == (splits == 1)
    assert report.units == (0 if splits == 1 else 18)
    check_rows(open_features(Grey(), read_index(path)), names())
    assert not list(report.folder.glob(".tmp*"))


def test_other_weights_are_stale_and_named(tmp_path: Path) -> None:
    path = clips(tmp_path)
    index = read_index(path)
    with pytest.raises(StoreError, match=r"no stored features at .*toy-train-grey-[0-9a-f]{16}\. Run `avloc store"):
        open_features(Grey(), index)
    store_features(Grey(1.0), path)
    wanted = r"are stale: eye weights was file:eye.pt \(sha256 1{12}\), is file:eye.pt \(sha256 2{12}\) \(cache key"
    with pytest.raises(StoreError, match=wanted):
        open_features(Grey(2.0), index)
    with pytest.raises(StoreError, match=r"stale: eye weights.*; image_size was 4, is 16; resize was pad, is squash"):
        open_features(Grey(2.0, SPEC), index)
    with pytest.raises(StoreError, match="stale: weights or preprocessing changed"):
        FeatureStore.open(stored_folder(path, "grey"), KEY)
    store_features(Grey(2.0), path)  # both may lie side by side
    for gain in (1.0, 2.0):
        assert open_features(Grey(gain), index).read(["toy__s0001.f2"])["grey"].item() == 90 * gain


def test_a_key_that_only_begins_alike_is_another_one(tmp_path: Path) -> None:
    folder, twin = tmp_path / "toy-train-x", KEY[:16] + OTHER[16:]
    FeatureStore.write(folder, KEY, {})
    with pytest.raises(StoreError, match=f"are stale: .*cache key {KEY[:12]}"):
        FeatureStore.open(folder, twin)
    with pytest.raises(StoreError, match="belongs to"):
        FeatureStore.write(folder, twin, {})
    with pytest.raises(StoreError, match="16 hexadecimal digits"):
        FeatureStore.open(folder, "abc")


def test_a_set_that_was_written_again_needs_new_features(tmp_path: Path) -> None:
    path = clips(tmp_path)
    store_features(Grey(), path)
    shutil.rmtree(path.parent / ".parts")
    for tar in path.parent.glob("*.tar"):
        tar.unlink()
    changed = [clip(i, 4) for i in range(6)]
    changed[4].record.text = {"image": "now with a caption"}
    toy_set(tmp_path, 0, 2, samples=changed)
    with pytest.raises(StoreError, match="belongs to an earlier version of its shard"):
        open_features(Grey(), read_index(path))
    report = store_features(Grey(), path)
    assert (report.units, report.kept) == (6, 12)  # of the shard that changed
    check_rows(open_features(Grey(), read_index(path)), names())


def test_a_unit_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = clips(tmp_path)
    store_features(Grey(), path)
    store = open_features(Grey(), read_index(path))
    with pytest.raises(
        StoreError, match=r"holds no features of toy__s0001.f1\. .*other frames of it are annotated now"
    ):
        store.read(["toy__s0001.f0", "toy__s0001.f1"])
    bigger = clips(tmp_path / "b", 8)
    with pytest.raises(StoreError, match="holds no features of"):
        list(TrainStream(read_index(bigger), PAGES, 2, truth_size=4, store=store))


def damaged(path: Path, part: str, change: Any) -> None:
    file = next(path.parent.glob(f"stored/*/{part}"))
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("000001.map.npy", lambda b: b[:-5], r"000001.map.npy has \d+ bytes of \d+\. Delete .*000001.json"),
        ("000001.json", lambda b: b[: len(b) // 2], r"000001.json cannot be read .*Delete it"),
        ("store.json", lambda b: b.replace(b'"format": 1', b'"format": 7'), "format 7 is unknown"),
        ("000001.json", lambda b: b.replace(b'"float16"', b'"int16"'), "other parts"),
        ("000001.json", lambda b: b.replace(b'"float16"', b'"float32"'), r"grey\.dtype: string should match"),
        ("000002.json", lambda b: b'["no object"]', "cannot be read"),
    ],
)
def test_damage_is_named(tmp_path: Path, part: str, change: Any, says: str) -> None:
    path = clips(tmp_path)
    store_features(Grey(), path)
    damaged(path, part, change)
    with pytest.raises(StoreError, match=says):
        open_features(Grey(), read_index(path))


def test_an_array_that_is_gone_is_named_and_a_unit_in_two_parts_too(tmp_path: Path) -> None:
    path = clips(tmp_path)
    folder = store_features(Grey(), path).folder
    kept = (folder / "000001.json").read_text()
    sources = [json.loads((folder / f"00000{n}.json").read_text())["source"] for n in (0, 1)]
    (folder / "000001.json").write_text((folder / "000000.json").read_text().replace(sources[0], sources[1]))
    with pytest.raises(StoreError, match=r"features of toy__s000\d.f0 are there twice"):
        open_features(Grey(), read_index(path))
    (folder / "000001.json").write_text(kept)
    (folder / "000001.bits.npy").unlink()
    with pytest.raises(StoreError, match=r"000001.bits.npy has 0 bytes of"):
        open_features(Grey(), read_index(path))


def broken(i: int) -> Sample:
    x = clip(i, 4)
    x.members["f2.png"] = b"no picture"
    return x


def test_broken_pictures_are_skipped_named_and_stay_broken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = toy_set(tmp_path, 0, 2, samples=[broken(i) if i == 3 else clip(i, 4) for i in range(6)])
    with caplog.at_level(logging.WARNING):
        report = store_features(Grey(), path)
    assert (report.units, report.skipped) == (17, ["toy__s0003.f2"])
    assert "toy__s0003.f2.png cannot be decoded" in caplog.text
    index = read_index(path)
    store = open_features(Grey(), index)
    with pytest.raises(SampleError, match=r"toy__s0003.f2 has no stored features, because its picture was broken"):
        store.read(["toy__s0003.f2"])
    spec = replace(PAGES, picture=False)  # training that does not look sees it all the same
    stream = TrainStream(index, spec, 18, truth_size=4, frames="all", store=store)
    (batch,) = stream
    assert "toy__s0003.f2" not in batch.key
    assert len(batch.key) == 18
    assert stream.broken >= 1
    data = EvalSet(path, PAGES, allow_missing=1, store=store)
    rows = collate([data[i] for i in range(18)])
    blank = rows.index.tolist().index(-1)
    assert rows.key[blank] == "toy__s0003.f2"
    assert rows.stored["map"][blank].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_shard_of_broken_pictures_has_no_rows(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(2)]
    for x in samples:
        x.members["f0.jpg"] = b"no picture"
    path = toy_set(tmp_path, 0, 1, samples=[*samples, sample(2)])
    assert store_features(Grey(), path).units == 1
    store = open_features(Grey(), read_index(path))
    assert len(store) == 1
    assert store.skipped == {"toy__s0000", "toy__s0001"}


def writer(tmp_path: Path) -> StoreWriter:
    return FeatureStore.write(tmp_path / "toy-train-x", KEY, {"method": "x"})


def add(target: StoreWriter, keys: list[str], features: dict[str, Tensor]) -> None:
    with target.part(0) as part:
        part.add(["k"], {"x": torch.ones(1, 3)})
        part.add(keys, features)


def test_rows_that_do_not_fit_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    ones = torch.ones(2, 3)
    bad: list[tuple[list[str], dict[str, Tensor], str]] = [
        (["a", "b"], {"x": ones[:1]}, r"shape \[1, 3\] for 2 units \(a, ...\)"),
        (["a", "b"], {"x": torch.tensor(1.0)}, r"shape \[\] for 2 units"),
        (["a", "a"], {"x": ones}, "features of a are added twice"),
        (["k", "b"], {"x": ones}, "features of k are added twice"),
        (["a", "b"], {"x": torch.tensor([[1.0] * 3, [1, 7e4, 1]])}, "'x' of b are not finite, or beyond float16"),
        (["a", "b"], {"x": torch.tensor([[1.0, torch.nan, 1]] * 2)}, "'x' of a are not finite"),
        (["a", "b"], {"x": torch.ones(2, 4)}, "rows before it have"),
        (["a", "b"], {"x": torch.ones(2, 3, dtype=torch.int64)}, "rows before it have"),
        (["a", "b"], {"x": ones, "y": ones}, "rows before it have"),
        (["a", "b"], {}, "rows before it have"),
        (["a", "b"], {"../x": ones}, "cannot be called '../x'"),
        (["a", "b"], {"x": ones > 0}, "pack bits into uint8"),
    ]
    target = writer(tmp_path)
    for keys, features, says in bad:
        with pytest.raises(StoreError, match=says):
            add(target, keys, features)
        assert [f.name for f in target.folder.iterdir()] == ["store.json"]
    with pytest.raises(StoreError, match="cannot be called 'X'"):
        stored_folder(tmp_path / "toy-train.json", "X")
    with pytest.raises(StoreError, match="beside local shards"):
        stored_folder("pipe:cat x.json", "x")


def test_a_part_appears_with_its_json_and_may_be_written_again(tmp_path: Path) -> None:
    target = writer(tmp_path)
    with target.part(0, "a") as part:
        part.add(["k"], {"x": torch.tensor([[1.0, 2.0]])})
        part.add(["l", "m"], {"x": torch.tensor([[3.0, 4.0], [5.0, 6.0]])})
        assert not (target.folder / "000000.x.npy").exists()
        assert not target.finished(0, "a")
    assert target.finished(0, "a")
    assert not target.finished(0, "b")
    assert np.load(target.folder / "000000.x.npy").tolist() == [[1, 2], [3, 4], [5, 6]]
    with target.part(0, "b") as part:
        part.add(["k"], {"x": torch.tensor([[7.0, 8.0]])})
    assert FeatureStore.open(tmp_path / "toy-train-x", KEY, sources=["b"]).read(["k"])["x"].tolist() == [[7, 8]]


def test_a_full_disk_is_told_before_and_while_it_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clips(tmp_path)
    usage = shutil._ntuple_diskusage(0, 0, 18 * 19 - 1)  # 2 + 12 + 1 + 4 bytes a unit
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match=r"18 units of 0.0 KB need 0.0 GB, only"):
        store_features(Grey(), path)
    usage = usage._replace(free=18 * 19)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stored_module, "write_json", full)
        target = Grey()
        with pytest.raises(StoreError, match=r"No space left in .*finished parts stay"):
            store_features(target, path)
    assert store_features(Grey(), path).units == 18


def test_most_parts_stay_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clips(tmp_path, per_shard=1)
    store_features(Grey(), path)
    monkeypatch.setattr(stored_module, "MOST_OPEN", 5)
    store = open_features(Grey(), read_index(path))
    rows = [store.row(k) for k in names()]
    assert len(store._open) == 5
    assert [float(r["grey"]) for r in rows] == [40 * int(k[-1]) + 10 for k in names()]


def test_a_bare_tensor_is_called_frozen(tmp_path: Path) -> None:
    class Bare:
        input_spec = PAGES

        def cache_key(self) -> str:
            return KEY

        def frozen(self, batch: AVBatch) -> Tensor:
            return batch.image[:, :1, 0, 0].float()

    method: Storable = Bare()
    path = toy_set(tmp_path, 3)
    assert store_features(method, path, "eyes").folder.name == f"toy-train-eyes-{KEY[:16]}"
    got = open_features(method, read_index(path), "eyes").read(["toy__s0002"])
    assert got["frozen"].shape == (1, 1)


def test_rows_of_varying_length_come_back_with_zeros_up_to_the_longest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {f"k{i}": rng.integers(1, 255, n).astype(np.uint8) for i, n in enumerate([3, 0, 7, 1, 5])}
    target = writer(tmp_path)
    for n, keys in enumerate((["k0", "k1", "k2"], ["k3", "k4"])):
        with target.part(n) as part:
            for k in keys:
                number = torch.tensor([int(k[1])])
                part.add([k], {"masks": [torch.from_numpy(rows[k])], "n": number, "x": [number.float() / 2]})
    store = FeatureStore.open(tmp_path / "toy-train-x", KEY)
    assert store.arrays == {"masks": ("uint8", None), "n": ("int64", ()), "x": ("float16", None)}
    for k, row in rows.items():
        np.testing.assert_array_equal(store.row(k)["masks"], row)
        assert store.row(k)["x"].tolist() == [int(k[1]) / 2]
    got = store.read(["k4", "k1", "k0"])
    assert got["masks"].shape == (3, 5)
    for line, k in zip(got["masks"], ["k4", "k1", "k0"], strict=True):
        assert line.tolist() == [*rows[k].tolist(), *[0] * (5 - len(rows[k]))]
    assert store.blank()["masks"].shape == (0,)
    items = [Item(k, np.zeros((3, 1, 1), np.uint8), np.zeros(1, np.float32), stored=store.row(k)) for k in rows]
    items.append(Item("missing", items[0].image, items[0].audio, stored=store.blank()))
    batch = collate(items)
    assert batch.stored["masks"].shape == (6, 7)
    assert batch.stored["masks"].sum(1).tolist() == [*(int(r.sum()) for r in rows.values()), 0]
    assert batch.stored["n"].tolist() == [0, 1, 2, 3, 4, 0]
    bad: list[tuple[list[Tensor], str]] = [
        ([torch.ones(2)], "a list of 1 for 2 units"),
        ([torch.ones(2), torch.ones(2, 2)], "with one axis for each"),
        ([torch.ones(2), torch.ones(2, dtype=torch.uint8)], "all of one type"),
        ([torch.ones(2), torch.tensor([torch.inf])], "'x' of b are not finite"),
    ]
    for value, says in bad:
        with pytest.raises(StoreError, match=says):
            target.part(3).add(["a", "b"], {"x": value})
