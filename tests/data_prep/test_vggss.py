from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from avloc.data.indexed import EvalSet
from avloc.data.schema import Record, Sample
from avloc.data.truth import truth_maps
from avloc.types import InputSpec
from data_prep.tables import read_ids, read_table
from data_prep.vggsound import read_boxes, vggss_target
from data_prep.vggss import clip_key, main
from tests.data_prep.little import ANNOTATIONS, left_out, needs_annotations, notes, write_picture, write_sound

SPEC = InputSpec(image_size=16, seconds=1.0)
CLIPS = {
    "-abcdefghi0_000030": [[0.25, 0.25, 0.5, 0.75]],
    "_bc_efghi_1_000107": [[0.5, -2.88e16, 1, 0.5]],
    "cdefghijkl2_000000": [[0, 0, 1, 1]],
}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    return loose_vggss(tmp_path / "media")


def loose_vggss(folder: Path) -> Path:
    """The second clip is spelled in milliseconds, the third has no sound, and a fourth no annotation."""
    rows = [{"file": id, "class": f"class {i}", "bbox": boxes} for i, (id, boxes) in enumerate(CLIPS.items())]
    folder.mkdir(parents=True)
    (folder / "vggss.json").write_text(json.dumps(rows))
    for name in ("-abcdefghi0_000030", "_bc_efghi_1_107000_117000", "cdefghijkl2_000000", "defghijklm3_000001"):
        write_picture(folder / "frames" / f"{name}.jpg")
        if name[0] != "c":
            write_sound(folder / "audio" / f"{name}.wav")
    return folder


def convert(media: Path, out: Path, *more: str) -> int:
    common = ["--media", str(media), "--boxes", str(media / "vggss.json"), "--out", str(out), "--jobs", "1"]
    return main([*common, *more])


def heard_and_unheard(media: Path) -> list[str]:
    (media / "heard.csv").write_text('-abcdefghi0_000030,"class, 0"')
    (media / "unheard.csv").write_text("_bc_efghi_1_000107")
    return ["--heard", str(media / "heard.csv"), "--unheard", str(media / "unheard.csv")]


def test_loose_media_become_the_set(media: Path, tmp_path: Path) -> None:
    assert convert(media, tmp_path, *heard_and_unheard(media)) == 0
    data = EvalSet(tmp_path / "vggss" / "vggss-test.json", SPEC)
    found = {r.id: (r, data[i].truth) for i, r in enumerate(data.records)}
    assert set(found) == {"-abcdefghi0_000030", "_bc_efghi_1_000107"}
    first, truth = found["-abcdefghi0_000030"]
    assert (first.tags, first.video, first.audios[0].clip_start) == (["heard"], "-abcdefghi0", 30.0)
    assert (first.frames[0].t, first.frames[0].member) == (5.0, "f0.jpg")
    want = np.zeros((224, 224))
    want[56:168, 56:112] = 1
    np.testing.assert_array_equal(truth, [want])
    second, truth = found["_bc_efghi_1_000107"]
    assert (second.tags, second.targets[0].boxes_raw) == (["unheard"], None)
    assert truth is not None
    assert truth[0, :112, 112:].all()
    assert truth.sum() == 112 * 112
    assert left_out(tmp_path / "vggss") == {
        "vggss__cdefghijkl2_000000": "sound missing",
        "vggss__defghijklm3_000001": "no annotation row for this picture",
    }
    assert notes(tmp_path / "vggss")[0].startswith("fix clip_boxes: 1 records")


def test_lists_in_milliseconds(media: Path, tmp_path: Path) -> None:
    (media / "ours.txt").write_text("_bc_efghi_1_107000_117000\nxyzdefghij9_0_10000\n")
    assert convert(media, tmp_path, "--list", str(media / "ours.txt"), "--name", "vggss_ours", "--as-published") == 0
    data = EvalSet(tmp_path / "vggss_ours" / "vggss_ours-test.json", SPEC, tags=("as_published",))
    assert [r.id for r in data.records] == ["_bc_efghi_1_000107"]
    assert left_out(tmp_path / "vggss_ours")["vggss_ours__xyzdefghij9_000000"] == "no annotation row"


