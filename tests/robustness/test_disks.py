"""Real disks that are full, or cannot be written to: where this may mount them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from avloc.cli import main
from avloc.data.index import read_index, verify
from avloc.methods.checkpoint import read_checkpoint
from avloc.world import write_world
from tests.experiment.test_checkpoints import SETTINGS

Disk = Callable[[str], Path]
FIT = ["fit", "-c", "fading", "--trainer.max_epochs=2", "--test_after_fit=true"]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a disk of a size, or in another way: `tmp_path / "disk"`."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(how: str) -> Path:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(place)], capture_output=True).returncode:
            pytest.skip("no disk can be mounted here")
        return place

    yield mounted
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for split, scenes in (("single", 12), ("val", 6)):
        write_world(tmp_path / "data" / "world", split, scenes=scenes)
    (tmp_path / "fading.yaml").write_text(yaml.safe_dump(SETTINGS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The sentence with which a command ends."""
    with pytest.raises(SystemExit) as e:
        main(words)
    assert e.value.code in (1, 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


@pytest.mark.parametrize("size", ["8k", "24k", "40k", "60k", "100k"])
def test_a_run_on_a_full_disk_ends_with_a_sentence_and_whole_files(
    disk: Disk, here: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    place = disk(f"size={size}")
    said = told(capsys, [*FIT, f"--trainer.default_root_dir={place}/runs"])
    assert said.startswith("avloc fit: ")
    assert "No space left on device" in said
    assert str(place) in said
    for path in place.rglob("*.ckpt"):
        read_checkpoint(path)
    assert not list(place.rglob(".tmp-*"))
    subprocess.run(["mount", "-o", "remount,size=10m", str(place)], check=True)
    known = sorted(place.rglob("resume.ckpt"))
    more = ["--ckpt_path", str(known[0])] if known else []
    main([*FIT, "--experiment=fading", f"--trainer.default_root_dir={place}/runs", *more])
    assert len(list(place.rglob("results.json"))) == 1


def test_a_report_over_an_older_one_on_a_full_disk(disk: Disk, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(FIT)
    (run,) = (here / "runs" / "fading").glob("version_*")
    place = disk("size=10m")
    report = ["report", str(run), "--out", str(place / "out")]
    main(report)
    older = {p.name: p.read_bytes() for p in (place / "out").iterdir() if p.is_file()}
    used = sum(-(-len(data) // 4096) for data in older.values()) * 4
    subprocess.run(["mount", "-o", f"remount,size={used + 8}k", str(place)], check=True)
    capsys.readouterr()
    assert "No space left on device" in told(capsys, report)
    assert {p.name: p.read_bytes() for p in (place / "out").iterdir() if p.is_file()} == older


@pytest.mark.parametrize("how", ["full", "ro"])
def test_a_set_on_a_disk_that_takes_no_more_goes_on_when_it_does(
    disk: Disk, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    place = disk("size=200k" if how == "full" else "ro")
    words = ["world", "--out", str(place / "data"), "--splits", "val"]
    said = " ".join(told(capsys, words).split())
    assert said.startswith("avloc world: ")
    assert str(place) in said
    assert not list(place.rglob(".tmp-*"))
    subprocess.run(["mount", "-o", "remount,rw,size=100m", str(place)], check=True)
    main(words)
    verify(read_index(place / "data" / "world" / "world-val.json"))


@pytest.mark.parametrize("words", [FIT, ["test", "-c", "fading"]])
def test_a_run_on_a_disk_that_cannot_be_written_to(
    disk: Disk, here: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    place = disk("ro")
    said = told(capsys, [*words, f"--trainer.default_root_dir={place}/runs"])
    assert "Read-only file system" in said
    assert str(place) in said
