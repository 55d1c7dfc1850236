"""Converters of AVSBench: S4 and MS3 with masks and boxes, AVSS, and AVS-V3."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avloc.data.indexed import EvalSet
from avloc.data.labels import LABEL_SPACES
from avloc.data.schema import Record, Sample
from avloc.data.truth import truth_maps
from avloc.types import InputSpec
from data_prep import avs_ms3, avs_s4, avs_v3, avsbench, avss
from data_prep.avsbench import MS3, S4, box_target, name_and_second
from tests.data_prep.little import (
    ANNOTATIONS,
    block,
    left_out,
    needs_annotations,
    notes,
    write_mask,
    write_picture,
    write_sound,
)

SPEC = InputSpec(image_size=16, seconds=2.0, channels="left_then_right")
YT = "_bcdefghij_"


def official_s4(root: Path) -> Path:
    """Two test videos (of the second, one mask is absent), a train video with one mask, and one without a row."""
    source = root / "Single-source"
    data = source / "s4_data"
    rows = [
        (YT, 2, "dog_barking", "test"),
        ("yyyyyyyyyyy", 0, "helicopter", "test"),
        ("train000000", 1, "lion", "train"),
    ]
    source.mkdir(parents=True)
    with (source / "s4_meta_data.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("name", "start", "category", "split"), *rows])
    for name, _, category, split in [*rows, ("zzzzzzzzzzz", 0, "dog_barking", "test")]:
        place = Path(split) / category / name
        for k in range(1, 6):
            write_picture(data / "visual_frames" / place / f"{name}_{k}.png", 10 * k, (224, 224))
            if split == "test" or k == 1:
                write_mask(data / "gt_masks" / place / f"{name}_{k}.png", block(8 * k, 16), "1")
        write_sound(data / "audio_wav" / split / category / f"{name}.wav", channels=2)
    (data / "gt_masks" / "test" / "helicopter" / "yyyyyyyyyyy" / "yyyyyyyyyyy_3.png").unlink()
    return root


def run(main: object, media: Path, out: Path, *more: str) -> int:
    return main(["--media", str(media), "--out", str(out), "--jobs", "1", *more])  # type: ignore[operator]


def test_official_s4(tmp_path: Path) -> None:
    media = official_s4(tmp_path / "media")
    assert run(avs_s4.main, media, tmp_path, "--split", "test", "train") == 0
    out = tmp_path / "avs_s4"
    data = EvalSet(out / "avs_s4-test.json", SPEC)
    assert len(data) == 5 + 4
    items = {data.key(i): data[i] for i in range(len(data))}
    for k in range(1, 6):
        item = items[f"avs_s4__{YT}.f{k - 1}"]
        np.testing.assert_array_equal(item.truth, [block(8 * k, 16) > 0])
        assert item.image.mean() == 10 * k
    # Left, then right, which is its negative.
    np.testing.assert_allclose(item.audio, np.repeat([0.25, -0.25], 16000), atol=1e-4)
    record = next(r for r in data.records if r.id == YT)
    assert [f.t for f in record.frames] == [0.9375, 1.9375, 2.9375, 3.9375, 4.9375]
    assert (record.label, record.targets[0].class_id, record.video) == ("dog_barking", 6, YT)
    assert record.provenance.note == "starts at 2 s of its VGGSound clip"
    raw = next(data.sample(r).member("f0.png") for r, x in enumerate(data.records) if x.id == YT)
    source = media / "Single-source/s4_data/visual_frames/test/dog_barking" / YT / f"{YT}_1.png"
    assert raw == source.read_bytes()
    assert left_out(out) == {
        "avs_s4__yyyyyyyyyyy.f2": "mask missing",
        "avs_s4__zzzzzzzzzzz": "no annotation row for this video",
    }
    (train,) = EvalSet(out / "avs_s4-train.json", SPEC).records
    assert [f.annotated for f in train.frames] == [True, False, False, False, False]
    assert train.targets[0].masks == ["m.f0.t0.png"]
    assert left_out(out, "train") == {}
    assert "labels that are not of avs_s4_23: lion" in notes(out, "train")


def test_a_dry_run_of_s4(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(avs_s4.main, official_s4(tmp_path / "media"), tmp_path, "--dry-run") == 0
    assert "avs_s4-test: 2 records to write, 2 left out" in capsys.readouterr().err
    assert not (tmp_path / "avs_s4").exists()


def test_acl_layout_needs_its_list(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flat = tmp_path / "media" / "s4"
    for k in (1, 2):
        write_picture(flat / "visual_frames" / f"{YT}_{k}.png", 10 * k)
        write_mask(flat / "gt_masks" / f"{YT}_{k}.png", np.array([[100, 200]] * 2))
    write_sound(flat / "audio_wav" / f"{YT}.wav")
    with pytest.raises(SystemExit):
        run(avs_s4.main, tmp_path / "media", tmp_path)
    assert "--list avs1_s4_test.csv" in capsys.readouterr().err
    (flat / "list.csv").write_text(f"{YT}_1,helicopter\n{YT}_2,helicopter\n")
    options = ["--list", str(flat / "list.csv")]
    assert run(avs_s4.main, tmp_path / "media", tmp_path, *options) == 0
    data = EvalSet(tmp_path / "avs_s4" / "avs_s4-test.json", SPEC)
    assert len(data) == 2
    want = np.zeros((1, 224, 224))
    want[:, :, 112:] = 1  # 100 is not above 127
    np.testing.assert_array_equal(data[0].truth, want)
    assert data.records[0].label == "helicopter"
    with pytest.raises(SystemExit):
        run(avs_s4.main, tmp_path, tmp_path)
    assert "holds neither Single-source/s4_data" in capsys.readouterr().err


def test_masks_as_published_are_dithered(tmp_path: Path) -> None:
    flat = tmp_path / "media" / "s4"
    grey = np.full((64, 64), 100, np.uint8)
    write_picture(flat / "visual_frames" / f"{YT}_1.png")
    write_mask(flat / "gt_masks" / f"{YT}_1.png", grey)
    write_sound(flat / "audio_wav" / f"{YT}.wav")
    (flat / "list.csv").write_text(f"{YT}_1,helicopter\n")
    shares = {}
    for name, more in (("fixed", []), ("published", ["--as-published"])):
        options = ["--list", str(flat / "list.csv"), "--name", name, *more]
        assert run(avs_s4.main, tmp_path / "media", tmp_path, *options) == 0
        data = EvalSet(tmp_path / name / f"{name}-test.json", SPEC)
        member = data.sample(0).member("m.f0.t0.png")
        shares[name] = np.asarray(Image.open(io.BytesIO(member))).mean()
        assert data.records[0].tags == (["as_published"] if more else [])
    assert shares["fixed"] == 0
    assert shares["published"] == pytest.approx(100 / 255, abs=0.02)


def official_ms3(root: Path) -> Path:
    source = root / "Multi-sources"
    data = source / "ms3_data"
    rows = [(f"{YT}_1", "test"), ("xv7eM6-UmkY", "test"), ("train000000_0", "train")]
    source.mkdir(parents=True)
    with (source / "ms3_meta_data.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("name", "split"), *rows])
    for name, split in rows:
        for k in range(1, 6):
            write_picture(data / "visual_frames" / name / f"{name}.mp4_{k}.png", 10 * k, (224, 224))
            # Palette indices 1 and 2 are foreground, though white and grey are what they look like.
            pixels = block(8 * k, 16, 1) + block(8 * k, 100, 2) if k > 1 else block(0, 0, 0)
            write_mask(data / "gt_masks" / split / name / f"{name}_{k}.png", pixels, palette=[0] * 3 + [128] * 6)
        write_sound(data / "audio_wav" / split / f"{name}.wav", channels=2)
    (root / "metadata.csv").write_text(
        "vid,uid,s_min,s_sec,a_obj,split,label\n"
        f"{YT}_1,{YT}_1,0,0,baby_man,test,v1m\nxv7eM6-UmkY,xv7eM6-UmkY,0,0,emergency-car,test,v1m\n"
        "train000000_0,train000000_0,0,0,background,train,v1m\n"
    )
    return root


def test_official_ms3(tmp_path: Path) -> None:
    media = official_ms3(tmp_path / "media")
    assert run(avs_ms3.main, media, tmp_path, "--avss", str(media / "metadata.csv")) == 0
    data = EvalSet(tmp_path / "avs_ms3" / "avs_ms3-test.json", SPEC)
    items = {data.key(i): data[i] for i in range(len(data))}
    assert len(items) == 10
    np.testing.assert_array_equal(items[f"avs_ms3__{YT}_1.f0"].truth, np.zeros((1, 224, 224)))
    want = (block(24, 16) > 0) | (block(24, 100) > 0)
    np.testing.assert_array_equal(items[f"avs_ms3__{YT}_1.f2"].truth, [want])
    targets = {r.id: (r.video, r.targets[0].class_id, r.label) for r in data.records}
    car = LABEL_SPACES["avss71"].index("emergency-car")
    assert targets == {
        f"{YT}_1": (YT, -1, "baby, man"),
        "xv7eM6-UmkY": ("xv7eM6-UmkY", car, "emergency-car"),
    }
    assert run(avs_ms3.main, media, tmp_path / "published", "--as-published") == 0
    published = EvalSet(tmp_path / "published" / "avs_ms3" / "avs_ms3-test.json", SPEC)
    truths = [truth for i in range(len(published)) if (truth := published[i].truth) is not None]
    assert len(truths) == 10
    assert not np.any(truths)  # index 2 of 255 is nothing
    assert "2 videos have no label" in notes(tmp_path / "published" / "avs_ms3")[0]


def test_boxes_of_sslalignment(tmp_path: Path) -> None:
    media = official_s4(tmp_path / "media")
    place = f"/mnt/x/Single-source/s4_data/visual_frames/test/dog_barking/{YT}/{YT}"
    boxes: list[dict[str, object]] = [{"image": f"{place}_1.png", "gt_box": [21.0, 72.0, 196.0, 140.0]}]
    boxes += [{"image": f"{place}_{k}.png", "gt_box": [0.0] * 4} for k in (2, 3, 4, 5)]
    boxes += [{"image": "/mnt/qqqqqqqqqqq_1.png", "gt_box": [0, 0, 1, 1]}]
    (media / "boxes.json").write_text(json.dumps(boxes))
    assert run(avs_s4.main, media, tmp_path, "--boxes", str(media / "boxes.json")) == 0
    out = tmp_path / "avs_s4_box"
    data = EvalSet(out / "avs_s4_box-test.json", SPEC)
    found = {r.id: (r, data[i].truth) for i, r in enumerate(data.records)}
    assert set(found) == {f"{YT}_{k}" for k in range(1, 6)}
    record, truth = found[f"{YT}_1"]
    assert truth is not None
    assert truth.sum() == 11900  # the pixels of [21, 72, 196, 140]
    assert truth[0, 72:140, 21:196].all()
    assert record.targets[0].boxes == [[21 / 224, 72 / 224, 197 / 224, 141 / 224]]
    assert {(r.group, r.group_size) for r in data.records} == {(YT, 5)}  # all frames of a clip must be right
    record, truth = found[f"{YT}_2"]
    assert truth is not None
    assert truth.sum() == 0
    assert (record.tags, record.frames[0].t, record.label) == (["empty"], 1.9375, "dog_barking")
    skipped = Counter(left_out(out).values())
    assert skipped == {
        "picture missing": 1,
        "no annotation row for this picture": 5,
        "no annotation row for this video": 1,
    }
    assert "4 boxes are all zero" in notes(out)[0]


def test_names_and_seconds() -> None:
    assert name_and_second("rq5RDUm2Hnk_1.mp4_12") == ("rq5RDUm2Hnk_1", 12)
    assert name_and_second("_19NVGk6Zt8_0_4") == ("_19NVGk6Zt8_0", 4)
    assert name_and_second("__________1_2") == ("__________1", 2)
    with pytest.raises(ValueError, match="'abc' is not of the form"):
        name_and_second("abc")


def test_wrong_tables_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    media = official_s4(tmp_path / "media")
    table = media / "Single-source" / "s4_meta_data.csv"
    table.write_text(table.read_text() + f"{YT},0,helicopter,train\n")
    with pytest.raises(SystemExit):
        run(avs_s4.main, media, tmp_path)
    assert f"1 ids occur more than once ({YT})" in capsys.readouterr().err
    (media / "boxes.json").write_text('[{"image": "a_1.png", "gt_box": [1, 2]}]')
    with pytest.raises(SystemExit):
        run(avs_s4.main, media, tmp_path, "--boxes", str(media / "boxes.json"))
    assert "is not SSLalignment's box file" in capsys.readouterr().err


AVSS_HEADER = "vid,uid,s_min,s_sec,a_obj,split,label\n"
DOG, HORSE, WOLF = (LABEL_SPACES["avss71"].index(c) for c in ("dog", "horse", "wolf"))
# Colours of the PASCAL VOC palette, from its definition: bits 0, 3 and 6 of the index make red, and so on.
COLOUR = {
    i: tuple(sum((i >> (3 * b + c) & 1) << (7 - b) for b in range(3)) for c in range(3)) for i in (0, DOG, HORSE, WOLF)
}


def official_avss(root: Path, *more: tuple[object, ...]) -> Path:
    """A v1s train video, a v2 test video with two classes and a colour that is none, a v1m test video without sound."""
    rows: list[tuple[object, ...]] = [
        ("tttttttttt_", "tttttttttt__5000_10000", 0, 5, "dog", "train", "v1s"),
        (YT, f"{YT}_61000_71000", 1, 1, "h orse_off-the-screen", "test", "v2"),
        ("mmmmmmmmmmm_1", "mmmmmmmmmmm_1", 0, 0, "background", "test", "v1m"),
        *more,
    ]
    root.mkdir(parents=True)
    (root / "metadata.csv").write_text(AVSS_HEADER + "".join(",".join(map(str, r)) + "\n" for r in rows))
    for _, uid, *_, split, part in rows:
        folder = root / str(part) / str(uid)
        n = 10 if part == "v2" else 5
        for i in range(n):
            write_picture(folder / "frames" / f"{i}.jpg", 20 * i, (64, 48))
            if (part, split) != ("v1s", "train") or i == 0:
                pixels = np.zeros((48, 64, 3), np.uint8)
                pixels[:24, :32] = COLOUR[DOG if part == "v1s" else HORSE]
                if part == "v2" and i == 9:
                    pixels[24:, 32:] = COLOUR[WOLF]
                    pixels[24:, :32] = (1, 2, 3)
                (folder / "labels_rgb").mkdir(exist_ok=True)
                Image.fromarray(pixels).save(folder / "labels_rgb" / f"{i}.png")
        if part != "v1m":
            write_sound(folder / "audio.wav", seconds=n, channels=2)
    write_picture(root / "v2" / "not_listed" / "frames" / "0.jpg")
    return root


def test_avss(tmp_path: Path) -> None:
    media = official_avss(tmp_path / "avs_released")
    assert run(avss.main, media, tmp_path, "--split", "test", "train") == 0
    out = tmp_path / "avss"
    data = EvalSet(out / "avss-test.json", SPEC, tags=("v2",))
    (record,) = data.records
    assert (record.id, record.video, record.audios[0].clip_start) == (f"{YT}_61000_71000", YT, 61.0)
    assert record.tags == ["v2", "off_screen", "unknown_colour"]
    assert [t.class_name for t in record.targets] == ["horse", "wolf"]
    assert len(data) == 10
    horse = np.zeros((224, 224))
    horse[:112, :112] = 1
    wolf = horse[::-1, ::-1]
    first, last = data[0], data[9]
    np.testing.assert_array_equal(first.semantic, HORSE * horse)
    np.testing.assert_array_equal(first.truth, [horse, 0 * horse])
    np.testing.assert_array_equal(last.semantic, HORSE * horse + WOLF * wolf + 255 * horse[::-1])
    np.testing.assert_array_equal(last.truth, [horse, wolf])
    assert last.image.mean() == pytest.approx(180, abs=2)
    assert left_out(out) == {
        "avss__mmmmmmmmmmm_1": "sound missing",
        "avss__v2-not_listed": "no annotation row for this video",
    }
    assert notes(out) == [
        "1 videos have the object 'off-the-screen'; fix off_the_screen: it becomes the tag off_screen",
        "1 videos have the object 'h orse'; fix h_orse: it is read as horse",
        "1 videos have the object 'background'; fix background_object: it is left out",
        "1 records have label colours that are not of the PASCAL VOC palette (tag unknown_colour)",
    ]
    (train,) = EvalSet(out / "avss-train.json", SPEC).records
    assert [f.semantic for f in train.frames] == ["sem.f0.png", None, None, None, None]
    assert train.targets[0].class_id == DOG
    assert train.audios[0].clip_start == 0  # 5 s, but of its VGGSound clip


def test_one_part_of_avss_is_a_set_of_its_own(tmp_path: Path) -> None:
    media = official_avss(tmp_path / "avs_released")
    assert run(avss.main, media, tmp_path, "--only", "v2") == 0
    (record,) = EvalSet(tmp_path / "avss_v2" / "avss_v2-test.json", SPEC).records
    assert record.tags[0] == "v2"
    assert set(left_out(tmp_path / "avss_v2")) == {"avss_v2__v2-not_listed"}


def test_avss_as_published(tmp_path: Path) -> None:
    media = official_avss(tmp_path / "avs_released")
    assert run(avss.main, media, tmp_path, "--as-published") == 0
    data = EvalSet(tmp_path / "avss" / "avss-test.json", SPEC)
    assert data.records[0].tags == ["v2", "unknown_colour", "as_published"]
    names = [(t.class_id, t.class_name) for t in data.records[0].targets]
    assert names == [(HORSE, "horse"), (WOLF, "wolf"), (-1, "h orse"), (-1, "off-the-screen")]
    semantic = data[9].semantic
    assert semantic is not None
    assert set(np.unique(semantic)) == {0, HORSE, WOLF}


UNSEEN = f"{YT},{YT}_61000_71000,1,1,horse,unseen,v2"


def v3_lists(folder: Path, unseen: list[str], shots: dict[int, list[str]]) -> Path:
    """GAVS's files over `official_avss`; the clips of a few-shot training are those of its test."""
    for file, lines in (
        ("meta_v3_seen_train.csv", ["tttttttttt_,tttttttttt__5000_10000,0,5,dog,seen_train,v1s"]),
        ("meta_v3_seen_val.csv", ["x,x_0_10000,0,0,dog,seen_val,v2"]),
        ("meta_v3_unseen.csv", unseen),
        *((f"v3_{k}_shot/{part}.csv", shots.get(k, [])) for k in (1, 3, 5) for part in ("train", "test")),
    ):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes((AVSS_HEADER + "\n".join(lines)).replace("\n", "\r\n").encode())
    return folder


