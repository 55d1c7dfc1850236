from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from avloc.report.intervals import Bounds
from avloc.report.layout import paper_table, universal_table
from avloc.report.published import FOLDER, PublishedError, find, load, papers
from avloc.report.tables import ResultsError, compare, read_run, report, to_frame, to_latex, to_markdown
from tests.report.fabricated import entry, per_sample, top50
from tests.report.fabricated import results as write_results


def results(**changes):
    rows = {
        "model": {
            "vggss/acl": {"ciou": 0.6, "auc": 0.5, "threshold": 0.35, "sweep": [0.1, 0.2]},
            "vggss/adaptive": {"ciou": 0.55},
        },
        "shuffled sound": {"vggss/acl": {"ciou": 0.31, "auc": 0.3}},
        "full frame": {"vggss/acl": {"ciou": 0.2, "auc": 0.25}},
        "centre box": {"vggss/acl": {"ciou": 0.4, "auc": 0.35}},
    }
    goal = {"protocol": "vggss/acl", "metric": "ciou"}
    entry = {"samples": 500, "whole": True, "missing": dict.fromkeys(rows, 0), "primary": goal, "rows": rows}
    souple = {"paper": "souple", "table": "1", "method": "SOUPLE", "variant": "ctx=4, 20 epochs"}
    return {"experiment": "souple_ctx4", "sets": {"vggss": entry}, "reproduces": souple} | changes


def written(folder, content):
    folder.mkdir(parents=True)
    about = {key: value for key, value in content.items() if key != "sets"}
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "results.json").write_text(json.dumps({"stage": "test", "sets": content["sets"]}))
    return folder


def test_measured_row_beside_the_published_one_and_the_controls(tmp_path):
    (table,) = compare([read_run(written(tmp_path / "a", results()))])
    assert table.columns == ["", "ciou", "auc", "ciou over best control"]
    assert table.rows == [
        ["souple_ctx4", "60.00", "50.00", "+20.00 (centre box)"],
        ["souple_ctx4, shuffled sound", "31.00", "30.00", ""],
        ["published: SOUPLE (ctx=4, 20 epochs), souple table 1", "53.21", "48.15", ""],
        ["souple_ctx4 - published", "+6.79", "+1.85", ""],
        ["full frame", "20.00", "25.00", ""],
        ["centre box", "40.00", "35.00", ""],
    ]
    assert any("0.5 is not printed" in note for note in table.notes)


def test_kinds_and_sentences_go_with_the_rows(tmp_path):
    (table,) = compare([read_run(written(tmp_path / "a", results()))])
    assert table.kinds == ["own", "heard", "target", "difference", "control", "control"]
    assert table.findings == []


def test_gain_is_over_the_shuffled_sound_when_that_is_the_best_control(tmp_path):
    content = results()
    content["sets"]["vggss"]["rows"]["shuffled sound"]["vggss/acl"]["ciou"] = 0.7
    (table,) = compare([read_run(written(tmp_path / "a", content))])
    assert table.rows[0][-1] == "-10.00 (shuffled sound)"


def test_a_rate_of_false_positives_gains_by_falling(tmp_path):
    entry = {
        "n": 4,
        "missing": 0,
        "primary": ["robust/avsbench", "fpr_noise"],
        "rows": {
            "model": {"robust/avsbench": {"fpr_noise": 0.1}},
            "full frame": {"robust/avsbench": {"fpr_noise": 1.0}},
            "centre box": {"robust/avsbench": {"fpr_noise": 0.25}},
        },
    }
    (table,) = compare([read_run(written(tmp_path / "a", results(sets={"avs_robust_s4": entry}, reproduces=None)))])
    assert table.rows[0] == [*["souple_ctx4", "10.00"], "+15.00 (centre box)"]


def test_adaptive_protocol_stands_beside_the_adaptive_printed_cells(tmp_path):
    content = results(reproduces={"paper": "acl_ssl", "table": "1", "method": "ACL-SSL", "variant": "AV alignment"})
    (table,) = compare([read_run(written(tmp_path / "a", content))])
    column = table.columns.index("vggss/adaptive/ciou")
    printed = find("acl_ssl", "1", "ACL-SSL", "AV alignment").value("vggss", "ciou_adap")
    assert [row[column] for row in table.rows if row[0].startswith("published")] == [printed.printed]
    assert table.rows[0][column] == "55.00"


