"""A file is whole or not there, whatever the disk does."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from avloc.audit.lists import AuditError
from avloc.data.shards import write_json
from avloc.errors import told_by
from avloc.evaluation.results import write_results, write_samples
from avloc.experiment.checkpoints import AtomicCheckpoints
from avloc.files import ABANDONED, HOST, WriteError, complete, one_at_a_time, sweep, write_whole
from avloc.report.panels import Panel, gallery, page
from avloc.report.predictions import Predictions
from avloc.report.telemetry import write_json as write_about
from avloc.types import Localization
from data_prep.object_phrases import COLUMNS
from data_prep.object_phrases import write_table as write_phrases
from data_prep.telling import write_table

noise = np.random.default_rng(0)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file grows beyond 200 bytes: what every library's own writer meets on a full disk, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def panel() -> Panel:
    image = torch.from_numpy(noise.integers(0, 255, (3, 64, 64)).astype(np.uint8))
    return Panel("a", image, torch.rand(64, 64), None)


def predict(path: Path) -> None:
    writer = Predictions()
    writer.root = path.parent
    answer = Localization(torch.rand(1, 1, 64, 64), torch.rand(1, 1))
    sets = SimpleNamespace(test_sets=[SimpleNamespace(name="", row="model")])
    trainer: Any = SimpleNamespace(datamodule=sets)
    writer.write_on_batch_end(trainer, None, answer, None, SimpleNamespace(key=[path.stem]), 0, 0)  # type: ignore[arg-type]


def samples(path: Path) -> None:
    columns = {"index": torch.arange(500), "a:b": torch.rand(500, 1, dtype=torch.float64)}
    write_samples(path, {("s", "model"): columns}, {"s": {i: (f"k{i}", "", "") for i in range(500)}})


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a whole file": ("a.txt", lambda p: write_whole(p, "x" * 999)),
    "an index": ("a.json", lambda p: write_json(p, ["x" * 999])),
    "run.json": ("run.json", lambda p: write_about(p, ["x" * 999])),
    "results.json": ("results.json", lambda p: write_results(p, {"x": "x" * 999})),
    "per_sample.parquet": ("per_sample.parquet", samples),
    "panels": ("p.png", lambda p: gallery([panel()], p)),
    "a page of panels": ("p.html", lambda p: page([panel()], p)),
    "predictions": ("k.npz", predict),
    "phrases": ("p.parquet", lambda p: write_phrases(p, [dict.fromkeys(COLUMNS, str(i)) for i in range(500)])),
    "a converter's table": ("t.csv", lambda p: write_table(p, ["a"], [["x" * 999]])),
    "a checkpoint": ("a.ckpt", lambda p: AtomicCheckpoints().save_checkpoint({"x": torch.rand(999)}, p)),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_leaves_the_older_file_and_a_sentence(tmp_path: Path, what: str) -> None:
    name, write = WRITERS[what]
    path = tmp_path / name
    write(path)  # into where there is room
    assert path.stat().st_size > 200
    path.write_bytes(b"older")
    with full_disk(), pytest.raises((OSError, RuntimeError)) as e:
        write(path)
    told = told_by(e.value)
    assert told is not None
    assert f"{path} could not be written (" in str(told)
    assert "untouched" in str(told)
    assert path.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_no_room_keeps_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers say more of it: that a conversion goes on, for one."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"a\.txt could not be written \(.*No space left on device") as e:
        write_whole(tmp_path / "a.txt", "x")
    assert e.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_an_error_of_what_is_read_meanwhile_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), complete(tmp_path / "a.txt") as part:
        part.write_bytes((tmp_path / "absent").read_bytes())
    with pytest.raises(AuditError), complete(tmp_path / "a.txt"):
        raise AuditError("x")


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path, together = tmp_path / "a.txt", threading.Barrier(8)

    def write(letter: str) -> None:
        for _ in range(20):
            together.wait()
            with complete(path, durable=False) as part, part.open("w") as f:
                for _ in range(50):
                    f.write(letter * 100)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abcdefgh"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    text = path.read_text()
    assert len(text) == 5000
    assert len(set(text)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_writer_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("older")
    script = "import sys, time; from pathlib import Path; from avloc.files import complete\n"
    script += (
        f"with complete(Path({str(path)!r})) as p:\n p.write_text('half'); print('in', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=-1, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "in\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert path.read_text() == "older"


def test_what_killed_writers_left_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    path = tmp_path / "report.[1].tex"
    left, others = (
        tmp_path / f".tmp-{path.name}-{HOST}-{dead.pid}-0123abcd",
        [
            tmp_path / f".tmp-{path.name}-{HOST}-{os.getppid()}-0123abcd",  # lives
            tmp_path / f".tmp-{path.name}-ffffffff-{dead.pid}-0123abcd",  # on another machine
            tmp_path / f".tmp-other.tex-{HOST}-{dead.pid}-0123abcd",
        ],
    )
    for file in (left, *others):
        file.write_text("half")
    write_whole(path, "whole")
    assert path.read_text() == "whole"
    assert not left.exists()
    assert all(other.exists() for other in others)
    old = time.time() - ABANDONED - 60
    for other in others:
        os.utime(other, (old, old))
    sweep(tmp_path, path.name)
    assert [other.exists() for other in others] == [True, False, True]  # nobody on another machine writes for a day


def test_of_two_that_write_one_thing_the_second_waits_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock, inside = tmp_path / "new" / "x.lock", []
    entered, leave = threading.Event(), threading.Event()

    def write(name: str) -> None:
        with one_at_a_time(lock, "the set"):
            inside.append(name)
            entered.set()
            assert leave.wait(20)

    first = threading.Thread(target=write, args=("first",))
    second = threading.Thread(target=write, args=("second",))
    first.start()
    assert entered.wait(20)
    second.start()
    end = time.monotonic() + 20
    while "the set is being written by another process: waiting for it" not in caplog.text:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert inside == ["first"]
    leave.set()
    second.join(20)
    assert inside == ["first", "second"]


def test_where_no_file_can_be_locked_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with one_at_a_time(tmp_path / "file" / "x.lock", "x"):
        (tmp_path / "written").touch()
    assert (tmp_path / "written").exists()