def test_avs_v3(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    media = official_avss(tmp_path / "avs_released")
    lists = v3_lists(tmp_path / "v3", [UNSEEN], {1: [UNSEEN]})
    uid = UNSEEN.split(",")[1]
    options = ["--lists", str(lists), "--split", "test", "train", "train_1shot"]
    assert run(avs_v3.main, media, tmp_path, *options) == 0
    out = tmp_path / "avs_v3"
    (record,) = EvalSet(out / "avs_v3-test.json", SPEC, tags=("v3_1shot_test",)).records
    assert record.tags[:4] == ["v2", "v3_unseen", "v3_1shot_train", "v3_1shot_test"]
    (few,) = EvalSet(out / "avs_v3-train_1shot.json", SPEC).records
    assert (few.id, few.split) == (uid, "train_1shot")
    (train,) = EvalSet(out / "avs_v3-train.json", SPEC, tags=("v3_seen", "v3_seen_train")).records
    assert train.label == "dog"
    assert run(avs_v3.main, media, tmp_path, "--lists", str(lists), "--split", "val", "--dry-run") == 1
    assert "no annotation row" in capsys.readouterr().err


@needs_annotations
def test_the_published_lists_of_s4_and_ms3(tmp_path: Path) -> None:
    for subset, rows, videos in ((S4, 3700, 740), (MS3, 320, 64)):
        flat = tmp_path / subset.short
        (flat / "visual_frames").mkdir(parents=True)
        path = ANNOTATIONS / "avsbench" / f"avs1_{subset.short}_test.csv"
        clips, _ = avsbench.find_clips(subset, tmp_path, "test", path)
        assert len(clips) == videos
        if subset is S4:
            assert {label for c in clips for label in c.labels} == set(LABEL_SPACES["avs_s4_23"])
        else:
            assert len({label for c in clips for label in c.labels}) == 16
        boxes = avsbench.read_boxes(ANNOTATIONS / "avsbench" / f"{subset.short}_box.json")
        assert len(boxes) == rows
        assert {name for name, _ in boxes} == {c.name for c in clips}
        empty = {f"{name}_{k}" for (name, k), box in boxes.items() if not any(box)}
        assert len(empty) == (6 if subset is S4 else 29)
        if subset is S4:
            assert empty == {"CuaFhfDfe5c_5", "6hvB_vTvVao_5", "84vGUGey4pM_5", "1Lf8Fr7huOM_5", "tA_NrYVTlps_1"} | {
                "tA_NrYVTlps_5"
            }
        areas = []
        for raw in boxes.values():
            record = Record(subset.name, "x", targets=[box_target(subset, (), raw)], map_rule="union")
            areas.append(truth_maps(Sample(record, {}), 0).mean())  # type: ignore[union-attr]
        mean, sd = (0.3503, 0.2457) if subset is S4 else (0.2897, 0.2311)
        assert np.mean(areas) == pytest.approx(mean, abs=5e-5)
        assert np.std(areas) == pytest.approx(sd, abs=5e-5)


@needs_annotations
def test_the_published_metadata_of_avss() -> None:
    rows = avss.read_metadata(ANNOTATIONS / "avss" / "metadata.csv")
    assert len(rows) == 11356
    assert Counter((r.label, r.split) for r in rows) == {
        ("v1s", "train"): 3452,
        ("v1s", "val"): 740,
        ("v1s", "test"): 740,
        ("v1m", "train"): 296,
        ("v1m", "val"): 64,
        ("v1m", "test"): 64,
        ("v2", "train"): 4750,
        ("v2", "val"): 500,
        ("v2", "test"): 750,
    }
    assert sum(len(r.labelled) for r in rows if r.split == "test") == 11520
    tokens = {o for r in rows for o in r.objects}
    assert len(tokens) == 73
    assert tokens - set(LABEL_SPACES["avss71"]) == {"off-the-screen", "h orse"}
    assert avss.object_notes(rows, False) == [
        "27 videos have the object 'off-the-screen'; fix off_the_screen: it becomes the tag off_screen",
        "1 videos have the object 'h orse'; fix h_orse: it is read as horse",
        "5 videos have the object 'background'; fix background_object: it is left out",
    ]
    assert next(r for r in rows if "h orse" in r.objects).uid == "zVfLHhs9uv8_3000_8000"
    names = json.loads((ANNOTATIONS / "avss" / "label2idx.json").read_text())
    assert tuple(names) == LABEL_SPACES["avss71"]


@needs_annotations
def test_the_published_lists_of_avs_v3() -> None:
    rows = {(r.uid, r.label): r for r in avss.read_metadata(ANNOTATIONS / "avss" / "metadata.csv")}
    lists = avs_v3.read_lists(ANNOTATIONS / "avs_v3", rows)
    sizes = {split: len(ids) for split, ids in lists.splits.items()}
    assert sizes == {"train": 4807, "val": 535, "test": 758, "train_1shot": 11, "train_3shot": 33, "train_5shot": 55}
    assert all(id in rows for ids in lists.splits.values() for id in ids)
    tags = Counter(tag for own in lists.tags.values() for tag in own)
    assert [tags[f"v3_{k}shot_test"] for k in (1, 3, 5)] == [532, 510, 488]
    assert tags["v3_seen"] == 5342
    assert lists.notes == [
        "3 of the unseen classes are in no few-shot file (bell, harp, squirrel): 543 of 758 clips are, so 0-shot and "
        "few-shot tests differ"
    ]
