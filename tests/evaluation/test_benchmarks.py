"""Every benchmark has a converter, and every published benchmark a way to be scored."""

from __future__ import annotations

import importlib.util

import pytest

from avloc.data.module import converter
from avloc.evaluation.benchmarks import BENCHMARKS, benchmark
from avloc.report import published


@pytest.mark.parametrize("name", [b for b in BENCHMARKS if not b.startswith("world")])
def test_the_command_that_writes_a_set_exists(name: str) -> None:
    module = converter(name.split("/")[0])
    assert importlib.util.find_spec(f"data_prep.{module}"), module


def test_every_published_benchmark_can_be_scored() -> None:
    tables = [t for paper in published.papers() for t in published.load(paper).tables]
    wanted = {name for table in tables for name in table.benchmarks}
    assert wanted == {b.published for b in BENCHMARKS.values() if b.published}


def test_other_splits_of_a_known_set_are_scored_like_it() -> None:
    assert benchmark("avs_ms3:val").protocols == BENCHMARKS["avs_ms3"].protocols
    assert (benchmark("avs_ms3:val").published, benchmark("avs_ms3:val").size) == ("", None)
    assert benchmark("vggss/mine").primary == ("vggss/acl", "ciou")
    assert benchmark("mine:test").protocols == ("vggss/acl", "vggss/adaptive")
