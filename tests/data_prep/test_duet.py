from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avloc.data.indexed import EvalSet
from avloc.data.labels import LABEL_SPACES
from data_prep.vgg_duet import Boxes, Pair, draw_mixtures, main, read_pairs, target_of, underscored
from data_prep.vggsound import class_ids, read_boxes
from tests.data.clips import write_clip
from tests.data_prep.loose import SPEC, areas, official, read, skipped, write_picture, write_sound

DUET, SINGLE = "vggsound_duet/vggsound_duet_test.csv", "vggsound_duet/vggsound_single_test.csv"
BOXES = "vggss/vggss.json"


def drawn(boxes: list[list[float]], most: int) -> np.ndarray:
    """Plain loop over cells of the published rasterisation; cells count their boxes, up to ``most``."""
    count = np.zeros((224, 224))
    for box in boxes:
        x0, y0, x1, y1 = (int(min(max(v, 0.0), 1.0) * 224) for v in box)
        for y in range(y0, y1):
            for x in range(x0, x1):
                count[y, x] = min(count[y, x] + 1, most)
    return count


def test_the_official_lists() -> None:
    boxes = read_boxes(official(BOXES))
    pairs = read_pairs(official(DUET), boxes)
    assert len(pairs) == len({p.ids[0] for p in pairs}) == 5158
    partners = Counter(p.ids[1] for p in pairs)
    assert (len(partners), max(partners.values())) == (3255, 6)
    assert sum(p.same_class for p in pairs) == 22
    assert {p.ids for p in pairs} >= {("zpWuikVorYg_000032", "Rtg1SUrxOPY_000130")}
    assert len({p.labels[0] for p in pairs}) == 221
    assert all(boxes[i][0] == label for p in pairs for i, label in zip(p.ids, p.labels, strict=True))
    single = read_pairs(official(SINGLE), boxes)
    assert [p.ids[0] for p in single] == [p.ids[0] for p in pairs]
    names = {label for label, _ in boxes.values()}
    assert len({underscored(n) for n in names}) == len(names) == 221
    assert sorted(names) == list(LABEL_SPACES["vggss221"])
    assert underscored("female speech, woman speaking") == "female_speech_woman_speaking"


def test_areas_of_own_and_partner_boxes() -> None:
    boxes = read_boxes(official(BOXES))
    ids = class_ids(label for label, _ in boxes.values())
    pairs = read_pairs(official(DUET), boxes)
    own, partner = (areas([target_of(t, p.ids[t], boxes, ids) for p in pairs]) for t in (0, 1))
    np.testing.assert_allclose([own.mean(), own.std(), np.median(own)], [0.3124, 0.2342, 0.2532], atol=5e-5)
    np.testing.assert_allclose([partner.mean(), partner.std()], [0.3128, 0.2328], atol=5e-5)
    summed = areas([target_of(0, p.ids[0], boxes, ids) for p in pairs], "sum")
    np.testing.assert_allclose([summed.mean(), summed.std()], [0.3148, 0.2382], atol=5e-5)
    # Samples with overlapping boxes, counted by another script.
    assert (summed > own + 1e-7).sum() == 144


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The first real pair, the first with overlapping boxes, and one of the same class, in the layout of AVGN."""
    boxes = read_boxes(official(BOXES))
    rows = list(csv.reader(official(DUET).open()))
    overlapping = next(r for r in rows if drawn(boxes[r[0]][1], 9).max() > 1)
    same = next(r for r in rows if r[1] == r[3])
    return lay_out(tmp_path, [rows[0], overlapping, same], boxes)


def lay_out(folder: Path, rows: list[list[str]], boxes: Boxes) -> Path:
    """AVGN's layout of these pairs, and the list of their first clips."""
    folder.mkdir(exist_ok=True)
    (folder / "duet.csv").write_text("".join(",".join(r) + "\n" for r in rows))
    (folder / "single.csv").write_text("".join(",".join(r[:2]) + "\n" for r in rows))
    used = list(dict.fromkeys(k for r in rows for k in (r[0], r[2])))
    records = [{"file": k, "class": boxes[k][0], "bbox": boxes[k][1]} for k in used]
    (folder / "vggss.json").write_text(json.dumps(records))
    for n, key in enumerate(used):
        write_picture(folder / "media" / "frames" / f"{key}.jpg", 40 * n)
        write_sound(folder / "media" / "audio" / f"{key}.wav", n / 20)
    return folder


