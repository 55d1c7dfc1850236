from __future__ import annotations

import csv
import errno
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from avloc.cli import main
from avloc.experiment.checkpoints import AtomicCheckpoints, BestModel, OwnFolder, newest_readable, own_folder
from avloc.experiment.command import run_to_its_end
from avloc.methods.base import CheckpointError
from avloc.world import write_world

SETTINGS: dict[str, Any] = {
    "model": {"class_path": "tests.experiment.fading.Fading"},
    "data": {
        "train": "world:single",
        "val": ["world:val"],
        "test": ["world:val"],
        "batch_size": 4,
        "eval_batch_size": 4,
        "num_workers": 0,
    },
    "trainer": {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    },
    "panels": {"count": 0, "singles": 0},
    "checkpoint": {"monitor": "val/world:val/mean_ciou", "mode": "max"},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for split, scenes in (("single", 12), ("val", 6)):
        write_world(tmp_path / "data" / "world", split, scenes=scenes)
    (tmp_path / "fading.yaml").write_text(yaml.safe_dump(SETTINGS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


def rows(run: Path) -> list[dict[str, str]]:
    """What was logged, without times and without the columns that a row leaves empty."""
    with (run / "metrics.csv").open(newline="") as f:
        lines = [{k: v for k, v in row.items() if v and not k.startswith("time/")} for row in csv.DictReader(f)]
    return [line for line in lines if line.keys() - {"step", "epoch", "lr"}]


def scores(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())["sets"]


@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_run_equals_one_that_was_not(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first epoch's model is the best. A run that goes on twice still tests it."""
    main(["fit", "-c", "fading", "--experiment=unbroken", "--trainer.max_epochs=3", "--test_after_fit=true"])
    unbroken = here / "runs" / "unbroken" / "version_0"
    best = torch.load(unbroken / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 0
    for epochs in (1, 2, 3):
        state = here / "runs" / "broken" / "version_0" / "checkpoints" / "resume.ckpt"
        more = ["--ckpt_path", str(state)] if epochs > 1 else []
        more += ["--test_after_fit=true"] if epochs == 3 else []
        main(["fit", "-c", "fading", "--experiment=broken", f"--trainer.max_epochs={epochs}", *more])
    assert [p.name for p in (here / "runs" / "broken").iterdir()] == ["version_0"]
    broken = state.parents[1]
    again = torch.load(broken / "checkpoints" / "best.ckpt", weights_only=True)
    assert again["epoch"] == 0
    assert torch.equal(again["state_dict"]["w"], best["state_dict"]["w"])
    assert scores(broken) == scores(unbroken)
    assert rows(broken) == rows(unbroken)


@pytest.mark.filterwarnings("ignore")
def test_what_was_logged_after_the_checkpoint_is_logged_again_once(here: Path) -> None:
    main(["fit", "-c", "fading", "--experiment=whole", "--trainer.max_epochs=2"])
    main(["fit", "-c", "fading", "--experiment=killed", "--trainer.max_epochs=2", "--resume.every_n_epochs=99"])
    run = here / "runs" / "killed" / "version_0"
    main(["fit", "-c", "fading", "--experiment=one", "--trainer.max_epochs=1"])
    state = here / "runs" / "one" / "version_0" / "checkpoints" / "resume.ckpt"
    state.rename(run / "checkpoints" / "resume.ckpt")  # as if the kill had come before the second epoch's
    main(
        [
            "fit",
            "-c",
            "fading",
            "--experiment=killed",
            "--trainer.max_epochs=2",
            "--ckpt_path",
            str(run / "checkpoints" / "resume.ckpt"),
        ]
    )
    assert rows(run) == rows(here / "runs" / "whole" / "version_0")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("step", "kept"), [(4, 5), (5, 3)])
def test_a_run_that_is_asked_to_end_goes_on_as_if_it_had_not(
    here: Path, monkeypatch: pytest.MonkeyPatch, step: int, kept: int
) -> None:
    """In the middle of an epoch of three steps, and in its last step, whose validation is cut off."""
    main(["fit", "-c", "fading", "--experiment=whole", "--trainer.max_epochs=3"])
    monkeypatch.setenv("FADING_ENDS_AT", str(step))
    asked = ["fit", "-c", "fading", "--experiment=asked", "--trainer.max_epochs=3", "--test_after_fit=true"]
    with pytest.raises(SystemExit) as e:
        main(asked)
    assert e.value.code == 143
    run, whole = here / "runs" / "asked" / "version_0", here / "runs" / "whole" / "version_0"
    assert not (run / "results.json").exists()
    state = torch.load(run / "checkpoints" / "resume.ckpt", weights_only=True)
    assert state["global_step"] == kept
    monkeypatch.delenv("FADING_ENDS_AT")
    main([*asked[:-1], "--ckpt_path", str(run / "checkpoints" / "resume.ckpt")])
    assert rows(run) == rows(whole)
    ends = [torch.load(r / "checkpoints" / "resume.ckpt", weights_only=True) for r in (run, whole)]
    assert torch.equal(ends[0]["state_dict"]["w"], ends[1]["state_dict"]["w"])


CHILD = (
    "import signal, sys, time; signal.signal(15, lambda *_: sys.exit({code})); print('up', flush=True); time.sleep(60)"
)


@pytest.mark.parametrize(("code", "told"), [(5, 5), (0, 143)])
def test_what_ends_a_command_ends_its_child(tmp_path: Path, code: int, told: int) -> None:
    """The child is asked and waited for; a child that was stopped is never a success."""
    script = "import sys; from avloc.experiment.command import run_to_its_end; "
    script += f"sys.exit(run_to_its_end([sys.executable, '-c', {CHILD.format(code=code)!r}]))"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == told


def test_a_killed_child_is_told_as_shells_tell_it() -> None:
    assert run_to_its_end([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"<html>"])
def test_a_torn_checkpoint_is_a_sentence(here: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "torn.ckpt").write_bytes(content)
    with pytest.raises(SystemExit) as e:
        main(["fit", "-c", "fading", "--trainer.max_epochs=1", "--ckpt_path", "torn.ckpt"])
    assert e.value.code == 1
    told = capsys.readouterr().err
    assert "avloc fit: torn.ckpt cannot be read as a checkpoint" in told
    assert "weights_only" not in told
    with pytest.raises(SystemExit):
        main(["fit", "-c", "fading", "--trainer.max_epochs=1", "--ckpt_path", "absent.ckpt"])
    assert "There is no checkpoint absent.ckpt" in capsys.readouterr().err


def test_the_newest_that_can_be_read_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, torn = tmp_path / "good.ckpt", tmp_path / "torn.ckpt"
    torch.save({"avloc": {}}, good)
    torn.write_bytes(good.read_bytes()[:-100])
    assert newest_readable([good, torn]) == good
    assert f"skipped: {torn} cannot be read" in capsys.readouterr().out
    assert newest_readable([torn]) is None


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, writer = tmp_path / "run" / "best.ckpt", AtomicCheckpoints()
    writer.save_checkpoint({"a": torch.ones(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))  # nothing goes through it

    def full(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"best\.ckpt could not be written \(.*No space left.*untouched"):
        writer.save_checkpoint({"a": torch.zeros(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert [p.name for p in path.parent.iterdir()] == ["best.ckpt"]


def test_whose_checkpoint_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inside = Path("runs/mine/version_12/checkpoints/resume.ckpt")
    assert own_folder(inside, Path("runs"), "mine") == 12
    assert own_folder(inside.absolute(), Path("runs"), "mine") == 12
    assert own_folder(inside, Path("runs"), "other") is None
    assert own_folder(inside, Path("elsewhere"), "mine") is None
    assert own_folder(Path("runs/mine/version_12/best.ckpt"), Path("runs"), "mine") is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("there", [True, False])
def test_the_best_score_moves_with_the_runs_folder(tmp_path: Path, there: bool) -> None:
    old = BestModel(dirpath=tmp_path / "old", monitor="score", mode="max", filename="best")
    path = str(tmp_path / "old" / "best.ckpt")
    old.best_model_path = old.kth_best_model_path = path
    old.best_model_score, old.best_k_models = torch.tensor(0.7), {path: torch.tensor(0.7)}
    assert old.state_key.startswith("ModelCheckpoint{")  # that of runs before this class
    new = BestModel(dirpath=tmp_path / "new", monitor="score", mode="max", filename="best")
    (tmp_path / "new").mkdir()
    if there:
        (tmp_path / "new" / "best.ckpt").touch()
    new.load_state_dict(old.state_dict())
    assert new.best_model_score == (torch.tensor(0.7) if there else None)
    assert new.best_model_path == (str(tmp_path / "new" / "best.ckpt") if there else "")
    assert list(new.best_k_models) == ([str(tmp_path / "new" / "best.ckpt")] if there else [])


def test_a_log_survives_a_kill_while_it_is_taken_over(tmp_path: Path) -> None:
    """What Lightning's writer has deleted lies beside it until it is back."""
    run = tmp_path / "mine" / "version_3"
    run.mkdir(parents=True)
    (run / "metrics.csv.kept").write_text("a,step\n1.0,0\n2.0,1\n9.0,7\n")  # the kill came behind the deletion
    log = OwnFolder(tmp_path, "mine", 3, rows=2, step=2)
    log.log_metrics({"a": 3.0, "b": 4.0}, step=2)
    log.save()
    with (run / "metrics.csv").open(newline="") as f:
        assert list(csv.DictReader(f)) == [
            {"a": "1.0", "b": "", "step": "0"},
            {"a": "2.0", "b": "", "step": "1"},
            {"a": "3.0", "b": "4.0", "step": "2"},
        ]
    assert [p.name for p in run.iterdir()] == ["metrics.csv"]
