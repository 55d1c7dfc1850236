from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import webdataset

from avloc.data.index import ShardError, read_index, read_shard, verify
from avloc.data.schema import Sample, SampleError, SchemaError
from avloc.data.shards import Job, ShardWriter, Skipped, write_shards
from avloc.files import HOST
from tests.data.make import clip, duet, sample, toy_set

NOBODY = 2**22 + 1  # no process has that number


def keys(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return list(dict.fromkeys(n.partition(".")[0] for n in tar.getnames()))


def test_the_index_tells_what_the_tars_hold(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 17)
    index = json.loads(path.read_text())
    assert path.name == "toy-train.json"
    assert (index["schema"], index["dataset"], index["split"], index["count"]) == (1, "toy", "train", 17)
    assert [s["file"] for s in index["shards"]] == [f"toy-train-{i:06d}.tar" for i in range(3)]
    assert [s["count"] for s in index["shards"]] == [7, 7, 3]
    assert index["classes"] == {"c0": 6, "c1": 6, "c2": 5}
    for s in index["shards"]:
        content = (path.parent / s["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (s["bytes"], s["sha256"])
    held = [k for s in index["shards"] for k in keys(path.parent / s["file"])]
    assert sorted(held) == [f"toy__s{i:04d}" for i in range(17)]
    assert held != sorted(held)


def test_webdataset_itself_reads_the_shards(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 3)
    (got,) = [s for s in webdataset.WebDataset(str(path.parent / "toy-train-000000.tar"), shardshuffle=False)
              if s["__key__"] == "toy__s0001"]  # fmt: skip
    assert got["f0.jpg"] == sample(1).members["f0.jpg"]
    assert json.loads(got["meta.json"])["id"] == "s0001"


def test_the_same_input_in_any_order_gives_the_same_bytes(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(9)]
    a = toy_set(tmp_path / "a", 9, samples=samples)
    b = toy_set(tmp_path / "b", 9, samples=samples[::-1])
    assert a.read_text() == b.read_text()


def test_groups_stay_together(tmp_path: Path) -> None:
    samples = [sample(i, group=f"g{i // 3}" if i < 12 else None) for i in range(20)]
    path = toy_set(tmp_path, 20, per_shard=5, samples=samples)
    order = [(k, tar.name) for tar in sorted(path.parent.glob("*.tar")) for k in keys(tar)]
    for g in range(4):
        places = [n for n, (k, _) in enumerate(order) if int(k[-4:]) // 3 == g]
        assert places == list(range(places[0], places[0] + 3))
        assert len({order[p][1] for p in places}) == 1


def jobs(n: int, made: list[str] | None = None, stop_at: int | None = None) -> list[Job]:
    def job(i: int) -> Job:
        def make() -> Sample:
            if stop_at is not None and made is not None and len(made) == stop_at:
                raise KeyboardInterrupt
            if made is not None:
                made.append(f"s{i}")
            return sample(i)

        return Job(f"toy__s{i:04d}", make)

    return [job(i) for i in range(n)]


def test_a_killed_writer_leaves_no_half_shard_and_goes_on(tmp_path: Path) -> None:
    first: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path / "toy", "toy", "train", jobs(10, first, stop_at=5), records_per_shard=3)
    assert [p.name for p in (tmp_path / "toy").iterdir() if p.is_file()] == ["toy-train-000000.tar"]
    second: list[str] = []
    report = write_shards(tmp_path / "toy", "toy", "train", jobs(10, second), records_per_shard=3)
    assert len(second) == 7
    assert report.written == 10
    assert report.index
    assert report.index.read_text() == toy_set(tmp_path / "straight", 10, per_shard=3).read_text()


def test_a_half_shard_of_a_power_cut_is_written_again(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 6, per_shard=3)
    tar = path.parent / "toy-train-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:1000])
    (path.parent / f".tmp-toy-train-000001.tar-{HOST}-{NOBODY}-0123abcd").write_bytes(b"half")
    made: list[str] = []
    write_shards(path.parent, "toy", "train", jobs(6, made), records_per_shard=3)
    assert len(made) == 3
    assert tar.read_bytes() == whole
    assert not list(path.parent.glob(".tmp-*"))


def write_slowly(folder: Path, begun: Any, splits: int) -> None:
    """A set of 9 in three shards, by one process or by the first of two that share it."""

    def slow(job: Job) -> Job:
        def made() -> Sample | None:
            begun.set()
            time.sleep(0.05)
            return job.make()

        return Job(job.key, made)

    todo = [slow(job) for job in jobs(9)]
    write_shards(folder, "toy", "train", todo, records_per_shard=3, num_parts=splits, part=0)


@pytest.mark.parametrize("splits", [1, 2])
def test_two_at_once_delete_nothing_of_each_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, splits: int
) -> None:
    """Who writes the same waits; who writes it in other parts makes the same files."""
    fork = multiprocessing.get_context("fork")
    begun, folder, made = fork.Event(), tmp_path / "toy", []
    other = fork.Process(target=write_slowly, args=(folder, begun, splits))
    other.start()
    assert begun.wait(20)
    report = write_shards(folder, "toy", "train", jobs(9, made), records_per_shard=3)
    other.join(20)
    assert other.exitcode == 0
    assert ("toy-train is being written by another process: waiting" in caplog.text) == (splits == 1)
    assert len(made) == (0 if splits == 1 else 9)
    assert report.index
    assert report.index.read_text() == toy_set(tmp_path / "straight", 9, per_shard=3).read_text()
    verify(read_index(report.index))
    assert not list(folder.glob(".tmp-*"))


def test_another_plan_never_writes_over_finished_shards(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 12, per_shard=3)
    before = {t.name: t.read_bytes() for t in path.parent.glob("*.tar")}
    with pytest.raises(ShardError, match="already holds toy-train made of other records"):
        toy_set(tmp_path, 12, per_shard=6)
    assert {t.name: t.read_bytes() for t in path.parent.glob("*.tar")} == before


def test_parts_make_the_same_set_as_one_job(tmp_path: Path) -> None:
    reports = [
        write_shards(tmp_path / "toy", "toy", "train", jobs(20), records_per_shard=3, num_parts=3, part=p)
        for p in (2, 0, 1)
    ]
    assert [r.index is None for r in reports] == [True, True, False]
    assert sum(r.written for r in reports) == 20
    assert reports[2].index
    assert reports[2].index.read_text() == toy_set(tmp_path / "one", 20, per_shard=3).read_text()


def test_what_cannot_be_made_is_skipped_and_reported_also_by_a_rerun(tmp_path: Path) -> None:
    def broken() -> Sample:
        raise ValueError("clip.mp4 has no sound")

    todo = [*jobs(4), Job("toy__x1", broken), Job("toy__x2", lambda: None)]
    for _ in range(2):
        report = write_shards(tmp_path, "toy", "train", todo)
        assert sorted(report.skipped, key=lambda s: s.key) == [
            Skipped("toy__x1", "clip.mp4 has no sound"),
            Skipped("toy__x2", "nothing was made"),
        ]
        assert report.written == 4
        assert report.index
        assert read_index(report.index).count == 4


def test_no_space_left_says_so_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = webdataset.TarWriter.write
    left = [4]

    def full(self: webdataset.TarWriter, obj: dict) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, obj)

    monkeypatch.setattr(webdataset.TarWriter, "write", full)
    with pytest.raises(ShardError, match=r"No space left in .*toy-train-000001.tar.*Free some space"):
        write_shards(tmp_path, "toy", "train", jobs(9), records_per_shard=3)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["toy-train-000000.tar"]


def test_duplicate_keys_and_wrong_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="toy__s0001 occurs twice"):
        write_shards(tmp_path, "toy", "train", [sample(1), sample(1)])
    with pytest.raises(ShardError, match="job toy__other made a sample with the key toy__s0001"):
        write_shards(tmp_path, "toy", "train", [Job("toy__other", lambda: sample(1))])