def convert(folder: Path, *options: str, table: str = "duet.csv") -> int:
    common = ["--boxes", str(folder / "vggss.json"), "--annotations", str(folder / table), "--out", str(folder)]
    return main([*common, "--jobs", "1", *options])


@pytest.mark.parametrize("published", [False, True])
def test_pairs(release: Path, published: bool) -> None:
    rows = {r[0]: (n, r) for n, r in enumerate(csv.reader((release / "duet.csv").open()))}
    assert convert(release, "--media", str(release / "media"), *(["--as-published"] if published else [])) == 0
    boxes = {r["file"]: r["bbox"] for r in json.loads((release / "vggss.json").read_text())}
    data = read(release, "vgg_duet")
    assert len(data) == 3
    zero = np.zeros((224, 224))
    for i, record in enumerate(data.records):
        n, (own, _, partner, _) = rows[record.id]
        item = data[i]
        left, right = (drawn(boxes[k], 9 if published else 1) for k in (own, partner))
        np.testing.assert_array_equal(item.truth, [np.hstack([left, zero]), np.hstack([zero, right])])
        np.testing.assert_allclose(item.audio, 2 * n / 20 + (2 * n + 1) / 20, atol=1e-4)
        assert [t.audio for t in record.targets] == [0, 1]
        assert [underscored(label) for label in item.label] == [rows[record.id][1][1], rows[record.id][1][3]]
        assert [a.src_id for a in record.audios] == [own, partner]
        assert [a.clip_start for a in record.audios] == [int(own[12:]), int(partner[12:])]
        assert record.video == own[:11]
        assert record.provenance.note.endswith("as published") == published
        assert set(record.tags) == {"duet", *(["same_class"] if n == 2 else []), *(["as_published"] * published)}
    most = max(float(data[i].truth.max()) for i in range(3))  # type: ignore[union-attr]
    assert most == 1 if not published else most >= 2
    index = json.loads((release / "vgg_duet" / "vgg_duet-test.json").read_text())
    assert "1 pairs have the same class (tag same_class)" in index["notes"]
    assert any(n.startswith("as published: overlapping boxes add up") for n in index["notes"]) == published


def test_single(release: Path) -> None:
    assert convert(release, "--media", str(release / "media"), table="single.csv") == 0
    boxes = {r["file"]: r["bbox"] for r in json.loads((release / "vggss.json").read_text())}
    data = read(release, "vgg_single")
    assert len(data) == 3
    for i, record in enumerate(data.records):
        np.testing.assert_array_equal(data[i].truth, [drawn(boxes[record.id], 1)])
        assert record.tags == []
    reasons = Counter(skipped(release, "vgg_single").values())
    assert reasons == {"no annotation row for this picture": 3}  # the partners' pictures