def test_ids_that_match_nothing_are_named(media: Path, tmp_path: Path) -> None:
    (media / "tag.txt").write_bytes(b"\xef\xbb\xbf-abcdefghi0_30.mp4\r\nxyzdefghij9_0_10000\r\nno id\r\n")
    heard = media / "heard.csv"
    heard.write_text("cdefghijkl2_0,class 2\nzyxdefghij9_000005,class 9\n")
    assert convert(media, tmp_path, "--tag", f"mine={media / 'tag.txt'}", "--heard", str(heard)) == 0
    said = notes(tmp_path / "vggss")
    assert "2 ids of the list of the tag mine match nothing (no id, xyzdefghij9_000000). Is it" in " ".join(said)
    assert "1 ids of the list of the tag heard match nothing (zyxdefghij9_000005)" in " ".join(said)
    records = EvalSet(tmp_path / "vggss" / "vggss-test.json", SPEC).records
    assert {r.id: r.tags for r in records}["-abcdefghi0_000030"] == ["mine"]


def test_keys() -> None:
    assert clip_key("zpWuikVorYg_32000_42000") == clip_key("zpWuikVorYg_000032") == "zpWuikVorYg_000032"
    assert clip_key("__1_2_3_4_5_30") == "__1_2_3_4_5_000030"
    with pytest.raises(ValueError, match="'short_1' is neither"):
        clip_key("short_1")


def test_an_id_that_occurs_twice_is_named(media: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    row = {"file": "cdefghijkl2_000000", "class": "x", "bbox": [[0, 0, 1, 1]]}
    (media / "vggss.json").write_text(json.dumps([row, row]))
    with pytest.raises(SystemExit):
        convert(media, tmp_path)
    assert "cdefghijkl2_000000" in capsys.readouterr().err


@needs_annotations
def test_the_published_annotations() -> None:
    boxes = read_boxes(ANNOTATIONS / "vggss" / "vggss.json")
    raw = [b for _, bs in boxes.values() for b in bs]
    labels = {label for label, _ in boxes.values()}
    assert (len(boxes), len(labels), len(raw)) == (5158, 221, 5941)
    assert sum(any(not 0 <= v <= 1 for b in bs for v in b) for _, bs in boxes.values()) == 12
    area = {}
    for id, (label, bs) in boxes.items():
        record = Record("vggss", id, targets=[vggss_target(0, label, bs)], map_rule="union")
        area[id] = float(truth_maps(Sample(record, {}), 0).mean())  # type: ignore[union-attr]
    assert {id for id, a in area.items() if a == 0} == {"M1P1xla8rg0_000000", "MKC9LvRivTM_000030"}
    assert np.mean(list(area.values())) == pytest.approx(0.3124, abs=5e-5)
    assert np.std(list(area.values())) == pytest.approx(0.2342, abs=5e-5)
    assert area["zpWuikVorYg_000032"] == pytest.approx(4928 / 224**2)
    assert area["ORaz32CQ29k_000130"] == pytest.approx(19556 / 224**2)
    for folder in ("vggss", "vggss_onecolumn"):
        sets = [read_ids(ANNOTATIONS / folder / f"vggss_{which}test.csv") for which in ("", "heard_", "unheard_")]
        assert [len(s) for s in sets] == [5158, 2564, 2575]
        assert sets[0] == set(boxes)
        assert not sets[1] & sets[2]
        rest = sets[0] - sets[1] - sets[2]
        assert (len(rest), {boxes[id][0] for id in rest}) == (19, {"singing choir"})
    rows = read_table(ANNOTATIONS / "vggss" / "vggss_test.csv", ("id", "label"))
    assert {r["id"]: r["label"] for r in rows} == {id: label for id, (label, _) in boxes.items()}
    assert sum("," in label for label in labels) == 19
    ours = read_ids(ANNOTATIONS / "vggss" / "ours_vggss.txt")
    assert len(ours) == len({clip_key(id) for id in ours} & set(boxes)) == 4655


def test_boxes_that_are_nested_without_end_are_told(tmp_path: Path) -> None:
    (tmp_path / "vggss.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"is not VGG-SS's vggss\.json .*nested too deeply"):
        read_boxes(tmp_path / "vggss.json")
