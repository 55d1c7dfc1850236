from __future__ import annotations

import io
import logging
import pickle
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, DistributedSampler

from avloc.data.indexed import EvalSet, StridedSampler, derangement
from avloc.data.schema import Frame, Record, Sample, SampleError, Target
from avloc.data.shards import ShardError
from avloc.data.transforms import collate
from tests.data.make import SPEC, jpeg, number, png, sample, toy_set


def test_every_record_is_a_unit_with_its_own_picture_sound_and_truth(tmp_path: Path) -> None:
    data = EvalSet(toy_set(tmp_path, 17), SPEC, truth_size=8)
    assert len(data) == data.count == 17
    assert data.name == "toy"
    assert not data.shuffled
    items = [data[i] for i in (3, 0, 16)]
    for i, item in zip((3, 0, 16), items, strict=True):
        assert item.index == i
        assert item.key == data.key(i)
        np.testing.assert_allclose(item.audio, (number(item.key) + 1) / 1000, atol=1e-4)
        assert abs(item.image.mean() - number(item.key)) < 1.5
        assert item.truth is not None
        assert item.truth.sum() == 8
        assert item.truth[0, 2:4, 2:6].all()
    assert sorted(number(data.key(i)) for i in range(17)) == list(range(17))


def test_tags_select(tmp_path: Path) -> None:
    samples = [sample(i, tags=("heard", "x") if i % 2 else ("unheard",)) for i in range(10)]
    path = toy_set(tmp_path, 10, samples=samples)
    data = EvalSet(path, SPEC, tags=("x", "heard"))
    assert sorted(number(data.key(i)) for i in range(len(data))) == [1, 3, 5, 7, 9]
    with pytest.raises(ShardError, match="no record has the tags hrd"):
        EvalSet(path, SPEC, tags=("hrd",))


def video(i: int) -> Sample:
    """Three frames, of which the first and the last are annotated with masks of their own."""
    record = sample(i).record
    record.frames = [Frame(f"f{k}.jpg", annotated=k != 1) for k in range(3)]
    record.targets = [Target(class_name=f"c{i}", audio=0, masks=["m.f0.t0.png", "m.f2.t0.png"])]
    record.map_rule = "mask"
    masks = {f"m.f{k}.t0.png": png(np.full((4, 4), k == 2)) for k in (0, 2)}
    frames = {f"f{k}.jpg": jpeg(50 * i + 10 * k) for k in range(3)}
    return Sample(record, {**frames, **masks, "a0.flac": sample(i).members["a0.flac"]})


def test_every_annotated_frame_is_a_unit(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 0, samples=[video(i) for i in range(4)])
    data = EvalSet(path, SPEC, truth_size=4)
    assert data.count == 8
    keys = [data.key(i) for i in range(8)]
    assert sorted(keys) == [f"toy__s{i:04d}.f{k}" for i in range(4) for k in (0, 2)]
    for i, key in enumerate(keys):
        n, k = int(key[-4]), int(key[-1])
        item = data[i]
        assert abs(item.image.mean() - (50 * n + 10 * k)) < 1.5
        assert item.truth is not None
        assert item.truth.all() == (k == 2)
        assert item.truth.any() == (k == 2)
    assert all(keys[i][:-3] == keys[i + 1][:-3] for i in range(0, 8, 2))
    with pytest.raises(ShardError, match="2 scored frames, the method takes 2 at once"):
        EvalSet(path, replace(SPEC, frames=2))


def test_shuffled_sounds_come_from_another_record_and_class(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 24)
    data = EvalSet(path, SPEC, shuffle_sound=5)
    assert data.shuffled
    heard = {}
    for i in range(24):
        item = data[i]
        heard[number(item.key)] = round(float(item.audio.mean()) * 1000) - 1
    assert all(n % 3 != m % 3 for n, m in heard.items())
    assert sorted(heard.values()) == list(range(24))
    again = EvalSet(path, SPEC, shuffle_sound=5)
    assert again.partner == data.partner != EvalSet(path, SPEC, shuffle_sound=6).partner