def test_mixtures_of_more_are_drawn_from_the_single_list(release: Path) -> None:
    """Six clips; the pair of one class may not be mixed with each other."""
    rows = list(csv.reader((release / "duet.csv").open()))
    singles = {r[0]: r[1] for r in rows} | {r[2]: r[3] for r in rows}
    (release / "single.csv").write_text("".join(f"{k},{c}\n" for k, c in singles.items()))
    for sources in (3, 4):
        more = ["--sources", str(sources)]
        assert convert(release, "--media", str(release / "media"), *more, table="single.csv") == 0
        data = read(release, f"vgg_mix{sources}")
        assert {r.id for r in data.records} == set(singles)
        for i, record in enumerate(data.records):
            assert record.tags == ["duet"]
            assert record.audios[0].src_id == record.id
            labels = [underscored(label) for label in data[i].label]
            assert labels == [singles[str(a.src_id)] for a in record.audios]
            assert len(set(labels)) == sources
            assert data[i].truth.shape == (sources, 224, sources * 224)
        index = json.loads((release / f"vgg_mix{sources}" / f"vgg_mix{sources}-test.json").read_text())
        assert any("T-VSL's list is not published" in n for n in index["notes"])


def test_partners_are_drawn_uniformly_and_alike_for_everybody() -> None:
    singles = [Pair((f"clip{i}",), ("abcde"[i // 20],)) for i in range(100)]
    drawn = draw_mixtures(singles, 3, seed=1)
    assert drawn == draw_mixtures(singles, 3, seed=1)
    assert drawn != draw_mixtures(singles, 3, seed=2)
    many = [m for seed in range(150) for m in draw_mixtures(singles, 3, seed)[:20]]
    second = Counter(m.ids[1] for m in many)
    assert not any(f"clip{i}" in second for i in range(20))  # of its own class
    # 80 clips, 37.5 times each: five standard deviations are 30.4
    assert len(second) == 80
    assert 7 < min(second.values()) <= max(second.values()) < 68
    assert all(len(set(m.labels)) == 3 for m in many)
    with pytest.raises(ValueError, match="give vggsound_single_test"):
        draw_mixtures(singles[:50], 4)


def test_clips_instead_of_loose_files(release: Path) -> None:
    rows = list(csv.reader((release / "duet.csv").open()))
    for key in (rows[0][0], rows[0][2], rows[1][0]):
        write_clip(release / "videos" / f"{key[:11]}_{int(key[12:])}.mp4", seconds=6, fps=5)
    assert convert(release, "--videos", str(release / "videos")) == 0
    data = read(release, "vgg_duet")
    assert [r.id for r in data.records] == [rows[0][0]]
    record = data.records[0]
    assert [(f.member, f.t) for f in record.frames] == [("f0.png", 5.0), ("f1.png", 5.0)]
    assert abs(data[0].image.mean() - 4 * 25) < 3  # the frame at 5 s, 5 fps
    assert set(skipped(release, "vgg_duet").values()) == {"video missing"}
    more = ["--rate", "44100", "--name", "vgg_duet_44k"]
    assert convert(release, "--videos", str(release / "videos"), *more) == 0
    spec = replace(SPEC, sample_rate=44100, seconds=3.0)
    data = EvalSet(release / "vgg_duet_44k" / "vgg_duet_44k-test.json", spec)
    assert (data.records[0].audios[0].rate, data[0].audio.shape) == (44100, (3 * 44100,))
    peak = np.abs(np.fft.rfft(data[0].audio)).argmax() / 3  # Hz
    assert abs(peak - 440) < 1


def test_wrong_lists_are_named(release: Path, capsys: pytest.CaptureFixture) -> None:
    row = next(csv.reader((release / "duet.csv").open()))
    media = ["--media", str(release / "media")]
    for lines, options, says in (
        ([row, row], media, f"more than once ({row[0]})"),
        ([[row[0], "elk"]], media, f"row 1: {row[0]} is of class 'elk' here"),
        ([[row[0], row[3]]], media, f"row 1: {row[0]} is of class"),
        ([row, row[2:]], media, "rows with and without a partner"),
        ([row], [], "Give either --videos or --media"),
        ([row], ["--videos", str(release / "no")], "is not a folder"),
    ):
        (release / "duet.csv").write_text("".join(",".join(r) + "\n" for r in lines))
        with pytest.raises(SystemExit):
            convert(release, *options)
        assert says in capsys.readouterr().err