def test_the_writer_writes_at_the_end_and_nothing_after_an_error(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "toy", "single", records_per_shard=2, licence="CC0") as writer:
        for i in range(3):
            writer.add(sample(i).record, sample(i).members)
    assert read_index(tmp_path / "toy-single.json").licence == "CC0"
    writer = ShardWriter(tmp_path / "b", "toy", "single")
    writer.add(sample(0).record, sample(0).members)
    with pytest.raises(RuntimeError), writer:
        raise RuntimeError
    assert not (tmp_path / "b").exists()


def test_the_writer_checks_what_it_is_given(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "toy", "train")
    with pytest.raises(SampleError, match=r"a0.flac is missing"):
        writer.add(sample(0).record, {"f0.jpg": b""})
    record = sample(0).record
    record.dataset = "Toy"
    with pytest.raises(SchemaError, match="dataset"):
        writer.add(record, sample(0).members)


@pytest.mark.parametrize("name", ["../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg", "..\\evil.jpg"])
def test_a_tar_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(ShardError, match=r"bad.tar holds a member .* outside of the archive.*do not use it"):
        list(read_shard(str(path)))


def test_pipe_and_url_forms_are_read(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 3)
    tar = path.parent / "toy-train-000000.tar"
    plain = [r["__key__"] for r in read_shard(str(tar))]
    assert len(plain) == 3
    assert [r["__key__"] for r in read_shard(f"pipe:cat {tar}")] == plain
    assert [r["__key__"] for r in read_shard(f"file://{tar}")] == plain
    index = read_index(f"file://{path}")
    assert index.locate(0) == f"file://{tar}"
    assert read_index(f"pipe:cat {path}").locate(0) == f"pipe:cat {tar}"


