from __future__ import annotations

from pathlib import Path

import pytest

from avloc.report import published
from avloc.report.experiments import Experiment, ExperimentError, blocks, reached, read_experiment
from avloc.report.layout import paper_table
from avloc.report.published import PublishedError, Reference

MODEL = "model: {class_path: x}\ndata: {train: a, test: [b, c]}\n"
ROW = 'reproduces: {paper: gavs, table: "1", method: GAVS, variant: "VGGish + ViT-Base"}\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_a_row(tmp_path: Path) -> None:
    head = '# GAVS on V1S, GAVS table 1, row "VGGish + ViT-Base": V1S mIoU 80.06,\n# V1S F 0.902. More.\n'
    found = read_experiment(write(tmp_path, head + MODEL + ROW))
    assert (found.name, found.title, found.about) == ("mine", "GAVS on V1S", "V1S mIoU 80.06, V1S F 0.902")
    assert found.reproduces == Reference("gavs", "1", "GAVS", "VGGish + ViT-Base")
    assert (found.train, found.test, found.overlay) == ("a", ("b", "c"), False)


def test_a_row_without_a_name(tmp_path: Path) -> None:
    key = 'reproduces: {paper: seac, table: "1", method: SeAC}\n'
    assert read_experiment(write(tmp_path, "# SeAC, SeAC table 1: S4 mIoU 65.31.\n" + MODEL + key)).title == "SeAC"


def test_none_and_an_overlay(tmp_path: Path) -> None:
    found = read_experiment(write(tmp_path, "# SOUPLE, no published row: learns. It does.\n" + MODEL))
    assert (found.title, found.about, found.reproduces) == ("SOUPLE", "learns", None)
    sets = read_experiment(
        write(tmp_path, "# Sets of T-VSL (some), laid over another experiment:\ndata: {test: [b]}\n")
    )
    assert (sets.overlay, sets.sets_of, sets.test) == (True, "tvsl", ("b",))
    sets = read_experiment(write(tmp_path, "# Sets of the world, laid over another experiment:\ndata: {test: [b]}\n"))
    assert (sets.overlay, sets.sets_of) == (True, "")


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ('# GAVS, table 1, row "VGGish + ViT-Base": V1S mIoU 80.06.\n', "PAPER table N"),  # of which paper?
        ("# GAVS, no published row: but the key names one.\n", "PAPER table N"),
        ('# GAVS, GAVS table 2, row "VGGish + ViT-Base": V1S mIoU 80.06.\n', "its key reproduces of"),
        ('# GAVS, GAVS table 1, row "ViT": V1S mIoU 80.06.\n', "its key reproduces of"),
        ("", "PAPER table N"),
    ],
)
def test_another_form_is_an_error_that_shows_the_right_one(tmp_path: Path, head: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=r"mine\.yaml.*") as e:
        read_experiment(write(tmp_path, head + MODEL + ROW))
    assert told in str(e.value)


def experiment(name: str, test: str, **given: object) -> Experiment:
    values = {"title": "", "about": "", "reproduces": None, "sets_of": "", "overlay": False, "train": None}
    return Experiment(name=name, test=(test,), **values | given)  # type: ignore[arg-type]


def test_what_is_reached() -> None:
    """A row by its own sets and those of its paper's overlay, and its equals in other tables and papers alike."""
    keys = {"vggss": "vggss", "avs_s4": "avs_s4", "flickr_ext": "flickr_ext"}
    mine = experiment("mine", "vggss", reproduces=Reference("souple", "1", "SOUPLE", "ctx=4, 50 epochs"))
    target = experiment("target", "vggss", reproduces=Reference("gavs", "1", "GAVS", "VGGish + ViT-Base"))
    sets = [
        experiment(f"{p}_sets", s, sets_of=p, overlay=True) for p, s in (("souple", "flickr_ext"), ("gavs", "avs_s4"))
    ]
    by = {b.name: names for b in blocks() if (names := reached([mine, target, *sets], keys).get(b.key))}
    assert by["souple table 1, SOUPLE (ctx=4, 50 epochs), vggss"] == ["mine"]
    assert by["souple table 7, SOUPLE (ctx=4, 50 epochs), vggss"] == ["mine"]
    assert by["souple table 4, SOUPLE (ctx=4, 50 epochs), flickr_ext"] == ["mine + souple_sets"]
    assert "souple table 3, SOUPLE (ctx=4, 50 epochs), avs_s4" not in by  # the other paper's overlay
    assert not [name for name in by if name.startswith("gavs")]  # a model a set, and it was tested on none of them


def test_blocks_are_all_cells() -> None:
    printed = sum(len(row.values) for p in published.papers() for t in published.load(p).tables for row in t.rows)
    found = blocks()
    assert len({b.key for b in found}) == len(found)
    assert sum(sum(v.benchmark == b.benchmark for v in b.row.values) for b in found) == printed


def test_the_report_says_why_a_row_is_not_measured() -> None:
    notes = paper_table([], "seac", "1").notes
    assert [n for n in notes if n.startswith("GAVS, avs_s4, avs_ms3, vggss: no experiment measures it: it quotes")]
    assert not [n for n in paper_table([], "souple", "1").notes if "no experiment" in n]


def test_an_excuse_for_no_row_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = '{paper: gavs, table: "3", method: GAVS, variant: zero-shot, benchmarks: [flickr], why: x.}'
    text = f"quoted: []\nrows: [{row}]\n"
    monkeypatch.setattr(published, "EXCUSES", write(tmp_path, text))
    published.unreached.cache_clear()
    with pytest.raises(PublishedError, match="GAVS \\(zero-shot\\) has no number on flickr"):
        published.unreached()
    published.unreached.cache_clear()
