"""What `avloc bench step --method denseav` counts."""

from __future__ import annotations

import torch

from avloc.bench.denseav import build_denseav, unavoidable_denseav
from avloc.bench.step import count_flops
from avloc.bench.two_tower import sounds_and_pictures


def test_a_step_computes_little_beside_what_it_cannot_do_without() -> None:
    torch.manual_seed(0)
    model = build_denseav(False).train()
    batch = sounds_and_pictures(model, 4)
    least = count_flops(lambda: unavoidable_denseav(model, batch))
    assert count_flops(lambda: model.training_losses(batch)["loss"].backward()) < 1.05 * least


def test_all_pairs_are_counted() -> None:
    """B x B inner products of C channels for h w places and T steps, forward and twice backward, by hand."""
    model = build_denseav(False).train()
    found = [count_flops(lambda b=b: unavoidable_denseav(model, sounds_and_pictures(model, b))) for b in (2, 4)]
    cells = 64 * 11 * 48  # 8 x 8 places; 99 steps by three, twice
    assert found[1] - 2 * found[0] == 3 * 2 * cells * (4 * 4 - 2 * 2 * 2)
