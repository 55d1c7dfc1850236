from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from avloc.data.indexed import EvalSet
from data_prep import music_duet, music_solo
from data_prep.music import Row, music_target, read_rows, window
from tests.data_prep.loose import SPEC, areas, official, read, rectangle, skipped, write_picture, write_sound

SOLO, DUET = "music/music_solo.json", "music/music_duet.json"


def test_the_official_lists() -> None:
    solo, duet = read_rows(official(SOLO), 1), read_rows(official(DUET), 2)
    assert (len(solo), len(duet)) == (2124, 1020)
    assert (len({r.video for r in solo}), len({r.video for r in duet})) == (20, 6)
    boxes = np.array([b for r in solo + duet for b in r.boxes])
    assert len(boxes) == 2124 + 2 * 1020
    assert (boxes[:, :2] + boxes[:, 2:] <= 1).all()
    labels = Counter(r.labels[0] for r in solo)
    assert labels == dict(flute=918, saxophone=558, accordion=454, trumpet=180, cello=8, acoustic_guitar=5, violin=1)
    assert Counter(r.labels for r in duet)["cello", "acoustic_guitar"] == 1012
    keys = {r[0]: r[1] for r in csv.reader(official("music/music_solo_test.csv").open())}
    assert keys == {r.key: r.labels[0] for r in solo}
    # All frames of the test sets are at 30 fps, so that their time is known.
    assert {int(30 * r.time + 0.5) % 30 for r in solo + duet} == {0, 7, 14, 21}
    assert all(int(r.time + 1e-9) == int(r.key[12:15]) for r in solo + duet)


def test_areas_in_both_readings() -> None:
    # Counted from the annotation files by another script; unrounded boxes would give 0.1202, 0.0412 and 0.0648 for
    # three.
    solo, duet = read_rows(official(SOLO), 1), read_rows(official(DUET), 2)

    def stats(rows: list[Row], source: int, as_published: bool) -> np.ndarray:
        return areas([music_target(r.labels[source], r.boxes[source], as_published) for r in rows])

    area = stats(solo, 0, False)
    assert round(area[0] * 224**2) == 10070
    np.testing.assert_allclose([area.mean(), area.std()], [0.1889, 0.1203], atol=5e-5)
    assert (area > 0).all()
    corners = stats(solo, 0, True)
    assert round(corners.mean(), 4) == 0.0253
    assert round((corners == 0).mean(), 3) == 0.776
    for source, mean, std, mean_of_corners, empty in (
        (0, 0.1667, 0.0313, 0.0411, 0.011),
        (1, 0.0649, 0.0098, 1e-4, 0.996),
    ):
        area, corners = stats(duet, source, False), stats(duet, source, True)
        np.testing.assert_allclose([area.mean(), area.std()], [mean, std], atol=5e-5)
        assert round(corners.mean(), 4) == mean_of_corners
        assert round((corners == 0).mean(), 3) == empty


def test_the_first_solo_box() -> None:
    row = read_rows(official(SOLO), 1)[0]
    target = music_target(row.labels[0], row.boxes[0], False)
    x0, y0, x1, y1 = (int(224 * v) for v in target.boxes[0])
    assert (x0, y0, x1, y1) == (73, 27, 126, 217)  # columns 73..125, rows 27..216
    assert (target.raw_format, target.boxes_raw) == ("xywh_norm", [list(row.boxes[0])])


def test_training_lists() -> None:
    solo, duet = official("music/music_solo_train.txt"), official("music/music_duet_train.txt")
    assert read_rows(solo, 1)[0] == Row("E7E1kMExVcg_053_01611", ("flute",))
    assert read_rows(duet, 2)[0] == Row("K_U5-GbPgi0_098_02961", ("cello", "acoustic_guitar"))
    assert read_rows(solo, 1)[0].time == pytest.approx(53.7)
    other_rate = [r for r in read_rows(solo, 1) if r.key == "OxA5Z_5-w0E_098_01274"]
    assert [r.time for r in other_rate] == [98.5]  # 13 fps


