"""The embedded world: a procedural audio-visual data set, and tiny backbones that know it."""

from avloc.world.dataset import SPLITS, ensure, write_world

__all__ = ["SPLITS", "ensure", "write_world"]
