from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avloc.data.items import make_item
from avloc.data.schema import Frame, Negative, Record, Sample, SampleError, Target
from avloc.data.truth import semantic_map, truth_maps
from tests.data.make import SPEC, boxed, painted, png, sample

VGGSS = Path(__file__).resolve().parents[2] / ".." / "shared" / "annotations" / "vggss" / "vggss.json"


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


def test_a_broken_or_missing_mask_is_named() -> None:
    record = Record("toy", "x", frames=[Frame("f0.jpg")], map_rule="mask", targets=[Target(masks=["m.f0.t0.png"])])
    with pytest.raises(SampleError, match=r"toy__x: member m.f0.t0.png is missing"):
        truth_maps(Sample(record, {}), 0)
    data = png((np.random.default_rng(0).random((64, 64)) > 0.5).astype(np.uint8))
    with pytest.raises(SampleError, match=r"toy__x.m.f0.t0.png cannot be decoded as a mask"):
        truth_maps(Sample(record, {"m.f0.t0.png": data[: len(data) // 2]}), 0)


def test_sum_counts_the_boxes_of_a_cell() -> None:
    # Three boxes of columns 0..1, 1..2 and 1..3 of a grid of four: 1, 3, 2, 1.
    boxes = [[0, 0, 0.5, 1], [0.25, 0, 0.75, 1], [0.25, 0, 1, 1]]
    assert truth_maps(boxed(boxes, "sum"), 0, 4)[0, 0].tolist() == [1, 3, 2, 1]
    assert truth_maps(boxed(boxes, "union"), 0, 4)[0, 0].tolist() == [1, 1, 1, 1]
    assert truth_maps(boxed(boxes, "consensus2"), 0, 4)[0, 0].tolist() == [0.5, 1, 1, 0.5]


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
