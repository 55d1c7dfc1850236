from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avloc.data.schema import Audio, Frame, Negative, Record, Sample, SampleError, Target
from avloc.data.transforms import (
    collate,
    decode_audio,
    decode_image,
    fit_audio,
    fit_image,
    make_item,
    make_sound,
    make_truth,
    sample_rng,
    semantic_map,
    truth_maps,
)
from avloc.types import InputSpec
from tests.data.make import SPEC, clip, duet, jpeg, painted, png, robust, sample, sound

VGGSS = Path(__file__).resolve().parents[2] / ".." / "shared" / "annotations" / "vggss" / "vggss.json"


def boxed(boxes: list[list[float]], rule: str = "union", **target: object) -> Sample:
    record = Record("toy", "x", frames=[Frame("f0.jpg", annotated=True)], map_rule=rule)  # type: ignore[arg-type]
    record.targets = [Target(boxes=boxes, **target)]  # type: ignore[arg-type]
    return Sample(record, {})


def test_vggss_worked_example_one_box() -> None:
    # datasets.md 2.2: zpWuikVorYg_000032 becomes columns 90..133, rows 56..167: 4,928 px
    (truth,) = truth_maps(boxed([[0.403125, 0.253125, 0.6, 0.75]]), 0)
    rows, columns = np.nonzero(truth)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (90, 133, 56, 167)
    assert truth.sum() == 4928
    assert truth.dtype == np.float32


def test_vggss_worked_example_union_of_two() -> None:
    # datasets.md 2.2: ORaz32CQ29k_000130, boxes (27,38,134,191) and (171,61,220,126), union 19,556 px
    boxes = [[0.121875, 0.171875, 0.6, 0.853125], [0.765625, 0.275, 0.984375, 0.565625]]
    (truth,) = truth_maps(boxed(boxes), 0)
    expected = np.zeros((224, 224))
    expected[38:191, 27:134] = 1
    expected[61:126, 171:220] = 1
    np.testing.assert_array_equal(truth, expected)
    assert truth.sum() == 19556


def test_flickr_worked_example_consensus() -> None:
    # datasets.md 2.5: 15,092 px at 1, 7,497 px at 0.5, sum 18,840.5
    raw = [[64.0, 32, 192, 224], [80.0, 48, 200, 240], [0.0, 0, 40, 40]]
    boxes = [[v / 256 for v in b] for b in raw]
    for target in (dict(boxes_raw=raw, raw_format="xyxy_256"), {}):
        (truth,) = truth_maps(boxed(boxes, "consensus2", **target), 0)
        assert (truth == 1).sum() == 15092
        assert (truth == 0.5).sum() == 7497
        assert truth.sum() == 18840.5


def test_music_worked_example_width_height_boxes() -> None:
    # datasets.md 2.17: columns 73..125, rows 27..216, 10,070 px
    x, y, w, h = 0.328125, 0.1222, 0.234375, 0.85
    (truth,) = truth_maps(boxed([[x, y, x + w, y + h]], boxes_raw=[[x, y, w, h]], raw_format="xywh_norm"), 0)
    rows, columns = np.nonzero(truth)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (
        73,
        125,
        27,
        216,
    )
    assert truth.sum() == 10070


def test_integer_boxes_lose_no_cell_to_rounding() -> None:
    for k in range(1, 225):
        (truth,) = truth_maps(boxed([[0, 0, k / 224, 1]], boxes_raw=[[0, 0, k, 224]], raw_format="xyxy_224_excl"), 0)
        assert truth.sum() == 224 * k


@pytest.mark.skipif(not VGGSS.exists(), reason="the annotation files are not on this machine")
def test_vggss_as_a_whole_has_the_published_area() -> None:
    # datasets.md section 4: 0.3124 +- 0.2342 and two empty maps
    from data_prep.vggsound import vggss_target

    areas = []
    for row in json.loads(VGGSS.read_text()):
        target = vggss_target(0, row["class"], row["bbox"])
        record = Record("vggss", row["file"], targets=[target], map_rule="union")
        areas.append(truth_maps(Sample(record, {}), 0).mean())
    assert len(areas) == 5158
    assert np.mean(areas) == pytest.approx(0.3124, abs=5e-5)
    assert np.std(areas) == pytest.approx(0.2342, abs=5e-5)
    assert areas.count(0) == 2


def test_masks_are_one_map_per_target_and_any_nonzero_value_counts() -> None:
    a, b = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    a[0, :] = 1
    b[:, 3] = 255
    record = Record("toy", "x", frames=[Frame("f0.jpg"), Frame("f1.jpg")], map_rule="mask")
    record.targets = [Target(masks=["m.f0.t0.png"]), Target(masks=["m.f0.t1.png", "m.f1.t1.png"])]
    members = {"m.f0.t0.png": png(a), "m.f0.t1.png": png(b.astype(bool)), "m.f1.t1.png": png(a)}
    truth = truth_maps(Sample(record, members), 0, 8)
    np.testing.assert_array_equal(truth, np.kron([a > 0, b > 0], np.ones((2, 2))))
    np.testing.assert_array_equal(truth_maps(Sample(record, members), 1, 4), [np.zeros((4, 4)), a > 0])


