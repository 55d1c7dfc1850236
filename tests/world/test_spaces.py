"""How the world's spaces are trained and judged: boxes, mixtures and scores by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avloc.world.scenes import NAMES
from avloc.world.towers.hearing import against_sights, hearing_score, mixtures
from avloc.world.towers.imagebind import boxes_in, cropped, looking_score
from avloc.world.towers.pools import TAU

C = len(NAMES)


def test_half_of_the_sounds_are_mixed_and_the_shares_say_with_what() -> None:
    audio, label = torch.eye(8), torch.arange(8)
    sums, share = mixtures(audio, label)
    alone = [[0], [1], [2], [3]]
    two = [[4, 6], [5, 7]]
    three = [[6, 0, 2], [7, 1, 3]]
    for row, classes in enumerate(alone + two + three):
        assert sums[row].nonzero()[:, 0].tolist() == sorted(classes)
        want = torch.zeros(C)
        want[classes] = 1 / len(classes)
        torch.testing.assert_close(share[row], want)
    assert torch.equal(mixtures(audio, label * 0)[1][7], torch.eye(C)[0])


def test_boxes_say_how_much_of_each_class_they_show() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(40, 2, 64, 64)
    mask[:, 0, 10:30, 20:50] = 1
    mask[:20, 1, 40:60, 5:25] = 1
    label = torch.tensor([[3, 7]] * 20 + [[3, -1]] * 20)
    boxes, where, shows = boxes_in(mask, label)
    assert len(boxes) == 60 + 60 + 40
    assert boxes.min() >= 0
    assert boxes[:, :2].max() <= 64
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 6 - 1e-4
    torch.testing.assert_close(shows.sum(1), torch.ones(160))
    truth = {3: (20, 10, 50, 30), 7: (5, 40, 25, 60)}
    for box, picture, shown in zip(boxes.tolist(), where.tolist(), shows, strict=True):
        want = torch.zeros(C + 1)
        for c, (left, top, right, bottom) in truth.items():
            if c == 7 and picture >= 20:
                continue
            width = max(0.0, min(right, box[2]) - max(left, box[0]))
            height = max(0.0, min(bottom, box[3]) - max(top, box[1]))
            area = (box[2] - box[0]) * (box[3] - box[1])
            iou = width * height / (area + (right - left) * (bottom - top) - width * height)
            want[c] = min(1.0, max(0.0, (iou - 0.2) / 0.4))
        want[C] = 1 - want.sum()
        torch.testing.assert_close(shown, want, atol=1e-4, rtol=1e-4)
    assert shows[:60, :C].sum(1).mean() > 0.95  # the tight ones
    assert shows[120:, C].mean() > 0.8  # those anywhere


def test_crops_are_squeezed_or_widened_to_squares() -> None:
    image = torch.zeros(2, 3, 32, 32)
    image[1, :, :, 8:16] = 100.0
    image[1, :, 12:20, :] += 50.0
    box = torch.tensor([[8.0, 12.0, 16.0, 16.0]])
    squeezed = cropped(image, box, torch.tensor([1]), 8)
    assert squeezed.shape == (1, 3, 8, 8)
    assert squeezed[..., 2:6, 2:6].unique().tolist() == [150]
    widened = cropped(image, box, torch.tensor([1]), 8, torch.tensor([True]))[0, 0]
    assert widened[0, 4] == pytest.approx(100)  # rows 10 to 18: the first above the band
    assert widened[5, 4] == pytest.approx(150)
    assert cropped(image, box, torch.tensor([0]), 8).max() == 0


def test_sounds_against_sights_weigh_classes_alike() -> None:
    seen = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    its = torch.zeros(4, C + 1)
    its[[0, 1, 2, 3], [0, 0, 1, C]] = 1
    truth = torch.zeros(1, C)
    truth[0, 0] = 1
    sound = torch.tensor([[3.0, 4.0]])
    e = [math.exp(c / TAU) for c in (0.6, 0.8, -0.6)]
    want = -math.log(e[0] / (sum(e) + (C - 2) * 1e-9))
    assert against_sights(sound, truth, seen, its).item() == pytest.approx(want, rel=1e-4)


def first_class(x: Tensor) -> Tensor:
    return torch.eye(C)[:1].expand(len(x), -1)


def test_scores_of_something_that_always_says_the_first_class() -> None:
    text = torch.eye(C)
    before = torch.random.get_rng_state()
    score = hearing_score(first_class, text, seed=3, sounds=64)
    assert score["accuracy"] == pytest.approx(1 / C, abs=0.1)
    seen = looking_score(first_class, first_class, text, 16, seed=3, scenes=20)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert seen["crop_accuracy"] < 0.25
    assert 0.03 < seen["choosing_chance"] < 0.3
