"""The world as shards: every split holds what its name says, and the same seed gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from avloc.data.index import read_index, verify
from avloc.data.schema import Sample
from avloc.world import SPLITS, ensure, write_world
from avloc.world.dataset import duet_sample, samples
from avloc.world.kinds import FACTORS, at_home, twin_of
from avloc.world.scenes import HEARD, NAMES, STYLES, UNHEARD


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


def size_of(sample: Sample) -> str:
    return next(tag for tag in sample.record.tags if tag in ("small", "usual", "large"))


def test_sizes_are_told_by_the_mask() -> None:
    counts = Counter()
    for sample in samples("sizes", scenes=60):
        # Discs of these radii have 0.03 to 0.06, 0.11 to 0.23 and 0.41 to 0.66 of the picture; outlines fill some half.
        area = decode(sample.members, "m.f0.t0.png").mean()
        low, high = {"small": (0.004, 0.06), "usual": (0.03, 0.23), "large": (0.10, 0.66)}[size_of(sample)]
        assert low < area < high, sample.record.id
        assert sample.record.map_rule == "mask"
        counts[size_of(sample)] += 1
    assert min(counts.values()) >= 10  # of 20 to be expected
    assert len(counts) == 3


@pytest.mark.parametrize("split", ["context", "val_context"])
def test_in_a_context_pair_the_scene_alone_decides(split: str) -> None:
    pairs = list(zip(*[iter(samples(split, scenes=8))] * 2, strict=True))
    for warm, cold in pairs:
        assert (warm.record.tags[-1], cold.record.tags[-1]) == ("warm", "cold")
        assert warm.record.group == cold.record.group
        assert warm.record.group_size == cold.record.group_size == 2
        assert warm.members["a0.flac"] == cold.members["a0.flac"]
        a, b = (sample.record.targets[0].class_id for sample in (warm, cold))
        assert twin_of(a) == b
        assert at_home(a, "warm")
        assert at_home(b, "cold")
        for sample in (warm, cold):
            assert {f"a {NAMES[a]}", f"a {NAMES[b]}"} <= set(sample.record.text["image"][13:].split(" and "))
        pictures = [decode(s.members, "f0.png").astype(int) for s in (warm, cold)]
        masks = [decode(s.members, "m.f0.t0.png") for s in (warm, cold)]
        assert not (masks[0] & masks[1]).any()
        either = masks[0] | masks[1]
        changed = abs(pictures[0] - pictures[1]).max(-1) > 3
        assert changed[~either].mean() > 0.9 - 0.2  # a third object keeps its look, too
        assert changed[either].mean() < 0.1  # an edge's antialiasing takes from the ground
    assert len({s.record.targets[0].class_id for pair in pairs for s in pair}) > 6


def test_only_what_is_at_home_sounds_when_context_is_learned() -> None:
    homes, twins = Counter(), 0
    for sample in samples("train_context", scenes=80):
        record = sample.record
        assert (record.map_rule, sorted(sample.members)) == ("none", ["a0.flac", "f0.jpg"])
        red, _, blue = decode(sample.members, "f0.jpg")[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int).mean(0)
        style = "warm" if red > blue else "cold"
        label = record.targets[0].class_id
        assert at_home(label, style)
        homes[style] += 1
        twins += f"a {NAMES[twin_of(label)]}" in record.text["image"]
    assert min(homes[s] for s in STYLES) > 25
    assert twins < 20  # most pictures show what sounds without its twin: only so can it be learned which one sounds


def test_factor_splits_hold_their_classes() -> None:
    for split, classes in (
        ("train_factors", FACTORS.heard),
        ("val_factors", FACTORS.heard),
        ("factors_heard", FACTORS.heard),
        ("factors_unheard", FACTORS.unheard),
    ):
        for sample in samples(split, scenes=30):
            record = sample.record
            (target,) = record.targets
            assert target.class_id in classes
            assert target.label_space == "world_factors27"
            assert target.class_name == FACTORS.name(target.class_id)
            assert {c.removeprefix("a ") for c in record.text["image"][13:].split(" and ")} <= {
                FACTORS.name(c) for c in classes
            }
            assert decode(sample.members, target.masks[0]).any()
            assert record.tags == ["unheard" if classes == FACTORS.unheard else "heard"]
            assert any(name.endswith(".jpg") for name in sample.members) == split.startswith("train")


def test_few_shots_are_nested_and_of_every_unheard_class_alike() -> None:
    shots = {k: list(samples(f"train_factors_{k}shot")) for k in (1, 3, 5)}
    for k, found in shots.items():
        assert Counter(s.record.targets[0].class_id for s in found) == dict.fromkeys(FACTORS.unheard, k)
        assert all(s.record.frames[0].annotated for s in found)
    for fewer, more in ((1, 3), (3, 5)):
        assert [s.members for s in shots[fewer]] == [s.members for s in shots[more]][: len(shots[fewer])]
    tested = {s.members["a0.flac"] for s in samples("factors_unheard", scenes=50)}
    assert not tested & {s.members["a0.flac"] for s in shots[5]}


# SHA-256 of three scenes: each record's JSON, then its members' names and bytes in order.
BEFORE = {
    "train_heard": "b868c5a842c83accc1aa8c1ea39315936f7d92612214115c1e3ae6da0a015fbc",
    "val": "6cc1b919de0c647ba1be7db0ff560a74f7b0e0e6407d2c29625584da0d923744",
    "single": "5e2db4fc89e29011edb6aa067a07e771d8834040f7d6102d191fe08c5addb93a",
    "heard": "0caeaa4177343a084b71cd8df3cf94268aeb58bdba79520d5de279bc38331db2",
    "unheard": "d2bafbf0cfcf314224eccdc5f48255c595e3f6eae905af230ae2801e0766d684",
    "mixture": "2a186d8a5affdc495176d6ac562027681a30979534cd5bf9911f36b37949d082",
    "pairs": "52136dad917ed31985252674e629f48e9f3e6dd7e925e009d000e87d9a651444",
    "semantic": "d43b69f3560818b36c31fabc3683a053dbe28280b549e94e2ad5c9f224ea0272",
    "val_negative": "eaa2c9c15cc75c0bbb11c5c375752e65e45d7ccc1e21886f5e0f224137800803",
    "extended": "36941c6e79470e19fdc2b8bd425d7ce8ac37e5791a03ec42d2b9bae0fa0503bb",
    "robust": "bd2dfaa65b711dd63156f85fb9a547133901011b36fc8c48544767162c4a3c40",
    "duet": "2bcdd01fe17eefa75294d05c98d71d53de43e8dfcd34b013b58529ab9ff5b68a",
    "train_masks": "edafad47522421c3daf5a01997a66198a979efb0d6206224bff0e582b41d1f49",
    "train_masks_heard": "c2f7e4b03a503268601a7dc351933d1c7e617be03e29012410ca55ec9e3da7f1",
    "crowd": "7ad81d31224d71d224cdb33b8d12a51624122fa94844bc1447b67beda698ce0b",
    "val_crowd": "651a169f388e921c26c794013339bc9ca92396407d6458e4fa74bb7dc804c207",
    "val_duet": "eff52e49e2dfafa821b110e4f13c85ba5a00319a879b31bbca73b7dd5c5f62d4",
    "trio": "d4fe65ad2a8652c574ecc4b45c13902ed27a22708f536e29dc37f98be13ccaec",
}


@pytest.mark.parametrize("split", BEFORE)
def test_splits_stay_what_they_were_before_kinds_came(split: str) -> None:
    digest = hashlib.sha256()
    for sample in samples(split, scenes=3):
        digest.update(sample.record.to_json().encode())
        for name in sorted(sample.members):
            digest.update(name.encode())
            digest.update(sample.members[name])
    assert digest.hexdigest() == BEFORE[split]


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


def test_nodes_that_write_it_at_once_on_a_shared_disk_write_it_once(tmp_path: Path) -> None:
    """`prepare_data` runs on every node."""
    fork = multiprocessing.get_context("fork")
    nodes = [fork.Process(target=write_world, args=(tmp_path / "shared", "val", 8)) for _ in range(3)]
    for node in nodes:
        node.start()
    for node in nodes:
        node.join(60)
    assert [node.exitcode for node in nodes] == [0, 0, 0]
    alone = write_world(tmp_path / "alone", "val", 8)
    assert (tmp_path / "shared" / alone.name).read_bytes() == alone.read_bytes()
    verify(read_index(tmp_path / "shared" / alone.name))
    assert not list((tmp_path / "shared").glob(".tmp-*"))
