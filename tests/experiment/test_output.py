"""What a newcomer reads while an experiment runs: what is of use, whole, and nothing that advertises or alarms."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import pytest

from avloc.experiment.run import ExperimentCLI
from avloc.names import find_config
from avloc.processes import STARTED_BY
from avloc.world import write_world

OF_NO_USE = r"Tip|litlogger|litmodels|FLOPs|Test metric|DataLoader \d|…|anonymous|will be deleted|git root"


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    for split in ("train", "val", "single"):
        write_world(folder / "world", split, scenes=16 if split == "train" else 4)
    return folder


def read(capfd: pytest.CaptureFixture[str], *args: str) -> str:
    """All that a command says, on either stream, in Lightning's log and in warnings."""
    log = Lines()
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(log)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            ExperimentCLI.run(list(args))
    finally:
        logger.removeHandler(log)
    out, err = capfd.readouterr()
    return "\n".join([out, err, *log.lines, *(str(w.message) for w in warned if w.category is not DeprecationWarning)])


def test_a_training_with_its_test(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv(STARTED_BY, raising=False)
    here = ["-c", str(find_config("quickstart")), f"--data.root={root}", "--data.num_workers=0"]
    here += ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
    said = read(capfd, "fit", *here, "--trainer.max_epochs=1", "--test_after_fit=true")
    assert not re.findall(OF_NO_USE, said)
    assert re.search(r"trainable parameters: \d+\.\d\d M of \d+\.\d\d M", said)
    assert "world:single (4 samples), percent" in said
    assert said.count("quickstart, shuffled sound") == 1
    assert f"every number: {Path('runs/quickstart/version_0/results.json')}" in said
    best = ["--ckpt_path", "runs/quickstart/version_0/checkpoints/best.ckpt"]
    said = read(capfd, "validate", *here, *best)
    assert not re.findall(OF_NO_USE, said)
    assert re.search(r"^val/world:val/ciou +\d\.\d{4}$", said, re.M)
