"""mIoU and F-score of AVSBench: per frame, and per batch or data set.

Source: OpenNLPLab/AVSBench (f7414af). The official numbers depend on how many videos share a batch, so the
per-frame values come first and everything else is a function of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avloc.metrics.thresholds import Operator, area, count_above, rank_threshold

__all__ = ["BETA2", "THRESHOLDS", "batch_fscores", "batch_means", "dataset_fscore", "fscore_curve", "iou", "top_pixels"]

THRESHOLDS = torch.linspace(0, 1 - 1e-10, 255)
"""float32 ``[255]``: the last is 1.0, number 127 exactly 0.5."""

BETA2 = 0.3


def iou(maps: Tensor, truth: Tensor, thresholds: Tensor | Sequence[float] = (0.5,), operator: Operator = ">") -> Tensor:
    """IoU of each frame at each threshold; of an empty frame, the share of pixels predicted empty.

    Args:
        maps: probabilities ``[N, H, W]``.
        truth: masks ``[N, H, W]``; every pixel above 0 belongs to the object.
        thresholds: ``[K]`` or ``[N, K]``, ascending; AVSBench 0.5, GAVS 0.4, ACL-SSL 19 values.
        operator: when a pixel is predicted.

    Returns:
        float64 ``[N, K]``. AVSBench adds 1e-7 to the union, which float32 loses; it is left out here.
    """
    hit, _, wrong, area = count_above(maps, truth, thresholds, operator, mask=True)
    return torch.where(area == 0, 1 - wrong / truth.shape[1:].numel(), hit / (area + wrong))


def top_pixels(maps: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and F of as many highest pixels as the object has, ACL-SSL's mIoU and F-Score Adaptive of each frame.

    Of pixels that share the lowest value taken each counts with the same part, so their order plays no role, and with
    as many predicted as true pixels both precision and recall are the share that is hit. A pixel of 0 is no prediction:
    a map of zeros is an empty answer, not K pixels somewhere.

    Args:
        maps: probabilities ``[N, H, W]``.
        truth: masks ``[N, H, W]``; every pixel above 0 belongs to the object.

    Returns:
        float64 ``[N]`` each. Without ground truth nothing is predicted: IoU 1, and F NaN, for it does not count.
    """
    pixels, wanted = truth.shape[1:].numel(), area(truth > 0)
    lowest = rank_threshold(maps, (pixels - wanted).clamp(max=pixels - 1)).clamp(min=0)
    above, from_lowest = (count_above(maps, truth, lowest, o, mask=True) for o in (">", ">="))
    surely, maybe = above.hit[:, 0], from_lowest.hit[:, 0] - above.hit[:, 0]
    inside, tied = above.hit[:, 0] + above.wrong[:, 0], from_lowest.wrong[:, 0] - above.wrong[:, 0] + maybe
    share = torch.where(lowest[:, 0] > 0, (wanted - inside) / tied.clamp(min=1), 0.0)
    hit, predicted = surely + share * maybe, inside + share * tied
    empty = wanted == 0
    f = (1 + BETA2) * hit / (BETA2 * wanted + predicted)
    return (
        torch.where(empty, 1.0, hit / (wanted + predicted - hit)),
        torch.where(empty, torch.nan, f),
    )


def fscore_curve(maps: Tensor, truth: Tensor) -> Tensor:
    """F (beta² 0.3) of each frame at the 255 thresholds, prediction ``>=``.

    With TP hits, n predicted and m true pixels, precision TP/n and recall TP/m give
    ``F = (1 + beta²) TP / (beta² m + n)``.

    Args:
        maps: probabilities ``[N, H, W]``.
        truth: masks ``[N, H, W]``; every pixel above 0 belongs to the object.

    Returns:
        float64 ``[N, 255]``. Frames without ground truth have 0 everywhere; the averages below skip them.
    """
    hit, _, wrong, area = count_above(maps, truth, THRESHOLDS, ">=", mask=True)
    return torch.where(hit > 0, (1 + BETA2) * hit / (BETA2 * area + hit + wrong), 0.0)


def dataset_fscore(curves: Tensor, nonempty: Tensor) -> tuple[Tensor, Tensor]:
    """Data-set level F: the maximum of the mean curve of all frames that have ground truth.

    Args:
        curves: ``[N, 255]`` of `fscore_curve`.
        nonempty: bool ``[N]``.

    Returns:
        F and the threshold where it is reached, float64 scalars; F is 0 if every frame is empty.
    """
    mean = curves[nonempty].sum(0) / nonempty.sum().clamp(min=1)
    best = mean.argmax()
    return mean[best], THRESHOLDS.to(curves)[best]


def batch_fscores(curves: Tensor, nonempty: Tensor, batch: Tensor) -> Tensor:
    """AVSBench's F of each batch: the maximum of the mean curve of the batch's frames that have ground truth.

    Args:
        curves: ``[N, 255]`` of `fscore_curve`.
        nonempty: bool ``[N]``.
        batch: int64 ``[N]``, number of each frame's batch, 0..M-1.

    Returns:
        float64 ``[M]``; 0 for a batch of empty frames, which is not skipped in the mean over batches.
    """
    weight = nonempty.to(curves)
    frames = sums(weight, batch).clamp(min=1)
    return (sums(curves * weight[:, None], batch) / frames[:, None]).amax(1)


def batch_means(values: Tensor, batch: Tensor) -> Tensor:
    """Mean over each batch's frames; the mean of these weighs a short last batch like a full one.

    Args:
        values: ``[N]`` or ``[N, K]``.
        batch: int64 ``[N]``, 0..M-1.

    Returns:
        ``[M]`` or ``[M, K]``.
    """
    frames = sums(torch.ones_like(batch, dtype=values.dtype), batch)
    return sums(values, batch) / frames.view(-1, *[1] * (values.ndim - 1))


def sums(values: Tensor, batch: Tensor) -> Tensor:
    total = values.new_zeros(int(batch.max()) + 1, *values.shape[1:])
    return total.index_add(0, batch, values)
