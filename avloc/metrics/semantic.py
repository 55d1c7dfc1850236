"""AVSBench-Semantic: IoU and F of label maps, per frame and class (AVSS) or from the sums of a data set (CAVP).

Source: OpenNLPLab/AVSBench (f7414af) and cyh-0/CAVP (96a6c34). `label_counts` gives three small tables of pixel counts
per frame, of which everything else is a function.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from avloc.metrics.avs import BETA2
from avloc.metrics.thresholds import chunk_size, one_thread

__all__ = [
    "DatasetScores",
    "LabelCounts",
    "class_fscore",
    "class_iou",
    "class_means",
    "confusion",
    "dataset_scores",
    "frame_means",
    "label_counts",
    "mean_over_classes",
    "present",
]

IGNORE = 255


class LabelCounts(NamedTuple):
    """Pixels of each frame and class, int64 ``[N, C]`` each."""

    intersection: Tensor
    predicted: Tensor
    actual: Tensor


class DatasetScores(NamedTuple):
    """float64 scalars of `dataset_scores`."""

    miou: Tensor
    f1: Tensor
    f03: Tensor
    fdr: Tensor
    accuracy: Tensor


@one_thread()
def label_counts(pred: Tensor, truth: Tensor, classes: int, ignore: int | None = None) -> LabelCounts:
    """Count pixels of each class in prediction, ground truth and both.

    Args:
        pred: integer labels ``[N, H, W]``, 0..classes-1.
        truth: integer labels ``[N, H, W]``, 0..classes-1 or 255 (belongs to no class).
        classes: C, background included.
        ignore: pixels with this ground truth count nowhere; 255 in CAVP's rule. None, AVSBench's rule, still counts
            what is predicted on pixels of no class.

    Raises:
        ValueError: a label outside the classes, named with its place.
    """
    tables = [
        (t.diagonal(0, 1, 2), t.sum(1), t[:, :classes].sum(2)) for t in frame_tables(pred, truth, classes, ignore)
    ]
    if not tables:
        empty = torch.zeros(0, classes, dtype=torch.int64, device=pred.device)
        return LabelCounts(empty, empty, empty)
    return LabelCounts(*(torch.cat(parts) for parts in zip(*tables, strict=True)))


@one_thread()
def confusion(pred: Tensor, truth: Tensor, classes: int, ignore: int | None = IGNORE) -> Tensor:
    """How often each class (row) was labelled as each class (column) in all frames together.

    Args:
        pred: as in `label_counts`.
        truth: as in `label_counts`.
        classes: C.
        ignore: as in `label_counts`.

    Returns:
        int64 ``[C, C]``.

    Raises:
        ValueError: as `label_counts`.
    """
    total = torch.zeros(classes, classes, dtype=torch.int64, device=pred.device)
    for table in frame_tables(pred, truth, classes, ignore):
        total += table[:, :classes].sum(0)
    return total


def class_iou(counts: LabelCounts) -> Tensor:
    """IoU of each frame and class, float64 ``[N, C]``; 0 where a class is in neither map."""
    union = counts.predicted + counts.actual - counts.intersection
    return counts.intersection.double() / union.clamp(min=1)


def class_fscore(counts: LabelCounts, beta2: float = BETA2) -> Tensor:
    """F of the hard labels of each frame and class, float64 ``[N, C]``; 0 without a common pixel."""
    hit, predicted, actual = (c.double() for c in counts)
    return torch.where(hit > 0, (1 + beta2) * hit / (beta2 * actual + predicted), 0.0)


def present(counts: LabelCounts) -> Tensor:
    """Where a class is in the prediction or in the ground truth, bool ``[N, C]``."""
    return (counts.predicted + counts.actual) > 0


def class_means(values: Tensor, present: Tensor) -> Tensor:
    """Mean of each class over the frames where it is present; 0 for a class that never is.

    Args:
        values: ``[N, C]`` of `class_iou` or `class_fscore`.
        present: bool ``[N, C]``.

    Returns:
        ``[C]``.
    """
    return (values * present).sum(0) / present.sum(0).clamp(min=1)


def mean_over_classes(
    means: Tensor, drop_first: bool = False, drop_last: bool = False, seen: Tensor | None = None
) -> Tensor:
    """The headline number: the mean over all classes, those never seen counting as 0.

    Args:
        means: ``[C]`` of `class_means`.
        drop_first: leave out class 0, the background (Stepping-Stones).
        drop_last: leave out the last class, AVSBench's "noBg", which is not the background.
        seen: bool ``[C]``; average over these classes only (the running print of AVSBench).

    Returns:
        Scalar; NaN if no class is left.
    """
    kept = torch.ones_like(means, dtype=torch.bool) if seen is None else seen.clone()
    kept[:1] &= not drop_first
    kept[-1:] &= not drop_last
    return means[kept].mean()


def frame_means(iou: Tensor) -> Tensor:
    """AVSBench's mIoU of each frame: the mean over the classes whose IoU is not 0 (present or not).

    Args:
        iou: ``[N, C]`` of `class_iou`.

    Returns:
        ``[N]``; NaN (0/0) for a frame whose labels are all wrong.
    """
    return iou.sum(1) / (iou != 0).sum(1)


def dataset_scores(intersection: Tensor, predicted: Tensor, actual: Tensor) -> DatasetScores:
    """CAVP: scores of the pixel sums of a whole data set.

    Args:
        intersection: ``[C]``, summed over the frames of `label_counts` with ``ignore=255``.
        predicted: ``[C]``.
        actual: ``[C]``.

    Returns:
        mIoU over all classes (absent ones 0), F1, F of beta² 0.3 and false-discovery rate over the classes where they
        are defined, and pixel accuracy.
    """
    hit, predicted, actual = intersection.double(), predicted.double(), actual.double()
    union = predicted + actual - hit

    def fscore(beta2: float) -> Tensor:
        return ((1 + beta2) * hit / (beta2 * actual + predicted)).nanmean()

    return DatasetScores(
        miou=(hit / union.clamp(min=1)).mean(),
        f1=fscore(1.0),
        f03=fscore(BETA2),
        fdr=((predicted - hit) / predicted).nanmean(),
        accuracy=hit.sum() / actual.sum().clamp(min=1),
    )


def frame_tables(pred: Tensor, truth: Tensor, classes: int, ignore: int | None) -> Iterator[Tensor]:
    """Confusions of some frames at a time, int64 ``[n, C + 1, C]``; the last row has the pixels of no class."""
    cells = (classes + 1) * classes
    frames = max(1, min(chunk_size(pred), 2**24 // cells))
    for start in range(0, len(pred), frames):
        p, t = (x[start : start + frames].flatten(1).int() for x in (pred, truth))
        if classes <= IGNORE:
            t = torch.where(t == IGNORE, classes, t)
        for name, x, top in (("prediction", p, classes - 1), ("ground truth", t, classes)):
            low, high = (int(v) for v in x.aminmax())
            if low < 0 or high > top:
                frame = start + int(((x < 0) | (x > top)).any(1).nonzero()[0])
                raise ValueError(
                    f"The {name} of frame {frame} holds labels between {low} and {high}, but there are {classes} "
                    f"classes, 0..{classes - 1}. Give the number of classes of this label space, background included."
                )
        index = torch.arange(len(p), dtype=torch.int32, device=p.device)[:, None] * cells + t * classes + p
        kept = index.flatten() if ignore is None else index[truth[start : start + frames].flatten(1) != ignore]
        yield torch.bincount(kept, minlength=len(p) * cells).reshape(len(p), classes + 1, classes)
