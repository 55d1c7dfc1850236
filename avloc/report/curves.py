"""Curves of a report as SVG, drawn so that they follow the page's colours in light and in dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from avloc.metrics.avs import THRESHOLDS
from avloc.metrics.ciou import LEVELS
from avloc.report.breakdown import success_by
from avloc.report.cells import goal_of
from avloc.report.intervals import find_statistic
from avloc.report.results import ANOTHER_CONTEXT, GUIDED, HEARD, LOWER_IS_BETTER, MODEL, Run
from avloc.report.seeds import Seeds, first_seeds, values_of

__all__ = ["Curve", "Plot", "plots_of", "svg"]

INK, LINE = "#010203", "#040506"
"""Stand for the page's text and rule colours."""
COLOURS = ("#3b82c4", "#d9772b", "#2f9e6b", "#b45cc4", "#c9a227", "#d1495b")
DASHES = {
    MODEL: "-",
    GUIDED: (0, (7, 2)),
    "shuffled sound": "--",
    "silenced": "-.",
    "noise": ":",
    ANOTHER_CONTEXT: (0, (3, 1, 1, 1)),
}
FEW = 8
"""Points up to which each is marked: means of a few groups."""
CONTROL = "#858b94"
CONTROLS: dict[str, Any] = {
    "full frame": (0, (1, 1)),
    "centre box": (0, (5, 2)),
    "random map": (0, (1, 3)),
    "mean map": (0, (7, 2, 1, 2)),
}


