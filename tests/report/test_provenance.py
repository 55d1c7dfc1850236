from __future__ import annotations

import json
import subprocess
import sys

import torch

from avloc.report import provenance
from avloc.report.provenance import Provenance
from avloc.report.published import Reference
from avloc.report.tables import read_run
from tests.report.toy import Data, Toy, make_batch, trainer


def test_run_json_tells_where_the_run_came_from(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    row = Reference("souple", "1", "SOUPLE", "ctx=4, 20 epochs")
    run = trainer(tmp_path, [Provenance("souple_ctx4", row)], max_epochs=1)
    run.fit(Toy(), Data())
    folder = tmp_path / "toy" / "version_0"
    about = json.loads((folder / "run.json").read_text())
    assert about["seed"] == 7
    assert about["weights"] == {"tower": {"source": "world:tower", "sha256": "ab" * 32}}
    assert about["parameters"] == {"trainable": 3, "total": 113}
    assert torch.__version__.startswith(about["packages"]["torch"])
    assert about["packages"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert about["method"].endswith("toy.Toy")
    assert "trainable parameters: 0.00 M of 0.00 M (paper: 2.38 M)" in capsys.readouterr().out
    assert "souple_ctx4" in (folder / "hparams.yaml").read_text()
    results = {"sets": {"s": {"primary": ["p", "m"], "rows": {"model": {"p": {"m": 0.5}}}}}}
    (folder / "results.json").write_text(json.dumps(results))
    read = read_run(folder)
    assert (read.name, read.reproduces["variant"]) == ("souple_ctx4", "ctx=4, 20 epochs")


def test_a_test_tells_what_an_answer_costs(tmp_path):
    class Weighing(Toy):
        asked = 0

        def localize(self, batch):
            self.asked += 1
            self.tower(torch.rand(len(batch), 10))  # 2 * 10 * 10 operations a picture
            return super().localize(batch)

    method = Weighing()
    run = trainer(tmp_path, [Provenance("mine")], max_epochs=1)
    run.test(method, Data(), verbose=False)
    batches = sum(run.num_test_batches)
    assert method.asked == batches + 2
    cost = json.loads((tmp_path / "toy" / "version_0" / "run.json").read_text())["cost"]
    assert cost["flops"] == 200
    assert 0 < cost["seconds"] < 1
    assert cost["pictures"] <= provenance.COST_OF
    assert cost["precision"] == "32-true"
    state = torch.get_rng_state()
    provenance.cost(method, make_batch(0, 3))
    assert torch.equal(torch.get_rng_state(), state)  # later answers draw what they would have drawn


def repository(folder):
    (folder / "avloc").mkdir(parents=True)
    (folder / "avloc" / "a.py").write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    return folder / "avloc"


def test_git_state_of_a_clean_a_changed_and_no_checkout(tmp_path, monkeypatch):
    package = repository(tmp_path / "code")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    state = provenance.git_state()
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (package / "a.py").write_text("2")
    assert provenance.git_state() == {"commit": state["commit"], "dirty": True}
    monkeypatch.setattr(provenance, "PACKAGE", package.parent)  # somebody else's repository further up
    (package.parent / "inner").mkdir()
    monkeypatch.setattr(provenance, "PACKAGE", package.parent / "inner" / "avloc")
    (package.parent / "inner" / "avloc").mkdir()
    assert provenance.git_state() == {}
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    assert provenance.git_state() == {}
