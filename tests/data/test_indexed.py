from __future__ import annotations

import io
import json
import logging
import pickle
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler

from avloc.data import indexed
from avloc.data.index import ShardError
from avloc.data.indexed import EvalSet, WholeBatches, derangement
from avloc.data.items import collate
from avloc.data.schema import Audio, Frame, Record, Sample, SampleError, Target
from tests.data.make import SPEC, clip, duet, jpeg, number, painted, png, robust, sample, sound, toy_set


def test_every_record_is_a_unit_with_its_own_picture_sound_and_truth(tmp_path: Path) -> None:
    data = EvalSet(toy_set(tmp_path, 17), SPEC, truth_size=8)
    assert len(data) == data.count == 17
    assert data.name == "toy"
    assert data.row == "model"
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
    data = EvalSet(path, SPEC, sound="shuffled", seed=5)
    assert data.row == "shuffled sound"
    heard = {}
    for i in range(24):
        item = data[i]
        heard[number(item.key)] = round(float(item.audio.mean()) * 1000) - 1
    assert all(n % 3 != m % 3 for n, m in heard.items())
    assert sorted(heard.values()) == list(range(24))
    again = EvalSet(path, SPEC, sound="shuffled", seed=5)
    assert again.partner == data.partner != EvalSet(path, SPEC, sound="shuffled", seed=6).partner


def test_another_context_is_the_picture_of_another_record_and_class(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 24)
    own, data = EvalSet(path, SPEC), EvalSet(path, SPEC, context="shuffled", seed=5)
    assert (own.row, data.row) == ("model", "another context")
    pictures = {number(own[i].key): own[i].image for i in range(24)}
    shown = {}
    for i in range(24):
        item = data[i]
        np.testing.assert_array_equal(item.image, own[i].image)
        np.testing.assert_array_equal(item.audio, own[i].audio)
        (shown[number(item.key)],) = (n for n, x in pictures.items() if np.array_equal(x, item.context))
    assert all(n % 3 != m % 3 for n, m in shown.items())
    assert sorted(shown.values()) == list(range(24))
    batch = collate([data[i] for i in range(4)])
    assert batch.context is not None
    assert batch.context.shape == batch.image.shape
    assert batch.take([2]).context.shape[0] == 1
    assert collate([own[0]]).context is None
    with pytest.raises(ShardError, match="two controls"):
        EvalSet(path, SPEC, sound="silence", context="shuffled")


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
    for n, world, size in [(7, 1, 3), (7, 2, 3), (7, 7, 3), (250, 4, 16), (33, 2, 16), (5, 3, 16)]:
        parts = [WholeBatches(r, n, world, size) for r in range(world)]
        assert Counter(i for p in parts for i in p) == Counter(range(n))
        assert all(len(p) == len(list(p)) > 0 for p in parts)
    assert isinstance(WholeBatches(0, 3, 2, 1), DistributedSampler)
    with pytest.raises(ValueError, match=r"2 samples cannot be shared by 3 processes. Use at most 2"):
        WholeBatches(0, 2, 3, 1)


@pytest.mark.parametrize("n", [48, 49, 63, 64])
def test_the_same_units_share_a_batch_whatever_the_number_of_processes(n: int) -> None:
    def batches(world: int) -> list[list[int]]:
        """Cut as a DataLoader cuts them, who knows nothing of batches."""
        met = []
        for rank in range(world):
            share = WholeBatches(rank, n, world, 16)
            met += [b.tolist() for b in DataLoader(range(n), batch_size=share.size, sampler=share)]  # type: ignore[arg-type]
        return sorted(met)

    assert batches(1) == batches(2) == batches(3) == [[*range(s, min(s + 16, n))] for s in range(0, n, 16)]


