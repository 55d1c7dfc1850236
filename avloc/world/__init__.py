"""The embedded world: a procedural audio-visual data set, and tiny backbones that know it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avloc.world.dataset import SPLITS, ensure, write_world

__all__ = ["SPLITS", "ensure", "write_world"]


def __getattr__(name: str) -> Any:  # the command's help comes without torch
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from avloc.world import dataset

    return getattr(dataset, name)
