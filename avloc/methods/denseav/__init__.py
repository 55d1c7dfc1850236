"""DenseAV (Hamilton et al.: "Separating the Chirp from the Chat: Self-supervised Visual Grounding of Sound and
Language", CVPR 2024)."""

from avloc.methods.denseav.method import DenseAV

__all__ = ["DenseAV"]
