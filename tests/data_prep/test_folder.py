from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from lightning import Trainer

from avloc.data.indexed import EvalSet
from avloc.data.module import AVDataModule, converter
from avloc.evaluation.evaluator import Evaluator
from avloc.methods.baselines.controls import CentreBox
from data_prep.folder import main
from tests.data.clips import write_clip
from tests.data_prep.little import left_out, notes, write_mask, write_picture, write_sound
from tests.data_prep.loose import read, rectangle


def convert(folder: Path, *more: object) -> int:
    words = ["--media", folder / "media", "--out", folder / "data", "--name", "mine", "--jobs", "1", *more]
    return main([str(word) for word in words])


def reasons(folder: Path, split: str = "test") -> dict[str, str]:
    """Key to the whole reason."""
    with (folder / "data" / "mine" / f"skipped-{split}.csv").open() as f:
        return {row["key"].removeprefix("mine__"): row["reason"] for row in csv.DictReader(f)}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """a: picture of 32 x 24 with a sound in folders of their own; b: a clip of 2 s, 96 x 64, among them."""
    write_picture(tmp_path / "media" / "pictures" / "a.png")
    write_sound(tmp_path / "media" / "sounds" / "a.wav", 0.25)
    write_clip(tmp_path / "media" / "b.mp4")
    return tmp_path


BOXES = "key,x0,y0,x1,y1,class\na.png,0,0,16,12,dog\na,16,12,32,24,dog\nb,24,0,96.5,64,\n"


def check_boxes(data: EvalSet) -> None:
    assert [r.id for r in data.records] == ["a", "b"]
    both = np.maximum(rectangle(0, 0, 112, 112), rectangle(112, 112, 224, 224))
    np.testing.assert_array_equal(data[0].truth, [both])
    np.testing.assert_array_equal(data[1].truth, [rectangle(56, 0, 224, 224)])
    assert [(r.label, r.targets[0].class_id) for r in data.records] == [("dog", 0), ("", -1)]
    np.testing.assert_allclose(data[0].audio[:16000], 0.25, atol=1e-4)
    frame, sound = data.records[1].frames[0], data.records[1].audios[0]
    assert (frame.t, frame.width, frame.height) == (1.0, 96, 64)
    assert sound.duration == pytest.approx(2.0, abs=0.05)
    grey = np.asarray(data[1].image, float).mean()
    assert grey == pytest.approx(40, abs=4)  # frame 10 of 10 a second


def test_boxes_of_a_csv(media: Path) -> None:
    (media / "boxes.csv").write_text(BOXES)
    assert convert(media, "--boxes", media / "boxes.csv") == 0
    check_boxes(read(media / "data", "mine"))
    assert reasons(media) == {}


def test_the_same_boxes_of_a_json(media: Path) -> None:
    rows: list[dict[str, object]] = list(csv.DictReader(BOXES.splitlines()))
    for row in rows:
        row |= {side: float(str(row[side])) for side in ("x0", "y0", "x1", "y1")}
    (media / "boxes.json").write_text(json.dumps(rows))
    assert convert(media, "--boxes", media / "boxes.json") == 0
    check_boxes(read(media / "data", "mine"))


def test_masks_of_every_kind(media: Path) -> None:
    """White, ones, palette colours, and none; folders of masks may lie inside of the media."""
    for key in "cde":
        write_picture(media / "media" / f"{key}.jpg")
        write_sound(media / "media" / f"{key}.wav")
    masks = media / "media" / "masks"
    half = np.zeros((24, 32), np.uint8)
    half[:12] = 1
    write_mask(masks / "a.png", 255 * half)
    write_mask(masks / "c.png", half)
    write_mask(masks / "d.png", 3 * half, palette=[0] * 9 + [9, 9, 9] + [0] * 756)
    write_mask(masks / "e.png", 0 * half)
    assert convert(media, "--masks", masks) == 0
    data = read(media / "data", "mine")
    assert {r.id: float(np.mean(data[i].truth)) for i, r in enumerate(data.records)} == dict(a=0.5, c=0.5, d=0.5, e=0.0)
    for i in range(3):
        np.testing.assert_array_equal(data[i].truth, [rectangle(0, 0, 224, 112)])
    assert list(reasons(media)) == ["b"]
    assert "no annotation row for this clip" in reasons(media)["b"]
    assert notes(media / "data" / "mine") == [
        "1 records have an empty mask: kept, but no prediction can be right there"
    ]


