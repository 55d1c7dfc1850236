from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from avloc.evaluation.benchmarks import BENCHMARKS
from avloc.evaluation.protocols import protocol
from avloc.report import published
from avloc.report.published import FOLDER, PublishedError, comparisons, find, load, papers, told_comparisons
from tests.evaluation.test_protocols import columns, scenes

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
def test_copies_hold_what_the_shared_files_hold():
    """The copies add what each value may be compared with, and nothing else."""
    assert {p.name for p in FOLDER.glob("*.yaml")} == {p.name for p in SHARED.glob("*.yaml")}
    for path in FOLDER.glob("*.yaml"):
        own, shared = (yaml.load(p.read_text(), yaml.CBaseLoader) for p in (path, SHARED / path.name))
        assert own.pop("compare")
        assert own == shared


@cache
def metrics_of(name: str) -> set[str]:
    """What a protocol's summary yields under a positive and three kinds of negative sound."""
    given, batch = scenes(name, 12)
    kinds = ["", "silence", "noise", "offscreen"]
    batch.negative = [kinds[i % 4] for i in range(12)]
    batch.sounding = torch.arange(12) % 4 == 0
    return set(protocol(name).summary(columns([name], given, batch)))


def test_every_published_value_names_what_it_may_be_compared_with(capsys):
    every = comparisons()
    assert {paper for paper, *_ in every} == set(papers())
    for paper, table, row, value in every:
        where = f"{paper} table {table}, {row.name}: {value.benchmark} {value.metric}"
        assert bool(value.protocol) != bool(value.reason), where
        if value.protocol:
            sets = [b.name for b in BENCHMARKS.values() if b.published == value.benchmark]
            assert any(value.protocol in BENCHMARKS[name].protocols for name in sets), f"{where}: {value.protocol}"
            assert value.measured in metrics_of(value.protocol), f"{where}: {value.measured} of {value.protocol}"
    with capsys.disabled():
        print("\n" + told_comparisons())
    count = sum(len(row.values) for paper in papers() for table in load(paper).tables for row in table.rows)
    assert f"of {count} values are compared" in told_comparisons().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "metric", "compared"),
    [
        (("gavs", "3", "GAVS", "zero-shot"), "ciou", ("vggss/fixed", "mean_ciou")),  # 41.07, a mean
        (("seac", "1", "SeAC"), "ciou", ("vggss/fixed", "mean_ciou")),  # 48.58, a mean
        (("souple", "1", "SOUPLE", "ctx=4, 20 epochs"), "ciou", ("vggss/acl", "ciou")),  # a success rate
        (("acl_ssl", "1", "ACL-SSL", "AV alignment"), "ciou_adap", ("vggss/adaptive", "ciou")),
        (("gavs", "3", "EZ-VSL", "in-set", True), "ciou", ("", "")),
    ],
)
def test_a_mean_is_not_compared_with_a_success_rate(arguments, metric, compared):
    value = find(*arguments).value("vggss", metric)
    assert (value.protocol, value.measured) == compared


def test_mixtures_and_adaptive_scores_are_those_of_their_papers():
    names = {(p, t, v.metric): (v.protocol, v.measured) for p, t, row, v in comparisons() if row.group == "ours"}
    assert names["acl_ssl", "8", "ciou@30"] == ("multi/acl", "ciou@30")
    assert names["tvsl", "2", "ciou@30"] == ("multi/tvsl", "ciou@30")
    assert names["acl_ssl", "6", "fscore_adap"] == ("avs/acl-adaptive", "fscore")
    assert names["acl_ssl", "5", "gf"] == ("robust/acl", "gf")
    assert names["acl_ssl", "3", "loc_acc"] == ("extended/acl", "loc_acc")


def test_a_value_without_a_known_protocol_is_named(tmp_path, monkeypatch):
    text = (FOLDER / "tvsl.yaml").read_text()
    (tmp_path / "tvsl.yaml").write_text(text.replace("music_solo], protocol", "music_sol], protocol"))
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    load.cache_clear()
    try:
        with pytest.raises(PublishedError, match=r"music_solo ap .*nothing says which protocol"):
            load("tvsl")
    finally:
        monkeypatch.undo()
        load.cache_clear()
