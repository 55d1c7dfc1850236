from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import distributed

from avloc.metrics.per_sample import CountError, PerSample
from tests.processes import together

SIZE = 11
VALUES = torch.rand(SIZE, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3
VALUES[4, 1] = math.nan
SHARES = {
    1: [list(range(SIZE))],
    2: [[3], [10, 9, 8, 7, 6, 5, 4, 2, 1, 0]],
    3: [[0, 5, 6], [1], [2, 10, 4, 3, 9, 8, 7]],
}


def counted(share: list[int]) -> PerSample:
    metric = PerSample(SIZE, {"a": 1, "b": 2}, name="toy")
    for rows in torch.tensor(share).split(2):
        metric.update(rows, a=VALUES[rows, 0], b=VALUES[rows, 1:])
    return metric


def worker(rank: int, world: int, folder: str) -> None:
    store = f"file://{folder}/store{world}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    torch.save(counted(SHARES[world][rank]).compute(), f"{folder}/{world}.{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_give_the_same_bits(world: int, tmp_path: Path) -> None:
    together(worker, (world, str(tmp_path)), world)
    for rank in range(world):
        got = torch.load(tmp_path / f"{world}.{rank}.pt", weights_only=True)
        assert got["index"].tolist() == list(range(SIZE))
        for name, want in {"a": VALUES[:, :1], "b": VALUES[:, 1:]}.items():
            torch.testing.assert_close(got[name], want, rtol=0, atol=0, equal_nan=True)


def test_one_process() -> None:
    got = counted(SHARES[1][0]).compute()
    torch.testing.assert_close(got["b"], VALUES[:, 1:], rtol=0, atol=0, equal_nan=True)


def test_missing_and_twice_are_named() -> None:
    with pytest.raises(CountError, match=r"11 samples of toy, 2 are missing \(index 4, 7\), of which 0"):
        counted([0, 1, 2, 3, 5, 6, 8, 9, 10]).compute()
    with pytest.raises(CountError, match=r"1 were counted more than once \(index 3\)"):
        counted([*range(SIZE), 3]).compute()


def test_unread_rows_are_left_out_and_counted() -> None:
    def metric(allow: int, index: list[int]) -> PerSample:
        made = PerSample(4, {"a": 1}, allow_unread=allow)
        made.update(torch.tensor(index), a=torch.arange(len(index)) / 8)
        return made

    got = metric(1, [3, -1, 0, 1]).compute()
    assert got["index"].tolist() == [0, 1, 3]
    assert got["a"][:, 0].tolist() == [0.25, 0.375, 0.0]
    with pytest.raises(CountError, match="1 are unreadable and 0 may be"):
        metric(0, [3, -1, 0, 1]).compute()
    with pytest.raises(CountError, match=r"2 are missing \(index 1, 2\), of which 1 unreadable"):
        metric(2, [3, -1, 0]).compute()  # a tolerance does not hide a sample that nobody met


def test_part_of_a_set() -> None:
    metric = PerSample(4, {"a": 1}, partial=True)
    metric.update(torch.tensor([2, 1]), a=torch.tensor([0.5, 0.25]))
    assert metric.compute()["a"].tolist() == [[0.25], [0.5]]
    metric.update(torch.tensor([1]), a=torch.rand(1))
    with pytest.raises(CountError, match=r"1 were counted more than once \(index 1\)"):
        metric.compute()


def test_bad_batches() -> None:
    metric = PerSample(4, {"a": 1}, name="toy")
    with pytest.raises(CountError, match="toy holds the sample index -2"):
        metric.update(torch.tensor([0, -2]), a=torch.rand(2))
    with pytest.raises(CountError, match="sample index 4"):
        metric.update(torch.tensor([4]), a=torch.rand(1))
    with pytest.raises(ValueError, match="a has shape"):
        metric.update(torch.tensor([0, 1]), a=torch.rand(3))
    with pytest.raises(ValueError, match="declared"):
        metric.update(torch.tensor([0]), b=torch.rand(1))


def test_reset() -> None:
    metric = counted(list(range(SIZE)))
    metric.reset()
    assert metric.seen.sum() == 0
    assert metric.values.abs().sum() == 0
