from __future__ import annotations

import functools
import json
import logging
import operator
import pickle
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avloc.data import stream as stream_module
from avloc.data.index import ShardError, read_index
from avloc.data.schema import Sample, SampleError
from avloc.data.stream import ResumableLoader, TrainStream
from avloc.types import AVBatch
from tests.data.make import RATE, SPEC, clip, duet, number, painted, png, robust, sample, sound, toy_set


def numbers(batches: list[AVBatch]) -> list[list[int]]:
    return [[number(k) for k in b.key] for b in batches]


def options(workers: int) -> dict:
    if not workers:
        return {}
    return dict(num_workers=workers, multiprocessing_context="forkserver", persistent_workers=True)


def test_batches_are_ready_and_belong_to_their_keys(tmp_path: Path) -> None:
    stream = TrainStream(read_index(toy_set(tmp_path, 20)), SPEC, batch=4, buffer=5)
    batches = list(stream)
    assert len(batches) == len(stream) == 5
    assert sorted(functools.reduce(operator.iadd, numbers(batches), [])) == list(range(20))
    for batch in batches:
        want = torch.tensor([number(k) for k in batch.key])
        assert batch.truth is None
        assert batch.index.tolist() == [-1] * 4
        np.testing.assert_allclose(batch.audio.mean(1) * 1000 - 1, want, atol=0.05)
        assert (batch.image.float().mean((1, 2, 3)) - want).abs().max() < 1.5


def test_ranks_share_every_record_once(tmp_path: Path) -> None:
    index = read_index(toy_set(tmp_path, 25))
    ranks = [numbers(list(TrainStream(index, SPEC, 2, rank=r, world=3))) for r in range(3)]
    assert [len(r) for r in ranks] == [4, 4, 4]
    seen = [n for r in ranks for b in r for n in b]
    assert len(seen) == len(set(seen)) == 24


