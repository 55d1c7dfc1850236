from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from avloc.data.index import read_index, read_shard
from avloc.data.indexed import EvalSet
from avloc.data.labels import LABEL_SPACES
from avloc.data.schema import Record
from avloc.data.shards import Job, Skipped
from avloc.data.stream import TrainStream
from avloc.types import InputSpec
from data_prep.pool import CRASHED, Pool
from data_prep.vggsound import main, read_boxes, read_rows, vggss_target
from tests.data.clips import write_clip

SPEC = InputSpec(image_size=32, seconds=2.0)
ROWS = [
    ("-abcdefghi0", 30, "elk bugling", "train"),
    ("_bcdefghi_1", 0, "female speech, woman speaking", "train"),
    ("cdefghijkl2", 7, "elk bugling", "train"),
    ("defghijklm3", 1, "airplane", "train"),  # no sound
    ("efghijklmn4", 2, "airplane", "train"),  # cut off
    ("fghijklmno5", 3, "airplane", "train"),  # not there
    ("ghijklmnop6", 4, "airplane", "test"),
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    with (folder / "vggsound.csv").open("w") as f:
        f.writelines(f'{v},{s},"{c}",{split}\n' for v, s, c, split in ROWS)
    write_clip(folder / "-abcdefghi0_000030.mp4", size=(640, 480))
    write_clip(folder / "_bcdefghi_1_0.mp4")
    write_clip(folder / "cdefghijkl2_000007.mp4", seconds=1)
    write_clip(folder / "defghijklm3_000001.mp4", audio=False)
    whole = write_clip(folder / "efghijklmn4_000002.mp4").read_bytes()
    (folder / "efghijklmn4_000002.mp4").write_bytes(whole[: len(whole) // 3])
    write_clip(folder / "ghijklmnop6_000004.mp4", seconds=6, fps=5)
    return folder


def convert(clips: Path, out: Path, *options: str) -> int:
    arguments = [
        "--videos",
        str(clips),
        "--csv",
        str(clips / "vggsound.csv"),
        "--out",
        str(out),
        "--jobs",
        "2",
    ]
    return main([*arguments, *options])


def records(index: Path) -> dict[str, tuple[Record, dict[str, bytes]]]:
    tars = [r for i in range(len(read_index(index).shards)) for r in read_shard(read_index(index).locate(i))]
    return {(record := Record.from_json(t["meta.json"])).id: (record, t) for t in tars}


def test_the_official_split_becomes_training_shards(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert convert(clips, tmp_path) == 0
    index = tmp_path / "vggsound" / "vggsound-train.json"
    found = records(index)
    assert set(found) == {"-abcdefghi0_000030", "_bcdefghi_1_000000", "cdefghijkl2_000007"}
    record, _ = found["_bcdefghi_1_000000"]
    assert record.key == "vggsound___bcdefghi_1_000000"
    assert (record.label, record.video, record.map_rule) == (
        "female speech, woman speaking",
        "_bcdefghi_1",
        "none",
    )
    big, _ = found["-abcdefghi0_000030"]
    assert (big.frames[0].width, big.frames[0].height) == (533, 400)
    assert (big.frames[0].src_width, big.frames[0].src_height, big.frames[0].t) == (640, 480, 1.0)
    assert big.audios[0].clip_start == 30.0
    assert json.loads(index.read_text())["classes"] == {"elk bugling": 2, "female speech, woman speaking": 1}
    with (tmp_path / "vggsound" / "skipped-train.csv").open() as f:
        skipped = {r["key"]: r["reason"] for r in csv.DictReader(f)}
    assert {k: w for k, r in skipped.items() for w in ("no sound", "cannot be decoded", "video missing") if w in r} == {
        "vggsound__defghijklm3_000001": "no sound",
        "vggsound__efghijklmn4_000002": "cannot be decoded",
        "vggsound__fghijklmno5_000003": "video missing",
    }
    said = capsys.readouterr().err
    assert "3 records written, 3 clips skipped" in said
    assert "1  no sound" in said
    (batch,) = list(TrainStream(read_index(index), SPEC, batch=3))
    assert batch.image.shape == (3, 3, 32, 32)
    assert batch.audio.abs().amax(1).min() > 0.3


def test_the_classes_of_a_label_space_alone(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(LABEL_SPACES, "two", ("elk bugling", "zebra"))
    assert convert(clips, tmp_path, "--classes", "two", "--name", "vggsound_two") == 0
    index = tmp_path / "vggsound_two" / "vggsound_two-train.json"
    assert set(records(index)) == {"-abcdefghi0_000030", "cdefghijkl2_000007"}
    assert "1 of the classes of two have no clip (zebra, ...)" in json.loads(index.read_text())["notes"]
    with pytest.raises(SystemExit):
        convert(clips, tmp_path, "--classes", "three")
    assert "--classes three is no label space; there are avs_s4_23" in capsys.readouterr().err


def test_several_frames_of_a_training_clip(clips: Path, tmp_path: Path) -> None:
    """A second apart around the middle of 2 s, 2 s and 1 s; each is a frame to train on, one of them a visit."""
    assert convert(clips, tmp_path, "--frames", "3", "--name", "vggsound_3") == 0
    index = tmp_path / "vggsound_3" / "vggsound_3-train.json"
    found = records(index)
    times = {id: [f.t for f in record.frames] for id, (record, _) in found.items()}
    assert times["-abcdefghi0_000030"] == [0.0, 1.0, 2.0]
    assert times["cdefghijkl2_000007"] == [0.0, 0.5, 1.0]  # where the clip begins and ends
    record, members = found["-abcdefghi0_000030"]
    assert record.scored == [0, 1, 2]
    assert len({members[f"f{k}.jpg"] for k in range(3)}) > 1
    stream = TrainStream(read_index(index), SPEC, batch=3)
    seen = set()
    for epoch in range(8):
        stream.start_at(epoch)
        seen |= {key.partition(".")[2] for batch in stream for key in batch.key}
    assert seen == {"f0", "f1", "f2"}
    assert len(EvalSet(index, SPEC)) == 9  # what is stored of it


def test_boxes_make_the_vggss_set(clips: Path, tmp_path: Path) -> None:
    boxes = [
        {
            "file": "ghijklmnop6_000004",
            "class": "airplane",
            "bbox": [[0.25, -2.88e16, 0.5, 0.5], [0.5, 0.5, 1, 1]],
        },
        {"file": "hijklmnopq7_000000", "class": "elk bugling", "bbox": [[0, 0, 1, 1]]},
    ]
    (tmp_path / "vggss.json").write_text(json.dumps(boxes))
    assert convert(clips, tmp_path, "--boxes", str(tmp_path / "vggss.json")) == 0
    data = EvalSet(tmp_path / "vggss" / "vggss-test.json", SPEC)
    (item,) = [data[i] for i in range(len(data))]
    expected = np.zeros((224, 224))
    expected[0:112, 56:112] = 1
    expected[112:, 112:] = 1
    np.testing.assert_array_equal(item.truth, [expected])
    record = data.records[0]
    assert record.targets[0].boxes_raw is None
    assert (record.frames[0].member, record.frames[0].width, record.frames[0].t) == ("f0.png", 96, 5.0)
    assert abs(item.image.mean() - 4 * 25) < 3  # the frame at 5 s, 5 fps
    assert "id is not in the csv" in (tmp_path / "vggss" / "skipped-test.csv").read_text()


def test_a_dry_run_counts_and_writes_nothing(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert convert(clips, tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().err
    assert "vggsound-train: 5 records to write, 1 left out" in said  # broken videos show only when they are read
    assert "1  video missing" in said
    assert not (tmp_path / "out").exists()


def test_vggss_boxes_keep_their_raw_numbers_when_sane() -> None:
    target = vggss_target(3, "x", [[0.1, -0.01, 0.6, 1.0]])
    assert target.boxes_raw == [[0.1, -0.01, 0.6, 1.0]]
    assert target.boxes == [[0.1, 0.0, 0.6, 1.0]]


def test_names_and_tags(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "heard.csv").write_text("_bcdefghi_1_000000\n")
    options = ["--name", "vggsound_144k", "--tag", f"heard={tmp_path / 'heard.csv'}"]
    assert convert(clips, tmp_path, *options) == 0
    found = records(tmp_path / "vggsound_144k" / "vggsound_144k-train.json")
    assert {id: r.tags for id, (r, _) in found.items() if r.tags} == {"_bcdefghi_1_000000": ["heard"]}
    assert {r.dataset for r, _ in found.values()} == {"vggsound_144k"}
    with pytest.raises(SystemExit):
        convert(clips, tmp_path, "--tag", "heard")


def test_lists_opus_and_parts(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text('-abcdefghi0_000030,"elk bugling"\ncdefghijkl2_000007\nghijklmnop6_000004\n')
    common = ["--list", str(tmp_path / "ids.csv"), "--codec", "opus", "--records-per-shard", "1"]
    index = tmp_path / "vggsound" / "vggsound-train.json"
    for part in (1, 0):
        assert not index.exists()
        assert convert(clips, tmp_path, *common, "--num-parts", "2", "--part", str(part)) == 0
    found = records(index)
    assert set(found) == {"-abcdefghi0_000030", "cdefghijkl2_000007", "ghijklmnop6_000004"}
    assert all("a0.opus" in raw for _, raw in found.values())
    assert sum(len(b.key) for b in TrainStream(read_index(index), SPEC, batch=1)) == 3


def test_a_killed_conversion_goes_on(clips: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    with (videos / "vggsound.csv").open("w") as f:
        for n in range(12):
            f.write(f"vid{n:08d},{n},dog,train\n")
            os.link(clips / "-abcdefghi0_000030.mp4", videos / f"vid{n:08d}_{n:06d}.mp4")
    command = [sys.executable, "-m", "data_prep.vggsound", "--videos", str(videos), "--csv"]
    command += [
        str(videos / "vggsound.csv"),
        "--out",
        str(tmp_path),
        "--jobs",
        "1",
        "--records-per-shard",
        "2",
    ]
    folder = tmp_path / "vggsound"
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not list(folder.glob("*.tar")):
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = {p: p.stat().st_mtime_ns for p in folder.glob(".parts/*.json")}
    assert not (folder / "vggsound-train.json").exists()
    assert convert(videos, tmp_path, "--records-per-shard", "2") == 0
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert len(records(folder / "vggsound-train.json")) == 12
    assert not list(folder.glob(".tmp-*"))


def crash() -> None:
    os._exit(1)


def fail() -> None:
    raise ValueError("bad video")


def nothing() -> None:
    return None


def test_a_video_that_crashes_its_process_costs_only_itself() -> None:
    jobs = [Job("a", nothing), Job("b", crash), Job("c", fail), *(Job(f"d{i}", nothing) for i in range(9))]
    pool = Pool(2)
    made = list(pool(jobs))
    pool.close()
    assert made[:3] == [
        Skipped("a", "nothing was made"),
        Skipped("b", CRASHED),
        Skipped("c", "bad video"),
    ]
    assert made[3:] == [Skipped(f"d{i}", "nothing was made") for i in range(9)]


def test_wrong_files_are_named(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("abc,30,dog,train\nabc,30,dog, big,train\n")
    with pytest.raises(ValueError, match=r"bad.csv, line 2: expected id,start second"):
        read_rows(bad)
    bad.write_text('[{"file": 3}]')
    with pytest.raises(ValueError, match=r"bad.csv is not VGG-SS's vggss.json"):
        read_boxes(bad)
    for options, says in (
        (["--part", "2", "--num-parts", "2"], "--part 2 must lie between"),
        (["--boxes", str(bad)], "is not VGG-SS"),
        (["--boxes", str(tmp_path / "no.json")], "no.json"),
        (["--vidoes", "x"], "unrecognized arguments"),
    ):
        with pytest.raises(SystemExit):
            convert(clips, tmp_path, *options)
        assert says in capsys.readouterr().err
