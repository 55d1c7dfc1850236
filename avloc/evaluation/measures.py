"""What is kept of every sample: a few float64 numbers each, from which all numbers of a table follow.

A `Measure` names its columns and computes them for a whole batch on the device. Protocols that need the same
per-sample values share one measure, which is then computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from avloc.metrics import avs, multi, semantic
from avloc.metrics.ciou import ciou
from avloc.metrics.extended import top_quarter
from avloc.metrics.maps import flip_minmax, minmax, resize
from avloc.metrics.negative import image_share
from avloc.metrics.regions import count_regions
from avloc.metrics.thresholds import SWEEP, Operator, area_threshold, median_threshold, positive_median, predicted
from avloc.metrics.universal import GRID
from avloc.types import AVBatch, Localization

__all__ = ["EXTENTS", "IDENTITIES", "KINDS", "SOURCES", "Measure", "Scored", "extents", "identities"]

SOURCES = 8
"""Most sources of a sample that a measure over sources keeps (AVSBench-Semantic has up to five), and most maps of a
method that are paired with them."""

KINDS = ("", "silence", "noise", "offscreen", "mismatch", "natural")
"""Sound conditions; the column ``negative`` holds the place in this list, 0 for a positive."""

IDENTITIES: Mapping[str, int] = dict.fromkeys(("clip", "group", "group_size", "negative", "sounding"), 1)
"""Columns of every set beside those of its measures: hashes of clip and interactive group (0 for none), members of
the group, place in `KINDS`, and 1 where something in the picture sounds."""

EXTENTS: Mapping[str, int] = dict.fromkeys(("truth_area", "sources", "answered", "regions", "predicted_share"), 1)
"""What every row keeps of the sizes and numbers of things, see `extents`; no protocol reads it."""


@dataclass
class Scored:
    """A batch and the answer to it, on the grid of the ground truth.

    Args:
        answer: heat maps float32 ``[B, S, H, W]``.
        batch: with ``truth`` ``[B, S, G, G']`` unless the measure does without.
        offset: what is added to a class for its number in ``batch.semantic``.
    """

    answer: Localization
    batch: AVBatch
    offset: int = 1

    @cached_property
    def grid(self) -> tuple[int, int]:
        if self.batch.truth is None:
            return self.answer.heatmap.shape[-2], self.answer.heatmap.shape[-1]
        return self.batch.truth.shape[-2], self.batch.truth.shape[-1]

    @cached_property
    def map(self) -> Tensor:
        """One map a sample, ``[B, G, G']``: the largest over the sources."""
        return resize(self.answer.heatmap.amax(1), self.grid)

    @cached_property
    def target(self) -> Tensor:
        """One truth a sample, ``[B, G, G']``: the largest over the sources."""
        assert self.batch.truth is not None  # Measure.needs_truth
        return self.batch.truth.amax(1)

    @cached_property
    def confidence(self) -> Tensor:
        """``[B]``: of the most certain source."""
        return self.answer.confidence.amax(1)

    @cached_property
    def sources(self) -> Tensor:
        """Maps in the order of the truth's sources, ``[B, S, G, G']``, bilinear: see `by_source`."""
        return self.by_source("bilinear")

    def by_source(self, mode: Literal["bilinear", "bicubic"]) -> Tensor:
        """Maps in the order of the truth's sources, ``[B, S, G, G']``.

        A method that names its sources is asked for each true class (a map of zeros where it did not name it); one
        map answers for all sources; otherwise the order is the truth's.

        Raises:
            ValueError: unnamed maps whose number is neither 1 nor that of the sources.
        """
        truth, label, true = self.batch.truth, self.answer.label, self.batch.class_id
        assert truth is not None
        maps, wanted = resize(self.answer.heatmap, self.grid, mode), truth.shape[1]
        if label is not None and true is not None and maps.shape[1] > 1:
            same = label[:, None, :] == true[:, :, None]
            named = maps.gather(1, same.int().argmax(2)[..., None, None].expand(-1, -1, *self.grid))
            return torch.where(same.any(2)[..., None, None], named, 0.0)
        if maps.shape[1] not in (1, wanted):
            raise ValueError(
                f"The truth of {', '.join(self.batch.key[:3])} has {wanted} sources and the method gave "
                f"{maps.shape[1]} maps without labels. Give one map, one per source, or Localization.label."
            )
        return maps.expand(-1, wanted, -1, -1)

    @cached_property
    def answered(self) -> Tensor:
        """int64 ``[B]``: how many sources the method found (label -1 fills up)."""
        label = self.answer.label
        B, S = self.answer.heatmap.shape[:2]
        return torch.full((B,), S, device=self.batch.device) if label is None else (label >= 0).sum(1)

    @cached_property
    def real(self) -> Tensor:
        """bool ``[B, S]``: the sample has this source (batches are filled up with empty ones)."""
        assert self.batch.truth is not None
        marked = (self.batch.truth > 0).flatten(2).any(2)
        return marked if self.batch.class_id is None else marked | (self.batch.class_id >= 0)

    @cached_property
    def semantic(self) -> Tensor:
        """Predicted class of each pixel on the grid of the truth, int64 ``[B, G, G]``.

        The method's own map, resized to the nearest pixel; else the class of the highest source where its map is at
        least 0.5, background elsewhere.

        Raises:
            ValueError: the method names no class at all.
        """
        truth = self.batch.semantic
        assert truth is not None
        size = (truth.shape[-2], truth.shape[-1])
        if self.answer.semantic is not None:
            labels = self.answer.semantic[:, None].float()
            return F.interpolate(labels, size=size, mode="nearest-exact")[:, 0].long()
        if self.answer.label is None:
            raise ValueError(
                f"{self.batch.key[0]}, ...: a semantic protocol needs Localization.label or Localization.semantic."
            )
        maps = resize(self.answer.heatmap, size)
        best, source = maps.max(1)
        named = self.answer.label[:, :, None, None].expand(-1, -1, *size).gather(1, source[:, None])[:, 0]
        return torch.where(best >= 0.5, named + self.offset, 0)


@dataclass(frozen=True)
class Measure:
    """What a protocol keeps of every sample.

    Attributes:
        name: unique; prefixes the columns.
        columns: name to width k.
        function: a scored batch to one ``[B, k]`` per column.
        needs: ``truth`` or ``semantic``: what a batch must hold; "" for neither.
    """

    name: str
    columns: Mapping[str, int]
    function: Callable[[Scored], dict[str, Tensor]]
    needs: str = "truth"


def cut(
    scored: Scored,
    *,
    normalise: Callable[[Tensor], Tensor] | None = None,
    threshold: Callable[[Tensor, Tensor], Tensor],
    operator: Operator,
) -> dict[str, Tensor]:
    """cIoU at one threshold per map."""
    maps = normalise(scored.map) if normalise else scored.map
    return {"ciou": ciou(maps, scored.target, threshold(maps, scored.target), operator)}


def median(maps: Tensor, truth: Tensor) -> Tensor:
    return median_threshold(maps)


def above_zero(maps: Tensor, truth: Tensor) -> Tensor:
    return positive_median(maps)


def cut_sweep(scored: Scored, eps: float = 0.0) -> dict[str, Tensor]:
    return {"ciou": ciou(scored.map, scored.target, SWEEP, ">=", eps)}


def sureness(scored: Scored) -> dict[str, Tensor]:
    """The method's own confidence, SLAVC's (mean of the largest quarter of the map), and whether anything is
    visible."""
    return {
        "own": scored.confidence,
        "top_quarter": top_quarter(scored.map),
        "visible": (scored.target > 0).flatten(1).any(1) if scored.batch.sounding is None else scored.batch.sounding,
    }


def frames(scored: Scored) -> dict[str, Tensor]:
    return {
        "iou": avs.iou(scored.map, scored.target, SWEEP),
        "curve": avs.fscore_curve(scored.map, scored.target),
        "nonempty": (scored.target > 0).flatten(1).any(1),
        "share": image_share(scored.map, (0.5,), ">"),
    }


def shares(scored: Scored) -> dict[str, Tensor]:
    return {"share": image_share(scored.map, SWEEP, ">")}


def frames_adaptive(scored: Scored) -> dict[str, Tensor]:
    """ACL-SaN: IoU with ``>``, cIoU and the share of the image with ``>=`` on the same threshold."""
    threshold = area_threshold(scored.map, scored.target)
    return {
        "iou": avs.iou(scored.map, scored.target, threshold),
        "ciou": ciou(scored.map, scored.target, threshold, ">=", eps=1e-12),
        "share": image_share(scored.map, threshold, ">="),
    }


def frames_of_area(scored: Scored) -> dict[str, Tensor]:
    """IoU and F of as many highest pixels as the object has; F is NaN for a frame without."""
    return dict(zip(("iou", "fscore"), avs.top_pixels(scored.map, scored.target), strict=True))


def predicted_share(scored: Scored) -> dict[str, Tensor]:
    return {"pia": image_share(scored.answer.heatmap.amax(1), SWEEP, ">=")}


def universal(scored: Scored) -> dict[str, Tensor]:
    overlap = ciou(scored.map, scored.target, GRID, ">=", eps=1e-12)
    return {"ciou": overlap, "share": image_share(scored.map, GRID, ">=")}


def padded(values: Tensor, real: Tensor) -> Tensor:
    """``[B, S, k]`` as columns ``[B, SOURCES * k]``, NaN where a sample has no such source."""
    values = torch.where(real[..., None], values.double(), torch.nan)
    return F.pad(values, (0, 0, 0, SOURCES - values.shape[1]), value=torch.nan).flatten(1)


def sources_of(scored: Scored) -> Tensor:
    """The truths of all sources, ``[B, S, G, G']``.

    Raises:
        ValueError: more than `SOURCES` sources.
    """
    truth = scored.batch.truth
    assert truth is not None
    if truth.shape[1] > SOURCES:
        raise ValueError(
            f"{scored.batch.key[0]}, ...: a sample has {truth.shape[1]} sources; at most {SOURCES} can be scored."
        )
    return truth


def sourcewise(scored: Scored, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps and truths of all sources, ``[B S, G, G']`` each."""
    return maps.flatten(0, 1), sources_of(scored).flatten(0, 1)


def own_sources(scored: Scored) -> dict[str, Tensor]:
    """cIoU of the larger half of each source's map (after min-max; pixels of 0 are left out), AP of the map as it is,
    and the mean AP of the best assignment of maps to sources, whoever is asked: names that a method gives its maps do
    not count there."""
    maps, truth = sourcewise(scored, scored.sources)
    B, S = scored.real.shape
    normal = minmax(maps)
    overlap = ciou(normal, truth, positive_median(normal), ">=").view(B, S, 1)
    own = multi.pixel_average_precision(maps, truth).view(B, S, 1)
    given = scored.sources if scored.answer.heatmap.shape[1] == 1 else anonymous(scored)[0]
    given = F.pad(given, (0, 0, 0, 0, 0, max(0, S - given.shape[1])))
    worth = multi.paired_average_precision(given, sources_of(scored))
    place = multi.best_pairing(worth, torch.full((B,), given.shape[1], device=worth.device), scored.real)
    paired = worth.gather(1, place.clamp(min=0)[:, None])[:, 0] * scored.real
    best = paired.sum(1) / scored.real.sum(1).clamp(min=1)
    return {"ciou": padded(overlap, scored.real), "ap": padded(own, scored.real), "piap": best}


def paired_sources(scored: Scored) -> dict[str, Tensor]:
    """ACL-SSL's scores of mixtures: `avloc.metrics.multi.pair_sources` of the method's maps as they are."""
    found = multi.pair_sources(*anonymous(scored), sources_of(scored), scored.real)
    ciou, ap = padded(found.ciou, scored.real), padded(found.ap[..., None], scored.real)
    return {"ciou": ciou, "ap": ap, "union": found.union}


def anonymous(scored: Scored) -> tuple[Tensor, Tensor]:
    """The maps that a method gave, whatever it calls them, the surest first and at most `SOURCES`,
    ``[B, M, G, G']``, and how many of them are answers, int64 ``[B]``. A single map without a name answers for every
    source."""
    answer, count = scored.answer, scored.answered
    if answer.label is None and answer.heatmap.shape[1] == 1:
        return scored.sources, torch.full_like(count, scored.sources.shape[1])
    sure = answer.confidence if answer.label is None else torch.where(answer.label >= 0, answer.confidence, -torch.inf)
    surest = sure.sort(dim=1, descending=True, stable=True).indices[:, :SOURCES]
    maps = answer.heatmap.gather(1, surest[..., None, None].expand(-1, -1, *answer.heatmap.shape[-2:]))
    return resize(maps, scored.grid), count.clamp(max=SOURCES)


CUTS = (0.1, 0.3, 0.5)


def tvsl(scored: Scored) -> dict[str, Tensor]:
    """T-VSL's duet measures of each source's map, bicubic and min-max, at map thresholds 0.1, 0.3 and 0.5."""
    maps, truth = sourcewise(scored, scored.by_source("bicubic"))
    maps = minmax(maps)
    values = {
        "ciou": ciou(maps, truth, CUTS, ">="),
        "iou": multi.smooth_iou(maps, truth, CUTS),
        "ap": multi.duet_average_precision(maps, truth)[:, None],
    }
    return {name: padded(v.view(*scored.real.shape, -1), scored.real) for name, v in values.items()}


def noprior(scored: Scored) -> dict[str, Tensor]:
    """NoPrior's greedy matching of maps and tiles; a row of pictures is read as its stack.

    Raises:
        ValueError: the truth is no row of square pictures, one per source.
    """
    truth = scored.batch.truth
    assert truth is not None
    _, T, height, width = truth.shape
    if width != T * height or T > SOURCES:
        raise ValueError(
            f"{scored.batch.key[0]}, ...: multi/noprior scores rows of pictures with one source each; {T} sources on a "
            f"grid of {height} x {width} are none. Use multi/sources."
        )
    maps = resize(scored.answer.heatmap, scored.grid, "bicubic")
    stacked = torch.cat(maps.split(height, dim=-1), dim=-2)
    tiles = torch.stack([truth[:, t, :, t * height : (t + 1) * height] for t in range(T)], 1)
    found = multi.greedy_matches(stacked, scored.answered, tiles)
    room = max(SOURCES - found.ciou.shape[1], 0)
    columns = {c: F.pad(v, (0, room), value=torch.nan)[:, :SOURCES] for c, v in found._asdict().items()}
    return columns | {
        "piap": multi.stacked_average_precision(stacked, scored.answered, tiles),
        "count": scored.answered,
        "sources": scored.real.sum(1),
    }


def precision_of_pixels(scored: Scored) -> dict[str, Tensor]:
    """AP of the continuous map against the union of the sources, and AVGN's PIAP of the larger half."""
    normal = minmax(scored.map)
    half = predicted(normal, median_threshold(normal), ">=")
    return {
        "ap": multi.pixel_average_precision(scored.map, scored.target),
        "swapped": multi.swapped_average_precision(half, scored.target),
    }


def semantic_counts(scored: Scored, classes: int) -> dict[str, Tensor]:
    """Pixels of each class by AVSBench's rule, and with the pixels marked 255 left out (CAVP)."""
    truth = scored.batch.semantic
    assert truth is not None
    out: dict[str, Tensor] = {}
    for suffix, ignore in (("", None), ("_valid", 255)):
        counts = semantic.label_counts(scored.semantic, truth, classes, ignore)
        out |= {name + suffix: value for name, value in counts._asdict().items()}
    return out


def identities(batch: AVBatch, hashes: Callable[[list[str]], Tensor]) -> dict[str, Tensor]:
    """`IDENTITIES` of a batch; ``hashes`` turns names into numbers."""
    B, device = len(batch), batch.device
    clips = [key.partition(".")[0].partition("@")[0] for key in batch.key]  # RECORD.f<frame>@<condition>
    kinds = [KINDS.index(kind) for kind in batch.negative] or [0] * B
    return {
        "clip": hashes(clips),
        "group": hashes(batch.group or [""] * B),
        "group_size": torch.tensor(batch.group_size or [1] * B, device=device),
        "negative": torch.tensor(kinds, device=device),
        "sounding": torch.ones(B, device=device) if batch.sounding is None else batch.sounding,
    }


def extents(scored: Scored) -> dict[str, Tensor]:
    """`EXTENTS` of a batch and its answer, float64 ``[B]`` each, whatever the protocols of the set.

    ``truth_area``: share of the picture in which any source lies, NaN without ground truth. ``sources``: true sources,
    NaN where neither ground truth nor classes are known. ``answered``: sources that the method found, one map each.
    ``regions`` (connected, without specks) and ``predicted_share``: of the picture, where the largest of the maps is at
    least 0.5.
    """
    batch, chosen = scored.batch, scored.map >= 0.5
    unknown = torch.full((len(batch),), torch.nan, device=batch.device)
    area = sources = unknown
    if batch.truth is not None:
        area, sources = (scored.target > 0).double().mean((1, 2)), scored.real.sum(1)
    elif batch.class_id is not None:
        sources = (batch.class_id >= 0).sum(1)
    return {
        "truth_area": area,
        "sources": sources,
        "answered": scored.answered,
        "regions": count_regions(chosen),
        "predicted_share": chosen.double().mean((1, 2)),
    }


ONE = {"ciou": 1}
BOX_SWEEP = Measure("sweep", {"ciou": len(SWEEP)}, cut_sweep)
BOX_SWEEP_EPS = Measure("sweep-eps", {"ciou": len(SWEEP)}, partial(cut_sweep, eps=1e-12))
TOP50 = Measure("top50", ONE, partial(cut, normalise=minmax, threshold=median, operator=">="))
HALF = Measure("half", ONE, partial(cut, normalise=minmax, threshold=above_zero, operator=">="))
STRICT = Measure("top50-strict", ONE, partial(cut, normalise=minmax, threshold=median, operator=">"))
LVS = Measure("lvs", ONE, partial(cut, normalise=flip_minmax, threshold=median, operator="lvs"))
MEDIAN = Measure("median", ONE, partial(cut, threshold=median, operator=">="))
ADAPTIVE = Measure("adaptive", ONE, partial(cut, normalise=minmax, threshold=area_threshold, operator=">"))
ADAPTIVE_GE = Measure("adaptive-ge", ONE, partial(cut, threshold=area_threshold, operator=">="))
SURENESS = Measure("sureness", {"own": 1, "top_quarter": 1, "visible": 1}, sureness)
FRAMES = Measure("frames", {"iou": len(SWEEP), "curve": len(avs.THRESHOLDS), "nonempty": 1, "share": 1}, frames)
SHARES = Measure("shares", {"share": len(SWEEP)}, shares)
FRAMES_ADAPTIVE = Measure("frames-adaptive", {"iou": 1, "ciou": 1, "share": 1}, frames_adaptive)
FRAMES_OF_AREA = Measure("frames-of-area", {"iou": 1, "fscore": 1}, frames_of_area)
PIA = Measure("pia", {"pia": len(SWEEP)}, predicted_share, needs="")
PIXELS = Measure("pixels", {"ap": 1, "swapped": 1}, precision_of_pixels)
OWN_SOURCES = Measure("sources", {"ciou": SOURCES, "ap": SOURCES, "piap": 1}, own_sources)
PAIRED = Measure("acl-sources", {"ciou": SOURCES * len(SWEEP), "ap": SOURCES, "union": 1}, paired_sources)
TVSL = Measure("tvsl", {"ciou": 3 * SOURCES, "iou": 3 * SOURCES, "ap": SOURCES}, tvsl)
NOPRIOR = Measure("noprior", {"ciou": SOURCES, "ap": SOURCES, "piap": 1, "count": 1, "sources": 1}, noprior)
UNIVERSAL = Measure("universal", {"ciou": len(GRID), "share": len(GRID)}, universal)


def classes(number: int) -> Measure:
    columns = (f"{name}{suffix}" for suffix in ("", "_valid") for name in semantic.LabelCounts._fields)
    return Measure(
        f"classes{number}", dict.fromkeys(columns, number), partial(semantic_counts, classes=number), "semantic"
    )
