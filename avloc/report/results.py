"""What a tested run left in its folder, as the reports read it.

``results.json`` holds every number (the evaluator writes it), ``run.json`` the experiment's name and the published row
that it reproduces (`avloc.report.provenance.Provenance`), ``per_sample.parquet`` the values that the numbers follow
from::

    {"universal": {"threshold": float, "chosen_on": [str], "criterion": str} | null,
     "sets": {"vggss": {"samples": int, "primary": {"protocol": str, "metric": str}, "missing": {row: [key]},
                        "notes": [str], "rows": {"model": {protocol: {metric: fraction | [curve]}}, ...}}}}
    {"experiment": str, "reproduces": {"paper": str, "table": str, "method": str, "variant": str} | null}

Every row but ``model`` and ``with OGL`` is a control.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from avloc.checked import Fields, read_checked
from avloc.evaluation.results import Results

__all__ = [
    "ANOTHER_CONTEXT",
    "GUIDED",
    "HEARD",
    "LOWER_IS_BETTER",
    "MODEL",
    "ResultsError",
    "Run",
    "Samples",
    "Scores",
    "read_run",
]

MODEL = "model"
GUIDED = "with OGL"
"""Row of the model with object-guided localisation (`avloc.methods.baselines.ogl`)."""
ANOTHER_CONTEXT = "another context"
HEARD = ("shuffled sound", "silenced", "noise", ANOTHER_CONTEXT)
"""Rows of the model itself under other sounds, or conditioned on another picture; the other controls see no model."""

LOWER_IS_BETTER = re.compile(r"^(g?fpr|pia|recall_precision_gap|share)")
"""Metrics of which less is better."""

EXTENTS = ("truth_area", "sources", "answered", "regions", "predicted_share")
"""Columns of sizes and numbers, which files of older tests lack."""

Floats = NDArray[np.float64]
Measured = dict[str, dict[str, "float | None"]]
"""Protocol to metric to fraction; None where a number could not be computed."""


class ResultsError(ValueError):
    """A run without readable results, or results that do not hang together."""


@dataclass(frozen=True)
class Samples:
    """The per-sample values of one row of one set.

    Attributes:
        key, label, negative: str ``[n]``; ``negative`` is "" for a positive.
        clip, group: float64 ``[n]``, equal for the frames of a clip and the members of an interactive group (0: none).
        group_size: float64 ``[n]``, members of the sample's group, 1 for none.
        sounding: bool ``[n]``.
        values: ``<measure>:<column>`` to float64 ``[n, k]``.
        extents: ``truth_area``, ``sources``, ``answered``, ``regions`` and ``predicted_share``, float64 ``[n]``, NaN
            where unknown (`avloc.evaluation.measures.extents`); older files have none.
    """

    key: NDArray[np.str_]
    label: NDArray[np.str_]
    negative: NDArray[np.str_]
    clip: Floats
    group: Floats
    group_size: Floats
    sounding: NDArray[np.bool_]
    values: Mapping[str, Floats]
    extents: Mapping[str, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.key)

    @cached_property
    def cluster(self) -> NDArray[np.int64]:
        """Number of the independent unit that each sample belongs to, ``[n]``: its group, else its clip."""
        units = np.where(self.group > 0, self.group, self.clip)
        return np.unique(units, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Scores:
    """One test set's numbers in one run.

    Attributes:
        n: samples of the set.
        missing: how many of them the model's row lacks.
        whole: False where the run was told to score a part only.
        primary: (protocol, metric) by which the set is judged.
        published: the set's name in the papers' tables.
        rows: row to its numbers.
        curves: row to protocol to name to list.
        notes: defects of the source and what was done about them.
    """

    n: int
    missing: int
    whole: bool
    primary: tuple[str, str]
    published: str
    rows: dict[str, Measured]
    curves: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One run's results.

    Attributes:
        name: the experiment's.
        folder: the run's.
        sets: test set to its numbers.
        reproduces: the published row that the run is compared with, as arguments of `avloc.report.published.find`.
        universal: the one threshold of all sets, as in ``results.json``.
        about: ``run.json``.
    """

    name: str
    folder: Path
    sets: dict[str, Scores]
    reproduces: dict[str, Any] | None
    universal: dict[str, Any] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def own_rows(self) -> tuple[str, ...]:
        """The rows that are answers of the method to the sets' own sounds."""
        guided = any(GUIDED in scores.rows for scores in self.sets.values())
        return (MODEL, GUIDED) if guided else (MODEL,)

    @cached_property
    def per_sample(self) -> SampleFile | None:
        path = self.folder / "per_sample.parquet"
        return SampleFile(path) if path.is_file() else None

    def samples(self, name: str, row: str = MODEL) -> Samples | None:
        """Per-sample values of a row of a set; None where the run kept none.

        Raises:
            ResultsError: the file is damaged.
        """
        return None if self.per_sample is None else self.per_sample.read(name, row)


