"""The test sets of the field and the embedded world's: which protocols they are scored by, and which number
is theirs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BENCHMARKS", "Benchmark", "benchmark"]


@dataclass(frozen=True)
class Benchmark:
    """A test set and how it is scored.

    Attributes:
        name: of the evaluation set.
        protocols: names in `avloc.evaluation.protocols.PROTOCOLS`.
        primary: protocol and metric that head the set's row; that protocol's metrics are logged as
            ``test/<name>/<metric>``, the others' as ``test/<name>/<protocol>/<metric>``.
        published: the set's key in the tables of published numbers, "" if there is none.
        size: number of samples that the papers evaluate, None if that is not fixed.
        note: what a reader of the numbers must know.
    """

    name: str
    protocols: tuple[str, ...]
    primary: tuple[str, str]
    published: str = ""
    size: int | None = None
    note: str = ""


def boxes(test: str) -> tuple[str, ...]:
    rules = ("acl", "fixed", "median", "top50", "top50-strict", "lvs", "adaptive")
    return tuple(f"{test}/{rule}" for rule in rules)


MASKS = ("avs/acl", "avs/dataset", "avs/official", "avs/gavs")
WORLD = ("vggss/acl", "vggss/top50", "vggss/adaptive", "avs/dataset")

ALL = [
    Benchmark("vggss", boxes("vggss"), ("vggss/acl", "ciou"), "vggss", 5158),
    Benchmark(
        "vggss/heard",
        boxes("vggss"),
        ("vggss/acl", "ciou"),
        "vggss_heard110",
        2564,
        "110 classes of training",
    ),
    Benchmark("vggss/unheard", boxes("vggss"), ("vggss/acl", "ciou"), "vggss_unheard110", 2575, "110 other classes"),
    Benchmark("flickr", boxes("flickr"), ("flickr/acl", "ciou"), "flickr", 250, "consensus of several annotators"),
    Benchmark("avs_s4", MASKS, ("avs/acl", "miou"), "avs_s4", 3700, "740 videos of 5 frames"),
    Benchmark("avs_ms3", MASKS, ("avs/acl", "miou"), "avs_ms3", 320, "64 videos of 5 frames; frames may be empty"),
    Benchmark("world:single", WORLD, ("vggss/acl", "ciou")),
    Benchmark("world:val", WORLD, ("vggss/acl", "ciou")),
    Benchmark("world:unheard", WORLD, ("vggss/acl", "ciou"), note="classes that training never saw"),
    Benchmark("world:pairs", WORLD, ("vggss/acl", "ciou"), note="each picture twice, with two sounds"),
    Benchmark(
        "world:mixture",
        ("mixture/top50", "vggss/acl", "vggss/top50"),
        ("mixture/top50", "ciou"),
        note="two sounds at once; vggss/* score the union of both sources",
    ),
    Benchmark("world:negative", ("negative/pia",), ("negative/pia", "pia"), note="no object sounds; lower is better"),
]

BENCHMARKS: dict[str, Benchmark] = {b.name: b for b in ALL}


def benchmark(name: str) -> Benchmark:
    """The benchmark of a set, or for a set of the user's own ``vggss/acl`` and ``vggss/adaptive``."""
    return BENCHMARKS.get(name) or Benchmark(name, ("vggss/acl", "vggss/adaptive"), ("vggss/acl", "ciou"))