@dataclass(frozen=True)
class Curve:
    """One line: its points, the run's place among the runs (-1 for a control), its row, and a point to mark; or, as
    ``dots``, points of their own with a bar at their mean."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    run: int
    row: str = MODEL
    marked: tuple[float, float] | None = None
    dots: bool = False


@dataclass(frozen=True)
class Plot:
    """Curves over the same axes; all values are fractions, but those of ``x`` where ``ticks`` are given: numbers.
    ``x`` is "" where the places on that axis mean nothing."""

    title: str
    x: str
    y: str
    curves: list[Curve]
    ticks: Sequence[float] = ()


def plots_of(name: str, runs: Sequence[Run]) -> list[Plot]:
    """The curves of a test set: success over the overlap asked for, precision over recall, metrics over thresholds.

    The success curve is computed from the per-sample values where a run kept them, else taken from its results. Of
    more runs than there are colours, the best by the primary metric are drawn, without their rows under other sounds.
    """
    count = len(runs)
    runs, few = best_of(name, runs), count <= len(COLOURS) // 2
    heard = HEARD if few else ()
    protocol, metric = goal_of(name, runs)
    plots = [Plot("Samples found", "overlap asked for", "share of samples", success(name, runs, heard))]
    swept = dict.fromkeys(
        (p, m.removeprefix("sweep_"))
        for run in runs
        for p, lists in run.sets[name].curves[MODEL].items()
        for m in lists
        if m.startswith("sweep_") and m != "sweep_threshold"
    )
    heads = [(p, m) for p, m in swept if p == protocol and m in (metric, "auc", "miou", "ciou")]
    for p, m in heads or list(swept)[:1]:
        lines = [
            Curve(run.name, lists["sweep_threshold"], lists[f"sweep_{m}"], i, marked=marked(run, name, p, m))
            for i, run in enumerate(runs)
            if f"sweep_{m}" in (lists := run.sets[name].curves[MODEL].get(p, {})) and "sweep_threshold" in lists
        ]
        plots.append(Plot(f"{m} by threshold ({p})", "threshold of the map", m, lines))
    for p in dict.fromkeys(p for run in runs for p, c in run.sets[name].curves[MODEL].items() if "fscore_curve" in c):
        lines = [
            Curve(run.name, THRESHOLDS.tolist(), c["fscore_curve"], i)
            for i, run in enumerate(runs)
            if len((c := run.sets[name].curves[MODEL].get(p, {})).get("fscore_curve", ())) == len(THRESHOLDS)
        ]
        plots.append(Plot(f"F-score by threshold ({p})", "threshold of the map", "F-score", lines))
    precise = dict.fromkeys(p for run in runs for p, c in run.sets[name].curves[MODEL].items() if "pr_precision" in c)
    for p in precise:
        lines = [
            Curve(run.name if row == MODEL else f"{run.name}, {row}", c["pr_recall"], c["pr_precision"], i, row)
            for i, run in enumerate(runs)
            for row in (MODEL, *heard)
            if "pr_precision" in (c := run.sets[name].curves.get(row, {}).get(p, {})) and "pr_recall" in c
        ]
        plots.append(Plot(f"Precision and recall ({p})", "recall", "precision", lines))
    plots += by_extent(name, runs)
    told = f", the best {len(runs)} of {count} runs" if len(runs) < count else ""
    drawn = [replace(p, title=p.title + told, curves=[c for c in p.curves if len(c.x) > 1]) for p in plots]
    return [p for p in (seeds_plot(name, runs), *drawn) if p is not None and p.curves]


def by_extent(name: str, runs: Sequence[Run]) -> list[Plot]:
    """Success over the size of what sounds, at the mean size of each group, and over the number of sources."""
    runs = first_seeds(runs)
    places = {run.name: i for i, run in enumerate(runs)}
    out = []
    for by, x in (("truth_area", "sounding share of the picture"), ("sources", "sources")):
        rows = success_by(name, runs, by)
        curves = [
            Curve(
                row.name,
                [g.mean for g in row.groups],
                [g.success for g in row.groups],
                places[row.run] if row.row in (MODEL, GUIDED) else -1,
                row.row,
            )
            for row in rows
        ]
        ticks = sorted({g.mean for row in rows for g in row.groups}) if by == "sources" else ()
        if rows:
            title = "size of what sounds" if by == "truth_area" else "number of sources"
            out.append(Plot(f"{rows[0].metric} by {title}", x, rows[0].metric, curves, ticks))
    return out


def seeds_plot(name: str, runs: Sequence[Run]) -> Plot | None:
    """The primary metric of every seed, a run a column; None where no run has several seeds."""
    protocol, metric = goal_of(name, runs)
    if not any(isinstance(run, Seeds) for run in runs):
        return None
    columns = []
    for i, run in enumerate(runs):
        own = run.sets[name].rows[MODEL].get(protocol, {}).get(metric)
        values = values_of(run, name, (protocol, metric)) or ([] if own is None else [own])
        columns.append(Curve(run.name, [(i + 0.5) / len(runs)] * len(values), values, i, dots=True))
    return Plot(f"{metric} of each seed", "", metric, [c for c in columns if c.y])


def best_of(name: str, runs: Sequence[Run]) -> list[Run]:
    """As many runs as there are colours, in their order."""
    protocol, metric = goal_of(name, runs)
    sign = -1 if LOWER_IS_BETTER.match(metric) else 1

    def number(run: Run) -> float:
        value = run.sets[name].rows[MODEL].get(protocol, {}).get(metric)
        return -math.inf if value is None else sign * value

    kept = {run.name for run in sorted(runs, key=number, reverse=True)[: len(COLOURS)]}
    return [run for run in runs if run.name in kept]


def success(name: str, runs: Sequence[Run], heard: Sequence[str] = HEARD) -> list[Curve]:
    curves: list[Curve] = []
    blind: set[str] = set()
    goal = goal_of(name, runs)
    for i, run in enumerate(runs):
        entry = run.sets[name]
        protocol = goal[0] if goal[0] in entry.rows[MODEL] else entry.primary[0]
        for row in entry.rows:
            if row in blind or (row in HEARD and row not in heard) or (row == GUIDED and not heard):
                continue
            points = levels_of(run, name, row, protocol)
            if points is None:
                continue
            own = row in (MODEL, GUIDED) or row in HEARD
            label = row if not own else run.name if row == MODEL else f"{run.name}, {row}"
            curves.append(Curve(label, *points, i if own else -1, row))
            if not own:
                blind.add(row)
    return curves


def levels_of(run: Run, name: str, row: str, protocol: str) -> tuple[Sequence[float], Sequence[float]] | None:
    if isinstance(run, Seeds):
        each = [levels_of(member, name, row, protocol) for member in run.members]
        known = [points for points in each if points is not None and len(points[1]) == len(LEVELS)]
        return (LEVELS, np.mean([y for _, y in known], axis=0).tolist()) if len(known) == len(each) else None
    stored = run.sets[name].curves.get(row, {}).get(protocol, {})
    if "success_rate" in stored:
        return stored.get("success_level", list(LEVELS)), stored["success_rate"]
    samples, numbers = run.samples(name, row), run.sets[name].rows.get(row, {}).get(protocol, {})
    metric = next((m for m in ("mean_ciou", "mean_iou", "miou") if numbers.get(m) is not None), None)
    if samples is None or metric is None:
        return None
    found = find_statistic(samples, protocol, metric, numbers)
    if found is None:
        return None
    counted = found.weight > 0
    overlap = found.score[counted] / found.weight[counted]
    return LEVELS, [float(np.mean(overlap >= level)) for level in LEVELS]


def marked(run: Run, name: str, protocol: str, metric: str) -> tuple[float, float] | None:
    """Where the protocol cut, with the number that it gives."""
    numbers = {} if isinstance(run, Seeds) else run.sets[name].rows[MODEL][protocol]  # each seed cuts elsewhere
    x, y = numbers.get("threshold"), numbers.get(metric)
    return None if x is None or y is None else (x, y)


def svg(plot: Plot, name: str) -> str:
    """A plot as an inline ``<svg>``; ``name`` makes its ids unique on the page."""
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "text.parse_math": False}
    with matplotlib.rc_context(style):
        rows = -(-len(plot.curves) // 2)
        figure = Figure(figsize=(4.6, 3.1 + 0.2 * rows), layout="constrained")
        axes = figure.subplots()
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        for curve in plot.curves:
            # A control has the same look in every report, whatever runs stand beside it.
            colour = CONTROL if curve.run < 0 else COLOURS[curve.run % len(COLOURS)]
            dash = (DASHES | CONTROLS).get(curve.row, "--")
            width = 2.2 if curve.row == MODEL else 1.3
            if curve.dots:
                axes.plot(curve.x, curve.y, "o", color=colour, markersize=7, alpha=0.7, markeredgewidth=0)
                axes.hlines(np.mean(curve.y), curve.x[0] - 0.06, curve.x[0] + 0.06, color=colour, label=curve.label)
                continue
            points = "o" if len(curve.x) <= FEW else None
            style_of = {"color": colour, "linestyle": dash, "linewidth": width, "marker": points, "markersize": 3.5}
            axes.plot(curve.x, curve.y, label=curve.label, **style_of)
            if curve.marked:
                axes.plot(*curve.marked, marker="o", color=colour, markersize=6)
        axes.set(xlabel=plot.x, ylabel=plot.y, xlim=limits(plot) if plot.x else (0, 1), ylim=(0, 1.02))
        if plot.ticks:
            axes.set_xticks(plot.ticks)
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set_color(INK)
        if not plot.x:
            axes.set_xticks([])  # the legend names the columns
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.tick_params(colors=INK, length=0)
        axes.grid(color=LINE, linewidth=0.7)
        axes.spines[:].set_visible(False)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK, fontsize=9, handlelength=2.8)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return inlined(file.getvalue(), plot.title, name)


def limits(plot: Plot) -> tuple[float, float]:
    """From 0 to 1 but where the ticks are numbers, or all points lie in the first half (sizes of small things)."""
    if plot.ticks:
        return min(plot.ticks) - 0.3, max(plot.ticks) + 0.3
    most = max(max(curve.x) for curve in plot.curves)
    return 0, 1 if most > 0.5 else most * 1.08


def inlined(text: str, title: str, name: str) -> str:
    """The ``<svg>`` element alone: colours of the page, ids of its own, named for a screen reader."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = body.replace(INK, "currentColor").replace(LINE, "var(--rule)")
    own = re.sub(r"\W+", "-", name)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{own}-\1)", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{own}-\1"', body)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    body = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"| height="[\d.]+pt"| width="[\d.]+pt"', "", body, count=2)
    return body.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