def test_window() -> None:
    assert window(20.0, 60.0, as_published=False) == (15.0, 10.0)
    assert window(1.0, 60.0, as_published=False) == (0.0, 6.0)
    assert window(58.0, 60.0, as_published=False) == (53.0, 7.0)
    assert window(1.0, 60.0, as_published=True) == (25.0, 10.0)
    assert window(1.0, 6.0, as_published=True) == (0.0, 6.0)
    assert window(70.0, 60.0, as_published=False)[1] < 0


ROWS = [
    {"file": "-_-TDDxoaAc_020_00607", "class": "cello", "bbox": [0.25, 0.125, 0.25, 0.5]},
    {"file": "-_-TDDxoaAc_001_00030", "class": "cello", "bbox": [0.0, 0.0, 0.5, 0.25]},
    {"file": "-_-TDDxoaAc_099_02970", "class": "cello", "bbox": [0.0, 0.0, 0.5, 0.25]},  # after the end
    {"file": "4Oy5VmaacaI_001_00037", "class": "flute", "bbox": [0.5, 0.5, 0.75, 0.25]},  # no sound
]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return lay_out(tmp_path)


def lay_out(folder: Path) -> Path:
    """Forty seconds whose samples tell the second that they are of."""
    for n, row in enumerate(ROWS):
        write_picture(folder / "media" / "frames" / f"{row['file']}.jpg", 50 * n)
    (folder / "solo.json").write_text(json.dumps(ROWS))
    write_sound(folder / "media" / "audio" / "-_-TDDxoaAc.wav")
    wave = np.repeat(np.arange(40) / 50, 16000)
    soundfile.write(folder / "media" / "audio" / "-_-TDDxoaAc.wav", wave, 16000, subtype="PCM_16")
    return folder


def add_duet(folder: Path, row: dict[str, Any]) -> None:
    """The list, picture and sound of a row of ``music_duet.json``."""
    (folder / "duet.json").write_text(json.dumps([row]))
    write_picture(folder / "media" / "frames" / f"{row['file']}.jpg", 77)
    write_sound(folder / "media" / "audio" / f"{row['file'][:11]}.wav", 0.5, seconds=12)


def options(folder: Path, table: str, *more: str) -> list[str]:
    folders = ["--media", str(folder / "media"), "--annotations", str(folder / table), "--out", str(folder)]
    return [*folders, "--jobs", "1", *more]


def test_solo(release: Path) -> None:
    assert music_solo.main(options(release, "solo.json")) == 0
    data = read(release, "music_solo")
    found = {r.id: (r, data[i]) for i, r in enumerate(data.records)}
    assert set(found) == {"-_-TDDxoaAc_020_00607", "-_-TDDxoaAc_001_00030"}
    record, item = found["-_-TDDxoaAc_020_00607"]
    np.testing.assert_array_equal(item.truth, [rectangle(56, 28, 112, 140)])
    audio = record.audios[0]
    assert audio.clip_start == pytest.approx(607 / 30 - 5)
    assert (audio.duration, audio.src_id, audio.role) == (pytest.approx(10, abs=1e-3), "-_-TDDxoaAc", "source")
    np.testing.assert_allclose(item.audio[8000], 15 / 50, atol=1e-3)  # half a second after 15.23 s
    assert (record.label, record.video, record.frames[0].t) == ("cello", "-_-TDDxoaAc", pytest.approx(607 / 30))
    assert found["-_-TDDxoaAc_001_00030"][0].audios[0].duration == pytest.approx(6.0)
    assert skipped(release, "music_solo") == {
        "-_-TDDxoaAc_099_02970": "sound ends early",
        "4Oy5VmaacaI_001_00037": "sound missing",
    }
    notes = json.loads((release / "music_solo" / "music_solo-test.json").read_text())["notes"]
    assert notes[0] == "4 frames of 2 videos"
    assert [n.partition(":")[0] for n in notes[1:]] == ["fix xywh", "fix clip_boxes", "fix window"]


