"""Runs of one experiment that differ in their seed alone, as one run whose numbers are the seeds' means."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from avloc.report.results import MODEL, Measured, Run, Scores

__all__ = ["Seeds", "first_seeds", "one_seed", "seed_of", "spread", "with_seeds"]

PLACES = ("seed_everything", "config", "ckpt_path", "weights_only", "start_from", "test_after_fit")
"""Keys of a configuration that may differ between seeds: what was seeded, and where a run read and went on."""


@dataclass(frozen=True)
class Seeds(Run):
    """Two or more seeds of an experiment.

    Its numbers are the seeds' means, and a number that a seed lacks is None. Curves are averaged where all seeds have
    them at the same places.

    Attributes:
        members: a run of each seed, by seed; each is called ``<experiment>, seed <n>``.
    """

    members: tuple[Run, ...] = ()


def seed_of(run: Run) -> int | None:
    """The seed that a run was trained with; None for a run that says none, or that trained nothing."""
    seed = run.about.get("seed")
    return seed if isinstance(seed, int) and settings(run).get("data", {}).get("train") else None


def settings(run: Run) -> dict[str, Any]:
    return run.about.get("config") or {}


def with_seeds(runs: Sequence[Run]) -> list[Run]:
    """Runs with those of one experiment as one, at the first one's place.

    Together stand runs of one name, method, frozen weights and configuration, the seed left aside. Of two runs with
    the same seed the later named one counts; the earlier one stays by itself, since a repetition is no further seed.
    """
    groups: dict[str, dict[int, Run]] = {}
    alone: list[tuple[int, Run]] = []
    first: dict[str, int] = {}
    for place, run in enumerate(runs):
        seed = seed_of(run)
        if seed is None:
            alone.append((place, run))
            continue
        same = groups.setdefault(key := fingerprint(run), {})
        if seed in same:
            alone.append((place, same[seed]))
        first.setdefault(key, place)
        same[seed] = run
    rows = alone + [(first[key], grouped(members)) for key, members in groups.items()]
    return [run for _, run in sorted(rows, key=lambda row: row[0])]


def fingerprint(run: Run) -> str:
    """What runs must share to be seeds of one experiment: everything that they were told, but for the seed."""
    told = {k: v for k, v in settings(run).items() if k not in PLACES}
    trainer = {k: v for k, v in (told.get("trainer") or {}).items() if k not in ("logger", "default_root_dir")}
    same = [run.name, run.about.get("method"), run.about.get("weights"), told | {"trainer": trainer}]
    return json.dumps(same, sort_keys=True, default=str)


def grouped(members: dict[int, Run]) -> Run:
    if len(members) == 1:
        return next(iter(members.values()))
    named = tuple(replace(members[s], name=f"{members[s].name}, seed {s}") for s in sorted(members))
    first = members[min(members)]
    names = [n for n in first.sets if all(n in m.sets for m in named)]
    chosen = [m.universal for m in named if m.universal]
    shared = None
    if len(chosen) == len(named):
        mean = float(np.mean([c["threshold"] for c in chosen]))
        shared = chosen[0] | {
            "threshold": mean,
            "criterion": f"{chosen[0].get('criterion')} for each seed, here the mean",
        }
    return Seeds(
        name=f"{first.name} ({len(named)} seeds)",
        folder=Path(first.folder),
        sets={name: mean_scores([m.sets[name] for m in named]) for name in names},
        reproduces=first.reproduces,
        universal=shared,
        about=first.about | {"seeds": sorted(members)},
        members=named,
    )


def first_seeds(runs: Iterable[Run]) -> list[Run]:
    """Single runs, of several seeds the first: for what shows samples, not means."""
    return [run.members[0] if isinstance(run, Seeds) else run for run in runs]


def mean_scores(each: Sequence[Scores]) -> Scores:
    first = each[0]
    rows: dict[str, Measured] = {}
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in first.rows:
        if not all(row in scores.rows for scores in each):
            continue
        rows[row] = {
            protocol: {
                metric: mean(scores.rows[row].get(protocol, {}).get(metric) for scores in each) for metric in metrics
            }
            for protocol, metrics in first.rows[row].items()
        }
        curves[row] = {
            protocol: mean_curves([scores.curves.get(row, {}).get(protocol, {}) for scores in each])
            for protocol in first.curves.get(row, {})
        }
    return replace(
        first, rows=rows, curves=curves, missing=max(s.missing for s in each), whole=all(s.whole for s in each)
    )


def mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if any(v is None for v in known) else float(np.mean(np.array(known, np.float64)))


def mean_curves(each: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Point by point; a curve over recall has no common places and is left out."""
    kept = [
        m for m in each[0] if all(m in c and len(c[m]) == len(each[0][m]) for c in each) and not m.startswith("pr_")
    ]
    return {m: np.mean([c[m] for c in each], axis=0).tolist() for m in kept}


def spread(run: Run, name: str, column: tuple[str, str], row: str = MODEL) -> float | None:
    """Standard deviation of a number over a run's seeds (n - 1); None for a single run."""
    values = values_of(run, name, column, row)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def values_of(run: Run, name: str, column: tuple[str, str], row: str = MODEL) -> list[float]:
    """A number of each seed; [] for a single run and where a seed lacks it."""
    members = run.members if isinstance(run, Seeds) else ()
    found = [m.sets[name].rows.get(row, {}).get(column[0], {}).get(column[1]) for m in members]
    return [v for v in found if v is not None] if None not in found else []


def one_seed(runs: Iterable[Run]) -> str:
    """What must be known of runs that stand there with one seed alone; "" without any."""
    single = [run for run in runs if not isinstance(run, Seeds) and seed_of(run) is not None]
    if not single:
        return ""
    names = ", ".join(run.name for run in single)
    seed = f"seed {seed_of(single[0])}" if len({seed_of(run) for run in single}) == 1 else "a seed"
    return (
        f"One run each ({names}; {seed}): brackets tell what other test samples would change, not what another seed "
        "would, which may be more. Which method is better takes several: `avloc train NAME --seeds 5`."
    )
