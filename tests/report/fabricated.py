"""Run folders written by hand: a results.json, and the per-sample values that it follows from."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EXTENTS = ("truth_area", "sources", "answered", "regions", "predicted_share")


def per_sample(folder: Path, rows: dict, **changes) -> None:
    """``rows``: (set, row) to {"key": [...], "<measure>:<column>": [n, k], and optionally group, negative, ...,
    and the extents, of all rows or of none}."""
    columns = sorted({c for table in rows.values() for c in table if ":" in c})
    out: dict[str, list] = {}
    for (name, row), table in rows.items():
        n = len(table["key"])
        clips = [k.partition(".")[0].partition("@")[0] for k in table["key"]]
        kinds = list(table.get("negative", [""] * n))
        line = {
            "set": [name] * n,
            "row": [row] * n,
            "index": list(range(n)),
            "key": list(table["key"]),
            "label": list(table.get("label", ["dog"] * n)),
            "negative": kinds,
            "clip": [1.0 + sorted(set(clips)).index(c) for c in clips],
            "group": [float(g) for g in table.get("group", [0.0] * n)],
            "group_size": [1.0] * n,
            "sounding": [float(s) for s in table.get("sounding", [k == "" for k in kinds])],
        }
        line |= {c: list(map(float, table[c])) for c in EXTENTS if c in table}
        line |= {c: [list(map(float, v)) for v in table[c]] if c in table else [None] * n for c in columns}
        for c, values in line.items():
            out.setdefault(c, []).extend(values)
    lists = {c: pa.array(out[c], pa.list_(pa.float64())) for c in columns}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(out | lists | changes), folder / "per_sample.parquet")


def results(folder: Path, sets: dict, universal: dict | None = None, **about) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "results.json").write_text(json.dumps({"stage": "test", "universal": universal, "sets": sets}))
    return folder


def entry(rows: dict, primary: tuple[str, str], n: int, published: str = "", **more) -> dict:
    goal = {"protocol": primary[0], "metric": primary[1]}
    return {"samples": n, "published": published, "whole": True, "primary": goal, "rows": rows} | more


def top50(values: np.ndarray, name: str = "vggss") -> dict:
    """What the protocol top50 makes of cIoU ``[n]``, by the definitions of the tables."""
    levels = [0.05 * i for i in range(21)]
    rates = [float(np.mean(values >= level)) for level in levels]
    area = sum((a + b) / 2 * 0.05 for a, b in pairwise(rates))
    return {f"{name}/top50": {"ciou": float(np.mean(values >= 0.5)), "auc": area, "mean_ciou": float(values.mean())}}
