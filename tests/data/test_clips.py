"""Frames of a video as neighbouring rows of a batch, in training and in evaluation."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avloc.data.index import ShardError, read_index
from avloc.data.indexed import Clips, EvalSet
from avloc.data.items import collate
from avloc.data.module import AVDataModule, collate_clips
from avloc.data.schema import Sample
from avloc.data.stream import TrainStream
from avloc.types import AVBatch, InputSpec
from tests.data.make import RATE, SPEC, clip, duet, number, png, sample, sound, toy_set

FRAMES = 3
CLIP = replace(SPEC, clip=FRAMES, seconds=0.1, window="frame")


def video(i: int, frames: int = FRAMES, bare: tuple[int, ...] = (), semantic: bool = False) -> Sample:
    """Frame k is grey 40 k + 10 + i, its mask covers k quarters, and its tenth of a second sounds 0.1 (k + 1)."""
    x = clip(i, frames, bare)
    x.record.audios[0].duration = 0.5
    x.members["a0.flac"] = sound(np.repeat(np.arange(1, 6) / 10, RATE // 10))
    for k, frame in enumerate(x.record.frames):
        frame.t = k / 10 + 0.09
        x.members[frame.member] = png(np.full((4, 4, 3), 40 * k + 10 + i, np.uint8))
        if semantic and frame.annotated:
            frame.semantic = f"sem.f{k}.png"
            x.members[frame.semantic] = png(np.full((4, 4), k + 1, np.uint8))
    return x


def check(batch: AVBatch) -> None:
    """That every row is what its key says, and that whole clips lie side by side in the order of their frames."""
    assert batch.clip is not None
    for row, key in enumerate(batch.key):
        i, k = number(key), int(key.partition("@")[0][-1])
        assert row == 0 or k == 0 or batch.key[row - 1].partition("@")[0].endswith(f"{i:04d}.f{k - 1}")
        assert batch.clip[row] == row - k
        assert (batch.image[row] == 40 * k + 10 + i).all()
        np.testing.assert_allclose(batch.audio[row], 0.1 * (k + 1), atol=1e-3)


def test_training_sees_whole_clips_with_the_truth_of_every_frame(tmp_path: Path) -> None:
    index = read_index(toy_set(tmp_path, 0, 2, samples=[video(i) for i in range(8)]))
    for frames in ("random", "all"):
        stream = TrainStream(index, CLIP, 2 * FRAMES, truth_size=4, frames=frames, workers=1)  # type: ignore[arg-type]
        batches = list(stream)
        assert len(batches) == len(stream) == 4
        assert sorted({number(k) for b in batches for k in b.key}) == list(range(8))
        for batch in batches:
            check(batch)
            assert len(batch) == 2 * FRAMES
            assert batch.truth is not None
            assert batch.annotated is not None
            assert batch.annotated.all()
            assert batch.truth.mean((1, 2, 3)).tolist() == [0, 0.25, 0.5] * 2
    ranks = [list(TrainStream(index, CLIP, FRAMES, rank=r, world=2)) for r in (0, 1)]
    seen = [[number(k) for b in batches for k in b.key[::FRAMES]] for batches in ranks]
    assert sorted(seen[0] + seen[1]) == list(range(8))


def test_frames_without_truth_are_seen_and_marked(tmp_path: Path) -> None:
    """S4's training: the first frame alone has a mask."""
    samples = [video(i, bare=(0, 2), semantic=True) for i in range(2)]
    index = read_index(toy_set(tmp_path, 0, samples=samples))
    (batch,) = TrainStream(index, CLIP, 2 * FRAMES, truth_size=4)
    check(batch)
    assert batch.annotated is not None
    assert batch.truth is not None
    assert batch.semantic is not None
    assert batch.annotated.tolist() == [False, True, False] * 2
    assert batch.truth.mean((1, 2, 3)).tolist() == [0, 0.25, 0] * 2
    assert batch.semantic.flatten(1).unique(dim=1).flatten().tolist() == [255, 2, 255] * 2


def test_boxes_speak_of_annotated_frames_alone(tmp_path: Path) -> None:
    x = video(0, bare=(1, 2))
    x.record.map_rule, x.record.targets = "union", sample(0).record.targets
    index = read_index(toy_set(tmp_path, 0, samples=[x]))
    (batch,) = TrainStream(index, CLIP, FRAMES, truth_size=4)
    assert batch.truth is not None
    assert (batch.truth.amax((1, 2, 3)) > 0).tolist() == [True, False, False]


def test_a_clip_is_cropped_and_flipped_as_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [video(i) for i in range(6)]
    for x in samples:
        picture = png(rng.integers(0, 255, (24, 24, 3)).astype(np.uint8))
        x.members |= {f.member: picture for f in x.record.frames}  # the same at all times
    index = read_index(toy_set(tmp_path, 0, samples=samples))
    stream = TrainStream(index, replace(CLIP, train_scale=1.5, train_flip=0.5), 6 * FRAMES, truth_size=4)
    (first,) = stream
    for k in range(1, FRAMES):
        assert torch.equal(first.image[0::FRAMES], first.image[k::FRAMES])
    stream.start_at(1)
    (second,) = stream
    rows = [second.key.index(key) for key in first.key]
    assert not torch.equal(first.image, second.image[rows])


