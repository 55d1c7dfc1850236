"""From a set's per-sample values to the numbers that a table prints: one function a published evaluator."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from avloc.evaluation import measures as m
from avloc.evaluation.measures import KINDS, Measure
from avloc.metrics import avs, extended, interactive, multi, negative, robust, semantic
from avloc.metrics.ciou import auc, success_curve, success_rate
from avloc.metrics.thresholds import SWEEP
from avloc.metrics.universal import GRID

__all__ = [
    "Samples",
    "Summary",
    "acl_frames",
    "acl_robust",
    "adaptive_frames",
    "batches",
    "box",
    "box_sweep",
    "extended_absolute",
    "extended_acl",
    "extended_exact",
    "extended_half",
    "frames_of_area",
    "grouped",
    "grouped_sweep",
    "groups",
    "of_avgn",
    "of_batches",
    "of_dataset",
    "of_noprior",
    "of_paired",
    "of_single",
    "of_sources",
    "of_tvsl",
    "robust_conditions",
    "robust_global",
    "semantic_dataset",
    "semantic_frames",
    "share",
    "slavc",
]

Samples = Mapping[str, Tensor]
"""Per-sample columns ``<measure>:<column>`` and `avloc.evaluation.measures.IDENTITIES`, each float64 ``[n, k]``, in
the order of the set."""

Summary = dict[str, "float | list[float]"]
"""Metric name to value; lists are curves, kept for reports and not logged."""


def of_ciou(values: Tensor) -> Summary:
    """The three numbers of per-sample cIoU ``[n]``."""
    return {"ciou": success_rate(values).item(), "auc": auc(values).item(), "mean_ciou": values.mean().item()}


def box(samples: Samples, measure: Measure, column: int = 0) -> Summary:
    values = samples[f"{measure.name}:ciou"][:, column]
    return of_ciou(values) | {"success_rate": success_curve(values).tolist()}


def box_sweep(samples: Samples) -> Summary:
    """The row of the best AUC, one threshold for both columns; and, flagged by its name, the best cIoU of all
    rows."""
    values = samples["sweep:ciou"]
    rates, areas, means = success_rate(values), auc(values), values.mean(0)
    best, best_rate = int(areas.argmax()), int(rates.argmax())
    return {
        "ciou": rates[best].item(),
        "auc": areas[best].item(),
        "mean_ciou": means[best].item(),
        "threshold": SWEEP[best],
        "column_best_ciou": rates[best_rate].item(),
        "column_best_ciou_threshold": SWEEP[best_rate],
        "sweep_threshold": list(SWEEP),
        "sweep_ciou": rates.tolist(),
        "sweep_auc": areas.tolist(),
        "sweep_mean_ciou": means.tolist(),
        "success_rate": success_curve(values[:, best]).tolist(),
    }


def groups(samples: Samples) -> tuple[Tensor, Tensor, int]:
    """Which samples belong to a whole group, the number of that group 0..M-1, and how many groups lack a member.

    A sample without a group is a group of one.
    """
    own = samples["group"][:, 0]
    alone = -1.0 - torch.arange(len(own), dtype=own.dtype, device=own.device)
    number, count = torch.where(own == 0, alone, own).unique(return_inverse=True, return_counts=True)[1:]
    whole = count[number] >= samples["group_size"][:, 0]
    lacking = len(number[~whole].unique())
    return whole, number[whole].unique(return_inverse=True)[1], lacking


def of_groups(values: Tensor, number: Tensor) -> tuple[float, float]:
    """Share of groups that succeed at 0.5, and the area under that share over the levels."""
    least = interactive.group_minima(values, number)
    return success_rate(least).item(), auc(least).item()


def grouped(samples: Samples) -> Summary:
    whole, number, lacking = groups(samples)
    fixed, adaptive = samples["top50-strict:ciou"][:, 0], samples["adaptive:ciou"][:, 0]
    out: Summary = {}
    out["iiou"], out["iauc"] = of_groups(fixed[whole], number)
    out["iiou_adap"], out["iauc_adap"] = of_groups(adaptive[whole], number)
    out |= {"ciou": success_rate(fixed).item(), "auc": auc(fixed).item()}
    out |= {"ciou_adap": success_rate(adaptive).item(), "auc_adap": auc(adaptive).item()}
    return out | {"n_groups": float(number.max() + 1) if len(number) else 0.0, "n_incomplete_groups": float(lacking)}


def grouped_sweep(samples: Samples) -> Summary:
    """At the one of 19 thresholds with the best area over samples."""
    values = samples["sweep:ciou"]
    best = int(auc(values).argmax())
    whole, number, lacking = groups(samples)
    iiou, iauc = of_groups(values[whole][:, best], number)
    return {
        "iiou": iiou,
        "iauc": iauc,
        "ciou": success_rate(values[:, best]).item(),
        "auc": auc(values[:, best]).item(),
        "threshold": SWEEP[best],
        "n_groups": float(number.max() + 1) if len(number) else 0.0,
        "n_incomplete_groups": float(lacking),
    }


def batches(samples: Samples, videos: int) -> Tensor:
    """Number of each frame's batch when ``videos`` videos share one, in the set's order. int64 ``[n]``."""
    ids, number = samples["clip"][:, 0].unique(return_inverse=True)
    place = torch.arange(len(number), device=number.device)
    first = place.new_full((len(ids),), len(place)).scatter_reduce(0, number, place, "amin")
    return first.argsort().argsort()[number] // videos


def frame_columns(samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    return samples["frames:iou"], samples["frames:curve"], samples["frames:nonempty"][:, 0] > 0


def of_batches(samples: Samples, videos: int, threshold: float) -> Summary:
    iou, curves, nonempty = frame_columns(samples)
    batch = batches(samples, videos)
    miou = avs.batch_means(iou[:, SWEEP.index(threshold)], batch).mean()
    return {"miou": miou.item(), "fscore": avs.batch_fscores(curves, nonempty, batch).mean().item()}


def of_dataset(samples: Samples) -> Summary:
    iou, curves, nonempty = frame_columns(samples)
    fscore, threshold = avs.dataset_fscore(curves, nonempty)
    miou = iou[:, SWEEP.index(0.5)].mean()
    curve = curves[nonempty].sum(0) / nonempty.sum().clamp(min=1)
    return {
        "miou": miou.item(),
        "fscore": fscore.item(),
        "fscore_threshold": threshold.item(),
        "fscore_curve": curve.tolist(),
    }


def acl_frames(samples: Samples) -> Summary:
    iou, curves, nonempty = frame_columns(samples)
    mious = avs.batch_means(iou, batches(samples, 1)).mean(0)
    best = int(mious.argmax())
    return {
        "miou": mious[best].item(),
        "fscore": avs.dataset_fscore(curves, nonempty)[0].item(),
        "threshold": SWEEP[best],
        "sweep_threshold": list(SWEEP),
        "sweep_miou": mious.tolist(),
    }


def frames_of_area(samples: Samples) -> Summary:
    return {
        "miou": samples["frames-of-area:iou"].mean().item(),
        "fscore": known(samples["frames-of-area:fscore"]).mean().item(),
    }


def adaptive_frames(samples: Samples) -> Summary:
    curves, nonempty = samples["frames:curve"], samples["frames:nonempty"][:, 0] > 0
    values = samples["frames-adaptive:ciou"][:, 0]
    return {
        "miou": samples["frames-adaptive:iou"].mean().item(),
        "fscore": avs.dataset_fscore(curves, nonempty)[0].item(),
        "ciou": success_rate(values).item(),
        "auc": auc(values).item(),
        "pia": samples["frames-adaptive:share"].mean().item(),
    }


def sureness(samples: Samples, column: str) -> tuple[Tensor, Tensor]:
    return samples[f"sureness:{column}"][:, 0], samples["sureness:visible"][:, 0] > 0


def at_best_f1(values: Tensor, confidence: Tensor, visible: Tensor) -> Summary:
    """Precision and recall where the published F1 is largest, and how far they lie apart."""
    thresholds, f1 = extended.f1_curve(values, confidence, visible)
    found = extended.precision_recall(values, confidence, visible, thresholds)
    precision, recall = (part[f1.argmax()].item() for part in found)
    return {"precision": precision, "recall": recall, "recall_precision_gap": abs(recall - precision)}


def slavc(samples: Samples, values: Tensor, levels: tuple[float, ...] = (0.5, 0.75)) -> Summary:
    """SLAVC's numbers of per-sample cIoU ``[n]`` under its own confidence."""
    confidence, visible = sureness(samples, "top_quarter")
    given = (values, confidence, visible)
    out: Summary = {
        "ap": extended.average_precision(*given).item(),
        "max_f1": extended.max_f1(*given, rounded=True).item(),
        "loc_acc": extended.loc_acc(values, visible).item(),
        **at_best_f1(*given),
        "max_f1_unrounded": extended.max_f1(*given).item(),
        "f1_at_half": extended.f1_at(*given).item(),
        "auc": auc(values[visible]).item(),
        "ciou": success_rate(values[visible]).item(),
    }
    others = [level for level in levels if level != 0.5]
    return out | {f"ap@{100 * level:.0f}": extended.average_precision(*given, level=level).item() for level in others}


