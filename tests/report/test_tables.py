from __future__ import annotations

import json

import pandas as pd
import pytest
from rich.console import Console

from avloc.report.published import find
from avloc.report.tables import ResultsError, compare, read_run, report, to_frame, to_latex, to_markdown


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
        ["full frame", "20.00", "25.00", ""],
        ["centre box", "40.00", "35.00", ""],
    ]
    assert any("0.5 is not printed" in note for note in table.notes)


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
    content["sets"]["vggss"]["missing"]["model"] = 3
    content["sets"]["vggss"]["whole"] = False
    (table,) = compare([read_run(written(tmp_path / "a", content))])
    assert "souple_ctx4: 3 of 500 samples are missing from these numbers." in table.notes
    assert "souple_ctx4: only a part of vggss was scored." in table.notes


def test_a_set_goes_by_its_name_in_the_papers(tmp_path):
    content = results(reproduces={"paper": "souple", "table": "2", "method": "SOUPLE", "variant": "ctx=4, 50 epochs"})
    content["sets"] = {"vggss/unheard": {**content["sets"]["vggss"], "published": "vggss_unheard110"}}
    (table,) = compare([read_run(written(tmp_path / "a", content))])
    (row,) = [row for row in table.rows if row[0].startswith("published")]
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