@pytest.mark.parametrize(
    "file",
    [
        *(
            "pipe:touch ran",
            "http://127.0.0.1:9/x.tar",
            "file:///etc/passwd",
            "/etc/passwd",
            "../x.tar",
            "a/../../x.tar",
        ),
        *("x.tar; touch ran", "x.tar'; touch ran; '", "$(touch ran)", "-x", ".hidden", "", "a//b", "a b.tar", "\n"),
    ],
)
@pytest.mark.parametrize("how", ["{}", "pipe:cat {}", "file://{}"])
def test_an_index_names_files_beside_it_and_no_program(tmp_path: Path, file: str, how: str) -> None:
    path = toy_set(tmp_path, 3)
    data = json.loads(path.read_text())
    data["shards"][0]["file"] = file
    path.write_text(json.dumps(data))
    with pytest.raises(ShardError, match=r"names the shard .*neither another place nor a program"):
        read_index(how.format(path))
    assert not Path("ran").exists()


def test_shards_of_other_bytes_are_told_where_it_is_asked(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 3)
    tar = path.parent / "toy-train-000000.tar"
    verify(read_index(path))
    data = bytearray(tar.read_bytes())
    data[data.index(b"\xff\xd8") + 300] ^= 1  # inside of a picture, which still decodes
    tar.write_bytes(data)
    index = read_index(path)
    assert len(list(read_shard(str(tar), index.shards[0]))) == 3
    with pytest.raises(ShardError, match="its SHA-256 is another"):
        verify(index)
    for url in (str(tar), f"pipe:cat {tar}"):
        with pytest.raises(ShardError, match="its SHA-256 is another"):
            list(read_shard(url, index.shards[0], check=True))


def test_unreadable_shards_and_indexes_are_named(tmp_path: Path) -> None:
    path = toy_set(tmp_path, 3)
    tar = path.parent / "toy-train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:2500])
    with pytest.raises(ShardError, match=r"toy-train-000000.tar cannot be read"):
        list(read_shard(str(tar)))
    with pytest.raises(ShardError, match=r"absent.json cannot be read as an index"):
        read_index(tmp_path / "absent.json")
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"schema": 9}))
    with pytest.raises(ShardError, match="schema version 9 is unknown"):
        read_index(path)
    path.write_text(json.dumps(data | {"count": 4}))
    with pytest.raises(ShardError, match="count 4 is not the sum"):
        read_index(path)


def test_the_index_counts_scored_frames_also_in_shards_of_an_earlier_version(tmp_path: Path) -> None:
    samples = [sample(0), clip(1), clip(2, 3, (0, 2)), clip(3, 2, (0, 1)), duet(4, 3)]
    path = toy_set(tmp_path, 0, per_shard=2, samples=samples)
    frames = {0: 1, 1: 4, 2: 1, 3: 0, 4: 1}
    told = read_index(path)
    for shard in told.shards:
        assert shard.units == sum(frames[int(k[-4:])] for k in keys(path.parent / shard.file))
    assert sum(s.units or 0 for s in told.shards) == 7
    text = path.read_text()
    for note in (path.parent / ".parts").glob("*.json"):
        content = json.loads(note.read_text())
        del content["units"]
        note.write_text(json.dumps(content))
    path.write_text(text.replace('"units"', '"other"'))
    assert [s.units for s in read_index(path).shards] == [None] * 3
    made: list[str] = []
    todo = [Job(x.key, lambda x=x: made.append(x.key) or x) for x in samples]
    write_shards(path.parent, "toy", "train", todo, records_per_shard=2)
    assert made == []
    assert path.read_text() == text
    content = json.loads(text)
    content["shards"][0]["units"] = "four"
    path.write_text(json.dumps(content))
    with pytest.raises(ShardError, match="units of a shard are no number"):
        read_index(path)
