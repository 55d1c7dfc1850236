"""Leaks that were put into hand-made lists, one spelling at a time, and the published lists where they are here."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from avloc.audit.leaks import AuditError, audit, find_leaks, read_id
from avloc.data.schema import Audio, Record
from avloc.data.shards import ShardWriter

ANNOTATIONS = Path(__file__).parents[1] / ".." / "shared" / "annotations"
published = pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="the published lists are not here")

YT = "7XQN9XDnRm4"  # in vggss.json as ..._000080
DASH = "-0_a-b_cD_E"  # dashes and underscores at the places where ids are wrongly cut
OTHER = "zpWuikVorYg"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def listed(folder: Path, name: str, *ids: str) -> Path:
    return write(folder / name, "".join(f"{i}\n" for i in ids))


def shards(folder: Path, split: str, *records: Record) -> Path:
    with ShardWriter(folder, "own", split) as writer:
        for record in records:
            writer.add(record, {})
    return folder / f"own-{split}.json"


@pytest.mark.parametrize(
    ("id", "video", "start", "part"),
    [
        (f"{YT}_000080", YT, 80_000, ""),
        (f"{YT}_80000_90000", YT, 80_000, ""),
        (f"{YT}_000080.mp4", YT, 80_000, ""),
        (f"/data/x/{YT}_000080.wav", YT, 80_000, ""),
        (f"{YT}_0_10000", YT, 0, ""),
        (f"{YT}_300", YT, 300_000, ""),  # a file of data_prep.vggsound without leading zeros
        (f"{DASH}_000000", DASH, 0, ""),
        (f"{DASH}_1000_11000", DASH, 1000, ""),
        (YT, YT, None, ""),
        (f"{YT}_5", YT, None, ""),
        (f"{YT}_4000_9000", YT, None, ""),  # AVSBench-semantic v1s: within a VGGSound clip
        (f"{YT}_80000_85000", YT, 80_000, ""),
        (f"{YT}_2_1", YT, None, "2"),
        (f"{YT}_12.mp4_1.png", YT, None, "12"),
        (f"{YT}.mp4_1.png", YT, None, ""),
        (f"{YT}_053_01611", YT, None, ""),
        (f"{YT}_400_12000", YT, None, ""),  # MUSIC at 400 s, not milliseconds
        ("MUSIC_raw/solo/trumpet/nKc4srJBgYU", "nKc4srJBgYU", None, ""),
        ("10000130166.jpg", "10000130166", None, ""),
        ("2432219254", "2432219254", None, ""),
        ("sample0000", None, None, ""),
        ("accordion_female_10438_accordion.jpg", None, None, ""),
        ("000000489267_157452.wav", None, None, ""),
        ("ADE_val_00000001", None, None, ""),
        ("baby_dog_2_1", None, None, ""),  # AVSBench's one name that is no id
        ("dog_barking", None, None, ""),
        ("accordion_1", None, None, ""),
    ],
)
def test_spellings(id: str, video: str | None, start: int | None, part: str) -> None:
    clip = read_id(id)
    assert (clip.video, clip.start, clip.part) == (video, start, part)


def test_clip_video_and_overlap_are_told_apart(tmp_path: Path) -> None:
    train = listed(tmp_path, "train.txt", f"{YT}_000080", f"{DASH}_000100", f"{OTHER}_000032", "aaaaaaaaaaA_000001")
    test = listed(
        tmp_path,
        "test.txt",
        f"{YT}_80000_90000",  # the clip itself
        f"{DASH}_000109",  # one second in common
        f"{DASH}_000110",  # begins where the other ends
        f"{OTHER}_000000",
        "bbbbbbbbbbA_000001",
        "sample0001",
    )
    found = find_leaks(train, [test]).sets[0]
    assert (found.clips, found.videos) == (6, 4)
    assert (found.leaked_clips, found.overlapping, found.leaked_videos) == (1, 1, 4)
    assert (found.undecided, found.unchecked) == (0, 1)
    assert found.share == pytest.approx(4 / 5)
    assert find_leaks(train, [test], "clip").sets[0].share == pytest.approx(1 / 5)
    assert found.examples[0] == {"clip": f"{YT}_80000_90000", "train": f"{YT}_000080"}
    assert len(found.examples) == 3


def test_an_id_is_never_cut_at_an_underscore(tmp_path: Path) -> None:
    """``abc_defghij_000010`` and ``abc_zzzzzzz_000010`` agree up to their first and after their last underscore."""
    train = listed(tmp_path, "train.txt", "abc_defghij_000010")
    test = listed(tmp_path, "test.txt", "abc_zzzzzzz_000010")
    assert find_leaks(train, [test]).total.leaked_videos == 0


def test_ids_without_a_time(tmp_path: Path) -> None:
    train = listed(tmp_path, "train.txt", f"{YT}_000080", DASH, f"{OTHER}_1")
    test = listed(tmp_path, "test.txt", f"{YT}_1", f"{YT}_2", f"{DASH}_1", f"{DASH}_5")
    found = find_leaks(train, [test]).sets[0]
    assert found.clips == 2  # five frames of a video are one clip
    assert (found.leaked_clips, found.leaked_videos, found.undecided) == (1, 2, 1)


def test_parts_of_a_video_are_clips(tmp_path: Path) -> None:
    train = listed(tmp_path, "train.txt", f"{YT}_0", f"{OTHER}_0")  # MS3 names: parts count from 0
    frames = [f"{YT}_{part}_{k}" for part in (0, 1) for k in range(1, 6)]
    found = find_leaks(train, [listed(tmp_path, "test.csv", *frames)]).sets[0]
    assert (found.clips, found.videos, found.leaked_clips, found.leaked_videos) == (2, 1, 1, 2)
    assert found.undecided == 0


def test_columns_quotes_header_and_missing_newline(tmp_path: Path) -> None:
    kept = f'{DASH}_000001,"a ""b"", c"\r\n'
    head, gaps = "\ufefffile,class\r\n", "\r\n# comment\r\n"
    train = write(tmp_path / "train.csv", f'{head}{YT}_000080,"dog, barking"\r\n{gaps}{kept}{OTHER}_000032,x')
    test = write(tmp_path / "test.csv", f'{YT}_000080,"rowboat, canoe"\n{OTHER}_000032,elk')
    found = find_leaks(train, [test])
    assert len(found.train.rows) == 3
    assert found.sets[0].leaked_clips == 2
    clean = tmp_path / "new" / "clean.csv"
    audit(train, [test], clean)
    assert clean.read_bytes() == (head + gaps + kept).encode()


def test_clean_keeps_order_and_bytes_and_duplicates(tmp_path: Path) -> None:
    rows = [
        f'{YT}_000080,"a, b"\n',
        f"{OTHER}_000007,  c\n",
        f'"{YT}_000010",d\n',
        f"{OTHER}_000007,  c\n",
        f"{DASH}_0",
    ]
    train = write(tmp_path / "train.csv", "".join(rows))
    test = listed(tmp_path, "test.txt", f"{YT}_000080")
    audit(train, [test], tmp_path / "by_clip.csv", by="clip")
    audit(train, [test], tmp_path / "by_video.csv")
    assert (tmp_path / "by_clip.csv").read_text() == "".join(rows[1:])
    assert (tmp_path / "by_video.csv").read_text() == rows[1] + rows[3] + rows[4]
    assert train.read_text() == "".join(rows)
    assert not list(tmp_path.glob(".tmp-*"))


def test_clean_is_not_written_over_anything(tmp_path: Path) -> None:
    train = listed(tmp_path, "train.txt", f"{YT}_000080", f"{OTHER}_000001")
    test = listed(tmp_path, "test.txt", f"{YT}_000080")
    for existing in (listed(tmp_path, "mine.txt", "precious"), train):
        before = existing.read_bytes()
        with pytest.raises(AuditError, match=r"exists already"):
            audit(train, [test], existing)
        assert existing.read_bytes() == before


def test_clean_is_not_written_when_nothing_would_be_left(tmp_path: Path) -> None:
    train = listed(tmp_path, "train.txt", f"{YT}_000080")
    with pytest.raises(AuditError, match="Every row"):
        audit(train, [train], tmp_path / "clean.txt")
    assert not (tmp_path / "clean.txt").exists()


def test_json_formats(tmp_path: Path) -> None:
    train = listed(tmp_path, "train.txt", f"{YT}_000080", f"{OTHER}_000001", "10000130166")
    vggss = write(tmp_path / "vggss.json", json.dumps([{"file": f"{YT}_000080", "class": "a", "bbox": []}]))
    root = f"/mnt/x/visual_frames/{OTHER}_2/{OTHER}_2.mp4_1.png"
    ms3 = write(tmp_path / "ms3.json", json.dumps([{"image": root, "audio": f"/mnt/x/audio_wav/{OTHER}_2.wav"}]))
    vpo = [{"image": "/x/000000489267_157452.jpg", "audio": "/x/000000489267_157452.wav"}]
    music = {"version": 1.0, "videos": {"flute": [YT, DASH], "oboe": ["jW_AuF6dQYY"]}}
    files = [vggss, ms3, write(tmp_path / "vpo.json", json.dumps(vpo)), write(tmp_path / "m.json", json.dumps(music))]
    found = find_leaks(train, [*files, write(tmp_path / "ids.json", '["10000130166"]')]).sets
    assert [s.clips for s in found] == [1, 1, 1, 3, 1]
    assert [s.leaked_clips for s in found] == [1, 0, 0, 0, 1]
    assert [s.leaked_videos for s in found] == [1, 1, 0, 1, 1]
    assert [s.unchecked for s in found] == [0, 0, 1, 0, 0]
    assert found[2].share is None


def test_both_columns_of_negatives_and_duets_count(tmp_path: Path) -> None:
    train = listed(tmp_path, "train.txt", f"{YT}_000080")
    silent = write(tmp_path / "silent.csv", f"video,audio,label\n{OTHER}_000001,{YT}_000080,non-sounding\n")
    duet = write(tmp_path / "duet.csv", f"{OTHER}_000001,dog,{YT}_000080,cat\n{OTHER}_000009,dog,{OTHER}_000002,cat\n")
    found = find_leaks(train, [silent, duet]).sets
    assert [(s.clips, s.leaked_clips) for s in found] == [(2, 1), (4, 1)]
    # A training duet leaks by its partner too.
    assert find_leaks(duet, [train]).leaking == {"clip": [0], "video": [0]}


def test_starts_in_columns(tmp_path: Path) -> None:
    test = listed(tmp_path, "test.txt", f"{YT}_80000_90000", f"{DASH}_000030")
    official = write(tmp_path / "vggsound.csv", f'{YT},80,"dog, big",train\n{OTHER},1,x,train\n{DASH},30,x,test\n')
    audioset = write(
        tmp_path / "audioset.csv", f'# YTID, start\n{YT}, 80.000, 90.000, "/m/1,/m/2"\n{OTHER}, 0.0, 9.0, "/m/1"\n'
    )
    named = write(tmp_path / "named.csv", f"label,youtube_id,start_seconds\ndog,{YT},80\ncat,{OTHER},3\n")
    for train in (official, audioset, named):
        found = find_leaks(train, [test])
        assert found.leaking == {"clip": [0], "video": [0]}, train
        assert len(found.train.rows) == 2
    audit(official, [test], tmp_path / "clean.csv")
    assert (tmp_path / "clean.csv").read_text() == f"{OTHER},1,x,train\n{DASH},30,x,test\n"


def test_a_file_with_both_splits_is_taken_apart(tmp_path: Path) -> None:
    rows = [f"{YT},{YT}_80000_90000,1,20,dog,train,v2", f"{OTHER},{OTHER}_0_10000,0,0,dog,test,v2"]
    rows += [f"{YT},{YT}_0_10000,0,0,dog,test,v2", f"{DASH},{DASH}_0_10000,0,0,dog,val,v2"]
    metadata = write(tmp_path / "metadata.csv", "\n".join(["vid,uid,s_min,s_sec,a_obj,split,label", *rows]))
    found = find_leaks(metadata, [metadata])
    assert (len(found.train.rows), found.train.other_split) == (1, 3)
    assert (found.sets[0].clips, found.sets[0].other_split) == (2, 2)
    assert (found.sets[0].leaked_clips, found.sets[0].leaked_videos) == (0, 1)


def test_tabs(tmp_path: Path) -> None:
    train = write(tmp_path / "train.tsv", f"{YT}_000080\tdog, big\n{OTHER}_000001\tx\n")
    assert find_leaks(train, [train]).total.leaked_clips == 2


def test_total_counts_a_clip_once(tmp_path: Path) -> None:
    train = listed(tmp_path, "train.txt", f"{YT}_000080")
    a = listed(tmp_path, "a.txt", f"{YT}_000080", f"{OTHER}_000001")
    (tmp_path / "b").mkdir()
    b = listed(tmp_path / "b", "a.txt", f"{YT}_80000_90000", f"{DASH}_000001")
    found = find_leaks(train, [a, b])
    assert (found.total.clips, found.total.leaked_clips) == (3, 1)
    assert found.sets[0].name != found.sets[1].name


def test_shards(tmp_path: Path) -> None:
    train = shards(
        tmp_path / "train",
        "train",
        Record("own", f"{YT}_000080", video=YT),
        Record("own", f"{OTHER}_0_10000", video=OTHER),
        Record("own", "walk_3", video="monday"),
    )
    test = shards(
        tmp_path / "test",
        "test",
        Record("own", "row_1", split="test", audios=[Audio(None, src_id=f"{YT}_000080")]),
        Record("own", "walk_4", split="test", video="monday"),
        Record("own", "walk_9", split="test", video="friday"),
    )
    found = find_leaks(train, [test])
    assert found.sets[0].clips == 3
    assert (found.sets[0].leaked_clips, found.sets[0].leaked_videos, found.sets[0].unchecked) == (1, 2, 0)
    audit(train, [test], tmp_path / "clean.txt")
    assert (tmp_path / "clean.txt").read_text() == f"{OTHER}_000000\n"

    from data_prep.vggsound import read_ids

    assert read_ids(tmp_path / "clean.txt") == {f"{OTHER}_000000"}


def test_equal_names_are_found_where_no_video_is_known(tmp_path: Path) -> None:
    train = listed(tmp_path, "train.txt", "walk 1.mp4", "walk 2.mp4", f"{YT}_000080")
    found = find_leaks(train, [listed(tmp_path, "test.txt", "walk 2.wav", "walk 3.wav")]).sets[0]
    assert (found.leaked_clips, found.unchecked, found.share) == (1, 1, 1.0)


def test_nothing_checked_is_no_clean_bill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = listed(tmp_path, "train.txt", f"{YT}_000080")
    samples = listed(tmp_path, "samples.csv", "sample0000", "sample0001")
    for a, b, guilty in ((train, samples, "evaluation sets"), (samples, train, "samples.csv")):
        with pytest.raises(AuditError, match=rf"Nothing could be checked.*{guilty}"):
            audit(a, [b], tmp_path / "clean.txt")
        assert "Cannot be checked" in capsys.readouterr().out
    assert not (tmp_path / "clean.txt").exists()
    audit(train, [samples, train])  # one of two could be checked
    assert "Cannot be checked: 2 of 2 clips of samples.csv" in capsys.readouterr().out


def test_json_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = listed(tmp_path, "train.txt", f"{YT}_000080", f"{YT}_000010", f"{OTHER}_000001")
    test = listed(tmp_path, "test.txt", f"{YT}_000080")
    audit(train, [test], tmp_path / "clean.txt", by="clip", json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["train"]["rows_leaking_by_clip"] == 1
    assert result["train"]["rows_leaking_by_video"] == 2
    assert result["sets"][0]["leaked_clips"] == result["total"]["leaked_clips"] == 1
    assert result["clean"] == {"file": str(tmp_path / "clean.txt"), "kept": 2, "removed": 1}


def test_report_says_what_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = listed(tmp_path, "train.txt", f"{YT}_000080", f"{YT}_000010", f"{OTHER}_000001")
    test = listed(tmp_path, "test[1].txt", f"{YT}_80000_90000")
    audit(train, [test], tmp_path / "clean.txt", by="clip")
    out = capsys.readouterr().out
    assert "test[1].txt" in out
    assert f"{YT}_80000_90000 (train: {YT}_000080)" in out
    assert "2 rows kept, 1 left out by clip" in out
    assert "1 rows of videos that are evaluated stay" in out


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.txt", b"", "holds no ids"),
        ("header.csv", b"video,audio,label\n", "holds no ids"),
        ("quote.csv", b'aaaaaaaaaaA_000001,"open\naaaaaaaaaaA_000002,x\n', "line 1"),
        ("blank.csv", b"aaaaaaaaaaA_000001,x\n,y\n", "line 2"),
        ("short.csv", b"class,uid\ndog,aaaaaaaaaaA_000001\ncat\n", "line 3"),
        ("latin.csv", b"aaaaaaaaaaA_000001,caf\xe9\n", "line 1"),
        ("shard.tar", b"meta.json\0\0", "is not text"),
        ("cut.json", b'[{"file": "aaa', "is not"),
        ("index.json", b'x{"shards": [\n{"file": "a.tar"}]}\n', "is not"),
        ("labels.json", b'{"background": 1}', "no list of annotations"),
        ("boxes.json", b'[{"bbox": [1, 2]}]', "entry 0"),
        ("empty.json", b"[]", "holds no ids"),
    ],
)
def test_bad_lists(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    good = listed(tmp_path, "good.txt", f"{YT}_000080")
    bad = write(tmp_path / name, content)
    for train, test in ((good, bad), (bad, good)):
        with pytest.raises(AuditError, match=told) as e:
            find_leaks(train, [test])
        assert name in str(e.value)


def test_missing_files(tmp_path: Path) -> None:
    good = listed(tmp_path, "good.txt", f"{YT}_000080")
    with pytest.raises(AuditError, match="does not exist"):
        find_leaks(good, [tmp_path / "absent.txt"])
    shards(tmp_path / "own", "test", Record("own", "a"))
    with pytest.raises(AuditError, match=r"is a folder.*own-test.json"):
        find_leaks(good, [tmp_path / "own"])
    with pytest.raises(AuditError, match="No evaluation set"):
        find_leaks(good, [])


def first_column(path: str) -> list[str]:
    with (ANNOTATIONS / path).open(newline="") as f:
        return [row[0] for row in csv.reader(f)]


@published
def test_published_training_lists_against_vggss() -> None:
    """The circulating list holds thousands of test clips; here as far as its first 2,000 rows show it."""
    vggss = ANNOTATIONS / "vggss" / "vggss.json"
    test = {r["file"] for r in json.loads(vggss.read_text())}
    train = set(first_column("vggsound/vggss_144k.txt"))
    found = find_leaks(ANNOTATIONS / "vggsound" / "vggss_144k.txt", [vggss]).sets[0]
    videos = {i[:11] for i in train}
    assert (found.clips, found.videos) == (5158, 5017)
    assert found.leaked_clips == len(test & train) > 0
    assert found.leaked_videos == sum(i[:11] in videos for i in test)
    starts = {v: [int(i[12:]) for i in train if i[:11] == v] for v in videos & {i[:11] for i in test}}
    near = [i for i in test - train if any(abs(int(i[12:]) - s) < 10 for s in starts.get(i[:11], []))]
    assert found.overlapping == len(near)
    heard = find_leaks(ANNOTATIONS / "vggsound" / "vggss_heard.csv", [vggss], "clip")
    assert (heard.sets[0].leaked_clips, len(heard.train.rows)) == (0, 2000)
    official = find_leaks(ANNOTATIONS / "vggsound" / "vggss_10k.csv", [ANNOTATIONS / "vggsound" / "test.csv"]).sets[0]
    assert (official.clips, official.leaked_clips) == (2000, 0)


@published
def test_published_spellings_agree() -> None:
    """All VGG-SS files are the same clips; S4's frames, boxes and metadata the same videos, 22 of them in VGG-SS."""
    vggss = ANNOTATIONS / "vggss" / "vggss.json"
    names = ["vggss/ours_vggss.txt", "vggss/vggss_test.csv", "vggsound_duet/vggsound_duet_test.csv"]
    found = find_leaks(vggss, [ANNOTATIONS / n for n in names], "clip").sets
    assert [(s.clips, s.leaked_clips) for s in found] == [(4655, 4655), (5158, 5158), (5158, 5158)]
    names = ["avsbench/avs1_s4_test.csv", "avsbench/s4_box.json", "avsbench/avs1_ms3_test.csv", "avsbench/ms3_box.json"]
    found = find_leaks(vggss, [ANNOTATIONS / n for n in names]).sets
    assert [s.clips for s in found] == [740, 740, 64, 64]
    assert [s.leaked_videos for s in found[:2]] == [22, 22]
    everything = find_leaks(ANNOTATIONS / "avss" / "metadata.csv", [ANNOTATIONS / n for n in names[:3]])
    assert everything.total.clips == 740 + 64
    with (ANNOTATIONS / "avss" / "metadata.csv").open(newline="") as f:
        trained = {r["uid"][:11] for r in csv.DictReader(f) if r["split"] == "train"}
    s4 = {i[:11] for i in first_column("avsbench/avs1_s4_test.csv")}
    assert everything.sets[0].leaked_videos == len(s4 & trained)
    ms3 = {i.rpartition("_")[0] for i in first_column("avsbench/avs1_ms3_test.csv")}
    assert everything.sets[2].leaked_videos == sum(i[:11] in trained for i in ms3)


