from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avloc.data.labels import LABEL_SPACES
from data_prep import vpo_ms, vpo_ss
from data_prep.sslalign import box_target, read_annotations
from tests.data_prep.loose import areas, official, read, rectangle, skipped, write_picture, write_sound


@pytest.mark.parametrize(
    ("name", "rows", "sizes", "stats", "tiny", "least"),
    [
        ("vpo_ss", 890, {1: 890}, [0.2716, 0.2763, 0.1796], 0.161, 3),
        ("vpo_ms", 2157, {1: 759, 2: 623, 3: 49, 5: 1}, [0.2594, 0.2700, 0.1602], 0.141, 1),
    ],
)
def test_the_official_lists(
    name: str, rows: int, sizes: dict[int, int], stats: list[float], tiny: float, least: int
) -> None:
    found = read_annotations(official(f"vpo/{name}_bbox.json"))
    assert len(found) == rows
    assert Counter(Counter(a.group for a in found).values()) == sizes
    area = areas([box_target(a.box) for a in found])
    np.testing.assert_allclose([area.mean(), area.std(), np.median(area)], stats, atol=5e-5)
    assert round((area < 0.01).mean(), 3) == tiny
    assert (area == 0).sum() == (2 if name == "vpo_ms" else 0)
    assert round(area[area > 0].min() * 224**2) == least
    example = [a for a in found if a.stem == "000000489267_157452"]
    assert [round(x * 224**2) for x in areas([box_target(a.box) for a in example])] == [120] * len(example)
    masks = read_annotations(official(f"vpo/{name}_seg.json"))
    assert [a.stem for a in masks] == [a.stem for a in found]
    assert {a.box for a in masks} == {None}


def test_both_lists_share_stems() -> None:
    both = [{a.stem for a in read_annotations(official(f"vpo/vpo_{k}_bbox.json"))} for k in ("ss", "ms")]
    assert len(both[0] & both[1]) == 104


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """SSLalignment's layout with real rows: a group of five, one of three, a single one, and an all-zero box."""
    rows = json.loads(official("vpo/vpo_ms_bbox.json").read_text())
    groups = Counter(Path(r["image"]).stem.partition("_")[0] for r in rows)
    wanted = {next(g for g, n in groups.items() if n == size) for size in (1, 3, 5)} | {"000000261323"}
    return lay_out(tmp_path, [r for r in rows if Path(r["image"]).stem.partition("_")[0] in wanted])