def extended_half(samples: Samples, measure: Measure = m.TOP50) -> Summary:
    return slavc(samples, samples[f"{measure.name}:ciou"][:, 0])


def extended_absolute(samples: Samples) -> Summary:
    return slavc(samples, samples["sweep-eps:ciou"][:, SWEEP.index(0.5)])


def extended_acl(samples: Samples) -> Summary:
    """The row of the best AP among 19 thresholds, chosen on this set; ``loc_acc``, the paper says, is the cIoU of the
    sounding samples, so it has the threshold of the best AUC as `box_sweep` has."""
    confidence, visible = sureness(samples, "own")
    values = samples["sweep-eps:ciou"]
    sounding = values[visible].round(
        decimals=11
    )  # without this evaluator's 1e-12, of which an exact 0.5 would fall short
    located = int(auc(sounding).argmax())
    aps = extended.average_precision(values, confidence, visible)
    f1s = extended.max_f1(values, confidence, visible, rounded=True)
    best, best_f1 = int(aps.argmax()), int(f1s.argmax())
    return {
        "ap": aps[best].item(),
        "max_f1": f1s[best].item(),
        "loc_acc": success_rate(sounding[:, located]).item(),
        "loc_acc_threshold": SWEEP[located],
        **at_best_f1(values[:, best], confidence, visible),
        "threshold": SWEEP[best],
        "column_best_max_f1": f1s[best_f1].item(),
        "column_best_max_f1_threshold": SWEEP[best_f1],
        "sweep_threshold": list(SWEEP),
        "sweep_ap": aps.tolist(),
        "sweep_max_f1": f1s.tolist(),
    }


