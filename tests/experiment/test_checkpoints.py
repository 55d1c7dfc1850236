from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from avloc.cli import main
from avloc.errors import UsageError
from avloc.experiment.checkpoints import AtomicCheckpoints, BestModel, OwnFolder, alone, newest_readable, own_folder
from avloc.experiment.command import differences, newest_state, run_to_its_end, state_of
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
    torch.save({"avloc": {}, "optimizer_states": [{}]}, good)
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


def run_of(runs: Path, number: int, **about: Any) -> Path:
    """A run that left a state and its best model; each later one is newer."""
    run = runs / f"version_{number}"
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(about))
    for k, name in enumerate(("best.ckpt", "resume.ckpt")):
        torch.save({"avloc": {}, "optimizer_states": [{}], "w": torch.ones(9)}, run / "checkpoints" / name)
        os.utime(run / "checkpoints" / name, (1e9 + 10 * number + k,) * 2)
    os.utime(run / "run.json", (1e9 + 10 * number,) * 2)
    return run


def spoil(path: Path, how: str) -> None:
    """The file as a fault left it, of the same age."""
    age, content = path.stat().st_mtime, bytearray(path.read_bytes())
    place = content.index(torch.ones(9).numpy().tobytes())
    content[place] ^= 1
    path.write_bytes({"torn": content[: place + 8], "empty": b"", "one bit": content, "foreign": b"<html>"}[how])
    os.utime(path, (age, age))


@pytest.mark.parametrize("how", ["torn", "empty", "one bit", "foreign"])
def test_the_newest_run_goes_on_from_what_can_be_read_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    old, new = run_of(tmp_path, 0), run_of(tmp_path, 1)
    assert newest_state(tmp_path) == new / "checkpoints" / "resume.ckpt"
    spoil(new / "checkpoints" / "resume.ckpt", how)
    capsys.readouterr()
    assert newest_state(tmp_path) == new / "checkpoints" / "best.ckpt"
    assert f"skipped: {new / 'checkpoints' / 'resume.ckpt'} cannot be read as a checkpoint" in capsys.readouterr().out
    torch.save({"avloc": {}}, new / "checkpoints" / "best.ckpt")
    assert newest_state(tmp_path) == old / "checkpoints" / "resume.ckpt"
    assert "best.ckpt holds no state of the optimiser" in capsys.readouterr().out
    for name in ("best.ckpt", "resume.ckpt"):
        spoil(old / "checkpoints" / name, how)
    with pytest.raises(UsageError, match="no checkpoint can be read"):
        newest_state(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
def test_a_damaged_run_json_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    good, bad = run_of(tmp_path, 0, seed=3), run_of(tmp_path, 1, seed=3)
    (bad / "run.json").write_text(content, errors="surrogateescape")
    assert state_of(tmp_path, 3, []) == good / "checkpoints" / "resume.ckpt"
    assert f"skipped: {bad / 'run.json'} is damaged" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_runs_with_other_options_are_not_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "-c", "fading.yaml", "--seed_everything=3", "--trainer.max_epochs=1"]
    main([*words, "--test_after_fit=true"])
    runs, again = here / "runs" / "fading", [*words, "--data.num_workers=1", "--panels.count=2"]
    assert state_of(runs, 3, again) == runs / "version_0" / "results.json"
    assert state_of(runs, 4, again) is None
    capsys.readouterr()
    assert state_of(runs, 3, [*again, "--model.good_steps=5", "--data.batch_size=6"]) is None
    told = capsys.readouterr().out
    assert (
        f"seed 3 of fading: {runs / 'version_0'} is not counted, it was made with data.batch_size 4, and not 6" in told
    )
    assert "model.init_args.good_steps 3, and not 5" in told
    longer = [*words[:-1], "--trainer.max_epochs=2"]
    assert state_of(runs, 3, longer) is None
    (runs / "version_0" / "results.json").unlink()  # one that was interrupted goes on for as long as is wished
    assert state_of(runs, 3, longer) == runs / "version_0" / "checkpoints" / "resume.ckpt"


