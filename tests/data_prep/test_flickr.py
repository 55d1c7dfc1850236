from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avloc.data.indexed import EvalSet
from avloc.types import InputSpec
from data_prep.flickr import main, read_list, read_xml
from tests.data_prep.little import ANNOTATIONS, left_out, needs_annotations, notes, write_picture, write_sound

SPEC = InputSpec(image_size=16, seconds=1.0)
People = list[list[tuple[int, ...]]]
WORKED: People = [[(64, 32, 192, 224)], [(80, 48, 200, 240)], [(0, 0, 40, 40)]]  # worked out by hand


def write_xml(path: Path, people: People) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = ("name", "xmin", "ymin", "xmax", "ymax")
    text = ""
    for boxes in people:
        text += "<annotator>"
        for box in boxes:
            text += "<bbox>" + "".join(f"<{t}>{v}</{t}>" for t, v in zip(tags, (1, *box), strict=False)) + "</bbox>"
        text += "</annotator>"
    path.write_text(f"<annotation>{text}</annotation>")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    return acl_flickr(tmp_path / "media")


def acl_flickr(media: Path) -> Path:
    """ACL-SSL's layout: 11 whole, 12 with a broken annotation, 13 without a sound, 14 with frames in a folder."""
    test = media / "test"
    drawn: dict[int, People] = {11: WORKED, 13: WORKED, 14: [[(0, 0, 300, 128)], []], 3908875350: WORKED}
    for id, people in drawn.items():
        write_xml(test / "Annotations" / f"{id}.xml", people)
    (test / "Annotations" / "12.xml").write_text("<annotation><bbox>")
    for id in (11, 12, 13, 3908875350):
        write_picture(test / "frames" / f"{id}.jpg", size=(256, 256))
    write_picture(test / "frames" / "14" / "b.png", 200)
    write_picture(test / "frames" / "14" / "a.png", 50)
    for id in (11, 12, 14, 3908875350):
        write_sound(test / "audio" / f"{id}.wav")
    (media / "list.csv").write_text('11,"dog, barking"\n12,0\n13,202\n14\n3908875350,0')
    return media


def convert(media: Path, out: Path, *more: str) -> int:
    return main(
        ["--media", str(media), "--list", str(media / "list.csv"), "--out", str(out), "--jobs", "1", *more],
    )


def test_three_annotators_become_a_consensus(media: Path, tmp_path: Path) -> None:
    assert convert(media, tmp_path) == 0
    data = EvalSet(tmp_path / "flickr" / "flickr-test.json", SPEC)
    found = {r.id: (r, data[i]) for i, r in enumerate(data.records)}
    assert set(found) == {"11", "14", "3908875350"}
    record, item = found["11"]
    assert item.truth is not None
    assert (int((item.truth == 1).sum()), int((item.truth == 0.5).sum())) == (15092, 7497)
    assert record.targets[0].annotator == [0, 1, 2]
    assert record.targets[0].boxes_raw == [list(map(float, b[0])) for b in WORKED]
    assert (record.video, record.text, record.tags) == ("11", {"pseudo_class": "dog, barking"}, ["test249"])
    assert found["3908875350"][0].tags == []
    record, item = found["14"]
    assert record.targets[0].boxes == [[0.0, 0.0, 1.0, 0.5]]
    assert item.image.max() < 60  # a.png, the first by name
    half = np.zeros((224, 224))
    half[:112] = 0.5
    np.testing.assert_array_equal(item.truth, [half])
    assert left_out(tmp_path / "flickr") == {
        "flickr__12": "annotation unreadable",
        "flickr__13": "sound missing",
    }
    said = " ".join(notes(tmp_path / "flickr"))
    assert "1 records have a box that leaves" in said
    assert "1 frame folders hold several pictures" in said
    assert len(EvalSet(tmp_path / "flickr" / "flickr-test.json", SPEC, tags=("test249",))) == 2


def test_ids_of_a_tag_that_match_nothing_are_named(media: Path, tmp_path: Path) -> None:
    (media / "leak.txt").write_text("11.jpg\n99\n")
    assert convert(media, tmp_path, "--tag", f"leak={media / 'leak.txt'}") == 0
    said = " ".join(notes(tmp_path / "flickr"))
    assert "1 ids of the list of the tag leak match nothing (99)" in said


def test_the_official_archive_and_the_supervised_split(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    media = tmp_path / "media"
    for id in (21, 22, 23):
        write_xml(media / "Annotations" / f"{id}.xml", WORKED)
        write_picture(media / "Data" / "1" / "2" / "3" / f"{id}.mp4" / "000001.jpg")
        write_sound(media / "Data" / "1" / "2" / "3" / f"{id}.wav", channels=2)
    (media / "list.csv").write_text("21.png\n")
    (media / "train.txt").write_text("22\n")
    assert convert(media, tmp_path, "--sup-train", str(media / "train.txt")) == 0
    assert left_out(tmp_path / "flickr") == {"flickr__23": "no annotation row for this annotation"}
    for split, name in (("test", "21"), ("train", "22")):
        (record,) = EvalSet(tmp_path / "flickr" / f"flickr-{split}.json", SPEC).records
        assert (record.id, record.split, record.audios[0].channels) == (name, split, 2)
    with pytest.raises(SystemExit):
        convert(media, tmp_path, "--sup-train", str(media / "list.csv"))
    assert "1 ids are in" in capsys.readouterr().err


def test_wrong_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_xml(tmp_path / "a.xml", [[(1, 2, 3)]])
    with pytest.raises(ValueError, match=r"annotation unreadable: .*a.xml"):
        read_xml(tmp_path / "a.xml")
    (tmp_path / "list.csv").write_text("1\n1.jpg\n")
    with pytest.raises(ValueError, match=r"list.csv: 1 ids occur more than once \(1\)"):
        read_list(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("1\n")
    with pytest.raises(SystemExit):
        convert(tmp_path, tmp_path / "out")
    assert "holds 0 frames and 0 sounds" in capsys.readouterr().err


@needs_annotations
def test_the_published_lists() -> None:
    test = read_list(ANNOTATIONS / "flickr" / "flickr_test.csv")
    assert (len(test), len(set(test.values()))) == (250, 98)
    for name in ("flickr/test_flickr_250.txt", "flickr_frameindex/flickr_test.csv", "flickr_frameindex/test_list.txt"):
        assert read_list(ANNOTATIONS / name) == dict.fromkeys(read_list(ANNOTATIONS / name), "")
        oldest = {"3908875350": "3908875357"} if name.endswith("test_list.txt") else {}
        assert set(read_list(ANNOTATIONS / name)) == {oldest.get(id, id) for id in test}
    less = read_list(ANNOTATIONS / "flickr_frameindex" / "flickr_test_249.csv")
    assert set(test) - set(less) == {"3908875350"}
    train = read_list(ANNOTATIONS / "flickr" / "flickr_sup_train.txt")
    assert len(train) == 4750
    assert not set(train) & set(test)
