from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from avloc.data.indexed import EvalSet
from avloc.types import InputSpec
from data_prep import flickr_ext, vggss_ext
from data_prep.extended import NegativeRow, notes, read_negatives
from data_prep.vggsound import read_boxes
from tests.data_prep import little
from tests.data_prep.little import ANNOTATIONS, left_out, needs_annotations, write_picture, write_sound
from tests.data_prep.test_flickr import WORKED, write_xml

SPEC = InputSpec(image_size=16, seconds=1.0)
HEADER = "video,audio,label\n"
A, B, C, N = "aaaaaaaaaaa_000001", "bbbbbbbbbbb_000002", "ccccccccccc_000003", "nnnnnnnnnnn_000004"


def extended_vggss(media: Path, box: Sequence[float] = (0, 0, 0.5, 0.5)) -> list[str]:
    """Three annotated clips, the first with this box, and four negatives, of which one has no sound; the options."""
    for n, id in enumerate((A, B, C)):
        write_picture(media / "frames" / f"{id}.jpg", 10 * n)
        write_sound(media / "audio" / f"{id}.wav", 0.1 * (n + 1))
    write_picture(media / "extend_frames" / f"{N}.jpg", 90)
    write_sound(media / "extend_audio" / f"{N}.wav", 0.9)
    write_picture(media / "extend_frames" / f"{A}.jpg", 200)  # the archive's own copy, for negatives
    classes = {A: "dog", B: "dog", C: "cat"}
    boxes = [{"file": id, "class": label, "bbox": [[0, 0, 0.5, 0.5]]} for id, label in classes.items()]
    boxes[0]["bbox"] = [list(box)]
    (media / "vggss.json").write_text(json.dumps(boxes))
    pairs = [(N, N), (A, B), (B, C), (C, "ddddddddddd_000005")]
    (media / "neg.csv").write_text(HEADER + "".join(f"{v},{a},non-sounding\n" for v, a in pairs))
    return ["--media", str(media), "--boxes", str(media / "vggss.json"), "--negatives", str(media / "neg.csv")]


def test_extended_vggss(tmp_path: Path) -> None:
    options = extended_vggss(tmp_path / "media")
    out = tmp_path / "vggss_ext"
    assert vggss_ext.main([*options, "--out", str(tmp_path), "--jobs", "1"]) == 0
    data = EvalSet(out / "vggss_ext-test.json", SPEC)
    found = {r.id: (r, data[i]) for i, r in enumerate(data.records)}
    assert set(found) == {A, B, C, f"{N}+{N}", f"{A}+{B}", f"{B}+{C}"}
    assert left_out(out) == {"vggss_ext__ccccccccccc_000003-ddddddddddd_000005": "sound missing"}
    for id, kind, same, loud, grey in (
        (f"{N}+{N}", "natural", None, 0.9, 90),
        (f"{A}+{B}", "mismatch", True, 0.2, 200),
        (f"{B}+{C}", "mismatch", False, 0.3, 10),
    ):
        record, item = found[id]
        assert record.negative is not None
        assert (record.sounding, record.negative.kind, record.negative.same_class) == (False, kind, same)
        assert record.tags == (["same_class_negative"] if same else ["other_class"])
        assert (record.video, record.negative.src_id) == (id[:11], id[19:])
        assert item.truth is not None
        assert (item.truth.shape, item.truth.max()) == ((1, 224, 224), 0)
        assert item.audio.mean() == pytest.approx(loud, abs=1e-3)
        assert item.image.mean() == pytest.approx(grey, abs=2)
        assert (item.sounding, item.negative) == (False, kind)
    record, item = found[A]
    assert record.sounding
    assert item.truth is not None
    assert item.truth.sum() == 112 * 112
    assert item.image.mean() == pytest.approx(0, abs=2)  # positives take the ordinary copy
    assert "1 mismatched negatives have the picture's own class" in " ".join(little.notes(out))


def extended_flickr(media: Path) -> list[str]:
    """Two annotated pictures and two negatives; the options."""
    test = media / "test"
    for id in ("11", "12"):
        write_xml(test / "Annotations" / f"{id}.xml", WORKED)
        write_picture(test / "frames" / f"{id}.jpg")
        write_sound(test / "audio" / f"{id}.wav", float(id) / 100)
    write_sound(test / "extend_audio" / "13.wav", 0.13)
    (test / "list.csv").write_text("11\n12\n")
    (test / "neg.csv").write_text(HEADER + "11,12,non-sounding\n12,13,non-sounding")
    return ["--media", str(media), "--list", str(test / "list.csv"), "--negatives", str(test / "neg.csv")]


def test_extended_flickr(tmp_path: Path) -> None:
    options = [*extended_flickr(tmp_path / "media"), "--out", str(tmp_path), "--jobs", "1"]
    assert flickr_ext.main([*options, "--dry-run"]) == 0
    assert not (tmp_path / "flickr_ext").exists()
    assert flickr_ext.main([*options, "--as-published"]) == 0
    data = EvalSet(tmp_path / "flickr_ext" / "flickr_ext-test.json", SPEC, tags=("as_published",))
    heard = {r.id: data[i].audio.mean() for i, r in enumerate(data.records)}
    assert heard == pytest.approx({"11": 0.11, "12": 0.12, "11+12": 0.12, "12+13": 0.13}, abs=1e-3)
    record = next(r for r in data.records if r.id == "11+12")
    assert record.negative is not None
    assert (record.negative.same_class, record.video) == (None, "11")


def test_wrong_lists_are_named(tmp_path: Path) -> None:
    path = tmp_path / "neg.csv"
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match=r"neg.csv has no column video"):
        read_negatives(path)
    path.write_text(HEADER + "a,b,sounding\n")
    with pytest.raises(ValueError, match=r"neg.csv, row 2: expected video,audio,non-sounding"):
        read_negatives(path)
    path.write_text(HEADER + "a,b,non-sounding\na,b,non-sounding\n")
    with pytest.raises(ValueError, match=r"1 ids occur more than once \(a\+b\)"):
        read_negatives(path)
    assert NegativeRow("a", "a").natural


@needs_annotations
def test_the_published_lists() -> None:
    boxes = read_boxes(ANNOTATIONS / "vggss" / "vggss.json")
    labels = {id: label for id, (label, _) in boxes.items()}
    rows = read_negatives(ANNOTATIONS / "vggss" / "vggss_test_plus_silent.csv", labels)
    assert len(rows) == 5158
    assert [r.natural for r in rows] == [True] * 379 + [False] * 4779
    assert sum(r.same_class is True for r in rows) == 1185
    assert all((r.same_class is None) == r.natural for r in rows)
    assert "5158 negatives: 379 natural, 4779 mismatched" in notes(rows)[0]
    flickr = read_negatives(ANNOTATIONS / "flickr" / "flickr_test_plus_silent.csv")
    assert (len(flickr), len({r.audio for r in flickr}), sum(r.natural for r in flickr)) == (250, 160, 0)
    assert {r.same_class for r in flickr} == {None}