def extended_exact(samples: Samples) -> Summary:
    """Textbook AP at the same threshold as `extended_acl`, with the whole curve."""
    confidence, visible = sureness(samples, "own")
    values = samples["sweep-eps:ciou"]
    best = int(extended.average_precision(values, confidence, visible).argmax())
    curve = extended.exact_curve(values[:, best], confidence, visible)
    few = torch.linspace(0, max(len(curve.precision) - 1, 0), min(len(curve.precision), 400)).round().long()
    return {
        "ap": extended.exact_average_precision(curve).item(),
        "max_f1": extended.exact_max_f1(curve).item(),
        "threshold": SWEEP[best],
        "pr_precision": curve.precision[few].tolist(),
        "pr_recall": curve.recall[few].tolist(),
        "pr_confidence": curve.thresholds[few].tolist(),
    }


def share(samples: Samples) -> Summary:
    """Over the samples in which nothing visible sounds; over all where that is no sample at all."""
    quiet = samples["sounding"][:, 0] == 0
    quiet = quiet if quiet.any() else torch.ones_like(quiet)
    pia = samples["pia:pia"][quiet]
    half = pia[:, SWEEP.index(0.5)]
    out: Summary = {"pia": half.mean().item(), "auc": negative.share_auc(half).item()}
    kinds = samples["negative"][quiet, 0]
    for i, kind in enumerate(KINDS):
        if i and (kinds == i).any():
            out[f"pia_{kind}"] = half[kinds == i].mean().item()
    return out | {"sweep_threshold": list(SWEEP), "sweep_pia": pia.mean(0).tolist()}


def conditions(samples: Samples, videos: Mapping[str, int]) -> dict[str, Summary]:
    """AVSBench's numbers and FPR under each sound condition that the set holds."""
    out = {}
    for i, kind in enumerate(KINDS):
        of_kind = samples["negative"][:, 0] == i
        if of_kind.any():
            part = {name: values[of_kind] for name, values in samples.items()}
            batch = batches(part, videos.get(kind, 1))
            fpr = avs.batch_means(part["frames:share"][:, 0], batch).mean()
            out[kind or "positive"] = of_batches(part, videos.get(kind, 1), 0.5) | {"fpr": fpr.item()}
    return out


