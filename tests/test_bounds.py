"""Every limit that is stated is kept, tells its name, and can be set."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avloc.bounds import LIMITS, BoundError, most, parsed_json
from avloc.data.decoding import decode_audio, decode_image
from avloc.data.lists import text_lines
from avloc.data.media import Library, MediaError, probe, read_sound
from avloc.data.schema import Record, SampleError, SchemaError
from avloc.methods.baselines.stored_maps import MapsError, read_map
from tests.data.clips import write_clip
from tests.data.make import jpeg, sample, sound

ROOT = Path(__file__).resolve().parents[1]


def test_none_is_stated_in_vain() -> None:
    code = "".join(p.read_text() for room in ("avloc", "data_prep") for p in (ROOT / room).rglob("*.py"))
    told_twice = 2  # in avloc.bounds itself
    assert {n for n in LIMITS if len(re.findall(rf'"{n}"', code)) <= told_twice} <= {"JSON_BYTES"}
    assert "parsed_json(" in code  # which JSON_BYTES is the limit of


def test_another_is_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVLOC_MOST_PIXELS", "7")
    assert most("PIXELS") == 7
    monkeypatch.setenv("AVLOC_MOST_PIXELS", "0")
    assert most("PIXELS") == float("inf")
    monkeypatch.setenv("AVLOC_MOST_PIXELS", "many")
    with pytest.raises(BoundError, match="AVLOC_MOST_PIXELS is 'many'"):
        most("PIXELS")


def test_pictures_and_sounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AVLOC_MOST_PIXELS", "100")
    with pytest.raises(SampleError, match=r"24 x 20 are more than 0\.0001 million"):
        decode_image(jpeg(5), "x")
    monkeypatch.setenv("AVLOC_MOST_SECONDS", "2")
    long = sound(np.zeros(3000))
    with pytest.raises(SampleError, match="h are more than"):
        decode_audio(long, "x", 1000)
    (tmp_path / "x.wav").write_bytes(sound(np.zeros(3000), format="WAV"))
    with pytest.raises(MediaError, match="h are more than"):
        read_sound(tmp_path / "x.wav")
    monkeypatch.setenv("AVLOC_MOST_SECONDS", "0")
    monkeypatch.setenv("AVLOC_MOST_SAMPLES", "2999")
    for read in (lambda: decode_audio(long, "x", 1000), lambda: read_sound(tmp_path / "x.wav")):
        with pytest.raises((SampleError, MediaError), match="AVLOC_MOST_SAMPLES sets another"):
            read()


def test_a_small_file_that_is_a_large_sound_takes_no_memory(tmp_path: Path) -> None:
    """Silence packs to nothing: an hour of eight channels is refused by what it says of itself."""
    path = tmp_path / "quiet.flac"
    with soundfile.SoundFile(path, "w", 96_000, 8, format="FLAC") as f:
        block = np.zeros((96_000, 8), np.int16)
        for _ in range(8):
            f.write(block)
    data = bytearray(path.read_bytes())
    place = data.index(b"fLaC") + 8 + 13  # the 36 bits of the number of samples end STREAMINFO's first 18 bytes
    data[place : place + 5] = bytes([data[place] & 0xF0, *(300_000_000).to_bytes(4, "big")])
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"AVLOC_MOST_SAMPLES|h are more than"):
        read_sound(path)


def test_records(monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads(sample(0).record.to_json())
    record["targets"] *= 1001
    with pytest.raises(SchemaError, match=r"targets: 1,001 entries, more than 1,000"):
        Record.from_json(json.dumps(record))
    monkeypatch.setenv("AVLOC_MOST_RECORD_BYTES", "100")
    with pytest.raises(SchemaError, match="AVLOC_MOST_RECORD_BYTES"):
        Record.from_json(json.dumps(record))
    with pytest.raises(ValueError, match="nested too deeply"):
        parsed_json("[" * 100_000)


def test_lists_maps_and_streams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a\n" * 100)
    np.savez_compressed(tmp_path / "map.npz", heatmap=np.zeros((1, 100, 100), np.float32))
    clip = write_clip(tmp_path / "clip.mp4", 0.3, size=(32, 32))
    monkeypatch.setenv("AVLOC_MOST_LIST_BYTES", "100")
    monkeypatch.setenv("AVLOC_MOST_MAP_VALUES", "1000")
    monkeypatch.setenv("AVLOC_MOST_STREAMS", "1")
    with pytest.raises(ValueError, match=r"list\.txt cannot be read as a list \(it has 200 bytes"):
        text_lines(tmp_path / "list.txt")
    with pytest.raises(MapsError, match=r"map\.npz cannot be read .*unpacks to 40,"):
        read_map(tmp_path / "map.npz")
    with pytest.raises(MediaError, match="2 streams, more than 1"):
        probe(clip)


def test_an_archive_that_unpacks_to_much_more_than_it_is_keeps_what_came_before(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 0.3, size=(32, 32)).read_bytes()
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in (("abcdefghijA_000001.mp4", clip), ("abcdefghijE_000002.mp4", bytes(8_000_000))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clips.tar.gz").write_bytes(gzip.compress(data.getvalue()))
    library = Library(tmp_path / "videos", tmp_path / "notes")
    assert library.find("abcdefghijA", 1.0)
    with pytest.raises(MediaError, match="video missing"):
        library.find("abcdefghijE", 2.0)
    assert "AVLOC_MOST_ARCHIVE_RATIO" in library.remarks[0]


def test_pictures_of_other_formats_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (8, 8)).save(path, "EPS")  # for which Pillow starts another program
    with pytest.raises(SampleError, match="cannot be decoded as a picture"):
        decode_image(path.read_bytes(), "x")
