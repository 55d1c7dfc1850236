"""The world as shards: every split holds what its name says, and the same seed gives the same bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avloc.data.shards import read_index
from avloc.world import SPLITS, ensure, write_world
from avloc.world.dataset import samples
from avloc.world.scenes import HEARD, NAMES, UNHEARD


def decode(members: dict[str, bytes], name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(members[name])))


@pytest.mark.parametrize("split", SPLITS)
def test_every_record_is_valid_and_whole(split: str) -> None:
    for sample in samples(split, scenes=3):
        sample.record.validate()
        for member in sample.record.members:
            assert sample.member(member)
        assert decode(sample.members, sample.record.frames[0].member).shape == (128, 128, 3)
        for name, data in sample.members.items():
            if name.endswith(".flac"):
                wave, rate = soundfile.read(io.BytesIO(data))
                assert (rate, wave.shape) == (16000, (32000,))


def test_single_has_the_sounding_objects_mask_and_box() -> None:
    for sample in samples("single", scenes=5):
        (target,) = sample.record.targets
        mask = decode(sample.members, target.masks[0])
        rows, columns = np.nonzero(mask)
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 128
        np.testing.assert_allclose(target.boxes[0], box)
        assert target.class_name in sample.record.text["audio"]
        assert target.class_name in sample.record.text["image"]


def test_heard_and_unheard_classes_are_apart() -> None:
    heard = {t.class_id for s in samples("train_heard", scenes=40) for t in s.record.targets}
    unheard = {t.class_id for s in samples("unheard", scenes=40) for t in s.record.targets}
    assert heard <= set(HEARD)
    assert unheard <= set(UNHEARD)


def test_pairs_share_the_picture_and_differ_in_sound_and_mask() -> None:
    first, second = list(samples("pairs", scenes=1))
    assert first.record.group == second.record.group
    assert first.members["f0.png"] == second.members["f0.png"]
    assert first.members["a0.flac"] != second.members["a0.flac"]
    assert not (decode(first.members, "m.f0.t0.png") & decode(second.members, "m.f0.t0.png")).any()


def test_mixtures_have_two_sounds_for_two_masks() -> None:
    (sample,) = samples("mixture", scenes=1)
    assert [t.audio for t in sample.record.targets] == [0, 1]
    assert len({t.class_id for t in sample.record.targets}) == 2


def test_negatives_name_nothing_in_the_picture() -> None:
    kinds = []
    for sample in samples("negative", scenes=6):
        record = sample.record
        assert record.negative is not None
        kinds.append(record.negative.kind)
        assert not record.sounding
        assert not record.targets
        if record.negative.kind == "silence":
            assert [a.member for a in record.audios] == [None]
    assert kinds == ["silence", "noise", "offscreen"] * 2


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    a = read_index(write_world(tmp_path / "a", "val", scenes=4))
    b = read_index(write_world(tmp_path / "b", "val", scenes=4))
    c = read_index(write_world(tmp_path / "c", "val", scenes=4, seed=1))
    assert [s.sha256 for s in a.shards] == [s.sha256 for s in b.shards]
    assert [s.sha256 for s in a.shards] != [s.sha256 for s in c.shards]
    assert a.count == 4
    assert set(a.classes) <= set(NAMES)


def test_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"no split 'sinlge'.*single"):
        ensure(tmp_path, "sinlge")
