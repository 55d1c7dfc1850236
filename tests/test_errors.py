"""What a user reads of an error."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from avloc.cli import main
from avloc.data.schema import SampleError
from avloc.errors import REMEDIES, UsageError, sentence, told_by


@pytest.mark.parametrize("number", REMEDIES)
def test_what_is_the_matter_with_a_disk_names_the_place_and_the_remedy(number: int) -> None:
    told = sentence(OSError(number, os.strerror(number), "/data/out"))
    assert told is not None
    assert told.startswith("/data/out cannot be used")
    assert told.endswith(REMEDIES[number])


def test_without_a_place_only_what_needs_none_is_told() -> None:
    assert "Free some space" in str(sentence(OSError(errno.ENOSPC, "no space")))
    assert sentence(OSError(errno.ENOENT, "nothing")) is None


def test_causes_are_looked_through_and_defects_are_none() -> None:
    outer = RuntimeError("wrapped by a library")
    outer.__cause__ = UsageError("say what")
    assert sentence(outer) == "say what"
    assert told_by(outer) is outer.__cause__
    broken = ValueError("a defect")
    assert sentence(broken) is None
    broken.__cause__ = MemoryError()
    assert "memory is used up" in str(sentence(broken))


class Broken(Dataset[int]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        raise SampleError("toy__s0001: member a0.flac is missing from its shard. Write the shard again.")


def test_a_workers_error_is_told_without_its_trace() -> None:
    with pytest.raises(SampleError) as e:
        next(iter(DataLoader(Broken(), num_workers=1, multiprocessing_context="fork")))
    assert "Traceback" in str(e.value)
    assert sentence(e.value) == "toy__s0001: member a0.flac is missing from its shard. Write the shard again."


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.ENOTDIR])
def test_an_output_folder_that_cannot_be_written_to_is_a_sentence(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(SystemExit) as e:
        main(["world", "--out", str(tmp_path / "w")])
    told = " ".join(capsys.readouterr().err.split())
    assert e.value.code == 1
    assert str(tmp_path / "w").split("/")[-1] in told
    assert "Traceback" not in told
