"""The command: what may stand on its line, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avloc.cli import main
from avloc.localize import models
from avloc.localize.models import Chosen
from avloc.localize.regions import Threshold
from tests.localize.test_run import Known, steady


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