def test_nothing_sounding_is_the_zero_map_unless_the_positive_is_asked_for() -> None:
    x = boxed([[0, 0, 1, 1]])
    x.record.sounding, x.record.negative = False, Negative("silence")
    assert truth_maps(x, 0, 4).shape == (1, 4, 4)
    assert not truth_maps(x, 0, 4).any()
    x.record.negative.original_target = True
    assert truth_maps(x, 0, 4).all()
    assert truth_maps(boxed([], "none"), 0, 4) is None


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 0 * x], 2).astype(np.uint8))


def test_squash_and_crop_are_pillows() -> None:
    image = gradient(60, 30)
    squashed = fit_image(image, InputSpec(image_size=20, interpolation="bilinear"))
    expected = image.resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(squashed.transpose(1, 2, 0), np.asarray(expected))
    cropped = fit_image(image, InputSpec(image_size=20, resize="crop"))
    expected = image.resize((40, 20), Image.Resampling.BICUBIC).crop((10, 0, 30, 20))
    np.testing.assert_array_equal(cropped.transpose(1, 2, 0), np.asarray(expected))


def test_training_crops_and_flips_follow_from_seed_epoch_and_key() -> None:
    spec = InputSpec(image_size=352, train_scale=1.1, train_flip=0.5)
    image = gradient(500, 400)
    a = fit_image(image, spec, sample_rng(1, 2, "k"))
    assert a.shape == (3, 352, 352)
    np.testing.assert_array_equal(a, fit_image(image, spec, sample_rng(1, 2, "k")))
    whole = np.asarray(image.resize((387, 387), Image.Resampling.BICUBIC)).transpose(2, 0, 1)  # int(352 * 1.1)
    corners, flips = set(), 0
    for epoch in range(40):
        view = fit_image(image, spec, sample_rng(1, epoch, "k"))
        flipped = view[0, 0, 0] > view[0, 0, -1]
        flips += flipped
        view = view[:, :, ::-1] if flipped else view
        corner = next((t, x) for t in range(36) for x in range(36)
                      if np.array_equal(whole[:, t : t + 352, x : x + 352], view))  # fmt: skip
        corners.add(corner)
    assert len(corners) > 30
    assert 10 < flips < 30


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(seconds=0.003), [1, 2, 3]),
        (dict(seconds=0.003, window="centre"), [2, 3, 4]),
        (dict(seconds=0.007), [1, 2, 3, 4, 5, 0, 0]),
        (dict(seconds=0.012, pad="tile"), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]),
    ],
)
def test_windows_and_padding(changes: dict, expected: list[int]) -> None:
    wave = np.array([[1, 2, 3, 4, 5]], np.float32).T
    assert fit_audio(wave, replace(SPEC, **changes)).tolist() == expected


def test_channels() -> None:
    stereo = np.array([[1, 3], [2, 6]], np.float32)
    spec = replace(SPEC, seconds=0.004)
    assert fit_audio(stereo, spec).tolist() == [2, 4, 0, 0]
    assert fit_audio(stereo, replace(spec, channels="first")).tolist() == [1, 2, 0, 0]
    assert fit_audio(stereo, replace(spec, channels="left_then_right")).tolist() == [1, 2, 3, 6]


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


def test_opus_and_wav_decode_to_the_same_sound_as_flac() -> None:
    t = np.arange(16000) / 16000
    wave = 0.3 * np.sin(2 * np.pi * 440 * t)
    flac = decode_audio(sound(wave, 16000), "x", 16000, 1.0)
    np.testing.assert_allclose(flac[:, 0], wave, atol=1e-4)
    np.testing.assert_allclose(decode_audio(sound(wave, 16000, "WAV"), "x", 16000, 1.0), flac, atol=1e-4)
    opus = decode_audio(sound(wave, 16000, "OGG", "OPUS"), "x", 16000, 1.0)
    assert np.corrcoef(opus[1000:15000, 0], wave[1000:15000])[0, 1] > 0.99


NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (sound(NOISE, 16000)[:6000], "cannot be decoded as sound|is cut off"),
        (sound(NOISE, 16000, "WAV")[:6000], "is cut off: .* samples of 16000"),
        (sound(NOISE, 16000, "OGG", "OPUS")[:3000], "cannot be decoded as sound|is cut off"),
        (sound(NOISE, 8000), "has 8000 Hz, the method wants 16000 Hz. Write the shards at that rate"),
        (sound(np.array([]), 16000, "WAV"), "no samples at all"),
        (sound(np.full(16000, np.nan), 16000, "WAV", "FLOAT"), "NaN or infinite"),
        (b"", "cannot be decoded as sound"),
        (b"not a sound", "cannot be decoded as sound"),
    ],
)
def test_broken_sounds_are_named(data: bytes, says: str) -> None:
    with pytest.raises(SampleError, match=f"^toy__1.a0 .*({says})"):
        decode_audio(data, "toy__1.a0", 16000, 1.0)


def test_a_truncated_jpeg_is_named() -> None:
    data = io.BytesIO()
    Image.fromarray((np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8)).save(data, "JPEG")
    for broken in (data.getvalue()[:2000], data.getvalue()[:20], b"", b"no picture"):
        with pytest.raises(SampleError, match=r"^toy__1.f0.jpg cannot be decoded as a picture"):
            decode_image(broken, "toy__1.f0.jpg")


