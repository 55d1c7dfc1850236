from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import wandb
from lightning import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from avloc.methods.base import Localizer
from avloc.report import telemetry
from avloc.report.gallery import read_kept
from avloc.report.keys import KeysError
from avloc.report.published import Reference
from avloc.report.tables import read_run
from avloc.report.telemetry import Panels, Provenance, Throughput, default_loggers, wandb_offline
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import WeightFile


class Toy(Localizer):
    input_spec = InputSpec(image_size=16, sample_rate=8000, seconds=0.25)
    paper_parameters = 2_380_000

    def __init__(self):
        super().__init__(optimizer=lambda p: torch.optim.SGD(p, lr=0.125))
        self.gain = nn.Parameter(torch.ones(3))
        self.tower = nn.Linear(10, 10).requires_grad_(False)
        self.frozen_files = {"tower": WeightFile("world:tower", None, "ab" * 32)}

    def training_losses(self, batch):
        return {"loss": (self.gain * batch.audio.mean()).sum()}

    def localize(self, batch):
        heat = batch.image.float().mean(1, keepdim=True) / 255
        return Localization(heat, torch.ones(len(batch), 1))


def make_batch(first: int, n: int) -> AVBatch:
    image = torch.zeros(n, 3, 16, 16, dtype=torch.uint8)
    image[:, :, 4:8, 4:8] = 255
    truth = torch.zeros(n, 1, 16, 16)
    truth[:, :, 4:8, 4:12] = 1
    return AVBatch(
        key=[f"clip{i}" for i in range(first, first + n)],
        image=image,
        audio=torch.full((n, 2000), 0.25),
        index=torch.arange(first, first + n),
        truth=truth,
        label=[["dog", "cat"]] * n,
        negative=[""] * (n - 1) + ["noise"],
        sounding=torch.tensor([True] * (n - 1) + [False]),
    )


class Set(SimpleNamespace):
    def __init__(self, name, row):
        super().__init__(name=name, row=row)

    def __len__(self):
        return 12


class Data(LightningDataModule):
    def __init__(self):
        super().__init__()
        self.val_sets = [Set("world:val", "model")]
        self.test_sets = [Set("world:single", "model"), Set("world:single", "shuffled sound")]

    def loader(self):
        return DataLoader([make_batch(3 * i, 3) for i in range(4)], batch_size=None)

    def train_dataloader(self):
        return self.loader()

    def val_dataloader(self):
        return self.loader()

    def test_dataloader(self):
        return [self.loader(), self.loader()]


def trainer(folder, callbacks, logger=None, **options):
    return Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="toy") if logger is None else logger,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **options,
    )


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


def test_panels_of_each_set_are_written(tmp_path):
    run = trainer(tmp_path, [Panels(count=4)])
    run.test(Toy(), Data(), verbose=False)
    folder = tmp_path / "toy" / "version_0" / "panels"
    assert {p.name for p in folder.iterdir() if p.suffix in (".png", ".html")} == {
        f"world-single{kind}.{form}" for kind in ("", "-shuffled-sound") for form in ("png", "html")
    }
    text = (folder / "world-single.html").read_text()
    assert [f"clip{i}" in text for i in range(5)] == [True] * 4 + [False]
    assert text.count("<audio") == 4
    assert "dog, cat / noise" in text
    assert text.count("IoU 0.50") == 4, "16 of 32 true pixels are found"


