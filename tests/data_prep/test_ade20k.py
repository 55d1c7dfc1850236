from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avloc.data.media import MediaError
from data_prep.ade20k_sound import class_map, main, mask_box, read_rows
from tests.data_prep.loose import read, rectangle, skipped, write_picture, write_sound

HEADER = "image_location,vggsound_file,speech_prompt_file,ade_class_id,timing\n"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return lay_out(tmp_path)


def lay_out(folder: Path) -> Path:
    """Nothing of the official release was at hand: this is its layout as DenseAV's loader reads it."""
    media = folder / "ADE20KSoundPrompted"
    media.mkdir(parents=True)
    (media / "prompted_segmentation.csv").write_text(
        HEADER + "street/ADE_val_00000001.jpg,some/where/abc_000030.wav,,547,\n"
        'street/ADE_val_00000001.jpg,,speech/1.wav,12,"[0.5, 1.25]"\n'
        "street/ADE_val_00000001.jpg,x/def_000000.wav,,3050.0,\n"
        "street/ADE_val_00000001.jpg,x/def_000000.wav,,0,\n"
        "indoor/ADE_val_00000002.jpg,x/def_000000.wav,,547,\n"
        "indoor/ADE_val_00000003.jpg,x/def_000000.wav,,547,\n"
    )
    for n, place in ((1, "street"), (2, "indoor"), (4, "indoor")):
        write_picture(media / "frames" / place / f"ADE_val_{n:08d}.jpg", 40 * n, (56, 40))
        full = np.zeros((40, 56, 3), np.uint8)
        if n == 1:
            full[10:20, 14:28] = (20, 35, 7)  # 547
            full[20:30, 28:42] = (29, 35, 7)  # 547 too: R is divided by ten
            full[30:, :14] = (110, 234, 0)  # 11 * 256 + 234
        path = media / "annotations" / place / f"ADE_val_{n:08d}_seg.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(full).save(path)
    for name in ("abc_000030", "def_000000"):
        write_sound(media / "audio" / f"{name}.wav")
    return folder


def convert(folder: Path, *options: str) -> int:
    return main(["--media", str(folder / "ADE20KSoundPrompted"), "--out", str(folder), "--jobs", "1", *options])


def test_masks_by_class(release: Path, capsys: pytest.CaptureFixture) -> None:
    assert convert(release) == 0
    data = read(release, "ade20k_sound")
    found = {r.id: data[i] for i, r in enumerate(data.records)}
    assert set(found) == {
        "street/ADE_val_00000001_547_abc_000030",
        "street/ADE_val_00000001_3050_def_000000",
    }
    cells = rectangle(56, 56, 112, 112) + rectangle(112, 112, 168, 168)  # 40 x 56 pixels on 224 cells
    np.testing.assert_array_equal(found["street/ADE_val_00000001_547_abc_000030"].truth, [cells])
    np.testing.assert_array_equal(found["street/ADE_val_00000001_3050_def_000000"].truth, [rectangle(0, 168, 56, 224)])
    assert {r.targets[0].class_id for r in data.records} == {547, 3050}
    assert {r.targets[0].label_space for r in data.records} == {"ade20k_full"}
    assert skipped(release, "ade20k_sound") == {
        "indoor-ADE_val_00000002_547_def_000000": "mask empty",
        "indoor-ADE_val_00000003_547_def_000000": "picture missing",
        "indoor-ADE_val_00000004-jpg": "no annotation row for this picture",
    }
    assert "2 rows without a sound or of class 0 are left out" in capsys.readouterr().err


def test_boxes_around_masks(release: Path) -> None:
    assert convert(release, "--truth", "box", "--as-published") == 0
    data = read(release, "ade20k_sound_box")
    found = {r.id: (r, data[i]) for i, r in enumerate(data.records)}
    record, item = found["street/ADE_val_00000001_547_abc_000030"]
    np.testing.assert_array_equal(item.truth, [rectangle(56, 56, 168, 168)])
    assert record.tags == ["as_published"]
    kept = found["indoor/ADE_val_00000002_547_def_000000"][1]  # published code keeps a mask without the class
    assert kept.truth is not None
    assert kept.truth.sum() == 0


def test_mask_box_is_the_smallest() -> None:
    mask = np.zeros((4, 8), bool)
    assert mask_box(mask) == []
    mask[1, 2] = mask[2, 5] = True
    assert mask_box(mask) == [[0.25, 0.25, 0.75, 0.75]]


def test_grey_masks_and_bad_rows_are_named(release: Path, capsys: pytest.CaptureFixture) -> None:
    grey = release / "grey.png"
    Image.new("L", (4, 4)).save(grey)
    with pytest.raises(MediaError, match="no colours"):
        class_map(grey)
    csv = release / "ADE20KSoundPrompted" / "prompted_segmentation.csv"
    for line, says in (
        ("a.jpg,b.wav,,horse,", "row 1: ade_class_id 'horse' is not a class number"),
        ("../../a.jpg,b.wav,,5,", "leads out of"),
        ("a.jpg,b.wav,,5,\na.jpg,b.wav,,5,", "more than once (a_5_b)"),
    ):
        csv.write_text(HEADER + line + "\n")
        with pytest.raises(SystemExit):
            convert(release)
        assert says in capsys.readouterr().err
    csv.write_text("image_location,vggsound_file\na.jpg,b.wav\n")
    with pytest.raises(ValueError, match="has no column ade_class_id"):
        read_rows(csv)
