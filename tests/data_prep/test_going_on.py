"""A conversion that goes on where life goes on: clips that come late, other options, lists as people write them."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avloc.data.index import read_index, read_shard
from avloc.data.lists import read_lines, unmatched
from avloc.data.schema import Record
from data_prep.members import picture, sound
from data_prep.tables import read_ids
from data_prep.vggsound import main
from tests.data.clips import write_clip
from tests.data_prep.little import left_out, notes


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", seconds=2)


def convert(folder: Path, out: Path, *more: str) -> int:
    return main(["--videos", str(folder), "--csv", str(out / "v.csv"), "--out", str(out), "--jobs", "1", *more])


def records(out: Path, name: str = "vggsound") -> dict[str, Record]:
    index = read_index(out / name / f"{name}-train.json")
    raws = [raw for i in range(len(index.shards)) for raw in read_shard(index.locate(i))]
    return {(record := Record.from_json(raw["meta.json"])).id: record for raw in raws}


def test_clips_that_come_late_are_taken(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (tmp_path / "v.csv").write_text("".join(f"{c}bcdefghijk,0,dog,train\n" for c in "xyz"))
    shutil.copy(clip, videos / "xbcdefghijk_000000.mp4")
    (videos / "ybcdefghijk_000000.mp4").write_bytes(clip.read_bytes()[:5000])
    assert convert(videos, tmp_path) == 0
    assert set(records(tmp_path)) == {"xbcdefghijk_000000"}
    assert left_out(tmp_path / "vggsound", "train").keys() == {f"vggsound__{c}bcdefghijk_000000" for c in "yz"}
    (tar,) = (tmp_path / "vggsound").glob("*.tar")
    before = tar.read_bytes()
    assert convert(videos, tmp_path) == 0, "nothing new"
    assert tar.read_bytes() == before
    shutil.copy(clip, videos / "ybcdefghijk_000000.mp4")
    shutil.copy(clip, videos / "zbcdefghijk_0.MP4")
    (videos / "xbcdefghijk_000000.mp4").unlink()  # what is written needs its file no longer
    capsys.readouterr()
    shutil.copy(clip, videos / "xbcdefghijk_000000.mp4")
    assert convert(videos, tmp_path) == 0
    assert "3 records written, 0 clips skipped" in capsys.readouterr().err
    found = records(tmp_path)
    assert set(found) == {f"{c}bcdefghijk_000000" for c in "xyz"}
    assert json.loads((tmp_path / "vggsound" / "vggsound-train.json").read_text())["count"] == 3


@pytest.mark.parametrize("option", ["--rate", "--short-side", "--list"])
def test_other_options_under_the_same_name_are_refused(
    clip: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (tmp_path / "v.csv").write_text("xbcdefghijk,0,dog,train\n")
    shutil.copy(clip, videos / "xbcdefghijk_000000.mp4")
    assert convert(videos, tmp_path) == 0
    (tmp_path / "list.txt").write_text("xbcdefghijk_0\n")
    value = {"--rate": "8000", "--short-side": "32", "--list": str(tmp_path / "list.txt")}[option]
    with pytest.raises(SystemExit):
        convert(videos, tmp_path, option, value)
    assert f"made with another {option}. Give the new one another --name" in capsys.readouterr().err
    assert convert(videos, tmp_path, option, value, "--name", "other") == 0
    assert records(tmp_path, "other")["xbcdefghijk_000000"].audios[0].rate == (8000 if option == "--rate" else 16000)
    assert convert(videos, tmp_path) == 0, "as before is no other way"


def test_lists_as_people_write_them(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(
        b"\xef\xbb\xbfxbcdefghijk_30.mp4,dog\r\n\r\n  \r\n_bcdefghi-1_000007\r\n-bcdefghi_1_12000_22000\r\nunknown\r\n"
    )
    ids = read_ids(path)
    assert ids == {"xbcdefghijk_000030", "_bcdefghi-1_000007", "-bcdefghi_1_000012", "unknown"}
    assert [n for n, _ in read_lines(path)] == [1, 4, 5, 6]
    assert unmatched(ids, ids - {"unknown"}, "list.csv") == [
        "1 ids of list.csv match nothing (unknown). Is it the list of this set?"
    ]
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ValueError, match=r"latin.csv cannot be read as a table"):
        read_lines(tmp_path / "latin.csv")
    videos = tmp_path / "videos"
    videos.mkdir()
    (tmp_path / "v.csv").write_bytes(b"\xef\xbb\xbfxbcdefghijk.mp4,30,dog,train\r\n\r\n_bcdefghi-1,7,cat,train\r\n")
    shutil.copy(clip, videos / "xbcdefghijk_30000_40000.mp4")
    shutil.copy(clip, videos / "_bcdefghi-1.mp4")
    assert convert(videos, tmp_path, "--list", str(path), "--tag", f"mine={path}") == 0
    assert {id: r.tags for id, r in records(tmp_path).items()} == {
        "xbcdefghijk_000030": ["mine"],
        "_bcdefghi-1_000007": ["mine"],
    }
    assert any("2 ids of" in n and "match nothing" in n for n in notes(tmp_path / "vggsound", "train") or []) or any(
        "match nothing" in n for n in json.loads((tmp_path / "vggsound" / "vggsound-train.json").read_text())["notes"]
    )


def test_archives_are_read_where_they_lie(clip: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    names = {"part0.tar": "abcdefghij1", "part1.tar.gz": "-bcdefghij2", "part2.tgz": "_bcdefghij3"}
    for archive, id in names.items():
        with tarfile.open(videos / archive, "w" if archive.endswith(".tar") else "w:gz") as tar:
            tar.add(clip, f"videos/{id}_000030.mp4")
            tar.add(clip, f"videos/{id}_000040.mp4")
    with tarfile.open(videos / "part3.tar.gz", "w:gz") as tar:
        tar.add(clip, "videos/cbcdefghij4_000030.mp4")
    whole = (videos / "part3.tar.gz").read_bytes()
    (videos / "part3.tar.gz").write_bytes(whole[: len(whole) // 3])
    (videos / "part4.tar").write_bytes(b"no archive" * 200)
    (tmp_path / "v.csv").write_text("".join(f"{id},{s},dog,train\n" for id in names.values() for s in (30, 40)))
    before = sorted(videos.iterdir())
    for _ in range(2):
        assert convert(videos, tmp_path) == 0
        assert len(records(tmp_path)) == 6
    assert sorted(videos.iterdir()) == before, "nothing is unpacked there"
    said = notes(tmp_path / "vggsound", "train")
    assert any("part3.tar.gz" in n for n in said)
    assert any("part4.tar cannot be read as an archive" in n for n in said)


def test_whole_videos_are_cut_at_the_csvs_second(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    write_clip(videos / "abcdefghijk.mkv", seconds=14, fps=4, tone=300)
    (tmp_path / "v.csv").write_text("abcdefghijk,3,dog,train\n")
    assert convert(videos, tmp_path, "--short-side", "64") == 0
    index = read_index(tmp_path / "vggsound" / "vggsound-train.json")
    (raw,) = read_shard(index.locate(0))
    record = Record.from_json(raw["meta.json"])
    assert record.frames[0].t == 5.0
    assert record.audios[0].duration == 10.0
    grey = np.asarray(Image.open(io.BytesIO(raw["f0.jpg"])), float).mean()
    assert grey == pytest.approx(4 * 4 * 8, abs=3)  # the frame of second 8


def test_two_videos_of_one_id_cost_only_that_id(clip: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("abcdefghijk_000000.mp4", "abcdefghijk_0.mkv", "bbcdefghijk_0.mp4"):
        shutil.copy(clip, videos / name)
    (videos / "cbcdefghijk_0.mp4").write_bytes(b"")
    (tmp_path / "v.csv").write_text("".join(f"{c}bcdefghijk,0,dog,train\n" for c in "abc"))
    assert convert(videos, tmp_path) == 0
    assert set(records(tmp_path)) == {"bbcdefghijk_000000"}
    reasons = (tmp_path / "vggsound" / "skipped-train.csv").read_text()
    assert "several videos of one id" in reasons
    assert "it is empty, 0 bytes" in reasons


def test_pictures_that_would_be_seen_otherwise_are_made_plain(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 24), (9, 9, 9)).save(tmp_path / "lying.jpg", exif=exif)
    _, frame = picture(tmp_path / "lying.jpg")
    assert (frame.member, frame.width, frame.height) == ("f0.png", 24, 32)
    wide = np.full((4, 4), 32768, np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    data, _ = picture(tmp_path / "wide.png")
    assert np.asarray(Image.open(io.BytesIO(data))).tolist() == np.full((4, 4, 3), 128).tolist()
    Image.new("RGBA", (2, 2), (255, 255, 255, 51)).save(tmp_path / "thin.png")
    data, _ = picture(tmp_path / "thin.png")
    assert np.asarray(Image.open(io.BytesIO(data))).tolist() == np.full((2, 2, 3), 51).tolist()
    Image.new("1", (30000, 30000)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match=r"huge.png cannot be decoded as a picture .*900000000 pixels"):
        picture(tmp_path / "huge.png")


def test_many_channels_and_long_sounds(tmp_path: Path) -> None:
    six = np.zeros((8000, 6))
    six[:, 2] = 0.5  # the centre; averaging all six would leave a twelfth of it
    soundfile.write(tmp_path / "six.wav", six, 16000)
    data, audio = sound(tmp_path / "six.wav")
    assert audio.channels == 2
    wave, _ = soundfile.read(io.BytesIO(data))
    np.testing.assert_allclose(wave, 0.5 * 0.5**0.5 / (1 + 2 * 0.5**0.5), atol=1e-3)
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 8000, 1, "PCM_U8") as f:
        for _ in range(61):
            f.write(np.zeros(8000 * 60))
    with pytest.raises(ValueError, match=r"long.wav cannot be decoded as one sound \(1.0 h are more than 1 h\)"):
        sound(tmp_path / "long.wav")
    assert sound(tmp_path / "long.wav", seconds=2.0)[1].duration == 2.0
