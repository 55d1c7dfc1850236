"""The files of a tested run: per-sample values, and the numbers that follow from them.

``per_sample.parquet`` holds one line per set, row and sample: ``set``, ``row``, ``index``, ``key``, ``label``,
``negative``, the identities and extents of `avloc.evaluation.measures`, and one list of float64 per measure column.
Every number of ``results.json`` can be computed again from it, without the model: `rescore`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import Field

from avloc.checked import Fields, read_checked
from avloc.evaluation.measures import EXTENTS, IDENTITIES, KINDS, UNIVERSAL
from avloc.evaluation.protocols import PROTOCOLS, protocol
from avloc.evaluation.summaries import Samples, Summary, summarise_universal
from avloc.files import complete, write_whole
from avloc.metrics.universal import GRID, choose_threshold

__all__ = [
    "RescoreError",
    "Results",
    "chosen_threshold",
    "numbers",
    "numbers_of_some",
    "read_samples",
    "rescore",
    "write_results",
    "write_samples",
]

Names = Mapping[int, Sequence[str]]
"""Index of a sample to its key, its label and its kind of negative."""


class RescoreError(ValueError):
    """A run's files are absent, damaged, or do not belong together."""


Number = float | None
Metrics = dict[str, Number | list[Number]]


class Chosen(Fields):
    """The universal threshold, and its place in `avloc.metrics.universal.GRID`."""

    threshold: float
    place: Annotated[int, Field(ge=0, lt=len(GRID))] | None = None
    chosen_on: list[str] = Field(default_factory=list)
    criterion: str = ""


class Goal(Fields):
    """The number by which a set is judged."""

    protocol: str
    metric: str


class SetResults(Fields):
    """One test set; ``counted`` and ``missing`` are of each row."""

    rows: dict[str, dict[str, Metrics]]
    primary: Goal | Annotated[list[str], Field(min_length=2)]
    samples: int = 0
    n: int = 0
    published: str | None = None
    whole: bool = True
    calibration: bool = False
    protocols: list[str] = Field(default_factory=list)
    counted: dict[str, int] = Field(default_factory=dict)
    missing: int | dict[str, int | list[str]] = 0
    notes: list[str] = Field(default_factory=list)


class Results(Fields):
    """``results.json``."""

    sets: dict[str, SetResults]
    universal: Chosen | None = None


def numbers(names: Sequence[str], samples: Samples, universal: int | None = None) -> dict[str, Summary]:
    """Protocols from the per-sample columns of one row of one set.

    Args:
        names: of the protocols; ``universal`` is added where a threshold was chosen.
        samples: ``<measure>:<column>`` and the identities.
        universal: place of the chosen threshold in `avloc.metrics.universal.GRID`; None for none.

    Raises:
        ProtocolError: an unknown protocol; the message names the nearest ones.
    """
    if not len(samples["clip"]):
        return {}
    out = {name: protocol(name).summary(samples) for name in names}
    if universal is not None and f"{UNIVERSAL.name}:ciou" in samples:
        out["universal"] = summarise_universal(samples, universal)
    return out


def chosen_threshold(calibration: Mapping[str, Samples]) -> dict[str, Any] | None:
    """The universal threshold from the samples of the calibration sets, pooled; None without such sets.

    Raises:
        ValueError: they hold no positives or no negatives, so nothing says when to answer "nothing".
    """
    if not calibration:
        return None
    share, overlap, sounding = (
        torch.cat([s[c] for s in calibration.values()])
        for c in (f"{UNIVERSAL.name}:share", f"{UNIVERSAL.name}:ciou", "sounding")
    )
    positive = sounding[:, 0] > 0
    if positive.all() or not positive.any():
        kind = "negatives" if positive.all() else "positives"
        raise ValueError(
            f"The calibration sets {', '.join(calibration)} hold no {kind}. A universal threshold is chosen on both: "
            "add a set of the missing kind to data.calibration."
        )
    place = int(choose_threshold(overlap[positive], share[~positive], GRID))
    criterion = "harmonic mean of mean cIoU over positives and 1 - predicted share over negatives"
    return {"threshold": float(GRID[place]), "place": place, "chosen_on": list(calibration), "criterion": criterion}


def write_samples(
    path: Path, samples: Mapping[tuple[str, str], Samples], names: Mapping[str, Names], keep: str = "zstd"
) -> None:
    """``per_sample.parquet``, one row group per set and row.

    Args:
        path: of the file; it appears only when it is complete.
        samples: (set, row) to columns with ``index``.
        names: set to `Names`.
        keep: compression.
    """
    scalars = [c for c in (*IDENTITIES, *EXTENTS) if c != "negative"]
    columns = sorted({c for table in samples.values() for c in table if ":" in c})
    text = [(c, pa.string()) for c in ("set", "row", "key", "label", "negative")]
    schema = pa.schema(
        [
            *text[:2],
            ("index", pa.int64()),
            *text[2:],
            *((c, pa.float64()) for c in scalars),
            *((c, pa.list_(pa.float64())) for c in columns),
        ]
    )
    with complete(path) as part, pq.ParquetWriter(part, schema, compression=keep) as writer:
        for (name, row), table in samples.items():
            index = table["index"].tolist()
            told = [names[name].get(i, ("", "", "")) for i in index]
            content: dict[str, Any] = {"set": [name] * len(index), "row": [row] * len(index), "index": index}
            content |= {c: [t[i] for t in told] for i, c in enumerate(("key", "label", "negative"))}
            content |= {c: table[c][:, 0].numpy() if c in table else [None] * len(index) for c in scalars}
            content |= {c: lists(table[c].numpy()) if c in table else [None] * len(index) for c in columns}
            writer.write_table(pa.table(content, schema=schema))


