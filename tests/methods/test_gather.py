"""Negatives of all processes: two ranks with half a batch each must equal one with the whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from avloc.backbones.clipseg import normalise
from avloc.methods.acl.losses import Objective
from avloc.methods.acl.network import ACLNetwork
from avloc.methods.acl.phrases import PhraseEmbeddings, phrase_ids
from avloc.methods.losses import gather_rows
from avloc.methods.souple.network import Context, SOUPLENetwork
from tests.methods.tiny import tiny_batch, tiny_beats, tiny_clipseg
from tests.processes import together

KINDS = {
    "acl": (ACLNetwork, {}),
    "phrases": (ACLNetwork, {}),
    "own": (SOUPLENetwork, {"learnt": Context(conditioned="own")}),
    "asked": (SOUPLENetwork, {"learnt": Context(conditioned="asked")}),
}
NOISE = 4
PHRASES = ["photo", "", "image", "photo"]  # the two equal ones lie on different ranks


class Step(nn.Module):
    """One loss, so that DistributedDataParallel sees the whole step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        network, options = KINDS[kind]
        self.network = network(tiny_clipseg(), tiny_beats(), **options)
        self.lambda_c = 1.0 if kind == "phrases" else 0.0
        self.network.audio_proj.eval()  # no dropout: its draws differ between ranks

    def forward(self, rows: list[int], world: int) -> Tensor:
        batch = tiny_batch(NOISE).take(rows)
        generator = torch.Generator().manual_seed(2)
        noise = [torch.rand(NOISE, n, 32, 32, generator=generator)[rows] for n in (NOISE, 1)]
        image = normalise(batch.image)
        features = self.network.see(image)
        gathered = world > 1
        A = self.network.ask(features, self.network.hear(batch.audio), gathered)
        pairs = self.network.pairs(image, features, A, noise=(noise[0], noise[1]))
        if self.lambda_c:
            phrases = [PHRASES[r] for r in rows]
            pairs.C, pairs.phrase = PhraseEmbeddings(self.network.av_grounder)(phrases), phrase_ids(phrases)
        negatives: Any = "gathered" if gathered else "local"
        objective = Objective(p_plus=0.1, negatives=negatives, lambda_c=self.lambda_c, equal_phrases="left_out")
        return objective(pairs)["loss"]


def gradients(step: Step) -> dict[str, Tensor]:
    return {k: p.grad for k, p in step.named_parameters() if p.grad is not None}


def one_of_two(rank: int, kind: str, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    step = Step(kind)
    wrapped = nn.parallel.DistributedDataParallel(step)
    loss = wrapped([0, 1] if rank == 0 else [2, 3], 2)
    loss.backward()
    torch.save({"loss": loss.detach(), "grads": gradients(step)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "kind",
    [k if k == "acl" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS],  # each starts two processes
)
def test_two_ranks_equal_the_whole_batch(tmp_path: Path, kind: str) -> None:
    step = Step(kind)
    loss = step([0, 1, 2, 3], 1)
    loss.backward()
    together(one_of_two, (kind, str(tmp_path)))
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]
    for rank in ranks:
        torch.testing.assert_close(rank["loss"], loss.detach(), atol=1e-5, rtol=1e-5)
        assert rank["grads"].keys() == gradients(step).keys()
        for k, g in gradients(step).items():
            torch.testing.assert_close(rank["grads"][k], g, atol=1e-5, rtol=1e-3, msg=k)


def test_without_processes_nothing_is_gathered() -> None:
    x = torch.ones(2, 3)
    assert gather_rows(x) is x
