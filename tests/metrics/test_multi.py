from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from sklearn.metrics import average_precision_score

from avloc.metrics import multi
from avloc.metrics.maps import minmax
from avloc.metrics.multi import (
    best_pairing,
    binary_average_precision,
    count_accuracy,
    duet_average_precision,
    greedy_matches,
    paired_average_precision,
    pixel_average_precision,
    smooth_iou,
    stacked_average_precision,
    swapped_average_precision,
)


@pytest.mark.parametrize("with_numpy", [True, False])
@pytest.mark.parametrize("levels", [2, 7, 10**6])
def test_average_precision_is_sklearns(monkeypatch: pytest.MonkeyPatch, levels: int, with_numpy: bool) -> None:
    monkeypatch.setattr(multi, "sorts_with_numpy", lambda x: with_numpy)
    torch.manual_seed(0)
    scores = (torch.randint(levels, (6, 11, 17)) / levels - 0.3) * 4  # negative scores too
    scores[4] = 0.25
    scores[5, :5] = -0.0
    scores[5, 5:] = 0.0
    truth = torch.rand(6, 11, 17) > 0.7
    truth[1], truth[2] = True, False
    got = pixel_average_precision(scores, truth)
    want = [average_precision_score(t.flatten(), s.flatten()) for s, t in zip(scores, truth, strict=True) if t.any()]
    assert got[[0, 1, 3, 4, 5]].tolist() == pytest.approx(want, abs=1e-12)
    assert got[2].item() == 0


@pytest.mark.parametrize("with_numpy", [True, False])
def test_one_sort_scores_a_map_for_every_source(monkeypatch: pytest.MonkeyPatch, with_numpy: bool) -> None:
    monkeypatch.setattr(multi, "sorts_with_numpy", lambda x: with_numpy)
    torch.manual_seed(0)
    maps = (torch.randint(9, (3, 4, 6, 7)) / 9 - 0.3) * 4
    truth = torch.rand(3, 8, 6, 7) > 0.7
    got = paired_average_precision(maps, truth)
    for m in range(4):
        for s in range(8):
            want = [
                average_precision_score(t.flatten(), x.flatten()) for t, x in zip(truth[:, s], maps[:, m], strict=True)
            ]
            assert got[:, m, s].tolist() == pytest.approx(want, abs=1e-12)
    with pytest.raises(TypeError, match=r"give maps.float\(\)"):
        paired_average_precision(maps.double(), truth)


@pytest.mark.parametrize("few", [0, 5040])
@pytest.mark.parametrize(("M", "S"), [(1, 1), (2, 2), (4, 2), (4, 4), (5, 3)])
def test_pairing_is_the_best_of_all_orders(monkeypatch: pytest.MonkeyPatch, few: int, M: int, S: int) -> None:
    monkeypatch.setattr(multi, "FEW_ORDERS", few)
    torch.manual_seed(M)
    N = 20
    worth, sources, count = torch.rand(N, M, S).double(), torch.randint(1, S + 1, (N,)), torch.randint(M + 1, (N,))
    empty = torch.rand(N, 1, S).double()
    worth = torch.where(torch.arange(M)[:, None] < count[:, None, None], worth, empty)
    real = torch.arange(S) < sources[:, None]
    place = best_pairing(worth, count, real)
    for i in range(N):
        s, c = int(sources[i]), int(count[i])
        slots = range(max(s, c))
        best = max(permutations(slots, s), key=lambda order: sum(float(worth[i, m, k]) for k, m in enumerate(order)))
        total = sum(float(worth[i, m, k]) for k, m in enumerate(best))
        told = place[i, :s].tolist()
        assert place[i, s:].tolist() == [-1] * (S - s)
        assert sum(m < 0 for m in told) == max(0, s - c)  # a map in hand is never left out for an empty answer
        taken = [m for m in told if m >= 0]
        assert len(set(taken)) == len(taken)
        assert all(m < c for m in taken)
        reached = sum(float(worth[i, m, k]) if m >= 0 else float(empty[i, 0, k]) for k, m in enumerate(told))
        assert reached == pytest.approx(total)
        if few and c >= s:
            assert told == list(best)  # the lowest order


def test_float64_scores_are_refused() -> None:
    with pytest.raises(TypeError, match=r"give scores.float\(\)"):
        pixel_average_precision(torch.rand(1, 2, 2, dtype=torch.float64), torch.ones(1, 2, 2))


