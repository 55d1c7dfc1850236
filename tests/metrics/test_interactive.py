from __future__ import annotations

import itertools
import math

import pytest
import torch

from avloc.metrics.ciou import LEVELS, auc, success_rate
from avloc.metrics.interactive import group_minima, group_of


def test_a_group_succeeds_when_all_members_do() -> None:
    torch.manual_seed(0)
    ciou = torch.rand(40, dtype=torch.float64)
    ciou[5] = math.nan
    group = torch.randint(12, (40,)) * 7 - 3  # numbers need not be dense or positive
    members = [ciou[group == g].tolist() for g in group.unique()]
    curve = [sum(all(v >= t for v in m) for m in members) / len(members) for t in LEVELS]
    least = group_minima(ciou, group)
    assert success_rate(least).item() == pytest.approx(curve[10])
    area = sum((a + b) / 2 * 0.05 for a, b in itertools.pairwise(curve))
    assert auc(least).item() == pytest.approx(area)
    assert least.isnan().sum() == 1


def test_columns_and_single_groups() -> None:
    ciou = torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.3, 0.3]])
    want = torch.tensor([[0.3, 0.3], [0.1, 0.2]])
    assert torch.equal(group_minima(ciou, torch.tensor([4, 4, 1])), want)
    assert torch.equal(group_minima(ciou, torch.arange(3)), ciou)
    assert group_minima(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("train_ukulele_2410_train", "train_ukulele_2410"),
        ("set/a.b/000000489267_157452.jpg", "000000489267"),
        ("clip_x_3.png", "clip_x"),
        ("alone", ""),
    ],
)
def test_file_name_rule(name: str, group: str) -> None:
    assert group_of(name) == group