def test_which_settings_matter() -> None:
    was = {"data": {"batch_size": 4, "root": "a"}, "trainer": {"devices": 1, "max_epochs": 3, "precision": 32}}
    now = {"data": {"batch_size": 4, "root": "b"}, "trainer": {"devices": 2, "max_epochs": 4, "precision": 16}}
    assert differences(was, was) == ""
    assert differences(was, now) == "trainer.max_epochs 3, and not 4; trainer.precision 32, and not 16"
    assert differences(was, now, whole=False) == "trainer.precision 32, and not 16"
    assert differences({"model": {}}, {"model": {"a": {"b": 1}}}).endswith("model.a.b None, and not 1")


def test_runs_that_start_together_have_a_folder_each(tmp_path: Path) -> None:
    (tmp_path / "mine" / "version_4").mkdir(parents=True)
    together = threading.Barrier(8)

    def start(_: int) -> Any:
        log = OwnFolder(tmp_path, "mine")
        together.wait()
        return log.version

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(start, range(8))) == list(range(5, 13))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be made.*default_root_dir"):
        assert OwnFolder(tmp_path / "file", "mine").version


def test_a_folder_is_written_by_one_process(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from avloc.experiment.checkpoints import alone\n"
    script += f"with alone(Path({str(tmp_path)!r})):\n print('in', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    with pytest.raises(UsageError, match="is being written by another process"), alone(tmp_path):
        pass
    other.kill()
    other.wait()
    with alone(tmp_path):  # however it ended
        pass


PRECIOUS = ("results.json", "run.json", "config.yaml", "val_results.json", "per_sample.parquet", "metrics.csv")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "how", ["fast_dev_run=true", "logger=false", "enable_checkpointing=false", "barebones=true", "logger=WandbLogger"]
)
def test_nothing_is_written_into_the_working_folder(here: Path, how: str) -> None:
    for name in PRECIOUS:
        (here / name).write_text("precious")
    (here / "panels").mkdir()
    before = {p.name for p in here.iterdir()}
    main(["fit", "-c", "fading", "--trainer.max_epochs=1", f"--trainer.{how}", "--test_after_fit=true"])
    main(["test", "-c", "fading", f"--trainer.{how}"])
    assert {p.name for p in here.iterdir()} == before | {"runs"}
    assert all((here / name).read_text() == "precious" for name in PRECIOUS)
    assert not any((here / "panels").iterdir())
    made = sorted(p.name for p in (here / "runs" / "fading").iterdir())
    assert made == (["fast_dev_run"] if "fast_dev" in how else ["version_0", "version_1"])
    for run in made:
        assert scores(here / "runs" / "fading" / run)["world:val"]["counted"]["model"] == (4 if "fast" in how else 6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ["fit", "test", "validate", "predict"])
@pytest.mark.parametrize("what", ["torn", "empty", "foreign", "absent", "a folder", "another program's"])
def test_whatever_reads_a_bad_checkpoint_says_so(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, what: str
) -> None:
    path = here / "bad.ckpt"
    if what == "a folder":
        path.mkdir()
    elif what == "another program's":
        torch.save({"state_dict": {}}, path)
    elif what != "absent":
        run_of(here / "some", 0)
        spoil(here / "some" / "version_0" / "checkpoints" / "best.ckpt", what)
        (here / "some" / "version_0" / "checkpoints" / "best.ckpt").rename(path)
    with pytest.raises(SystemExit) as e:
        main([command, "-c", "fading", "--trainer.max_epochs=1", "--ckpt_path", "bad.ckpt"])
    assert e.value.code == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"avloc {command}: ")
    assert any(
        part in told for part in ("bad.ckpt cannot be read", "no checkpoint bad.ckpt", "bad.ckpt was not written")
    )
