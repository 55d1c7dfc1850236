from __future__ import annotations

import argparse
import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avloc.data.indexed import EvalSet
from avloc.data.media import MediaError
from avloc.data.schema import Record, Sample, sample_key
from avloc.data.shards import Job, Skipped
from avloc.types import InputSpec
from data_prep.common import Plan, convert, options
from data_prep.members import flac, mask_png, picture, read_mask, sound
from data_prep.tables import clip_boxes, files_by_stem, no_twins, read_ids, read_table, unlisted
from data_prep.telling import kind_of, unannotated
from tests.data_prep.little import block, left_out, notes, write_mask, write_picture, write_sound


def make(folder: Path, id: str) -> Sample:
    shown, frame = picture(folder / f"{id}.png", annotated=True)
    wave, audio = sound(folder / f"{id}.wav")
    tags = ["dark"] if id == "a" else []
    return Sample(Record("toy", id, "test", tags, frames=[frame], audios=[audio]), {"f0.png": shown, "a0.flac": wave})


def plans(args: argparse.Namespace) -> list[Plan]:
    jobs = [Job(sample_key("toy", id), partial(make, args.media, id)) for id in ("a", "b", "c")]
    missing = [Skipped("toy__d", "picture missing: d.png"), Skipped("toy__e", "picture missing: e.png")]
    return [Plan("toy", "test", jobs, missing, ["a fix"], "free", {"dark": "are dark", "pink": "are pink"})]


def run(folder: Path, out: Path, *more: str) -> int:
    parser = options("data_prep.toy", "doc", {"media": "folder"})
    return convert(parser, plans, ["--media", str(folder), "--out", str(out), "--jobs", "1", *more])


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for id in ("a", "b"):
        write_picture(folder / f"{id}.png")
        write_sound(folder / f"{id}.wav")
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:40])
    return folder


