"""Learning rates that know how long their run is."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from avloc.errors import UsageError

__all__ = ["OverRun"]


class OverRun(LRScheduler):
    """A rate that rises over the first part of a run and falls over the rest of it, however long that is.

    PyTorch's own are told a number of steps, which no longer fits when somebody trains longer, on more data or with
    larger batches: its cosine climbs again after its end. Here a step is one of the optimiser, so accumulated gradients
    change nothing, and a run that goes on with another length follows the curve of that length from there on.

    Args:
        optimizer: whose rates are scaled.
        shape: how it falls: ``cosine``, ``linear``, or ``constant``.
        warmup: part of the run, in [0, 1), over which it rises in a line from 0.
        end: what is left of the rate at the end, in [0, 1].

    Raises:
        UsageError: ``warmup`` or ``end`` is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        shape: Literal["cosine", "linear", "constant"] = "cosine",
        warmup: float = 0.0,
        end: float = 0.0,
    ) -> None:
        if not 0 <= warmup < 1 or not 0 <= end <= 1:
            raise UsageError(f"OverRun needs warmup in [0, 1) and end in [0, 1]; got {warmup:g} and {end:g}.")
        self.shape, self.warmup, self.end = shape, warmup, end
        self.steps: int | None = None
        super().__init__(optimizer)

    def over(self, steps: float) -> None:
        """Tell the length of the run, in steps of the optimiser.

        Raises:
            UsageError: it has no end.
        """
        if not 0 < steps < math.inf:
            raise UsageError("OverRun needs to know how long the run is: set trainer.max_epochs or trainer.max_steps.")
        self.steps = int(steps)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def factor(self, step: int) -> float:
        """What the rate is multiplied with in this step, counted from 0."""
        if self.steps is None:
            return 1.0
        rising = self.warmup * self.steps
        if step < rising:
            return step / rising
        past = min((step - rising) / (self.steps - rising), 1.0)
        left = {"cosine": (1 + math.cos(math.pi * past)) / 2, "linear": 1 - past, "constant": 1.0}[self.shape]
        return self.end + (1 - self.end) * left

    def get_lr(self) -> list[float | Any]:
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Where it is; the curve is that of the run that goes on."""
        return {k: v for k, v in super().state_dict().items() if k not in ("shape", "warmup", "end", "steps")}