@pytest.mark.parametrize("sizes", [(1, 1), (2,), (9,), (5, 1), (3, 3), (4, 3, 1), (2, 2, 2, 1), (50, 49, 1)])
def test_a_derangement_avoids_the_own_class_wherever_possible(sizes: tuple[int, ...]) -> None:
    labels = [f"c{k}" for k, n in enumerate(sizes) for _ in range(n)]
    records = [Record("toy", f"r{i}", targets=[Target(class_name=c)]) for i, c in enumerate(labels)]
    for seed in range(5):
        partner = derangement(records, seed)
        assert sorted(partner) == list(range(len(records)))
        assert all(i != p for i, p in enumerate(partner))
        if max(sizes) * 2 <= sum(sizes):
            assert all(labels[i] != labels[p] for i, p in enumerate(partner))
    with pytest.raises(ShardError, match="set of one record"):
        derangement(records[:1], 0)


def test_workers_read_the_same_and_files_stay_in_their_process(tmp_path: Path) -> None:
    data = EvalSet(toy_set(tmp_path, 9), SPEC)
    data[0]
    assert pickle.loads(pickle.dumps(data))[4].key == data.key(4)
    loader = DataLoader(data, 4, collate_fn=collate, num_workers=2, multiprocessing_context="forkserver")
    assert [k for b in loader for k in b.key] == [data.key(i) for i in range(9)]


def broken_set(tmp_path: Path) -> Path:
    samples = [sample(i) for i in range(9)]
    for i in (2, 6):
        samples[i].members["f0.jpg"] = samples[i].members["f0.jpg"][:100]
    return toy_set(tmp_path, 9, samples=samples)


def test_a_broken_sample_is_an_error_that_names_it(tmp_path: Path) -> None:
    data = EvalSet(broken_set(tmp_path), SPEC)
    with pytest.raises(SampleError, match=r"toy: toy__s000[26].f0.jpg cannot be decoded.*set allow_missing above 0"):
        list(data[i] for i in range(9))


@pytest.mark.parametrize("workers", [0, 2])
def test_allowed_missing_samples_become_blank_rows_that_are_told(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = EvalSet(broken_set(tmp_path), SPEC, allow_missing=2)
    with caplog.at_level(logging.WARNING):
        loader = DataLoader(
            data, 4, collate_fn=collate, num_workers=workers,
            multiprocessing_context="forkserver" if workers else None,
        )  # fmt: skip
        rows = [(number(k), i) for b in loader for k, i in zip(b.key, b.index.tolist(), strict=True)]
    assert len(rows) == 9
    assert {n for n, i in rows if i == -1} == {2, 6}
    assert sorted(data.missing) == ["toy__s0002", "toy__s0006"]
    assert workers or len(caplog.records) == 2


def test_no_more_samples_than_allowed_may_be_missing(tmp_path: Path) -> None:
    data = EvalSet(broken_set(tmp_path), SPEC, allow_missing=1)
    with pytest.raises(SampleError, match="set allow_missing above 1"):
        [data[i] for i in range(9)]


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 9)
    tar = path.parent / "toy-train-000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:5000])
    with pytest.raises(ShardError, match=r"toy-train-000000.tar has 5000 bytes, its index says"):
        EvalSet(path, SPEC)
    tar.unlink()
    with pytest.raises(ShardError, match=r"toy-train-000000.tar cannot be read"):
        EvalSet(path, SPEC)
    with pytest.raises(ShardError, match="needs local files"):
        EvalSet("pipe:cat x.json", SPEC)


def test_a_tar_that_points_outside_is_refused(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 2)
    tar_path = path.parent / "toy-train-000000.tar"
    with tarfile.open(tar_path, "w") as tar:
        info = tarfile.TarInfo("../evil.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    old = path.read_text()
    size = old.split('"bytes": ')[1].split(",")[0]
    path.write_text(old.replace(f'"bytes": {size}', f'"bytes": {tar_path.stat().st_size}'))
    with pytest.raises(ShardError, match="outside of the archive"):
        EvalSet(path, SPEC)


def test_processes_share_the_units_exactly() -> None:
    for n, world in [(7, 1), (7, 2), (7, 7), (250, 4)]:
        parts = [list(StridedSampler(r, n, world)) for r in range(world)]
        assert Counter(i for p in parts for i in p) == Counter(range(n))
        assert [len(p) for p in parts] == [len(StridedSampler(r, n, world)) for r in range(world)]
    assert isinstance(StridedSampler(0, 3, 2), DistributedSampler)
    with pytest.raises(ValueError, match=r"2 samples cannot be shared by 3 processes. Use at most 2"):
        StridedSampler(0, 2, 3)
