"""Several sources in one picture or in pictures side by side: ACL-SSL's journal paper, T-VSL, AVGN and NoPrior.

The names are the same and the numbers are not: "CIoU@0.3" is a success rate at cIoU 0.3 in ACL-SSL, NoPrior and AVGN
(``success_rate(values, 0.3)``) and the mean cIoU of the map cut at 0.3 in T-VSL's release
(``ciou(maps, truth, (0.3,)).mean()``); "CAP" is the average precision of a continuous map in ACL-SSL and T-VSL and of a
binary one in NoPrior. CIoU@0.1 and IoU@0.3 of other tables are ``success_rate`` of ``ciou`` and ``avs.iou``.
"""

from __future__ import annotations

import math
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from avloc.metrics.ciou import ciou
from avloc.metrics.maps import minmax
from avloc.metrics.thresholds import (
    SWEEP,
    Above,
    area,
    chunk_size,
    count_above,
    median_threshold,
    one_thread,
    sorts_with_numpy,
)

__all__ = [
    "Matches",
    "Paired",
    "best_pairing",
    "binary_average_precision",
    "count_accuracy",
    "duet_average_precision",
    "greedy_matches",
    "pair_sources",
    "paired_average_precision",
    "pixel_average_precision",
    "smooth_iou",
    "stacked_average_precision",
    "swapped_average_precision",
]


@one_thread()
def pixel_average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """Average precision of each map over its own pixels, as scikit-learn defines it, ties included.

    ``sum_k precision[k] * (recall[k] - recall[k-1])`` over the distinct scores from the highest to the lowest.

    Args:
        scores: float32 or narrower ``[N, H, W]``, free of NaN.
        truth: ``[N, H, W]``; every pixel above 0 is a positive.

    Returns:
        float64 ``[N]``; 0 for a map without positives.

    Raises:
        TypeError: scores in float64.
    """
    if scores.dtype == torch.float64:
        raise TypeError("pixel_average_precision compares scores in float32: give scores.float() instead of float64.")
    size = chunk_size(scores)
    pairs = zip(scores.split(size), truth.split(size), strict=True)
    return torch.cat([average_precision(s.float(), t[:, None] > 0)[:, 0] for s, t in pairs])


