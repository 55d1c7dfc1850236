"""What is said under a table: differences between runs, seeds apart, gains over the controls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from avloc.report.cells import LISTENS, Column, bracketed, cell, listed
from avloc.report.intervals import Bounds, Interval
from avloc.report.results import GUIDED, LOWER_IS_BETTER, MODEL, Run, Scores
from avloc.report.seeds import Seeds, one_seed, values_of

__all__ = ["about_seeds", "findings", "gain"]

MOST_PAIRED = 4
"""Runs up to which every two are compared; of more, each is compared with the best."""


def about_seeds(runs: Sequence[Run]) -> list[str]:
    """What numbers of several seeds are, and what those of one cannot tell."""
    several = "± is the standard deviation over seeds; brackets allow for other seeds and other samples."
    return [*([several] if any(isinstance(run, Seeds) for run in runs) else []), *filter(None, [one_seed(runs)])]


def findings(name: str, runs: Sequence[Run], goal: Column, bounds: Bounds | None) -> list[str]:
    """Each pair of runs that saw the same samples: the difference in the primary metric and its interval.

    Of many runs (`MOST_PAIRED`) the best is compared with each other one; so is a run without OGL with itself.
    """
    if bounds is None:
        return []
    told = each_seed(name, runs, goal)
    pairs = list(combinations(runs, 2))
    if len(runs) > MOST_PAIRED:
        best = best_run(name, runs, goal)
        pairs = [(best, run) for run in runs if run is not best]
    for run in runs:
        found = bounds.between((run, GUIDED), (run, MODEL), name, goal) if GUIDED in run.sets[name].rows else None
        if found is not None:
            told.append(f"{run.name}, with OGL - without: {paired(found)} points of {goal[1]}{unsure(found)}.")
    for first, second in pairs:
        found = bounds.between((first, MODEL), (second, MODEL), name, goal)
        if found is None:
            unscored = [r.name for r in (first, second) if goal[1] not in r.sets[name].rows[MODEL].get(goal[0], {})]
            known = all(bounds.of_seeds(run, name, goal) for run in (first, second))
            why = "the runs did not keep the same samples" if known else f"{goal[1]} is no mean over kept samples"
            why = f"{listed(unscored)} has no {'/'.join(goal)}" if unscored else why
            told.append(f"{first.name} - {second.name}: no paired interval, {why}.")
            continue
        seeds = [run for run in (first, second) if isinstance(run, Seeds)]
        samples = len((seeds[0].members[0] if seeds else first).samples(name) or ())
        over = "over seeds and" if seeds else "on"
        alone = [run.name for run in (first, second) if seeds and not isinstance(run, Seeds)]
        unknown = f"; {alone[0]} has one seed, whose chance the interval leaves out" if alone else ""
        told.append(
            f"{first.name} - {second.name}: {paired(found)} points of {goal[1]} {over} the same {samples} samples"
            f"{unsure(found)}{unknown}."
        )
    return told


def each_seed(name: str, runs: Sequence[Run], goal: Column) -> list[str]:
    """The primary metric of every seed of those runs that have several."""
    told = []
    for run in runs:
        values = values_of(run, name, goal)
        if isinstance(run, Seeds) and values:
            each = listed(f"{s}: {cell(goal[1], v)}" for s, v in zip(run.about["seeds"], values, strict=True))
            told.append(f"{run.name}, {goal[1]} of seed {each}.")
    return told


def best_run(name: str, runs: Sequence[Run], goal: Column) -> Run:
    numbers = [run.sets[name].rows[MODEL].get(goal[0], {}).get(goal[1]) for run in runs]
    known = [(number, i) for i, number in enumerate(numbers) if number is not None] or [(0.0, 0)]
    return runs[(min if LOWER_IS_BETTER.match(goal[1]) else max)(known)[1]]


def paired(found: Interval) -> str:
    return f"{100 * found.value:+.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def unsure(found: Interval) -> str:
    return "" if found.low > 0 or found.high < 0 else "; the interval holds zero"


def gain(run: Run, name: str, goal: Column, bounds: Bounds | None, own: str = MODEL) -> str:
    """Points of a metric over the best control, signed, with their paired interval; "" without controls. The model in
    another context is none of them: it listens."""
    entry: Scores = run.sets[name]
    protocol, metric = goal
    found = {row: values.get(protocol, {}).get(metric) for row, values in entry.rows.items() if row not in LISTENS}
    controls = {row: value for row, value in found.items() if value is not None}
    value = entry.rows[own].get(protocol, {}).get(metric)
    if not controls or value is None:
        return ""
    lower = bool(LOWER_IS_BETTER.match(metric))
    best = (min if lower else max)(controls, key=controls.__getitem__)
    pair = [(run, best), (run, own)] if lower else [(run, own), (run, best)]
    between = bounds.between(pair[0], pair[1], name, goal) if bounds else None
    points = controls[best] - value if lower else value - controls[best]
    return f"{100 * points:+.2f}{bracketed(between)} ({best})"