def test_a_broken_or_missing_mask_is_named() -> None:
    record = Record("toy", "x", frames=[Frame("f0.jpg")], map_rule="mask", targets=[Target(masks=["m.f0.t0.png"])])
    with pytest.raises(SampleError, match=r"toy__x: member m.f0.t0.png is missing"):
        truth_maps(Sample(record, {}), 0)
    data = png((np.random.default_rng(0).random((64, 64)) > 0.5).astype(np.uint8))
    with pytest.raises(SampleError, match=r"toy__x.m.f0.t0.png cannot be decoded as a mask"):
        truth_maps(Sample(record, {"m.f0.t0.png": data[: len(data) // 2]}), 0)


def test_a_record_without_a_picture_is_refused() -> None:
    x = sample(0)
    x.record.frames = []
    with pytest.raises(SampleError, match="no frame"):
        make_item(x, SPEC)


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


def test_sum_counts_the_boxes_of_a_cell() -> None:
    # Three boxes of columns 0..1, 1..2 and 1..3 of a grid of four: 1, 3, 2, 1.
    boxes = [[0, 0, 0.5, 1], [0.25, 0, 0.75, 1], [0.25, 0, 1, 1]]
    assert truth_maps(boxed(boxes, "sum"), 0, 4)[0, 0].tolist() == [1, 3, 2, 1]
    assert truth_maps(boxed(boxes, "union"), 0, 4)[0, 0].tolist() == [1, 1, 1, 1]
    assert truth_maps(boxed(boxes, "consensus2"), 0, 4)[0, 0].tolist() == [0.5, 1, 1, 0.5]


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


def test_a_palette_picture_is_read_as_indices_and_wide_ones_keep_their_numbers() -> None:
    x = painted()
    indices = np.arange(16, dtype=np.uint8).reshape(4, 4)
    indices[3, 3] = 255
    palette = Image.fromarray(indices)
    palette.putpalette(list(range(255, -1, -1)) * 3)
    data = io.BytesIO()
    palette.save(data, "PNG")
    x.members["sem.f0.png"] = data.getvalue()
    np.testing.assert_array_equal(semantic_map(x, 0, 8), np.kron(indices, np.ones((2, 2))))
    x.members["sem.f0.png"] = png(indices.astype(np.uint16) * 100)
    np.testing.assert_array_equal(semantic_map(x, 0, 4), indices.astype(int) * 100)


def test_semantic_maps_that_are_missing_broken_or_coloured_are_named() -> None:
    x = painted()
    x.members["sem.f0.png"] = png(np.zeros((24, 24, 3), np.uint8))
    with pytest.raises(SampleError, match=r"toy__s0000.sem.f0.png is a colour picture \(mode RGB\)"):
        make_item(x, SPEC, truth_size=8)
    x.members["sem.f0.png"] = b"no picture"
    with pytest.raises(SampleError, match=r"toy__s0000.sem.f0.png cannot be decoded"):
        make_item(x, SPEC, truth_size=8)
    del x.members["sem.f0.png"]
    with pytest.raises(SampleError, match=r"toy__s0000: member sem.f0.png is missing"):
        make_item(x, SPEC, truth_size=8)
    assert make_item(x, SPEC).semantic is None  # not asked for
    assert semantic_map(sample(0), 0) is None
    x.record.sounding = False
    assert not semantic_map(x, 0, 8).any()


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


def test_boxes_fill_an_oblong_grid() -> None:
    x = boxed([[0.25, 0.5, 0.75, 1]], boxes_raw=[[56, 112, 168, 224]], raw_format="xyxy_224_excl")
    for target in (x.record.targets[0], Target(boxes=[[0.25, 0.5, 0.75, 1]])):
        x.record.targets = [target]
        (truth,) = truth_maps(x, 0, (6, 16))  # type: ignore[misc]
        expected = np.zeros((6, 16))
        expected[3:, 4:12] = 1
        np.testing.assert_array_equal(truth, expected)


def test_masks_at_their_native_size_keep_every_pixel() -> None:
    rng = np.random.default_rng(0)
    mask, classes = rng.random((9, 17)) < 0.5, rng.integers(0, 9, (9, 17)).astype(np.uint8)
    x = painted()
    x.members |= {"m.f0.t0.png": png(mask), "sem.f0.png": png(classes)}
    np.testing.assert_array_equal(truth_maps(x, 0, (9, 17)), mask[None])
    np.testing.assert_array_equal(semantic_map(x, 0, (9, 17)), classes)
    x.record.sounding = False
    assert truth_maps(x, 0, [9, 17]).shape == (1, 9, 17)  # type: ignore[union-attr]
    assert semantic_map(x, 0, [9, 17]).shape == (9, 17)  # type: ignore[union-attr]


def test_duets_have_oblong_tiles_too() -> None:
    item = make_item(duet(0, 3), SPEC, truth_size=(2, 4))
    assert item.truth is not None
    expected = np.zeros((3, 2, 12))
    for t in range(3):
        expected[t, :, 4 * t : 4 * t + t + 1] = 1  # box t covers the first t + 1 quarters
    np.testing.assert_array_equal(item.truth, expected)


@pytest.mark.parametrize(
    ("t", "seconds", "pad", "expected"),
    [
        (0.0, 0.002, "zeros", [0, 1]),
        (0.0019, 0.002, "zeros", [0, 1]),
        (0.002, 0.002, "zeros", [2, 3]),
        (0.0049, 0.002, "zeros", [4, 5]),
        (0.006, 0.002, "zeros", [6, 0]),  # of seven samples, the last stretch is half empty
        (0.006, 0.002, "tile", [6, 6]),
        (0.5, 0.002, "zeros", [6, 0]),  # long after the clip
        (-0.1, 0.002, "zeros", [0, 1]),
        (0.0069, 0.007, "zeros", [0, 1, 2, 3, 4, 5, 6]),
        (0.007, 0.007, "zeros", [0, 1, 2, 3, 4, 5, 6]),
        (0.004, 0.009, "zeros", [0, 1, 2, 3, 4, 5, 6, 0, 0]),
    ],
)
def test_the_sound_of_a_frame_is_the_stretch_that_it_lies_in(
    t: float, seconds: float, pad: str, expected: list[int]
) -> None:
    spec = replace(SPEC, window="frame", seconds=seconds, pad=pad)  # type: ignore[arg-type]
    wave = np.arange(7, dtype=np.float32)[:, None]
    assert fit_audio(wave, spec, t).tolist() == expected
    stereo = np.concatenate([wave - 1, wave + 1], 1)
    assert fit_audio(stereo, spec, t).tolist() == expected


def test_times_that_binary_fractions_miss_still_belong_to_their_stretch() -> None:
    spec = replace(SPEC, window="frame", seconds=0.1)
    wave = np.arange(1000, dtype=np.float32)[:, None]
    starts = [fit_audio(wave, spec, k * 0.1)[0] for k in range(10)]  # 3 * 0.1 / 0.1 > 3, 0.7 / 0.1 < 7
    assert starts == [100 * k for k in range(10)]
    assert [fit_audio(wave, spec, k / 10)[0] for k in range(10)] == starts
    with pytest.raises(ValueError, match="window frame cuts the sound by time"):
        replace(spec, channels="left_then_right")


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
    assert batch.to("meta").stored["x"].device.type == "meta"
    assert batch.stored["n"].tolist() == [0, 1, 2]


def test_a_very_long_picture_is_cut_before_it_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """60,000 x 1 as 32 x 32 would be 61 million pixels on the way; where both ways can be gone they agree."""
    spec = InputSpec(image_size=32, resize="crop")
    ramp = np.repeat((np.arange(60000) // 300).astype(np.uint8)[None, :, None], 3, 2)
    wide = fit_image(Image.fromarray(np.repeat(ramp[:, 20000:30000], 4, 0)), spec)
    monkeypatch.setattr("avloc.data.transforms.MOST_PIXELS", 1000)
    assert fit_image(Image.fromarray(ramp), spec).shape == (3, 32, 32)
    assert fit_image(Image.fromarray(ramp.transpose(1, 0, 2).copy()), spec).shape == (3, 32, 32)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 400, 3), np.uint8)).resize((200, 20))
    cut = fit_image(noise, spec)
    assert np.array_equal(fit_image(Image.fromarray(np.repeat(ramp[:, 20000:30000], 4, 0)), spec), wide)
    monkeypatch.undo()
    whole = fit_image(noise, spec)
    assert np.abs(cut.astype(int) - whole)[:, 2:-2, 2:-2].max() <= 1
