"""One threshold for a whole benchmark, chosen where sound is heard and where it is not.

The choice is made on a calibration set and applied to a test set, so that no map is cut with the help of its own
ground truth.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from avloc.metrics.ciou import auc, success_rate
from avloc.metrics.robust import harmonic_mean
from avloc.metrics.thresholds import one_thread

__all__ = ["GRID", "Summary", "balance", "choose_threshold", "summary"]

GRID: tuple[float, ...] = tuple(i / 100 for i in range(1, 100))
"""The 99 candidates 0.01 .. 0.99."""


class Summary(NamedTuple):
    """float64 scalars of `summary`, all in 0..1.

    Attributes:
        mean_ciou: over the positives, NaN counting as 0.
        success_rate: share of positives with cIoU >= 0.5.
        auc: of the positives' cIoU.
        fpr: mean share of the image predicted on the negatives.
        f: harmonic mean of ``mean_ciou`` and ``1 - fpr``.
    """

    mean_ciou: Tensor
    success_rate: Tensor
    auc: Tensor
    fpr: Tensor
    f: Tensor


@one_thread()
def balance(ciou: Tensor, pia: Tensor) -> Tensor:
    """Harmonic mean of the mean cIoU over positives and 1 minus the mean pIA over negatives.

    Args:
        ciou: ``[P, K]``; NaN counts as 0.
        pia: ``[Q, K]``.

    Returns:
        float64 ``[K]``.

    Raises:
        ValueError: no positives or no negatives.
    """
    if not len(ciou) or not len(pia):
        raise ValueError(
            f"A universal threshold weighs positives against negatives, but there are {len(ciou)} positives and "
            f"{len(pia)} negatives. Calibrate on sets that together hold both."
        )
    return harmonic_mean(ciou.double().nan_to_num(0.0).mean(0), 1 - pia.double().mean(0))


def choose_threshold(ciou: Tensor, pia: Tensor, grid: Tensor | tuple[float, ...] = GRID) -> int:
    """The threshold with the best `balance`; of several, the lowest.

    Args:
        ciou: of the calibration set's positives at each threshold, ``[P, K]``.
        pia: share of the image of its negatives, ``[Q, K]`` (`avloc.metrics.negative.image_share`).
        grid: the K thresholds, ascending.

    Returns:
        The place in the grid.

    Raises:
        ValueError: no positives or no negatives, or values of another grid.
    """
    if ciou.shape[1] != len(grid) or pia.shape[1] != len(grid):
        raise ValueError(
            f"The grid has {len(grid)} thresholds, but cIoU has {ciou.shape[1]} and the image share {pia.shape[1]}. "
            "Compute both at the grid's thresholds."
        )
    score = balance(ciou, pia)
    return int((score == score.amax()).nonzero()[0])


def summary(ciou: Tensor, pia: Tensor, index: int) -> Summary:
    """The scores of a test set at the threshold that was chosen.

    Args:
        ciou: ``[P, K]`` of the positives.
        pia: ``[Q, K]`` of the negatives.
        index: of `choose_threshold`.

    Raises:
        ValueError: no positives or no negatives.
    """
    values, shares = ciou[:, index].double(), pia[:, index].double()
    return Summary(
        mean_ciou=values.nan_to_num(0.0).mean(),
        success_rate=success_rate(values),
        auc=auc(values),
        fpr=shares.mean(),
        f=balance(values[:, None], shares[:, None])[0],
    )
