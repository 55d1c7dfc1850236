"""Exported folders: a method as two files that anybody can read, ``config.json`` and ``model.safetensors``.

The tensors are what was learned; frozen towers are named in the settings with the digest of their file, and come from
there. Another layout gets another ``version``, and a reader refuses versions that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from avloc.bounds import parsed_json
from avloc.files import write_whole
from avloc.methods.base import Localizer
from avloc.methods.checkpoint import IDENTITY, CheckpointError
from avloc.methods.load import method_of

__all__ = ["CONFIG", "KIND", "TENSORS", "VERSION", "is_exported", "load_exported", "read_config", "write_exported"]

CONFIG, TENSORS = "config.json", "model.safetensors"
KIND, VERSION = "avloc export", 1
BUILT_WITH = ("arguments", "configured")


def write_exported(head: Mapping[str, Any], folder: Path, about: Mapping[str, Any]) -> None:
    """Write both files.

    Args:
        head: of a checkpoint (`avloc.methods.checkpoint.read_checkpoint`).
        folder: made where it is not there.
        about: what else ``config.json`` tells.

    Raises:
        CheckpointError: the method was built in Python, of objects that JSON cannot hold.
    """
    identity = {k: v for k, v in head[IDENTITY].items() if k not in BUILT_WITH}
    known = {k: head[IDENTITY].get(k) for k in BUILT_WITH} | {"hyper_parameters": head.get("hyper_parameters") or None}
    kept = {k: v for k, v in known.items() if v is not None and is_json(v)}
    if not kept and any(v is not None for v in known.values()):
        raise CheckpointError(
            f"{identity['method']} was built in Python, of objects that {CONFIG} cannot hold. Train it by avloc fit, "
            "whose YAML says what it is built of."
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in head["state_dict"].items()}
    write_whole(folder / TENSORS, save(tensors, {"format": "pt", "avloc": f"{KIND} {VERSION}"}))
    content = {"format": KIND, "version": VERSION, **about, "identity": identity, "built_with": kept}
    write_whole(folder / CONFIG, json.dumps(content, indent=1, allow_nan=False) + "\n")


def is_json(value: Any) -> bool:
    """Whether JSON gives it back as it was, but for tuples, which become lists."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and is_json(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_json, value))
    return value is None or type(value) in (bool, int, str) or (type(value) is float and value - value == 0)


def is_exported(folder: Path) -> bool:
    """Whether a folder says of itself that it is one, of whatever version."""
    try:
        content = parsed_json((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == KIND


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of an exported folder.

    Raises:
        CheckpointError: it is missing, damaged, something else's, or of another version.
    """
    path = folder / CONFIG
    try:
        content = parsed_json(path.read_bytes())
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} cannot be read ({e}). Export the run again, or get the folder again.") from e
    if not isinstance(content, dict) or content.get("format") != KIND:
        raise CheckpointError(f"{path} was not written by avloc export: its format is no {KIND!r}.")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{folder} was exported in version {content.get('version')!r} of the format, and this avloc reads version "
            f"{VERSION}. Update avloc, or export the run again with this one."
        )
    if not isinstance(content.get("identity"), dict) or not isinstance(content.get("built_with"), dict):
        raise CheckpointError(f"{path} is damaged: it does not say what method it is of. Get the folder again.")
    return content


def load_exported(folder: Path, device: str | torch.device | None = None) -> tuple[Localizer, dict[str, Any]]:
    """The method of an exported folder, in eval mode, and what ``config.json`` says.

    Args:
        folder: as `write_exported` made it.
        device: where to put it; a GPU if there is one by default.

    Raises:
        CheckpointError: see `read_config`; or the tensors are missing, damaged or of another method.
        WeightError: a frozen tower's file is missing; the message says how it comes.
    """
    content, path = read_config(folder), folder / TENSORS
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError) as e:
        raise CheckpointError(f"{path} cannot be read ({e}). Export the run again, or get the folder again.") from e
    built = content["built_with"]
    identity = content["identity"] | {k: built.get(k) for k in BUILT_WITH}
    head = {IDENTITY: identity, "hyper_parameters": built.get("hyper_parameters") or {}, "state_dict": tensors}
    return method_of(head, folder, device), content