def robust_conditions(samples: Samples, videos: Mapping[str, int]) -> Summary:
    found = conditions(samples, videos)
    return {f"{metric}_{kind}": value for kind, scores in found.items() for metric, value in scores.items()}


def robust_global(samples: Samples, videos: Mapping[str, int]) -> Summary:
    found = conditions(samples, videos)
    quiet = [scores for kind, scores in found.items() if kind != "positive"]
    if "positive" not in found or not quiet:
        return {"gmiou": float("nan"), "gf": float("nan"), "gfpr": float("nan")}

    def score(metric: str) -> float:
        values = torch.tensor([s[metric] for s in quiet], dtype=torch.float64)
        return robust.global_score(torch.tensor(found["positive"][metric], dtype=torch.float64), values).item()

    gfpr = sum(float(s["fpr"]) for s in quiet if isinstance(s["fpr"], float)) / len(quiet)
    return {"gmiou": score("miou"), "gf": score("fscore"), "gfpr": gfpr}


def acl_robust(samples: Samples) -> Summary:
    """Every sound condition by the rule of `acl_frames`, at the threshold that the positives choose."""
    kinds = samples["negative"][:, 0]
    parts = {
        kind or "positive": {name: values[kinds == i] for name, values in samples.items()}
        for i, kind in enumerate(KINDS)
        if (kinds == i).any()
    }
    nothing = float("nan")
    if "positive" not in parts:
        return {"gmiou": nothing, "gf": nothing, "gfpr": nothing}
    positive = acl_frames(parts["positive"])
    threshold = float(positive["threshold"])  # type: ignore[arg-type]
    place = SWEEP.index(threshold)
    out: Summary = {}
    for kind, part in parts.items():
        iou, curves, nonempty = frame_columns(part)
        out[f"miou_{kind}"] = avs.batch_means(iou[:, place], batches(part, 1)).mean().item()
        out[f"fscore_{kind}"] = avs.dataset_fscore(curves, nonempty)[0].item()
        out[f"fpr_{kind}"] = part["shares:share"][:, place].mean().item()
    quiet = [kind for kind in parts if kind != "positive"]
    for name, metric in (("gmiou", "miou"), ("gf", "fscore")):
        score = [
            torch.tensor([out[f"{metric}_{k}"] for k in some], dtype=torch.float64) for some in (["positive"], quiet)
        ]
        out[name] = robust.global_score(score[0][0], score[1]).item() if quiet else nothing
    out["gfpr"] = samples["shares:share"][kinds > 0, place].mean().item() if quiet else nothing
    return out | {"threshold": threshold}


def counts(samples: Samples, number: int, suffix: str = "") -> semantic.LabelCounts:
    return semantic.LabelCounts(*(samples[f"classes{number}:{c}{suffix}"] for c in semantic.LabelCounts._fields))


def semantic_frames(
    samples: Samples, number: int, drop_first: bool = False, drop_last: bool = False, seen_only: bool = False
) -> Summary:
    pixels = counts(samples, number)
    there = semantic.present(pixels)
    ious = semantic.class_means(semantic.class_iou(pixels), there)
    fscores = semantic.class_means(semantic.class_fscore(pixels), there)
    seen = there.any(0) if seen_only else None
    return {
        "miou": semantic.mean_over_classes(ious, drop_first, drop_last, seen).item(),
        "fscore": semantic.mean_over_classes(fscores, drop_first, drop_last, seen).item(),
        "class_miou": ious.tolist(),
        "class_fscore": fscores.tolist(),
    }


def semantic_dataset(samples: Samples, number: int) -> Summary:
    sums = [c.sum(0) for c in counts(samples, number, "_valid")]
    scores = semantic.dataset_scores(*sums)
    names = {"miou": scores.miou, "fscore": scores.f03, "f1": scores.f1, "fdr": scores.fdr, "accuracy": scores.accuracy}
    return {name: value.item() for name, value in names.items()}


def summarise_universal(samples: Samples, place: int) -> Summary:
    """At the universal threshold: overlap where something sounds, share of the image predicted where nothing does."""
    sounding = samples["sounding"][:, 0] > 0
    out: Summary = {"threshold": float(GRID[place])}
    if sounding.any():
        values = samples["universal:ciou"][sounding, place]
        out |= {"iou": values.mean().item(), "ciou": success_rate(values).item(), "auc": auc(values).item()}
    if not sounding.all():
        out["fpr"] = samples["universal:share"][~sounding, place].mean().item()
    return out


