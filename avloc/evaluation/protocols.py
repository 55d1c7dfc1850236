"""The published evaluation protocols, as data.

A protocol is a few measures (what is kept of every sample) and a summary (what the table prints), under the name of
the evaluator that published it. All metrics are fractions 0..1.

=========================  =====================================================================================
``ciou``, ``ciou@30``      share of samples with cIoU >= 0.5 (0.3): the "cIoU" of the tables, not a mean
``auc``                    area under the share of samples with cIoU >= 0, 0.05 .. 1
``mean_ciou``              mean cIoU; NaN if a sample has neither truth nor prediction
``threshold``              where the map was cut, if the protocol searched for it
``iiou``, ``iauc``         as ciou and auc, over groups whose members must all succeed
``miou``, ``fscore``       AVSBench; over classes in AVSS
``ap``, ``max_f1``         over confidences of positives and negatives; ``loc_acc`` of visible ones only, strictly
                           above 0.5 in SLAVC's evaluator
``cap``, ``piap``          average precision of the maps of sources
``gmiou``, ``gf``          positive and negative sounds in one number; ``gfpr`` is the negatives' mean
``fpr``, ``pia``           share of the image predicted; under sound that is not in the picture lower is better
=========================  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Literal

from avloc.evaluation import measures as m
from avloc.evaluation.measures import Measure
from avloc.evaluation.summaries import (
    Samples,
    Summary,
    acl_frames,
    acl_robust,
    adaptive_frames,
    box,
    box_sweep,
    extended_absolute,
    extended_acl,
    extended_exact,
    extended_half,
    frames_of_area,
    grouped,
    grouped_sweep,
    of_avgn,
    of_batches,
    of_dataset,
    of_noprior,
    of_paired,
    of_single,
    of_sources,
    of_tvsl,
    robust_conditions,
    robust_global,
    semantic_dataset,
    semantic_frames,
    share,
)
from avloc.metrics.thresholds import SWEEP

__all__ = ["PROTOCOLS", "Protocol", "ProtocolError", "Samples", "Summary", "protocol", "register"]

Cut = Literal["test set", "fixed", "map", "truth", "none", "unknown"]
"""Who chooses where maps are cut; see `Protocol`."""


class ProtocolError(LookupError):
    """A protocol that does not exist, or a name that is taken."""


@dataclass(frozen=True)
class Protocol:
    """A named way from heat maps to the numbers of a table.

    Attributes:
        name: family and rule.
        measures: per-sample values.
        summary: all columns of a set to metrics.
        headline: the metric that a benchmark is judged by.
        note: what a reader of the numbers must know.
        cut: who chooses where the maps of the headline are cut: ``test set``, which no user has; ``fixed`` beforehand;
            each ``map`` (its larger half); the ``truth``'s area; ``none``, where all cuts count.
    """

    name: str
    measures: tuple[Measure, ...]
    summary: Callable[[Samples], Summary]
    headline: str = "ciou"
    note: str = ""
    cut: Cut = "unknown"

    @property
    def needs(self) -> str:
        """``groups`` or ``sources`` (several in one picture): what at least one record of a set must have, else the
        numbers would be another protocol's under this one's name; "" for neither."""
        family = self.name.partition("/")[0]
        return {"interactive": "groups", "multi": "" if self.name == "multi/avgn" else "sources"}.get(family, "")


BOXES: dict[str, tuple[Measure, Callable[[Samples], Summary] | None, str, Cut]] = {
    "acl": (m.BOX_SWEEP, box_sweep, "19 fixed thresholds, >=; the row of the best AUC, chosen on this set", "test set"),
    "fixed": (m.BOX_SWEEP, partial(box, measure=m.BOX_SWEEP, column=SWEEP.index(0.5)), "map >= 0.5", "fixed"),
    "median": (m.MEDIAN, None, "the larger half of the map, >=, no normalisation (ACL-SSL, thr=None)", "map"),
    "top50": (m.TOP50, None, "min-max, sorted index HW//2, >= (EZ-VSL, SLAVC)", "map"),
    "top50-strict": (m.STRICT, None, "min-max, sorted index HW//2, > (SSLalign)", "map"),
    "lvs": (m.LVS, None, "negate, min-max, flip; > or >= 1 (LVS)", "map"),
    "adaptive": (m.ADAPTIVE, None, "as many pixels as the truth has, > (SSLalign)", "truth"),
    "adaptive-ge": (m.ADAPTIVE_GE, None, "as many pixels as the truth has, >= (ACL-SaN)", "truth"),
}

SOUNDS = (m.BOX_SWEEP_EPS, m.SURENESS)

HALVES = (m.TOP50, m.SURENESS)

FRAMES = (m.FRAMES,)

S4_VIDEOS = dict.fromkeys(("silence", "noise", "offscreen"), 2)

SEMANTIC: dict[str, tuple[Callable[..., Summary], str]] = {
    "official": (semantic_frames, "per frame and class, then over all classes with the background, unseen ones 0"),
    "seen": (partial(semantic_frames, seen_only=True), "over the classes seen"),
    "drop-first": (partial(semantic_frames, drop_first=True), "without the background"),
    "drop-last": (partial(semantic_frames, drop_last=True), "AVSBench's noBg: without the last class"),
    "dataset": (semantic_dataset, "from the pixel sums of the whole set (CAVP)"),
}

ALL = [
    *(
        Protocol(f"{test}/{name}", (measure,), summary or partial(box, measure=measure), note=note, cut=cut)
        for test in ("vggss", "flickr")
        for name, (measure, summary, note, cut) in BOXES.items()
    ),
    Protocol(
        "interactive/is3",
        (m.STRICT, m.ADAPTIVE),
        grouped,
        "iiou",
        "all members of a group must succeed (SSLalign)",
        cut="map",
    ),
    Protocol(
        "interactive/acl",
        (m.BOX_SWEEP,),
        grouped_sweep,
        "iiou",
        "all members of a group; the one of 19 thresholds with the best AUC, chosen on this set",
        cut="test set",
    ),
    Protocol(
        "extended/acl",
        SOUNDS,
        extended_acl,
        "ap",
        "the method's confidence; the best of 19 thresholds, on this set",
        cut="test set",
    ),
    Protocol(
        "extended/slavc",
        HALVES,
        extended_half,
        "ap",
        "top50; confidence is the mean of the map's largest quarter; max-F1 over some ten thresholds, rounded",
        cut="map",
    ),
    Protocol(
        "extended/slavc-absolute", SOUNDS, extended_absolute, "ap", "as extended/slavc with map >= 0.5", cut="fixed"
    ),
    Protocol(
        "extended/exact", SOUNDS, extended_exact, "ap", "textbook AP and max-F1 over all confidences", cut="test set"
    ),
    Protocol(
        "avs/dataset", FRAMES, of_dataset, "miou", "map > 0.5; F from the mean curve of the whole set", cut="fixed"
    ),
    Protocol(
        "avs/acl",
        FRAMES,
        acl_frames,
        "miou",
        "best of 19 thresholds, chosen on this set, >; F of the whole set",
        cut="test set",
    ),
    Protocol(
        "avs/official",
        FRAMES,
        partial(of_batches, videos=4, threshold=0.5),
        "miou",
        "map > 0.5; F is a maximum per batch of 4 videos (AVSBench)",
        cut="fixed",
    ),
    Protocol(
        "avs/gavs",
        FRAMES,
        partial(of_batches, videos=1, threshold=SWEEP[7]),
        "miou",
        "map > 0.4; F is a maximum per video (GAVS)",
        cut="fixed",
    ),
    Protocol(
        "avs/adaptive",
        (m.FRAMES, m.FRAMES_ADAPTIVE),
        adaptive_frames,
        "miou",
        "as many pixels as the truth has, >; F is that of avs/dataset (third party: ACL-SaN)",
        cut="truth",
    ),
    Protocol(
        "avs/acl-adaptive",
        (m.FRAMES_OF_AREA,),
        frames_of_area,
        "miou",
        "IoU and F of as many highest pixels as the truth has, which is the paper's mIoU and F-Score Adaptive",
        cut="truth",
    ),
    *(
        Protocol(f"{family}/{name}", (m.classes(number),), partial(summary, number=number), "miou", note, "fixed")
        for family, number in (("avss", 71), ("avss17", 17))  # the latter is the embedded world's
        for name, (summary, note) in SEMANTIC.items()
    ),
    Protocol(
        "robust/avsbench",
        FRAMES,
        partial(robust_conditions, videos={}),
        "miou_positive",
        "batches of one video; under negative sound against the original mask, lower is better",
        cut="fixed",
    ),
    Protocol(
        "robust/s4",
        FRAMES,
        partial(robust_conditions, videos=S4_VIDEOS),
        "miou_positive",
        "batches of one video, of two under negative sound; against the original mask, lower is better",
        cut="fixed",
    ),
    Protocol(
        "robust/acl",
        (m.FRAMES, m.SHARES),
        acl_robust,
        "gmiou",
        "map > the threshold with the best positive mIoU of 19, chosen on this set; F of the whole set; under negative "
        "sound against the original mask, lower is better; G: harmonic mean of the positive and 1 - the mean negative",
        cut="test set",
    ),
    Protocol(
        "robust/global-inferred",
        FRAMES,
        partial(robust_global, videos={}),
        "gmiou",
        "as robust/acl from the scores of robust/avsbench: map > 0.5, F a maximum per video",
        cut="fixed",
    ),
    Protocol(
        "negative/pia", (m.PIA,), share, "pia", "share of the image with map >= 0.5; lower is better", cut="fixed"
    ),
    Protocol(
        "single/tvsl",
        (m.HALF, m.PIXELS),
        of_single,
        "ap",
        "AP of the map's pixels; IoU@ and AUC of the larger half. The release cannot run this table: own definition",
        cut="none",
    ),
    Protocol(
        "multi/acl",
        (m.PAIRED,),
        of_paired,
        "cap",
        "maps paired with sources by the largest sum of AP; PIAP of the largest map against the union; success rates "
        "at the one of 19 thresholds with the best AUC, chosen on this set",
        cut="none",
    ),
    Protocol(
        "multi/sources",
        (m.OWN_SOURCES,),
        of_sources,
        "cap",
        "each source on its own map, its larger half without pixels of 0; AP of the map",
        cut="none",
    ),
    Protocol(
        "multi/tvsl",
        (m.TVSL,),
        of_tvsl,
        "cap",
        "CIoU@ are success rates of the map cut at 0.3; release@ is what the release calls CIoU@, the mean cIoU of "
        "the map cut there; non-binary truth has no AP",
        cut="none",
    ),
    Protocol(
        "multi/noprior",
        (m.NOPRIOR,),
        of_noprior,
        "ciou@30",
        "tiles cut at their median; greedy matching; binary AP",
        cut="map",
    ),
    Protocol(
        "multi/avgn", (*HALVES, m.PIXELS), of_avgn, "ap", "as extended/slavc; PIAP with swapped arguments", cut="map"
    ),
]

PROTOCOLS: dict[str, Protocol] = {p.name: p for p in ALL}


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ProtocolError: there is none; the message names the nearest ones.
    """
    if name not in PROTOCOLS:
        near = get_close_matches(name, PROTOCOLS, n=3) or sorted(PROTOCOLS)
        raise ProtocolError(f"There is no protocol {name!r}. Did you mean {', '.join(near)}?")
    return PROTOCOLS[name]


def register(added: Protocol) -> None:
    """Add a protocol of one's own: YAMLs, tests, reports and `avloc rescore` know it by its name from now on.

    Raises:
        ProtocolError: another one has the name.
    """
    if PROTOCOLS.setdefault(added.name, added) != added:
        raise ProtocolError(f"There is a protocol {added.name!r} already. Give yours a family of its own: mine/rule.")