def lay_out(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """SSLalignment's layout of these rows."""
    media = folder / "media"
    (media / "gray_masks").mkdir(parents=True)
    (folder / "list.json").write_text(json.dumps(rows))
    for n, row in enumerate(rows):
        stem = Path(row["image"]).stem
        write_picture(media / "visual_frames" / f"{stem}.jpg", 20 * n)
        write_sound(media / "audio_wav" / f"{stem}.wav", n / 20)
        mask = Image.fromarray((255 * rectangle(*map(int, row["gt_box"]))).astype(np.uint8))
        mask.save(media / "gray_masks" / f"{stem}.jpg", quality=90)
    return folder


def convert(folder: Path, *options: str) -> int:
    common = ["--media", str(folder / "media"), "--annotations", str(folder / "list.json"), "--out", str(folder)]
    return vpo_ms.main([*common, "--jobs", "1", *options])


@pytest.mark.parametrize("truth", ["box", "mask"])
def test_groups_and_true_groups(release: Path, truth: str) -> None:
    assert convert(release, "--truth", truth) == 0
    name = "vpo_ms" if truth == "box" else "vpo_ms_seg"
    rows = {Path(r["image"]).stem: r["gt_box"] for r in json.loads((release / "list.json").read_text())}
    sizes = Counter(s.partition("_")[0] for s in rows)
    data = read(release, name)
    assert {r.id for r in data.records} == set(rows)
    for i, record in enumerate(data.records):
        expected = rectangle(*map(int, rows[record.id]))
        np.testing.assert_array_equal(data[i].truth, [expected])
        assert (record.group, record.group_size) == (record.id[:12], sizes[record.id[:12]])
        assert record.tags == (["true_group"] if record.group_size > 1 else [])
        assert record.targets[0].class_id == -1
    grouped = read(release, name, tags=("true_group",))
    assert len(grouped) == sum(n for n in sizes.values() if n > 1) < len(data)
    notes = json.loads((release / name / f"{name}-test.json").read_text())["notes"]
    assert any(n.startswith("1 boxes are empty (000000261323_2064868)") for n in notes)


@pytest.fixture
def cavp(tmp_path: Path) -> Path:
    """CAVP's layout of VPO-MS: one picture and one index map for two rows, and a row of the training split."""
    (tmp_path / "list.csv").write_text(
        "cateName,cateId,img_Id,ann_Ids,vgg_file,split\n"
        "male,92,489267,157452,-abcdefghij_30000_40000,val\n"
        "cell phone,77,489267,99,klmnopqrstu_0_10000,val\n"
        "dog,18,41772,159191,vwxyzabcdef_0_10000,test\n"
        "dog,18,5,6,vwxyzabcdef_0_10000,train\n"
    )
    write_picture(tmp_path / "media" / "data" / "000000489267.jpg", 50)
    write_picture(tmp_path / "media" / "data" / "000000041772.jpg", 60)
    index = np.zeros((40, 48), np.uint8)
    index[:20, :24], index[20:, 24:], index[20:, :24] = 92, 77, 255
    (tmp_path / "media" / "mask").mkdir()
    Image.fromarray(index).save(tmp_path / "media" / "mask" / "000000489267.png")
    for name in ("-abcdefghij_30000_40000", "klmnopqrstu_0_10000", "vwxyzabcdef_0_10000"):
        write_sound(tmp_path / "vgg" / f"{name}.wav")
    return tmp_path


def test_the_layout_of_cavp(cavp: Path) -> None:
    options = ["--media", str(cavp / "media"), "--annotations", str(cavp / "list.csv"), "--out", str(cavp)]
    options += ["--jobs", "1", "--truth", "mask", "--sounds", str(cavp / "vgg")]
    assert vpo_ms.main(options) == 0
    data = read(cavp, "vpo_ms_seg")
    found = {r.id: (r, data[i]) for i, r in enumerate(data.records)}
    male, item = found["000000489267_157452"]
    np.testing.assert_array_equal(item.truth, [rectangle(0, 0, 112, 112)])
    assert (male.tags, male.group, male.group_size) == (["true_group"], "000000489267", 2)
    assert LABEL_SPACES["coco_vpo22"][male.targets[0].class_id] == "male"
    assert male.audios[0].src_id == "-abcdefghij_30000_40000"
    phone, item = found["000000489267_99"]
    np.testing.assert_array_equal(item.truth, [rectangle(112, 112, 224, 224)])
    assert phone.label == "cell phone"
    assert len(found) == 2
    assert skipped(cavp, "vpo_ms_seg") == {"000000041772_159191": "mask missing"}


def test_single_source_masks_lie_in_folders_of_their_class(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("cateName,cateId,img_Id,ann_Ids,vgg_file,split,x\ncar,3,62491,432356,a,val,0\n")
    write_picture(tmp_path / "media" / "data" / "car" / "000000062491.jpg", 50)
    index = np.zeros((40, 48), np.uint8)
    index[:, 24:] = 3
    (tmp_path / "media" / "mask" / "car").mkdir(parents=True)
    Image.fromarray(index).save(tmp_path / "media" / "mask" / "car" / "000000062491_000000432356.png")
    write_sound(tmp_path / "vgg" / "a.wav")
    options = ["--media", str(tmp_path / "media"), "--annotations", str(tmp_path / "list.csv"), "--jobs", "1"]
    options += ["--out", str(tmp_path), "--truth", "mask", "--sounds", str(tmp_path / "vgg")]
    assert vpo_ss.main(options) == 0
    (item,) = [data[0] for data in [read(tmp_path, "vpo_ss_seg")]]
    np.testing.assert_array_equal(item.truth, [rectangle(112, 0, 224, 224)])


@pytest.mark.parametrize(
    ("line", "options", "says"),
    [
        ("dog,18,1,2,a,val", ["--truth", "box"], "give --truth mask and --sounds FOLDER"),
        ("dog,x,1,2,a,val", ["--truth", "mask"], "cateId 'x' of image 1 is not a class number"),
        ("../..,18,1,2,a,val", ["--truth", "mask"], "leads out of"),
        ("dog,18,1,2,a,val\ndog,18,1,2,b,val", ["--truth", "mask"], "more than once (000000000001_2)"),
    ],
)
def test_wrong_csvs_are_named(line: str, options: list[str], says: str, cavp: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    (cavp / "list.csv").write_text(f"cateName,cateId,img_Id,ann_Ids,vgg_file,split\n{line}\n")
    common = ["--media", str(cavp / "media"), "--annotations", str(cavp / "list.csv"), "--out", str(cavp)]
    with pytest.raises(SystemExit):
        vpo_ms.main([*common, "--sounds", str(cavp / "vgg"), *options])
    assert says in capsys.readouterr().err
