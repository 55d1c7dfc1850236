"""The world's pictures: honest masks, honest variety, nothing that gives the sounding object away."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avloc.world.scenes import (
    BANDS,
    CLASSES,
    HEARD,
    STYLES,
    UNHEARD,
    band_of,
    render,
    rgb,
    sample_scenes,
    sample_sizes,
    styled,
)


def test_twelve_or_more_classes_with_looks_of_their_own() -> None:
    assert len(CLASSES) >= 12
    assert len({(c.outline, c.pattern, round(c.hue, 1)) for c in CLASSES}) == len(CLASSES)
    assert set(HEARD) | set(UNHEARD) == set(range(len(CLASSES)))
    assert not set(HEARD) & set(UNHEARD)


def test_a_scene_holds_two_or_more_objects_of_different_classes() -> None:
    scenes = sample_scenes(np.random.default_rng(0), 300)
    assert scenes.present.sum(1).min() >= 2
    for labels, present in zip(scenes.label, scenes.present, strict=True):
        there = labels[present].tolist()
        assert len(set(there)) == len(there)


def test_same_seed_same_scenes_and_pictures() -> None:
    a, b = (render(sample_scenes(np.random.default_rng(7), 4), 48) for _ in range(2))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    other = render(sample_scenes(np.random.default_rng(8), 4), 48)
    assert not torch.equal(a[0], other[0])


def test_masks_are_where_the_picture_changes() -> None:
    scenes = sample_scenes(np.random.default_rng(1), 40)
    picture, mask = render(scenes, 64)
    empty = sample_scenes(np.random.default_rng(1), 40)
    empty.present[:] = False
    ground, nothing = render(empty, 64)
    assert not nothing.any()
    changed = (picture.int() - ground.int()).abs().amax(1) > 3
    covered = mask.any(1)
    inside = (changed & covered).sum() / covered.sum()
    # Antialiasing reaches two pixels beyond curved outlines, and a colour may equal its ground by chance.
    assert inside > 0.95
    edge = torch.nn.functional.max_pool2d(covered.float(), 5, 1, 2).bool()
    assert (changed & ~edge).sum() < 0.01 * covered.sum()


def test_masks_do_not_overlap_and_fill_about_a_tenth() -> None:
    scenes = sample_scenes(np.random.default_rng(2), 200)
    _, mask = render(scenes, 64)
    assert mask.sum(1).max() <= 1
    area = mask.float().mean((-1, -2))[scenes.present]
    assert 0.08 < area.mean() < 0.14


def test_the_sounding_object_cannot_be_told_from_the_picture() -> None:
    """The first object sounds: its size and place must be distributed as the second's."""
    scenes = sample_scenes(np.random.default_rng(3), 2000)
    _, mask = render(scenes, 32)
    area = mask.float().mean((-1, -2))
    first, second = area[:, 0], area[:, 1]
    error = (first - second).std() / len(first) ** 0.5
    assert (first - second).mean().abs() < 4 * error + 0.003  # the second lies in front of the first
    centre = (scenes.pose[:, :2, :2] - 0.5).norm(dim=-1)
    assert (centre[:, 0] - centre[:, 1]).mean().abs() < 0.02


def test_sizes_differ_within_a_scene_and_each_is_a_third() -> None:
    scenes = sample_sizes(np.random.default_rng(5), 1500)
    bands = [
        [band_of(float(r)) for r, there in zip(pose[:, 2], present, strict=True) if there]
        for pose, present in zip(scenes.pose, scenes.present, strict=True)
    ]
    assert {len(row) for row in bands} == {2, 3}
    assert all(len(set(row)) == len(row) for row in bands)  # at most one is large
    radius = torch.where(scenes.present, scenes.pose[..., 2], 0.0)
    assert (radius[:, :-1] >= radius[:, 1:]).all()  # the small ones in front
    flat = [band for row in bands for band in row]
    assert all(abs(flat.count(band) / len(flat) - 1 / 3) < 0.02 for band in BANDS)
    _, mask = render(scenes[:200], 64)
    area = mask.float().mean((-1, -2))[scenes.present[:200]]
    assert area.min() > 0  # nothing is hidden
    assert (area > 0.2).float().mean() > 0.2  # a share of large ones


@pytest.mark.parametrize("size", BANDS)
def test_a_band_holds_its_ends(size: str) -> None:
    assert {band_of(float(np.float32(r))) for r in BANDS[size]} == {size}


def test_a_style_changes_the_ground_and_nothing_else() -> None:
    scenes = sample_scenes(np.random.default_rng(6), 30)
    warm, cold = (styled(np.random.default_rng(7), scenes, [style] * 30) for style in STYLES)
    for field in ("label", "present", "pose", "paint"):
        assert torch.equal(getattr(warm, field), getattr(scenes, field))
    assert torch.equal(warm.ground[:, 6:], scenes.ground[:, 6:])
    for k in (0, 3):
        assert (warm.ground[:, k] > warm.ground[:, k + 2] + 0.1).all()  # more red than blue, at the top and below
        assert (cold.ground[:, k] < cold.ground[:, k + 2] - 0.1).all()
        assert torch.equal(warm.ground[:, k + 1], cold.ground[:, k + 1])


def test_same_scene_at_two_sizes() -> None:
    scenes = sample_scenes(np.random.default_rng(4), 6)
    small, large = render(scenes, 48)[0].float(), render(scenes, 192)[0].float()
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert (small - shrunk).abs().mean() < 4  # of 255


@pytest.mark.parametrize(
    ("hsv", "want"), [((0, 1, 1), (1, 0, 0)), ((1 / 3, 1, 0.5), (0, 0.5, 0)), ((0.7, 0, 1), (1, 1, 1))]
)
def test_rgb(hsv: tuple[float, ...], want: tuple[float, ...]) -> None:
    torch.testing.assert_close(rgb(torch.tensor([hsv]).float()), torch.tensor([want]).float())
