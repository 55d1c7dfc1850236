"""The command line: found from any folder, strict about every key, and clear about what is wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from avloc import cli
from avloc.cli import UsageError, find_config, main

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a failing command tells its user."""
    with pytest.raises(SystemExit) as e:
        main(args)
    assert e.value.code not in (0, None)
    told = e.value.code if isinstance(e.value.code, str) else ""
    captured = capsys.readouterr()
    return told + captured.out + captured.err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    told = capsys.readouterr().out
    for command in cli.TRAINER_COMMANDS + cli.PLAIN_COMMANDS:
        assert f"\n    {command} " in told


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
def test_missing_weights_say_where_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVLOC_WEIGHTS", str(tmp_path))
    with pytest.raises(SystemExit) as e:
        main(["fit", "-c", "souple_ctx4", "--trainer.accelerator=cpu"])
    told = str(e.value.code)
    assert told.startswith("avloc fit: Weights 'hf:CIDAS/clipseg-rd64-refined' are not on this machine")
    assert str(tmp_path) in told
    assert "Apache-2.0" in told


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
    assert "yes" in told
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

    def run(command: list[str]) -> SimpleNamespace:
        ran.append(command[3:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("avloc.commands.subprocess.run", run)
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
    state.touch()
    for renamed in (["--experiment", "mine"], ["--experiment=theirs", "--experiment=mine"]):  # the last one counts
        main(["train", "quickstart", "--resume", *renamed])
        assert ran[-1][3:5] == ["--test_after_fit=true", "--ckpt_path"]
        assert (tmp_path / ran[-1][5]).samefile(state)


@pytest.mark.filterwarnings("ignore")
def test_fit_of_a_method_without_training_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told = fails(["fit", "-c", "clipseg_oracle_world", "--trainer.logger=false"], capsys)
    assert "TextGrounder has nothing to train. Test it: avloc test -c clipseg_oracle_world" in told
