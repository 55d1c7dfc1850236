"""Spaces in which sounds, words and pictures can be compared, frozen: Wav2CLIP, AudioCLIP, CLAP and ImageBind.

The open-vocabulary baselines ask them what sounds, or which region looks like the sound.
Every vector is of unit length, so a product is a cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.audioclip import AudioCLIP
from avloc.backbones.clap import CLAP
from avloc.backbones.clipseg import normalise
from avloc.backbones.imagebind import ImageBind
from avloc.backbones.openclip import OpenCLIP
from avloc.backbones.wav2clip import Statistics, Wav2CLIP
from avloc.weights import WeightError, WeightFile

__all__ = ["AudioCLIPSpace", "ClapSpace", "ImageBindSpace", "Space", "Wav2CLIPSpace"]

CROPS_AT_ONCE = 256


class Space(nn.Module):
    """Frozen towers into one space of D dimensions; always in eval mode.

    A subclass overrides those of `sound_embedding`, `text_embedding` and `picture_embedding` that it has towers for.

    Args:
        sample_rate: Hz.
        seconds: how much sound it hears at once.
        image_size: side of the square crops in pixels; 0 if it does not look.
        width: D.
        files: its weight files by the name of the tower.
    """

    def __init__(
        self, sample_rate: int, seconds: float, image_size: int, width: int, files: dict[str, WeightFile]
    ) -> None:
        super().__init__()
        self.sample_rate, self.seconds, self.image_size = sample_rate, seconds, image_size
        self.width, self.files = width, files

    def train(self, mode: bool = True) -> Space:
        """Frozen towers stay in eval mode: some have batch norms."""
        return super().train(False)

    def frozen(self) -> Space:
        """No parameter asks for a gradient, nothing is in train mode."""
        return self.requires_grad_(False).eval()

    @torch.no_grad()
    def hear(self, audio: Tensor) -> Tensor:
        """Unit embeddings of sounds.

        Args:
            audio: floating point ``[B, T]`` mono in [-1, 1] at `sample_rate`. A wrong rate cannot be seen here.

        Returns:
            float32 ``[B, D]``.

        Raises:
            ValueError: the waveform is not ``[B, T]``, or too short or too long for the tower.
        """
        if audio.ndim != 2:
            raise ValueError(f"{type(self).__name__} hears mono waveforms [B, T]; got {list(audio.shape)}.")
        return F.normalize(self.sound_embedding(audio).float(), dim=-1)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings of texts as they are; how a class is worded is the caller's.

        Returns:
            float32 ``[N, D]``.

        Raises:
            ValueError: the space cannot read, there is no text, or one is too long for the tower.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"{type(self).__name__} reads a list of at least one text; got {texts!r}.")
        return F.normalize(self.text_embedding(list(texts)).float(), dim=-1)

    @torch.no_grad()
    def look(self, crops: Tensor) -> Tensor:
        """Unit embeddings of crops.

        Args:
            crops: uint8 ``[N, 3, S, S]`` with S = `image_size`; N may be 0.

        Returns:
            float32 ``[N, D]``.

        Raises:
            ValueError: the space cannot look, or the crops are of another size or type.
        """
        name, side = type(self).__name__, self.image_size
        if not side:
            raise ValueError(f"{name} hears and reads, it cannot look. Use a space with an image tower.")
        if crops.dtype != torch.uint8 or crops.ndim != 4 or crops.shape[1:] != (3, side, side):
            raise ValueError(
                f"{name} looks at uint8 crops [N, 3, {side}, {side}]; got {crops.dtype} {list(crops.shape)}. "
                "Resize them."
            )
        if not len(crops):  # which not every tower takes
            return torch.zeros(0, self.width, device=crops.device)
        parts = [self.picture_embedding(normalise(part)).float() for part in crops.split(CROPS_AT_ONCE)]
        return F.normalize(torch.cat(parts), dim=-1)

    def sound_embedding(self, audio: Tensor) -> Tensor:
        """Of any length, ``[B, D]``, of waveforms ``[B, T]``."""
        raise ValueError(f"{type(self).__name__} cannot hear. Use a space with an audio tower.")

    def text_embedding(self, texts: list[str]) -> Tensor:
        """Of any length, ``[N, D]``."""
        raise ValueError(f"{type(self).__name__} cannot read. Use a space with a text tower.")

    def picture_embedding(self, pixels: Tensor) -> Tensor:
        """Of any length, ``[N, D]``, of pictures with CLIP's mean and deviation (see `normalise`)."""
        raise ValueError(f"{type(self).__name__} cannot look. Use a space with an image tower.")


