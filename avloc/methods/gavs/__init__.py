"""GAVS: SAM's mask decoder prompted by sound."""

from avloc.methods.gavs.method import GAVS

__all__ = ["GAVS"]
