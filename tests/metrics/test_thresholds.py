from __future__ import annotations

import pytest
import torch

from avloc.metrics.thresholds import SWEEP, Operator, area_threshold, mass_above, median_threshold

OPERATORS = {
    ">=": lambda x, t: x >= t,
    ">": lambda x, t: x > t,
    "lvs": lambda x, t: (x > t) | (x >= 1),
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("per_map", [False, True])
def test_mass_above_equals_a_loop_over_thresholds(operator: Operator, per_map: bool) -> None:
    torch.manual_seed(0)
    maps = torch.randint(0, 21, (4, 6, 5)) / torch.tensor(20.0)  # ties with the thresholds, and ones
    weights = [torch.rand(4, 6, 5), torch.rand(4, 6, 5) > 0.5]
    cuts = torch.rand(4, 7).sort(1).values if per_map else torch.tensor(SWEEP)
    got = mass_above(maps, weights, cuts, operator)
    for weight, mass in zip(weights, got, strict=True):
        for n in range(4):
            for k, t in enumerate(cuts[n] if per_map else cuts):
                want = weight[n].double()[OPERATORS[operator](maps[n], t)].sum()
                torch.testing.assert_close(mass[n, k], want)


def test_median_is_the_upper_one() -> None:
    maps = torch.tensor([[[3.0, 1.0], [4.0, 2.0]], [[1.0, 1.0], [1.0, 0.0]]])
    assert median_threshold(maps).tolist() == [[3.0], [1.0]]


def test_area_counts_fractional_pixels_and_falls_back_to_half() -> None:
    maps = torch.arange(6.0).reshape(1, 2, 3).repeat(3, 1, 1)
    truth = torch.zeros(3, 2, 3)
    truth[0, 0, :2] = 0.5  # A = 2: sorted index 4
    truth[2] = 1  # A = HW: the minimum
    assert area_threshold(maps, truth).tolist() == [[4.0], [3.0], [0.0]]
