from __future__ import annotations

import pytest
import torch

from avloc.metrics.ciou import ciou
from avloc.metrics.negative import image_share
from avloc.metrics.universal import GRID, balance, choose_threshold, summary


def test_choice_by_a_loop() -> None:
    torch.manual_seed(0)
    c, p = torch.rand(7, 99, dtype=torch.float64), torch.rand(5, 99, dtype=torch.float64)
    scores = []
    for k in range(99):
        a, b = c[:, k].mean().item(), 1 - p[:, k].mean().item()
        scores.append(2 * a * b / (a + b))
    index = choose_threshold(c, p)
    assert index == scores.index(max(scores))
    assert balance(c, p).tolist() == pytest.approx(scores)
    got = summary(c, p, index)
    assert got.f.item() == pytest.approx(max(scores))
    assert got.fpr.item() == pytest.approx(p[:, index].mean().item())
    assert got.success_rate.item() == pytest.approx(sum(v >= 0.5 for v in c[:, index].tolist()) / 7)
    assert got.mean_ciou.item() == pytest.approx(c[:, index].mean().item())


def test_the_lowest_of_equal_thresholds() -> None:
    flat = torch.full((3, 99), 0.5)
    assert choose_threshold(flat, flat) == 0


def test_a_clean_method_finds_the_gap() -> None:
    """Objects at 0.8 on a background of 0.3, silence at 0.4: every threshold from 0.41 to 0.8 is perfect."""
    truth = torch.zeros(2, 12, 12)
    truth[:, 3:7, 2:9] = 1
    maps = 0.3 + 0.5 * truth
    silent = torch.full((2, 12, 12), 0.4)
    c, p = ciou(maps, truth, GRID), image_share(silent, GRID, ">=")
    index = choose_threshold(c, p)
    assert GRID[index] == 0.41
    assert summary(c, p, index).f.item() == 1


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="3 positives and 0 negatives"):
        choose_threshold(torch.rand(3, 99), torch.rand(0, 99))
    with pytest.raises(ValueError, match="The grid has 99 thresholds, but cIoU has 19"):
        choose_threshold(torch.rand(3, 19), torch.rand(2, 99))
