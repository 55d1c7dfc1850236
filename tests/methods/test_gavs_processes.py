"""GAVS on two processes: its mask loss is one over all frames, its alignment stays within each process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from avloc.methods.gavs import GAVS
from avloc.methods.gavs.losses import Objective
from avloc.types import AVBatch
from tests.methods.tiny import avs_clip, avs_set, tiny_sam_files
from tests.processes import together

CONFIG = Path(__file__).resolve().parents[2] / "experiments" / "gavs.yaml"


def batch() -> AVBatch:
    """Two frames of two videos; in each half, one of either."""
    g = torch.Generator().manual_seed(3)
    image = torch.randint(256, (4, 3, 64, 64), generator=g).to(torch.uint8)
    truth = (torch.rand(4, 1, 40, 40, generator=g) > 0.8).float()
    truth[2] = 0  # a silent frame
    sound = 0.3 * torch.randn(4, 16000, generator=g)
    keys = [f"k{i}" for i in range(4)]
    return AVBatch(keys, image, sound, torch.full((4,), -1), truth, video=["a", "b", "a", "b"])


class Step(nn.Module):
    """One loss, so that DistributedDataParallel sees the whole step."""

    def __init__(self, files: dict[str, str], weight: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        objective = Objective("dice_loss", lambda_align=weight, margin=3.0)  # beyond any difference of cosines
        self.method = GAVS(**files, tune_v=2, objective=objective).train()  # type: ignore[arg-type]

    def forward(self, rows: list[int]) -> Tensor:
        return self.method.training_losses(batch().take(rows))["loss"]


def gradients(step: Step) -> dict[str, Tensor]:
    return {k: p.grad.clone() for k, p in step.named_parameters() if p.grad is not None}


def gradient_of(step: Step, rows: list[int]) -> dict[str, Tensor]:
    step.zero_grad()
    step(rows).backward()
    return gradients(step)


def one_of_two(rank: int, files: dict[str, str], weight: float, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    step = Step(files, weight)
    wrapped = nn.parallel.DistributedDataParallel(step)
    wrapped([0, 1] if rank == 0 else [2, 3]).backward()
    torch.save(gradients(step), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_gradients_of_two_ranks(tmp_path: Path, weight: float) -> None:
    """Masks: those of the whole batch. Alignment: the mean of the halves', each against its own sounds alone."""
    files = tiny_sam_files(tmp_path)
    step = Step(files, weight)
    whole, halves = gradient_of(step, [0, 1, 2, 3]), [gradient_of(step, rows) for rows in ([0, 1], [2, 3])]
    together(one_of_two, (files, weight, str(tmp_path)))
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]
    mean = {k: (halves[0][k] + halves[1][k]) / 2 for k in whole}
    for rank in ranks:
        assert rank.keys() == whole.keys()
        assert difference(rank, mean) < 1e-4
        assert (difference(rank, whole) < 1e-4) == (not weight)


def difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest relative error of a tensor: the gradients of different tensors differ by orders of magnitude."""
    return max(((found[k] - g).norm() / g.norm()).item() for k, g in wanted.items())


def experiment(command: str, files: dict[str, str], root: Path, processes: int, *more: str) -> dict[str, Any]:
    """Run ``experiments/gavs.yaml`` at tiny size in processes of its own; the results of its test sets."""
    out = root / f"{command}{processes}"
    args = [sys.executable, "-m", "avloc.cli", command, "-c", str(CONFIG), f"--data.root={root}", *more]
    args += [f"--model.init_args.{k}={v}" for k, v in (files | {"tune_v": "2"}).items()]
    args += ["--data.batch_size=4", "--data.eval_batch_size=2", "--data.num_workers=0", "--data.truth_size=56"]
    args += ["--trainer.accelerator=cpu", f"--trainer.devices={processes}", "--trainer.precision=32-true"]
    args += ["--trainer.max_epochs=1", f"--trainer.default_root_dir={out}", "--trainer.enable_progress_bar=false"]
    if processes > 1:
        args += ["--trainer.strategy=ddp"]
    done = subprocess.run(args, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = out.rglob("results.json")
    return json.loads(found.read_text())


@pytest.mark.slow
def test_two_processes_train_and_test_as_one_scores(tmp_path: Path) -> None:
    """Seven videos in shards of 3, 3 and 1, an odd number of test frames: no rank waits, no frame counts twice."""
    files = tiny_sam_files(tmp_path)
    avs_set(tmp_path, "avss_v1m", "train", [avs_clip(i) for i in range(7)])
    for split in ("val", "test"):
        avs_set(tmp_path, "avss_v1m", split, [avs_clip(i, empty=i == 21) for i in range(20, 23)])
    two = experiment("fit", files, tmp_path, 2, "--test_after_fit=true")
    (best,) = (tmp_path / "fit2").rglob("best.ckpt")
    assert torch.load(best, weights_only=True)["global_step"] == 35 // 4
    one = experiment("test", files, tmp_path, 1, f"--ckpt_path={best}")
    scores = [r["sets"]["avss_v1m"]["rows"] for r in (one, two)]
    assert one["sets"]["avss_v1m"]["samples"] == 15
    assert scores[0].keys() == scores[1].keys()
    for protocol, numbers in scores[0]["model"].items():
        for name, number in numbers.items():
            assert scores[1]["model"][protocol][name] == pytest.approx(number, abs=1e-6), f"{protocol}/{name}"
