from __future__ import annotations

import json
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avloc.data.index import read_index, read_shard
from data_prep.is3 import CLASSES, classify, main
from data_prep.sslalign import box_target, read_annotations
from tests.data_prep.loose import areas, official, read, rectangle, skipped, write_picture, write_sound


def test_the_official_list() -> None:
    found = read_annotations(official("is3/synthetic3240_bbox.json"))
    assert len(found) == 6480
    assert Counter(Counter(a.group for a in found).values()) == {2: 3240}
    assert {a.stem.rpartition("_")[2] for a in found} == set(CLASSES)
    assert list(CLASSES) == sorted(CLASSES)
    assert len(CLASSES) == 111
    labels = Counter(classify(a.stem)[1] for a in found)
    assert labels["baby"] == 201
    assert sum(n == 1 for n in labels.values()) == 15
    area = areas([box_target(a.box) for a in found])
    assert round(area[0] * 224**2) == 9202
    assert (area > 0).all()
    np.testing.assert_allclose([area.mean(), area.std(), np.median(area)], [0.3275, 0.2046, 0.2950], atol=5e-5)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Four real scenes, among them one without a number and one with spaces; the sound of one row is missing."""
    rows = json.loads(official("is3/synthetic3240_bbox.json").read_text())
    scenes = ("accordion_female_10438", "fox_train", "babylaughter_electric grinder grinding")
    chosen = [r for r in rows if Path(r["image"]).stem.rpartition("_")[0] in scenes]
    cut = [r for r in rows if Path(r["image"]).stem.startswith("parrot_ukulele_1635_")]
    assert len(chosen) + len(cut) == 8
    return lay_out(tmp_path, chosen + cut)


def lay_out(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """SSLalignment's layout of these rows, and a picture that has none; ukuleles are mute."""
    media = folder / "IS3"
    media.mkdir(parents=True)
    (folder / "list.json").write_text(json.dumps(rows))
    for n, row in enumerate(rows):
        stem = Path(row["image"]).stem
        write_picture(media / "images" / f"{stem}.jpg", 10 * n)
        if not stem.endswith("_ukulele"):
            write_sound(media / "audio_wav" / f"{stem}.wav", n / 10)
        x0, y0, x1, y1 = map(int, row["gt_box"])
        mask = Image.fromarray((255 * rectangle(x0, y0, x1, y1)).astype(np.uint8))
        (media / "gt_segmentation").mkdir(exist_ok=True)
        mask.save(media / "gt_segmentation" / f"{stem}.jpg", quality=60)
    write_picture(media / "images" / "nobody_knows_1_this.jpg", 0)
    return folder


def convert(folder: Path, *options: str) -> int:
    common = ["--media", str(folder / "IS3"), "--annotations", str(folder / "list.json"), "--out", str(folder)]
    return main([*common, "--jobs", "1", *options])


def test_boxes_and_groups(release: Path, capsys: pytest.CaptureFixture) -> None:
    assert convert(release, "--records-per-shard", "3") == 0
    truth = {Path(r["image"]).stem: r["gt_box"] for r in json.loads((release / "list.json").read_text())}
    data = read(release, "is3")
    assert {r.id for r in data.records} == {s for s in truth if not s.endswith("_ukulele")}
    for i, record in enumerate(data.records):
        item = data[i]
        np.testing.assert_array_equal(item.truth, [rectangle(*map(int, truth[record.id]))])
        assert record.group_size == 2
        assert record.label == record.id.split("_")[-1] == CLASSES[record.targets[0].class_id]
        assert (record.tags, record.targets[0].boxes_raw) == ([], [truth[record.id]])
    assert skipped(release, "is3") == {
        "parrot_ukulele_1635_ukulele": "sound missing",
        "nobody_knows_1_this": "no annotation row for this picture",
    }
    index = read_index(release / "is3" / "is3-test.json")
    shards = [list(read_shard(index.locate(i))) for i in range(len(index.shards))]
    runs = [g for shard in shards for g, _ in groupby(json.loads(r["meta.json"])["group"] for r in shard)]
    assert len(runs) == len(set(runs)) == 4  # side by side, and in one shard: it takes a pair, not a half of another
    assert len(shards) >= 3
    said = capsys.readouterr().err
    assert "1 groups lack members whose media are missing (parrot_ukulele_1635" in said