def test_a_record_is_scored_under_each_of_its_conditions(tmp_path: Path) -> None:
    data = EvalSet(toy_set(tmp_path, 0, samples=[robust(i) for i in range(3)]), SPEC, truth_size=4)
    assert data.count == 12
    items = [data[i] for i in range(12)]
    wanted = {f"toy__s{i:04d}{end}" for i in range(3) for end in ("", "@noise", "@silence", "@offscreen")}
    assert {i.key for i in items} == wanted
    level = {"noise": 0.25, "silence": 0, "offscreen": 0.5}
    for item in items:
        name, _, kind = item.key.partition("@")
        np.testing.assert_allclose(item.audio, level.get(kind, (number(name) + 1) / 1000), atol=1e-4)
        assert (item.negative, item.sounding) == (kind, not kind)
        assert item.truth is not None
        assert item.truth.sum() == 2


def test_conditions_and_frames_multiply(tmp_path: Path) -> None:
    x = video(0)
    x.record.audios.append(Audio(None, "negative", kind="silence"))
    data = EvalSet(toy_set(tmp_path, 0, samples=[x]), SPEC, truth_size=4)
    keys = [data.key(i) for i in range(data.count)]
    assert keys == ["toy__s0000.f0", "toy__s0000.f2", "toy__s0000.f0@silence", "toy__s0000.f2@silence"]
    assert [bool(data[i].truth.any()) for i in range(4)] == [False, True, False, True]  # type: ignore[union-attr]


def test_silence_and_noise_replace_every_sound(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 0, samples=[robust(i) for i in range(2)])
    spec = replace(SPEC, seconds=20.0)
    silent = EvalSet(path, spec, sound="silence")
    assert silent.row == "silenced"
    assert not any(silent[i].audio.any() for i in range(8))
    noisy = [EvalSet(path, spec, sound="noise", seed=s) for s in (0, 0, 1)]
    assert noisy[0].row == "noise"
    waves = [noisy[0][i].audio for i in range(8)]
    for i, wave in enumerate(waves):
        assert wave.dtype == np.float32
        assert wave.shape == (20000,)
        assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.1, rel=0.03)
        assert abs(wave.mean()) < 0.003
        assert np.abs(wave).max() <= 1
        np.testing.assert_array_equal(wave, noisy[1][i].audio)
        assert not np.array_equal(wave, noisy[2][i].audio)
    assert len({w.tobytes() for w in waves}) == 8


def test_a_key_that_occurs_twice_is_named(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 14)
    tars = [path.parent / f"toy-train-00000{k}.tar" for k in (0, 1)]
    tars[1].write_bytes(tars[0].read_bytes())
    content = json.loads(path.read_text())
    content["shards"][1] = content["shards"][0] | {"file": tars[1].name}
    path.write_text(json.dumps(content))
    with pytest.raises(ShardError, match=r"toy: key toy__s00\d\d occurs twice, in .*000000.tar and .*000001.tar"):
        EvalSet(path, SPEC)


def test_one_shard_with_two_records_of_one_key_is_named(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 2)
    tar_path = path.parent / "toy-train-000000.tar"
    meta = sample(0).record.to_json().encode()
    with tarfile.open(tar_path, "w") as tar:
        for key in ("toy__s0000", "toy__other"):
            info = tarfile.TarInfo(f"{key}.meta.json")
            info.size = len(meta)
            tar.addfile(info, io.BytesIO(meta))
    content = json.loads(path.read_text())
    content["shards"][0]["bytes"] = tar_path.stat().st_size
    path.write_text(json.dumps(content))
    with pytest.raises(ShardError, match=r"toy: key toy__s0000 occurs twice"):
        EvalSet(path, SPEC)


def test_a_set_without_any_sample_is_named(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 2)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"count": 0, "shards": []}))
    with pytest.raises(ShardError, match=r"toy: .*toy-train.json lists no record at all. Run data_prep again"):
        EvalSet(path, SPEC)
    with pytest.raises(ShardError, match=r"lists no record at all"):
        EvalSet(path, SPEC, tags=("heard",))


def test_a_group_with_a_missing_member_still_tells_its_size(tmp_path: Path) -> None:
    samples = [sample(i, group=f"g{i // 2}") for i in range(5)]  # the partner of the last is missing
    for x in samples:
        x.record.group_size = 2
    data = EvalSet(toy_set(tmp_path, 0, samples=samples), SPEC)
    batch = collate([data[i] for i in range(5)])
    assert batch.group_size == [2] * 5
    assert Counter(batch.group) == {"g0": 2, "g1": 2, "g2": 1}