def test_a_set_that_the_paper_does_not_have_gets_no_published_row(tmp_path):
    content = results()
    content["sets"] = {"world:single": content["sets"]["vggss"]}
    (table,) = compare([read_run(written(tmp_path / "a", content))])
    assert not any(row[0].startswith("published") for row in table.rows)
    assert any("has no number on world:single" in note for note in table.notes)


def test_runs_share_the_controls_that_see_no_model(tmp_path):
    other = results()
    other["sets"]["vggss"]["rows"]["model"]["vggss/acl"]["ciou"] = 0.7
    other["sets"]["vggss"]["rows"]["centre box"]["vggss/acl"]["ciou"] = 0.41
    runs = [read_run(written(tmp_path / n, c)) for n, c in (("seed0", results()), ("seed1", other))]
    (table,) = compare(runs)
    names = [row[0] for row in table.rows]
    assert names.count("full frame") == 1
    assert {"centre box (souple_ctx4 [seed0])", "centre box (souple_ctx4 [seed1])"} <= set(names)
    assert names[0] == "souple_ctx4 [seed0]"


def test_missing_samples_are_said(tmp_path):
    content = results()
    content["sets"]["vggss"]["missing"]["model"] = ["clip1", "clip7", "clip9"]
    content["sets"]["vggss"]["notes"] = ["two boxes were clipped"]
    content["sets"]["vggss"]["whole"] = False
    (table,) = compare([read_run(written(tmp_path / "a", content))])
    assert "souple_ctx4: 3 of 500 samples are missing from these numbers." in table.notes
    assert "souple_ctx4: only a part of vggss was scored." in table.notes
    assert "two boxes were clipped" in table.notes


def test_a_set_goes_by_its_name_in_the_papers(tmp_path):
    content = results(reproduces={"paper": "souple", "table": "2", "method": "SOUPLE", "variant": "ctx=4, 50 epochs"})
    content["sets"] = {"vggss/unheard": {**content["sets"]["vggss"], "published": "vggss_unheard110"}}
    (table,) = compare([read_run(written(tmp_path / "a", content))])
    (row,) = [row for row in table.rows if row[0].startswith("published: ")]
    assert row[1:3] == ["48.40", "46.24"]


def test_short_form_without_run_json(tmp_path):
    (tmp_path / "results.json").write_text(
        json.dumps(
            {"sets": {"s": {"n": 2, "missing": 1, "primary": ["p", "m"], "rows": {"model": {"p": {"m": None}}}}}}
        )
    )
    (table,) = compare([read_run(tmp_path / "results.json")])
    assert table.rows == [[tmp_path.name, "", ""]]
    assert table.notes == [f"{tmp_path.name}: 1 of 2 samples are missing from these numbers."]


def test_all_metrics_show_thresholds_as_they_are(tmp_path):
    (table,) = compare([read_run(written(tmp_path / "a", results()))], metrics="all")
    column = table.columns.index("vggss/acl/threshold")
    assert table.rows[0][column] == "0.35"
    assert table.rows[-1][table.columns.index("vggss/adaptive/ciou")] == ""


def test_report_prints_and_writes_every_form(tmp_path):
    console = Console(record=True, width=160, file=(tmp_path / "log").open("w"))
    (table,) = report([written(tmp_path / "a", results())], out=tmp_path / "out", console=console)
    text = console.export_text()
    assert "53.21" in text
    assert "+20.00 (centre box)" in text
    assert (tmp_path / "out" / "report.md").read_text() == to_markdown(table)
    assert (tmp_path / "out" / "report.tex").read_text() == to_latex(table)
    frame = pd.read_csv(tmp_path / "out" / "report.csv")
    line = frame[(frame.row == "centre box") & (frame.metric == "ciou")]
    assert line["value"].tolist() == [0.4]
    assert len(frame) == 4 + 3 * 2