def test_a_test_keeps_evenly_spread_samples_one_by_one(tmp_path):
    run = trainer(tmp_path, [Panels(count=1, singles=4)])
    run.test(Toy(), Data(), verbose=False)
    kept = read_kept(tmp_path / "toy" / "version_0")
    assert [(k.set, k.index, k.key) for k in kept] == [("world:single", i, f"clip{i}") for i in (0, 4, 7, 11)]
    assert [(k.sounding, k.negative, k.label) for k in kept[::3]] == [
        (True, "", "dog, cat"),
        (False, "noise", "dog, cat"),
    ]
    assert [k.overlap for k in kept] == [0.5, 0.5, 0.5, None], "16 of 32 true pixels; what is silent has no truth"
    assert [k.share for k in kept] == [16 / 256] * 4
    assert all(k.confidence == 1 for k in kept)
    with Image.open(kept[0].picture) as picture, Image.open(kept[3].picture) as silent:
        assert picture.size == (4 * 160 + 3 * 4, 160)
        assert silent.size == (3 * 160 + 2 * 4, 160), "without the tile of the truth"
    wave, rate = soundfile.read(kept[0].sound)
    assert (rate, len(wave)) == (8000, 2000)
    assert np.abs(wave - 0.25).max() < 1e-4


class Groups(Set):
    """Pairs of samples that show one picture."""

    def key(self, i):
        return f"clip{i}"

    def picture(self, i):
        return f"scene{i // 2}"


def grouped():
    data = Data()
    data.test_sets[0] = Groups("world:pairs", "model")
    return data


def test_a_picture_is_kept_with_all_of_its_sounds(tmp_path):
    run = trainer(tmp_path, [Panels(count=1, singles=6)])
    run.test(Toy(), grouped(), verbose=False)
    kept = read_kept(tmp_path / "toy" / "version_0")
    assert [(k.shows, k.key) for k in kept] == [
        (f"scene{i // 2}", f"clip{i}")
        for i in (0, 1, 4, 5, 10, 11)  # pictures 0, 2 and 5 of six
    ]


def test_asked_samples_are_kept_by_any_of_their_names(tmp_path):
    run = trainer(tmp_path, [Panels(count=1, singles=0, keys="clip3,scene4")])
    run.test(Toy(), grouped(), verbose=False)
    kept = read_kept(tmp_path / "toy" / "version_0")
    assert [k.key for k in kept] == ["clip3", "clip8", "clip9"]
    assert all(k.true.is_file() and k.heat.is_file() for k in kept)
    with Image.open(kept[0].heat) as heat:
        assert heat.size == (160, 160)


def test_an_unknown_key_is_named_before_anything_is_tested(tmp_path):
    run = trainer(tmp_path, [Panels(keys=["clip3", "clp4"])])
    with pytest.raises(KeysError, match=r"no test set has clp4 \(did you mean clip"):
        run.test(Toy(), grouped(), verbose=False)
    assert not (tmp_path / "toy" / "version_0" / "panels").exists()


def test_a_mixture_tells_whose_colour_is_whose(tmp_path):
    batch = make_batch(0, 3)
    batch.truth = torch.cat([batch.truth, batch.truth.flip(-1)], 1)
    batch.class_id = torch.tensor([[0, 1]] * 3)
    heat = torch.rand(3, 3, 16, 16)
    answer = Localization(heat, torch.ones(3, 3), torch.tensor([[1, 5, -1]] * 3))
    first, _, silent = telemetry.panels_of(batch, answer, [0, 1, 2], 8000, {5: "cow"})
    assert [name for name, _ in first.sources.legend] == ["dog", "cat", "cow"]
    assert first.sources.places == [1, 2]
    assert silent.sources.names == ["class 1", "cow"], "nothing that sounds lends a name"
    assert not len(silent.sources.truth)


class Said(Toy):
    """Every sound lies a third of the way from the first phrase to the second."""

    def embed_sound(self, batch):
        return torch.tensor([[2.0, 1.0, 0.0]]).expand(len(batch), -1)

    def embed_phrases(self, phrases):
        return torch.eye(3)[: len(phrases)]


def test_a_test_keeps_what_sounds_are_heard_as(tmp_path):
    data = Data()
    names = ["cat", "dog", "playing_tabla"]
    data.test_sets[0].records = [SimpleNamespace(targets=[SimpleNamespace(class_name=n)]) for n in names]
    trainer(tmp_path / "a", [Panels(count=1, singles=2, heard_as=2)]).test(Said(), data, verbose=False)
    kept = read_kept(tmp_path / "a" / "toy" / "version_0")
    for sample in kept:
        assert [phrase for phrase, _ in sample.heard_as] == ["cat", "dog"]
        assert [cosine for _, cosine in sample.heard_as] == [pytest.approx(2 / 5**0.5), pytest.approx(1 / 5**0.5)]
    trainer(tmp_path / "b", [Panels(count=1, singles=2)]).test(Toy(), data, verbose=False)
    assert all(sample.heard_as == [] for sample in read_kept(tmp_path / "b" / "toy" / "version_0"))