def test_without_truth_it_is_a_training_set(media: Path) -> None:
    (media / "media" / ".hidden.jpg").write_bytes(b"")
    assert convert(media, "--seconds", "1") == 0
    data = read(media / "data", "mine", "train")
    assert [r.id for r in data.records] == ["a", "b"]
    assert [r.map_rule for r in data.records] == ["none", "none"]
    sound, frame = data.records[1].audios[0], data.records[1].frames[0]
    assert (sound.clip_start, frame.t, frame.member) == (0.5, 0.5, "f0.jpg")
    assert sound.duration == pytest.approx(1.0)


def test_what_is_wrong_with_a_file_leaves_out_its_key_alone(media: Path, capsys: pytest.CaptureFixture) -> None:
    folder = media / "media"
    for key in ("outside", "turned", "mute", "broken", "good", "twice"):
        write_picture(folder / f"{key}.png")
        write_sound(folder / f"{key}.wav")
    (folder / "mute.wav").unlink()
    (folder / "broken.png").write_bytes(b"no picture")
    write_picture(folder / "other" / "twice.jpg")
    write_sound(folder / "blind.wav")
    write_clip(folder / "silent.mp4", audio=False)
    write_clip(folder / "helped.mp4", audio=False)
    write_sound(folder / "helped.wav")
    keys = ["outside", "turned", "mute", "broken", "good", "twice", "blind", "silent", "helped", "nowhere"]
    corners = {"outside": "0,0,64,48", "turned": "9,9,3,3"}
    (media / "boxes.csv").write_text("key,x0,y0,x1,y1\n" + "".join(f"{k},{corners.get(k, '0,0,9,9')}\n" for k in keys))
    assert convert(media, "--boxes", media / "boxes.csv") == 0
    assert [r.id for r in read(media / "data", "mine").records] == ["good", "helped"]
    told = reasons(media)
    outside = f"box outside the picture: [0.0, 0.0, 64.0, 48.0] in {folder / 'outside.png'}, which is 32 x 24."
    for key, says in {
        "outside": outside,
        "turned": "box empty: [9.0, 9.0, 3.0, 3.0]",
        "mute": "sound missing: no sound mute in",
        "broken": f"{folder / 'broken.png'} cannot be decoded as a picture",
        "twice": f"several files of one name: twice is {folder / 'other' / 'twice.jpg'}, {folder / 'twice.png'}",
        "blind": "picture missing: no picture blind in",
        "silent": f"{folder / 'silent.mp4'} has no sound",
        "nowhere": "picture missing: no picture nowhere in",
        "a": "no annotation row for this file",
        "b": "no annotation row for this clip",
    }.items():
        assert says in told.pop(key)
    assert not told
    assert len(left_out(media / "data" / "mine")) == 10
    assert "2 records written, 10 clips skipped" in capsys.readouterr().err


def test_masks_that_do_not_fit(media: Path) -> None:
    masks = media / "masks"
    write_mask(masks / "a.png", np.full((12, 16), 255))
    write_mask(masks / "b.png", np.full((64, 96), 100))
    write_picture(media / "media" / "c.png")
    write_sound(media / "media" / "c.wav")
    write_mask(masks / "c.png", np.full((24, 32), 255))
    write_mask(masks / "more" / "c.png", np.full((24, 32), 255))
    assert convert(media, "--masks", masks) == 1
    told = reasons(media)
    assert told["a"] == f"mask of another size: {masks / 'a.png'} is 16 x 12, its picture 32 x 24. Resize it."
    assert f"the brightest value of {masks / 'b.png'} is 100. Write 255" in told["b"]
    assert told["c"].startswith(f"several masks of one name: {masks / 'c.png'}, {masks / 'more' / 'c.png'}")


