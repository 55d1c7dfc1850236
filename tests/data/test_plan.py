from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from avloc.data.plan import EpochPlan

SHAPES = [
    ((7, 7, 7, 2), 2, 1, 1),
    ((7, 7, 7, 2), 2, 3, 2),
    ((50,), 3, 2, 4),  # one shard for eight workers
    ((1, 0, 30, 4), 4, 2, 3),  # uneven, and one empty
    ((5, 5), 1, 10, 3),  # one batch a rank, more workers than batches
    ((100, 100, 100), 16, 2, 5),
]


def order(plan: EpochPlan, epoch: int, rank: int, resume_at: int = 0) -> list[list[tuple[int, int]]]:
    """Batches of a rank as (shard, position), by playing the DataLoader's round robin."""
    queues = []
    for loader_worker in range(plan.workers):
        worker, skip = plan.worker_at(resume_at, loader_worker)
        share = plan.share(epoch, rank, worker)
        queues.append([list(zip(share.shard[b], share.position[b], strict=True)) for b in share.batches[skip:]])
    out = []
    while any(queues):
        out += [queue.pop(0) for queue in queues if queue]
    return out


@pytest.mark.parametrize(("counts", "batch", "world", "workers"), SHAPES)
def test_every_rank_has_equal_full_batches_of_distinct_records(
    counts: tuple[int, ...], batch: int, world: int, workers: int
) -> None:
    plan = EpochPlan(counts, batch, world, workers, seed=3, buffer=10)
    ranks = [order(plan, 0, r) for r in range(world)]
    assert [len(r) for r in ranks] == [sum(counts) // (world * batch)] * world == [plan.length] * world
    seen = Counter(x for r in ranks for b in r for x in b)
    assert set(seen.values()) == {1}
    assert all(0 <= p < counts[s] for s, p in seen)
    assert sum(counts) - len(seen) < world * batch


@pytest.mark.parametrize(("counts", "batch", "world", "workers"), SHAPES)
def test_resuming_gives_what_an_unbroken_epoch_gives(
    counts: tuple[int, ...], batch: int, world: int, workers: int
) -> None:
    plan = EpochPlan(counts, batch, world, workers, seed=1, buffer=10)
    for rank in range(world):
        unbroken = order(plan, 2, rank)
        for k in range(plan.length + 1):
            assert order(plan, 2, rank, resume_at=k) == unbroken[k:]


def test_epochs_differ_and_repeat() -> None:
    plan = EpochPlan((10, 10, 10), 5, seed=0)
    assert order(plan, 0, 0) != order(plan, 1, 0)
    assert order(plan, 1, 0) == order(EpochPlan((10, 10, 10), 5, seed=0), 1, 0)
    assert order(plan, 0, 0) != order(EpochPlan((10, 10, 10), 5, seed=1), 0, 0)


def test_a_shard_is_read_once_and_front_to_back_by_a_worker() -> None:
    plan = EpochPlan((9, 13, 4, 20), 3, 2, 2, seed=5)
    for rank in range(2):
        for worker in range(2):
            share = plan.share(0, rank, worker)
            runs = [s for s, t in zip(share.shard, [-1, *share.shard], strict=False) if s != t]
            assert len(runs) == len(set(runs))
            same = share.shard[1:] == share.shard[:-1]
            assert (np.diff(share.position)[same] == 1).all()


def test_the_shuffle_reads_no_further_ahead_than_its_window() -> None:
    share = EpochPlan((5000,), 10, buffer=100).share(0, 0, 0)
    emitted = share.batches.reshape(-1)
    waiting, arrived, most = 0, -1, 0
    for n, place in enumerate(emitted, start=1):
        arrived = max(arrived, place)
        waiting = arrived + 1 - n
        most = max(most, waiting)
    assert 30 < most <= 100
    assert (EpochPlan((50,), 10, buffer=0).share(0, 0, 0).batches.reshape(-1) == np.arange(50)).all()


def test_spares_lie_outside_of_the_chunk() -> None:
    plan = EpochPlan((9, 13, 4, 20), 4, 2, 2)
    for rank in range(2):
        for worker in range(2):
            share = plan.share(0, rank, worker)
            own = set(zip(share.shard.tolist(), share.position.tolist(), strict=True))
            spares = {tuple(s) for s in share.spares.tolist()}
            assert len(spares) == 4
            assert not spares & own


def test_too_few_records_say_so() -> None:
    with pytest.raises(ValueError, match=r"7 samples do not fill a batch of 4 on 2 processes.*Lower batch_size"):
        EpochPlan((4, 3), 4, world=2)
