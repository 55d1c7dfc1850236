"""A trained method from its checkpoint alone."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import torch

from avloc.methods.base import IDENTITY, CheckpointError, Localizer
from avloc.plugins import VARIABLE, may_import

__all__ = ["load_method", "read_checkpoint"]


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint of avloc holds; its tensors stay on the disk until they are used.

    Raises:
        CheckpointError: it is missing, damaged, or not written by avloc. Nothing that it names is imported but modules
            that `avloc.plugins.may_import` allows.
    """
    try:
        # A method's settings are classes of its package, which allows them when it is imported.
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint):
            if may_import(module := name.rpartition(".")[0]):
                importlib.import_module(module)
        head = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as e:
        raise CheckpointError(f"There is no checkpoint {checkpoint}.") from e
    except Exception as e:  # zip, pickle and torch know a dozen kinds; torch's own text advises to load unsafely
        raise CheckpointError(
            f"{checkpoint} cannot be read as a checkpoint ({type(e).__name__}): it is torn, or of another program."
        ) from e
    if not isinstance(head, dict) or IDENTITY not in head:
        raise CheckpointError(f"{checkpoint} was not written by avloc: it has no {IDENTITY!r} entry.")
    return head


def load_method(checkpoint: Path, device: str | torch.device | None = None) -> Localizer:
    """Rebuild the method that wrote a checkpoint, in eval mode.

    Args:
        checkpoint: written by `avloc fit`.
        device: where to put it; a GPU if there is one by default.

    Raises:
        CheckpointError: the file is missing, damaged, or not written by avloc; or its method lies in a module that is
            neither the suite's nor a plugin's nor imported already: a checkpoint's word alone runs no code.
    """
    head = read_checkpoint(checkpoint)
    module, _, name = head[IDENTITY]["method"].rpartition(".")
    if not may_import(module):
        raise CheckpointError(
            f"{checkpoint} needs {module}.{name}, which is neither part of avloc nor a plugin, and is not imported on "
            f"a checkpoint's word. If you trust that module, name it: {VARIABLE}={module} before the command."
        )
    try:
        method = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise CheckpointError(f"{checkpoint} needs {module}.{name}, which cannot be imported here: {e}.") from e
    if not (isinstance(method, type) and issubclass(method, Localizer)):
        raise CheckpointError(f"{checkpoint} names {module}.{name}, which is no Localizer.")
    warnings.filterwarnings("ignore", "Found keys that are in the model state dict but not in the checkpoint")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return method.load_from_checkpoint(checkpoint, map_location=device, weights_only=True).eval()
