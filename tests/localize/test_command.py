"""The command: what may stand on its line, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from avloc.cli import main
from avloc.localize import models
from avloc.localize.models import Chosen
from avloc.localize.regions import Threshold
from avloc.types import AVBatch, Localization
from tests.localize.test_run import Known, picture, steady, write_video


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where a `Known` was trained."""
    monkeypatch.chdir(tmp_path)
    chosen = Chosen(Known(), "Known of best.ckpt", Threshold(0.4, "universal, chosen on x"))
    monkeypatch.setattr(models, "choose", lambda experiment, checkpoint: chosen)
    monkeypatch.setattr(models, "toy_warning", lambda model: "toy weights")
    return tmp_path


def test_several_clips_a_folder_and_names_with_a_dash(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "folder").mkdir()
    steady(here / "-a.mp4", 0.2)
    for name in ("-b.mp4", "-b.mkv"):
        steady(here / "folder" / name, 0.2)
    (here / "folder" / "broken.MP4").write_bytes(b"no video")
    (here / "folder" / "words.txt").write_text("no video either")
    with pytest.raises(SystemExit) as e:
        main(["localize", "folder", "-o", "out", "--fps", "5", "--alpha", "1", "--", "-a.mp4"])
    assert e.value.code == 1
    told = capsys.readouterr()
    assert "Known of best.ckpt" in told.out
    assert "threshold: 0.4, universal, chosen on x" in told.out
    assert "-a.mp4: something sounds in 1 of 1 moments; written to out/-a" in told.out
    assert "warning: toy weights" in told.err
    assert "broken.MP4 cannot be decoded" in told.err
    assert "1 of 4 clips gave no answer" in told.err
    written = sorted(p.parent.name for p in (here / "out").rglob("regions.json"))
    assert written == ["-a", "-b.mkv", "-b.mp4"]
    assert json.loads((here / "out" / "-a" / "regions.json").read_text())["threshold"] == 0.4


def test_options_on_the_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steady(here / "-a.mp4", 1.0)
    main(["localize", "-o", "o", "./-a.mp4", "--window", "0.5", "--threshold", "1", "--maps", "npz", "--fps", "2"])
    told = json.loads((here / "o" / "regions.json").read_text())
    assert (told["window_s"], told["threshold"], told["threshold_from"], told["analysed_fps"]) == (
        0.5,
        1,
        "as asked",
        2,
    )
    assert (here / "o" / "maps.npz").is_file()
    assert "threshold: 1, as asked" in capsys.readouterr().out


class Trained(Known):
    """Warm wherever it hears next to nothing, hot where there is a sound: what a universal threshold tells apart."""

    def localize(self, batch: AVBatch) -> Localization:
        heat = 0.3 + 0.5 * (batch.audio.abs().amax(1) > 0.01).float()
        return Localization(heat[:, None, None, None].expand(-1, 1, 4, 4), heat[:, None])


@pytest.mark.parametrize(("loudness", "sounds"), [(0.0, False), (0.001, False), (0.3, True)])
def test_silence_has_no_regions_at_the_universal_threshold_of_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    loudness: float,
    sounds: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load_method", lambda path: Trained())
    run = tmp_path / "runs" / "mine" / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    universal = {"threshold": 0.41, "place": 41, "chosen_on": ["world:val", "world:val_negative"]}
    (run / "results.json").write_text(json.dumps({"universal": universal, "sets": {}}))
    noise = loudness * np.random.default_rng(0).standard_normal(44_100).clip(-1, 1)
    write_video(tmp_path / "a.mp4", [picture()] * 10, np.arange(10) / 10, noise.astype(np.float32))
    main(["localize", "a.mp4", "-o", "out", "--ckpt", str(run), "--fps", "2"])
    said = capsys.readouterr().out
    assert f"threshold: 0.41, universal, chosen on world:val, world:val_negative: {run / 'results.json'}" in said
    result = json.loads((tmp_path / "out" / "regions.json").read_text())
    assert (result["threshold"], [bool(t["regions"]) for t in result["times"]]) == (0.41, [sounds] * 2)
    assert ("nothing sounds here" in said) is not sounds
    whys = {t.get("nothing_sounds") for t in result["times"]}
    assert whys == ({None} if sounds else {"its sound is silent"} if not loudness else {SAID})


SAID = "no region of the map reaches 0.41"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["empty"], "empty holds no video"),
        (["a.mp4", "--window", "3"], "0 < window <= 1.0"),
        (["a.mp4", "--threshold", "1.5"], "threshold and alpha in 0..1"),
        (["none.mp4"], "none.mp4 is not there"),
    ],
)
def test_what_cannot_be_done_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    (here / "empty").mkdir()
    with pytest.raises(SystemExit):
        main(["localize", *words])
    assert says in capsys.readouterr().err