def test_a_part_of_a_set_is_spread_over_itself(tmp_path):
    run = trainer(tmp_path, [Panels(count=1, singles=3)], limit_test_batches=2)
    run.test(Toy(), Data(), verbose=False)
    kept = read_kept(tmp_path / "toy" / "version_0")
    assert [k.index for k in kept] == [0, 2, 5]


@pytest.mark.parametrize(
    ("size", "count", "places"),
    [(5, 9, {0, 1, 2, 3, 4}), (101, 3, {0, 50, 100}), (7, 1, {0}), (0, 4, set()), (9, 0, set())],
)
def test_spread_by_hand(size, count, places):
    assert telemetry.spread(size, count) == places


@pytest.mark.parametrize(("every", "written"), [(2, True), (3, False), (0, False)])
def test_validation_panels_follow_the_epochs(tmp_path, every, written):
    run = trainer(tmp_path, [Panels(2, every)], max_epochs=2, num_sanity_val_steps=1)
    run.fit(Toy(), Data())
    assert (tmp_path / "toy" / "version_0" / "panels" / "val_world-val.html").exists() == written


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
    assert about["method"].endswith("test_telemetry.Toy")
    assert "trainable parameters: 0.00 M of 0.00 M (paper: 2.38 M)" in capsys.readouterr().out
    assert "souple_ctx4" in (folder / "hparams.yaml").read_text()
    results = {"sets": {"s": {"primary": ["p", "m"], "rows": {"model": {"p": {"m": 0.5}}}}}}
    (folder / "results.json").write_text(json.dumps(results))
    read = read_run(folder)
    assert (read.name, read.reproduces["variant"]) == ("souple_ctx4", "ctx=4, 20 epochs")


def repository(folder):
    (folder / "avloc").mkdir(parents=True)
    (folder / "avloc" / "a.py").write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    return folder / "avloc"


def test_git_state_of_a_clean_a_changed_and_no_checkout(tmp_path, monkeypatch):
    package = repository(tmp_path / "code")
    monkeypatch.setattr(telemetry, "PACKAGE", package)
    state = telemetry.git_state()
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (package / "a.py").write_text("2")
    assert telemetry.git_state() == {"commit": state["commit"], "dirty": True}
    monkeypatch.setattr(telemetry, "PACKAGE", package.parent)  # somebody else's repository further up
    (package.parent / "inner").mkdir()
    monkeypatch.setattr(telemetry, "PACKAGE", package.parent / "inner" / "avloc")
    (package.parent / "inner" / "avloc").mkdir()
    assert telemetry.git_state() == {}
    monkeypatch.setattr(telemetry, "PACKAGE", tmp_path)
    assert telemetry.git_state() == {}


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


def test_wandb_table_has_pictures_and_sound():
    batch = make_batch(0, 2)
    panels = telemetry.panels_of(batch, Toy().localize(batch), [0, 1], 8000)
    table = telemetry.wandb_table(panels)
    assert table.columns == ["key", "image", "overlay", "label", "IoU", "sound"]
    key, image, drawn, label, iou, sound = table.data[1]
    assert (key, label, iou) == ("clip1", "dog, cat / noise", 0.5)
    assert (image.image.size, drawn.image.size) == ((160, 160), (160, 160))  # repeated until legible
    assert isinstance(sound, wandb.Audio)


SCRIPT = """
import sys
from pathlib import Path
from tests.report.test_telemetry import Data, Toy, trainer
from avloc.report.telemetry import Panels, Provenance, Throughput, default_loggers
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
