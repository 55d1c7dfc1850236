from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from avloc.data.indexed import EvalSet
from avloc.types import InputSpec
from data_prep.avs_robust import GROUPS, candidates, main, noise, off_screen
from data_prep.avsbench import MS3, S4, Clip, read_objects
from data_prep.avss import read_metadata
from tests.data_prep.little import ANNOTATIONS, block, needs_annotations, notes, write_mask, write_picture, write_sound
from tests.data_prep.test_avsbench import official_ms3

SPEC = InputSpec(image_size=16, seconds=5.0, channels="left_then_right")
LOUD = {"dog_barking": 0.1, "lions_roaring": 0.2, "helicopter": 0.3, "male_speech": 0.4}


def clip(name: str, *labels: str, sound: bool = True) -> Clip:
    return Clip(name, "test", labels, {}, {}, Path(f"{name}.wav") if sound else None)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    return acl_s4(tmp_path / "media")


def acl_s4(root: Path) -> Path:
    """ACL-SSL's S4, a video of each category."""
    flat = root / "s4"
    lines = []
    for n, (category, loud) in enumerate(LOUD.items()):
        name = f"video{n:06d}"
        for k in (1, 2):
            write_picture(flat / "visual_frames" / f"{name}_{k}.png")
            write_mask(flat / "gt_masks" / f"{name}_{k}.png", block(8 * k, 16), "1")
            lines.append(f"{name}_{k},{category}\n")
        write_sound(flat / "audio_wav" / f"{name}.wav", loud, seconds=5, channels=2)
    (flat / "list.csv").write_text("".join(lines))
    return flat


def convert(media: Path, out: Path, *more: str) -> EvalSet:
    options = ["--set", "s4", "--media", str(media.parent), "--list", str(media / "list.csv")]
    assert main([*options, "--out", str(out), "--jobs", "1", *more]) == 0
    return EvalSet(out / "avs_robust_s4" / "avs_robust_s4-test.json", SPEC)


def test_four_conditions_of_a_video(media: Path, tmp_path: Path) -> None:
    data = convert(media, tmp_path)
    items = {data.key(i): data[i] for i in range(len(data))}
    assert len(items) == 4 * 2 * 4
    own = items["avs_robust_s4__video000000.f1"]
    truth = [block(16, 16) > 0]
    np.testing.assert_array_equal(own.truth, truth)
    assert own.sounding
    for kind in ("silence", "noise", "offscreen"):
        item = items[f"avs_robust_s4__video000000.f1@{kind}"]
        np.testing.assert_array_equal(item.truth, truth)
        assert (item.sounding, item.negative) == (False, kind)
    assert not items["avs_robust_s4__video000000.f1@silence"].audio.any()
    # Not an animal, and animals exclude humans: only the helicopter is left. Its right channel is the negative.
    heard = items["avs_robust_s4__video000000.f1@offscreen"].audio
    np.testing.assert_allclose(heard[:80000], 0.3, atol=1e-4)
    wave = items["avs_robust_s4__video000000.f1@noise"].audio
    assert len(wave) == 80000
    assert (wave.min(), wave.max(), wave.std()) == pytest.approx((-1, 1, 3**-0.5), abs=0.01)
    record = next(r for r in data.records if r.id == "video000000")
    assert record.audios[3].src_id == "video000002"
    assert [a.channels for a in record.audios[2:]] == [2, 2]
    assert record.provenance.note == "seed 0; noise: uniform_v1; offscreen: group_rule_v1, video000002"


def test_choices_follow_from_seed_and_name_alone(media: Path, tmp_path: Path) -> None:
    def negatives(data: EvalSet) -> dict[str, tuple[bytes, bytes]]:
        samples = [data.sample(i) for i in range(len(data.records))]
        return {s.record.id: (s.member("n0.flac"), s.member("n1.flac")) for s in samples}

    first = negatives(convert(media, tmp_path / "a"))
    lines = (media / "list.csv").read_text().splitlines()
    (media / "list.csv").write_text("\n".join(reversed(lines)))
    assert negatives(convert(media, tmp_path / "b", "--records-per-shard", "1")) == first
    other = negatives(convert(media, tmp_path / "c", "--seed", "1"))
    assert all(other[id][0] != first[id][0] for id in first)