def test_jpeg_masks_are_cut_at_128(release: Path) -> None:
    assert convert(release, "--truth", "mask") == 0
    truth = {Path(r["image"]).stem: r["gt_box"] for r in json.loads((release / "list.json").read_text())}
    data = read(release, "is3_seg")
    rings = 0
    for i, record in enumerate(data.records):
        clean = rectangle(*map(int, truth[record.id]))
        np.testing.assert_array_equal(data[i].truth, [clean])
        stored = np.asarray(Image.open(release / "IS3" / "gt_segmentation" / f"{record.id}.jpg"))
        rings += int(((stored > 0) != clean).sum())
    assert rings > 100  # what a threshold of 0 would add


def test_dry_run_writes_nothing(release: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(release.rglob("*"))
    assert convert(release, "--dry-run") == 0
    assert sorted(release.rglob("*")) == before
    count = len(json.loads((release / "list.json").read_text())) - 1
    assert f"is3-test: {count} records to write, 2 left out" in capsys.readouterr().err


def test_boxes_beyond_the_grid_are_clipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [{"image": f"/x/a_b_{c}.jpg", "audio": f"/x/a_b_{c}.wav", "gt_box": [200, 100, 230, 150]} for c in "bc"]
    rows[1]["gt_box"] = [0.0, 0.0, 0.0, 0.0]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    for c in "bc":
        write_picture(tmp_path / "IS3" / "images" / f"a_b_{c}.png", 9)
        write_sound(tmp_path / "IS3" / "audio_wav" / f"a_b_{c}.wav")
    assert convert(tmp_path) == 0
    data = read(tmp_path, "is3")
    np.testing.assert_array_equal(data[0].truth, [rectangle(200, 100, 224, 150)])
    assert data[1].truth is not None
    assert data[1].truth.sum() == 0
    notes = json.loads((tmp_path / "is3" / "is3-test.json").read_text())["notes"]
    assert notes[0].startswith("fix clip_boxes: 1 boxes leave the 224 grid")
    assert notes[1].startswith("1 boxes are empty (a_b_c)")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"image": "a_b.jpg", "audio": "a_b.wav", "gt_box": [0, 0, 1, 1]}] * 2, "1 ids occur more than once (a_b)"),
        ([{"image": "a_b.jpg", "audio": "a_c.wav", "gt_box": [0, 0, 1, 1]}], "must share a stem"),
        ([{"image": "a_b.jpg", "audio": "a_b.wav", "gt_box": [0, 0, 1]}], "row 0 (a_b): gt_box [0, 0, 1] is neither"),
        ([{"image": "a_b.jpg", "audio": "a_b.wav", "gt_box": [0, 0, 1, float("nan")]}], "is not finite"),
        ([{"image": "a_b.jpg", "gt_box": [0, 0, 1, 1]}], "rows must have image, audio, gt_box"),
        ([{"image": "a_b.jpg", "audio": "a_b.wav", "gt_box": "a_b.jpg"}], "names masks, not boxes"),
        ({}, "is not an array of objects"),
    ],
)
def test_wrong_lists_are_named(rows: object, says: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_picture(tmp_path / "IS3" / "images" / "a_b.png", 9)
    write_sound(tmp_path / "IS3" / "audio_wav" / "a_b.wav")
    (tmp_path / "list.json").write_text(json.dumps(rows))
    with pytest.raises(SystemExit):
        convert(tmp_path)
    assert says in capsys.readouterr().err


def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "IS3").mkdir()
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(SystemExit):
        convert(tmp_path)
    assert "holds no folder images or visual_frames with the pictures" in capsys.readouterr().err