def test_markdown_and_latex_are_well_formed(tmp_path):
    run = read_run(written(tmp_path / "a", results(experiment="a|b")))
    (table,) = compare([run])
    grid = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert grid[0] == "|  | ciou | auc | ciou over best control |"
    assert r"a\|b" in grid[2]
    latex = to_latex(table)
    assert r"vggss (500 samples)" in latex
    assert latex.count(r"\\") == 1 + len(table.rows)
    (escaped,) = compare([read_run(written(tmp_path / "b", results(experiment="50%_x & y")))])
    assert r"50\%\_x \& y & 60.00" in to_latex(escaped)
    assert to_frame([run]).experiment.unique().tolist() == ["a|b"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "damaged"),
        ('{"sets": {"a": {"rows": {}, "primary": ["p", "m"]}}}', "no row 'model'"),
        ('{"sets": {"a": {"rows": {"model": {}}, "primary": ["p", "m"]}}}', "p/m"),
        ("[]", "damaged"),
    ],
)
def test_bad_results_are_named(tmp_path, text, says):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultsError, match=says):
        read_run(tmp_path)


def test_untested_run_is_named(tmp_path):
    with pytest.raises(ResultsError, match="does not exist"):
        read_run(tmp_path / "nothing")
    with pytest.raises(ResultsError, match="No run"):
        report([])


def run_folder(folder: Path, overlap: np.ndarray, name: str = "a", **about) -> Path:
    """A run on vggss with one cIoU a sample, a silenced row, and a centre box that always overlaps by 0.45."""
    rows = {"model": overlap, "silenced": overlap / 2, "centre box": np.full(len(overlap), 0.45)}
    keys = [f"clip{i}" for i in range(len(overlap))]
    scores = {row: top50(values) for row, values in rows.items()}
    sets = {"vggss": entry(scores, ("vggss/top50", "ciou"), len(overlap), "vggss")}
    per_sample(folder, {("vggss", row): {"key": keys, "top50:ciou": v[:, None]} for row, v in rows.items()})
    return write_results(folder, sets, experiment=name, **about)


def test_own_numbers_and_the_gain_have_intervals(tmp_path):
    overlap = np.repeat([0.6, 0.2], 200)
    (table,) = compare([read_run(run_folder(tmp_path / "a", overlap))], bounds=Bounds())
    name, ciou, _, gain = table.rows[0][:2] + table.rows[0][2:3] + table.rows[0][-1:]
    # Analytic: 50 +- 1.96 * sqrt(.25 / 400); the control never succeeds, so the gain is as uncertain.
    assert name == "a"
    low, high = map(float, ciou.removeprefix("50.00 [").removesuffix("]").split(", "))
    assert (low, high) == (pytest.approx(45.1, abs=0.6), pytest.approx(54.9, abs=0.6))
    assert gain == f"+50.00 [{low:.1f}, {high:.1f}] (silenced)"
    assert all("[" not in cell for row in table.rows[1:] for cell in row), "controls stand without"


def test_numbers_that_are_no_mean_are_bounded_where_they_can_be_computed_again(tmp_path):
    overlap = np.random.default_rng(0).random(300)
    folder = run_folder(tmp_path / "a", overlap)
    content = json.loads((folder / "results.json").read_text())
    content["sets"]["vggss"]["rows"]["model"]["vggss/top50"]["max_f1"] = float(np.median(overlap))
    (folder / "results.json").write_text(json.dumps(content))

    def rescore(names, table):
        return {name: {"max_f1": float(np.median(table["top50:ciou"]))} for name in names}

    cells = []
    for again in (None, rescore):
        (table,) = compare([read_run(folder)], bounds=Bounds(again))
        cells.append(table.rows[0][table.columns.index("max_f1")])
    plain, bounded = cells
    assert plain == f"{100 * np.median(overlap):.2f}"
    assert bounded.startswith(plain + " [")
    low, high = map(float, bounded.partition("[")[2].removesuffix("]").split(", "))
    assert low < float(plain) < high