def test_what_was_missing_is_taken_when_it_comes(media: Path) -> None:
    (media / "boxes.csv").write_text("key,x0,y0,x1,y1\na,0,0,9,9\nb,0,0,9,9\n")
    sound = (media / "media" / "sounds" / "a.wav").rename(media / "a.wav")
    assert convert(media, "--boxes", media / "boxes.csv") == 0
    assert list(reasons(media)) == ["a"]
    sound.rename(media / "media" / "a.wav")
    assert convert(media, "--boxes", media / "boxes.csv") == 0
    assert [r.id for r in read(media / "data", "mine").records] == ["a", "b"]


def test_a_late_frame_is_none_of_a_short_clip(media: Path) -> None:
    (media / "boxes.csv").write_text("key,x0,y0,x1,y1\nb,0,0,9,9\n")
    assert convert(media, "--boxes", media / "boxes.csv", "--at", "5") == 1
    assert "b.mp4 has 2 s, so no frame at --at 5." in reasons(media)["b"]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("key,x0,y0,x1\na,1,2,3\n", [], "has no column y1"),
        ("key,x0,y0,x1,y1\na,1,2,3,x\n", [], "row 1 (a): ['1', '2', '3', 'x'] are not four numbers"),
        ("key,x0,y0,x1,y1\na,1,2,3,inf\n", [], "are not four numbers"),
        ("key,x0,y0,x1,y1\na,0,0,.5,1\n", [], "all coordinates lie between 0 and 1. Multiply"),
        ("key,x0,y0,x1,y1,class\na,0,0,5,5,dog\na,0,0,5,5,cat\n", [], "a is a 'cat' here and a 'dog' above"),
        (BOXES, ["--name", "vggss"], "--name vggss is a published set's"),
        (BOXES, ["--seconds", "0"], "--seconds must be more than 0"),
        (BOXES, ["--masks", "masks"], "not allowed with argument"),
    ],
)
def test_a_list_that_is_wrong_is_refused(
    text: str, options: list[str], says: str, media: Path, capsys: pytest.CaptureFixture
) -> None:
    (media / "boxes.csv").write_text(text)
    with pytest.raises(SystemExit):
        convert(media, "--boxes", media / "boxes.csv", *options)
    assert says in capsys.readouterr().err
    assert not list((media / "data").rglob("*.tar"))


def test_the_set_is_tested_at_once(media: Path) -> None:
    """The centre box answers 8:24 x 6:18. Truth 8:16 x 6:18 is half of it: IoU 1/2, whether a box or a mask says so."""
    (media / "boxes.csv").write_text("key,x0,y0,x1,y1\na,8,6,16,18\n")
    mask = np.zeros((24, 32), np.uint8)
    mask[6:18, 8:16] = 255
    write_mask(media / "masks" / "a.png", mask)
    for name, truth in (("mine", ["--boxes", media / "boxes.csv"]), ("ours", ["--masks", media / "masks"])):
        assert convert(media, *truth, "--name", name) == 0
    evaluator = Evaluator(protocols={"ours": ["avs/dataset"]})
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=media,
        callbacks=[evaluator],
    )
    sets = AVDataModule(root=str(media / "data"), test=["mine", "ours"], num_workers=0)
    trainer.test(CentreBox(), datamodule=sets, verbose=False)
    found = json.loads((media / "results.json").read_text())["sets"]
    assert found["mine"]["rows"]["model"]["vggss/acl"]["mean_ciou"] == 1 / 2
    assert found["ours"]["rows"]["model"]["avs/dataset"]["miou"] == 1 / 2


def test_a_set_that_no_module_speaks_of_is_of_a_folder() -> None:
    assert [converter(name) for name in ("mine", "a.b", "is3_seg", "vggsound_10k")] == [
        "folder", "folder", "is3", "vggsound",
    ]  # fmt: skip
