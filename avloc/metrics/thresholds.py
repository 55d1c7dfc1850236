"""From a score map to the set of predicted pixels: which threshold, which operator, and what lies above.

Every metric of this package asks how much of the ground truth lies on the predicted pixels, and how many of them lie
beside it. `count_above` answers it for all thresholds of all maps from one histogram per map, some maps at a time, so
a sweep over 19 or 255 thresholds reads each pixel once and memory does not grow with the number of maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "SWEEP",
    "Above",
    "Operator",
    "area",
    "area_threshold",
    "chunk_size",
    "count_above",
    "largest_mean",
    "mass_above",
    "median_threshold",
    "one_thread",
    "positive_median",
    "predicted",
    "rank_threshold",
]

Operator = Literal[">=", ">", "lvs"]
"""``lvs`` is "> threshold, or >= 1": LVS overwrites its map in place and pixels at 1 survive."""

SWEEP: tuple[float, ...] = tuple(0.05 * i for i in range(1, 20))
"""The 19 fixed thresholds of ACL-SSL, 0.05..0.95."""

FEW = 12  # thresholds: with so many, comparing whole maps in NumPy is faster than a histogram, on a processor


def chunk_size(maps: Tensor) -> int:
    """How many maps ``[N, H, W]`` to treat at once: what a processor's cache holds, or a small part of a GPU."""
    return max(1, 2 ** (24 if maps.is_cuda else 17) // max(1, maps.shape[1:].numel()))


@contextmanager
def one_thread() -> Iterator[None]:
    """Without torch's threads on the processor: on what a cache holds, waiting for them costs more than they gain,
    and a hundred times more while data workers keep the processor busy. Use as a decorator."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def largest_mean(maps: Tensor, count: int) -> Tensor:
    """The mean of the largest pixels of each map, float64 ``[N]``."""
    pixels, rank = maps.detach().flatten(1), maps.shape[1:].numel() - count
    if sorts_with_numpy(pixels):
        means = [np.partition(row, rank)[rank:].mean(dtype=np.float64) for row in pixels.numpy()]
        return torch.tensor(means, dtype=torch.float64)
    return torch.cat(
        [p.topk(count, dim=1, sorted=False).values.double().mean(1) for p in pixels.split(chunk_size(maps))]
    )


def sorts_with_numpy(x: Tensor) -> bool:
    """On a processor NumPy selects and sorts with vector instructions, five to fifteen times as fast as torch."""
    in_numpy = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64, torch.int64)
    return in_numpy and not torch.compiler.is_compiling()  # a graph of torch.export holds torch alone


def rank_threshold(maps: Tensor, rank: Tensor) -> Tensor:
    """The value at a place of each map's ascending sort.

    Args:
        maps: ``[N, H, W]``.
        rank: int64 ``[N]``, 0..HW-1.

    Returns:
        ``[N, 1]``, of the maps' dtype.
    """
    pixels = maps.flatten(1)
    if not sorts_with_numpy(maps):
        return pixels.sort(1).values.gather(1, rank[:, None])
    # Row by row: a selection costs a third of a sort, and NumPy selects one place for all rows only.
    rows = zip(pixels.detach().numpy(), rank.tolist(), strict=True)
    return maps.new_tensor([np.partition(row, place)[place] for row, place in rows])[:, None]


def median_threshold(maps: Tensor) -> Tensor:
    """The value at index HW // 2, the upper median (not ``median()``, which takes the lower). ``[N, 1]``."""
    middle = maps.shape[1:].numel() // 2
    if sorts_with_numpy(maps):
        return rank_threshold(maps, torch.full((len(maps),), middle))
    return maps.flatten(1).kthvalue(middle + 1, dim=1, keepdim=True).values


def positive_median(maps: Tensor) -> Tensor:
    """`median_threshold` of maps in 0..1 for ``>=``, but never 0: a pixel of 0 is no prediction.

    The published cuts at the median predict a whole map of zeros, or one that is 0 on more than half of its pixels.

    Returns:
        ``[N, 1]``.
    """
    return median_threshold(maps).clamp(min=torch.finfo(maps.dtype).tiny)


def area(truth: Tensor) -> Tensor:
    """Pixels of each map ``[N, H, W]`` that are not 0, whatever their weight; int64 ``[N]``."""
    if truth.device.type != "cpu":
        return truth.flatten(1).count_nonzero(1)
    return torch.tensor([np.count_nonzero(row != 0) for row in truth.detach().numpy()], dtype=torch.int64)


def area_threshold(maps: Tensor, truth: Tensor) -> Tensor:
    """The adaptive threshold: the value at index HW - A, with A the area of the ground truth.

    A counts the pixels that are not 0, whatever their weight; an empty ground truth has A = HW // 2
    (SSLalignment's evaluator, e7ae3c5).

    Args:
        maps: ``[N, H, W]``.
        truth: ``[N, H, W]``, weights in 0..1.

    Returns:
        ``[N, 1]``.
    """
    pixels = truth.shape[1:].numel()
    count = area(truth)
    return rank_threshold(maps, pixels - torch.where(count == 0, pixels // 2, count))


def predicted(maps: Tensor, thresholds: Tensor, operator: Operator) -> Tensor:
    """The set of predicted pixels as bool ``[N, H, W]``.

    Args:
        maps: ``[N, H, W]``.
        thresholds: ``[N, 1]``, one a map, in the maps' dtype.
        operator: when a pixel is predicted.
    """
    cut = thresholds[..., None]
    if operator == "lvs":
        return (maps > cut) | (maps >= 1)
    return maps >= cut if operator == ">=" else maps > cut


class Above(NamedTuple):
    """What the predicted pixels hold, float64 ``[N, K]``, and the ground truth's total, ``[N, 1]``.

    Attributes:
        hit: sum of the ground truth over the predicted pixels.
        found: how many predicted pixels have a ground truth that is not 0; equals ``hit`` for a mask.
        wrong: how many predicted pixels have a ground truth of 0; all of them where there is no ground truth.
        total: sum of the ground truth.
    """

    hit: Tensor
    found: Tensor
    wrong: Tensor
    total: Tensor


@one_thread()
def count_above(
    maps: Tensor,
    truth: Tensor | None,
    thresholds: Tensor | Sequence[float],
    operator: Operator,
    mask: bool = False,
) -> Above:
    """Hits and false positives of every map at every threshold.

    Args:
        maps: float ``[N, H, W]``, free of NaN.
        truth: ``[N, H, W]``, a mask or weights of any number type; None for no ground truth.
        thresholds: ``[K]`` for all maps or ``[N, K]``, ascending. They are compared in the maps' dtype.
        operator: when a pixel is predicted.
        mask: every pixel whose truth is above 0 belongs to the object with weight 1.

    Raises:
        ValueError: maps and truth of different shapes.
    """
    if truth is not None and truth.shape != maps.shape:
        raise ValueError(
            f"Maps of shape {list(maps.shape)} cannot be compared with a ground truth of shape {list(truth.shape)}: "
            "resize the maps to the ground truth (avloc.metrics.maps.resize), one map for each."
        )
    cuts = torch.as_tensor(thresholds, dtype=maps.dtype, device=maps.device)
    if maps.dtype in (torch.float16, torch.bfloat16):  # exact, and all that follows knows the wider types
        maps, cuts = maps.float(), cuts.float()
    few = maps.device.type == "cpu" and cuts.shape[-1] <= FEW
    return (by_comparison if few else by_histogram)(maps, truth, cuts, operator, mask)


class Chunk(NamedTuple):
    """Some maps as rows of pixels ``[n, P]``, and memory that every chunk uses again."""

    rows: slice
    x: Tensor
    weights: Tensor | None  # the truth, if it is more than ``inside`` says
    inside: Tensor  # float32, 1 where the truth is not 0, else 0
    spare: Tensor  # float32
    place: Tensor  # of the maps' dtype
    bins: Tensor  # int32


def chunks(maps: Tensor, truth: Tensor | None, mask: bool) -> Iterator[Chunk]:
    size, pixels = min(len(maps), chunk_size(maps)), maps.shape[1:].numel()
    # Fresh pages would cost more than the arithmetic on them.
    types = (torch.float32, torch.float32, maps.dtype, torch.int32)
    memory = [torch.empty(size, pixels, dtype=dtype, device=maps.device) for dtype in types]
    for start in range(0, len(maps), max(1, size)):
        rows = slice(start, start + size)
        x = maps[rows].flatten(1)
        inside, spare, place, bins = memory if len(x) == size else [part[: len(x)] for part in memory]
        weights = None
        if truth is not None:
            t = truth[rows].flatten(1)
            if mask:
                torch.gt(t, 0, out=inside)
            elif t.dtype == torch.bool:
                inside.copy_(t)
            else:
                t = t if t.dtype in (torch.float32, torch.float64) else t.float()
                # t - t², 0 for t = 0 and 1 only
                rest = torch.addcmul(t, t, t, value=-1, out=spare) if t.dtype == torch.float32 else t - t**2
                if bool(rest.abs_().sum()):
                    weights = t
                    torch.ne(t, 0, out=inside)
                else:
                    inside = t.float()
        yield Chunk(rows, x, weights, inside, spare, place, bins)


def by_comparison(maps: Tensor, truth: Tensor | None, cuts: Tensor, operator: Operator, mask: bool) -> Above:
    """`count_above` for a few thresholds on a processor, map by map: nothing counts a row as fast as NumPy, and what a
    map needs stays in the cache."""
    n, k = len(maps), cuts.shape[-1]
    above = np.greater_equal if operator == ">=" else np.greater
    hit, found, size = np.zeros((3, n, k))
    total = np.zeros((n, 1))
    levels = cuts.expand(n, k).numpy()
    goals = [None] * n if truth is None else truth.detach().flatten(1).numpy()
    chosen = np.empty(maps.shape[1:].numel(), dtype=bool)
    common = np.empty_like(chosen)
    for i, (x, goal) in enumerate(zip(maps.detach().flatten(1).numpy(), goals, strict=True)):
        inside, binary = None, True
        if goal is not None:
            inside = goal if goal.dtype == bool else goal > 0 if mask else goal != 0
            total[i] = np.count_nonzero(inside)
            binary = mask or goal.dtype == bool or np.count_nonzero(goal == 1) == total[i]
            if not binary:
                total[i] = goal.sum(dtype=np.float64)
        for j in range(k):
            above(x, levels[i, j], out=chosen)
            if operator == "lvs":
                chosen |= x >= 1
            size[i, j] = np.count_nonzero(chosen)
            if inside is not None:
                found[i, j] = np.count_nonzero(np.logical_and(chosen, inside, out=common))
                hit[i, j] = found[i, j] if binary else goal[common].sum(dtype=np.float64)
    return Above(*(torch.from_numpy(v) for v in (hit, found, size - found, total)))


def by_histogram(maps: Tensor, truth: Tensor | None, cuts: Tensor, operator: Operator, mask: bool) -> Above:
    """`count_above` for many thresholds: pixels are counted by how many thresholds they pass and by their truth."""
    k = cuts.shape[-1]
    width = k + 2  # the last bin takes what is infinite
    kinds = 1 if truth is None else 2
    grid = even_grid(cuts, operator)
    tables = []
    extra: Tensor | None = None  # what weights other than 1 add to the counts
    for c in chunks(maps, truth, mask):
        if grid is not None:
            place = torch.add(grid.start, c.x, alpha=grid.slope, out=c.place).clamp_(0, k + 0.5)
            if kinds == 2:
                place.add_(c.inside, alpha=width)
            bins = c.bins.copy_(place)  # passed thresholds, or one less: the next one decides
            torch.index_select(grid.edges, 0, bins.view(-1), out=place.view(-1))
            place.sub_(c.x)  # negative, that is with a sign bit, if the pixel passes
            wide = place.dtype == torch.float64
            bins.sub_(place.view(torch.int64 if wide else torch.int32).bitwise_right_shift_(63 if wide else 31))
        else:
            own = (cuts if cuts.ndim == 1 else cuts[c.rows]).contiguous()
            bins = torch.searchsorted(own, c.x.contiguous(), right=operator == ">=", out_int32=True)
            if operator == "lvs":
                bins.masked_fill_(c.x >= 1, k)
            if kinds == 2:
                bins += width * c.inside.int()
        tables.append(count_rows(bins, kinds * width, c.spare.view(torch.int32)))
        if c.weights is not None:
            if extra is None:
                extra = torch.zeros(len(maps), width, dtype=torch.float64, device=maps.device)
            extra[c.rows] = extra[c.rows].scatter_add(1, (bins % width).long(), c.weights.double() - c.inside)
    counts = torch.cat(tables) if tables else torch.zeros(0, kinds * width, dtype=torch.int64, device=maps.device)
    counts = counts.view(-1, kinds, width).flip(2).cumsum(2).flip(2).double()  # so many thresholds passed, or more
    wrong = counts[:, 0, 1 : k + 1]
    if truth is None:
        none = torch.zeros_like(wrong)
        return Above(none, none, wrong, none[:, :1])
    found, total = counts[:, 1, 1 : k + 1], counts[:, 1, :1]
    if extra is None:
        return Above(found, found, wrong, total)
    # A triangular product, since torch has no deterministic cumulative sum of floats on CUDA.
    extra = extra @ torch.ones(width, width, dtype=torch.float64, device=maps.device).tril()
    return Above(found + extra[:, 1 : k + 1], found, wrong, total + extra[:, :1])


def count_rows(bins: Tensor, width: int, spare: Tensor) -> Tensor:
    """How often each number 0..width-1 occurs in each row of an int32 ``[n, P]``; int64 ``[n, width]``."""
    n, pixels = bins.shape
    row = torch.arange(n, dtype=torch.int32, device=bins.device)[:, None]
    if width > 64 or pixels % 2:
        torch.add(bins, row, alpha=width, out=spare)
        return torch.bincount(spare.view(-1), minlength=n * width).view(n, width)
    # Two pixels at once: half as much to count, in a table that still fits the cache.
    half = pixels // 2
    pairs = spare.view(-1)[: n * half].view(n, half)
    torch.add(bins[:, :half], bins[:, half:], alpha=width, out=pairs).add_(row, alpha=width**2)
    table = torch.bincount(pairs.view(-1), minlength=n * width**2).view(n, width, width)
    return table.sum(1) + table.sum(2)


class Grid(NamedTuple):
    """Evenly spaced thresholds: a pixel's bin is computed, and one comparison with the next threshold makes it exact.

    Attributes:
        slope: of the line that, rounded down, gives the number of passed thresholds or one less.
        start: of that line, a scalar.
        edges: ``[2 (K + 2)]``, what a pixel has to exceed to pass the next threshold; once for each kind of pixel.
    """

    slope: float
    start: Tensor
    edges: Tensor


def even_grid(cuts: Tensor, operator: Operator) -> Grid | None:
    """The grid that the thresholds form; None if they are uneven, differ between maps, or the operator is LVS's."""
    k = cuts.shape[-1]
    if cuts.ndim > 1 or not 1 < k <= 2**12 or operator == "lvs":  # more bins than float32 can tell apart well
        return None
    values = cuts.double()
    step = float(values[-1] - values[0]) / (k - 1)
    even = values[0] + step * torch.arange(k, dtype=torch.float64, device=cuts.device)
    if step <= 0 or bool(((values - even).abs() > step / 64).any()):
        return None
    # x >= c is x > (the number before c)
    edges = cuts if operator == ">" else torch.nextafter(cuts, cuts.new_tensor(-math.inf))
    edges = torch.cat([edges, edges.new_full((2,), math.inf)]).repeat(2)
    # 1/16 below the number itself: more than rounding can move, far less than a whole bin.
    return Grid(1 / step, cuts.new_tensor(1 - float(values[0]) / step - 1 / 16), edges)


def mass_above(
    maps: Tensor, weights: Sequence[Tensor], thresholds: Tensor | Sequence[float], operator: Operator
) -> list[Tensor]:
    """The sum of each weight over the predicted pixels, for every threshold.

    Args:
        maps: float ``[N, H, W]``, free of NaN.
        weights: tensors ``[N, H, W]``.
        thresholds: ``[K]`` for all maps or ``[N, K]``, ascending. They are compared in the maps' dtype.
        operator: when a pixel is predicted.

    Returns:
        One float64 ``[N, K]`` per weight.
    """
    return [count_above(maps, weight, thresholds, operator).hit for weight in weights]
