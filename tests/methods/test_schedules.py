"""Rates over a run, against PyTorch's own schedules of a known length and values by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from avloc.errors import UsageError
from avloc.methods.schedules import OverRun

RATE = 2e-3


def optimiser() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)


def rates(schedule: LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return found


def over(steps: float, **options) -> OverRun:
    schedule = OverRun(optimiser(), **options)
    schedule.over(steps)
    return schedule


def test_cosine_is_pytorchs_of_that_length():
    ours, theirs = rates(over(300), 301), rates(CosineAnnealingLR(optimiser(), T_max=300), 301)
    # What an optimiser multiplies float32 with is the same number but for the last bit near the end.
    np.testing.assert_allclose(np.float32(ours), np.float32(theirs), rtol=2e-7, atol=1e-12)


def test_line_is_pytorchs_of_that_length():
    theirs = rates(LinearLR(optimiser(), start_factor=1.0, end_factor=0.0, total_iters=90), 91)
    np.testing.assert_allclose(rates(over(90, shape="linear"), 91), theirs, rtol=1e-9, atol=1e-15)


def test_it_rises_then_falls_to_its_end_and_stays_there():
    found = np.array(rates(over(10, shape="linear", warmup=0.2, end=0.5), 12)) / RATE
    np.testing.assert_allclose(
        found, [0, 0.5, 1, 0.9375, 0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625, 0.5, 0.5], rtol=1e-12
    )
    assert set(rates(over(4, shape="constant"), 8)) == {RATE}


def test_a_run_that_goes_on_longer_follows_the_longer_curve():
    short = over(10)
    rates(short, 5)
    longer = over(20)
    longer.load_state_dict(short.state_dict())
    assert rates(longer, 1)[0] == pytest.approx(RATE)  # the optimiser's state brings the rate of the step that stands
    assert rates(longer, 14) == pytest.approx(rates(over(20), 20)[6:], rel=1e-12)


@pytest.mark.parametrize("options", [{"warmup": 1.0}, {"warmup": -0.1}, {"end": 1.5}])
def test_out_of_range(options):
    with pytest.raises(UsageError, match="warmup in"):
        OverRun(optimiser(), **options)


@pytest.mark.parametrize("steps", [float("inf"), -1, 0])
def test_a_run_without_end_is_refused(steps):
    with pytest.raises(UsageError, match="max_epochs"):
        OverRun(optimiser()).over(steps)
