"""Losses and distributed pieces that several methods share. Torch only."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gather_rows", "rank_and_world", "symmetric_infonce"]


def symmetric_infonce(logits: Tensor) -> Tensor:
    """Half the sum of the two cross-entropies with the diagonal as target.

    Args:
        logits: float ``[B, B]``, similarities divided by the temperature.

    Returns:
        scalar; zero for B = 1.
    """
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _GatherRows(torch.autograd.Function):
    """All ranks' rows; backward sums over ranks what each of them derived for this rank's rows.

    torch's own, ``torch.distributed.nn.functional.all_gather``, is deprecated since 2.15 for a private module.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]


def gather_rows(x: Tensor) -> Tensor:
    """Concatenate ``x`` ``[B, ...]`` over ranks with gradient; every rank must hold the same B.

    When every rank then computes the same loss, DDP's averaging of the parameters' gradients gives exactly
    the gradient of that loss: the sum over ranks in backward makes up for the mean.
    """
    return _GatherRows.apply(x) if rank_and_world()[1] > 1 else x