def test_the_mean_of_the_maps_is_shared_exactly(tmp_path: Path) -> None:
    samples = [robust(i) for i in range(5)]
    for i, x in enumerate(samples):
        x.record.targets = [Target(0, boxes=[[0, 0, (i + 1) / 5, 1]]), Target(1, boxes=[[0, 0, 0.4, 1]])]
    data = EvalSet(toy_set(tmp_path, 0, samples=samples), SPEC, truth_size=5)
    for world in (1, 2, 4):
        shares = [data.mean_truth(rank, world) for rank in range(world)]
        assert sum(n for _, n in shares) == 5  # conditions repeat the map and are left out
        total = torch.stack([s for s, _ in shares]).sum(0)
        assert total.dtype == torch.float64
        assert total[3].tolist() == [5, 5, 3, 2, 1]
    assert data.class_counts() == {0: 5, 1: 5}


def test_sets_without_maps_have_no_mean_and_broken_masks_are_named(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(4)]
    for x in samples:
        x.record.map_rule = "none"
        x.record.targets[0].class_id = -1 if x is samples[0] else 7
    data = EvalSet(toy_set(tmp_path, 0, samples=samples), SPEC, truth_size=5)
    assert data.mean_truth()[1] == 0
    assert data.class_counts() == {7: 3}
    broken = [painted(i) for i in range(3)]
    broken[1].members["m.f0.t0.png"] = b"no mask"
    path = toy_set(tmp_path / "b", 0, samples=broken)
    with pytest.raises(SampleError, match=r"toy__s0001.m.f0.t0.png cannot be decoded"):
        EvalSet(path, SPEC).mean_truth()
    assert EvalSet(path, SPEC, allow_missing=1).mean_truth()[1] == 2


def test_duets_are_one_unit_and_a_missing_one_has_the_shape_of_the_others(tmp_path: Path) -> None:
    samples = [duet(i) for i in range(3)]
    samples[1].members["f1.jpg"] = b"no picture"
    path = toy_set(tmp_path, 0, samples=samples)
    for spec in (SPEC, replace(SPEC, duet="wide")):
        data = EvalSet(path, spec, truth_size=4, allow_missing=1)
        assert data.count == 3
        batch = collate([data[i] for i in range(3)])
        assert sorted(batch.key) == [f"toy__s000{i}" for i in range(3)]
        assert sorted(batch.index.tolist())[0] == -1
        assert batch.truth is not None
        assert batch.truth.shape == (3, 2, 4, 8)
        assert data.mean_truth()[0].shape == (4, 8)
    with pytest.raises(ShardError, match="is a row of pictures, the method takes 3 frames at once"):
        EvalSet(path, replace(SPEC, frames=3))
    with pytest.raises(ShardError, match=r"s0000 shows 2 pictures side by side, toy__s0005 3|s0005 shows 3 .* 2\."):
        EvalSet(toy_set(tmp_path / "b", 0, samples=[duet(0), duet(5, 3)]), SPEC)


def test_a_missing_sample_of_a_semantic_set_is_ignored_everywhere(tmp_path: Path) -> None:
    samples = [painted(i) for i in range(3)]
    samples[1].members["sem.f0.png"] = b"no map"
    data = EvalSet(toy_set(tmp_path, 0, samples=samples), SPEC, truth_size=4, allow_missing=1)
    batch = collate([data[i] for i in range(3)])
    assert batch.semantic is not None
    row = batch.index.tolist().index(-1)
    assert batch.key[row] == "toy__s0001"
    assert (batch.semantic[row] == 255).all()
    assert batch.semantic[[r for r in range(3) if r != row]].max() < 9


def test_a_set_is_semantic_as_a_whole_or_not(tmp_path: Path) -> None:
    samples = [painted(0), painted(1)]
    samples[1].record.frames[0].semantic = None
    with pytest.raises(ShardError, match=r"only one has a semantic map. Write maps of all annotated frames"):
        EvalSet(toy_set(tmp_path, 0, samples=samples), SPEC)


