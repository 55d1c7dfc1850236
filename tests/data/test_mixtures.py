from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from avloc.data.items import collate, make_item, sample_rng
from avloc.data.mixtures import per_tile, side_by_side
from avloc.data.schema import SampleError
from tests.data.make import SPEC, duet, painted, png

WIDE = replace(SPEC, duet="wide")


def test_a_row_holds_its_pictures_from_left_to_right() -> None:
    pictures = [np.random.default_rng(t).integers(0, 256, (3, 8, 8), np.uint8) for t in range(3)]
    row = side_by_side(pictures)
    assert row.shape == (3, 8, 24)
    for t, picture in enumerate(pictures):
        np.testing.assert_array_equal(row[:, :, 8 * t : 8 * t + 8], picture)
    squashed = side_by_side(pictures, Image.Resampling.BILINEAR)
    whole = Image.fromarray(row.transpose(1, 2, 0).copy()).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(squashed.transpose(1, 2, 0), np.asarray(whole))


def test_each_source_is_in_its_own_tile_alone() -> None:
    maps = [np.full((2, 2), t + 1.0, np.float32) for t in range(3)]
    tiles = per_tile(maps)
    assert tiles.shape == (3, 2, 6)
    assert tiles[:, 0].tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 2, 2, 0, 0], [0, 0, 0, 0, 3, 3]]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_duet_is_one_unit_with_the_sum_of_its_sounds(n: int) -> None:
    item = make_item(duet(0, n), WIDE, truth_size=4)
    assert item.image.shape == (3, 16, 16 * n)
    assert [item.image[0, 5, 16 * t + 8] for t in range(n)] == [50 * (t + 1) for t in range(n)]
    np.testing.assert_allclose(item.audio, sum(0.1 * (t + 1) for t in range(n)), atol=1e-3)
    assert item.truth is not None
    assert item.truth.shape == (n, 4, 4 * n)
    for t in range(n):  # box t covers t + 1 quarters of picture t
        assert np.nonzero(item.truth[t, 0])[0].tolist() == list(range(4 * t, 4 * t + t + 1))
    assert item.label == [f"c{t}" for t in range(n)]
    squashed = make_item(duet(0, n), SPEC, truth_size=4)
    assert squashed.image.shape == (3, 16, 16)
    np.testing.assert_array_equal(squashed.truth, item.truth)
    batch = collate([item, make_item(duet(1, n), WIDE, truth_size=4)])
    assert batch.image.shape == (2, 3, 16, 16 * n)
    assert batch.truth is not None
    assert batch.truth.shape == (2, n, 4, 4 * n)


def test_each_picture_of_a_duet_is_cropped_and_flipped_with_its_maps() -> None:
    one, two = painted(1), painted(2)
    record = duet(0).record
    record.map_rule = "mask"
    for t, frame in enumerate(record.frames):
        frame.member, frame.semantic = f"f{t}.png", f"sem.f{t}.png"
        record.targets[t].boxes, record.targets[t].masks = [], [f"m.f{t}.t{t}.png"]
    record.validate()
    x = duet(0)
    x.record = record
    for t, part in enumerate((one, two)):
        names = {"f0.png": f"f{t}.png", "sem.f0.png": f"sem.f{t}.png", "m.f0.t0.png": f"m.f{t}.t{t}.png"}
        x.members |= {new: part.members[old] for old, new in names.items()}
    spec = replace(WIDE, train_scale=1.5, train_flip=0.5)
    apart = 0
    for epoch in range(20):
        item = make_item(x, spec, rng=sample_rng(0, epoch, "k"), truth_size=16)
        assert item.truth is not None
        assert item.semantic is not None
        np.testing.assert_array_equal(item.truth.max(0) * 255, item.image[0])
        np.testing.assert_array_equal(item.semantic * 10, item.image[1])
        assert not item.truth[0, :, 16:].any()
        assert not item.truth[1, :, :16].any()
        x.members["f1.png"], kept = x.members["f0.png"], x.members["f1.png"]
        same = make_item(x, spec, rng=sample_rng(0, epoch, "k")).image
        apart += not np.array_equal(same[:, :, :16], same[:, :, 16:])
        x.members["f1.png"] = kept
    assert apart > 15  # the two are not cropped alike


def test_a_negative_duet_has_an_empty_row() -> None:
    x = duet(0)
    x.record.sounding = False
    item = make_item(x, SPEC, truth_size=4)
    assert item.truth is not None
    assert item.truth.shape == (2, 4, 8)
    assert not item.truth.any()


@pytest.mark.parametrize("member", ["f1.jpg", "a1.flac"])
def test_a_missing_second_picture_or_sound_is_named(member: str) -> None:
    x = duet(3)
    del x.members[member]
    with pytest.raises(SampleError, match=f"toy__s0003: member {member} is missing"):
        make_item(x, SPEC)


def test_a_duet_is_no_sequence() -> None:
    with pytest.raises(SampleError, match=r"toy__s0000 is a duet of 2 pictures.*takes 3 frames at once"):
        make_item(duet(0), replace(SPEC, frames=3))


def test_pictures_of_other_sizes_are_squashed_each() -> None:
    x = duet(0)
    x.members["f1.jpg"] = png(np.full((5, 90, 3), 200, np.uint8))
    image = make_item(x, WIDE).image
    assert image.shape == (3, 16, 32)
    assert (image[:, :, 16:] == 200).all()
    assert Image.open(io.BytesIO(x.members["f0.jpg"])).size == (24, 20)
