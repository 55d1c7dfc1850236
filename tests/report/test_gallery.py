from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from avloc.report.gallery import asked, chosen, entries, figures, read_kept, rows_of, sound
from avloc.report.results import ResultsError, Run


def kept(folder: Path, overlaps: dict[str, float | None], process: int = 0, processes: int = 1, **changes) -> None:
    """The list of one process, with empty pictures; a sample without an overlap is silent."""
    panels = folder / "panels"
    panels.mkdir(parents=True, exist_ok=True)
    told = []
    for key, overlap in overlaps.items():
        (panels / f"{key}.jpg").write_bytes(b"")
        line = {"set": "vggss", "index": int(key[1:]), "key": key, "label": "dog", "negative": "", "overlap": overlap}
        line |= {"sounding": overlap is not None, "share": 0.3, "confidence": 0.5}
        told.append(line | {"picture": f"{key}.jpg", "sound": None} | changes)
    (panels / f"panels.{process}.json").write_text(json.dumps({"processes": processes, "samples": told}))


def run(folder: Path, name: str = "a") -> Run:
    return Run(name, folder, {}, None)


def test_all_processes_are_read_and_none_of_an_earlier_test(tmp_path):
    kept(tmp_path, {"k0": 0.5}, 0, 2)
    kept(tmp_path, {"k1": 0.6}, 1, 2)
    kept(tmp_path, {"k2": 0.7}, 2, 3)  # a test on three processes was here before
    assert [k.key for k in read_kept(tmp_path)] == ["k0", "k1"]
    (tmp_path / "panels" / "k1.jpg").unlink()
    assert [k.key for k in read_kept(tmp_path)] == ["k0"]


@pytest.mark.parametrize("text", ["{", '{"samples": []}', '{"processes": 1, "samples": [{"set": "a"}]}'])
def test_damaged_list_is_named(tmp_path, text):
    (tmp_path / "panels").mkdir()
    (tmp_path / "panels" / "panels.0.json").write_text(text)
    with pytest.raises(ResultsError, match=r"panels\.0\.json is damaged"):
        read_kept(tmp_path)


@pytest.mark.parametrize("member", ["picture", "sound", "true", "heat"])
@pytest.mark.parametrize(
    "name", ["{out}/secret.jpg", "../../out/secret.jpg", "link.jpg", "linked/secret.jpg", "a\0.jpg"]
)
def test_a_strangers_list_shows_nothing_from_elsewhere(tmp_path, member, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / "secret.jpg").write_bytes(b"secret")
    kept(tmp_path / "run", {"k0": 0.5}, **{member: name.format(out=out)})
    (tmp_path / "run" / "panels" / "link.jpg").symlink_to(out / "secret.jpg")
    (tmp_path / "run" / "panels" / "linked").symlink_to(out)
    with pytest.raises(ResultsError, match="is no file of its folder"):
        read_kept(tmp_path / "run")


def test_a_run_without_pictures_has_no_gallery(tmp_path):
    assert entries("vggss", [run(tmp_path)]) == []


@pytest.mark.parametrize(
    ("overlap", "share", "kind"),
    [
        (0.09, 0.3, "missed"),
        (0.1, 0.3, "partly"),
        (0.5, 0.3, "found"),
        (None, 0.02, "false alarm"),
        (None, 0.001, "rightly silent"),
    ],
)
def test_kinds_of_answers(tmp_path, overlap, share, kind):
    kept(tmp_path, {"k0": overlap}, share=share)
    (entry,) = entries("vggss", [run(tmp_path)])
    assert entry.kinds == [kind]


def test_runs_share_a_sample_and_the_first_one_orders(tmp_path):
    kept(tmp_path / "a", {"k0": 0.2, "k1": 0.9, "k2": None})
    kept(tmp_path / "b", {"k0": 0.8, "k1": 0.0, "k3": 0.4})
    found = entries("vggss", [run(tmp_path / "a"), run(tmp_path / "b", "b")])
    assert [e.first.key for e in found] == ["k1", "k3", "k0", "k2"]
    assert [[name for name, _ in e.answers] for e in found] == [["a", "b"], ["b"], ["a", "b"], ["a"]]
    assert found[0].kinds == ["found", "missed"]
    assert entries("flickr", [run(tmp_path / "a")]) == []


