from __future__ import annotations

from collections import Counter
from pathlib import Path

from data_prep.vggsound import read_boxes
from data_prep.vggss_sub import draw, main
from tests.data.clips import write_clip
from tests.data_prep import test_duet
from tests.data_prep.loose import official, read, skipped

BOXES = "vggss/vggss.json"
SHOTS = ("train_1shot", "train_3shot", "train_5shot")


def test_the_draw_from_the_official_boxes() -> None:
    boxes = read_boxes(official(BOXES))
    splits = draw(boxes)
    assert list(splits) == [*SHOTS, "test"]
    for split, k in zip(SHOTS, (1, 3, 5), strict=True):
        assert set(Counter(boxes[id][0] for id in splits[split]).values()) == {k}
        assert len(set(splits[split])) == 221 * k
    assert set(splits["train_1shot"]) < set(splits["train_3shot"]) < set(splits["train_5shot"])
    of_class = Counter(boxes[id][0] for id in splits["test"])
    assert (len(of_class), len(splits["test"]), min(of_class.values()), max(of_class.values())) == (221, 1104, 4, 5)
    videos = [{id[:11] for id in splits[split]} for split in ("train_5shot", "test")]
    assert not videos[0] & videos[1]
    empty = {"M1P1xla8rg0_000000", "MKC9LvRivTM_000030"}  # their only boxes have no area
    assert empty <= set(boxes)
    assert not empty & {id for ids in splits.values() for id in ids}
    # The same for every user: these would change with any other rule of drawing.
    assert splits["train_1shot"][:3] == ["-4bPiXbovf0_000008", "mjhlzNVpnXs_000026", "qazCqvKglIs_000203"]
    assert splits["test"][:3] == ["WLEZDT_vGuM_000016", "-wi8kPVJLcw_000205", "z5-LFayciG8_000247"]


def test_a_class_is_drawn_without_looking_at_the_others() -> None:
    boxes = read_boxes(official(BOXES))
    whole = draw(boxes)
    kept = {label for label, _ in list(boxes.values())[:40]}
    few = draw({id: b for id, b in boxes.items() if b[0] in kept})
    assert few["train_5shot"] == [id for id in whole["train_5shot"] if boxes[id][0] in kept]
    assert draw(boxes, seed=1)["train_5shot"] != whole["train_5shot"]


def test_it_is_written_with_what_is_missing(tmp_path: Path) -> None:
    release = lay_out(tmp_path, clips=8)
    boxes = read_boxes(release / "vggss.json")
    splits = draw(boxes)
    (release / "media" / "frames" / f"{splits['train_1shot'][0]}.jpg").unlink()
    options = ["--media", str(release / "media"), "--boxes", str(release / "vggss.json"), "--jobs", "1"]
    assert main([*options, "--split", *splits, "--out", str(tmp_path)]) == 0
    for split, ids in splits.items():
        records = read(tmp_path, "vggss_sub", split).records
        there = {record.id for record in records}
        lost = {splits["train_1shot"][0]} & set(ids)
        assert there == set(ids) - lost
        assert len(skipped(tmp_path, "vggss_sub", split)) == len(lost)
        assert all(record.map_rule == "union" for record in records)
        assert {record.split for record in records} == {"test" if split == "test" else "train"}


def test_clips_are_cut_from_videos(tmp_path: Path) -> None:
    release = lay_out(tmp_path, clips=2)
    videos = release / "videos"
    for id in draw(read_boxes(release / "vggss.json"))["train_1shot"]:
        write_clip(videos / f"{id[:11]}_{int(id[12:])}.MP4", seconds=1)
    options = ["--videos", str(videos), "--boxes", str(release / "vggss.json"), "--jobs", "1"]
    assert main([*options, "--split", "train_1shot", "--out", str(tmp_path)]) == 0
    assert len(read(tmp_path, "vggss_sub", "train_1shot").records) == 2


def lay_out(folder: Path, clips: int, box: list[float] | None = None) -> Path:
    """Media of as many clips of a dog, each of a video of its own, and two of a cat."""
    found = {f"dogdogdog{n:02d}_000001": ("dog", [box or [0.25, 0.25, 0.75, 0.75]]) for n in range(clips)}
    found |= {f"catcatcat{n:02d}_000001": ("cat", [[0.0, 0.0, 0.5, 0.5]]) for n in range(2)}
    keys = list(found)
    rows = [[key, found[key][0], keys[0], found[keys[0]][0]] for key in keys]
    folder.mkdir(exist_ok=True)
    return test_duet.lay_out(folder / "release", rows, found)