class ThreeTowers(Protocol):
    """A model that hears, reads and looks (`AudioCLIP`, `ImageBind`)."""

    file: WeightFile
    config: Any

    @property
    def width(self) -> int: ...

    def encode_audio(self, waveform: Tensor) -> Tensor: ...

    def tokenize(self, texts: list[str]) -> Tensor: ...

    def encode_text(self, ids: Tensor) -> Tensor: ...

    def encode_image(self, pixels: Tensor) -> Tensor: ...


class ThreeTowerSpace(Space):
    """A space whose three towers are one model.

    Args:
        name: of the model among the weight files.
        towers: the model.
        seconds: as of `Space`.
    """

    def __init__(self, name: str, towers: ThreeTowers, seconds: float) -> None:
        rate, side = towers.config.audio.sample_rate, towers.config.vision.size
        super().__init__(rate, seconds, side, towers.width, {name: towers.file})
        self.towers = towers
        self.frozen()

    def sound_embedding(self, audio: Tensor) -> Tensor:
        return self.towers.encode_audio(audio)

    def text_embedding(self, texts: list[str]) -> Tensor:
        ids = self.towers.tokenize(texts)
        return self.towers.encode_text(ids.to(next(self.parameters()).device))

    def picture_embedding(self, pixels: Tensor) -> Tensor:
        return self.towers.encode_image(pixels)


class Wav2CLIPSpace(Space):
    """Wav2CLIP's ears beside the CLIP into whose space they hear.

    Args:
        weights: weight source of Wav2CLIP.
        clip: weight source of CLIP; ViT-B/32 by its width.
        statistics: see `avloc.backbones.wav2clip.Wav2CLIP`; ``clip`` keeps a sound apart from its batch.
        seconds: how much sound it hears at once; 10 in its pre-training.

    Raises:
        WeightError: a missing file, or a CLIP of another width.
    """

    def __init__(
        self,
        weights: str = "wav2clip",
        clip: str = "clip_vit_b32",
        statistics: Statistics = "clip",
        seconds: float = 10.0,
    ) -> None:
        ears, eyes = Wav2CLIP.from_source(weights, statistics), OpenCLIP.from_source(clip)
        files = {"wav2clip": ears.file, "clip": eyes.file}
        super().__init__(ears.config.sample_rate, seconds, eyes.image_size, ears.width, files)
        if eyes.width != ears.width:
            raise WeightError(
                f"{clip} has embeddings of {eyes.width}, {weights} hears into {ears.width}. Wav2CLIP's CLIP is "
                "ViT-B/32."
            )
        self.ears, self.clip = ears, eyes
        self.frozen()

    def sound_embedding(self, audio: Tensor) -> Tensor:
        return self.ears(audio)

    def text_embedding(self, texts: list[str]) -> Tensor:
        return self.clip.encode_text(self.clip.tokenize(texts))

    def picture_embedding(self, pixels: Tensor) -> Tensor:
        return self.clip.encode_image(pixels)


class AudioCLIPSpace(ThreeTowerSpace):
    """AudioCLIP's three towers.

    Args:
        weights: weight source.
        seconds: how much sound it hears at once; 5 in its training on ESC-50.

    Raises:
        WeightError: a missing file, or no AudioCLIP.
    """

    def __init__(self, weights: str = "audioclip_full", seconds: float = 5.0) -> None:
        super().__init__("audioclip", AudioCLIP.from_source(weights), seconds)


class ClapSpace(Space):
    """CLAP, which hears and reads.

    Args:
        weights: weight source; the unfused LAION model of Wu et al. is the suite's choice, the paper names no file.
        seconds: how much sound it hears at once, at most what its feature extractor takes; None for that (10).

    Raises:
        WeightError: a missing file, or no CLAP.
        ValueError: more seconds than it can take.
    """

    def __init__(self, weights: str = "hf:laion/clap-htsat-unfused", seconds: float | None = None) -> None:
        towers = CLAP.from_source(weights)
        longest = towers.frontend.samples / towers.sample_rate
        if seconds is not None and seconds > longest:
            raise ValueError(f"{weights} hears {longest:g} s at once, not {seconds:g}. Lower seconds.")
        files = {"clap": towers.file}
        super().__init__(towers.sample_rate, longest if seconds is None else seconds, 0, towers.width, files)
        self.towers = towers
        self.frozen()

    def sound_embedding(self, audio: Tensor) -> Tensor:
        return self.towers.encode_audio(audio)

    def text_embedding(self, texts: list[str]) -> Tensor:
        return self.towers.encode_text(texts)


class ImageBindSpace(ThreeTowerSpace):
    """ImageBind's vision, audio and text towers.

    Args:
        weights: weight source.
        seconds: how much sound it is given; of it the tower hears three pieces of two seconds, evenly spaced.

    Raises:
        WeightError: a missing file, or no ImageBind.
    """

    def __init__(self, weights: str = "imagebind", seconds: float = 10.0) -> None:
        super().__init__("imagebind", ImageBind.from_source(weights), seconds)