def test_runs_on_the_same_samples_are_compared_in_pairs(tmp_path):
    overlap = np.random.default_rng(0).random(500)
    better = np.where(np.arange(500) % 5 == 0, 1.0, overlap)
    folders = [run_folder(tmp_path / "b", better, "souple"), run_folder(tmp_path / "a", overlap, "acl")]
    (table,) = compare([read_run(f) for f in folders], bounds=Bounds())
    (told,) = table.findings
    lost = (better >= 0.5).astype(float) - (overlap >= 0.5)
    half = 100 * 1.96 * lost.std() / np.sqrt(500)
    assert told.startswith(f"souple - acl: +{100 * lost.mean():.1f} [")
    assert told.endswith("points of ciou on the same 500 samples.")
    low, high = map(float, told[told.index("[") + 1 : told.index("]")].split(", "))
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    (same,) = compare([read_run(folders[0]), read_run(run_folder(tmp_path / "c", better, "twin"))], bounds=Bounds())
    assert same.findings == [
        "souple - twin: +0.0 [0.0, 0.0] points of ciou on the same 500 samples; the interval holds zero."
    ]


def test_other_samples_are_said_to_be_incomparable(tmp_path):
    overlap = np.random.default_rng(0).random(50)
    runs = [read_run(run_folder(tmp_path / n, overlap[: 50 - i], n)) for i, n in enumerate("ab")]
    (table,) = compare(runs, bounds=Bounds())
    assert table.findings == ["a - b: no paired interval, the runs did not keep the same samples."]


def test_whole_table_with_own_rows_below_the_reproduced_one(tmp_path):
    run = read_run(written(tmp_path / "a", results()))
    table = paper_table([run], "souple", "1")
    assert table.columns == ["", "ciou", "auc", "ciou", "auc"]
    assert table.groups == ["", "vggss", "vggss", "flickr", "flickr"]
    names = [row[0] for row in table.rows]
    at = names.index("SOUPLE (ctx=4, 20 epochs)")
    assert table.rows[at : at + 4] == [
        ["SOUPLE (ctx=4, 20 epochs)", "53.21", "48.15", "84.80", "67.64"],
        ["souple_ctx4", "60.00", "50.00", "", ""],
        ["souple_ctx4 - SOUPLE (ctx=4, 20 epochs)", "+6.79", "+1.85", "", ""],
        ["souple_ctx4, shuffled sound", "31.00", "30.00", "", ""],
    ]
    assert ["CoarseToFine", "29.10", "34.80", "", ""] in table.rows, "prior methods too"
    assert table.rows[-2:] == [["full frame", "20.00", "25.00", "", ""], ["centre box", "40.00", "35.00", "", ""]]
    assert table.kinds.count("published") + table.kinds.count("target") == len(load("souple").tables[0].rows)
    assert "souple_ctx4: vggss by vggss/acl." in table.notes


def test_run_of_another_table_stands_below_without_a_difference(tmp_path):
    run = read_run(written(tmp_path / "a", results()))
    table = paper_table([run], "acl_ssl", "1")
    assert "difference" not in table.kinds
    own = table.rows[table.kinds.index("own")]
    assert own[:3] == ["souple_ctx4", "60.00", "50.00"]
    assert own[table.columns.index("ciou_adap")] == "55.00"
    assert any("reproduces no row of this table" in note for note in table.notes)


def test_paper_that_scored_by_its_own_rule_is_met_by_it(tmp_path):
    rows = {"model": {"avs/acl": {"miou": 0.5, "fscore": 0.6}, "avs/gavs": {"miou": 0.4, "fscore": 0.3}}}
    sets = {"avs_s4": entry(rows, ("avs/acl", "miou"), 10, "avs_s4")}
    run = read_run(write_results(tmp_path / "a", sets, experiment="gavs"))
    own = paper_table([run], "gavs", "1").rows[-1]
    assert own[:3] == ["gavs", "40.00", "30.00"]
    assert paper_table([run], "seac", "1").rows[-1][:3] == ["gavs", "50.00", "60.00"]