def test_a_fraction_is_the_same_part_in_every_epoch(tmp_path: Path) -> None:
    index = read_index(toy_set(tmp_path, 25))
    stream = TrainStream(index, SPEC, 1, seed=3, fraction=0.3)
    seen = []
    for epoch in (0, 1):
        stream.start_at(epoch)
        seen.append([n for b in numbers(list(stream)) for n in b])
    assert len(seen[0]) == sum(-(-3 * s.count // 10) for s in index.shards)  # a third of each shard, rounded up
    assert sorted(seen[0]) == sorted(seen[1])
    assert seen[0] != seen[1]
    with pytest.raises(ShardError, match=r"train_fraction 1\.5"):
        TrainStream(index, SPEC, 1, fraction=1.5)


def test_workers_of_a_fork_server_emit_what_the_plan_says_over_epochs_and_resumes(tmp_path: Path) -> None:
    index = read_index(toy_set(tmp_path, 30))
    place = [0, 0]
    stream = TrainStream(index, SPEC, 3, workers=2, buffer=8)
    loader = ResumableLoader(stream, lambda: (place[0], place[1]), **options(2))
    runs = {}
    for place[:] in ([0, 0], [1, 0], [0, 3], [0, 0]):
        runs[tuple(place)] = numbers(list(loader))
    assert len(loader) == 10
    assert (
        sorted(functools.reduce(operator.iadd, runs[0, 0], []))
        == list(range(30))
        == sorted(functools.reduce(operator.iadd, runs[1, 0], []))
    )
    assert runs[0, 0] != runs[1, 0]
    assert runs[0, 3] == runs[0, 0][3:]


def test_a_stream_survives_pickling_and_knows_its_worker_count(tmp_path: Path) -> None:
    stream = TrainStream(read_index(toy_set(tmp_path, 8)), SPEC, 4, workers=3)
    with pytest.raises(ShardError, match="planned for 3 workers but the loader has 1"):
        list(stream)
    one = TrainStream(read_index(toy_set(tmp_path, 8)), SPEC, 4)
    assert numbers(list(pickle.loads(pickle.dumps(one)))) == numbers(list(one))


def test_pipe_shards_stream(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 14)
    plain = numbers(list(TrainStream(read_index(path), SPEC, 2)))
    assert numbers(list(TrainStream(read_index(f"pipe:cat {path}"), SPEC, 2))) == plain


def break_jpeg(x: Sample) -> None:
    x.members["f0.jpg"] = x.members["f0.jpg"][:200]


def break_flac(x: Sample) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE // 2)
    x.members["a0.flac"] = sound(noise)[:300]


def break_rate(x: Sample) -> None:
    x.members["a0.flac"] = sound(np.zeros(1000), 2000)


def break_nan(x: Sample) -> None:
    x.members["a0.flac"] = sound(np.full(500, np.nan), RATE, "WAV", "FLOAT")


def break_length(x: Sample) -> None:
    x.members["a0.flac"] = sound(np.array([]), RATE, "WAV")


def break_member(x: Sample) -> None:
    del x.members["f0.jpg"]


def break_schema(x: Sample) -> None:
    text = x.record.to_json().replace('"schema": 1', '"schema": 9')
    x.record.to_json = lambda: text  # type: ignore[method-assign]


BREAKS = [break_jpeg, break_flac, break_rate, break_nan, break_length, break_member, break_schema]


@pytest.mark.parametrize("damage", BREAKS, ids=lambda f: f.__name__)
def test_a_broken_sample_is_counted_named_once_and_replaced(
    damage: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [sample(i) for i in range(24)]
    for i in (5, 17):
        damage(samples[i])  # type: ignore[operator]
    stream = TrainStream(read_index(toy_set(tmp_path, 24, samples=samples)), SPEC, 4, world=2)
    with caplog.at_level(logging.WARNING):
        for epoch in range(4):
            stream.start_at(epoch)
            batches = numbers(list(stream))
            assert [len(set(b)) for b in batches] == [4, 4, 4]
            assert not {5, 17} & set(functools.reduce(operator.iadd, batches, []))
    named = [r.getMessage() for r in caplog.records]
    assert len(named) == len(set(named)) == 2
    assert all(any(f"toy__s{i:04d}" in m for m in named) for i in (5, 17))
    assert stream.broken >= 2


def test_a_resumed_run_takes_the_same_replacements(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(24)]
    for i in range(0, 24, 5):
        break_jpeg(samples[i])
    stream = TrainStream(read_index(toy_set(tmp_path, 24, samples=samples)), SPEC, 4)
    unbroken = numbers(list(stream))
    for k in range(1, 6):
        stream.start_at(0, k)
        assert numbers(list(stream)) == unbroken[k:]


def test_a_batch_without_a_single_good_sample_is_an_error(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(8)]
    for x in samples:
        break_rate(x)
    stream = TrainStream(read_index(toy_set(tmp_path, 8, samples=samples)), SPEC, 4)
    with pytest.raises(SampleError, match="All 4 samples of a training batch of toy are broken"):
        next(iter(stream))


def test_a_shard_that_lost_records_or_is_gone_is_named(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 14)
    (path.parent / "toy-train-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"toy-train-000001.tar cannot be read"):
        list(TrainStream(read_index(path), SPEC, 2))
    (path.parent / "toy-train-000001.tar").write_bytes(toy_set(tmp_path / "b", 3).with_name(
        "toy-train-000000.tar").read_bytes())  # fmt: skip
    with pytest.raises(ShardError, match=r"toy-train-000001.tar has \d+ bytes, its index says \d+"):
        list(TrainStream(read_index(path), SPEC, 2))
    content = json.loads(path.read_text())
    content["shards"][1]["bytes"] = (path.parent / "toy-train-000001.tar").stat().st_size
    path.write_text(json.dumps(content))
    with pytest.raises(ShardError, match="holds 3 records, its index promises 7"):
        list(TrainStream(read_index(path), SPEC, 2))


def test_too_small_a_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="toy-train: 5 samples do not fill a batch of 3 on 2 processes"):
        TrainStream(read_index(toy_set(tmp_path, 5)), SPEC, 3, world=2)


def test_skipped_batches_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avloc.data import stream as module

    seen: list[str] = []
    real = module.make_item

    def spy(x: Sample, *args: object, **kwargs: object) -> object:
        seen.append(x.key)
        return real(x, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "make_item", spy)
    stream = TrainStream(read_index(toy_set(tmp_path, 24)), SPEC, 4)
    stream.start_at(0, 4)
    assert len(list(stream)) == 2
    assert len(seen) == 8


def test_a_changed_order_after_a_resume_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = read_index(toy_set(tmp_path, 24))
    old = ResumableLoader(TrainStream(index, SPEC, 4)).state_dict()
    with caplog.at_level(logging.WARNING):
        ResumableLoader(TrainStream(index, SPEC, 4)).load_state_dict(old)
        assert not caplog.records
        ResumableLoader(TrainStream(index, SPEC, 2, seed=1)).load_state_dict(old)
    assert "batch_size was 4, is 2; seed was 0, is 1" in caplog.text


def test_supervised_batches_carry_maps_cropped_and_flipped_with_the_picture(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 0, samples=[painted(i) for i in range(8)])
    spec = replace(SPEC, train_scale=1.5, train_flip=0.5)
    stream = TrainStream(read_index(path), spec, 4, truth_size=16)
    plain = TrainStream(read_index(path), spec, 4)
    views = set()
    for epoch in range(3):
        stream.start_at(epoch)
        batches = list(stream)
        plain.start_at(epoch)
        assert numbers(batches) == numbers(list(plain))
        for batch in batches:
            assert batch.truth is not None
            assert batch.semantic is not None
            assert torch.equal(batch.truth[:, 0] * 255, batch.image[:, 0].float())
            assert torch.equal(batch.semantic * 10, batch.image[:, 1].long())
            views |= {image.numpy().tobytes() for image in batch.image}
        stream.start_at(epoch, 1)
        (again,) = stream
        assert again.truth is not None
        assert batches[1].truth is not None
        assert torch.equal(again.truth, batches[1].truth)
        assert torch.equal(again.image, batches[1].image)
    assert len(views) == 24


def test_one_annotated_frame_of_a_record_is_seen_per_epoch_another_in_another(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 0, samples=[clip(i) for i in range(8)])
    stream = TrainStream(read_index(path), SPEC, 4, truth_size=4)
    seen: dict[int, list[int]] = {i: [] for i in range(8)}
    for epoch in range(12):
        stream.start_at(epoch)
        for batch in stream:
            assert batch.truth is not None
            for key, image, truth in zip(batch.key, batch.image, batch.truth, strict=True):
                frame = (int(image[0, 0, 0]) - 10) // 40
                assert truth.sum() == 4 * frame
                assert key == f"toy__s{number(key):04d}.f{frame}"
                seen[number(key)].append(frame)
    assert all(len(frames) == 12 for frames in seen.values())
    assert all(len(set(frames)) > 1 and 1 not in frames for frames in seen.values())
    assert {f for frames in seen.values() for f in frames} == {0, 2, 3, 4}
    assert len({tuple(frames) for frames in seen.values()}) > 4
    plain = TrainStream(read_index(path), SPEC, 4)  # unsupervised: so too
    drawn = [(k, (int(x.max()) - 10) // 40) for batch in plain for k, x in zip(batch.key, batch.image, strict=True)]
    assert all(key.endswith(f".f{frame}") for key, frame in drawn)
    assert len(drawn) == 8
    assert len({frame for _, frame in drawn}) > 1


def test_a_record_without_maps_is_a_broken_one_in_supervised_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [painted(i) for i in range(8)]
    samples[2].record.frames[0].annotated = False
    samples[5].record.frames[0].semantic, samples[5].record.map_rule = None, "none"
    stream = TrainStream(read_index(toy_set(tmp_path, 0, samples=samples)), SPEC, 4, truth_size=4)
    with caplog.at_level(logging.WARNING):
        seen = {n for rows in numbers(list(stream)) for n in rows}
    assert seen.isdisjoint({2, 5})
    assert stream.broken >= 2
    for i in (2, 5):
        assert f"toy__s000{i} has no annotated frame with maps" in caplog.text


def test_several_annotated_frames_are_not_trained_on_at_once(tmp_path: Path) -> None:
    index = read_index(toy_set(tmp_path, 0, samples=[clip(i) for i in range(4)]))
    with pytest.raises(ShardError, match=r"toy__s000\d has 4 annotated frames, the method takes 5 at once"):
        list(TrainStream(index, replace(SPEC, frames=5), 4, truth_size=4))
    (batch,) = TrainStream(index, replace(SPEC, frames=5), 4)
    assert batch.image.shape == (4, 5, 3, 16, 16)


def test_training_sees_a_robust_record_once_with_its_own_sound_and_duets_as_rows(tmp_path: Path) -> None:
    index = read_index(toy_set(tmp_path, 0, samples=[robust(i) for i in range(8)]))
    batches = list(TrainStream(index, SPEC, 4, truth_size=4))
    assert sorted(n for rows in numbers(batches) for n in rows) == list(range(8))
    for batch in batches:
        np.testing.assert_allclose(batch.audio.mean(1) * 1000 - 1, [number(k) for k in batch.key], atol=0.05)
        assert batch.sounding is not None
        assert batch.sounding.all()
        assert batch.negative == [""] * 4
    index = read_index(toy_set(tmp_path / "b", 0, samples=[duet(i) for i in range(4)]))
    (batch,) = TrainStream(index, replace(SPEC, duet="wide"), 4)
    assert batch.truth is None
    assert batch.image.shape == (4, 3, 16, 32)
    np.testing.assert_allclose(batch.audio, 0.3, atol=1e-3)
    (batch,) = TrainStream(index, replace(SPEC, duet="wide"), 4, truth_size=4)
    assert batch.truth is not None
    assert batch.truth.shape == (4, 2, 4, 8)


CLIPS = {0: [0], 1: [0, 2, 3, 4], 2: [], 3: [1], 4: [0, 1, 2], 5: [0, 2], 6: [0, 1, 2, 3, 4, 5], 7: [2]}


def clips(folder: Path, per_shard: int = 3) -> Path:
    """Eight records with no to six annotated frames, 18 in all."""
    samples = [clip(i, 6, tuple(set(range(6)) - set(kept))) for i, kept in CLIPS.items()]
    return toy_set(folder, 0, per_shard, samples=samples)


def all_frames(path: Path, batch: int, resume: int = 0, epoch: int = 0, **changes: int) -> list[AVBatch]:
    """What the loader of a rank gives, its workers played one after the other."""
    stream = TrainStream(read_index(path), SPEC, batch, truth_size=4, frames="all", buffer=6, **changes)
    stream.start_at(epoch, resume)
    workers = changes.get("workers", 1)
    queues = []
    for worker in range(workers):
        with pytest.MonkeyPatch.context() as patch:
            info = types.SimpleNamespace(id=worker, num_workers=workers)
            patch.setattr(stream_module, "get_worker_info", lambda info=info: info)
            queues.append(list(stream))
    out = []
    while any(queues):
        out += [queue.pop(0) for queue in queues if queue]
    return out


@pytest.mark.parametrize(("batch", "world", "workers"), [(1, 1, 1), (2, 2, 1), (2, 3, 2), (3, 1, 4), (4, 2, 3)])
@pytest.mark.parametrize("per_shard", [1, 3, 8])
def test_every_annotated_frame_is_a_sample_of_its_own(
    tmp_path: Path, batch: int, world: int, workers: int, per_shard: int
) -> None:
    path = clips(tmp_path, per_shard)
    ranks = [all_frames(path, batch, rank=r, world=world, workers=workers) for r in range(world)]
    assert [len(r) for r in ranks] == [18 // (world * batch)] * world
    seen = Counter(key for r in ranks for b in r for key in b.key)
    several = {i for i, kept in CLIPS.items() if len(kept) > 1}
    names = {f"toy__s{i:04d}" + (f".f{k}" if i in several else "") for i, kept in CLIPS.items() for k in kept}
    assert set(seen.values()) == {1}
    assert set(seen) <= names
    assert 18 - len(seen) < world * batch
    for b in (b for r in ranks for b in r):
        assert b.truth is not None
        for key, image, truth in zip(b.key, b.image, b.truth, strict=True):
            frame = int(key[-1]) if ".f" in key else CLIPS[number(key)][0]
            assert int(image[0, 0, 0]) == 40 * frame + 10
            assert truth.sum() == 4 * min(frame, 4)


def test_all_frames_resume_at_any_batch_with_any_workers(tmp_path: Path) -> None:
    path = clips(tmp_path)
    for workers, rank in ((1, 0), (2, 1), (3, 0)):
        options = dict(epoch=2, rank=rank, world=2, workers=workers)
        unbroken = [b.key for b in all_frames(path, 2, **options)]
        assert len(unbroken) == 4
        for k in range(5):
            assert [b.key for b in all_frames(path, 2, resume=k, **options)] == unbroken[k:]
    epochs = [[b.key for b in all_frames(path, 2, epoch=e)] for e in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]


def test_frames_of_one_record_are_cropped_each_in_its_own_way(tmp_path: Path) -> None:
    samples = [clip(i, 6, ()) for i in range(2)]
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    for x in samples:
        x.members |= {f"f{k}.png": png(picture) for k in range(6)}
    index = read_index(toy_set(tmp_path, 0, samples=samples))
    (batch,) = TrainStream(index, replace(SPEC, train_scale=2.0), 12, truth_size=4, frames="all")
    assert len({image.numpy().tobytes() for image in batch.image}) > 8


def test_a_set_of_an_earlier_version_does_not_tell_its_frames(tmp_path: Path) -> None:
    path = clips(tmp_path)
    content = json.loads(path.read_text())
    assert sum(s.pop("units") for s in content["shards"]) == 18
    path.write_text(json.dumps(content))
    assert len(list(TrainStream(read_index(path), SPEC, 4, truth_size=4))) == 2  # records, as ever
    with pytest.raises(ShardError, match=r"toy-train.json was written before .*frames all needs. Delete this file and"):
        TrainStream(read_index(path), SPEC, 4, truth_size=4, frames="all")
    path.unlink()
    assert len(all_frames(clips(tmp_path), 4)) == 4
    with pytest.raises(ShardError, match="one annotated frame after the other, but the method takes 5 at once"):
        TrainStream(read_index(path), replace(SPEC, frames=5), 4, frames="all")


def test_an_index_that_promises_more_frames_than_there_are_is_named(tmp_path: Path) -> None:
    path = clips(tmp_path, 8)
    path.write_text(path.read_text().replace('"units": 18', '"units": 20'))
    with pytest.raises(ShardError, match="holds 18 annotated frames, its index promises 20"):
        all_frames(path, 4)


def test_a_record_whose_frames_cannot_be_counted_is_a_broken_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = clips(tmp_path, 8)
    tar = path.parent / "toy-train-000000.tar"
    content = tar.read_bytes()
    start = content.index(b'"id": "s0004"')
    tar.write_bytes(content[:start] + b'"id": 0------' + content[start + 13 :])
    with caplog.at_level(logging.WARNING):
        batches = all_frames(path, 3)
        resumed = all_frames(path, 3, resume=3)
    assert [len(b) for b in batches] == [3] * 6
    assert [b.key for b in resumed] == [b.key for b in batches[3:]]
    keys = {k for b in batches for k in b.key}
    assert not any("s0004" in k for k in keys)
    assert len(keys) == 15
    assert "toy__s0004" in caplog.text


def test_all_frames_may_be_trained_on_without_maps(tmp_path: Path) -> None:
    stream = TrainStream(read_index(clips(tmp_path)), SPEC, 6, frames="all")
    batches = list(stream)
    assert len({k for b in batches for k in b.key}) == 18
    assert all(b.truth is None for b in batches)


def test_ground_truth_may_be_oblong(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 0, samples=[painted(i) for i in range(4)])
    (batch,) = TrainStream(read_index(path), replace(SPEC, image_size=24), 4, truth_size=(12, 24))
    assert batch.truth is not None
    assert batch.semantic is not None
    assert batch.truth.shape == (4, 1, 12, 24)
    assert torch.equal(batch.truth[:, 0] * 255, batch.image[:, 0, 1::2].float())
    assert torch.equal(batch.semantic * 10, batch.image[:, 1, 1::2].long())


def test_a_shard_with_a_record_too_many_is_named(tmp_path: Path) -> None:
    """As when a member's name changes: both halves count, and the last record would never be trained on."""
    path, other = toy_set(tmp_path, 7), toy_set(tmp_path / "b", 8, per_shard=8)
    longer = other.with_name("toy-train-000000.tar").read_bytes()
    path.with_name("toy-train-000000.tar").write_bytes(longer)
    content = json.loads(path.read_text())
    content["shards"][0]["bytes"] = len(longer)
    path.write_text(json.dumps(content))
    with pytest.raises(ShardError, match="holds over 7 records, its index promises 7"):
        list(TrainStream(read_index(path), SPEC, 7))
