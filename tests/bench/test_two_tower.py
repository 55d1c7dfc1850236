"""The two-tower bench counts what it says it counts, and its plain formulation is the objective."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import get_args

import pytest
import torch

from avloc.bench import two_tower as bench
from avloc.bench.step import count_flops
from avloc.cli import main

MEMBERS = get_args(bench.Member)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("batch_size", [2, 6])
def test_a_step_costs_what_cannot_be_avoided(member: bench.Member, batch_size: int) -> None:
    model = bench.build_two_tower(member, False).train()
    batch = bench.sounds_and_pictures(model, batch_size)
    whole = count_flops(lambda: model.training_losses(batch)["loss"].backward())
    least = count_flops(lambda: bench.unavoidable_two_tower(model, batch))
    assert 0.99 <= whole / least <= 1.05


@pytest.mark.parametrize("member", MEMBERS)
def test_the_plain_formulation_is_the_objective(member: bench.Member) -> None:
    """Written twice, once as the papers and once as the suite does: equal losses, gradients and momentum copies."""
    torch.manual_seed(0)
    ours = bench.build_two_tower(member, False, dropout=0.0, channels_last=False).train()
    batch = bench.sounds_and_pictures(ours, 4)
    if ours.network.momentum is not None:  # or both copies would equal what they follow
        for p in ours.network.momentum.parameters():
            p.add_(0.01 * torch.randn_like(p))
    plain = deepcopy(ours)
    losses = ours.training_losses(batch)["loss"], bench.plain_loss(plain, batch)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    for (name, p), (_, q) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        if "proj" in name:
            torch.testing.assert_close(p, q)
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=2e-2, atol=2e-4)


def test_flops_of_a_step_by_hand() -> None:
    """Of the unavoidable: both towers thrice (forward, to inputs, to weights) less the stems' inputs, and similarities
    of B x B pairs at 8 x 8 places forward and to both features."""
    model = bench.build_two_tower("ezvsl", False).train()
    B = 3
    batch = bench.sounds_and_pictures(model, B)
    image, heard = model.look(batch), model.listen(batch)
    net = model.network
    stem_of = {"imgnet": image, "audnet": heard}

    def towers() -> None:
        net(image, heard)

    def stems() -> None:
        for name, x in stem_of.items():
            net.get_submodule(f"{name}.conv1")(x)

    with torch.no_grad():
        forward, first = count_flops(towers), count_flops(stems)
    similarities = 3 * 2 * B * B * 64 * 64
    wanted = 3 * forward - first + similarities
    assert count_flops(lambda: bench.unavoidable_two_tower(model, batch)) == pytest.approx(wanted, rel=1e-3)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "step", "--method", "slavc", "--batch-size", "3", "--steps", "1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["method"], result["batch_size"], result["size"]) == ("slavc", 3, "world")
    assert result["plain_ratio"] == pytest.approx(result["plain_s"] / result["step_s"])
    assert result["flops_ratio"] <= 1.05
