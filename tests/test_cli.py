"""The command line: found from any folder, strict about every key, and clear about what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from avloc.cli import COMMANDS, main
from avloc.errors import UsageError
from avloc.experiment.command import KEYS
from avloc.experiment.table import chosen
from avloc.names import find_config

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a failing command tells its user."""
    with pytest.raises(SystemExit) as e:
        main(args)
    assert e.value.code in (1, 2)
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    told = capsys.readouterr().out
    for command in (*(function.__name__ for function in COMMANDS), "bench"):
        assert re.search(rf"\n\W*{command} +\w", told), command


@pytest.mark.parametrize("asked", ["fit -c mine", "train mine", "store -c mine", "weights --experiment mine"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"model: [\n", "no YAML in UTF-8"),
        (b"\xff\xfe", "no YAML"),
        (b"- a\n", "is no experiment"),
        (b"data: 5\n", "is no"),
    ],
)
def test_what_is_no_experiment_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: str,
    content: bytes,
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_bytes(content)
    told = fails(asked.split(), capsys)
    assert why in " ".join(told.split())
    assert "Traceback" not in told


def test_experiments_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    want = EXPERIMENTS / "souple_ctx4.yaml"
    for name in ("souple_ctx4", "souple_ctx4.yaml", "experiments/souple_ctx4.yaml", str(want)):
        assert find_config(name) == want
    own = tmp_path / "mine.yaml"
    own.write_text("model: {}\n")
    assert find_config("mine.yaml") == own


def test_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no experiment 'souple_ctx5'.*souple_ctx4"):
        find_config("souple_ctx5")
    with pytest.raises(UsageError, match=r"no experiment 'zzz'\. `avloc experiments` lists") as e:
        find_config("zzz")
    assert len(str(e.value)) < 300


