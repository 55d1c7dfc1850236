"""AudioCLIP and Wav2CLIP: how alike is each patch of the picture to the sound?

The baselines of T-VSL's tables, of which its article says that the pre-trained image and audio encoders are fine-tuned
on the target set, and no more: here by pairs of pictures and sounds alone. Untrained they are rows of their own, and so
is a layer behind each of the frozen towers.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from avloc.backbones.audioclip import AudioCLIP, Positions
from avloc.backbones.clipseg import normalise
from avloc.backbones.openclip import OpenCLIP
from avloc.backbones.wav2clip import Statistics, Wav2CLIP
from avloc.data.mixing import mix_at_random, range_of
from avloc.methods.base import Localizer
from avloc.methods.losses import symmetric_infonce
from avloc.methods.maps import Transform, transformed
from avloc.metrics.maps import minmax
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import WeightError, WeightFile, locate

__all__ = ["AudioCLIPTowers", "PatchSimilarity", "draw"]


class Towers(nn.Module):
    """An image and an audio tower into one space of D dimensions.

    They are always in eval mode, also where they learn: batch norms keep the statistics of their pre-training (their
    factors and offsets learn), so a step does not depend on how a batch is spread over processes, and what is
    tested is what was trained. (Choice: the article does not say.)
    """

    width: int
    sample_rate: int
    image_size: int
    files: dict[str, WeightFile]

    def train(self, mode: bool = True) -> Towers:
        return super().train(False)

    def encoders(self) -> list[nn.Module]:
        """What fine-tuning trains; text towers are no part of it."""
        raise NotImplementedError

    def see(self, image: Tensor) -> Tensor:
        """Patches ``[B, D, h, w]`` of pictures or rows of pictures uint8 ``[B, 3, H, W]``."""
        raise NotImplementedError

    def hear(self, audio: Tensor) -> Tensor:
        """Embeddings ``[B, D]`` of waveforms ``[B, T]``."""
        raise NotImplementedError


class AudioCLIPTowers(Towers):
    """AudioCLIP's picture tokens and sound embedding.

    Args:
        weights: weight source.
        positions: of picture tokens, see `avloc.backbones.audioclip.ImageTower.tokens`.
    """

    def __init__(self, weights: str, positions: Positions) -> None:
        super().__init__()
        self.clip, self.positions = AudioCLIP.from_source(weights), positions
        self.width, self.sample_rate = self.clip.width, self.clip.config.audio.sample_rate
        self.image_size = self.clip.config.image.size
        self.files = {"audioclip": self.clip.file}

    def encoders(self) -> list[nn.Module]:
        """The kernels of the spectrogram stay as they are: AudioCLIP learns them under a regulariser of its own."""
        return [self.clip.visual, *(m for name, m in self.clip.audio.named_children() if name != "fbsp")]

    def see(self, image: Tensor) -> Tensor:
        """Patches ``[B, D, h, w]`` of pictures or rows of pictures uint8 ``[B, 3, H, W]``."""
        grid = self.clip.visual.grid(image.shape[-2], image.shape[-1])
        return self.clip.image_tokens(normalise(image), self.positions).mT.unflatten(2, grid)

    def hear(self, audio: Tensor) -> Tensor:
        """Embeddings ``[B, D]`` of waveforms ``[B, T]``."""
        return self.clip.encode_audio(audio)


class Wav2CLIPTowers(Towers):
    """Wav2CLIP's sound embedding, and the patches of the CLIP (a ViT of its width) into whose space it hears.

    Args:
        weights, clip: as of `avloc.methods.baselines.spaces.Wav2CLIPSpace`.
        statistics: see `avloc.backbones.wav2clip.Wav2CLIP`.

    Raises:
        WeightError: a missing file, or a CLIP of another width or without patches.
    """

    def __init__(self, weights: str, clip: str, statistics: Statistics) -> None:
        super().__init__()
        self.ears, self.clip = Wav2CLIP.from_source(weights, statistics), OpenCLIP.from_source(clip)
        self.width, self.sample_rate = self.ears.width, self.ears.config.sample_rate
        self.image_size = self.clip.image_size
        self.files = {"wav2clip": locate(weights), "clip": self.clip.file}
        visual = self.clip.clip.visual
        if not isinstance(visual, VisionTransformer) or self.clip.width != self.width:
            raise WeightError(
                f"{clip} is no ViT with embeddings of {self.width}, into which {weights} hears. Wav2CLIP's is ViT-B/32."
            )
        visual.output_tokens = True

    def encoders(self) -> list[nn.Module]:
        return [self.clip.clip.visual, self.ears]

    def see(self, image: Tensor) -> Tensor:
        """Patches ``[B, D, h, w]`` of pictures, or of rows of them, which the ViT sees one by one."""
        side, visual = self.image_size, self.clip.clip.visual
        if image.shape[-2] != side or image.shape[-1] % side:
            raise ValueError(
                f"Wav2CLIP's CLIP sees {side} x {side} pixels, or several in a row; got {image.shape[-2]} x "
                f"{image.shape[-1]}. Set image_size to {side}."
            )
        tiles = torch.cat(normalise(image).split(side, dim=-1))
        _, tokens = visual(tiles)
        tokens = tokens @ visual.proj  # behind the last norm, as the class token is
        grid = round(tokens.shape[1] ** 0.5)
        return torch.cat(tokens.mT.unflatten(2, (grid, grid)).split(len(image)), dim=-1)

    def hear(self, audio: Tensor) -> Tensor:
        """Embeddings ``[B, D]`` of waveforms ``[B, T]``."""
        return self.ears(audio)


class PatchSimilarity(Localizer):
    """Cosine of the sound with each patch, for pictures and rows of pictures; one map whatever sounds.

    Args:
        audioclip: weight source of AudioCLIP; None to use Wav2CLIP.
        wav2clip: weight source of Wav2CLIP, which hears into the space of ``clip``.
        clip: weight source of its CLIP, a ViT of its width (ViT-B/32); None with AudioCLIP.
        positions: of AudioCLIP's picture tokens, see `avloc.backbones.audioclip.ImageTower.tokens`.
        statistics: see `avloc.backbones.wav2clip.Wav2CLIP`.
        tuning: what learns by InfoNCE of each sound with its picture's most similar patch among the pictures of its
            batch. ``none``: nothing, zero-shot. ``full``: both encoders (the article's words); the text tower is no
            part. ``linear``: a layer behind each frozen tower, initially the identity (ours).
        transform: of the cosines before they are resized, see `avloc.methods.maps.transformed` (ours).
        tau: temperature of that loss.
        mixed: training mixtures, see `avloc.methods.tvsl.TVSL`; 1 for none.
        seconds: length of the sound, the middle of the clip.
        heatmap_size: height of the maps.
        training: options of `Localizer`.

    Raises:
        ValueError: neither of the two, or parts of both; or a mixture of less than one sample.
        WeightError: a file is missing, damaged, or of another model.
    """

    not_stored: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        audioclip: str | None = "audioclip_full",
        wav2clip: str | None = None,
        clip: str | None = None,
        positions: Positions = "grid",
        statistics: Statistics = "clip",
        tuning: Literal["none", "full", "linear"] = "none",
        transform: Transform = "none",
        tau: float = 0.07,
        mixed: int | tuple[int, int] = 1,
        seconds: float = 5.0,
        heatmap_size: int = 224,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        if (audioclip is None) == (wav2clip is None) or (wav2clip is None) != (clip is None):
            raise ValueError(
                "PatchSimilarity listens with audioclip, or with wav2clip and its clip: set the others to null."
            )
        towers: Towers
        if audioclip is not None:
            towers = AudioCLIPTowers(audioclip, positions)
        else:
            assert wav2clip is not None
            assert clip is not None
            towers = Wav2CLIPTowers(wav2clip, clip, statistics)
        self.towers, self.tuning, self.tau, self.mixed = towers, tuning, tau, range_of(mixed)
        self.transform, self.heatmap_size = transform, heatmap_size
        if tuning == "full":
            for encoder in towers.encoders():
                encoder.requires_grad_()
        self.frozen_files = towers.files
        self.input_spec = InputSpec(
            image_size=towers.image_size,
            train_scale=1.1,
            train_flip=0.5,
            sample_rate=towers.sample_rate,
            seconds=seconds,
            window="centre",
            pad="tile",
            duet="wide",
        )
        self.seen, self.heard = (identity(towers.width) if tuning == "linear" else nn.Identity() for _ in range(2))

    def tokens(self, batch: AVBatch) -> tuple[Tensor, Tensor]:
        """Unit patches ``[B, D, h, w]`` and unit sounds ``[B, D]``, float32."""
        with torch.set_grad_enabled(self.tuning == "full" and torch.is_grad_enabled()):
            patches, sound = self.towers.see(batch.image).float(), self.towers.hear(batch.audio).float()
        patches = self.seen(patches.movedim(1, -1)).movedim(-1, 1)
        return F.normalize(patches.float(), dim=1), F.normalize(self.heard(sound).float(), dim=1)

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """``loss``, the symmetric InfoNCE of sounds and pictures.

        Raises:
            TypeError: there is nothing to tune.
        """
        if self.tuning == "none":
            return super().training_losses(batch)
        batch = mix_at_random(batch, *self.mixed)
        patches, sound = self.tokens(batch)
        with torch.autocast(sound.device.type, enabled=False):
            similarity = torch.einsum("adn,bd->ban", patches.flatten(2), sound).amax(2)
            return {"loss": symmetric_infonce(similarity / self.tau)}

    def localize(self, batch: AVBatch) -> Localization:
        """One min-max normalised map a sample, bilinear; the confidence is its largest cosine."""
        with torch.no_grad():
            patches, sound = self.tokens(batch)
            cosine = torch.einsum("bdhw,bd->bhw", patches, sound)[:, None]
            maps = draw(transformed(cosine, self.transform), self.heatmap_size)
        return Localization(maps, cosine.amax((-1, -2)))


def draw(similarity: Tensor, height: int) -> Tensor:
    """Similarities ``[B, S, h, w]`` as min-max normalised maps of a height, bilinear."""
    size = height, height * similarity.shape[-1] // similarity.shape[-2]
    return minmax(F.interpolate(similarity, size, mode="bilinear", align_corners=False))


def identity(width: int) -> nn.Linear:
    layer = nn.Linear(width, width, bias=False)
    nn.init.eye_(layer.weight)
    return layer
