"""Every YAML in experiments/: parsed strictly, tied to a row that exists, and run for a step at tiny size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from avloc.experiment import ExperimentCLI
from avloc.report.published import Reference, find
from avloc.world import write_world
from tests.methods.tiny import tiny_files

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
EXPERIMENTS = sorted(p.stem for p in FOLDER.glob("*.yaml") if "model" in yaml.safe_load(p.read_text()))


def content(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def test_the_rows_of_the_papers_are_there() -> None:
    wanted = {
        "souple_ctx4",
        "souple_ctx8",
        "souple_ctx16",
        "souple_ctx4_40ep",
        "souple_ctx4_50ep",
        "souple_fusion",
    }
    wanted |= {"souple_ensemble", "souple_heard110", "acl_ssl", "quickstart"}
    wanted |= {f"souple_ctx4_pos{p}" for p in range(1, 6)}
    assert wanted <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_comment_prints_the_published_numbers(name: str) -> None:
    reference = content(name).get("reproduces")
    head = " ".join(re.findall(r"^# (.*)", (FOLDER / f"{name}.yaml").read_text(), re.M))
    if reference is None:
        assert "No published row" in head
        return
    r = Reference(**reference)
    row = find(r.paper, r.table, r.method, r.variant)
    assert f'table {r.table}, row "{r.variant}"' in head
    for value in row.values:
        assert value.printed in head


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("small")
    write_world(folder / "world", "train", scenes=8)
    write_world(folder / "world", "single", scenes=4)
    return folder, tiny_files(folder)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.filterwarnings("ignore")
def test_every_experiment_takes_a_step(name: str, small: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, tiny = small
    args = ["fit", "-c", str(FOLDER / f"{name}.yaml"), f"--data.root={folder}", "--data.train=world:train"]
    args += ["--data.val=[]", "--data.test=['world:single']", "--data.num_workers=0", "--data.batch_size=4"]
    args += [f"--model.init_args.{k}={list(v) if isinstance(v, tuple) else v}" for k, v in tiny.items()]
    args += [
        "--trainer.max_steps=1",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.logger=false",
    ]
    args += [
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.enable_progress_bar=false",
        "--checkpoint.monitor=null",
    ]
    args += [
        "--trainer.enable_model_summary=false",
        f"--checkpoint.dirpath={tmp_path}",
        f"--resume.dirpath={tmp_path}",
    ]
    run = ExperimentCLI.run(args)
    assert run.trainer.global_step == 1
    assert run.settings.experiment == name
    learned = {k.split(".")[1] for k in run.model.learned_keys()}
    own = {"meta_net", "V"} if "SOUPLE" in type(run.model).__name__ else set()
    assert learned == {"audio_proj", "masker_i"} | own
