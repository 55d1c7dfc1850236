"""The probe of gradients: what it calls equal is equal, and it sees what differs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from avloc.bench.gradients import cosine, gradients, measure_gradients, without_dropout
from avloc.methods.acl import ACL
from avloc.methods.acl.losses import Objective
from tests.methods.tiny import SIDE, tiny_batch, tiny_files


@pytest.fixture
def model(tmp_path: Path) -> ACL:
    return without_dropout(ACL(**tiny_files(tmp_path), objective=Objective(), masker=(1.0, 0.0)).train())


def test_terms_of_the_probe_add_up_to_the_step_s_own_gradient(model: ACL) -> None:
    batch = tiny_batch(4)
    torch.manual_seed(3)
    terms = gradients(model, batch)
    torch.manual_seed(3)
    model.training_losses(batch)["loss"].backward()
    own = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.trainable()])
    torch.testing.assert_close(sum(terms.values()), own.double(), rtol=1e-4, atol=1e-6)


def test_float32_meets_double_precision_and_bf16_is_told_from_it(model: ACL) -> None:
    batch = tiny_batch(4)
    side = SIDE  # of the areas' maps; the tiny decoder answers at the picture's size or a part of it
    with torch.no_grad():
        features = model.network.see(torch.zeros(1, 3, SIDE, SIDE))
        side = model.network.mask_logits(features.reduced, torch.zeros(1, 1, 64)).shape[-1]
    noise = (torch.rand(4, 4, side, side), torch.rand(4, 1, SIDE, SIDE))
    exact = gradients(copy.deepcopy(model).double(), batch, noise, torch.float64)
    single = gradients(model, batch, noise)
    half = gradients(model, batch, noise, torch.bfloat16)
    for name, g in exact.items():
        assert cosine(g, single[name]) > 0.999, name
        assert cosine(g, half[name]) < cosine(g, single[name]), name


@pytest.mark.slow
def test_float32_gradients_of_the_world_s_first_batches_can_be_trusted(tmp_path: Path) -> None:
    found = measure_gradients("acl", batches=2, root=tmp_path)
    for term in ("acl_i", "acl_f", "area_reg"):
        assert found[f"{term} cosine of float32, lowest"] > 0.99
        assert found[f"{term} cosine of bf16, lowest"] < found[f"{term} cosine of float32, lowest"]
    assert found["acl_f norm, largest"] >= found["acl_f norm, median"] > 0
