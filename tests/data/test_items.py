from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from avloc.data import items
from avloc.data.items import collate, make_item, make_sound, make_truth, sample_rng
from avloc.data.schema import Audio, Frame, Negative, SampleError
from avloc.data.views import fit_image
from tests.data.make import SPEC, boxed, clip, duet, gradient, jpeg, painted, png, robust, sample, sound


def test_sources_are_summed_and_a_negative_hears_its_own_sound() -> None:
    x = sample(0)
    n = 500
    waves = {"a0.flac": np.full(n, 0.25), "a1.flac": np.full(n, 0.5), "n0.flac": np.full(n, -0.125)}
    x.members |= {k: sound(w) for k, w in waves.items()}
    x.record.audios = [
        Audio("a0.flac"), Audio("a1.flac"), Audio("n0.flac", "negative"), Audio("a1.flac", "partner")
    ]  # fmt: skip
    np.testing.assert_allclose(make_sound(x, SPEC), 0.75, atol=1e-4)
    x.record.negative = Negative("noise")
    np.testing.assert_allclose(make_sound(x, SPEC), -0.125, atol=1e-4)
    x.record.audios = [Audio(None)]
    assert make_sound(x, SPEC).shape == (500,)
    assert not make_sound(x, SPEC).any()


def test_a_record_without_a_picture_is_refused() -> None:
    x = sample(0)
    x.record.frames = []
    with pytest.raises(SampleError, match="no frame"):
        make_item(x, SPEC)


