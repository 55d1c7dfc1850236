"""Sizes of ImageBind's towers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from avloc.backbones.tokens import TextConfig

__all__ = ["AudioConfig", "ImageBindConfig", "VisionConfig"]


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower; the defaults are imagebind_huge's.

    Args:
        size: side of the square picture, pixels.
        patch: side of a patch, pixels.
        frames: that a patch of video spans; a picture is repeated so often.
        width: of the transformer.
        layers: its blocks.
        heads: its attention heads.
    """

    size: int = 224
    patch: int = 14
    frames: int = 2
    width: int = 1280
    layers: int = 32
    heads: int = 16

    @property
    def tokens(self) -> int:
        """Patches of a picture."""
        return (self.size // self.patch) ** 2


@dataclass(frozen=True)
class AudioConfig:
    """Front end and sizes of the audio tower; the defaults are imagebind_huge's.

    Args:
        sample_rate: Hz.
        pieces: of a clip that are heard, evenly spaced.
        seconds: of a piece.
        mels: bands of the spectrogram.
        frames: of 10 ms, to which a piece's spectrogram is cut or padded with zeros.
        mean: subtracted from the padded spectrogram.
        std: its divisor.
        kernel: side of a patch, bands and frames.
        stride: from one patch to the next.
        width: of the transformer.
        layers: its blocks.
        heads: its attention heads.
        scale: fixed factor of the unit embeddings.
    """

    sample_rate: int = 16000
    pieces: int = 3
    seconds: float = 2.0
    mels: int = 128
    frames: int = 204
    mean: float = -4.268
    std: float = 9.138
    kernel: int = 16
    stride: int = 10
    width: int = 768
    layers: int = 12
    heads: int = 12
    scale: float = 20.0

    @property
    def tokens(self) -> int:
        """Patches of a piece."""
        return ((self.mels - self.kernel) // self.stride + 1) * ((self.frames - self.kernel) // self.stride + 1)


@dataclass(frozen=True)
class ImageBindConfig:
    """Sizes; the defaults are imagebind_huge's.

    Args:
        embed_dim: D, size of the joint embedding.
        vision: see `VisionConfig`.
        audio: see `AudioConfig`.
        text: see `avloc.backbones.tokens.TextConfig`.
    """

    embed_dim: int = 1024
    vision: VisionConfig = field(default_factory=VisionConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=partial(TextConfig, width=1024, heads=16, layers=24))

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> ImageBindConfig:
        """From what `dataclasses.asdict` gave."""
        towers = {"vision": VisionConfig, "audio": AudioConfig, "text": TextConfig}
        return cls(**{k: towers[k](**v) if k in towers else v for k, v in entries.items()})