@pytest.mark.parametrize("paper", papers())
def test_every_published_table_is_laid_out_with_all_cells_and_doubts(paper, tmp_path):
    run = read_run(written(tmp_path / "a", results()))
    content = yaml.load((FOLDER / f"{paper}.yaml").read_text(), yaml.BaseLoader)
    for printed in content["tables"]:
        table = paper_table([run], paper, printed["id"])
        cells = [
            cell
            for kind, row in zip(table.kinds, table.rows, strict=True)
            for cell in row[1:]
            if cell and kind in ("published", "target")
        ]
        assert len(cells) == sum(len(row["values"]) for row in printed["rows"]), printed["id"]
        widths = {len(row) for row in table.rows} | {len(table.columns), len(table.groups)}
        assert len(widths) == 1
        for doubt in content["doubts"]:
            numbers = doubt["table"].split(" against ")[0].split(", ")
            if printed["id"] in numbers or numbers == ["all"]:
                assert f"{doubt['cell']}: {doubt['note']}" in table.notes
        assert to_latex(table).count("cmidrule") == len(printed["benchmarks"])


def test_unknown_table_is_named(tmp_path):
    run = written(tmp_path / "a", results())
    with pytest.raises(PublishedError, match="there are 1, 2"):
        report([run], paper="souple", table="99")
    with pytest.raises(ResultsError, match="--paper souple --table 1"):
        report([run], table="1")
    with pytest.raises(ResultsError, match="No table of paper 'gavs' has a row"):
        report([run], paper="gavs", console=Console(quiet=True))


def test_one_threshold_for_all_sets(tmp_path):
    content = results(reproduces=None)
    scores = content["sets"]["vggss"]["rows"]
    for row, value in (("model", 0.5), ("shuffled sound", 0.4), ("centre box", 0.3)):
        scores[row]["universal"] = {"mean_ciou": value, "fpr": value / 10, "auc": value / 2}
    folder = written(tmp_path / "a", content)
    assert universal_table([read_run(folder)]) is None
    chosen = {"threshold": 0.35, "chosen_on": ["vggss/val", "silence"], "criterion": "harmonic mean"}
    write_results(folder, content["sets"], chosen, experiment="a")
    table = universal_table([read_run(folder)])
    assert table.columns == ["", "set", "threshold", "mean_ciou", "fpr", "auc"]
    assert table.rows == [
        ["a", "vggss", "0.35", "50.00", "5.00", "25.00"],
        ["a, shuffled sound", "vggss", "0.35", "40.00", "4.00", "20.00"],
        ["centre box", "vggss", "0.35", "30.00", "3.00", "15.00"],
    ]
    assert table.notes == ["a: 0.35, chosen on vggss/val, silence by harmonic mean."]


def test_csv_has_the_intervals_and_the_published_numbers(tmp_path):
    folder = run_folder(tmp_path / "a", np.repeat([0.6, 0.2], 200))
    report([folder], tmp_path / "out", paper="souple", table="1", console=Console(quiet=True))
    frame = pd.read_csv(tmp_path / "out" / "report.csv")
    own = frame[(frame.row == "model") & (frame.metric == "ciou")]
    assert own.low.item() < own.value.item() == 0.5 < own.high.item()
    printed = frame[(frame.row == "published: souple table 1") & (frame.experiment == "ACL-SSL")]
    assert printed[(printed.set == "vggss") & (printed.metric == "ciou")].value.tolist() == [pytest.approx(0.4946)]


def test_run_without_samples_or_with_damaged_ones_is_told(tmp_path):
    (table,) = report([written(tmp_path / "a", results())], console=Console(quiet=True))
    assert any("kept no per_sample.parquet" in note for note in table.notes)
    folder = run_folder(tmp_path / "b", np.ones(4))
    (folder / "per_sample.parquet").write_bytes(b"PAR1 and nonsense")
    with pytest.raises(ResultsError, match=r"per_sample.parquet is damaged"):
        report([folder], console=Console(quiet=True))


def test_names_stay_distinct_even_in_folders_of_one_name(tmp_path):
    runs = [read_run(run_folder(tmp_path / n / "version_0", np.ones(3), "same")) for n in ("x", "y")]
    (table,) = compare(runs)
    names = [row[0] for kind, row in zip(table.kinds, table.rows, strict=True) if kind == "own"]
    assert names == [f"same [{tmp_path / n / 'version_0'}]" for n in ("x", "y")]
