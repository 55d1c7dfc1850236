"""What is asked to end ends with all that belongs to it, and nothing outlives what it works for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from lightning.fabric.plugins.environments import SLURMEnvironment

from avloc.experiment.signals import SIGNALS, Preemption
from avloc.processes import TERMINATED
from avloc.world import write_world
from tests.experiment.test_checkpoints import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")


def children(process: int) -> list[int]:
    """All processes below one."""
    try:
        lists = [p.read_text() for p in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:
        return []
    own = [int(number) for text in lists for number in text.split()]
    return own + [below for child in own for below in children(child)]


def runs(process: int) -> bool:
    """Whether it does, and is not only unburied."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, true: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.1)
    return true()


def started(script: str, folder: Path, **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen([sys.executable, "-c", script], stdout=-1, text=True, cwd=folder, env=environment)


LOADS = """
import time
from avloc.data.stream import loader_options
from torch.utils.data import DataLoader

if __name__ == "__main__":
    items = iter(DataLoader(range(10**6), persistent_workers=True, **loader_options(2)))
    next(items)
    print("up", flush=True)
    time.sleep(600)
"""
CONVERTS = """
import time
from data_prep.pool import Pool

if __name__ == "__main__":
    pool = Pool(2)
    tasks = [pool.executor.submit(abs, -1) for _ in range(8)]
    assert [task.result() for task in tasks] == [1] * 8
    print("up", flush=True)
    time.sleep(600)
"""
FOLLOWS = "from avloc.processes import end_with_my_parent; end_with_my_parent(); import time; time.sleep(600)"
TRAINS = f"""
import sys, threading, time
from avloc import processes
from avloc.experiment.command import run_to_its_end

threading.Timer(2, print, ["up"], dict(flush=True)).start()
run_to_its_end([sys.executable, "-c", {FOLLOWS!r}])
"""


@pytest.mark.parametrize(("script", "count"), [(LOADS, 3), (CONVERTS, 2), (TRAINS, 1)])
def test_a_killed_parent_leaves_no_orphan(tmp_path: Path, script: str, count: int) -> None:
    """A loader's workers with their fork server, a converter's, and the program of `avloc train`."""
    (tmp_path / "main.py").write_text(script)
    parent = started("import runpy; runpy.run_path('main.py', run_name='__main__')", tmp_path)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    below = children(parent.pid)
    assert len(below) >= count
    parent.kill()
    parent.wait()
    left = within(20, lambda: not any(runs(child) for child in below))
    for child in below:
        if runs(child):
            os.kill(child, signal.SIGKILL)
    assert left, below


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for split, scenes in (("single", 12), ("val", 6)):
        write_world(tmp_path / "data" / "world", split, scenes=scenes)
    (tmp_path / "fading.yaml").write_text(yaml.safe_dump(SETTINGS))
    return tmp_path


def fit(folder: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    words = ["fit", "-c", "fading.yaml", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=99"]
    command = [sys.executable, "-m", "avloc.cli", *words, *more]
    words.append("--data.eval_batch_size=2")  # three batches: the processes have different numbers of them
    quiet = {"WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FADING_TAKES": "0.3"}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **quiet, **environment}, text=True
        )


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_digits(here: Path) -> None:
    """A model whose maps depend on what else is in the batch, as any network's last digits do."""
    found = []
    for world in (1, 2):
        words = ["test", "-c", "fading.yaml", f"--trainer.devices={world}", f"--experiment=on{world}"]
        command = [sys.executable, "-m", "avloc.cli", *words, "--data.eval_batch_size=2"]
        more = {"FADING_MIXES": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=here, env=os.environ | more, check=True, capture_output=True)
        run = here / "runs" / f"on{world}" / "version_0"
        results = json.loads((run / "results.json").read_text())
        found.append((results["sets"], pd.read_parquet(run / "per_sample.parquet")))
    for results, rows in found[1:]:
        assert results == found[0][0]
        pd.testing.assert_frame_equal(rows, found[0][1], check_exact=True)


@pytest.mark.parametrize(("requeues", "own"), [(True, [signal.SIGTERM]), (False, [signal.SIGTERM, signal.SIGUSR1])])
def test_slurms_signal_stays_with_who_requeues(monkeypatch: pytest.MonkeyPatch, requeues: bool, own: list[int]) -> None:
    """A simulated job: SIGUSR1 comes before its time is over."""
    for name, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "JOB_ID": "7", "JOB_NAME": "x"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    preemption = Preemption()
    environment = SLURMEnvironment(auto_requeue=requeues)
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(cluster_environment=environment),
        world_size=1,
        global_rank=0,
        state=SimpleNamespace(fn="fit"),
        _signal_connector=SimpleNamespace(received_sigterm=False),
    )
    try:
        preemption.setup(trainer, None, "fit")  # type: ignore[arg-type]
        assert [n for n in SIGNALS if signal.getsignal(n) == preemption.ask] == own
        os.kill(os.getpid(), own[-1])
        assert within(5, lambda: trainer._signal_connector.received_sigterm)
        assert preemption.exit_code == TERMINATED == 143
    finally:
        preemption.close()
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def rank(process: int, number: int) -> bool:
    try:
        return f"LOCAL_RANK={number}".encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_one_rank_that_is_asked_ends_all(here: Path, asked: int) -> None:
    run = here / "runs" / "fading" / "version_0"
    state = run / "checkpoints" / "resume.ckpt"
    parent = fit(here, "--data.num_workers=1")
    try:
        assert within(300, state.is_file), (here / "log.txt").read_text()
        below = children(parent.pid)
        process = parent.pid if asked == 0 else next(child for child in below if rank(child, 1))
        os.kill(process, signal.SIGTERM)
        assert parent.wait(90) == 143
        assert within(20, lambda: not any(runs(child) for child in below))
    finally:
        parent.kill()
    log = (here / "log.txt").read_text()
    assert f"rank {asked} of 2 (process {process}) was asked to end by SIGTERM" in log
    assert f"for rank {asked} was asked to" in log
    steps = torch.load(state, weights_only=True)["global_step"]
    more = fit(here, "--data.num_workers=1", f"--trainer.max_steps={steps + 2}", "--ckpt_path", str(state))
    assert more.wait(300) == 0, (here / "log.txt").read_text()
    assert torch.load(state, weights_only=True)["global_step"] == steps + 2


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_leaves_no_orphan(here: Path, killed: int) -> None:
    state = here / "runs" / "fading" / "version_0" / "checkpoints" / "resume.ckpt"
    parent = fit(here, "--data.num_workers=1", AVLOC_GRACE="10")
    try:
        assert within(300, state.is_file), (here / "log.txt").read_text()
        below = children(parent.pid)
        assert len(below) >= 5  # the other rank, fork servers, workers
        os.kill(parent.pid if killed == 0 else next(child for child in below if rank(child, 1)), signal.SIGKILL)
        assert parent.wait(90) != 0
        assert within(40, lambda: not any(runs(child) for child in below))
        torch.load(state, weights_only=True)
    finally:
        for process in (parent.pid, *below):
            if runs(process):
                os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_what_does_not_end_is_ended(here: Path) -> None:
    """A step that hangs, as for a dead disk."""
    state = here / "runs" / "fading" / "version_0" / "checkpoints" / "resume.ckpt"
    parent = fit(here, "--trainer.devices=1", "--trainer.strategy=auto", FADING_HANGS_AT="4", AVLOC_GRACE="3")
    try:
        assert within(300, state.is_file), (here / "log.txt").read_text()
        time.sleep(3)
        parent.terminate()
        assert parent.wait(30) == 143
    finally:
        parent.kill()
    assert "the run (process" in (log := (here / "log.txt").read_text())
    assert "has not ended 3 s after it was asked" in log
    torch.load(state, weights_only=True)