def test_choice_is_even_and_keeps_best_and_worst(tmp_path):
    kept(tmp_path, {f"k{i}": i / 20 for i in range(21)})
    found = entries("vggss", [run(tmp_path)])
    assert [e.first.overlap for e in chosen(figures(found), 5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert len(chosen(figures(found), 30)) == 21


def pair(folder: Path, keys: list[str], **changes) -> None:
    """A run that kept samples whose picture is the part of the key before "_"."""
    kept(folder, {f"k{i}": 0.5 for i in range(len(keys))}, **changes)
    path = folder / "panels" / "panels.0.json"
    told = json.loads(path.read_text())
    for line, key in zip(told["samples"], keys, strict=True):
        line |= {"key": key, "shows": key.partition("_")[0]}
    path.write_text(json.dumps(told))


def test_the_sounds_of_one_picture_are_one_figure(tmp_path):
    pair(tmp_path / "a", ["p_0", "p_1", "q_0", "q_1", "r_0"])
    pair(tmp_path / "b", ["p_0", "q_0"])
    found = figures(entries("vggss", [run(tmp_path / "a"), run(tmp_path / "b", "b")]))
    assert [[e.first.key for e in f.entries] for f in found] == [["p_0", "p_1"], ["q_0", "q_1"], ["r_0"]]
    rows = rows_of(found[0])
    assert [[k and k.key for k in answers] for answers in rows.values()] == [["p_0", "p_1"], ["p_0", None]]
    assert [len(f.entries) for f in chosen(found, 2)] == [2, 1], "whole figures, about two samples"


def test_samples_are_asked_for_by_key_picture_or_record(tmp_path):
    pair(tmp_path, ["p_0", "p_1", "q_0", "q_1", "r.f0@noise", "s_0"])
    mine = [run(tmp_path)]

    def keys(*wanted: str) -> list[list[str]]:
        return [[e.first.key for e in f.entries] for f in asked("vggss", mine, wanted)]

    assert keys("q") == [["q_0", "q_1"]]
    assert keys("s_0", "q_1", "p_0") == [["s_0", "q_1", "p_0"]], "loose samples stand abreast, as they were named"
    assert keys("s_0", "p") == [["s_0"], ["p_0", "p_1"]]
    assert keys("r") == keys("r.f0") == keys("r.f0@noise") == [["r.f0@noise"]]
    assert keys("r.f0@silence") == []


def test_loose_samples_wrap(tmp_path):
    pair(tmp_path, [f"{i}_0" for i in range(14)])
    wanted = [f"{i}_0" for i in range(14)]
    assert [len(f.entries) for f in asked("vggss", [run(tmp_path)], wanted)] == [6, 6, 2]


def test_sound_becomes_a_small_mp3_or_stays(tmp_path):
    tone = 0.3 * np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000)
    soundfile.write(tmp_path / "a.wav", tone, 16000)
    kind, _, content = sound(tmp_path / "a.wav").partition(";base64,")
    assert kind == "data:audio/mpeg"
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert rate == 16000
    assert np.abs(np.fft.rfft(heard[:16000])).argmax() == 440
    assert len(base64.b64decode(content)) < 32000 / 5
    soundfile.write(tmp_path / "b.wav", tone, 12345)  # a rate that MP3 does not know
    assert sound(tmp_path / "b.wav").startswith("data:audio/wav;base64,")


def test_what_a_sound_is_heard_as_is_kept_where_it_was_told(tmp_path):
    kept(tmp_path / "a", {"k0": 0.5}, heard_as=[["dog", 0.41], ["cat", 0.22]])
    kept(tmp_path / "b", {"k0": 0.5})
    assert list(read_kept(tmp_path / "a")[0].heard_as) == [("dog", 0.41), ("cat", 0.22)]
    assert list(read_kept(tmp_path / "b")[0].heard_as) == []
