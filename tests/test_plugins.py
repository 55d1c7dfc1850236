"""Other people's code: entry points of a package, modules of the working folder, and what is said without them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from avloc.cli import main
from avloc.evaluation.benchmarks import BENCHMARKS, benchmark
from avloc.evaluation.protocols import PROTOCOLS, ProtocolError, protocol
from avloc.evaluation.results import rescore
from avloc.methods.base import CheckpointError
from avloc.methods.load import load_method
from avloc.names import find_config
from avloc.plugins import VARIABLE, PluginError, load_plugins, may_import
from avloc.report import published
from avloc.report.published import PublishedError
from avloc.world import write_world
from tests.methods.tiny import tiny_files
from tests.report.fabricated import entry, per_sample, results

RULES = """
from pathlib import Path

from avloc.evaluation import benchmarks, protocols
from avloc.report import published


def summary(samples):
    values = samples["top50:ciou"][:, 0]
    return {"odds": (values.mean() / (1 - values.mean())).item()}


MINE = protocols.Protocol("mine/odds", protocols.protocol("vggss/top50").measures, summary, "odds")
protocols.register(MINE)
benchmarks.register(benchmarks.Benchmark("mine_set", ("mine/odds", "vggss/top50"), "mine_printed"))
published.register(Path(__file__).with_name("mypaper.yaml"))
"""
FLAGS = {"ogl": False, "oracle": False, "ours": True, "zero_shot": None}
CELL = {"benchmark": "mine_printed", "metric": "odds", "threshold": None, "value": "0.7500", "unit": "fraction"}
PAPER = {
    "paper": {"key": "mypaper", "title": "Odds", "authors": "Somebody", "venue": None, "year": None},
    "doubts": [],
    "compare": [{"benchmark": "mine_printed", "protocol": "mine/odds"}],
    "tables": [
        {
            "id": "1",
            "caption": "odds",
            "benchmarks": ["mine_printed"],
            "rows": [{"method": "M", "variant": None, "group": "ours", "flags": FLAGS, "values": [CELL]}],
        }
    ],
}
METHODS = "from avloc.methods.souple import SOUPLE\n\n\nclass Mine(SOUPLE):\n    pass\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with modules of its user's; what they register is forgotten afterwards."""
    (tmp_path / "myrules.py").write_text(RULES)
    (tmp_path / "mypaper.yaml").write_text(yaml.safe_dump(PAPER))
    (tmp_path / "mymethods.py").write_text(METHODS)
    (tmp_path / "mybroken.py").write_text("import no_such_thing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    kept = [(d, dict(d)) for d in (PROTOCOLS, BENCHMARKS, published.ADDED)]
    yield tmp_path
    for registered, before in kept:
        registered.clear()
        registered.update(before)  # type: ignore[arg-type]
    for cached in (published.load, published.all_rows):
        cached.cache_clear()
    forget()


def forget() -> None:
    for name in ("myrules", "mymethods", "mybroken"):
        sys.modules.pop(name, None)


def fabricated_run(folder: Path) -> Path:
    """A run of two sets that was scored by a rule of its user's, two thirds of every frame hit on average."""
    ciou = np.array([0.2, 0.8, 0.4, 0.6, 0.5, 0.5, 0.3, 0.7])[:, None]
    line = {"key": [f"k{i}" for i in range(8)], "top50:ciou": ciou}
    folder.mkdir()
    per_sample(folder, {("mine_set", "model"): line})
    numbers = {"mine/odds": {"odds": 0.9}, "vggss/top50": {"ciou": 0.4, "auc": 0.4, "mean_ciou": 0.4}}
    more = {"protocols": ["mine/odds", "vggss/top50"], "counted": {"model": 8}}
    sets = {"mine_set": entry({"model": numbers}, ("mine/odds", "odds"), 8, "mine_printed", **more)}
    row = {"paper": "mypaper", "table": "1", "method": "M"}
    return results(folder, sets, experiment="mine", reproduces=row)


def stored(run: Path) -> dict[str, dict[str, float]]:
    return json.loads((run / "results.json").read_text())["sets"]["mine_set"]["rows"]["model"]


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    main(words)
    return " ".join(capsys.readouterr().out.split())


def test_a_report_without_the_plugin_shows_what_is_stored_with_notes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fabricated_run(here / "run")
    said = told(["report", str(run), "--metrics", "all"], capsys)
    assert "90.00" in said
    assert "mine/odds is no protocol that is known here: its numbers are those of results.json" in said
    assert f"{VARIABLE}=MODULE" in said
    assert "mine is compared with no published row: No published numbers for paper 'mypaper'" in said
    said = told(["rescore", str(run)], capsys)
    assert "mine/odds is no protocol that is known here; its numbers stay as they are" in said
    assert stored(run)["mine/odds"] == {"odds": 0.9}
    assert stored(run)["vggss/top50"]["ciou"] == 0.625  # five of eight reach one half
    assert list(stored(run)) == ["mine/odds", "vggss/top50"]


def test_a_module_of_the_working_folder_is_imported_on_its_users_word(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fabricated_run(here / "run")
    monkeypatch.setenv(VARIABLE, "myrules")
    said = told(["rescore", str(run)], capsys)
    assert "no protocol" not in said
    assert stored(run)["mine/odds"] == {"odds": pytest.approx(1.0)}  # a mean of one half
    said = told(["report", str(run), "--metrics", "all"], capsys)
    assert "published: M, mypaper table 1" in said
    assert "75.00" in said
    assert "+25.00" in said
    assert "no protocol" not in said
    assert "mypaper table 1: odds" in told(["report", str(run), "--paper", "mypaper"], capsys)
    assert benchmark("mine_set").primary == ("mine/odds", "odds")


def test_an_installed_package_names_its_modules_as_entry_points(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = here / "mypackage-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[avloc.plugins]\nmine = myrules\n")
    monkeypatch.syspath_prepend(here)
    with pytest.raises(ProtocolError, match="no protocol 'mine/odds'"):
        protocol("mine/odds")
    load_plugins()
    assert protocol("mine/odds").headline == "odds"
    assert may_import("myrules")
    load_plugins()  # once more is nothing new
    (about / "entry_points.txt").write_text("[avloc.plugins]\nmine = mybroken\n")
    with pytest.raises(PluginError, match=r"mybroken.*entry point 'mine' of mypackage.*no_such_thing.*uninstall"):
        load_plugins()


def test_help_needs_no_plugin_and_a_broken_one_is_told_in_a_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "mybroken")
    assert "Usage" in told(["rescore", "--help"], capsys)
    assert "Usage" in told(["bench", "step", "--help"], capsys)
    with pytest.raises(SystemExit) as e:
        main(["bench", "step"])
    assert e.value.code == 1
    with pytest.raises(SystemExit) as e:
        main(["rescore", "nowhere"])
    assert e.value.code == 1
    assert capsys.readouterr().err.startswith("avloc bench: Plugin mybroken, which AVLOC_PLUGINS names, cannot be")


def test_nothing_runs_because_it_lies_in_the_working_folder(here: Path) -> None:
    (here / "wave.py").write_text("")  # a name of the standard library's
    load_plugins()
    assert sys.path[-1] == str(here)
    assert not {"myrules", "mymethods", "mybroken"} & sys.modules.keys()


@pytest.mark.filterwarnings("ignore")
def test_a_method_of_the_working_folder_is_fitted_and_loaded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fit` finds the class that a YAML names; a checkpoint's word alone imports nothing."""
    write_world(here / "data" / "world", "single", scenes=4)
    content = yaml.safe_load(find_config("quickstart").read_text())
    content["model"]["class_path"] = "mymethods.Mine"
    content["model"]["init_args"] |= {k: [*v] if isinstance(v, tuple) else v for k, v in tiny_files(here).items()}
    content["data"] |= {"train": "world:single", "val": [], "test": [], "batch_size": 4, "num_workers": 0}
    content["trainer"] |= {"max_steps": 1, "max_epochs": 1, "accelerator": "cpu", "logger": False}
    content["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False}
    content["checkpoint"] = {"dirpath": str(here)}
    content["resume"] = {"dirpath": str(here)}
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    main(["fit", "-c", "mine"])
    assert type(load_method(here / "best.ckpt", "cpu")).__name__ == "Mine"
    forget()
    with pytest.raises(CheckpointError, match=r"mymethods\.Mine, which is neither.*AVLOC_PLUGINS=mymethods before"):
        load_method(here / "best.ckpt", "cpu")
    assert "mymethods" not in sys.modules
    monkeypatch.setenv(VARIABLE, "other, mymethods")
    assert type(load_method(here / "best.ckpt", "cpu")).__name__ == "Mine"


def test_what_a_file_may_have_imported(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert may_import("avloc.methods.souple")
    assert may_import("torch.nn")  # is here already
    assert not may_import("antigravity")
    assert not may_import("avlocal.methods")
    assert torch.nn
    monkeypatch.setenv(VARIABLE, "pack.rules")
    assert may_import("pack.methods")


def test_a_name_is_registered_once(here: Path) -> None:
    load = "from avloc.evaluation.protocols import protocol, register\nfrom dataclasses import replace\n"
    load += "register(replace(protocol('vggss/acl'), headline='auc'))\n"
    (here / "mybroken.py").write_text(load)
    sys.path.append(str(here))
    with pytest.raises(ProtocolError, match="a protocol 'vggss/acl' already"):
        __import__("mybroken")
    assert protocol("vggss/acl").headline == "ciou"
    (here / "souple.yaml").write_text("")
    with pytest.raises(PublishedError, match="a paper 'souple' already"):
        published.register(here / "souple.yaml")
    (here / "empty.yaml").write_text("paper: {}\n")
    with pytest.raises(PublishedError, match=r"empty\.yaml is not written like the papers"):
        published.register(here / "empty.yaml")
    assert "empty" not in published.papers()
    with pytest.raises(PublishedError, match="There is no"):
        published.register(here / "none.yaml")


def test_a_run_without_the_suites_protocols_is_rescored_to_what_it_was(here: Path) -> None:
    run = fabricated_run(here / "run")
    once = rescore(run)
    before = (run / "results.json").read_bytes()
    assert once[1] == ["mine/odds"]
    rescore(run)
    assert (run / "results.json").read_bytes() == before