class SampleFile:
    """A ``per_sample.parquet``, of which only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read_before: dict[tuple[str, str], Samples | None] = {}
        self.groups: dict[tuple[str, str], list[int]] = {}
        try:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    names = file.read_row_group(group, ["set", "row"]).to_pydict()
                    for pair in dict.fromkeys(zip(names["set"], names["row"], strict=True)):
                        self.groups.setdefault(pair, []).append(group)
        except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as e:
            raise damaged(path, e) from e

    def read(self, name: str, row: str) -> Samples | None:
        if (name, row) not in self.read_before:
            found = self.groups.get((name, row))
            try:
                self.read_before[name, row] = self.load(name, row, found) if found else None
            except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as e:
                raise damaged(self.path, e) from e
        return self.read_before[name, row]

    def load(self, name: str, row: str, groups: list[int]) -> Samples:
        with pq.ParquetFile(self.path) as file:
            table = file.read_row_groups(groups)
        mine = [pair == (name, row) for pair in zip(*(table[c].to_pylist() for c in ("set", "row")), strict=True)]
        table = table.filter(pa.array(mine))
        text = {c: np.array([t or "" for t in table[c].to_pylist()], np.str_) for c in ("key", "label", "negative")}
        there = set(table.column_names)
        # A frame is named RECORD.f<frame>, a condition of it RECORD@<condition>.
        records = [key.partition(".")[0].partition("@")[0] for key in text["key"]]
        clip = table["clip"].to_numpy() if "clip" in there else np.unique(records, return_inverse=True)[1] + 1.0
        return Samples(
            **text,
            clip=np.asarray(clip, np.float64),
            group=np.asarray(table["group"].to_numpy() if "group" in there else np.zeros(len(clip)), np.float64),
            group_size=np.asarray(table["group_size"].to_numpy() if "group_size" in there else np.ones(len(clip))),
            sounding=table["sounding"].to_numpy() > 0 if "sounding" in there else text["negative"] == "",
            values={
                f.name: matrix(table[f.name])
                for f in table.schema
                if pa.types.is_list(f.type) and not table[f.name].null_count
            },
            extents={c: np.array(table[c].cast(pa.float64()).to_numpy(), np.float64) for c in EXTENTS if c in there},
        )


def matrix(column: pa.ChunkedArray) -> Floats:
    flat = pa.concat_arrays([chunk.flatten() for chunk in column.chunks]) if column.num_chunks else pa.array([])
    values: Floats = np.asarray(flat.to_numpy(zero_copy_only=False), np.float64)
    return values.reshape(len(column), -1) if len(column) else values.reshape(0, 1)


def damaged(path: Path, error: Exception) -> ResultsError:
    return ResultsError(f"{path} is damaged ({type(error).__name__}: {error}). Test the run again.")


def read_run(folder: Path | str) -> Run:
    """The results of a run, from its folder or from the ``results.json`` itself.

    Raises:
        ResultsError: no results there, or a damaged file.
    """
    path = Path(folder)
    path = path if path.suffix == ".json" else path / "results.json"
    if not path.is_file():
        raise ResultsError(f"{path} does not exist. `avloc test` writes it; name the folder of a tested run.")
    try:
        content = read_checked(path, Results)
        file = path.with_name("run.json")
        about = read_checked(file, About) if file.is_file() else {}
        content = about | content
        sets = {name: read_scores(name, entry) for name, entry in content["sets"].items()}
        name = content.get("experiment") or path.absolute().parent.name
        return Run(name, path.parent, sets, content.get("reproduces"), content.get("universal"), about)
    except (KeyError, AttributeError, TypeError, ValueError) as e:
        raise damaged(path, e) from e


class Count(Fields):
    """Of a method's parameters."""

    total: Annotated[int, Field(ge=0, le=2**53)]
    trainable: Annotated[int, Field(ge=0, le=2**53)]


class Reproduced(Fields, extra="forbid"):
    """Where a published row stands: `avloc.report.published.Reference`."""

    paper: str
    table: str
    method: str
    variant: str | None = None
    ogl: bool = False


class About(Fields):
    """``run.json``: `avloc.report.provenance.Provenance` says what else there is."""

    experiment: str = ""
    seed: int | None = None
    seeds: list[int | None] = Field(default_factory=list)
    method: str = ""
    reproduces: Reproduced | None = None
    git: dict[str, str | bool | None] | None = None
    packages: dict[str, Any] | None = None
    weights: dict[str, Any] | None = None
    parameters: Count | None = None
    processes: int = 1
    precision: str = ""
    config: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None


def read_scores(name: str, entry: dict[str, Any]) -> Scores:
    """One set of a ``results.json``.

    Raises:
        ValueError: the model's row or its primary metric is not there.
    """
    goal, missing = entry["primary"], entry.get("missing", 0)
    primary = (goal["protocol"], goal["metric"]) if isinstance(goal, dict) else (goal[0], goal[1])
    rows: dict[str, Measured] = {}
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row, protocols in entry["rows"].items():
        rows[row], curves[row] = {}, {}
        for protocol, metrics in protocols.items():
            rows[row][protocol] = {m: v for m, v in metrics.items() if not isinstance(v, list)}
            curves[row][protocol] = {m: v for m, v in metrics.items() if isinstance(v, list)}
    if MODEL not in rows:
        raise ValueError(f"set {name!r} has no row 'model'")
    if primary[1] not in rows[MODEL].get(primary[0], {}):
        raise ValueError(f"the model's numbers on {name!r} lack the primary metric {'/'.join(primary)}")
    notes = list(entry.get("notes", ()))
    if entry.get("calibration"):
        notes.append("The threshold of all sets was chosen on this one.")
    absent = missing.get(MODEL, 0) if isinstance(missing, dict) else missing
    return Scores(
        n=entry.get("samples", entry.get("n", 0)),
        missing=len(absent) if isinstance(absent, list) else absent,
        whole=entry.get("whole", True),
        primary=primary,
        published=entry.get("published") or name,
        rows=rows,
        curves=curves,
        notes=tuple(notes),
    )
