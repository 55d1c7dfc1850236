from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from avloc.metrics import thresholds
from avloc.metrics.avs import THRESHOLDS
from avloc.metrics.thresholds import (
    SWEEP,
    Operator,
    area_threshold,
    count_above,
    mass_above,
    median_threshold,
    predicted,
    rank_threshold,
)
from avloc.metrics.universal import GRID

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


GRIDS = {
    "sweep": torch.tensor(SWEEP, dtype=torch.float64).float(),
    "fscore": THRESHOLDS,
    "universal": torch.tensor(GRID, dtype=torch.float64).float(),
    "logits": torch.linspace(-3, 5, 40),
    "uneven": torch.tensor([0.1, 0.11, 0.5, 0.7, 0.9]),
    "one": torch.tensor([0.5]),
}


def around(cuts: torch.Tensor) -> torch.Tensor:
    """The thresholds, the numbers just below and above them, and everything far away."""
    more = [torch.nextafter(cuts, torch.tensor(side)) for side in (-torch.inf, torch.inf)]
    far = torch.tensor([-torch.inf, torch.inf, -7.0, 9.0, 0.0, -0.0, 1.0, 1e-30, -1e-30])
    return torch.cat([cuts, *more, far, torch.linspace(-1, 2, 400)])


@pytest.mark.parametrize("few", [0, 10**4])  # always a histogram, always comparisons
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_counts_agree_bit_for_bit_with_comparisons(
    monkeypatch: pytest.MonkeyPatch, few: int, operator: Operator, name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(thresholds, "FEW", few)
    torch.manual_seed(0)
    cuts = GRIDS[name].to(dtype)
    values = around(GRIDS[name]).to(dtype)
    maps = values[torch.randint(len(values), (3, 41, 29))]  # odd sizes
    maps[0].view(-1)[: len(values)] = values
    for truth in (torch.rand(3, 41, 29) > 0.5, torch.randint(4, (3, 41, 29)) / 2, torch.zeros(3, 41, 29)):
        above = count_above(maps, truth, cuts, operator)
        chosen = OPERATORS[operator](maps[:, None], cuts[:, None, None])  # [N, K, H, W]
        goal = truth[:, None].double()
        assert torch.equal(above.hit, (chosen * goal).sum((2, 3)))
        assert torch.equal(above.found, (chosen & (goal != 0)).sum((2, 3)).double())
        assert torch.equal(above.wrong, (chosen & (goal == 0)).sum((2, 3)).double())
        assert torch.equal(above.total[:, 0], goal.sum((1, 2, 3)))
        mask = count_above(maps, truth, cuts, operator, mask=True)
        assert torch.equal(mask.hit, above.found)
    assert torch.equal(count_above(maps, None, cuts, operator).wrong, chosen.sum((2, 3)).double())


@pytest.mark.parametrize("few", [0, 10**4])
def test_real_weights_and_thresholds_of_each_map(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(thresholds, "FEW", few)
    torch.manual_seed(0)
    maps, truth, cuts = torch.rand(70, 8, 6), torch.rand(70, 8, 6), torch.rand(70, 9).sort(1).values
    truth[::2] = (truth[::2] > 0.5).float()  # some are masks, some are not
    above = count_above(maps, truth, cuts, ">")
    chosen = maps[:, None] > cuts[..., None, None]
    torch.testing.assert_close(above.hit, (chosen * truth[:, None].double()).sum((2, 3)), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(above.total[:, 0], truth.double().sum((1, 2)), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("few", [0, 10**4])
def test_no_maps(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(thresholds, "FEW", few)
    above = count_above(torch.rand(0, 4, 5), torch.rand(0, 4, 5), SWEEP, ">=")
    assert [tuple(v.shape) for v in above] == [(0, 19)] * 3 + [(0, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ranks_are_places_of_a_sort(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    maps = (torch.randint(50, (20, 9, 11)) / 50).to(dtype)
    rank = torch.randint(99, (20,))
    ordered = np.sort(maps.float().flatten(1).numpy(), axis=1)
    got = rank_threshold(maps, rank)
    assert got.dtype == dtype
    assert got[:, 0].float().tolist() == ordered[range(20), rank].tolist()
    assert median_threshold(maps)[:, 0].float().tolist() == ordered[:, 49].tolist()


@pytest.mark.parametrize("operator", OPERATORS)
def test_predicted_set(operator: Operator) -> None:
    maps = torch.tensor([[[0.2, 0.5, 1.0]], [[1.0, 1.0, 1.5]]])
    cuts = torch.tensor([[0.5], [1.0]])
    assert torch.equal(predicted(maps, cuts, operator), OPERATORS[operator](maps, cuts[..., None]))


def test_threads_are_given_back_after_an_error() -> None:
    threads = torch.get_num_threads()
    with pytest.raises(
        ValueError, match=r"shape \[2, 3, 3\] cannot be compared with a ground truth of shape \[2, 4, 4\]"
    ):
        count_above(torch.rand(2, 3, 3), torch.rand(2, 4, 4), SWEEP, ">=")
    assert torch.get_num_threads() == threads


MEMORY = """
import resource, torch
from avloc.metrics.avs import fscore_curve
from avloc.metrics.ciou import ciou
from avloc.metrics.multi import pixel_average_precision
from avloc.metrics.negative import image_share
from avloc.metrics.semantic import label_counts
from avloc.metrics.thresholds import SWEEP, area_threshold
maps, truth = torch.rand(1, 224, 224), (torch.rand(1, 224, 224) > 0.5).float()
def run(n):
    x, t = maps.expand(n, -1, -1), truth.expand(n, -1, -1)
    ciou(x, t, SWEEP), fscore_curve(x, t), image_share(x), ciou(x, t, area_threshold(x, t))
    label_counts(t.long()[:1].expand(n, -1, -1), truth.long().expand(n, -1, -1), 71)
    pixel_average_precision(x[: n // 4], t[: n // 4])
run(4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(400)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_does_not_grow_with_the_number_of_maps() -> None:
    """400 maps are 77 MiB of floats; each is the same one here, so that only what is computed takes memory."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 20
