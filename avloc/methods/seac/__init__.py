"""SeAC: segment, associate, classify."""

from avloc.methods.seac.method import SeAC

__all__ = ["SeAC"]
