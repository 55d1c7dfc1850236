from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from avloc.report import telemetry
from avloc.report.telemetry import Throughput, default_loggers, wandb_offline
from tests.report.toy import Data, Toy, trainer


def test_throughput_counts_samples_and_leaves_validation_out(tmp_path, monkeypatch):
    clock = iter(np.arange(1000) * 0.5)  # every look at the clock is half a second after the last
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    run = trainer(tmp_path, [Throughput()], max_epochs=1, log_every_n_steps=2)
    run.fit(Toy(), Data())
    run.logger.save()
    with open(f"{run.log_dir}/metrics.csv") as f:
        rows = [row for row in csv.DictReader(f) if row.get("time/samples_per_s")]
    # Two batches of three samples between two looks: 6 / 0.5 s.
    assert [float(row["time/samples_per_s"]) for row in rows] == [12.0, 12.0]
    assert [float(row["lr"]) for row in rows] == [0.125, 0.125]


@pytest.fixture
def logged_out(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.parametrize(
    ("mode", "key", "offline"),
    [
        (None, None, True),
        (None, "a" * 40, False),
        ("offline", "a" * 40, True),
        ("disabled", None, True),
        ("online", None, False),
    ],
)
@pytest.mark.usefixtures("logged_out")
def test_offline_unless_logged_in_or_told(monkeypatch, mode, key, offline):
    for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key)):
        if value:
            monkeypatch.setenv(name, value)
    assert wandb_offline() is offline


@pytest.mark.usefixtures("logged_out")
def test_a_key_in_netrc_is_a_login(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'b' * 40}\n")
    assert not wandb_offline()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert wandb_offline()
    (tmp_path / "netrc").write_text(f"machine wandb.example.org:8080 login user password {'b' * 40}\n")
    assert not wandb_offline()
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert wandb_offline()
    (tmp_path / "netrc").rename(tmp_path / "home" / ".netrc")
    assert not wandb_offline()


@pytest.mark.usefixtures("logged_out")
def test_a_damaged_netrc_is_no_login(tmp_path):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login\n  passwort x y z\n")
    assert wandb_offline()


def test_default_loggers_are_csv_first_then_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))  # so that monkeypatch cleans up what is set here
    first, second = default_loggers(tmp_path, "toy")
    assert isinstance(first, CSVLogger)
    assert isinstance(second, WandbLogger)
    assert first.log_dir == str(tmp_path / "toy" / "version_0")


SCRIPT = """
import sys
from pathlib import Path
from tests.report.toy import Data, Toy, trainer
from avloc.report.pictures import Panels
from avloc.report.provenance import Provenance
from avloc.report.telemetry import Throughput, default_loggers
loggers = default_loggers(Path(sys.argv[1]), "toy")
callbacks = [Panels(2), Provenance(), Throughput()]
run = trainer(sys.argv[1], callbacks, loggers, max_epochs=1, log_every_n_steps=1)
run.fit(Toy(), Data())
run.test(Toy(), Data(), verbose=False)
"""


def test_wandb_offline_run_holds_the_panels_and_ends_by_itself(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    files = (run / "files" / "media").rglob("*")
    media = {p.relative_to(run / "files" / "media").as_posix() for p in files}
    assert any(m.startswith("table/panels/world-single_") for m in media), media
    waiting = [p.read_bytes()[:8] for p in (tmp_path / "wandb" / "artifacts" / "staging").iterdir()]
    assert sum(head.startswith(b"RIFF") for head in waiting) == 4, "two sets of two sounds"
    assert sum(head.startswith(b"\x89PNG") for head in waiting) == 8
    assert (tmp_path / "toy" / "version_0" / "metrics.csv").exists()