def test_binary_average_precision_needs_no_sort() -> None:
    torch.manual_seed(0)
    chosen, truth = torch.rand(9, 5, 7) > 0.6, torch.rand(9, 5, 7) > 0.6
    chosen[0], chosen[1], truth[2] = False, True, False
    counts = [x.flatten(1).sum(1) for x in (chosen & truth, chosen, truth)]
    got = binary_average_precision(*counts, 35)
    pairs = zip(truth.flatten(1), chosen.flatten(1), strict=True)
    want = [average_precision_score(t, c) if t.any() else 0.0 for t, c in pairs]
    assert got.tolist() == pytest.approx(want, abs=1e-12)


def test_swapped_arguments() -> None:
    truth = torch.tensor([[[1.0, 0.5, 0.0, 0.0]]]).repeat(3, 1, 1)
    chosen = torch.tensor([[[True, False, True, False]], [[False] * 4], [[True] * 4]])
    got = swapped_average_precision(chosen, truth)
    assert got[0].item() == pytest.approx(average_precision_score([1, 0, 1, 0], [1, 0.5, 0, 0]))
    assert got[1:].tolist() == [0, 1]


def test_duet_skips_what_is_not_a_mask() -> None:
    truth = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[0.5, 1.0]]])
    got = duet_average_precision(torch.tensor([[[0.1, 0.9]]]).repeat(3, 1, 1), truth)
    assert got[0].item() == 0.5
    assert got[1:].isnan().all()
    assert got.nanmean().item() == 0.5


def test_smooth_iou_by_hand() -> None:
    maps = torch.tensor([[[0.3, 0.2, 0.9]], [[0.0, 0.1, 0.2]]])
    truth = torch.tensor([[[2.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]]])
    got = smooth_iou(maps, truth, (0.3,))
    assert got[:, 0].tolist() == pytest.approx([(1 + 1e-4) / (3 + 1e-4), 1.0])


def published_order(maps: list[torch.Tensor], truth: torch.Tensor) -> tuple[list[float], list[float]]:
    """NoPrior's matching of one sample, sample by sample, greedily, as its script does."""
    left, values, aps = truth.clone(), [], []
    tiles = len(truth)
    for m in maps:
        overlap, ap = [], []
        for tile, goal in zip(m.chunk(tiles), left, strict=True):
            x = minmax(tile[None])[0]
            cut = x.flatten().sort().values[x.numel() // 2]
            chosen = ((x > cut) | (x >= 1)).float()
            wrong = (chosen * (goal == 0)).sum()
            overlap.append(float((chosen * goal).sum() / (goal.sum() + wrong)))
            ap.append(average_precision_score(goal.flatten(), chosen.flatten()) if goal.any() else 0.0)
        best = max(range(tiles), key=lambda i: overlap[i])
        values.append(overlap[best])
        aps.append(ap[best])
        left[best] = 0
    missing = [0.0] * (tiles - len(maps) if maps else 0)
    return values + missing, aps + missing


@pytest.mark.parametrize(("tiles", "most"), [(2, 3), (3, 2), (1, 1)])
def test_greedy_matching_by_hand(tiles: int, most: int) -> None:
    torch.manual_seed(0)
    n, height, width = 12, 9, 7
    truth = (torch.rand(n, tiles, height, width) > 0.6).float()
    maps = torch.rand(n, most, tiles * height, width) + truth.flatten(1, 2)[:, None] * torch.rand(n, most, 1, 1)
    count = torch.arange(n) % (most + 1)
    matches = greedy_matches(maps, count, truth)
    for i in range(n):
        values, aps = published_order(list(maps[i, : count[i]]), truth[i])
        row = matches.ciou[i]
        assert row[~row.isnan()].tolist() == pytest.approx(values, abs=1e-7)
        row = matches.ap[i]
        assert row[~row.isnan()].tolist() == pytest.approx(aps, abs=1e-7)


def test_sum_of_maps_over_all_tiles() -> None:
    torch.manual_seed(0)
    truth = (torch.rand(4, 2, 6, 5) > 0.6).float()
    maps, count = torch.rand(4, 3, 12, 5), torch.tensor([1, 3, 0, 2])
    got = stacked_average_precision(maps, count, truth)
    for i in (0, 1, 3):
        tiles = minmax(maps[i, : count[i]].sum(0).reshape(2, 6, 5))
        cut = tiles.flatten(1).sort(1).values[:, 15, None, None]
        want = average_precision_score(truth[i].flatten(), ((tiles > cut) | (tiles >= 1)).flatten())
        assert got[i].item() == pytest.approx(want)
    assert math.isnan(got[2].item())


def test_count_accuracy() -> None:
    assert count_accuracy(torch.tensor([2, 1, 3, 2]), 2).item() == 0.5
    assert count_accuracy(torch.tensor([2, 1]), torch.tensor([2, 3])).item() == 0.5
