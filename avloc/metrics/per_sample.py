"""Per-sample values of an evaluation set, exact on any number of processes.

The sets are small (some thousands), so the values themselves are the state: every sample owns one row of a
tensor that starts at zero, the process that meets the sample writes it, and a sum joins the processes. Adding
zeros changes no bit, so one process and twenty give identical rows, and every number of a protocol is a pure
function of them. (Samplers that fill up the last batch count samples twice: 21 clips as 22 on two processes.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["CountError", "PerSample"]


class CountError(RuntimeError):
    """The samples that were counted are not the samples of the set."""


class PerSample(Metric):
    """Rows of float64 values, one row per sample of an evaluation set.

    Args:
        size: number n of samples in the set.
        columns: name of each value to its width k.
        allow_unread: how many samples may turn out to be unreadable; their data set gives them the index -1.
        partial: only a part of the set is met on purpose (``limit_test_batches``); missing ones are no error.
        name: of the set, for messages.

    Attributes:
        values: float64 ``[n, sum of k]``.
        seen: int64 ``[n]``, how often each sample was counted.
        unread: int64 scalar, rows with index -1.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    values: Tensor
    seen: Tensor
    unread: Tensor

    def __init__(
        self,
        size: int,
        columns: Mapping[str, int],
        allow_unread: int = 0,
        partial: bool = False,
        name: str = "this evaluation set",
    ) -> None:
        super().__init__()
        self.size, self.columns, self.name = size, dict(columns), name
        self.allow_unread, self.partial = allow_unread, partial
        values = torch.zeros(size, sum(self.columns.values()), dtype=torch.float64)
        self.add_state("values", values, dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("unread", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, index: Tensor, **values: Tensor) -> None:
        """Write the rows of some samples.

        Args:
            index: int64 ``[B]``, place of each sample in the set; rows with -1 are unread and left out.
            **values: ``[B, k]`` (``[B]`` for k = 1) of every declared column; NaN is a value like any other.

        Raises:
            CountError: an index outside the set.
            ValueError: columns other than the declared ones, or of another shape.
        """
        index = index.to(self.seen.device)
        if values.keys() != self.columns.keys():
            raise ValueError(f"PerSample of {self.name}: got {sorted(values)}, declared {sorted(self.columns)}.")
        outside = (index < -1) | (index >= self.size)
        if bool(outside.any()):
            raise CountError(
                f"A batch of {self.name} holds the sample index {int(index[outside][0])}, but the set has "
                f"{self.size} samples. The data set must give each sample its place in AVBatch.index."
            )
        for name, width in self.columns.items():
            if values[name].numel() != len(index) * width:
                raise ValueError(
                    f"PerSample of {self.name}: {name} has shape {tuple(values[name].shape)}, expected "
                    f"[{len(index)}, {width}]."
                )
        rows = [values[name].reshape(-1, width).to(self.values) for name, width in self.columns.items()]
        read = index >= 0
        self.values.index_add_(0, index[read], torch.cat(rows, 1)[read])
        self.seen.index_add_(0, index[read], torch.ones_like(index[read]))
        self.unread += (~read).sum()

    def compute(self) -> dict[str, Tensor]:
        """The rows of all counted samples in the set's order.

        Returns:
            Each column as float64 ``[m, k]``, and ``index``, int64 ``[m]``; m = n unless samples are unread.

        Raises:
            CountError: a sample was counted twice, is missing without being unread, or too many are unread;
                says how many and which.
        """
        twice, missing, unread = self.seen > 1, self.seen == 0, int(self.unread)
        faults = []
        if bool(twice.any()):
            faults.append(f"{int(twice.sum())} were counted more than once ({some(twice)})")
        if not self.partial and int(missing.sum()) != unread:
            faults.append(f"{int(missing.sum())} are missing ({some(missing)}), of which {unread} unreadable")
        if unread > self.allow_unread:
            faults.append(f"{unread} are unreadable and {self.allow_unread} may be")
        if faults:
            raise CountError(
                f"Of the {self.size} samples of {self.name}, {'; '.join(faults)}. Evaluation must meet every "
                "sample once: use the data module's loaders, and use_distributed_sampler=False."
            )
        index = self.seen.nonzero()[:, 0]
        rows = self.values[index].split(list(self.columns.values()), dim=1)
        return {**dict(zip(self.columns, rows, strict=True)), "index": index}

    def table(self) -> dict[str, Tensor]:
        """`compute` in its documented shapes: torchmetrics turns the columns of a single sample into scalars."""
        rows = self.compute()
        return {name: rows[name].reshape(-1, width) for name, width in self.columns.items()} | {
            "index": rows["index"].reshape(-1)
        }


def some(rows: Tensor) -> str:
    places = rows.nonzero()[:, 0].tolist()
    return "index " + ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")