@pytest.mark.parametrize("what", ["decode_image", "decode_audio", "truth_maps"])
def test_a_sample_beyond_the_memory_is_a_broken_one(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(items, what, full)
    with pytest.raises(SampleError, match=r"toy__s0003 takes more memory than there is \(Unable to"):
        make_item(sample(3), SPEC, truth_size=8)
    if what == "truth_maps":
        with pytest.raises(SampleError, match="toy__s0003 takes more memory"):
            make_truth(sample(3), SPEC, 0, 8)


def test_several_frames_are_stacked_and_cropped_alike() -> None:
    x = sample(0)
    x.record.frames = [Frame("f0.jpg"), Frame("f1.jpg")]
    x.members = x.members | {"f1.jpg": jpeg(200)}
    spec = replace(SPEC, frames=3, train_scale=1.5, train_flip=0.5)
    image = make_item(x, spec, rng=sample_rng(0, 0, "k")).image
    assert image.shape == (3, 3, 16, 16)
    assert [int(f.mean().round()) for f in image] == [0, 200, 200]  # the last is repeated


def test_collate_fills_up_missing_targets() -> None:
    items = [make_item(sample(i), SPEC, truth_size=4) for i in range(2)]
    two = make_item(sample(2), SPEC, truth_size=4)
    two.truth = np.concatenate([two.truth, np.ones((1, 4, 4), np.float32)])
    two.class_id, two.label = [2, 7], ["a", "b"]
    batch = collate([*items, two])
    assert batch.image.dtype == torch.uint8
    assert batch.image.shape == (3, 3, 16, 16)
    assert batch.audio.dtype == torch.float32
    assert batch.audio.shape == (3, 500)
    assert batch.truth is not None
    assert batch.class_id is not None
    assert batch.truth.shape == (3, 2, 4, 4)
    assert not batch.truth[:2, 1].any()
    assert batch.truth[2, 1].all()
    assert batch.class_id.tolist() == [[0, -1], [1, -1], [2, 7]]
    assert batch.label[2] == ["a", "b"]
    assert batch.index.tolist() == [-1, -1, -1]
    assert batch.video == ["v0", "v1", "v2"]
    np.testing.assert_allclose(batch.audio[1], 0.002, atol=1e-4)
    items[0].truth = None
    with pytest.raises(SampleError, match="toy__s0000 has no ground-truth map"):
        collate(items)


CROPPED = replace(SPEC, train_scale=1.5, train_flip=0.5)  # 24 pixels, of which 16 are cut out


@pytest.mark.parametrize("wide", [False, True])
def test_maps_are_cropped_and_flipped_with_the_picture(wide: bool) -> None:
    x = painted()
    spec = replace(CROPPED, resize="crop") if wide else CROPPED
    if wide:  # the upper half of a larger picture: short side 24, and the maps at twice its size
        x = painted(side=48)
        for name, data in x.members.items():
            if name.endswith(".png"):
                pixels = np.asarray(Image.open(io.BytesIO(data)))[:24]
                x.members[name] = png(pixels if name == "f0.png" else pixels.repeat(2, 0).repeat(2, 1))
    views = set()
    for epoch in range(30):
        item = make_item(x, spec, rng=sample_rng(0, epoch, "k"), truth_size=16)
        assert item.truth is not None
        assert item.semantic is not None
        assert item.semantic.dtype == np.int64
        np.testing.assert_array_equal(item.truth[0] * 255, item.image[0])
        np.testing.assert_array_equal(item.semantic * 10, item.image[1])
        views.add(item.image.tobytes())
        # A coarser grid takes the pixel at the centre of each of its cells.
        odd = replace(spec, image_size=15, train_scale=1.6)
        item = make_item(x, odd, rng=sample_rng(0, epoch, "k"), truth_size=5)
        assert item.truth is not None
        np.testing.assert_array_equal(item.truth[0] * 255, item.image[0, 1::3, 1::3])
    assert len(views) > 20


def test_boxes_are_cropped_and_flipped_with_the_picture() -> None:
    pixels = np.zeros((24, 24, 3), np.uint8)
    pixels[3:12, 6:15] += 100
    pixels[9:21, 12:24] += 100
    boxes = [[0.25, 0.125, 0.625, 0.5], [0.5, 0.375, 1, 0.875]]
    raw = [[k * 224 for k in b] for b in boxes]
    for rule, most in (("union", 1), ("consensus2", 2), ("sum", 1)):
        for target in ({}, dict(boxes_raw=raw, raw_format="xyxy_224_excl")):
            x = boxed(boxes, rule, **target)
            x.record.frames[0].member, x.members = "f.png", {"f.png": png(pixels)}
            for epoch in range(20):
                item = make_item(x, CROPPED, rng=sample_rng(0, epoch, "k"), truth_size=16)
                assert item.truth is not None
                expected = item.image[0] / 100 if rule == "sum" else np.minimum(item.image[0] / 100, most) / most
                np.testing.assert_allclose(item.truth[0], expected, atol=1e-6)


def test_the_evaluation_crop_cuts_picture_and_maps_alike() -> None:
    x = painted(side=24)
    for name, data in x.members.items():
        if name.endswith(".png"):
            x.members[name] = png(np.asarray(Image.open(io.BytesIO(data)))[4:20])  # 24 wide, 16 high
    item = make_item(x, replace(SPEC, resize="crop"), truth_size=16)
    assert item.truth is not None
    np.testing.assert_array_equal(item.truth[0] * 255, item.image[0])
    np.testing.assert_array_equal(item.truth, make_truth(x, replace(SPEC, resize="crop"), 0, 16))


def test_a_condition_changes_the_sound_and_not_the_map() -> None:
    x = robust(4)
    own = make_item(x, SPEC, truth_size=4)
    assert own.sounding
    assert own.negative == ""
    np.testing.assert_allclose(own.audio, 0.005, atol=1e-4)
    for kind, level in (("noise", 0.25), ("silence", 0.0), ("offscreen", 0.5)):
        item = make_item(x, SPEC, truth_size=4, condition=kind)
        assert not item.sounding
        assert item.negative == kind
        np.testing.assert_allclose(item.audio, level, atol=1e-4)
        np.testing.assert_array_equal(item.truth, own.truth)
        np.testing.assert_array_equal(item.image, own.image)
    assert own.truth is not None
    assert own.truth.any()


def test_batches_carry_semantic_maps_and_group_sizes() -> None:
    items = [make_item(painted(i, group="g", group_size=i + 1), SPEC, truth_size=24) for i in range(2)]
    batch = collate(items)
    assert batch.semantic is not None
    assert batch.semantic.dtype == torch.int64
    assert batch.semantic.shape == (2, 24, 24)
    green = np.asarray(Image.open(io.BytesIO(painted(1).members["f0.png"])))[:, :, 1]
    np.testing.assert_array_equal(batch.semantic[1] * 10, green)
    assert batch.group_size == [1, 2]
    assert collate([make_item(sample(0), SPEC)]).semantic is None
    items[1].semantic = None
    with pytest.raises(SampleError, match="toy__s0001 has no semantic map but others"):
        collate(items)


def test_rows_of_different_numbers_of_pictures_do_not_share_a_batch() -> None:
    for spec in (SPEC, replace(SPEC, duet="wide")):
        items = [make_item(duet(0), spec, truth_size=4), make_item(duet(1, 3), spec, truth_size=4)]
        with pytest.raises(SampleError, match=r"toy__s0000 and toy__s0001 cannot share a batch"):
            collate(items)


PADDED = replace(SPEC, image_size=24, resize="pad", interpolation="bilinear")


@pytest.mark.parametrize("size", [(60, 30), (30, 60), (37, 24), (1280, 720), (100, 1), (24, 24), (7, 7)])
def test_padded_pictures_have_sams_size_and_lie_at_the_top_left(size: tuple[int, int]) -> None:
    from segment_anything.utils.transforms import ResizeLongestSide

    width, height = size
    image = gradient(width, height)
    h, w = ResizeLongestSide.get_preprocess_shape(height, width, 24)
    h, w = max(h, 1), max(w, 1)
    expected = np.zeros((24, 24, 3), np.uint8)
    expected[:h, :w] = np.asarray(image.resize((w, h), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(fit_image(image, PADDED).transpose(1, 2, 0), expected)
    x = sample(0)
    x.record.frames[0].width, x.record.frames[0].height = size
    x.members["f0.jpg"] = png(np.asarray(image))
    for picture in (True, False):  # the size is told by the record as well
        item = make_item(x, PADDED, picture=picture)
        assert item.size == (h, w)
        assert item.image.shape == ((3, 24, 24) if picture else (3, 0, 0))
    batch = collate([make_item(x, PADDED), make_item(sample(1), PADDED)])
    assert batch.size is not None
    assert batch.size.dtype == torch.int64
    assert batch.size.tolist() == [[h, w], [20, 24]]
    assert batch.take([1]).size.tolist() == [[20, 24]]  # type: ignore[union-attr]
    assert collate([make_item(x, SPEC)]).size is None


def test_a_record_that_does_not_tell_its_size_is_measured_without_pixels_too() -> None:
    x = sample(0)
    x.record.frames[0].width = 0
    assert make_item(x, PADDED, picture=False).size == (20, 24)


def test_maps_of_a_padded_picture_are_those_of_the_picture_mirrored_with_it() -> None:
    x = painted(side=24)
    for name, data in x.members.items():
        if name.endswith(".png"):
            x.members[name] = png(np.asarray(Image.open(io.BytesIO(data)))[:12])  # 24 wide, 12 high
    flipping = replace(PADDED, train_flip=0.5)
    red = np.asarray(Image.open(io.BytesIO(x.members["f0.png"])))[:, :, 0]
    flips = set()
    for epoch in range(12):
        item = make_item(x, flipping, rng=sample_rng(0, epoch, "k"), truth_size=(12, 24))
        assert item.truth is not None
        assert item.size == (12, 24)
        np.testing.assert_array_equal(item.image[0, :12], item.truth[0] * 255)
        np.testing.assert_array_equal(item.image[1, :12], item.semantic * 10)  # type: ignore[operator]
        assert not item.image[:, 12:].any()
        flips.add(bool((item.truth[0] * 255 == red[:, ::-1]).all()))
    assert flips == {True, False}
    square = make_item(x, PADDED, truth_size=24)
    assert square.truth is not None
    np.testing.assert_array_equal(square.truth[0] * 255, red.repeat(2, 0))
    np.testing.assert_array_equal(make_truth(x, PADDED, 0, 24), square.truth)


def test_pictures_are_not_padded_where_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"pad shows the whole picture, but train_scale 1.1 would cut"):
        replace(PADDED, train_scale=1.1)
    with pytest.raises(SampleError, match=r"toy__s0000 is a duet of 2 pictures.*needs InputSpec.resize squash or crop"):
        make_item(duet(0), PADDED)
    x = sample(0)
    x.record.frames = [Frame("f0.jpg"), Frame("f1.jpg")]
    x.members["f1.jpg"] = jpeg(0, (20, 24))
    with pytest.raises(SampleError, match="toy__s0000: its frames have different shapes"):
        make_item(x, replace(PADDED, frames=2))


def test_duets_have_oblong_tiles_too() -> None:
    item = make_item(duet(0, 3), SPEC, truth_size=(2, 4))
    assert item.truth is not None
    expected = np.zeros((3, 2, 12))
    for t in range(3):
        expected[t, :, 4 * t : 4 * t + t + 1] = 1  # box t covers the first t + 1 quarters
    np.testing.assert_array_equal(item.truth, expected)


def test_avsbench_hears_second_i_of_both_channels_with_frame_i() -> None:
    x = clip(0, 5, ())
    wave = np.arange(5).repeat(1000)[:, None] / 10 + np.array([[0, 0.05]])
    x.members["a0.flac"] = sound(wave)
    x.record.audios[0].duration = 5.0
    for frame in x.record.frames:
        frame.t += 15 / 16  # the last of sixteen pictures a second
    spec = replace(SPEC, window="frame", seconds=1.0)
    for i in range(5):
        np.testing.assert_allclose(make_item(x, spec, i).audio, i / 10 + 0.025, atol=1e-4)
        np.testing.assert_allclose(make_item(x, replace(spec, channels="first"), i).audio, i / 10, atol=1e-4)
    np.testing.assert_allclose(make_item(x, replace(spec, window="head"), 3).audio, 0.025, atol=1e-4)


def test_each_sound_of_a_duet_is_that_of_its_own_frame() -> None:
    x = duet(0)
    for t, frame in enumerate(x.record.frames):
        x.members[f"a{t}.flac"] = sound(np.arange(4).repeat(500) * (0.01 if t else 0.1))
        frame.t = [0.5, 1.6][t]
    spec = replace(SPEC, window="frame", seconds=0.5)
    np.testing.assert_allclose(make_item(x, spec).audio, 0.1 + 0.03, atol=1e-4)
    y = robust(0)
    y.record.frames[0].t = 1.0
    for name in ("a0.flac", "n0.flac"):
        y.members[name] = sound(np.arange(4).repeat(500) * (0.1 if name == "a0.flac" else 0.2))
        y.record.audios[0].duration = 2.0
    np.testing.assert_allclose(make_item(y, spec).audio, 0.2, atol=1e-4)
    np.testing.assert_allclose(make_item(y, spec, condition="noise").audio, 0.4, atol=1e-4)


def test_stored_features_travel_with_the_batch() -> None:
    items = [make_item(sample(i), SPEC) for i in range(3)]
    assert collate(items).stored == {}
    for i, item in enumerate(items):
        item.stored = {"x": np.full((2, 3), i, np.float16), "n": np.array(i, np.uint8)}
    batch = collate(items)
    assert {k: (v.dtype, list(v.shape)) for k, v in batch.stored.items()} == {
        "x": (torch.float16, [3, 2, 3]), "n": (torch.uint8, [3])
    }  # fmt: skip
    taken = batch.take([2, 0])
    assert taken.stored["n"].tolist() == [2, 0]
    assert taken.stored["x"][:, 0, 0].tolist() == [2, 0]
    batch.size = torch.tensor([[4, 5], [5, 4], [5, 5]])
    moved = batch.to("meta")
    assert {moved.image.device.type, moved.stored["x"].device.type} == {"meta"}
    assert moved.size is not None
    assert moved.size.tolist() == [[4, 5], [5, 4], [5, 5]]  # told to Python without waiting for the device
    assert batch.stored["n"].tolist() == [0, 1, 2]
