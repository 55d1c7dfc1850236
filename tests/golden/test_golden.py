"""One test per golden case, with the id KIND/CASE."""

from __future__ import annotations

import pytest
import torch

from tests.golden.case import Case, find_cases, golden_folder

CASES = find_cases(golden_folder())


def params() -> list:
    return [pytest.param(c, id=c.id, marks=[pytest.mark.slow] if c.full_size else []) for c in CASES]


def test_there_are_cases() -> None:
    assert CASES, f"no golden case in {golden_folder()}: set AVLOC_GOLDEN to the folder that holds KIND/CASE/"


@pytest.mark.parametrize("case", params())
def test_golden(case: Case) -> None:
    case = Case(case.folder)  # pytest keeps the collected one, which would keep gigabytes of weights
    runner = case.runner()
    if runner is None:
        pytest.skip(f"golden kind {case.kind!r} has no runner in tests/golden/kinds")
    torch.manual_seed(0)
    actual = runner.run(case)
    message = case.compare(actual)
    assert not message, message