def test_sounds_at_another_rate(release: Path) -> None:
    assert music_solo.main(options(release, "solo.json", "--rate", "44100")) == 0
    data = EvalSet(release / "music_solo" / "music_solo-test.json", replace(SPEC, sample_rate=44100))
    place = [r.id for r in data.records].index("-_-TDDxoaAc_020_00607")
    assert data.records[place].audios[0].rate == 44100
    np.testing.assert_allclose(data[place].audio[22050], 15 / 50, atol=1e-3)  # half a second after 15.23 s


def test_solo_as_published(release: Path) -> None:
    assert music_solo.main(options(release, "solo.json", "--as-published")) == 0
    data = read(release, "music_solo")
    found = {r.id: (r, data[i]) for i, r in enumerate(data.records)}
    empty = found["-_-TDDxoaAc_020_00607"][1].truth
    assert empty is not None
    assert empty.sum() == 0  # 0.25 to 0.25: no width
    record, item = found["-_-TDDxoaAc_099_02970"]  # heard, though its sound is over: the middle of the video is there
    np.testing.assert_array_equal(item.truth, [rectangle(0, 0, 112, 56)])
    assert {r.audios[0].clip_start for r, _ in found.values()} == {15.0}
    assert record.tags == ["as_published"]
    assert record.provenance.note.endswith("as published")
    notes = json.loads((release / "music_solo" / "music_solo-test.json").read_text())["notes"]
    assert "as published: boxes are read as corners, which leaves 2 of 4 maps empty" in notes


def test_duet(release: Path) -> None:
    raw = json.loads(official(DUET).read_text())[:1]
    add_duet(release, raw[0])
    assert music_duet.main(options(release, "duet.json")) == 0
    data = read(release, "music_duet")
    (record,) = data.records
    expected = []
    for source in ("bbox_src1", "bbox_src2"):
        x, y, w, h = raw[0][source]
        expected.append(rectangle(*(int(224 * v) for v in (x, y, x + w, y + h))))
    np.testing.assert_array_equal(data[0].truth, expected)
    assert [t.audio for t in record.targets] == [0, 0]
    assert ([a.role for a in record.audios], len(record.frames)) == (["mixture"], 1)
    assert data[0].label == ["cello", "acoustic_guitar"]
    np.testing.assert_allclose(data[0].audio, 0.5, atol=1e-3)


def test_training_frames(release: Path) -> None:
    (release / "train.txt").write_text("-_-TDDxoaAc_020_00607,cello\n-_-TDDxoaAc_001_00030,cello")
    assert music_solo.main(options(release, "train.txt")) == 0
    data = read(release, "music_solo", "train")
    assert [(r.split, r.map_rule, r.label, r.targets[0].boxes) for r in data.records] == [
        ("train", "none", "cello", [])
    ] * 2


def test_wrong_lists_are_named(release: Path, capsys: pytest.CaptureFixture) -> None:
    row = ROWS[0]
    for rows, says in (
        ([row, row], "more than once (-_-TDDxoaAc_020_00607)"),
        ([row | {"class": "theremin"}], "has the class 'theremin'"),
        ([row | {"file": "short_1_2"}], "'short_1_2' is not <YouTube id>"),
        ([row | {"bbox": [0, 0, 1]}], "row 0 (-_-TDDxoaAc_020_00607): a box is not four finite numbers"),
        ([{"file": row["file"]}], "row 0: fields missing or wrong (KeyError: 'class')"),
    ):
        (release / "bad.json").write_text(json.dumps(rows))
        with pytest.raises(SystemExit):
            music_solo.main(options(release, "bad.json"))
        assert says in capsys.readouterr().err
    with pytest.raises(SystemExit):
        music_duet.main(options(release, "solo.json"))
    assert "KeyError: 'class_src1'" in capsys.readouterr().err
