"""The road of real media, from files to records and overlays: cases that failed, and clips of every codec and container
that PyAV has here. Pictures and sounds tell the time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from avloc.data.index import read_index, read_shard
from avloc.data.media import Damage, MediaError, frames_at, opened, probe, read_clip, read_picture
from avloc.data.schema import Record
from avloc.localize.run import localize_still, localize_video
from avloc.methods.base import Localizer
from avloc.types import AVBatch, InputSpec, Localization
from data_prep.vggsound import main as vggsound
from tests.data.timecode import FPS, VARIANTS, number, shift, write

pytestmark = pytest.mark.media
CASES = Path(__file__).parents[2] / ".." / "shared" / "cases" / "media"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="shared/cases is not here")
RATE = 16000
MILLISECOND = 0.00101  # to which containers round


class Watching(Localizer):
    """Remembers what it was fed; hot everywhere."""

    input_spec = InputSpec(image_size=144, sample_rate=RATE, seconds=1.0)

    def __init__(self) -> None:
        super().__init__()
        self.fed: list[AVBatch] = []

    def localize(self, batch: AVBatch) -> Localization:
        self.fed.append(batch)
        return Localization(torch.ones(len(batch), 1, 4, 4), torch.ones(len(batch), 1))


def case_number(picture: Image.Image) -> int:
    """What the squares of the cases say: 40 pixels wide, from (16, 24) on, 48 and 80 apart, of 320 x 192."""
    grey = np.asarray(picture.convert("L"), float)
    n = 0
    for bit in range(12):
        row, column = divmod(bit, 6)
        y, x = 44 + 80 * row, 36 + 48 * column
        n |= int(grey[y - 3 : y + 4, x - 3 : x + 4].mean() > 127) << bit
    return n


def convert(folder: Path, out: Path, ids: dict[str, int], *more: str) -> dict[str, tuple[Record, dict[str, bytes]]]:
    """Records of a folder's clips by id, through `data_prep.vggsound`."""
    (out / "list.csv").write_text("".join(f"{id},{start},dog,test\n" for id, start in ids.items()))
    arguments = ["--videos", str(folder), "--csv", str(out / "list.csv"), "--out", str(out), "--split", "test"]
    assert vggsound([*arguments, "--jobs", "2", *more]) == 0
    index = read_index(next((out / (more[1] if "--name" in more else "vggsound")).glob("*-test.json")))
    raws = [raw for i in range(len(index.shards)) for raw in read_shard(index.locate(i))]
    return {(record := Record.from_json(raw["meta.json"])).id: (record, raw) for raw in raws}


def stored(raw: dict[str, bytes]) -> tuple[Image.Image, np.ndarray]:
    """Picture and sound of a record."""
    return Image.open(io.BytesIO(raw["f0.png"])), soundfile.read(io.BytesIO(raw["a0.flac"]))[0]


@needs_cases
@pytest.mark.parametrize(
    ("name", "late"),
    [
        ("base_000001.mp4", 0),
        ("mpegts_in_mp4_000003.mp4", 0),
        ("antiphase_000024.mp4", 0),
        ("audio_gap.mkv", 0),
        ("clip.wmv", 0),
        ("video_starts_2s_late_000007.mp4", 2),
    ],
)
def test_the_frame_of_a_second_and_its_sound(name: str, late: int) -> None:
    media = probe(CASES / name)
    for t in (0.0, 0.5, 2.96, 3.0, 5.0, 9.0, 10.5):
        (shown,) = media.at([t])
        assert case_number(shown.image) == max(0, round(25 * (t - late))), t
        assert shown.late == pytest.approx(max(0, late - t), abs=1e-6)
    assert [case_number(s.image) for s in media.at([3.0, 4.0, 5.0])] == [25 * (t - late) for t in (3, 4, 5)]
    for t in (0.0, 1.5, 6.0, 9.0):
        assert shift(media.hear(RATE, t, 1.0).wave, t, RATE) == pytest.approx(0, abs=0.02), t


@needs_cases
@pytest.mark.parametrize("name", ["050000", "125000", "250000"])
def test_key_frames_far_apart(name: str) -> None:
    """What is sought is what stands there when all is decoded from the start."""
    media = probe(CASES / "seeking" / f"tsGop{name}_000010.mp4")
    every = [(t, media.pixels(f)) for t, f in media.frames()]
    for t in (1.5, 3.0, 5.0, 7.02, 9.9):
        on_screen = [p for at, p in every if at <= t + 1e-6][-1]
        np.testing.assert_array_equal(np.asarray(media.at([t])[0].image), on_screen)


