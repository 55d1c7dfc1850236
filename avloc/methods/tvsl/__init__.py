"""T-VSL: text-guided localisation in mixtures."""

from avloc.methods.tvsl.method import TVSL

__all__ = ["TVSL"]
