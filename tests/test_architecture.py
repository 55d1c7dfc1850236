"""The walk of ARCHITECTURE.md, taken from the page: convert, train, test, with a method and a protocol of one's own."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from lightning import Trainer
from PIL import Image

from avloc import cli
from avloc.data.module import AVDataModule
from avloc.evaluation.benchmarks import BENCHMARKS
from avloc.evaluation.evaluator import Evaluator
from avloc.evaluation.protocols import PROTOCOLS
from data_prep import common
from tests.data_prep.little import InThisProcess

PAGE = (Path(__file__).resolve().parents[1] / "ARCHITECTURE.md").read_text()
FILES = dict(re.findall(r"^`([\w.]+)`\n\n```(?:python|yaml)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
MODULES = ("garden", "loud", "pointing")


def lay_out(folder: Path) -> None:
    """Six pictures of a red half and a green half, of which the red one calls; a row without media."""
    folder.mkdir()
    lines = ["id,split,x0,y0,x1,y1"]
    for n in range(6):
        left = 16 * (n % 2)
        pixels = np.full((32, 32, 3), [0, 255, 0], np.uint8)
        pixels[:, left : left + 16] = [255, 0, 0]
        Image.fromarray(pixels).save(folder / f"b{n}.png")
        soundfile.write(folder / f"b{n}.wav", np.full(16000, 0.1), 16000, subtype="PCM_16")
        lines.append(f"b{n},{'train' if n < 4 else 'test'},{left / 32},0,{(left + 16) / 32},1")
    (folder / "boxes.csv").write_text("\n".join([*lines, "gone,test,0,0,1,1"]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files and a little garden, and nothing of them left behind."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    lay_out(tmp_path / "garden")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)
    PROTOCOLS.pop("pointing/peak", None)
    BENCHMARKS.pop("garden", None)


def check(results: dict[str, Any]) -> None:
    """What the walk's two test pictures give, whose birds are the left and the right half."""
    rows = results["sets"]["garden"]["rows"]
    hits = {row: rows[row]["pointing/peak"]["hits"] for row in ("model", "full frame", "centre box")}
    # Of equal pixels the first counts: the upper left one of the full frame, the upper left corner of the centre box.
    assert hits == {"model": 1, "full frame": 0.5, "centre box": 0.5}
    assert rows["model"]["vggss/fixed"]["ciou"] == 1


def test_the_walk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(FILES) == ["garden.py", "loud.py", "pointing.py", "loud_garden.yaml"]
    garden, loud, pointing = (importlib.import_module(name) for name in MODULES)

    monkeypatch.setattr(common, "Pool", InThisProcess)
    assert garden.main(["--media", "garden", "--out", "data", "--jobs", "1"]) == 0
    assert "picture missing" in (folder / "data" / "garden" / "skipped-test.csv").read_text()

    maps = torch.tensor([[[0.1, 0.9], [0.2, 0.3]], [[0.5, 0.5], [0.1, 0.1]]])
    truth = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    assert pointing.pointing(maps, truth).tolist() == [1, 0]  # of two equal peaks the first counts

    experiment = yaml.safe_load(FILES["loud_garden.yaml"])
    assert experiment["model"]["class_path"] == "loud.Loud"
    rate = experiment["model"]["init_args"]["optimizer"]["init_args"]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        **experiment["trainer"], **quiet, enable_checkpointing=False, default_root_dir=folder, callbacks=[Evaluator()]
    )
    model, data = loud.Loud(partial(torch.optim.Adam, **rate)), AVDataModule(root="data", **experiment["data"])
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    check(json.loads((folder / "results.json").read_text()))


@pytest.mark.slow
def test_the_walk_by_its_commands(folder: Path) -> None:
    garden, _, _ = (importlib.import_module(name) for name in MODULES)
    assert garden.main(["--media", "garden", "--out", "data", "--jobs", "1"]) == 0
    cli.main(["fit", "-c", "loud_garden.yaml"])
    checkpoint = "runs/loud_garden/version_0/checkpoints/best.ckpt"
    cli.main(["test", "-c", "loud_garden.yaml", "--ckpt_path", checkpoint])
    check(json.loads(next(folder.glob("runs/*/version_*/results.json")).read_text()))
