"""The test sets of the field and the embedded world's: which protocols they are scored by, and which number
is theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from avloc.evaluation.protocols import ProtocolError, protocol

__all__ = ["BENCHMARKS", "Benchmark", "benchmark", "register"]


@dataclass(frozen=True)
class Benchmark:
    """A test set and how it is scored.

    Attributes:
        name: of the evaluation set.
        protocols: names in `avloc.evaluation.protocols.PROTOCOLS`; the first one's headline metric is the set's
            number. Its metrics are logged as ``test/<name>/<metric>``, the others' as
            ``test/<name>/<protocol>/<metric>``.
        published: the set's key in the tables of published numbers, "" if there is none.
        size: number of samples that the papers evaluate, None if that is not fixed.
        note: what a reader of the numbers must know.
    """

    name: str
    protocols: tuple[str, ...]
    published: str = ""
    size: int | None = None
    note: str = ""

    @property
    def primary(self) -> tuple[str, str]:
        """Protocol and metric that head the set's row."""
        return self.protocols[0], protocol(self.protocols[0]).headline


def boxes(test: str) -> tuple[str, ...]:
    rules = ("acl", "fixed", "median", "top50", "top50-strict", "lvs", "adaptive", "adaptive-ge")
    return tuple(f"{test}/{rule}" for rule in rules)


VGGSS, FLICKR = boxes("vggss"), boxes("flickr")
MASKS = ("avs/acl", "avs/dataset", "avs/official", "avs/gavs", "avs/acl-adaptive", "avs/adaptive")
BOX_OF_MASK = ("vggss/acl", "vggss/top50-strict", "vggss/adaptive", "vggss/fixed")
INTERACTIVE = ("interactive/is3", "interactive/acl", *BOX_OF_MASK)
EXTENDED = (
    "extended/acl",
    "extended/slavc",
    "extended/slavc-absolute",
    "extended/exact",
    "negative/pia",
)
SINGLE = ("single/tvsl", "multi/avgn", *BOX_OF_MASK)
MULTI = ("multi/acl", "multi/tvsl", "multi/sources", "multi/noprior")
WORLD_MULTI = ("multi/sources", "multi/tvsl", "multi/noprior", "multi/acl")
SEMANTIC = ("avss/official", "avss/drop-first", "avss/drop-last", "avss/seen", "avss/dataset")
WORLD = ("vggss/acl", "vggss/top50", "vggss/adaptive", "avs/dataset")