@published
def test_published_sets_without_videos_and_flickr() -> None:
    flickr = ANNOTATIONS / "flickr"
    sets = ["is3/synthetic3240_bbox.json", "vpo/vpo_ms_bbox.json", "vpo/vpo_ss_bbox.json"]
    sets += ["vggsound_instruments/vgginstruments_test.csv", "vggsound_instruments/vgginstruments_multi_test.csv"]
    found = find_leaks(ANNOTATIONS / "vggsound" / "vggss_144k.txt", [ANNOTATIONS / s for s in sets]).sets
    assert [s.unchecked for s in found] == [6480, 2157, 890, 446, 446]
    assert {s.share for s in found} == {None}
    tested = set(first_column("flickr/flickr_test.csv"))
    trained = set(first_column("flickr/flickr_144k.txt"))
    for name in ("flickr_test.csv", "test_flickr_250.txt", "flickr_test_plus_silent.csv"):
        leaks = find_leaks(flickr / "flickr_144k.txt", [flickr / name]).sets[0]
        assert (leaks.clips, leaks.leaked_clips, leaks.leaked_videos) == (250, *(2 * [len(tested & trained)]))
    supervised = find_leaks(flickr / "flickr_sup_train.txt", [flickr / "flickr_test.csv"])  # disjoint: section 2.5
    assert (len(supervised.train.rows), supervised.total.leaked_videos) == (4750, 0)


@published
def test_published_music_splits_are_disjoint() -> None:
    music = ANNOTATIONS / "music"
    found = find_leaks(music / "music_solo_train.txt", [music / "music_solo_test.csv", music / "music_solo.json"]).sets
    assert [(s.clips, s.leaked_videos) for s in found] == [(20, 0), (20, 0)]  # 20 videos: section 2.17
    assert find_leaks(music / "music_duet_train.txt", [music / "music_duet.json"]).sets[0].clips == 6
