"""SOUPLE: learnable, image-conditioned prompt tokens in front of the audio token."""

from avloc.methods.souple.method import SOUPLE

__all__ = ["SOUPLE"]
