"""Where the suite's own rows stand in the papers' tables: every experiment, rows with OGL, and many runs at once."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from avloc.evaluation.benchmarks import BENCHMARKS, benchmark
from avloc.evaluation.protocols import protocol
from avloc.names import find_config, known
from avloc.report import published
from avloc.report.cells import published_name
from avloc.report.curves import COLOURS, plots_of
from avloc.report.intervals import Bounds
from avloc.report.layout import compare, paper_table, tables_with_rows
from avloc.report.results import Run, read_run
from avloc.report.tables import report, to_latex, to_markdown
from tests.evaluation.test_protocols import columns, scenes
from tests.report.fabricated import entry, per_sample, results, top50


def reproducing() -> list[str]:
    found = {name: yaml.safe_load(path.read_text()) for name, path in known().items()}
    return [name for name, content in found.items() if content.get("reproduces")]


@cache
def metrics_of(rule: str) -> tuple[str, ...]:
    """What a protocol measures; the toy scenes know one of the three sound conditions of AVSBench-Robust."""
    told = protocol(rule).summary(columns([rule], *scenes(rule, 11)))
    names = [name for name, value in told.items() if not isinstance(value, list)]
    more = [n.replace("_noise", f"_{kind}") for n in names if n.endswith("_noise") for kind in ("silence", "offscreen")]
    return tuple(names + more)


def fabricated(folder: Path, name: str, **more: Any) -> Run:
    """A run of an experiment that was tested on its sets, where every number is a half."""
    content = yaml.safe_load(find_config(name).read_text())
    chosen = content.get("evaluator", {}).get("protocols", {})
    sets = {}
    for test in content["data"]["test"]:
        known = benchmark(test, chosen.get(test))
        rows = {rule: dict.fromkeys(metrics_of(rule), 0.5) for rule in known.protocols}
        sets[test] = entry({"model": rows}, known.primary, 10, known.published)
    about = {"experiment": name, "reproduces": content["reproduces"]} | more
    return read_run(results(folder, sets, **about))


@pytest.mark.parametrize("name", reproducing())
def test_every_experiment_stands_below_its_published_row(name: str, tmp_path: Path) -> None:
    run = fabricated(tmp_path, name)
    reference = run.reproduces
    assert reference is not None
    place = reference["paper"], str(reference["table"])
    row = published.find(**reference)
    if not {v.benchmark for v in row.values} & {s.published for s in run.sets.values()}:
        # Tested on no set of its row (such as a set of another experiment): nothing can stand beside it.
        assert place not in [found for found, _ in tables_with_rows([run], [place[0]])]
        return
    assert place in [found for found, _ in tables_with_rows([run], [place[0]])]
    table = paper_table([run], *place)
    at = table.kinds.index("target")
    assert table.rows[at][0] == row.name
    assert table.kinds[at : at + 3] == ["target", "own", "difference"]
    printed, own, apart = table.rows[at : at + 3]
    tested = {s.published for s in run.sets.values()}
    for group, metric, mine, theirs, gap in zip(
        table.groups[1:], table.columns[1:], own[1:], printed[1:], apart[1:], strict=True
    ):
        if group in tested:
            assert mine == "50.00", "every column of a tested set is filled"
            cell = row.value(group, metric)
            assert bool(cell) == bool(theirs)
            assert bool(gap) == bool(cell and cell.protocol), (
                f"{group} {metric}: only what is comparable has a difference"
            )


def test_every_column_of_every_table_is_measured_by_some_benchmark() -> None:
    measured = {
        (known.published, published_name(rule, metric))
        for known in BENCHMARKS.values()
        for rule in known.protocols
        for metric in metrics_of(rule)
    }
    tables = [(paper, table.id) for paper in published.papers() for table in published.load(paper).tables]
    wanted = {column for place in tables for column in published.find_table(*place).columns}
    # The subset of VGG-SS in GAVS's table 4 was never released.
    assert {column for column in wanted - measured if column[0] != "vggss_sub"} == set()


def test_one_model_under_many_names_by_hand() -> None:
    names = {
        place: row.name for place, row in published.alike("acl_ssl", "9", acl("9", "F: acl_i + acl_f + reg")).items()
    }
    assert next(iter(names)) == ("acl_ssl", "9")
    assert names["acl_ssl", "1"] == names["acl_ssl", "7"] == "ACL-SSL (AV alignment)"
    assert names["acl_ssl", "11"] == "ACL-SSL (audio tokens=1)"
    assert names["souple", "1"] == "ACL-SSL"
    assert len(published.alike("acl_ssl", "9", acl("9", "A: acl_i"))) == 1
    souple = published.find("souple", "5", "SOUPLE", "ctx=16")
    assert len(published.alike("souple", "5", souple)) == 1, "pos=3 has the same two digits by accident"
    heard = published.find("souple", "2", "SOUPLE", "ctx=4, 20 epochs")
    assert list(published.alike("souple", "2", heard)) == [("souple", "2")], "trained on other classes"


def acl(table: str, variant: str) -> published.Row:
    return published.find("acl_ssl", table, "ACL-SSL", variant)


def test_no_model_has_two_rows_in_a_table() -> None:
    for paper in published.papers():
        for table in published.load(paper).tables:
            rows = published.find_table(paper, table.id).rows
            for row in rows:
                for place, other in published.alike(paper, table.id, row).items():
                    back = published.alike(*place, other)
                    assert back[paper, table.id] == row


def guided(folder: Path, name: str, **more: Any) -> Run:
    rows = {
        row: {"vggss/acl": {"ciou": value, "auc": value / 2}}
        for row, value in (("model", 0.4), ("with OGL", 0.45), ("shuffled sound", 0.3), ("centre box", 0.2))
    }
    sets = {"vggss": entry(rows, ("vggss/acl", "ciou"), 10, "vggss")}
    return read_run(results(folder, sets, experiment=name, **more))


EZVSL = {"paper": "souple", "table": "1", "method": "EZ-VSL"}


def test_the_row_with_ogl_stands_below_the_published_row_with_ogl(tmp_path: Path) -> None:
    table = paper_table([guided(tmp_path, "ez", reproduces=EZVSL)], "souple", "1")
    names = [row[0] for row in table.rows]
    at = names.index("EZ-VSL")
    assert names[at : at + 4] == ["EZ-VSL", "ez", "ez - EZ-VSL", "ez, shuffled sound"]
    at = names.index("EZ-VSL + OGL")
    assert names[at : at + 3] == ["EZ-VSL + OGL", "ez + OGL", "ez + OGL - EZ-VSL + OGL"]
    assert table.rows[at][1] == published.find("souple", "1", "EZ-VSL", ogl=True).value("vggss", "ciou").percent  # type: ignore[union-attr]
    assert table.rows[at + 1][1:3] == ["45.00", "22.50"]
    assert names[-1] == "centre box"
    assert "with OGL" not in names, "it is no control"


def test_the_row_with_ogl_of_a_table_of_a_set(tmp_path: Path) -> None:
    (table,) = compare([guided(tmp_path, "ez", reproduces=EZVSL)])
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["ez + OGL"] == ["45.00", "22.50", "+15.00 (shuffled sound)"]
    assert cells["ez"][-1] == "+10.00 (shuffled sound)", "the row with OGL is not the best control"
    printed = published.find("souple", "1", "EZ-VSL", ogl=True)
    assert cells["published: EZ-VSL + OGL, souple table 1"][0] == printed.value("vggss", "ciou").percent  # type: ignore[union-attr]
    assert table.kinds.count("own") == table.kinds.count("target") == 2


def test_a_method_that_no_paper_refines_gets_the_row_without_a_published_one(tmp_path: Path) -> None:
    souple = {"paper": "souple", "table": "1", "method": "SOUPLE", "variant": "ctx=4, 20 epochs"}
    table = paper_table([guided(tmp_path, "s", reproduces=souple)], "souple", "1")
    names = [row[0] for row in table.rows]
    assert names.index("s + OGL") == names.index("runs without a row of this table") + 1
    assert any(note.startswith("s + OGL: reproduces no row") for note in table.notes)


def test_paper_all_writes_every_table_with_a_row(tmp_path: Path) -> None:
    fabricated(tmp_path / "acl", "acl_ssl")
    fabricated(tmp_path / "gavs", "gavs_v1s")
    guided(tmp_path / "own", "mine")
    folders = [tmp_path / n for n in ("acl", "gavs", "own")]
    tables = report(folders, tmp_path / "out", paper="all", console=Console(quiet=True))
    titles = [table.title.partition(":")[0] for table in tables]
    assert {"acl_ssl table 1", "acl_ssl table 9", "souple table 1", "gavs table 1", "seac table 1"} <= set(titles)
    assert not any(title.startswith("tvsl") for title in titles)
    for table in tables:
        own = {row[0] for kind, row in zip(table.kinds, table.rows, strict=True) if kind == "own"}
        assert own & {"acl_ssl", "gavs_v1s"}
        assert ("mine" in own) == ("vggss" in table.groups), "a method of no paper stands wherever it was scored"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "acl_ssl, gavs_v1s" not in page
    assert page.count("<section") > len(tables)
    (only,) = {t.title.split()[0] for t in report(folders, paper="gavs", console=Console(quiet=True))}
    assert only == "gavs"


def test_boxes_are_read_by_rules_of_boxes(tmp_path: Path) -> None:
    masks = {"avs/acl": {"miou": 0.1}, "avs/adaptive": {"miou": 0.2, "ciou": 0.9, "auc": 0.9}}
    boxes = {"interactive/acl": {"ciou": 0.3}, "vggss/adaptive": {"ciou": 0.4, "auc": 0.5}}
    sets = {
        "avs_s4": entry({"model": masks}, ("avs/acl", "miou"), 4, "avs_s4"),
        "avs_s4_box": entry({"model": boxes}, ("interactive/acl", "ciou"), 4, "avs_s4"),
    }
    run = read_run(results(tmp_path, sets, experiment="a"))
    table = paper_table([run], "acl_ssl", "2")
    own = dict(zip(zip(table.groups, table.columns, strict=True), table.rows[table.kinds.index("own")], strict=True))
    assert [own["avs_s4", m] for m in ("ciou", "ciou_adap", "auc_adap")] == ["30.00", "40.00", "50.00"]
    table = paper_table([run], "acl_ssl", "6")
    own = dict(zip(zip(table.groups, table.columns, strict=True), table.rows[table.kinds.index("own")], strict=True))
    assert [own["avs_s4", m] for m in ("miou", "miou_adap")] == ["10.00", "20.00"]


def test_groups_of_rows_are_headed_in_every_form(tmp_path: Path) -> None:
    table = paper_table([guided(tmp_path, "ez", reproduces=EZVSL)], "souple", "1")
    heads = [row[0] for kind, row in zip(table.kinds, table.rows, strict=True) if kind == "group"]
    assert heads == ["published methods", "published baselines", "the paper's own", "controls that see no model"]
    assert "| **published baselines** |  |" in to_markdown(table)
    assert r"\midrule \multicolumn{5}{l}{\emph{published baselines}} \\" in to_latex(table)


def many(tmp_path: Path, count: int) -> list[Run]:
    random = np.random.default_rng(0)
    runs = []
    for i in range(count):
        overlap = np.clip(random.random(40) + 0.02 * i, 0, 1)
        rows = {"model": top50(overlap), "shuffled sound": top50(overlap / 2), "centre box": top50(overlap * 0 + 0.4)}
        folder = tmp_path / f"r{i:02}"
        keys = [f"k{j}" for j in range(40)]
        values = {("vggss", row): {"key": keys, "top50:ciou": overlap[:, None]} for row in rows}
        per_sample(folder, values)
        sets = {"vggss": entry(rows, ("vggss/top50", "ciou"), 40, "vggss")}
        runs.append(read_run(results(folder, sets, experiment=f"method{i:02}")))
    return runs


def test_many_runs_stay_legible(tmp_path: Path) -> None:
    runs = many(tmp_path, 14)
    (table,) = compare(runs, bounds=Bounds())
    assert table.kinds.count("own") == 14
    assert [row[0] for kind, row in zip(table.kinds, table.rows, strict=True) if kind == "control"] == ["centre box"]
    numbers = [float(row[1].split()[0]) for kind, row in zip(table.kinds, table.rows, strict=True) if kind == "own"]
    best = f"method{int(np.argmax(numbers)):02}"
    assert len(table.findings) == 13, "the best with each other one, not every two"
    assert all(finding.startswith(f"{best} - ") for finding in table.findings)
    (plot, *_) = plots_of("vggss", runs)
    own = [curve.label for curve in plot.curves if curve.run >= 0]
    assert len(own) == len(COLOURS)
    assert best in own
    assert plot.title == f"Samples found, the best {len(COLOURS)} of 14 runs"
    report([run.folder for run in runs], tmp_path / "out", console=Console(quiet=True))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<title>14 runs</title>" in page
    assert 'name="heard"' in page, "a long table can be shortened"


def test_controls_of_runs_that_agree_share_a_row(tmp_path: Path) -> None:
    runs = many(tmp_path, 6)
    for run in runs[4:]:
        run.sets["vggss"].rows["centre box"]["vggss/top50"]["ciou"] = 0.25
    (table,) = compare(runs)
    names = [row[0] for kind, row in zip(table.kinds, table.rows, strict=True) if kind == "control"]
    assert names == ["centre box (method00, method01, method02 and 1 more)", "centre box (method04, method05)"]


def test_a_set_is_judged_by_the_metric_of_most_runs(tmp_path: Path) -> None:
    rows = {"model": {"avs/acl": {"miou": 0.5}, "vggss/acl": {"ciou": 0.6}}, "centre box": {"vggss/acl": {"ciou": 0.2}}}
    goals = [("avs/acl", "miou"), ("vggss/acl", "ciou"), ("vggss/acl", "ciou")]
    runs = [
        read_run(results(tmp_path / str(i), {"own": entry(rows, goal, 4)}, experiment=f"r{i}"))
        for i, goal in enumerate(goals)
    ]
    (table,) = compare(runs)
    assert table.columns == ["", "vggss/acl/ciou", "avs/acl/miou", "ciou over best control"]
    assert [row[-1] for row in table.rows[:3]] == ["+40.00 (centre box)"] * 3
    assert any("r0 was selected by avs/acl/miou" in note for note in table.notes)