ALL = [
    Benchmark("vggss", VGGSS, "vggss", 5158, "boxes that were corrected after the LVS paper"),
    Benchmark("vggss/heard", VGGSS, "vggss_heard110", 2564, "110 classes of training"),
    Benchmark("vggss/unheard", VGGSS, "vggss_unheard110", 2575, "110 other classes"),
    Benchmark(
        "vggss_sub",
        ("vggss/fixed", *(name for name in VGGSS if name != "vggss/fixed")),
        "vggss_sub",
        1104,
        "the draw is this project's own, the paper's list is not published; its numbers are mean IoU",
    ),
    Benchmark("vggss_ext", EXTENDED, "vggss_ext", 10316, "1,185 negatives sound like their picture's class"),
    Benchmark("vggss_ext/other_class", EXTENDED, "", 9131, "without negatives that sound like their picture's class"),
    Benchmark("flickr", FLICKR, "flickr", 250, "consensus of several annotators"),
    Benchmark("flickr_ext", EXTENDED, "flickr_ext", 500),
    Benchmark("avs_s4", MASKS, "avs_s4", 3700, "740 videos of 5 frames; 6 frames are empty"),
    Benchmark("avs_ms3", MASKS, "avs_ms3", 320, "64 videos of 5 frames; 29 frames are empty"),
    Benchmark("avs_s4_box", INTERACTIVE, "avs_s4", 3700, "boxes of the masks; a group is a clip"),
    Benchmark("avs_ms3_box", INTERACTIVE, "avs_ms3", 320, "boxes of the masks; a group is a clip"),
    Benchmark("avss", (*SEMANTIC, *MASKS), "avss", 11520, "1,554 videos; padding frames are not scored"),
    Benchmark("avss/v2", (*MASKS, *SEMANTIC), "avs_v2", 7500, "750 videos"),
    Benchmark("avss_v1s", MASKS, "avs_s4", 3700, "740 videos of 5 frames, native size"),
    Benchmark("avss_v1m", MASKS, "avs_ms3", 320, "64 videos of 5 frames, native size"),
    Benchmark("avss_v2", (*MASKS, *SEMANTIC), "avs_v2", 7500, "750 videos of 10 frames"),
    Benchmark("avs_v3", MASKS),
    Benchmark("avs_v3/v3_unseen", MASKS, "avs_v3_0shot", None, "758 videos; few-shot tests lack three of the classes"),
    *(
        Benchmark(f"avs_v3/v3_{n}shot_test", MASKS, f"avs_v3_{n}shot", None, f"{videos} videos")
        for n, videos in ((1, 532), (3, 510), (5, 488))
    ),
    Benchmark("is3", INTERACTIVE, "is3", 6480, "3,240 pictures with two sounds each"),
    Benchmark("is3_seg", MASKS, "is3", 6480),
    Benchmark("vpo_ss", BOX_OF_MASK, "vpo_ss", 890),
    Benchmark("vpo_ss_seg", MASKS, "vpo_ss", 890),
    Benchmark("vpo_ms", INTERACTIVE, "vpo_ms", 2157, "53 % of the groups have one member"),
    Benchmark("vpo_ms/true_group", INTERACTIVE, "", None, "groups of at least two"),
    Benchmark("vpo_ms_seg", MASKS, "vpo_ms", 2157),
    Benchmark("ade20k_sound", MASKS, "ade20k_sound"),
    Benchmark("ade20k_sound_box", BOX_OF_MASK, "ade20k_sound", note="the smallest box around each mask"),
    Benchmark(
        "avs_robust_s4",
        ("robust/acl", "robust/s4", "robust/global-inferred", "robust/avsbench"),
        "avs_robust_s4",
        14800,
    ),
    Benchmark("avs_robust_ms3", ("robust/acl", "robust/avsbench", "robust/global-inferred"), "avs_robust_ms3", 1280),
    Benchmark("vgg_single", SINGLE, "vgg_single", 5158, "the pictures of VGG-SS"),
    Benchmark("vgg_instruments", ("single/tvsl", "multi/avgn", *MASKS), "vgg_instruments_single", 446),
    Benchmark("vgg_instruments_mixed", MULTI, "vgg_instruments", 446),
    Benchmark("vgg_duet", MULTI, "vgg_duet", 5158, "22 pairs have one class"),
    Benchmark("vgg_mix2", MULTI, "vgg_mix2", 5158, "the pairs of vgg_duet"),
    Benchmark("vgg_mix3", MULTI, "vgg_mix3", 5158, "the list is this project's own, the paper's is not published"),
    Benchmark("vgg_mix4", MULTI, "vgg_mix4", 5158, "the list is this project's own, the paper's is not published"),
    Benchmark("music_solo", SINGLE, "music_solo", 2124, "20 videos"),
    Benchmark("music_duet", MULTI[:3], "music_duet", 1020, "6 videos; both sources in one picture"),
    Benchmark("world:single", WORLD),
    Benchmark("world:val", WORLD),
    Benchmark("world:heard", WORLD),
    Benchmark("world:unheard", WORLD, note="classes that training never saw"),
    Benchmark("world:pairs", ("interactive/acl", "interactive/is3", *WORLD), note="each picture with two sounds"),
    Benchmark(
        "world:mixture",
        ("multi/sources", "multi/tvsl", "multi/acl", "vggss/acl"),
        note="two sounds at once in one picture; vggss/* score the union of both sources",
    ),
    Benchmark("world:duet", WORLD_MULTI, note="two pictures side by side, two sounds at once"),
    Benchmark("world:val_duet", WORLD_MULTI, note="two pictures side by side, two sounds at once"),
    Benchmark("world:trio", WORLD_MULTI, note="three pictures side by side, three sounds at once"),
    Benchmark("world:quartet", WORLD_MULTI, note="four pictures side by side, four sounds at once"),
    Benchmark("world:negative", ("negative/pia",), note="no object sounds; lower is better"),
    Benchmark("world:val_negative", ("negative/pia",), note="no object sounds; lower is better"),
    Benchmark("world:extended", EXTENDED, note="half of the sounds come from nothing in the picture"),
    Benchmark("world:robust", ("robust/avsbench", "robust/global-inferred", "robust/acl")),
    Benchmark("world:sizes", WORLD, note="objects of several sizes"),
    *(Benchmark(f"world:sizes/{size}", WORLD, note=f"a {size} object sounds") for size in ("small", "usual", "large")),
    *(
        Benchmark(
            name, ("vggss/acl", "interactive/acl", *WORLD[1:]), note="two classes share the sound, the scene tells"
        )
        for name in ("world:context", "world:val_context")
    ),
    Benchmark("world:val_factors", ("avs/dataset", "vggss/fixed")),
    Benchmark("world:factors_heard", ("avs/dataset", "vggss/fixed")),
    Benchmark("world:factors_unheard", ("avs/dataset", "vggss/fixed"), note="new combinations of known factors"),
    Benchmark("world:semantic", ("avss17/official", "avss17/seen", "avss17/dataset", "avs/dataset")),
]

BENCHMARKS: dict[str, Benchmark] = {b.name: b for b in ALL}


def benchmark(name: str, protocols: Sequence[str] | None = None) -> Benchmark:
    """The benchmark of a set.

    Another split or tag of a known set is scored like that set, without published numbers; a set of the user's own by
    ``vggss/acl`` and ``vggss/adaptive``.

    Args:
        name: of the set.
        protocols: those to score it by instead of its own.

    Raises:
        ProtocolError: an unknown protocol.
    """
    found = BENCHMARKS.get(name)
    if found is None:
        kin = BENCHMARKS.get(name.split("/")[0].split(":")[0])
        found = Benchmark(name, kin.protocols if kin else ("vggss/acl", "vggss/adaptive"))
    for each in protocols or ():
        protocol(each)
    return replace(found, protocols=tuple(protocols)) if protocols else found


def register(added: Benchmark) -> None:
    """Add a test set of one's own, with the protocols that it is scored by.

    Raises:
        ProtocolError: it names no protocol or an unknown one, or another set has the name.
    """
    if not added.protocols:
        raise ProtocolError(f"Test set {added.name!r} names no protocol to be scored by.")
    for name in added.protocols:
        protocol(name)
    if BENCHMARKS.setdefault(added.name, added) != added:
        raise ProtocolError(f"There is a test set {added.name!r} already. Give yours a name of its own.")