def known(values: Tensor) -> Tensor:
    """The sources that exist, in one row; NaN marks the others."""
    return values[~values.isnan()]


def of_sources(samples: Samples) -> Summary:
    values = known(samples["sources:ciou"])
    return {
        "cap": known(samples["sources:ap"]).mean().item(),
        "ciou@10": success_rate(values, 0.1).item(),
        "ciou@30": success_rate(values, 0.3).item(),
        "ciou@50": success_rate(values, 0.5).item(),
        "auc": auc(values).item(),
        "piap": samples["sources:piap"].mean().item(),
        "success_rate": success_curve(values).tolist(),
    }


def of_paired(samples: Samples) -> Summary:
    """The threshold with the best AUC over sources, of 19, for every success rate."""
    values = samples["acl-sources:ciou"].unflatten(1, (-1, len(SWEEP))).flatten(0, 1)
    values = values[~values.isnan().any(1)].float()  # in which a cIoU of 0.15 reaches the level 0.05 * 3
    areas = auc(values)
    best = int(areas.argmax())
    return {
        "cap": known(samples["acl-sources:ap"]).mean().item(),
        "piap": samples["acl-sources:union"].mean().item(),
        **{f"ciou@{100 * at:.0f}": success_rate(values[:, best], at).item() for at in m.CUTS},
        "auc": areas[best].item(),
        "threshold": SWEEP[best],
        "sweep_threshold": list(SWEEP),
        "sweep_auc": areas.tolist(),
        "success_rate": success_curve(values[:, best]).tolist(),
    }


def tvsl_sources(samples: Samples) -> tuple[Tensor, Tensor]:
    """cIoU and IoU of each source that exists, at the map thresholds `measures.CUTS`, ``[n, 3]`` each."""
    ciou, iou = (samples[f"tvsl:{c}"].unflatten(1, (-1, len(m.CUTS))).flatten(0, 1) for c in ("ciou", "iou"))
    there = ~iou.isnan().any(1)  # a source that exists has an IoU, be its cIoU 0/0
    return ciou[there], iou[there]


def of_tvsl(samples: Samples) -> Summary:
    """Success rates of maps cut at 0.3, the release's threshold; ``release@30`` is what the release calls CIoU@0.3, the
    mean cIoU of maps cut there."""
    ciou, iou = tvsl_sources(samples)
    cut = m.CUTS.index(0.3)
    rates = {f"ciou@{100 * at:.0f}": success_rate(ciou[:, cut], at).item() for at in m.CUTS}
    means = {f"release@{100 * at:.0f}": ciou[:, i].mean().item() for i, at in enumerate(m.CUTS)}
    ious = {f"iou@{100 * at:.0f}": iou[:, i].mean().item() for i, at in enumerate(m.CUTS)}
    return {
        "cap": known(samples["tvsl:ap"]).mean().item(),
        **rates,
        "auc": auc(ciou[:, cut]).item(),
        **means,
        **ious,
        **{f"auc@{100 * at:.0f}": auc(ciou[:, i]).item() for i, at in enumerate(m.CUTS)},
        "success_rate": success_curve(ciou[:, cut]).tolist(),
    }


def of_noprior(samples: Samples) -> Summary:
    values = known(samples["noprior:ciou"])
    return {
        "cap": known(samples["noprior:ap"]).mean().item(),
        "piap": known(samples["noprior:piap"]).mean().item(),
        "ciou@30": success_rate(values, 0.3).item(),
        "ciou@50": success_rate(values, 0.5).item(),
        "auc": auc(values).item(),
        "count_accuracy": multi.count_accuracy(samples["noprior:count"], samples["noprior:sources"]).item(),
    }


def of_avgn(samples: Samples) -> Summary:
    values = samples["top50:ciou"][:, 0]
    visible = sureness(samples, "top_quarter")[1]
    out = slavc(samples, values, (0.3, 0.5, 0.75))
    out |= {f"precision@{100 * at:.0f}": extended.loc_acc(values, visible, at).item() for at in (0.1, 0.3, 0.5)}
    return out | {"piap": samples["pixels:swapped"].mean().item()}


def of_single(samples: Samples) -> Summary:
    values = samples["half:ciou"][:, 0]
    rates: Summary = {f"iou@{100 * at:.0f}": success_rate(values, at).item() for at in (0.3, 0.5)}
    return {"ap": samples["pixels:ap"].mean().item(), **rates, "auc": auc(values).item()}
