"""GAVS (Wang et al.: "Prompting Segmentation with Sound Is Generalizable Audio-Visual Source Localizer", AAAI 2024)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from avloc.backbones.sam import PIXEL_MEAN, PIXEL_STD, SAM
from avloc.backbones.vggish import VGGish
from avloc.methods.base import Localizer
from avloc.methods.gavs.losses import Objective, alignment
from avloc.methods.gavs.network import DESIGNS, Design, DesignName, GAVSNetwork, by_frame
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import locate

__all__ = ["GAVS"]


class GAVS(Localizer):
    """A frozen SAM whose mask decoder is asked by one second of sound. Learns from masks.

    Needs ``AVBatch.truth`` in training (``data.truth: true``). A batch is frames, of one video or of many. The
    picture's side is SAM's own (1024 for the official files).

    Args:
        sam: weight source of the segmenter: ``sam_vit_b``, ``sam_vit_l``, ``sam_vit_h``, ``world:sam``.
        vggish: weight source of the audio tower.
        design: ``published``, ``released``, ``audio_sam``, ``sam_fusion``, or the parts one by one.
        tune_v: first block of the image encoder with an adapter (9 in both released scripts); None for none.
        objective: mask loss; weight and margin of the alignment, which needs a design with a visual cue.
        seconds: length of a frame's sound; several VGGish examples are averaged.
        heatmap_size: side of the heat map where there is no ground truth; else it has the size of the truth.
        chunk: frames whose masks are at full size together.
        optimizer: see `Localizer`. Released: AdamW, learning rate 1e-3, weight decay 0.01.
        training: other options of `Localizer`. Released: no schedule.

    Stored features (``avloc store``, ``data.stored: true``) replace `frozen`: the image encoder's frozen part does not
    run then.

    Raises:
        ValueError: the sound is shorter than one VGGish example.
        WeightError: a file is missing, damaged, or of another model or size.
    """

    not_stored: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        sam: str = "sam_vit_b",
        vggish: str = "vggish",
        design: DesignName | Design = "published",
        tune_v: int | None = 9,
        objective: Objective = Objective(),  # noqa: B008  frozen
        seconds: float = 1.0,
        heatmap_size: int = 224,
        chunk: int = 8,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        **training: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **training)
        self.objective, self.heatmap_size, self.chunk = objective, heatmap_size, chunk
        segmenter, self.vggish = SAM.from_source(sam), VGGish.from_source(vggish)
        self.frozen_files = {"sam": segmenter.file, "vggish": locate(vggish)}
        self.input_spec = InputSpec(
            image_size=segmenter.config.image_size,
            resize="pad",
            interpolation="bilinear",
            seconds=seconds,
            window="frame",
        )
        ears = self.vggish.front_end
        if not ears.examples(self.input_spec.samples):
            raise ValueError(
                f"GAVS: {seconds:g} s of sound are shorter than one VGGish example "
                f"({ears.samples(1) / ears.sample_rate:g} s). Set seconds to 1 or more."
            )
        design = design if isinstance(design, Design) else DESIGNS[design]
        self.network = GAVSNetwork(segmenter, design, tune_v=tune_v, audio_size=self.vggish.embedding_size)

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """``mask``, ``align`` where there is a visual cue and a weight, and their weighted sum ``loss``.

        ``mask`` is the mean over frames of the loss at the truth's size, against the union of the sources.

        Raises:
            ValueError: the batch has no truth.
        """
        if batch.truth is None:
            raise ValueError(
                f"GAVS learns from masks, but the batch of {', '.join(batch.key[:3])}, ... has no truth. Set "
                "data.truth to true and train on a set with masks."
            )
        audio = self.hear(batch.audio)
        logits, cue = self.network.decode(self.see(batch), audio)
        union = (batch.truth.amax(1, keepdim=True) >= 0.5).float()
        terms = {"mask": self.frame_losses(logits, union, batch).mean()}
        loss, weight = terms["mask"], self.objective.lambda_align
        if cue is not None and weight:
            terms["align"] = alignment(cue, audio, batch.video or batch.key, self.objective.margin)
            loss = loss + weight * terms["align"]
        return terms | {"loss": loss}

    def frame_losses(self, logits: Tensor, target: Tensor, batch: AVBatch) -> Tensor:
        """Mask loss ``[B]`` of low-resolution logits ``[B, 1, 4g, 4g]`` at the size of ``target`` ``[B, 1, H, W]``."""
        upscale, objective = self.network.model_v.upscale, self.objective

        def losses(z: Tensor, t: Tensor, size: tuple[int, int]) -> Tensor:
            return by_frame(lambda z, t: objective.frames(upscale(z, size, size_of(t)), t), z, t, self.chunk)

        return by_size(losses, logits, target, batch)

    def localize(self, batch: AVBatch) -> Localization:
        """One source a frame: AVSBench's mask is ``heatmap > 0.5``, the release's ``> 0.4``.

        The confidence is the map's largest value. (SAM's own predicted IoU judges a mask, not whether it sounds.)
        """
        grid = (self.heatmap_size, self.heatmap_size) if batch.truth is None else size_of(batch.truth)
        upscale = self.network.model_v.upscale

        def maps(z: Tensor, _: Tensor, size: tuple[int, int]) -> Tensor:
            return by_frame(lambda z, _: upscale(z, size, grid).sigmoid(), z, z, self.chunk)

        with torch.no_grad():
            logits, _ = self.network.decode(self.see(batch), self.hear(batch.audio))
            heatmap = by_size(maps, logits, logits, batch)
        return Localization(heatmap, heatmap.amax((-1, -2)))

    def hear(self, audio: Tensor) -> Tensor:
        """F_A ``[B, 128]`` of waveforms ``[B, T]``: the mean of VGGish's raw examples, without gradient."""
        with torch.no_grad():
            return self.vggish(audio).mean(1)

    def see(self, batch: AVBatch) -> Tensor:
        """F_V ``[B, D, g, g]``; its frozen part comes from the store where there is one."""
        frozen = batch.stored["frozen"].float() if batch.stored else self.frozen(batch)
        return self.network.encode_rest(frozen)

    def frozen(self, batch: AVBatch) -> Tensor:
        """What never changes in training, and may be stored under `cache_key`: see `GAVSNetwork.encode_frozen`."""
        pictures: Tensor | list[Tensor] = batch.image
        if batch.size is not None:  # SAM pads after it normalised, so the padding must not be normalised
            pictures = [x[:, :h, :w] for x, (h, w) in zip(batch.image, batch.size.tolist(), strict=True)]
        return self.network.encode_frozen(self.network.prepare(pictures))

    def cache_key(self) -> str:
        """sha256 of all that `frozen` depends on beside the picture: weights and preprocessing."""
        net, spec = self.network, self.input_spec
        frozen = (spec.image_size, spec.resize, spec.interpolation, net.design.channels, PIXEL_MEAN, PIXEL_STD)
        digest = hashlib.sha256(repr((frozen, net.frozen_part)).encode())
        for name, value in sorted(net.model_v.image_encoder.state_dict().items()):
            if net.is_below_adapters(name):
                digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def by_size(
    function: Callable[[Tensor, Tensor, tuple[int, int]], Tensor], logits: Tensor, targets: Tensor, batch: AVBatch
) -> Tensor:
    """Apply ``function`` (logits, targets, size of the pictures) to the frames of each picture size together."""
    if batch.size is None:
        return function(logits, targets, size_of(batch.image))
    sizes, group = batch.size.unique(dim=0, return_inverse=True)
    rows = [(group == i).nonzero()[:, 0] for i in range(len(sizes))]
    parts = [function(logits[r], targets[r], (h, w)) for r, (h, w) in zip(rows, sizes.tolist(), strict=True)]
    return torch.cat(parts)[torch.cat(rows).argsort()]


def size_of(image: Tensor) -> tuple[int, int]:
    """Height and width."""
    return image.shape[-2], image.shape[-1]
