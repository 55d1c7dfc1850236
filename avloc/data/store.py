"""Making stored features: a frozen network over every picture of a set, once. Reading them is `avloc.data.stored`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avloc.data.indexed import EvalSet
from avloc.data.items import collate
from avloc.data.stored import (
    Features,
    FeatureStore,
    Storable,
    StoreError,
    StoreWriter,
    made_by,
    store_name,
    stored_folder,
)
from avloc.data.stream import loader_options
from avloc.files import one_at_a_time

__all__ = ["StoreReport", "store_features"]

log = logging.getLogger(__name__)


@dataclass
class StoreReport:
    """What `store_features` did.

    Attributes:
        folder: of the store.
        units: computed by this call.
        kept: that were there already.
        skipped: units computed by this call whose picture is broken.
        bytes: of the store's folder.
    """

    folder: Path
    units: int = 0
    kept: int = 0
    skipped: list[str] = field(default_factory=list)
    bytes: int = 0


@torch.no_grad()
def store_features(
    method: Storable,
    index: Path | str,
    name: str | None = None,
    *,
    batch_size: int = 16,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    num_parts: int = 1,
    part: int = 0,
) -> StoreReport:
    """Run ``method.frozen`` over every scored frame of a set, or over the rest of them, and store what it says.

    Each frame is seen once, whole and unmirrored, in the order of the shards, beside silence. Broken pictures are
    named in the log and noted in the store.

    Args:
        method: computes on the device where it is.
        index: the set's index JSON, a local file.
        name: of the features; the method's class in lower case by default, where `open_features` looks.
        batch_size: frames at once.
        workers: loader processes.
        progress: called with the number of further frames done, and that of all of this call.
        num_parts, part: do only shards ``part``, ``part + num_parts``, ...: one process each.

    Raises:
        ShardError, SampleError: the set cannot be read as a whole.
        StoreError: no space for what is to come, told after the first batch; or what the writer raises.
    """
    data = EvalSet(index, method.input_spec, truth_size=None, sound="silence", allow_missing=2**62)
    key = method.cache_key()
    writer = FeatureStore.write(stored_folder(index, name or store_name(method)), key, made_by(method))
    with one_at_a_time(writer.folder / f".{part}-of-{num_parts}.lock", str(writer.folder)):
        return store_rest(method, data, writer, batch_size, workers, progress, num_parts, part)


def store_rest(
    method: Storable,
    data: EvalSet,
    writer: StoreWriter,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None],
    num_parts: int,
    part: int,
) -> StoreReport:
    """`store_features` of what is not there yet."""
    shards = data.index.shards
    units: dict[int, list[int]] = {n: [] for n in range(part, len(shards), num_parts)}
    for i, (record, _, condition) in enumerate(data.units):
        if not condition and data.shard[record] in units:
            units[data.shard[record]].append(i)
    todo = {n: rows for n, rows in units.items() if not writer.finished(n, shards[n].sha256)}
    total, left = sum(map(len, units.values())), sum(map(len, todo.values()))
    report = StoreReport(writer.folder, kept=total - left)
    progress(report.kept, total)
    batches = [rows[i : i + batch_size] for rows in todo.values() for i in range(0, len(rows), batch_size)]
    loader = iter(DataLoader(data, batch_sampler=batches, collate_fn=collate, **loader_options(workers)))
    modes = {m: m.training for m in method.modules()} if isinstance(method, nn.Module) else {}
    try:
        for module in modes:
            module.training = False
        for n, rows in todo.items():
            with writer.part(n, shards[n].sha256) as rest:
                for _ in range(0, len(rows), batch_size):
                    batch = next(loader)
                    good = (batch.index >= 0).nonzero().flatten().tolist()
                    broken = (batch.index < 0).nonzero().flatten().tolist()
                    for i in broken:
                        rest.skip(batch.key[i])
                        report.skipped.append(batch.key[i])
                    if good:
                        seen = batch.take(good) if broken else batch
                        said = method.frozen(seen.to(getattr(method, "device", "cpu")))
                        said = {"frozen": said} if isinstance(said, Tensor) else said
                        if not report.units:
                            refuse_full(writer.folder, said, len(good), left)
                        rest.add(seen.key, said)
                        report.units += len(good)
                    progress(len(batch), total)
    finally:
        for module, training in modes.items():
            module.training = training
    report.bytes = sum(f.stat().st_size for f in writer.folder.iterdir())
    return report


def refuse_full(folder: Path, features: Features, rows: int, units: int) -> None:
    """Say how much is to come, and stop where it does not fit."""
    every = [t for v in features.values() for t in ([v] if isinstance(v, Tensor) else v)]
    size = sum(t.numel() * (2 if t.is_floating_point() else t.element_size()) for t in every) // rows
    need, free = size * units, shutil.disk_usage(folder).free
    log.info("Storing %d units of %.1f KB each in %s: %.2f GB.", units, size / 1e3, folder, need / 1e9)
    if need > free:
        raise StoreError(
            f"{folder}: {units} units of {size / 1e3:.1f} KB need {need / 1e9:.1f} GB, only {free / 1e9:.1f} GB are "
            "free. Free some space, or put the set on another disk."
        )
