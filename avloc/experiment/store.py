"""Frozen features of an experiment's sets, written beside the shards: what `avloc store` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from avloc.data.store import StoreReport, store_features
from avloc.data.stored import Storable
from avloc.errors import UsageError
from avloc.experiment.run import instantiate

__all__ = ["store", "stored"]


def store(config: Path, options: list[str], parts: int = 1, part: int = 0) -> None:
    """Store the frozen features of an experiment's sets.

    Args:
        config: the YAML.
        options: its ``--data`` and ``--model`` keys as given on the command line.
        parts, part: number of processes that share the work, and which of them this is.

    Raises:
        UsageError: the method has nothing to store.
    """
    model, data = instantiate(config, options)
    if not hasattr(model, "frozen"):
        raise UsageError(f"{type(model).__name__} has no frozen features to store; train it as it is.")
    storable = cast(Storable, model)
    data.prepare_data()
    sets = [(data.train, "train")] if data.train else []
    sets += [(name, "test") for name in (*data.val, *data.calibration, *data.test)]
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    indexes = [data.find(name, split) for name, split in sets]
    for report in stored(storable, indexes, data.eval_batch_size, data.num_workers, parts, part):
        skipped = f", {len(report.skipped)} broken pictures" if report.skipped else ""
        print(f"{report.folder}: {report.units} pictures, {report.kept} were there{skipped}")


def stored(
    storable: Storable, indexes: Iterable[str], batch_size: int, workers: int, parts: int, part: int
) -> Iterator[StoreReport]:
    """Store set by set with a progress bar, each once; see `store_features`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for index in dict.fromkeys(indexes):
            progress = partial(show, bar, bar.add_task(Path(index).stem, total=None))
            yield store_features(
                storable, index, batch_size=batch_size, workers=workers, progress=progress, num_parts=parts, part=part
            )


def show(bar: Progress, task: TaskID, more: int, total: int) -> None:
    bar.update(task, advance=more, total=total)
