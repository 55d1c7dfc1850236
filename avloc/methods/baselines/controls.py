"""What a method must beat: answers that neither look nor listen.

Each control is one pure function from a batch to a `Localization`; the evaluator scores it beside every
method, and the Localizer of the same name makes it a method of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from avloc.methods.base import Localizer
from avloc.types import AVBatch, InputSpec, Localization

__all__ = [
    "CONTROLS",
    "CentreBox",
    "Control",
    "FullFrame",
    "MeanMap",
    "RandomMap",
    "centre_box",
    "full_frame",
    "mean_map",
    "random_map",
    "summed_truth",
]

Control = Callable[[AVBatch], Localization]

RANDOM_SIDE = 14
"""Cells of the random map's side: the resolution of the published methods' own maps."""


def full_frame(batch: AVBatch) -> Localization:
    """Every pixel sounds: a map of ones."""
    return answer(torch.ones(len(batch), 1, *grid(batch), device=batch.device))


def centre_box(batch: AVBatch) -> Localization:
    """The central box with half the height and half the width: ones inside, zeros outside."""
    height, width = grid(batch)
    heatmap = torch.zeros(len(batch), 1, height, width, device=batch.device)
    top, left = height // 4, width // 4
    heatmap[..., top : top + height // 2, left : left + width // 2] = 1
    return answer(heatmap)


def random_map(batch: AVBatch) -> Localization:
    """14 x 14 independent uniform values, which depend on `AVBatch.index` alone.

    They come from a counter-based hash, so the map of a sample is the same on every device and in every
    batch.
    """
    cells = torch.arange(RANDOM_SIDE**2, device=batch.device)
    heatmap = uniform(batch.index[:, None] * RANDOM_SIDE**2 + cells)
    return answer(heatmap.view(-1, 1, RANDOM_SIDE, RANDOM_SIDE))


def mean_map(batch: AVBatch, mean: Tensor) -> Localization:
    """The same map for every sample: where the set's objects usually are.

    Args:
        batch: its pictures and sounds are not asked.
        mean: float ``[G, G']`` in [0, 1].
    """
    return answer(mean.float().expand(len(batch), 1, -1, -1))


def summed_truth(data: Any, trainer: Trainer) -> Tensor | None:
    """The mean ground-truth map of an evaluation set, float64 ``[G, G']``; None where it has no truth.

    Every process sums its share of the set; all must call this together.

    Args:
        data: a set with ``mean_truth(rank, world)``, the sum over a share of its samples and their number.
        trainer: knows the processes.
    """
    total, count = data.mean_truth(trainer.global_rank, trainer.world_size)
    total = torch.as_tensor(total, dtype=torch.float64)
    strategy: Any = trainer.strategy
    total = strategy.reduce(total.to(trainer.lightning_module.device), reduce_op="sum").cpu()
    count = int(strategy.reduce(torch.tensor(count, device=trainer.lightning_module.device), reduce_op="sum"))
    return total / count if count else None


def grid(batch: AVBatch) -> tuple[int, int]:
    height, width = (batch.image if batch.truth is None else batch.truth).shape[-2:]
    return height, width


def answer(heatmap: Tensor) -> Localization:
    return Localization(heatmap, heatmap.new_ones(heatmap.shape[:2]))


def uniform(counter: Tensor) -> Tensor:
    """One float32 in [0, 1) for each int64 counter: the finaliser of SplitMix64, in wrapping arithmetic."""
    x = (counter + 1) * -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ shifted(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ shifted(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return shifted(x ^ shifted(x, 31), 40).float() / 2**24


def shifted(x: Tensor, bits: int) -> Tensor:
    """Unsigned right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


CONTROLS: dict[str, Control] = {
    "full frame": full_frame,
    "centre box": centre_box,
    "random map": random_map,
}
"""Row name in a table to control."""


class FullFrame(Localizer):
    """`full_frame` as a method."""

    input_spec = InputSpec()

    def localize(self, batch: AVBatch) -> Localization:
        return full_frame(batch)


class CentreBox(Localizer):
    """`centre_box` as a method."""

    input_spec = InputSpec()

    def localize(self, batch: AVBatch) -> Localization:
        return centre_box(batch)


class RandomMap(Localizer):
    """`random_map` as a method."""

    input_spec = InputSpec()

    def localize(self, batch: AVBatch) -> Localization:
        return random_map(batch)


class MeanMap(Localizer):
    """`mean_map` as a method: of each set that it is tested on, so no answer that knows only where objects
    usually are can be much better."""

    input_spec = InputSpec()

    def setup(self, stage: str) -> None:
        self.means: list[Tensor | None] | None = None

    def test_step(  # type: ignore[override]
        self, batch: AVBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> Localization:
        if self.means is None:
            self.means = [summed_truth(s, self.trainer) for s in self.evaluated_sets()]
        mean = self.means[dataloader_idx]
        if mean is None:
            raise ValueError(f"{batch.key[0]}, ...: a set without ground-truth maps has no mean map.")
        return mean_map(batch, mean.to(batch.device))

    validation_step = test_step  # type: ignore[assignment]
    predict_step = test_step  # type: ignore[assignment]
