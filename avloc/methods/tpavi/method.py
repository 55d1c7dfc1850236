"""TPAVI, the supervised baseline of AVSBench (Zhou et al.: "Audio-Visual Segmentation", ECCV 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from avloc.backbones.vggish import VGGish
from avloc.methods.base import Localizer
from avloc.methods.tpavi.losses import Objective
from avloc.methods.tpavi.network import (
    Segmentation,
    TPAVINetwork,
    build_encoder,
    encoder_keys,
    normalise,
    official_keys,
)
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import load_into, locate, read_state

__all__ = ["TPAVI"]


class TPAVI(Localizer):
    """A trained encoder and decoder whose four scales listen to frozen VGGish. Learns from masks.

    Needs ``AVBatch.truth`` in training (``data.truth: true``), or ``AVBatch.semantic`` with several classes.

    Args:
        encoder: timm name: ``resnet50`` or ``pvt_v2_b5`` in AVSBench.
        encoder_options: see `avloc.methods.tpavi.network.build_encoder`.
        encoder_weights: weight source to start the encoder from; ``random`` for none.
        vggish: weight source of the frozen audio tower.
        checkpoint: weight source of an official AVSBench checkpoint to start from.
        objective: weight and reading of the matching term.
        channels: width of the decoder.
        head: widths of its last convolutions.
        stages: scales at which the sound enters, 1 (stride 4) to 4 (stride 32); none for a deaf network.
        classes: 1 for a binary mask, else the number of classes including the background 0.
        image_size: side of the picture in pixels, a multiple of 32.
        frames: frames of a video that are segmented together: 5 on S4 and MS3, 10 on the V2 part of
            AVSBench-semantic. Every frame is a row of the batch (`InputSpec.clip`), supervised where it is annotated
            (the first alone in S4's training), and answered. 1 sees every frame alone.
        short_clips: let a video of fewer frames be a shorter clip (AVSBench-semantic as a whole has 5 and 10; the
            release fills up with black frames [choice]); False makes it a broken one.
        seconds: of sound that a frame hears, the stretch that it was taken in, 1 by default: the mean of the VGGish
            examples.
        training: options of `Localizer`.

    Raises:
        ValueError: the sizes do not fit each other.
        WeightError: a file is missing, damaged, or of another model.
    """

    not_stored: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        encoder: str = "resnet50",
        encoder_options: dict[str, Any] | None = None,
        encoder_weights: str = "resnet50",
        vggish: str = "vggish",
        checkpoint: str | None = None,
        objective: Objective = Objective(),  # noqa: B008  frozen
        channels: int = 256,
        head: tuple[int, int] = (128, 32),
        stages: tuple[int, ...] = (1, 2, 3, 4),
        classes: int = 1,
        image_size: int = 224,
        frames: int = 1,
        short_clips: bool = False,
        seconds: float | None = None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.input_spec = InputSpec(
            image_size=image_size,
            interpolation="bilinear",
            seconds=1.0 if seconds is None else seconds,
            window="frame",
            clip=frames,
            short_clips=short_clips,
        )
        self.objective = objective
        self.vggish = VGGish.from_source(vggish)
        self.frozen_files = {"vggish": locate(vggish)}
        self.check_sizes()
        body = build_encoder(encoder, encoder_options)
        if path := locate(encoder_weights).path:
            load_into(body, encoder_keys(read_state(path)), str(path))
        self.network = TPAVINetwork(
            body,
            sound_size=self.vggish.embedding_size,
            channels=channels,
            head=head,
            stages=stages,
            classes=classes,
        )
        if checkpoint is not None and (path := locate(checkpoint).path):
            load_into(self.network, official_keys(read_state(path)), str(path))

    def check_sizes(self) -> None:
        spec = self.input_spec
        if spec.image_size % 32:
            raise ValueError(f"TPAVI: image_size {spec.image_size} is no multiple of 32. AVSBench uses 224.")
        ears = self.vggish.front_end
        if not ears.examples(spec.samples):
            raise ValueError(
                f"TPAVI: {spec.seconds:g} s of sound are shorter than one VGGish example "
                f"({ears.samples(1) / ears.sample_rate:g} s). Set seconds to 1 or more."
            )

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """``bce`` (``ce`` with several classes), ``avm`` where it is weighted, and their weighted sum ``loss``.

        Raises:
            ValueError: the batch has no truth.
        """
        several = self.hparams["classes"] > 1
        target = batch.semantic if several else batch.truth
        if target is None:
            raise ValueError(
                f"TPAVI learns from masks, but the batch of {', '.join(batch.key[:3])}, ... has no "
                f"{'semantic map' if several else 'truth'}. Set data.truth to true and train on a set with masks."
            )
        return self.objective(self.segment(batch), target if several else target.amax(1), batch.annotated)

    def localize(self, batch: AVBatch) -> Localization:
        """The map of each frame: AVSBench's mask is ``heatmap > 0.5``. The confidence is its largest value.

        With several classes the map is the probability of not being background.
        """
        logits = self.segment(batch).logits[:, 0].float()
        if logits.shape[1] == 1:
            heatmap, semantic = logits.sigmoid(), None
        else:
            heatmap, semantic = 1 - logits.softmax(1)[:, :1], logits.argmax(1)
        return Localization(heatmap, heatmap.amax((-1, -2)), semantic=semantic)

    def segment(self, batch: AVBatch) -> Segmentation:
        """Every row as a clip of one frame, ``[B, 1, ...]``, which interacts with the rows of its clip."""
        return self.network(normalise(batch.image[:, None]), self.hear(batch.audio)[:, None], batch.clip)

    def hear(self, audio: Tensor) -> Tensor:
        """The sound of each frame, ``[B, D]``, of waveforms ``[B, T]``: the mean of their examples."""
        with torch.no_grad():
            return self.vggish(audio).mean(1)
