"""What a checkpoint of avloc holds, read without running a line of it."""

from __future__ import annotations

import importlib
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avloc.plugins import may_import

__all__ = ["IDENTITY", "CheckpointError", "read_checkpoint"]

IDENTITY = "avloc"  # the entry with the method's name, its arguments and its frozen files


class CheckpointError(RuntimeError):
    """A checkpoint of another method, of other frozen weights, or with other tensors; or a file that is none."""


def read_checkpoint(checkpoint: Path, mmap: bool = True, resumable: bool = False) -> dict[str, Any]:
    """What a checkpoint of avloc holds, on the CPU.

    Args:
        checkpoint: the file.
        mmap: leave its tensors on the disk until they are used.
        resumable: whether a training is to go on from it: it must hold the optimiser's state, and every byte of it is
            checked.

    Raises:
        CheckpointError: it is missing, damaged, or not written by avloc; or it cannot be resumed. Nothing that it names
            is imported but modules that `avloc.plugins.may_import` allows.
    """
    # torch's own text advises to load unsafely: it is shown nowhere, not even in a trace.
    torn = f"{checkpoint} cannot be read as a checkpoint ({{}}): it is torn, or of another program."
    try:
        if resumable and (member := damaged(checkpoint)) is not None:
            raise CheckpointError(torn.format(f"{member} is damaged"))
        # A method's settings are classes of its package, which allows them when it is imported.
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint):
            if may_import(module := name.rpartition(".")[0]):
                importlib.import_module(module)
        head = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=mmap)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"There is no checkpoint {checkpoint}.") from None
    except Exception as e:  # zip, pickle and torch know a dozen kinds
        raise CheckpointError(torn.format(type(e).__name__)) from None
    if not isinstance(head, dict) or not isinstance(head.get(IDENTITY), dict):
        raise CheckpointError(f"{checkpoint} was not written by avloc: it has no {IDENTITY!r} entry.")
    if resumable and not head.get("optimizer_states"):
        raise CheckpointError(
            f"{checkpoint} holds no state of the optimiser: it can be tested, or be another run's start_from, but "
            "training cannot go on from it."
        )
    return head


def damaged(checkpoint: Path) -> str | None:
    """The first part of a file whose bytes are not those that were written; None where all are."""
    with zipfile.ZipFile(checkpoint) as content:
        return content.testzip()


def tensors_of(head: dict[str, Any]) -> dict[str, Tensor]:
    """A checkpoint's tensors by their names.

    Raises:
        CheckpointError: it holds something else in their place.
    """
    state = head.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError("This checkpoint holds no named tensors: it is damaged, or of another program.")
    return state