@needs_cases
def test_one_clock_for_both() -> None:
    plain, moved, late = (
        probe(CASES / "clip_clock" / f"{n}_000010.mp4") for n in ("plainStart0", "mp4Start05s", "vLate003s00")
    )
    for t in (0.0, 4.0, 9.5):
        a, b = (np.asarray(m.at([t])[0].image, int) for m in (plain, moved))
        assert np.abs(a - b).mean() < 2
    a, b = plain.hear(RATE, 0.0, 10.0).wave, moved.hear(RATE, 0.0, 10.0).wave
    assert abs(len(a) - len(b)) < 0.05 * RATE
    n = min(len(a), len(b))
    assert max(np.corrcoef(a[: n - k], b[k:n])[0, 1] for k in range(0, 400, 4)) > 0.9 or np.abs(b[:RATE]).max() > 0.1
    shown = late.at([1.0, 3.0, 5.0])
    assert [s.late for s in shown] == pytest.approx([2.0, 0, 0], abs=1e-3)
    np.testing.assert_array_equal(np.asarray(shown[0].image), np.asarray(shown[1].image))
    assert read_clip(late.source, 10.0, 2.0).found["first_frame_late"] == pytest.approx(1.0, abs=1e-3)


@needs_cases
def test_turned_pictures_stand_upright(tmp_path: Path) -> None:
    for name in ("rot90_____000011.mp4", "turned_pictures/rotatedVid0_000010.mp4"):
        media = probe(CASES / name)
        (upright,), (lying,) = media.at([3.0]), media.at([3.0], upright=False)
        with opened(CASES / name) as container:
            turn = next(container.decode(video=0)).rotation
        assert abs(turn) == 90
        np.testing.assert_array_equal(np.asarray(upright.image), np.rot90(np.asarray(lying.image), turn // 90))
    picture = read_picture(CASES / "turned_pictures" / "m" / "frames" / "exif6xxxxxx_000021.jpg")
    stored_one = Image.open(CASES / "turned_pictures" / "m" / "frames" / "exif6xxxxxx_000021.jpg")
    assert picture.size == stored_one.size[::-1]
    made = convert(CASES, tmp_path, {"rot90____": 11})
    record, raw = made["rot90_____000011"]
    assert record.media == {"turned": 1.0}
    assert case_number(stored(raw)[0].rotate(-90 if turn_of_case() == 90 else 90, expand=True)) == 125
    made = convert(CASES, tmp_path, {"rot90____": 11}, "--name", "published", "--as-published")
    assert case_number(stored(made["rot90_____000011"][1])[0]) == 125


def turn_of_case() -> int:
    with opened(CASES / "rot90_____000011.mp4") as container:
        return next(container.decode(video=0)).rotation


@needs_cases
def test_played_is_what_a_player_plays() -> None:
    for name in (
        "coverFirst0_000010.mp4",
        "coverLast00_000010.mp4",
        "twoTracks00_000010.mkv",
        "twoTracks00_000010.mp4",
    ):
        media = probe(CASES / "stream_choice" / name)
        assert (media.width, media.height) == (320, 240)
        heard = media.hear(RATE, 1.0, 2.0)
        assert heard.faults == {}
        assert np.abs(heard.wave).max() > 0.05
    with pytest.raises(MediaError, match=r"songCover.*holds no moving pictures"):
        frames_at(CASES / "stream_choice" / "songCover00_000010.m4a", [0.0])


@needs_cases
def test_gaps_are_silence_of_their_length() -> None:
    heard = probe(CASES / "audio_gap.mkv").hear(RATE, 0.0, 10.0)
    loud = np.abs(heard.wave.reshape(-1, RATE // 10)).max(1) > 0.05
    assert [k for k in range(100) if not loud[k]] in (list(range(30 + a, 50 - b)) for a in (0, 1) for b in (0, 1))
    assert heard.gaps == pytest.approx(2.0, abs=0.05)
    assert heard.lost == 0


@needs_cases
def test_cases_become_records_that_say_what_was_met(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ids = {"base": 1, "mpegts_in_mp4": 3, "antiphase": 24, "corrupt_middle": 37, "video_starts_2s_late": 7}
    made = convert(CASES, tmp_path, ids)
    assert {id.rpartition("_")[0] for id in made} == set(ids)
    for id, (record, raw) in made.items():
        picture, sound = stored(raw)
        assert case_number(picture) == (75 if "late" in id else 125)
        assert record.frames[0].t == 5.0
        assert len(sound) == 10 * RATE
        assert shift(sound[RATE : 2 * RATE], 1.0, RATE) == pytest.approx(0, abs=0.02)
        assert np.abs(sound).max() > 0.05
    found = {id.rpartition("_")[0]: record.media for id, (record, _) in made.items()}
    assert found["base"] == found["mpegts_in_mp4"] == {}
    assert found["antiphase"] == {"antiphase": 1.0}
    assert found["corrupt_middle"]["damaged"] == pytest.approx(0.38, abs=0.03)
    said = capsys.readouterr().err
    assert "damaged: what decodes is used" in said
    assert "1 (0.38 s lost)" in said
    table = (tmp_path / "vggsound" / "media-test.csv").read_text()
    assert "vggsound__antiphase_000024,antiphase,1.0" in table


@needs_cases
def test_damage_is_told_where_the_frame_is_lost() -> None:
    shown = probe(CASES / "corrupt_middle_000037.mp4").at([5.0, 6.8, 9.0, 10.2])
    assert [s.lost for s in shown] == [False, True, True, False]
    with pytest.raises(MediaError, match=r"is damaged: its frame at 7 s"):
        read_clip(CASES / "corrupt_middle_000037.mp4", 10.0, 7.0)
    damage = Damage()
    times = [t for t, _ in probe(CASES / "corrupt_middle_000037.mp4").frames(damage)]
    assert 280 < len(times) < 300
    assert damage


@needs_cases
def test_overlays_of_cases(tmp_path: Path) -> None:
    model = Watching()
    localize_video(model, CASES / "clip.wmv", tmp_path / "wmv", fps=1, progress=False)
    assert probe(tmp_path / "wmv" / "overlay.mp4").seconds == pytest.approx(12, abs=0.1)
    localize_video(model, CASES / "bars709.mp4", tmp_path / "bars", fps=1, alpha=0.0, progress=False)
    before, after = (
        np.asarray(probe(path).at([1.0])[0].image, int)
        for path in (CASES / "bars709.mp4", tmp_path / "bars" / "overlay.mp4")
    )
    assert np.abs(before[100, 20::160] - after[100, 20::160]).max() <= 4
    with opened(tmp_path / "bars" / "overlay.mp4") as container:
        assert next(container.decode(video=0)).colorspace == 1
    data = (tmp_path / "bars" / "overlay.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@needs_cases
def test_stills_of_cases(tmp_path: Path) -> None:
    grey = np.asarray(read_picture(CASES / "g16.png"), int)
    wide = np.asarray(Image.open(CASES / "g16.png"), int)
    assert np.abs(grey[..., 0] - wide / 257).max() <= 1
    assert grey.std() > 5
    with pytest.raises(MediaError, match=r"nan.wav cannot be decoded \(samples are NaN"):
        localize_still(Watching(), CASES / "g16.png", CASES / "nan.wav", tmp_path)


CODED = ("base", "mpegts_in_mp4", "antiphase", "audio_gap", "clip", "video_starts_2s_late", "corrupt_middle", "rot90")
"""Cases whose squares and tone tell the time."""


@needs_cases
@pytest.mark.slow
def test_every_case_goes_both_roads(tmp_path: Path) -> None:
    """All files of the cases as clips of one folder: through `data_prep`, and through `avloc localize`, with the time
    code right where there is one."""
    files = sorted(p for p in CASES.rglob("*") if p.suffix in (".mp4", ".mkv", ".wmv", ".m4a"))
    names = [f"case{n:07d}" for n in range(len(files))]
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, path in zip(names, files, strict=True):
        (folder / f"{name}_000000{path.suffix}").symlink_to(path)
    made = convert(folder, tmp_path, dict.fromkeys(names, 0))
    wrong = []
    for name, path in zip(names, files, strict=True):
        coded, late = path.stem.startswith(CODED), 2 * ("late" in path.stem)
        turn = turn_of_case() if path.stem.startswith("rot90") else 0
        model = Watching()
        if path.suffix == ".m4a":
            assert f"{name}_000000" not in made
            with pytest.raises(MediaError, match="holds no moving pictures"):
                localize_video(model, path, tmp_path / name, progress=False)
            continue
        record, raw = made[f"{name}_000000"]
        picture, sound = stored(raw)
        assert record.frames[0].t == (1.0 if path.stem == "bars709" else 5.0), "the middle of two seconds"
        result = localize_video(model, path, tmp_path / name, fps=1, progress=False, window_s=1.0)
        assert probe(tmp_path / name / "overlay.mp4").measured().seconds == pytest.approx(result["duration"], abs=0.3)
        if not coded:
            continue
        if case_number(picture.rotate(-turn, expand=True)) != 25 * (5 - late):
            wrong.append(f"{path.name}: {case_number(picture)} is not the frame of 5 s")
        if abs(shift(sound[RATE : 2 * RATE], 1.0, RATE)) > 0.1:
            wrong.append(f"{path.name}: sound beside")
        images = torch.cat([b.image for b in model.fed]).permute(0, 2, 3, 1).numpy()
        sounds = torch.cat([b.audio for b in model.fed]).numpy()
        for entry, image, heard in zip(result["times"], images, sounds, strict=True):
            at = entry["time"]
            if "corrupt" in path.stem and 6 < at < 10.2:
                continue  # what builds on the lost packets is as the decoder left it
            size = (192, 320) if turn else (320, 192)
            seen = Image.fromarray(image).resize(size).rotate(-turn, expand=True)
            told = case_number(seen) / 25 + late
            if not -MILLISECOND <= at - told <= 0.04 + MILLISECOND:
                wrong.append(f"{path.name}: frame of {told} at {at}")
            gap = "gap" in path.stem and 2 < at < 6
            if 1 < at < 10 and not gap and abs(shift(heard, at - 0.5, RATE)) > 0.1:
                wrong.append(f"{path.name}: sound beside at {at}")
    assert not wrong


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Clips of five seconds by their number."""
    folder = tmp_path_factory.mktemp("variants")
    return {f"variant{n:04d}": write(v, folder / f"variant{n:04d}_000000.{v.suffix}") for n, v in enumerate(VARIANTS)}


@pytest.mark.slow
def test_there_are_many_variants() -> None:
    assert len({(v.suffix, v.form, v.video, v.audio) for v in VARIANTS}) >= 60
    wanted = {"mp4", "m4v", "mov", "mkv", "webm", "avi", "wmv", "ts", "mpg", "flv", "ogv", "3gp", "gif"}
    assert {v.suffix for v in VARIANTS} >= wanted


@pytest.mark.slow
def test_every_codec_and_container_becomes_a_record_of_the_right_time(
    variants: dict[str, Path], tmp_path: Path
) -> None:
    folder = next(iter(variants.values())).parent
    made = convert(folder, tmp_path, dict.fromkeys(variants, 0))
    wrong = []
    for n, (id, v) in enumerate(zip(variants, VARIANTS, strict=True)):
        if f"{id}_000000" not in made:
            wrong.append(f"{v.name} is not there")
            continue
        record, raw = made[f"{id}_000000"]
        picture, sound = stored(raw)
        told = number(np.asarray(picture.convert("RGB"))) / FPS + max(v.late, 0.0)
        if not -MILLISECOND <= record.frames[0].t - told <= 1 / FPS + MILLISECOND:  # on the screen from then on
            wrong.append(f"{v.name}: frame of {told} at {record.frames[0].t}")
        slip = shift(sound[2 * RATE : 3 * RATE], 2.0 - max(-v.late, 0.0), RATE)
        if abs(slip) > 0.1:
            wrong.append(f"{v.name}: sound {slip} beside")
        assert n < len(VARIANTS)
    assert not wrong


@pytest.mark.slow
def test_every_codec_and_container_is_seen_and_heard_at_the_right_time(
    variants: dict[str, Path], tmp_path: Path
) -> None:
    wrong = []
    for v, path in zip(VARIANTS, variants.values(), strict=True):
        model = Watching()
        result = localize_video(model, path, tmp_path / path.stem, fps=1, progress=False, window_s=1.0)
        images = torch.cat([b.image for b in model.fed]).permute(0, 2, 3, 1).numpy()
        sounds = torch.cat([b.audio for b in model.fed]).numpy()
        for at, image, sound in zip([t["time"] for t in result["times"]], images, sounds, strict=True):
            told = number(image) / FPS + max(v.late, 0.0)
            if not -MILLISECOND <= at - told <= 1 / FPS + MILLISECOND:
                wrong.append(f"{v.name}: frame of {told} at {at}")
            start = at - 0.5
            if 1 < start < 3 and abs(shift(sound, start - max(-v.late, 0.0), RATE)) > 0.1:
                wrong.append(f"{v.name}: sound beside at {at}")
        assert probe(tmp_path / path.stem / "overlay.mp4").seconds > 4.8
    assert not wrong
