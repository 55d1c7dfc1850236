"""How a tower of the embedded world is trained, scored and written, and the command that does it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avloc.weights import WORLD_ASSETS

__all__ = ["Recipe", "Tower", "run"]


@dataclass(frozen=True)
class Recipe:
    """How one tower is trained, and where it is written.

    Attributes:
        command: without its options; the file's metadata names it.
        steps, batch, lr: optimiser steps, samples of a batch, highest learning rate.
        pool: rendered scenes or sounds to draw from.
        seed: of everything.
        bf16: autocast.
        out: file to write.
    """

    command: str
    steps: int
    batch: int
    lr: float
    pool: int
    seed: int
    bf16: bool
    out: Path

    @property
    def told(self) -> str:
        """The command that a file's metadata names."""
        options = f"--steps {self.steps} --batch {self.batch} --lr {self.lr} --pool {self.pool}"
        return f"{self.command} {options}" + (" --bf16" if self.bf16 else "")

    def keep(self, model: Any, score: dict[str, float], **more: str) -> dict[str, float]:
        """Write the file with its command and score, and return that."""
        model.save_world(self.out, command=self.told, seed=str(self.seed), score=str(score), **more)
        return score

    def train(
        self,
        parameters: Sequence[nn.Parameter],
        losses: Callable[[], dict[str, Tensor]],
        report: Callable[[], dict[str, float]],
        report_every: int,
        undecayed: Sequence[nn.Parameter] = (),
    ) -> None:
        """AdamW with a one-cycle learning rate; ``losses()`` gives a dict of terms whose sum is minimised.

        ``undecayed`` are parameters beside the others that learn at half the rate, without weight decay.
        """
        groups: list[dict[str, Any]] = [{"params": list(parameters)}]
        rates = [self.lr]
        if undecayed:
            groups.append({"params": list(undecayed), "weight_decay": 0.0})
            rates.append(self.lr / 2)
        parameters = [*parameters, *undecayed]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, weight_decay=0.02, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=self.steps, pct_start=0.08)
        start = time.monotonic()
        for step in range(1, self.steps + 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                terms = losses()
            optimizer.zero_grad()
            sum(terms.values(), torch.zeros(())).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if step % 100 == 0:
                line = ", ".join(f"{k} {v.item():.3f}" for k, v in terms.items())
                print(f"{step}/{self.steps} {time.monotonic() - start:.0f} s: {line}", flush=True)
            if step % report_every == 0 or step == self.steps:
                print(f"step {step}: {report()}", flush=True)


class Tower(NamedTuple):
    """A tower to train: the function, and by default how many steps, rendered scenes or sounds, and samples of a batch;
    a batch must be a multiple of something."""

    pretrain: Callable[[Recipe], None]
    steps: int
    pool: int
    batch: int = 64
    multiple: int = 1
    why: str = ""


def run(module: str, doc: str | None, towers: Mapping[str, Tower]) -> None:
    """The command ``python -m MODULE TOWER``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tower", choices=tuple(towers))
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--pool", type=int, default=None, help="rendered scenes or sounds to draw from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast: faster on CPUs with AMX")
    parser.add_argument("--out", type=Path, default=None, help="file to write; the package's own by default")
    args = parser.parse_args()
    tower = towers[args.tower]
    steps, batch, pool = args.steps or tower.steps, args.batch or tower.batch, args.pool or tower.pool
    if batch % tower.multiple:
        raise SystemExit(f"{args.tower}: --batch {batch} is no multiple of {tower.multiple}, which {tower.why} need.")
    out = args.out or WORLD_ASSETS / f"{args.tower}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = f"python -m {module} {args.tower}"
    tower.pretrain(Recipe(command, steps, batch, args.lr, pool, args.seed, args.bf16, out))
