"""The callback that turns what a method answers into the numbers of every protocol.

It reads the evaluation sets from the data module (``val_sets`` and ``test_sets``, in the order of the
loaders) and scores, in one pass over each set, the method and the controls. A set whose ``shuffled`` is true
is the twin of the set of the same name with every picture under another sound; it becomes the row "shuffled
sound".
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from avloc.evaluation import protocols
from avloc.evaluation.benchmarks import Benchmark, benchmark
from avloc.evaluation.protocols import PROTOCOLS, Measure, Samples, Summary
from avloc.methods.baselines.controls import CONTROLS
from avloc.metrics.per_sample import PerSample
from avloc.metrics.thresholds import SWEEP
from avloc.types import AVBatch, Localization

__all__ = ["MODEL", "SHUFFLED", "EvalSet", "Evaluator"]

MODEL, SHUFFLED = "model", "shuffled sound"
IDENTITIES = {"clip": 1, "group": 1}


class EvalSet(Protocol):
    """What the evaluator must know of a set (`avloc.data.indexed.EvalSet`)."""

    name: str
    shuffled: bool
    allow_missing: int
    """Unreadable samples that are tolerated on each process; they come with ``AVBatch.index`` -1."""

    def __len__(self) -> int: ...


class Evaluator(Callback):
    """Scores every evaluation set under every protocol of its benchmark.

    Logged are the primary protocol's metrics as ``test/<set>/<metric>``, the other protocols' as
    ``test/<set>/<protocol>/<metric>``, and the primary metrics of the other rows as
    ``test/<set>/<row>/<metric>`` (``val/...`` in validation). Process zero writes ``results.json`` and
    ``per_sample.csv`` (``val_results.json``, ``val_per_sample.csv`` in validation).

    Args:
        controls: score the full frame, the centre box and the random map too. They do not depend on the
            method, so the validation inside ``fit`` leaves them out.
        out: folder of the files; None for the logger's, else the trainer's ``default_root_dir``.

    Attributes:
        results: what ``results.json`` holds, on every process.
        samples: ``(set, row)`` to its per-sample columns, on every process.
    """

    def __init__(self, controls: bool = True, out: str | None = None) -> None:
        self.controls = controls
        self.out = out
        self.results: dict[str, Any] = {}
        self.samples: dict[tuple[str, str], Samples] = {}
        self.passes: list[Pass] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start(trainer, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start(trainer, "test")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: AVBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.add(trainer, outputs, batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: AVBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.add(trainer, outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish(trainer, pl_module, "test")

    def start(self, trainer: Trainer, stage: str) -> None:
        self.passes = []
        if trainer.sanity_checking:
            return
        sets: list[EvalSet] | None = getattr(getattr(trainer, "datamodule", None), f"{stage}_sets", None)
        if sets is None:
            raise RuntimeError(
                f"The Evaluator needs a data module with {stage}_sets, in the order of its loaders; give the "
                "trainer an avloc data module instead of bare loaders, or remove the Evaluator."
            )
        limits: list[int | float] = trainer.num_val_batches if stage == "val" else trainer.num_test_batches
        loaders: Any = trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders
        controls = self.controls and trainer.state.fn != "fit"
        names = [(data.name, data.shuffled) for data in sets]
        if len(set(names)) < len(names) or len(limits) != len(names):
            raise RuntimeError(
                f"The data module's {stage}_sets {names} (name, shuffled) do not fit its {len(limits)} "
                "loaders: each loader needs one set, and each set, plain or shuffled, a name of its own."
            )
        for i, data in enumerate(sets):
            loader = loaders[i] if isinstance(loaders, list | tuple) else loaders
            whole = limits[i] >= len(loader)
            self.passes.append(Pass(data, whole, controls and not data.shuffled, trainer))

    def add(self, trainer: Trainer, outputs: Any, batch: AVBatch, loader: int) -> None:
        if not self.passes:
            return
        if not isinstance(outputs, Localization):
            raise TypeError(
                f"The Evaluator scores Localizations, but the step returned {type(outputs).__name__}: "
                "validation_step and test_step must return what localize() answers."
            )
        run = self.passes[loader]
        run.add(outputs, batch)

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self.passes:
            return
        sets: dict[str, dict[str, Any]] = {}
        self.samples = {}
        keys: dict[str, dict[int, str]] = {}
        for run in self.passes:
            keys[run.data.name], unread = gathered(run.keys, run.unread)
            entry = sets.setdefault(run.data.name, description(run))
            for row, metric in run.rows.items():
                columns = {k: v.cpu() for k, v in metric.compute().items()}
                self.samples[run.data.name, row] = columns
                entry["rows"][row] = numbers(run.benchmark, columns)
                entry["counted"][row] = len(columns["index"])
                entry["missing"][row] = unread
        self.results = {"stage": stage, "epoch": trainer.current_epoch, "sets": sets}
        for name, entry in sets.items():
            scalars = named(f"{stage}/{name}", entry)
            # Every process has the same values: there is nothing to synchronise, whatever Lightning advises.
            warnings.filterwarnings("ignore", r".*self\.log\('(val|test)/.*sync_dist=True.*")
            pl_module.log_dict(scalars, sync_dist=False, add_dataloader_idx=False, batch_size=1)
        folder = Path(self.out or trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero:
            self.write(folder, "" if stage == "test" else "val_", keys)
        self.passes = []

    def write(self, folder: Path, prefix: str, keys: Mapping[str, Mapping[int, str]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with complete(folder / f"{prefix}results.json") as path:
            path.write_text(json.dumps(finite(self.results), indent=1, allow_nan=False) + "\n")
        tables = [table(name, row, keys[name], columns) for (name, row), columns in self.samples.items()]
        with complete(folder / f"{prefix}per_sample.csv") as path:
            pd.concat(tables).to_csv(path, index=False, float_format="%.9g")


class Pass:
    """One pass over one evaluation set: a `PerSample` for each row that is scored in it."""

    def __init__(self, data: EvalSet, whole: bool, controls: bool, trainer: Trainer) -> None:
        self.data = data
        self.whole = whole
        self.keys: dict[int, str] = {}
        self.unread: list[str] = []
        device, world = trainer.lightning_module.device, trainer.world_size
        self.row = SHUFFLED if data.shuffled else MODEL
        self.benchmark = benchmark(data.name)
        self.measures = {m.name: m for m in (PROTOCOLS[p].measure for p in self.benchmark.protocols)}
        measures = self.measures.values()
        columns = {f"{m.name}:{c}": k for m in measures for c, k in m.columns.items()} | IDENTITIES
        self.rows = {
            row: PerSample(
                len(data),
                columns,
                allow_unread=data.allow_missing * world,
                partial=not whole,
                name=f"{data.name} ({row})",
            ).to(device)
            for row in [self.row, *(CONTROLS if controls else ())]
        }

    def add(self, answer: Localization, batch: AVBatch) -> None:
        index = batch.index.tolist()
        self.keys |= {i: key for i, key in zip(index, batch.key, strict=True) if i >= 0}
        self.unread += [key for i, key in zip(index, batch.key, strict=True) if i < 0]
        heatmaps = {self.row: answer.heatmap}
        heatmaps |= {row: CONTROLS[row](batch).heatmap for row in self.rows if row != self.row}
        clips = [key.partition(".")[0] for key in batch.key]  # the frames of a record are named RECORD.f<frame>
        identities = {"clip": identity(clips, batch), "group": identity(batch.group, batch)}
        for row, heatmap in heatmaps.items():
            heatmap = heatmap.detach().float()
            self.check(heatmap, batch, row)
            values = {
                f"{measure.name}:{column}": value
                for measure in self.measures.values()
                for column, value in measure.function(heatmap, batch.truth, batch).items()
            }
            self.rows[row].update(batch.index, **values, **identities)

    def check(self, heatmap: Tensor, batch: AVBatch, row: str) -> None:
        if len(heatmap) != len(batch):
            raise ValueError(f"{self.data.name}: {row} answered {len(heatmap)} maps for {len(batch)} samples.")
        good = torch.isfinite(heatmap).flatten(1).all(1) | (batch.index < 0)
        if not bool(good.all()):
            keys = [k for k, ok in zip(batch.key, good.tolist(), strict=True) if not ok]
            raise ValueError(
                f"{self.data.name}: the heat maps of {len(keys)} samples ({', '.join(keys[:3])}) hold NaN or "
                "infinity and cannot be scored. Check the checkpoint and the precision of the heat maps."
            )
        if batch.truth is None and (needy := [m.name for m in self.measures.values() if m.needs_truth]):
            raise ValueError(
                f"{self.data.name}: the batch of {', '.join(batch.key[:3])} has no ground-truth maps, which "
                f"the measures {', '.join(needy)} need. Only negative/pia does without."
            )


def identity(names: list[str], batch: AVBatch) -> Tensor:
    """One number per name, float64 ``[B]``: 48 bits of its BLAKE2 hash, 0 for ""."""
    numbers = [int.from_bytes(blake2b(n.encode(), digest_size=6).digest(), "big") if n else 0 for n in names]
    return torch.tensor(numbers or [0] * len(batch), dtype=torch.float64, device=batch.device)


def description(run: Pass) -> dict[str, Any]:
    protocol, metric = run.benchmark.primary
    return {
        "samples": len(run.data),
        "published": run.benchmark.published,
        "published_samples": run.benchmark.size,
        "whole": run.whole,
        "primary": {"protocol": protocol, "metric": metric},
        "counted": {},
        "missing": {},
        "rows": {},
    }


def columns_of(measure: Measure, samples: Samples) -> Samples:
    return {c: samples[f"{measure.name}:{c}"] for c in measure.columns} | {c: samples[c] for c in IDENTITIES}


def numbers(scored: Benchmark, samples: Samples) -> dict[str, Summary]:
    """Every protocol of a benchmark from the per-sample columns of one row."""
    if not len(samples["index"]):
        return {}
    wanted: Iterable[protocols.Protocol] = (PROTOCOLS[name] for name in scored.protocols)
    return {p.name: p.summary(columns_of(p.measure, samples)) for p in wanted}


def named(prefix: str, entry: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of a set under their stable names."""
    primary = entry["primary"]["protocol"]
    out: dict[str, float] = {}
    for row, scores in entry["rows"].items():
        for protocol, metrics in scores.items():
            if row != MODEL and protocol != primary:
                continue
            parts = ["" if row == MODEL else row.replace(" ", "_"), "" if protocol == primary else protocol]
            path = "/".join([prefix, *filter(None, parts)])
            out |= {f"{path}/{k}": v for k, v in metrics.items() if not isinstance(v, list)}
    return out


def table(name: str, row: str, keys: Mapping[int, str], columns: Samples) -> pd.DataFrame:
    """One line per sample; the curves of 255 points are left out."""
    index = columns["index"].tolist()
    out: dict[str, Any] = {"set": name, "row": row, "index": index, "key": [keys.get(i, "") for i in index]}
    for column, values in columns.items():
        if column == "index" or column in IDENTITIES or (width := values.shape[1]) > len(SWEEP):
            continue
        ends = [f"@{t:.2f}" for t in SWEEP] if width == len(SWEEP) else [f"[{i}]" for i in range(width)]
        ends = [""] if width == 1 else ends
        out |= {column + end: values[:, i].tolist() for i, end in enumerate(ends)}
    return pd.DataFrame(out)


def gathered(keys: dict[int, str], unread: list[str]) -> tuple[dict[int, str], list[str]]:
    """The keys that all processes met, by index, and those that none could read."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return keys, sorted(unread)
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, (keys, unread))
    met = {i: key for share, _ in shares for i, key in share.items()}
    return met, sorted(key for _, share in shares for key in share)


def finite(value: Any) -> Any:
    """The same structure with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A path to write to; the file gets its own name only when it is complete."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