@pytest.mark.parametrize("frames", [FRAMES - 1, FRAMES + 1])
def test_a_video_with_a_missing_frame_is_told(frames: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = toy_set(tmp_path, 0, samples=[video(i, FRAMES if i else frames) for i in range(4)])
    stream = TrainStream(read_index(path), CLIP, 4 * FRAMES, truth_size=4)
    with caplog.at_level(logging.WARNING):
        (batch,) = stream
    assert stream.broken == 2  # it was tried as a spare too
    assert f"toy__s0000 has {frames} frames" in caplog.text
    assert {number(k) for k in batch.key} == {1, 2, 3}
    assert batch.clip is not None
    # A neighbour is seen twice: its rows are one clip of equal halves, whose mean is that of either.
    assert sorted(torch.bincount(batch.clip).tolist())[-3:] == [FRAMES, FRAMES, 2 * FRAMES]
    with pytest.raises(ShardError, match=rf"toy: toy__s0000 has {frames} frames.*clips of 3"):
        EvalSet(path, CLIP)


def test_short_clips_are_taken_where_they_are_wanted(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 0, samples=[video(i, 1 + i) for i in range(FRAMES)])
    short = replace(CLIP, short_clips=True)
    (batch,) = TrainStream(read_index(path), short, 3 * FRAMES, truth_size=4)
    check(batch)
    assert len(batch) == 1 + 2 + 3
    data = Clips(EvalSet(path, short, truth_size=4))
    assert sorted(len(data[i]) for i in range(len(data))) == [1, 2, 3]


def test_evaluation_scores_every_frame_and_keeps_clips_together(tmp_path: Path) -> None:
    samples = [video(i) for i in range(4)]
    for x in samples:
        x.record.audios += [replace(x.record.audios[0], role="negative", kind="noise")]
    path = toy_set(tmp_path, 0, 2, samples=samples)
    data, alone = (EvalSet(path, spec, truth_size=4) for spec in (CLIP, replace(CLIP, clip=1)))
    assert [data.key(i) for i in range(len(data))] == [alone.key(i) for i in range(len(alone))]
    assert len(data) == 4 * 2 * FRAMES
    module = AVDataModule(test=[str(path)], input_spec=CLIP, eval_batch_size=7, num_workers=0, truth_size=4)
    module.setup("test")
    (loader,) = module.test_dataloader()
    batches = list(loader)
    assert [len(b) for b in batches] == [6] * 4
    for batch in batches:
        check(batch)
        assert len(set(batch.clip.tolist())) == 2  # one record under its own and under another sound
    assert sorted(i for b in batches for i in b.index.tolist()) == list(range(len(data)))
    rows = collate([alone[i] for i in range(6)])
    together = collate_clips([Clips(data)[0], Clips(data)[1]])
    assert rows.clip is None
    assert rows.annotated is None
    for name in ("image", "audio", "truth", "index", "class_id"):
        assert torch.equal(getattr(rows, name), getattr(together, name))


def test_what_cannot_be_read_is_nobodys_neighbour(tmp_path: Path) -> None:
    broken = video(0)
    broken.members["f1.png"] = b"no picture"
    data = Clips(EvalSet(toy_set(tmp_path, 0, samples=[broken, video(1)]), CLIP, truth_size=4, allow_missing=1))
    batch = collate_clips([data[i] for i in range(2)])
    row = batch.index.tolist().index(-1)
    assert batch.key[row] == "toy__s0000.f1"
    assert batch.clip is not None
    assert (batch.clip == batch.clip[row]).sum() == 1
    assert sorted(torch.bincount(batch.clip).tolist(), reverse=True)[:3] == [3, 2, 1]
    assert data.data.missing == ["toy__s0000.f1"]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 0, samples=[video(i, bare=(1,)) for i in range(2)])
    with pytest.raises(ShardError, match="only 2 are annotated"):
        EvalSet(path, CLIP)
    module = AVDataModule(train=str(path), input_spec=CLIP, batch_size=4, num_workers=0)
    with pytest.raises(ShardError, match=r"batch_size 4 counts frames.*multiple of 3"):
        module.setup("fit")
    with pytest.raises(ShardError, match="a multiple of 3"):
        TrainStream(read_index(path), CLIP, 4)
    with pytest.raises(ValueError, match="not both"):
        InputSpec(clip=2, frames=2)
    rows = toy_set(tmp_path / "rows", 0, samples=[duet(0), duet(1)])
    with pytest.raises(ShardError, match="duet of 2 pictures"):
        EvalSet(rows, CLIP)
