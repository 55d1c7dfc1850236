from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avloc.report.breakdown import breakdowns, success_by
from avloc.report.curves import plots_of
from avloc.report.results import Run, read_run
from tests.report.fabricated import entry, per_sample, results, top50

AREA = [0.01, 0.02, 0.04, 0.3, 0.5, 1.0, 0.03]
SOURCES = [1, 1, 1, 2, 2, 2, 1]
OVERLAP = np.array([0.1, 0.9, 0.6, 0.2, 0.8, 0.7, 1.0])
SOUNDING = [1, 1, 1, 1, 1, 1, 0]
EXTENTS = {
    "truth_area": AREA,
    "sources": SOURCES,
    "answered": [2, 1, 1, 2, 2, 2, 1],
    "regions": [1, 3, 2, 2, 2, 2, 4],
    "predicted_share": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.25],
}


def scored_run(folder: Path, name: str = "a", extents: dict | None = None, overlap: np.ndarray = OVERLAP) -> Run:
    extents = EXTENTS if extents is None else extents
    keys = [f"k{i}" for i in range(7)]
    halved = overlap / 2
    sounding = np.array(SOUNDING, bool)
    rows = {"model": top50(overlap[sounding]), "full frame": top50(halved[sounding])}
    about = {"key": keys, "sounding": SOUNDING, "negative": [""] * 6 + ["noise"]} | extents
    kept = {
        ("vggss", "model"): about | {"top50:ciou": overlap[:, None]},
        ("vggss", "full frame"): about | {"top50:ciou": halved[:, None]},
    }
    per_sample(folder, kept)
    return read_run(results(folder, {"vggss": entry(rows, ("vggss/top50", "ciou"), 7)}, experiment=name))


def test_success_by_size_by_hand(tmp_path):
    model, frame = success_by("vggss", [scored_run(tmp_path)], "truth_area")
    told = [(g.name, g.n, g.mean, g.success) for g in model.groups]
    assert told == [
        ("0 to 2 %", 1, 0.01, 0.0),
        ("2 to 5 %", 2, pytest.approx(0.03), 1.0),  # the third one of this size does not sound
        ("20 to 40 %", 1, 0.3, 0.0),
        ("40 to 100 %", 2, 0.75, 1.0),
    ]
    assert (model.name, frame.name) == ("a", "full frame")
    assert [g.success for g in frame.groups] == [0, 0, 0, 0]


def test_success_by_number_of_sources_and_what_was_answered(tmp_path):
    (sizes, numbers, answers), notes = breakdowns("vggss", [scored_run(tmp_path)])
    assert notes == []
    assert sizes.title.startswith("ciou by size")
    assert numbers.columns == ["", "1", "2"]
    assert numbers.rows == [["a", "66.67 (3)", "66.67 (3)"], ["full frame", "0.00 (3)", "0.00 (3)"]]
    assert numbers.kinds == ["own", "control"]
    assert answers.rows == [["a", "31.17", "35.00", "2.00", "1.67", "1.50", "25.00"]]


def test_runs_share_the_controls_and_have_curves(tmp_path):
    runs = [scored_run(tmp_path / "a"), scored_run(tmp_path / "b", "b", overlap=OVERLAP / 1.5)]
    assert [row.name for row in success_by("vggss", runs, "sources")] == ["a", "b", "full frame"]
    size, number = plots_of("vggss", runs)[-2:]
    assert (size.title, number.title) == ("ciou by size of what sounds", "ciou by number of sources")
    assert size.curves[0].x == pytest.approx([0.01, 0.03, 0.3, 0.75])
    assert size.curves[0].y == [0, 1, 0, 1]
    assert [c.run for c in number.curves] == [0, 1, -1]
    assert number.ticks == [1, 2]


def test_one_size_alone_is_no_breakdown(tmp_path):
    run = scored_run(tmp_path, extents=EXTENTS | {"sources": [1] * 7, "truth_area": [0.03] * 7})
    (answers,), _ = breakdowns("vggss", [run])
    assert answers.title.startswith("What is answered")
    assert [p.title for p in plots_of("vggss", [run])] == ["Samples found"]


def test_unknown_sizes_are_left_out(tmp_path):
    run = scored_run(tmp_path, extents=EXTENTS | {"truth_area": [np.nan] * 7})
    assert success_by("vggss", [run], "truth_area") == []
    tables, _ = breakdowns("vggss", [run])
    assert tables[-1].rows[0][1] == ""


def test_files_of_older_tests_are_named_and_nothing_breaks(tmp_path):
    runs = [scored_run(tmp_path / "a"), scored_run(tmp_path / "b", "old", extents={})]
    tables, notes = breakdowns("vggss", runs)
    assert [row[0] for row in tables[0].rows] == ["a", "full frame"]
    assert len(notes) == 1
    assert notes[0].startswith("old: tested before")
    assert breakdowns("vggss", runs[1:]) == ([], notes)
