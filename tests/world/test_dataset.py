"""The world as shards: every split holds what its name says, and the same seed gives the same bytes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from avloc.data.shards import read_index
from avloc.world import SPLITS, ensure, write_world
from avloc.world.dataset import duet_sample, samples
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


def test_training_splits_with_masks_are_like_those_without() -> None:
    for split, classes in (("train_masks", range(len(NAMES))), ("train_masks_heard", HEARD)):
        assert SPLITS[split].scenes == 2000
        for sample in samples(split, scenes=12):
            record = sample.record
            (target,) = record.targets
            assert (record.split, record.map_rule, record.frames[0].annotated) == (split, "mask", True)
            assert sorted(sample.members) == ["a0.flac", "f0.jpg", "m.f0.t0.png"]
            assert target.class_id in classes
            mask = decode(sample.members, "m.f0.t0.png")
            rows, columns = np.nonzero(mask)
            box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 128
            np.testing.assert_allclose(target.boxes[0], box)
    pictures = [next(samples(split, scenes=1)).members for split in ("train_masks", "train_masks_heard", "single")]
    assert len({p.get("f0.jpg") or p["f0.png"] for p in pictures}) == 3


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


@pytest.mark.parametrize("split", ["crowd", "val_crowd"])
def test_in_a_crowd_two_of_four_or_five_sound(split: str) -> None:
    counts = set()
    for sample in samples(split, scenes=40):
        record = sample.record
        assert record.split == split
        assert [(t.audio, t.masks) for t in record.targets] == [(0, ["m.f0.t0.png"]), (1, ["m.f0.t1.png"])]
        assert len({t.class_id for t in record.targets}) == 2
        first, second = (decode(sample.members, t.masks[0]) for t in record.targets)
        assert not (first & second).any()
        assert min(first.mean(), second.mean()) > 0.002  # neither is hidden
        counts.add(record.text["image"].count(" and ") + 1)
    assert counts == {4, 5}


@pytest.mark.parametrize("split", ["negative", "val_negative"])
def test_negatives_name_nothing_in_the_picture(split: str) -> None:
    kinds = []
    for sample in samples(split, scenes=6):
        record = sample.record
        assert record.split == split
        assert record.negative is not None
        kinds.append(record.negative.kind)
        assert not record.sounding
        assert not record.targets
        if record.negative.kind == "silence":
            assert [a.member for a in record.audios] == [None]
    assert kinds == ["silence", "noise", "offscreen"] * 2


def test_extended_is_half_positive_half_negative() -> None:
    records = [s.record for s in samples("extended", scenes=12)]
    kinds = [r.negative.kind if r.negative else "" for r in records]
    assert kinds == ["", "mismatch", "", "silence", "", "noise"] * 2
    assert [r.sounding for r in records] == [True, False] * 6
    assert all(bool(r.targets) == r.sounding for r in records)


def test_robust_has_three_negative_sounds_beside_its_own() -> None:
    for sample in samples("robust", scenes=4):
        record = sample.record
        assert [(a.role, a.kind, a.member) for a in record.audios] == [
            ("source", "", "a0.flac"),
            ("negative", "silence", None),
            ("negative", "noise", "n0.flac"),
            ("negative", "offscreen", "n1.flac"),
        ]
        assert record.sounding
        assert record.negative is None
        waves = {sample.members[m] for m in ("a0.flac", "n0.flac", "n1.flac")}
        assert len(waves) == 3


def test_semantic_maps_name_the_sounding_objects() -> None:
    counts = set()
    for sample in samples("semantic", scenes=80):
        record = sample.record
        classes = decode(sample.members, "sem.f0.png")
        assert classes.dtype == np.uint8
        expected = np.zeros((128, 128), np.uint8)
        for target in record.targets:
            assert target.class_name == NAMES[target.class_id]
            expected[decode(sample.members, target.masks[0])] = target.class_id + 1
        np.testing.assert_array_equal(classes, expected)
        assert record.frames[0].semantic == "sem.f0.png"
        counts.add(len(record.targets))
        assert len(record.targets) == sum(a.role == "source" for a in record.audios)
    assert counts == {1, 2, 3}


@pytest.mark.parametrize(("split", "pictures"), [("duet", 2), ("val_duet", 2), ("trio", 3), ("quartet", 4)])
def test_duets_are_pictures_side_by_side_with_a_sound_each(split: str, pictures: int) -> None:
    alone = 0
    for sample in samples(split, scenes=8):
        record = sample.record
        assert (record.tiles, record.split) == (pictures, split)
        assert len({sample.members[f"f{t}.png"] for t in range(pictures)}) == pictures
        for t, target in enumerate(record.targets):
            assert (target.audio, target.masks) == (t, [f"m.f{t}.t{t}.png"])
            mask = decode(sample.members, target.masks[0])
            rows, columns = np.nonzero(mask)
            box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 128
            np.testing.assert_allclose(target.boxes[0], box)
        sounding = [t.class_id for t in record.targets]
        assert len(set(sounding)) == pictures
        seen = record.text["image"].split(" and a ")
        alone += sum(seen.count(NAMES[c]) == 1 for c in sounding[1:])  # the first follows "a picture of a"
    assert alone >= 0.8 * 8 * (pictures - 1)  # its class is nowhere else in the row


def test_all_rows_of_the_world_have_different_classes() -> None:
    rng = np.random.default_rng(3)
    masks = [torch.ones(3, 4, 4, dtype=torch.bool) for _ in range(3)]
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for rows, want in (
        ([[0, 1], [0, 1]], [0, 1]),
        ([[0, 1, 2], [0, 1]], [2, 0]),
        ([[0, 1], [1, 0], [1, 2]], [0, 1, 2]),
        ([[5, 4], [4, 6, 5], [6, 4]], [5, 4, 6]),
    ):
        sample = duet_sample(rng, "trio", "x", [(r, image, m) for r, m in zip(rows, masks, strict=False)])
        assert [t.class_id for t in sample.record.targets] == want


def test_the_first_splits_stay_what_they_were() -> None:
    # SHA-256 of the meta.json of the version before later splits and schema fields came.
    expected = {
        "train": "be23266eb3867d268d39fa8cb79728e57d3004ca3c133928c762186281486846",
        "negative": "ee585dd37eb0ae1a9d5a1ccb2b6a16365fd296cd9863dccfe319dd9b6a2b72c9",
    }
    for split, sha in expected.items():
        records = [s.record for s in samples(split, scenes=4)]
        for record in records:  # object phrases came later
            record.text = {k: v for k, v in record.text.items() if not k.startswith("llm")}
        text = "\n".join(record.to_json() for record in records)
        assert hashlib.sha256(text.encode()).hexdigest() == sha


def test_phrases_come_from_the_captions() -> None:
    right = 0
    for split in ("train", "val", "pairs", "mixture", "duet"):
        for sample in samples(split, scenes=20):
            record = sample.record
            text, sounding = record.text, record.targets[0].class_name
            assert text["llm"] == text["llm_audio"] == sounding
            assert text["llm_image"] in text["image"].removeprefix("a picture of a ").split(" and a ")
            right += text["llm_image"] == sounding
    assert 20 < right < 80  # of 120: a picture alone does not tell what sounds
    assert not any(k.startswith("llm") for s in samples("negative", scenes=6) for k in s.record.text)


def test_pictures_and_sounds_of_later_splits_stay_what_they_were() -> None:
    # SHA-256 of the members' names and bytes, in order, of the version before rows of more than two pictures came.
    expected = {
        "duet": "4bdadc1cdeb8932e490ddb2589a0d71e48efd16ae79d3013811f292bfe7b5856",
        "pairs": "5d3b0af96eafd122b82a52a088e412118fb931f97da181c009112c7b6bcca3f2",
        "val_crowd": "68b657e735abf7a94c4b6d43a2a70c55ba8ca38e6aa51851c4e654e7f33b1ea3",
    }
    for split, sha in expected.items():
        digest = hashlib.sha256()
        for sample in samples(split, scenes=6):
            for name in sorted(sample.members):
                digest.update(name.encode())
                digest.update(sample.members[name])
        assert digest.hexdigest() == sha


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