def test_a_plan_is_written_with_its_report(media: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(media, tmp_path) == 0
    said = capsys.readouterr().err
    assert "2 records written, 3 clips skipped" in said
    assert "2  picture missing" in said
    assert "1  cannot be decoded" in said
    folder = tmp_path / "toy"
    assert set(left_out(folder)) == {"toy__c", "toy__d", "toy__e"}
    assert notes(folder) == ["a fix", "1 records are dark"]
    data = EvalSet(folder / "toy-test.json", InputSpec(image_size=16, seconds=1.0))
    assert [r.id for r in sorted(data.records, key=lambda r: r.id)] == ["a", "b"]
    assert data.index.licence == "free"
    assert run(media, tmp_path, "--num-parts", "2", "--part", "1") == 1  # this part has no shard
    assert list(folder.glob("skipped-test-001.csv"))


@pytest.mark.parametrize("how", ["again", "killed", "in parts"])
def test_a_conversion_that_goes_on_keeps_what_it_counted(media: Path, tmp_path: Path, how: str) -> None:
    """The dark record may lie in a shard that another run, or another part, wrote."""
    small = ("--records-per-shard", "1")
    if how == "in parts":
        assert sorted(run(media, tmp_path, *small, "--num-parts", "3", "--part", str(p)) for p in range(3))[0] == 0
    else:
        assert run(media, tmp_path, *small) == 0
        if how == "killed":  # before the last shard and the index
            (tmp_path / "toy" / "toy-test.json").unlink()
            sorted((tmp_path / "toy" / ".parts").glob("toy-test-0*.json"))[-1].unlink()
        assert run(media, tmp_path, *small) == 0
    assert notes(tmp_path / "toy") == ["a fix", "1 records are dark"]


def test_a_dry_run_writes_nothing(media: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(media, tmp_path / "out", "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().err
    assert "toy-test: 3 records to write, 2 left out" in said
    assert "note: a fix" in said


def test_bad_options_are_named(media: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for more, says in (
        (["--part", "1"], "--part 1 must lie between"),
        (["--name", "Toy"], "--name Toy must be"),
        (["--med", "x"], "unrecognized arguments"),
    ):
        with pytest.raises(SystemExit):
            run(media, tmp_path, *more)
        assert says in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path / "no", tmp_path)
    assert "is not a folder" in capsys.readouterr().err


def test_pictures_keep_their_bytes(tmp_path: Path) -> None:
    for name, member in (("a.png", "f3.png"), ("a.jpg", "f3.jpg"), ("a.jpeg", "f3.jpg")):
        path = write_picture(tmp_path / name, 7)
        data, frame = picture(path, "f3", t=2.5)
        assert data == path.read_bytes()
        assert (frame.member, frame.width, frame.height, frame.src_width, frame.t) == (member, 32, 24, 32, 2.5)
    data, frame = picture(write_picture(tmp_path / "a.bmp", 7))
    assert frame.member == "f0.png"
    assert np.asarray(Image.open(io.BytesIO(data))).tolist() == np.full((24, 32, 3), 7).tolist()
    with pytest.raises(MediaError, match=r"picture missing: .*no.png"):
        picture(tmp_path / "no.png")
    (tmp_path / "bad.png").write_bytes(b"text")
    with pytest.raises(MediaError, match=r"bad.png cannot be decoded"):
        picture(tmp_path / "bad.png")


def test_sounds_become_flac_without_loss(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).integers(-32768, 32768, (800, 2)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="PCM_16")
    data, audio = sound(tmp_path / "a.wav", "a1", role="negative", src_id="x")
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(data), dtype="int16")[0], wave)
    assert (audio.member, audio.channels, audio.duration, audio.role) == ("a1.flac", 2, 0.05, "negative")


def test_sounds_are_resampled_by_channel_and_cut(tmp_path: Path) -> None:
    t = np.arange(44100 * 2) / 44100
    stereo = np.stack([0.5 * np.sin(2 * np.pi * 440 * t), 0.25 * np.cos(2 * np.pi * 220 * t)], 1)
    soundfile.write(tmp_path / "a.wav", stereo, 44100, subtype="FLOAT")
    data, audio = sound(tmp_path / "a.wav", seconds=1.5)
    wave, rate = soundfile.read(io.BytesIO(data))
    assert (rate, wave.shape, audio.duration, audio.channels) == (16000, (24000, 2), 1.5, 2)
    u = np.arange(24000) / 16000
    want = np.stack([0.5 * np.sin(2 * np.pi * 440 * u), 0.25 * np.cos(2 * np.pi * 220 * u)], 1)
    np.testing.assert_allclose(wave[100:-100], want[100:-100], atol=2e-3)


def test_broken_sounds_are_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(9, np.nan), 16000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no sound at all")
    for name, says in (
        ("no", "sound missing"),
        ("empty", "no samples"),
        ("nan", "NaN"),
        ("text", "cannot be decoded"),
    ):
        with pytest.raises(MediaError, match=says):
            sound(tmp_path / f"{name}.wav")


def test_video_files_are_heard_in_stereo(tmp_path: Path) -> None:
    from tests.data.clips import write_clip

    data, audio = sound(write_clip(tmp_path / "a.mp4", seconds=1.0))
    assert audio.channels == 2
    assert audio.duration == pytest.approx(1.0, abs=0.07)
    assert np.abs(soundfile.read(io.BytesIO(data))[0]).max() == pytest.approx(0.5, abs=0.1)


def test_masks_are_thresholded_never_dithered(tmp_path: Path) -> None:
    grey = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    path = write_mask(tmp_path / "grey.png", grey)
    np.testing.assert_array_equal(read_mask(path), grey > 127)
    np.testing.assert_array_equal(read_mask(path, above=0), grey > 0)
    indexed = np.array([[0, 1, 2, 3]])
    palette = write_mask(tmp_path / "p.png", indexed, palette=[255, 255, 255, 0, 0, 0] * 3)
    np.testing.assert_array_equal(read_mask(palette, above=0), indexed > 0)
    ones = write_mask(tmp_path / "ones.png", np.array([[0, 1]]))
    np.testing.assert_array_equal(read_mask(ones), [[False, True]])
    bits = write_mask(tmp_path / "bits.png", block(8, 8, size=64), "1")
    np.testing.assert_array_equal(read_mask(bits), block(8, 8, size=64) > 0)
    back = np.asarray(Image.open(io.BytesIO(mask_png(grey > 127))))
    np.testing.assert_array_equal(back, grey > 127)
    with pytest.raises(MediaError, match="mask missing"):
        read_mask(tmp_path / "no.png")


def test_boxes_are_clipped() -> None:
    assert clip_boxes([[0.1, -3e16, 0.5, 1.2]]) == ([[0.1, 0.0, 0.5, 1.0]], True)
    assert clip_boxes([[0, 0, 1, 1]]) == ([[0.0, 0.0, 1.0, 1.0]], False)
    assert clip_boxes([]) == ([], False)
    for bad in ([[0.1, 0.2, 0.3]], [[0.1, 0.2, 0.3, float("nan")]]):
        with pytest.raises(ValueError, match="not four numbers"):
            clip_boxes(bad)


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'x, y\r\na,"b, c"\r\n\r\nd,e')
    assert read_table(path, ("y",), header=True) == [{"x": "a", "y": "b, c"}, {"x": "d", "y": "e"}]
    assert read_table(path, ("p", "q", "r"))[1] == {"p": "a", "q": "b, c", "r": ""}
    assert read_ids(path) == {"x", "a", "d"}
    with pytest.raises(ValueError, match=r"t.csv has no column z"):
        read_table(path, ("z",), header=True)
    with pytest.raises(ValueError, match=r"t.csv, line 1: expected p, got"):
        read_table(path, ("p",))


def test_what_is_twice_or_unlisted_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list: 1 ids occur more than once \(b\)"):
        no_twins(["a", "b", "b"], "list")
    assert unlisted("toy", ["a", "b.c"], ["a"]) == [Skipped("toy__b-c", unannotated("picture"))]
    write_picture(tmp_path / "b.png")
    write_picture(tmp_path / "a.JPG")
    (tmp_path / "a.txt").write_text("")
    assert list(files_by_stem(tmp_path)) == ["a", "b"]
    assert files_by_stem(tmp_path / "no") == {}
    write_picture(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match="more than once"):
        files_by_stem(tmp_path)


def test_reasons_are_counted_without_their_files() -> None:
    assert kind_of("picture missing: /a/b: c") == "picture missing"
    assert kind_of("/a/b.wav cannot be decoded (x)") == "cannot be decoded"
    assert kind_of("no annotation row for this picture") == "no annotation row for this picture"


def test_flac_clips_floats() -> None:
    wave = soundfile.read(io.BytesIO(flac(np.array([2.0, -3.0, 0.5]))))[0]
    np.testing.assert_allclose(wave, [1, -1, 0.5], atol=1e-4)