def test_each_frame_hears_its_own_second_and_another_records_where_sounds_are_shuffled(tmp_path: Path) -> None:
    samples = [clip(i, 4, (2,)) for i in range(4)]
    for i, x in enumerate(samples):
        x.members["a0.flac"] = sound(np.arange(4).repeat(1000) / 100 + i / 10)
        x.record.audios[0].duration = 4.0
        x.record.audios.append(Audio(None, "negative", kind="silence"))
    path = toy_set(tmp_path, 0, samples=samples)
    spec = replace(SPEC, window="frame", seconds=1.0)
    own, shuffled = EvalSet(path, spec), EvalSet(path, spec, sound="shuffled")
    assert own.count == 24
    for i in range(24):
        key, _, condition = own.key(i).partition("@")
        n, k = number(key), int(key[-1])
        level = 0 if condition else k / 100 + n / 10
        np.testing.assert_allclose(own[i].audio, level, atol=1e-4)
        assert shuffled.partner is not None
        other = number(shuffled.records[shuffled.partner[shuffled.units[i][0]]].key)
        np.testing.assert_allclose(shuffled[i].audio, k / 100 + other / 10, atol=1e-4)


def test_grids_may_be_oblong_or_absent(tmp_path: Path) -> None:
    samples = [painted(i) for i in range(3)]
    samples[1].members["f0.png"] = b"no picture"
    path = toy_set(tmp_path, 0, samples=samples)
    data = EvalSet(path, SPEC, truth_size=(12, 24), allow_missing=1)
    batch = collate([data[i] for i in range(3)])
    assert batch.truth is not None
    assert batch.semantic is not None
    assert batch.truth.shape == (3, 1, 12, 24)
    assert batch.semantic.shape == (3, 12, 24)
    total, count = data.mean_truth()
    assert count == 3
    masks = [np.asarray(Image.open(io.BytesIO(painted(i).members["m.f0.t0.png"]))) for i in range(3)]
    np.testing.assert_array_equal(total, np.sum(masks, axis=0, dtype=float)[1::2])
    data = EvalSet(path, SPEC, truth_size=None, allow_missing=1)
    batch = collate([data[i] for i in range(3)])
    assert batch.truth is None
    assert batch.semantic is None
    assert data.mean_truth()[1] == 0
    duets = EvalSet(toy_set(tmp_path / "b", 0, samples=[duet(i) for i in range(2)]), SPEC, truth_size=[2, 4])
    assert duets[0].truth is not None
    assert duets[0].truth.shape == (2, 2, 8)
    assert duets.mean_truth()[0].shape == (2, 8)


def test_without_maps_it_does_not_matter_who_has_any(tmp_path: Path) -> None:
    samples = [painted(0), painted(1)]
    samples[1].record.frames[0].semantic, samples[1].record.map_rule = None, "none"
    assert EvalSet(toy_set(tmp_path, 0, samples=samples), SPEC, truth_size=None).count == 2


def test_padded_pictures_tell_their_size_and_duets_are_not_padded(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(3)]
    samples[2].members["f0.jpg"] = b"no picture"
    spec = replace(SPEC, resize="pad", image_size=12)
    data = EvalSet(toy_set(tmp_path, 0, samples=samples), spec, allow_missing=1)
    batch = collate([data[i] for i in range(3)])
    assert batch.size is not None
    sizes = {number(k): s for k, s in zip(batch.key, batch.size.tolist(), strict=True)}
    assert sizes == {0: [10, 12], 1: [10, 12], 2: [12, 12]}
    with pytest.raises(ShardError, match=r"toy: toy__s0000 is a row of pictures that fill their squares"):
        EvalSet(toy_set(tmp_path / "b", 0, samples=[duet(0)]), spec)


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,018 shards were more than a process may open."""
    path = toy_set(tmp_path, 40, per_shard=1)
    monkeypatch.setattr(indexed, "MOST_OPEN", 3)
    before = len(list(Path("/proc/self/fd").iterdir()))
    data = EvalSet(path, SPEC)
    most = 0
    for i in range(40):
        assert data[i].key.endswith(f"{number(data[i].key):04d}")
        most = max(most, len(list(Path("/proc/self/fd").iterdir())) - before)
    assert most <= 4  # and the folder that is listed
