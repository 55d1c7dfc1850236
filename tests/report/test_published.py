from __future__ import annotations

from pathlib import Path

import pytest

from avloc.report.published import FOLDER, PublishedError, find, load, papers

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "published"


@pytest.mark.parametrize(
    ("paper", "table", "method", "variant", "benchmark", "metric", "percent"),
    [
        ("souple", "1", "SOUPLE", "ctx=4, 20 epochs", "vggss", "ciou", "53.21"),
        ("souple", "1", "SOUPLE", "ctx=4, 20 epochs", "flickr", "ciou", "84.80"),
        ("souple", "1", "ACL-SSL", None, "vggss", "auc", "46.32"),
        ("gavs", "1", "AVSegFormer", "VGGish + PVT-v2", "avs_s4", "fscore", "89.9"),
        ("seac", "1", "GAVS", None, "avs_ms3", "miou", "63.70"),
        ("tvsl", "1", "LVS", None, "music_solo", "iou@50", "57.1"),
    ],
)
def test_cell_as_printed(paper, table, method, variant, benchmark, metric, percent):
    value = find(paper, table, method, variant).value(benchmark, metric)
    assert value is not None
    assert value.percent == percent
    assert value.fraction == pytest.approx(float(percent) / 100, abs=1e-12)


def test_refined_row_is_another_row():
    assert find("souple", "1", "EZ-VSL").value("vggss", "ciou").printed == "35.96"
    assert find("souple", "1", "EZ-VSL", ogl=True).value("vggss", "ciou").printed == "38.85"
    assert find("souple", "1", "EZ-VSL", ogl=True).name == "EZ-VSL + OGL"


def test_row_printed_in_two_blocks_has_the_cells_of_both():
    row = find("souple", "2", "SOUPLE", "ctx=4, 50 epochs")
    assert {v.benchmark for v in row.values} == {"vggss_heard110", "vggss_unheard110"}
    assert row.value("vggss_unheard110", "ciou").printed == "48.40"


def test_no_row_holds_a_cell_twice():
    for paper in papers():
        for table in load(paper).tables:
            for row in table.rows:
                whole = find(paper, table.id, row.method, row.variant, bool(row.flags["ogl"]))
                cells = [(v.benchmark, v.metric) for v in whole.values]
                assert len(cells) == len(set(cells)), (paper, table.id, row.name)


def test_doubts_reach_the_rows_that_they_name_and_no_others():
    ours = find("souple", "1", "SOUPLE", "ctx=4, 20 epochs").doubts
    acl = find("souple", "1", "ACL-SSL").doubts
    assert any("not bold because SLAVC" in d for d in ours)
    assert not any("not bold because SLAVC" in d for d in acl)
    assert any("0.5 is not printed" in d for d in ours)
    assert any("0.5 is not printed" in d for d in acl)
    assert not any("46.24 repeat" in d for d in ours), "a doubt about table 2"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("soupel", "1", "SOUPLE"), "souple"),
        (("souple", "99", "SOUPLE"), "there are 1, 2"),
        (("souple", "1", "SOUPLE", "ctx=5"), r"SOUPLE \(ctx=4, 20 epochs\)"),
    ],
)
def test_unknown_row_lists_those_that_exist(arguments, says):
    with pytest.raises(PublishedError, match=says):
        find(*arguments)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder is not here")
def test_copies_are_the_shared_files():
    assert {p.name: p.read_bytes() for p in FOLDER.glob("*.yaml")} == {
        p.name: p.read_bytes() for p in SHARED.glob("*.yaml")
    }
