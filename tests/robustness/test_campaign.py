"""A small share of the campaign (`make campaign` for all of it)."""

from __future__ import annotations

import pytest

from tests.robustness.campaign import OUTCOMES, Tally, run_inputs, table
from tests.robustness.kills import VICTIMS, kill_some
from tests.robustness.kinds import KINDS

CHEAP = ("picture", "store")


@pytest.mark.parametrize("kind", [k if k in CHEAP else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_damaged_inputs_are_told_or_right(kind: str) -> None:
    tally = run_inputs(kind, range(12 if kind in CHEAP else 40), seed=7)
    assert not tally.bad
    assert tally.counts["tried"] == tally.counts["told"] + tally.counts["accepted"] > 0


@pytest.mark.parametrize("kind", [k if k == "store" else pytest.param(k, marks=pytest.mark.slow) for k in VICTIMS])
def test_what_is_killed_leaves_nothing_that_is_not_whole(kind: str) -> None:
    count = 2 if kind == "store" else 6
    tally = kill_some(kind, range(count))
    assert not tally.bad
    assert tally.counts["accepted"] == count


def test_the_table_adds_up() -> None:
    good, bad = Tally(), Tally()
    good.counts.update(tried=1200, told=1000, accepted=200)
    bad.counts.update(tried=3, raw=1, lost=1, hung=1)
    last = table({"tar": good, "kill store": bad}).splitlines()[-1].split()
    assert last == ["all", "1,203", "1,000", "200", "1", "1", "1"]
    assert len(last) == 1 + len(OUTCOMES)