def lists(values: np.ndarray) -> pa.Array:
    n, k = values.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * k), pa.array(values.reshape(-1)))


def read_samples(path: Path) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    """(set, row) to per-sample columns, as `write_samples` was given them.

    Raises:
        RescoreError: no such file, or not one of these.
    """
    if not path.is_file():
        raise RescoreError(f"{path} does not exist. `avloc test` writes it; name the folder of a tested run.")
    try:
        return read_tables(path)
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, RuntimeError) as e:
        raise RescoreError(f"{path} is damaged ({type(e).__name__}: {e}). Test the run again.") from e


def read_tables(path: Path) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    out: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    with pq.ParquetFile(path) as file:
        for key, table in by_row(file):
            columns = {"index": torch.from_numpy(table["index"].to_numpy().copy())}
            for name in [*IDENTITIES, *(c for c in EXTENTS if c in table.column_names)]:  # older files have none
                if name == "negative":
                    values = np.array([KINDS.index(k) for k in table["negative"].to_pylist()], np.float64)
                else:
                    values = table[name].to_numpy().astype(np.float64)
                columns[name] = torch.from_numpy(values)[:, None]
            for field in table.schema:
                if pa.types.is_list(field.type) and not table[field.name].null_count:
                    flat = table[field.name].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()
                    columns[field.name] = torch.from_numpy(flat).reshape(table.num_rows, -1)
            earlier = out.get(key)
            out[key] = {c: torch.cat([earlier[c], v]) for c, v in columns.items()} if earlier else columns
    return out


def by_row(file: pq.ParquetFile) -> Iterator[tuple[tuple[str, str], pa.Table]]:
    """The lines of each set and row; `write_samples` gives each a group of its own."""
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        pairs = list(zip(table["set"].to_pylist(), table["row"].to_pylist(), strict=True))
        for pair in dict.fromkeys(pairs):
            yield pair, table.filter(pa.array([p == pair for p in pairs]))


def numbers_of_some(names: Sequence[str], columns: Mapping[str, NDArray[Any]]) -> dict[str, Summary]:
    """`numbers` from columns as they stand in the file, ``negative`` as text: for the intervals of a report.

    Protocols that are unknown here have none.

    Raises:
        RescoreError: a column is missing.
    """
    names = known(names)
    if strange := set(columns["negative"]) - set(KINDS):
        raise RescoreError(f"The per-sample values have the negative {min(strange)!r}. Test the run again.")
    kinds = np.array([KINDS.index(kind) for kind in columns["negative"]], np.float64)
    full = dict(columns) | {"negative": kinds}
    try:
        return numbers(names, {c: torch.from_numpy(v if v.ndim == 2 else v[:, None]) for c, v in full.items()})
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as e:
        raise RescoreError(
            f"The per-sample values do not give {', '.join(names)} ({type(e).__name__}: {e}). Test the run again."
        ) from e


def known(names: Sequence[str]) -> list[str]:
    return [name for name in names if name in PROTOCOLS]


def rescore(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Compute every number of a run again from its per-sample values and write ``results.json`` anew.

    Args:
        folder: of a tested run.

    Returns:
        what ``results.json`` holds now, and the run's protocols that are unknown here: they keep their numbers.

    Raises:
        RescoreError: files are missing or disagree.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise RescoreError(f"{path} does not exist. `avloc test` writes it; name the folder of a tested run.")
    try:
        results: dict[str, Any] = read_checked(path, Results)
    except ValueError as e:
        raise RescoreError(f"{path} is damaged ({e}). Test the run again.") from e
    samples = read_samples(folder / "per_sample.parquet")
    chosen = results.get("universal")
    for name, entry in results["sets"].items():
        if lacking := {"counted", "protocols"} - entry.keys() or set(entry["rows"]) - set(entry["counted"]):
            raise RescoreError(f"{path} does not tell {', '.join(sorted(lacking))} of {name}. Test the run again.")
        for row in entry["rows"]:
            if not entry["counted"][row]:
                continue
            if (name, row) not in samples:
                raise RescoreError(f"{folder}: per_sample.parquet lacks the row {row!r} of {name}. Test the run again.")
            mine = known(entry["protocols"])
            try:
                again = numbers(mine, samples[name, row], chosen["place"] if chosen else None)
            except (KeyError, IndexError) as e:
                raise RescoreError(
                    f"{folder}: per_sample.parquet lacks {e} of {name}, {row}, which its protocols need. Test the run "
                    "again."
                ) from e
            kept = {p: v for p, v in entry["rows"][row].items() if p in again or p in set(entry["protocols"]) - {*mine}}
            entry["rows"][row] = kept | again
    write_results(path, results)
    used = dict.fromkeys(p for entry in results["sets"].values() for p in entry["protocols"])
    return results, [p for p in used if not known([p])]


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(finite(results), indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same structure with None for NaN, which JSON does not know."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