def test_a_file_that_is_not_there_is_not_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*mine/souple_ctx4\.yaml.*-c souple_ctx4"):
        find_config(str(tmp_path / "mine" / "souple_ctx4.yaml"))


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'localize'" in fails(["localise"], capsys)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--model.init_args.contxt=4", "contxt"),
        ("--data.batchsize=4", "batchsize"),
        ("--trainer.max_epoch=1", "max_epoch"),  # no abbreviations
        ("--model.init_args.variant=fuson", "fuson"),
        ("--model.class_path=avloc.methods.souple.SUPLE", "SUPLE"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_misspelt_key_is_an_error_that_names_it(option: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert named in fails(["fit", "-c", "souple_ctx4", option], capsys)


@pytest.mark.filterwarnings("ignore")
def test_a_misspelt_key_in_the_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (EXPERIMENTS / "souple_ctx4.yaml").read_text().replace("context: 4", "context: 4\n    positon: 2")
    (tmp_path / "typo.yaml").write_text(text)
    assert "positon" in fails(["fit", "-c", str(tmp_path / "typo.yaml")], capsys)


@pytest.mark.filterwarnings("ignore")
def test_missing_weights_say_where_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AVLOC_WEIGHTS", str(tmp_path))
    told = fails(["fit", "-c", "souple_ctx4", "--trainer.accelerator=cpu"], capsys)
    assert re.search(r"^avloc fit: Weights 'hf:CIDAS/clipseg-rd64-refined' are not on this machine", told, re.MULTILINE)
    assert str(tmp_path) in told
    assert "Apache-2.0" in told


def test_weights_are_told_whole_fetched_and_contributed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a folder that stands for a mirror; without a terminal nothing is fetched that nobody accepted."""
    monkeypatch.setenv("AVLOC_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("avloc.weights.hub_cache", lambda name: [])
    mirror = tmp_path / "mirror"
    (mirror / "CIDAS--clipseg-rd64-refined").mkdir(parents=True)
    (mirror / "CIDAS--clipseg-rd64-refined" / "model.safetensors").write_bytes(b"clipseg")
    beats = "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"
    (mirror / beats).write_bytes(b"beats")
    ask = ["weights", "--experiment", "souple_ctx4"]
    main(ask)
    listed = capsys.readouterr().out
    assert str(tmp_path / "weights" / beats) in listed  # no name is cut, however narrow the terminal
    assert "https://huggingface.co/camenduru/beats/resolve/main/" + beats in listed
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(SystemExit) as e:
        main([*ask, "--get", "--from", str(mirror)])
    assert e.value.code == 2
    assert "licence MIT" in capsys.readouterr().out
    assert not (tmp_path / "weights" / beats).exists()
    main([*ask, "--get", "--yes", "--from", str(mirror)])
    assert str(tmp_path / "weights" / beats) in capsys.readouterr().out
    main([*ask, "--digest"])
    digests = yaml.safe_load(capsys.readouterr().out)
    assert digests["beats"] == hashlib.sha256(b"beats").hexdigest()
    main([*ask, "--json"])
    rows = {row["source"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["beats"]["here"], rows["beats"]["sha256"]) == (True, digests["beats"])
    with pytest.raises(SystemExit):
        main(["weights", "--get"])
    assert "name it with --experiment" in capsys.readouterr().err


def test_weights_lists_what_an_experiment_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AVLOC_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "250")
    main(["weights", "--experiment", "souple_ctx4"])
    told = capsys.readouterr().out
    assert "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt" in told
    assert "MIT" in told
    main(["weights", "--experiment", "quickstart"])
    told = capsys.readouterr().out
    assert "world:clipseg" in told
    assert "here" in told
    main(["weights", "--experiment", "seac"])  # files of parts, and of parts of parts
    told = capsys.readouterr().out
    for file in ("RN50.pt", "vggish-10086976.pth", "sam_vit_h_4b8939.pth", "data/mavl_boxes.safetensors"):
        assert file in told
    assert "hf:google/owlv2-base-patch16-ensemble" in told
    guided = tmp_path / "guided.yaml"
    guided.write_text(
        "model: {class_path: avloc.methods.baselines.controls.CentreBox}\nevaluator: {ogl: {alpha: 0.5}}\n"
    )
    main(["weights", "--experiment", str(guided)])
    assert "resnet18" in capsys.readouterr().out


def test_localize_wants_a_video_or_a_still(capsys: pytest.CaptureFixture[str]) -> None:
    assert "either a video, or --image and --audio" in fails(["localize", "--image", "a.png"], capsys)


def test_localize_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "make train EXP=quickstart" in fails(["localize", "clip.mp4"], capsys)


def test_train_with_nothing_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Nothing to resume" in fails(["train", "quickstart", "--resume"], capsys)


def test_train_only_tests_a_method_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran: list[list[str]] = []

    def run(command: list[str]) -> int:
        ran.append(command[3:])
        return 0

    monkeypatch.setattr("avloc.experiment.command.run_to_its_end", run)
    main(["train", "clipseg_oracle_world", "quickstart", "--data.num_workers=0"])
    assert [words[0] for words in ran] == ["test", "fit"]
    assert "--test_after_fit=true" in ran[1]
    assert "--test_after_fit=true" not in ran[0]
    assert all("--data.num_workers=0" in words for words in ran)
    main(["train", "clipseg_oracle_world", "--data.train_fraction=0.5"])
    main(["train", "clipseg_oracle_world", "--data.train=world:train"])
    assert [words[0] for words in ran[2:]] == ["test", "fit"]
    state = tmp_path / "runs" / "mine" / "version_0" / "checkpoints" / "resume.ckpt"
    state.parent.mkdir(parents=True)
    torch.save({"avloc": {}, "optimizer_states": [{}]}, state)
    for renamed in (["--experiment", "mine"], ["--experiment=theirs", "--experiment=mine"]):  # the last one counts
        main(["train", "quickstart", "--resume", *renamed])
        assert ran[-1][3:5] == ["--test_after_fit=true", "--ckpt_path"]
        assert (tmp_path / ran[-1][5]).samefile(state)


def test_train_with_several_seeds_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran: list[list[str]] = []
    reported: list[Path] = []

    def run(command: list[str]) -> int:
        """Trains and tests, but is killed in the middle of seed 1."""
        ran.append(command[3:])
        seed = next((int(w.partition("=")[2]) for w in command if w.startswith("--seed_everything=")), None)
        folder = tmp_path / "runs" / Path(command[5]).stem / f"version_{len(ran)}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"seed": seed}))
        torch.save({"avloc": {}, "optimizer_states": [{}]}, folder / "checkpoints" / "resume.ckpt")
        if seed == 1 and len(ran) == 2:
            return 1
        (folder / "results.json").touch()
        return 0

    monkeypatch.setattr("avloc.experiment.command.run_to_its_end", run)
    monkeypatch.setattr("avloc.report.command.report", lambda folders, out: reported.extend(folders))
    with pytest.raises(SystemExit):
        main(["train", "quickstart", "clipseg_oracle_world", "--seeds", "3"])
    assert [words[4] for words in ran] == ["--seed_everything=0", "--seed_everything=1"]
    main(["train", "quickstart", "clipseg_oracle_world", "--seeds=3", "--resume", "--trainer.max_epochs=1"])
    again, fresh, untrained = ran[2:]
    assert again[4:6] == ["--seed_everything=1", "--ckpt_path"]
    assert Path(again[6]).parts[-3:] == ("version_2", "checkpoints", "resume.ckpt")
    assert fresh[4] == "--seed_everything=2"
    assert "--ckpt_path" not in fresh
    assert untrained[0] == "test"  # once: nothing in it is seeded
    assert all("--trainer.max_epochs=1" in words and "--seeds=3" not in words for words in ran[2:])
    assert [f.name for f in reported] == ["version_1", "version_3", "version_4", "version_5"]
    assert "seed 0 of quickstart: runs/quickstart/version_1 is there" in capsys.readouterr().out
    main(["train", "quickstart", "--seeds", "7,", "--data.num_workers=0"])
    assert ran[-1][4] == "--seed_everything=7"


@pytest.mark.parametrize("seeds", ["0", "-2", "five", "1,1", "1,x", ",", "2.5"])
def test_seeds_that_are_none(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is neither a number of seeds" in fails(["train", "quickstart", f"--seeds={seeds}"], capsys)


def test_seeds_and_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    told = fails(["train", "quickstart", "--seeds", "2", "--seed_everything=1"], capsys)
    assert "give one of the two" in told


@pytest.mark.filterwarnings("ignore")
def test_fit_of_a_method_without_training_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told = fails(["fit", "-c", "clipseg_oracle_world", "--trainer.logger=false"], capsys)
    assert "TextGrounder has nothing to train. Test it: avloc test -c clipseg_oracle_world" in told


def test_help_and_usage_errors_need_no_torch() -> None:
    """Every command's help, and a mistake, in one interpreter that never imports a heavy package."""
    code = """
import sys
from avloc.cli import COMMANDS, main
lines = [[f.__name__, "--help"] for f in COMMANDS] + [["bench", "step", "--help"], ["--help"], ["experimnts"]]
lines += [["report"], ["train", "no_such_experiment"], ["localize", "--image", "a.png"], ["bench", "step", "--methd"]]
for line in lines:
    try:
        main(line)
    except SystemExit as e:
        assert e.code in (0, 2), (line, e.code)
heavy = {"torch", "lightning", "pandas", "matplotlib", "transformers", "wandb", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Did you mean 'experiments'" in done.stderr
    assert "--method" in done.stderr


def test_help_starts_at_once() -> None:
    """The processor's time of every command's help, in starts of a bare interpreter: 16 were measured (0.9 s), and
    55 for ``import torch``."""
    clock = "import time; print(time.process_time())"
    code = """
import io, time
from contextlib import redirect_stdout
from avloc.cli import COMMANDS, main
started, slowest = None, 0
for f in COMMANDS:
    before = time.process_time()
    try:
        with redirect_stdout(io.StringIO()):
            main([f.__name__, "--help"])
    except SystemExit:
        pass
    if started is None:
        started = time.process_time()  # with what every help imports
    else:
        slowest = max(slowest, time.process_time() - before)
print(started + slowest)
"""

    def seconds(code: str) -> float:
        runs = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(2))
        return min(float(run.stdout) for run in runs)

    assert seconds(code) < 25 * seconds(clock)


@pytest.mark.parametrize(("words", "code"), [(["fit"], 2), (["fit", "-c", "souple_ctx5"], 2), (["rescore", "none"], 1)])
def test_exit_codes(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """2 for a misused command line, 1 for a failure that is told; both are one sentence without a trace."""
    with pytest.raises(SystemExit) as e:
        main(words)
    assert e.value.code == code
    told = capsys.readouterr().err
    assert told.startswith(f"avloc {words[0]}: ")
    assert "Traceback" not in told


def test_debug_shows_the_trace() -> None:
    with pytest.raises(UsageError, match="souple_ctx4"):
        main(["fit", "-c", "souple_ctx5", "--debug"])


def test_options_stand_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr("avloc.audit.leaks.audit", lambda *given: seen.extend(given))
    main(["audit", "--json", "a.csv", "--by", "clip", "b.json", "c.json", "--clean", "d.txt"])
    assert seen == [Path("a.csv"), [Path("b.json"), Path("c.json")], Path("d.txt"), "clip", True]


def test_the_keys_of_the_help_are_those_of_a_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--help-all"])
    told = capsys.readouterr().out
    found = set(re.findall(r"^  --([a-z_]+)[. ]", told, re.MULTILINE)) - {"config", "print_config", "help"}
    found |= {"model"} & set(re.findall(r"--(model)\b", told))
    assert found - {"ckpt_path", "weights_only", "optimizer", "lr_scheduler"} == set(KEYS)
    main(["fit", "--help-all", "data"])
    part = capsys.readouterr().out
    assert "--data.batch_size" in part
    assert "--trainer.max_epochs" not in part


def test_completion_knows_experiments_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"souple_ctx4", "souple_ctx8"} <= set(complete(["train"], "souple_c"))
    assert "souple_ctx4" in complete(["fit", "-c"], "souple_c")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine" / "version_0").mkdir(parents=True)
    assert complete(["report"], "runs/m") == ["runs/mine/version_0"]
    assert "localize" in complete([], "loc")


def complete(words: list[str], incomplete: str) -> list[str]:
    """What bash is offered behind ``avloc WORDS``."""
    line = " ".join(["avloc", *words, incomplete])
    env = os.environ | {"_AVLOC_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) + 1)}
    done = subprocess.run([sys.executable, "-c", "from avloc.cli import main; main()"], env=env, capture_output=True)
    return done.stdout.decode().split()


def test_experiments_lists_the_rows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["experiments", "souple_ctx4_pos1"])
    told = capsys.readouterr().out
    assert "souple_ctx4_pos1" in told
    assert "vggsound_144k" in told
    assert "souple_ctx8" not in told
    assert "SOUPLE" in told
    assert "souple table 6" in told


def test_experiments_tell_what_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that the method takes by default count, the embedded world is always there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVLOC_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("AVLOC_DATA", str(tmp_path / "sets"))
    (entry,) = chosen("souple_ctx4_pos1")
    assert entry.weights == ["hf:CIDAS/clipseg-rd64-refined", "beats"]
    wanted = [*entry.weights, *entry.sets]
    assert entry.missing(entry.weights) == wanted
    assert {"vggsound_144k", "vggss"} <= set(wanted)
    for file in ("CIDAS--clipseg-rd64-refined/model.safetensors", "sets/vggss/vggss-test.json"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    assert entry.missing(entry.weights) == [w for w in wanted if w not in ("hf:CIDAS/clipseg-rd64-refined", "vggss")]
    (world,) = chosen("quickstart_acl_llm")
    assert world.missing(world.weights) == []
    laid = {entry.about.name: entry for entry in chosen("laid over")}
    assert laid.keys() == {path.stem for path in (EXPERIMENTS / "overlays").iterdir()}
    assert not laid["souple_sets"].weights


def test_experiments_begin_with_the_headline_rows(capsys: pytest.CaptureFixture[str]) -> None:
    names = [entry.about.name for entry in chosen()]
    assert sorted(names) == sorted(path.stem for path in EXPERIMENTS.rglob("*.yaml"))
    top = {path.stem for path in EXPERIMENTS.glob("*.yaml")}
    assert set(names[: len(top)]) == top
    main(["experiments"])
    told = capsys.readouterr().out
    assert all(name in told for name in top)
    assert "avloc experiments WORD" in told


def test_experiments_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    main(["experiments", "--count"])
    told = capsys.readouterr().out
    assert re.search(r"\d+ published rows, \d+ of the suite's methods, \d+ reached", told)
    assert re.search(r"^in all \d+ of \d+ values are compared, \d+ are not$", told, re.MULTILINE)
    assert "leave the word out" in fails(["experiments", "souple", "--count"], capsys)


def test_converters_are_found_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    main(["prep"])
    told = capsys.readouterr().out
    assert re.search(r"^vggss +VGG-SS", told, re.MULTILINE)
    assert not re.search(r"^(common|command|avsbench) ", told, re.MULTILINE)
    assert "Did you mean vggss" in fails(["prep", "vgss"], capsys)
    main(["prep", "vggss", "--help"])
    assert "--boxes" in capsys.readouterr().out