@one_thread()
def paired_average_precision(maps: Tensor, truth: Tensor) -> Tensor:
    """`pixel_average_precision` of every map against every source, from one sort a map.

    Args:
        maps: float32 or narrower ``[N, M, H, W]``, free of NaN.
        truth: ``[N, S, H, W]``, S at most 30; every pixel above 0 is a positive.

    Returns:
        float64 ``[N, M, S]``; 0 for a source without pixels.

    Raises:
        TypeError: maps in float64.
    """
    if maps.dtype == torch.float64:
        raise TypeError("paired_average_precision compares scores in float32: give maps.float() instead of float64.")
    size = chunk_size(maps[:, 0])
    pairs = [(m.float(), t > 0) for m, t in zip(maps.split(size), truth.split(size), strict=True)]
    return torch.cat([torch.stack([average_precision(x, t) for x in m.unbind(1)], 1) for m, t in pairs])


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Of each map ``[N, H, W]`` for each of its labellings ``[N, S, H, W]``, float64 ``[N, S]``."""
    S = labels.shape[1]
    # The labels ride in the last bits of an integer that orders as the score does: one sort of plain numbers.
    bits = (scores.flatten(1) + 0.0).view(torch.int32)  # + 0.0: -0.0 equals 0.0
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << S
    for s, label in enumerate(labels.flatten(2).unbind(1)):
        keys += label.long() << s
    if sorts_with_numpy(keys):
        ordered = torch.from_numpy(np.sort(keys.numpy(), axis=1)).flip(1)
    else:
        ordered = keys.sort(1, descending=True).values
    score = ordered >> S
    last = torch.ones_like(score, dtype=torch.bool)
    last[:, :-1] = score[:, 1:] != score[:, :-1]  # pixels of one score are found together
    detected = torch.arange(1, score.shape[1] + 1, device=scores.device)
    out = []
    for s in range(S):
        found = ((ordered >> s) & 1).int().cumsum(1, dtype=torch.int32)
        before = torch.where(last, found, 0).cummax(1).values.roll(1, 1)
        before[:, 0] = 0
        gain = torch.where(last, (found - before) * (found.double() / detected), 0.0)
        out.append(gain.sum(1) / found[:, -1].clamp(min=1))
    return torch.stack(out, 1)


FEW_ORDERS = 5040
"""Most orders of the maps that are all looked at; beyond, the assignment is solved sample by sample."""


def best_pairing(worth: Tensor, count: Tensor, real: Tensor) -> Tensor:
    """Which map is given to each source, so that the sum of what the pairs are worth is largest.

    Every source gets a map of its own; only where there are fewer maps than sources do some get none. Of equal sums the
    lowest order counts.

    Args:
        worth: float64 ``[N, M, S]`` in 0..1, of map m for source s; M at least S. Behind a sample's ``count`` maps
            stands what an empty prediction is worth.
        count: int64 ``[N]``, 0..M: how many of a sample's maps are predictions, the first ones.
        real: bool ``[N, S]``, False where a sample has no such source.

    Returns:
        int64 ``[N, S]``, place of the map; -1 for a source without one, and where there is no source.
    """
    N, M, S = worth.shape
    usable = torch.arange(M, device=worth.device) < torch.maximum(count, real.sum(1))[:, None]
    # A map too many must not take a source, and what is no source takes what is left.
    value = torch.where(real[:, None], torch.where(usable[..., None], worth, -float(S + 1)), 0.0)
    if math.perm(M, S) <= FEW_ORDERS:
        orders = torch.tensor(list(permutations(range(M), S)), device=worth.device).view(-1, S)
        sums = value[:, orders, torch.arange(S, device=worth.device)].sum(2)
        place = orders[sums.argmax(1)] if N else orders.new_zeros(0, S)
    else:
        solved = [linear_sum_assignment(v.T, maximize=True)[1] for v in value.cpu().numpy()]
        place = torch.from_numpy(np.stack(solved)).to(worth.device) if N else count.new_zeros(0, S)
    return torch.where(real & (place < count[:, None]), place, -1)


class Paired(NamedTuple):
    """What ACL-SSL's journal paper makes of mixtures; NaN where a sample has no such source.

    Attributes:
        ap: pixel AP of each source's map (CAP), float64 ``[N, S]``; of an unanswered source that of a constant map, the
            share of its pixels.
        ciou: of each source's map at each threshold, float64 ``[N, S, K]``; 0 for an unanswered source.
        union: pixel AP of the merged map against the union (PIAP), float64 ``[N]``.
        place: int64 ``[N, S]`` of `best_pairing`.
    """

    ap: Tensor
    ciou: Tensor
    union: Tensor
    place: Tensor


def pair_sources(
    maps: Tensor, count: Tensor, truth: Tensor, real: Tensor, thresholds: tuple[float, ...] = SWEEP
) -> Paired:
    """ACL-SSL's scores of mixtures: each map is paired with the source that makes the sum of APs largest.

    Names play no part, and no map is normalised. A source that is not answered is an empty prediction.

    Args:
        maps: float32 ``[N, M, H, W]`` in 0..1, on the grid of the truth.
        count: int64 ``[N]``, 0..M: how many of a sample's maps are predictions, the first ones.
        truth: ``[N, S, H, W]``, weights in 0..1.
        real: bool ``[N, S]``, False where a sample has no such source.
        thresholds: K map thresholds, ascending, ``>=``.
    """
    (N, M), S = maps.shape[:2], truth.shape[1]
    given = torch.arange(M, device=maps.device) < count[:, None]
    area = (truth > 0).double().mean((2, 3))
    worth = area[:, None].repeat(1, max(M, S), 1)
    worth[:, :M] = torch.where(given[..., None], paired_average_precision(maps, truth), area[:, None])
    place = best_pairing(worth, count, real)
    answered = place >= 0
    own = place.clamp(min=0)
    ap = torch.where(answered, worth.gather(1, own[:, None])[:, 0], area)
    chosen = maps.gather(1, own[..., None, None].expand(-1, -1, *maps.shape[2:]))
    overlap = ciou(chosen.flatten(0, 1), truth.flatten(0, 1), thresholds).nan_to_num(0.0).view(N, S, -1)
    merged = torch.where(given[..., None, None], maps, -math.inf).amax(1)
    merged = torch.where((count > 0)[:, None, None], merged, 0.0)
    return Paired(
        torch.where(real, ap, math.nan),
        torch.where(real[..., None], torch.where(answered[..., None], overlap, 0.0), math.nan),
        pixel_average_precision(merged, torch.where(real[..., None, None], truth, 0).amax(1)),
        place,
    )


def binary_average_precision(hit: Tensor, predicted: Tensor, actual: Tensor, pixels: int) -> Tensor:
    """`pixel_average_precision` of a binary map from its pixel counts, without a sort.

    Args:
        hit: predicted pixels of the object, any shape.
        predicted: predicted pixels.
        actual: pixels of the object.
        pixels: of the map.

    Returns:
        float64 of that shape; 0 without an object.
    """
    recall = hit.double() / actual.clamp(min=1)
    return recall * hit / predicted.clamp(min=1) + (1 - recall) * actual / pixels


def smooth_iou(maps: Tensor, truth: Tensor, thresholds: Tensor | tuple[float, ...] = (0.3,)) -> Tensor:
    """T-VSL's IoU, ``(intersection + 1e-4) / (union + 1e-4)``, prediction ``>=``.

    Args:
        maps: ``[N, H, W]``.
        truth: ``[N, H, W]``; every pixel above 0 belongs to the object.
        thresholds: ``[K]`` or ``[N, K]``, ascending.

    Returns:
        float64 ``[N, K]``; 1 where nothing is predicted and nothing is there.
    """
    hit, _, wrong, total = count_above(maps, truth, thresholds, ">=", mask=True)
    return (hit + 1e-4) / (total + wrong + 1e-4)


def duet_average_precision(maps: Tensor, truth: Tensor) -> Tensor:
    """T-VSL's AP of each continuous map; NaN where the published code silently skips the sample.

    It skips a ground truth with values other than 0 and 1, which overlapping boxes that are not clipped have.

    Args:
        maps: ``[N, H, W]``.
        truth: ``[N, H, W]``.

    Returns:
        float64 ``[N]``; average it with ``nanmean``.
    """
    chunks = truth.split(chunk_size(truth))
    skipped = torch.cat([((t != 0) & (t != 1)).flatten(1).any(1) for t in chunks])
    return torch.where(skipped, math.nan, pixel_average_precision(maps, truth))


def swapped_average_precision(prediction: Tensor, truth: Tensor) -> Tensor:
    """AVGN's PIAP, whose arguments are swapped: the binary prediction is the label, the ground truth the score.

    Args:
        prediction: bool ``[N, H, W]`` of `avloc.metrics.thresholds.predicted`.
        truth: ``[N, H, W]``.

    Returns:
        float64 ``[N]``; 0 for an empty prediction, 1 for a full one.
    """
    return pixel_average_precision(truth, prediction)


class Matches(NamedTuple):
    """NoPrior's values, one per source: float64 ``[N, max(M, T)]``, NaN where a sample has no such source.

    Attributes:
        ciou: of each map with the tile it was given to; 0 for each missing map.
        ap: average precision of that binary tile (CAP); 0 for each missing map.
    """

    ciou: Tensor
    ap: Tensor


def greedy_matches(maps: Tensor, count: Tensor, truth: Tensor) -> Matches:
    """Give each predicted map to the tile where it fits best, in order; a tile's ground truth is used up.

    Each tile of each map is scaled by its own min-max and cut at its own median (``>``, pixels at 1 stay). Maps beyond
    the number of tiles are scored against the ground truth that is left; a sample without any map adds nothing.

    Args:
        maps: ``[N, M, T * H, W]``, the predicted maps on the stacked picture, resized (bicubic) to the ground truth.
        count: int64 ``[N]``, 0..M: how many of a sample's maps are predictions, the first ones.
        truth: ``[N, T, H, W]``, weights in 0..1 of each tile.

    Returns:
        The values of each source; flat lists of the published order by ``values[~values.isnan()]``.
    """
    n, m = maps.shape[:2]
    tiles, pixels = truth.shape[1], truth.shape[2:].numel()
    above = [tile_counts(maps[:, i], truth) for i in range(m)]  # of each map, with the whole ground truth
    empty = torch.zeros(n, 0, tiles, dtype=torch.float64, device=maps.device)
    hit, found, wrong, total = (torch.stack(v, 1) for v in zip(*above, strict=True)) if above else (empty,) * 4
    goal = area(truth.flatten(0, 1)).view(n, 1, tiles)
    ap = binary_average_precision(found, found + wrong, goal, pixels)

    width = max(m, tiles)
    left = torch.ones(n, tiles, dtype=torch.bool, device=maps.device)
    place = torch.arange(width, device=maps.device)
    values, aps = (torch.full((n, width), math.nan, dtype=torch.float64, device=maps.device) for _ in range(2))
    for i in range(m):  # what one map takes, the next cannot have
        overlap = torch.where(left, hit[:, i] / (total[:, i] + wrong[:, i]), 0 / (found + wrong)[:, i])
        best = overlap.argmax(1, keepdim=True)
        values[:, i : i + 1] = overlap.gather(1, best)
        aps[:, i : i + 1] = torch.where(left, ap[:, i], 0.0).gather(1, best)
        left = left.scatter(1, best, False)
    missing = (place >= count[:, None]) & (place < tiles)
    nothing = (count[:, None] == 0) | (place >= count[:, None].clamp(min=tiles))
    return Matches(*(torch.where(nothing, math.nan, torch.where(missing, 0.0, v)) for v in (values, aps)))


def stacked_average_precision(maps: Tensor, count: Tensor, truth: Tensor) -> Tensor:
    """NoPrior's PIAP: the average precision of the binarised sum of a sample's maps over all tiles.

    Args:
        maps: as in `greedy_matches`.
        count: as in `greedy_matches`.
        truth: as in `greedy_matches`.

    Returns:
        float64 ``[N]``; NaN for a sample without maps.
    """
    used = torch.arange(maps.shape[1], device=maps.device) < count[:, None]
    size = chunk_size(maps)
    pairs = zip(maps.split(size), used.split(size), strict=True)
    sums = torch.cat([torch.where(u[..., None, None], x, 0).sum(1) for x, u in pairs])
    hit, _, wrong, total = (v.sum(1) for v in tile_counts(sums, truth, mask=True))
    ap = binary_average_precision(hit, hit + wrong, total, truth.shape[1:].numel())
    return torch.where(count > 0, ap, math.nan)


def count_accuracy(count: Tensor, sources: Tensor | int) -> Tensor:
    """Share of samples with the right number of maps, float64 scalar.

    Args:
        count: int64 ``[N]``.
        sources: the right number, for all samples or ``[N]``.
    """
    return (count == sources).double().mean()


@one_thread()
def tile_counts(maps: Tensor, truth: Tensor, mask: bool = False) -> Above:
    """Of stacked maps ``[N, T * H, W]``, what the predicted pixels of each tile hold of its ground truth
    ``[N, T, H, W]``, ``[N, T]`` each: min-max and upper median of the tile, ``>`` with LVS's leak."""
    n, tiles = truth.shape[:2]
    parts = []
    size = 8 * chunk_size(truth)  # several steps a pixel: calls cost more here than leaving the cache
    for start in range(0, max(1, n), size):
        goal = truth[start : start + size].flatten(0, 1)
        scaled = minmax(maps[start : start + size].reshape(goal.shape))
        parts.append(count_above(scaled, goal, median_threshold(scaled), "lvs", mask=mask))
    return Above(*(torch.cat(v).view(n, tiles) for v in zip(*parts, strict=True)))
