"""A trained method from its checkpoint alone."""

from __future__ import annotations

import importlib
import inspect
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from jsonargparse._common import parsing_settings

from avloc.errors import told_by
from avloc.methods.base import OF_TRAINING, Localizer
from avloc.methods.checkpoint import IDENTITY, CheckpointError, read_checkpoint, tensors_of
from avloc.plugins import VARIABLE, may_import, plugins

__all__ = ["load_method", "method_of", "read_checkpoint"]

ROOMS = ("avloc.methods", "avloc.backbones", "avloc.frontends", "avloc.data.mixing")
"""Where the parts of this package's methods are defined."""
LIGHTNINGS = ("_class_path", "_instantiator", *OF_TRAINING)
"""What a checkpoint's hyper-parameters say beside a method's arguments: its own class, and who builds it."""


def load_method(checkpoint: Path, device: str | torch.device | None = None) -> Localizer:
    """Rebuild the method that wrote a checkpoint, in eval mode.

    Args:
        checkpoint: written by `avloc fit`.
        device: where to put it; a GPU if there is one by default.

    Raises:
        CheckpointError: the file is missing, damaged, or not written by avloc; or its method, or a part of it at any
            depth, lies in a module that is neither the suite's nor a plugin's: a checkpoint's word alone runs no code.
            Or the checkpoint does not say what the method was built with.
    """
    return method_of(read_checkpoint(checkpoint), checkpoint, device)


def method_of(head: dict[str, Any], checkpoint: Path, device: str | torch.device | None = None) -> Localizer:
    """The same of what a checkpoint holds; ``checkpoint`` is its name in messages."""
    tensors = tensors_of(head)
    try:
        method = rebuild(head, checkpoint)
    except CheckpointError:
        raise
    except (ArgumentError, TypeError, KeyError, AttributeError, ValueError) as e:
        if told_by(e) is not None:  # what a method says of its own arguments
            raise
        why = (str(e).splitlines() or [""])[0]
        raise CheckpointError(f"{checkpoint} does not say how its method is built ({type(e).__name__}: {why}).") from e
    method.on_load_checkpoint(head)
    method.load_state_dict(tensors, strict=False)  # on_load_checkpoint is the strict one
    return method.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def rebuild(head: Mapping[str, Any], checkpoint: Path) -> Localizer:
    """The method of a checkpoint, untrained.

    What its class saved of its arguments (``save_hyperparameters``) counts before what it was built with: it leaves out
    on purpose what is needed for training alone.
    """
    about, saved = head[IDENTITY], head.get("hyper_parameters", {})
    told = {"hyper_parameters": saved} | {key: about.get(key) for key in ("configured", "arguments")}
    for key, value in told.items():
        if not (value is None or (isinstance(value, Mapping) and all(isinstance(k, str) for k in value))):
            raise CheckpointError(f"{checkpoint} is damaged: its {key} are no names with values.")
    saved = saved or {}
    name = str(about.get("method"))
    method = method_class(name, checkpoint)
    configured = "_instantiator" in saved or (not saved and about.get("configured") is not None)
    arguments = dict(saved or about.get("configured") or about.get("arguments") or {})
    if not saved and "arguments" in about and about.get("configured") is about["arguments"] is None:
        raise CheckpointError(
            f"{checkpoint} does not say what {name} was built with: it was built in Python, of objects that a "
            "checkpoint cannot hold. Build it so again and load the checkpoint into it, or train it by avloc fit."
        )
    arguments = {key: value for key, value in arguments.items() if key not in LIGHTNINGS}
    if not configured:
        parameters = inspect.signature(method).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            arguments = {key: value for key, value in arguments.items() if key in parameters}
        return method(**arguments)
    arguments = without_training(arguments)
    refuse_strangers(arguments, trusted(name), checkpoint)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Localizer, "method", fail_untyped=False)
    with no_imports_but(trusted(name) | {"torch.optim"}):  # where the defaults of OF_TRAINING are
        settings = parser.parse_object({"method": {"class_path": name, "dict_kwargs": arguments}})
        built: Localizer = parser.instantiate_classes(settings).method
    return built


def method_class(name: str, checkpoint: Path) -> type[Localizer]:
    """The class that a checkpoint names as its method's."""
    module, _, _ = name.rpartition(".")
    if not may_import(module):
        raise CheckpointError(
            f"{checkpoint} needs {name}, which is neither part of avloc nor a plugin, and is not imported on a "
            f"checkpoint's word. If you trust that module, name it: {VARIABLE}={module} before the command."
        )
    try:
        method = getattr(importlib.import_module(module), name.rpartition(".")[2])
    except (ImportError, AttributeError) as e:
        raise CheckpointError(f"{checkpoint} needs {name}, which cannot be imported here: {e}.") from e
    if not (isinstance(method, type) and issubclass(method, Localizer)):
        raise CheckpointError(f"{checkpoint} names {name}, which is no Localizer.")
    return method


def trusted(method: str) -> set[str]:
    """Modules and packages whose classes the parts of a method may be: its own, the suite's rooms, and plugins."""
    own = method.rpartition(".")[0]
    return {*ROOMS, *(own,) * (not own.startswith("avloc.")), *(name.partition(".")[0] for name in plugins())}


def refuse_strangers(settings: Any, allowed: set[str], checkpoint: Path) -> None:
    """Look through a checkpoint's settings, at any depth, for classes that it may not ask for.

    Raises:
        CheckpointError: there is one.
    """
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            known = isinstance(value, str) and any(f"{value}.".startswith(f"{part}.") for part in allowed)
            if key in ("class_path", "_class_path", "_instantiator") and not known:
                raise CheckpointError(
                    f"{checkpoint} asks for {value!r}, which is neither a part of avloc's methods nor a plugin's, and "
                    f"is not imported on a checkpoint's word. If you trust its module, name it: {VARIABLE}=MODULE "
                    "before the command."
                )
            refuse_strangers(value, allowed, checkpoint)
    elif isinstance(settings, list | tuple):
        for value in settings:
            refuse_strangers(value, allowed, checkpoint)


def without_training(settings: Any) -> Any:
    """Settings without optimisers and schedules, at any depth: nothing is trained."""
    if isinstance(settings, Mapping):
        return {key: without_training(value) for key, value in settings.items() if key not in OF_TRAINING}
    if isinstance(settings, list | tuple):
        return type(settings)(without_training(value) for value in settings)
    return settings


@contextmanager
def no_imports_but(allowed: set[str]) -> Iterator[None]:
    """Keep jsonargparse from importing anything else that settings name, in whatever place and form.

    Its public function can only add to the rules, for good; a user's own YAML must stay free.
    """
    before = dict(parsing_settings)
    rules = {"*": False} | dict.fromkeys(allowed, True)
    parsing_settings.update(
        import_path_verdicts=rules, import_paths_enforced=True, instantiate_subclass_spec_in_any=False
    )
    try:
        yield
    finally:
        parsing_settings.update(before)