def test_noise_as_published(media: Path, tmp_path: Path) -> None:
    data = convert(media, tmp_path, "--as-published")
    wave, rate = soundfile.read(io.BytesIO(data.sample(0).member("n0.flac")))
    assert (wave.shape, rate) == ((80000,), 16000)
    assert data.records[0].audios[2].channels == 1
    # Three of four samples are uniform in (-1, 1), every fourth about +-0.5. The spectrum is flat, so resampling from
    # 44.1 to 16 kHz keeps 16 / 44.1 of the power, less what the filter takes just below 8 kHz.
    power = 0.75 / 3 + 0.25 * 0.5**2
    assert np.sqrt(power) == pytest.approx(0.56, abs=0.005)  # loud: more than half of full scale
    assert wave.std() == pytest.approx(np.sqrt(power * 16 / 44.1), rel=0.04)
    assert "noise: float64_bytes_v1" in data.records[0].provenance.note


def test_noise_depends_on_the_video() -> None:
    assert not np.array_equal(noise(0, "a"), noise(0, "b"))
    np.testing.assert_array_equal(noise(3, "a"), noise(3, "a"))


def test_groups_and_their_partners() -> None:
    one = {"music": "playing_violin", "human": "male_speech", "animal": "dog_barking", "device": "helicopter"}
    clips = [clip(group, label) for group, label in one.items()] + [clip("other", "race_car")]
    allowed = {c.name: {x.name for x in candidates(S4, c, clips)} for c in clips}
    assert allowed == {
        "music": {"animal", "device", "other"},
        "human": {"animal", "device", "other"},
        "animal": {"music", "device", "other"},
        "device": {"music", "human", "animal"},
        "other": {"music", "human", "animal"},
    }
    many = [clip("a", "guitar", "man"), clip("b", "car"), clip("c", "dog"), clip("d", "dog", "piano")]
    assert {c.name: {x.name for x in candidates(MS3, c, many)} for c in many} == {
        "a": {"b", "c"},
        "b": {"c"},  # here device excludes music
        "c": {"b"},
        "d": {"b"},
    }
    sizes = {group: len([m for m in members if "_" in m or m == "helicopter"]) for group, members in GROUPS.items()}
    assert sizes == {"music": 6, "human": 3, "animal": 6, "device": 8}


def test_s4_draws_the_category_first() -> None:
    rare = [clip("rare", "race_car")]
    often = [clip(f"often{i}", "helicopter") for i in range(30)]
    drawn = [off_screen(S4, clip("x", "dog_barking"), rare + often, seed)[0].name for seed in range(400)]
    assert 150 < drawn.count("rare") < 250


def test_an_absent_sound_gives_way_to_the_next_draw() -> None:
    target = clip("x", "dog_barking")
    clips = [clip(f"c{i}", "helicopter") for i in range(5)]
    first, fallback = off_screen(S4, target, clips, 0)
    assert not fallback
    less = [c if c.name != first.name else clip(c.name, "helicopter", sound=False) for c in clips]
    assert off_screen(S4, target, less, 0)[0].name != first.name
    assert off_screen(S4, target, [clip("y", "lions_roaring")], 0) == (clip("y", "lions_roaring"), True)
    with pytest.raises(ValueError, match="no other video"):
        off_screen(S4, target, [target], 0)


def test_ms3_falls_back_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    media = official_ms3(tmp_path / "media")
    table = media / "metadata.csv"
    table.write_text(table.read_text().replace("emergency-car", "piano"))  # human excludes music
    options = ["--set", "ms3", "--media", str(media), "--out", str(tmp_path), "--jobs", "1"]
    with pytest.raises(SystemExit):
        main(options)
    assert "give AVSS's metadata.csv as --avss" in capsys.readouterr().err
    assert main([*options, "--avss", str(table)]) == 0
    out = tmp_path / "avs_robust_ms3"
    records = EvalSet(out / "avs_robust_ms3-test.json", SPEC, tags=("offscreen_fallback",)).records
    assert len(records) == 2
    assert {r.audios[3].src_id for r in records} == {r.id for r in records}
    assert all("fallback" in r.provenance.note for r in records)
    assert "2 videos have no off-screen candidate" in " ".join(notes(out))


@needs_annotations
def test_candidates_of_the_published_videos() -> None:
    path = ANNOTATIONS / "avss" / "metadata.csv"
    objects = read_objects(path)
    splits = {r.uid: r.split for r in read_metadata(path) if r.label == "v1m"}
    counts = {}
    for split in ("train", "val", "test"):
        clips = [clip(name, *of) for name, of in objects.items() if splits[name] == split]
        n = [len(candidates(MS3, c, clips)) for c in clips]
        counts[split] = (min(n), int(np.median(n)), max(n), n.count(0))
    assert counts == {"train": (0, 39, 137, 3), "val": (0, 4, 24, 7), "test": (0, 8, 28, 1)}  # section 2.14
