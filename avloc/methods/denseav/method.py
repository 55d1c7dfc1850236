"""DenseAV (Hamilton et al., CVPR 2024)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from avloc.backbones.dino import DINO
from avloc.backbones.hubert import HuBERT, standardised
from avloc.backbones.resnet import normalised
from avloc.errors import UsageError
from avloc.methods.base import Localizer
from avloc.methods.denseav.checkpoints import LORA_ALPHA, read_official
from avloc.methods.denseav.losses import Draws, Features, Objective
from avloc.methods.denseav.network import (
    HEARD,
    Aggregation,
    AlignerType,
    Calibration,
    DenseAVNetwork,
    prompted_maps,
    step_masks,
)
from avloc.methods.denseav.views import own_samples, quad_mixed, silenced, spliced
from avloc.methods.losses import gather_rows
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import WeightError, load_into, locate

__all__ = ["DenseAV"]

TARGET = "qkv"  # of the image tower's adapters


class DenseAV(Localizer):
    """A picture and a sound that belong together agree somewhere: the best place of each step, over time.

    Args:
        checkpoint: weight source of a release's checkpoint; None to train one. Its adapters are merged into the tower.
        image_weights: weight source of DINO (``dino_vits8``); not needed behind a checkpoint.
        audio_weights: weight source of HuBERT (``hf:facebook/hubert-large-ls960-ft``); not needed behind a checkpoint.
        image_tower: sizes of `DINO`, for another one than ViT-S/8.
        audio_tower: of `transformers.HubertConfig`, for another one than HuBERT-large.
        code_dim: width of the features.
        image_aligner, audio_aligner: see `avloc.methods.denseav.network.Aligner`.
        aggregation: heads, and how cells become a similarity.
        objective: terms and their weights.
        image_lora: rank of adapters on the image tower's attention, which then is frozen otherwise; None trains all of
            it. Needs peft (extra ``lora``).
        frozen_steps: optimiser steps in which no gradient reaches the towers.
        image_pool, audio_pool: places and steps that are averaged in training.
        splice: whether training puts another clip's sound into each; else positives are all.
        silence_share, quad_share: shares of sounds cut and of pictures laid beside others in training.
        negatives: of this process, or of all (released).
        clip: largest norm of each parameter's gradient; None for what the trainer does.
        image_size: side of the picture in pixels; a multiple of the patch.
        seconds: length of the sound; 10.2625 in the release for every data set.
        standardise: mean 0 and variance 1 of each sound as filled up; the release's demonstration leaves it out.
        heatmap_size: side of the heat map.
        training: options of `Localizer`.

    Raises:
        UsageError: ``image_lora`` without peft.
        WeightError: a file is missing, damaged, or of another model or size.
    """

    network: DenseAVNetwork
    # A rebuilt method is used, not trained on: its own checkpoint holds every tensor that these files would give.
    not_stored: ClassVar[tuple[str, ...]] = ("image_weights", "audio_weights", "checkpoint")

    def __init__(
        self,
        checkpoint: str | None = None,
        image_weights: str = "random",
        audio_weights: str = "random",
        image_tower: dict[str, int] | None = None,
        audio_tower: dict[str, Any] | None = None,
        code_dim: int = 384,
        image_aligner: AlignerType = "image_linear",
        audio_aligner: AlignerType = "audio_sa_3_3_pool_2",
        aggregation: Aggregation = Aggregation(),  # noqa: B008  frozen
        objective: Objective = Objective(),  # noqa: B008  frozen
        image_lora: int | None = None,
        frozen_steps: int = 3000,
        image_pool: int = 2,
        audio_pool: int = 1,
        splice: bool = True,
        silence_share: float = 0.5,
        quad_share: float = 0.1,
        negatives: Literal["local", "gathered"] = "gathered",
        clip: float | None = 10.0,
        image_size: int = 224,
        seconds: float = 10.2625,
        standardise: bool = True,
        heatmap_size: int = 224,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.input_spec = InputSpec(
            image_size=image_size,
            resize="crop",
            interpolation="bilinear",
            train_scale=256 / 224,
            train_flip=0.5,
            seconds=seconds,
            window="head",
            pad="zeros",
            channels="first",
        )
        self.aggregation, self.objective, self.clip = aggregation, objective, clip
        self.frozen_steps, self.pools, self.negatives = frozen_steps, (image_pool, audio_pool), negatives
        self.splice, self.silence_share, self.quad_share = splice, silence_share, quad_share
        self.standardise, self.heatmap_size = standardise, heatmap_size
        behind = checkpoint is not None
        self.network = DenseAVNetwork(
            DINO.from_source("random" if behind else image_weights, **(image_tower or {})),
            HuBERT.from_source("random" if behind else audio_weights, audio_tower),
            code_dim,
            image_aligner,
            audio_aligner,
            Calibration(objective.cal_init, bias=objective.loss != "nce"),
        )
        if checkpoint is not None and (path := locate(checkpoint).path) is not None:
            load_into(self.network, read_official(path), str(path))
        if image_lora is not None:
            adapt(self.network.image_tower, image_lora)

    def features(self, batch: AVBatch) -> Features:
        """What the network makes of a batch; in training with what the release does to pictures and sounds."""
        image = normalised(batch.image, (batch.image.shape[-2], batch.image.shape[-1]))
        sound, real = batch.audio, own_samples(batch.audio)
        own, pixels = torch.ones_like(sound), torch.ones_like(image[:, :1])
        if self.training:
            if self.splice:
                sound, own = spliced(sound, real)
            sound, real = silenced(sound, real, self.silence_share)
            image, pixels = quad_mixed(image, self.quad_share)
        frozen = self.training and self.global_step < self.frozen_steps
        places, steps = self.pools if self.training else (1, 1)
        v, v_cls = self.network.see(image, places, frozen)
        a, a_cls = self.network.hear(standardised(sound) if self.standardise else sound, steps, frozen)
        mask = step_masks(real, a.shape[-1]) > HEARD
        mask[:, 0] |= ~mask.any(1)
        positive = step_masks(own, a.shape[-1])
        own_places = F.adaptive_avg_pool2d(pixels, (v.shape[-2], v.shape[-1]))
        return Features(v, a, v_cls, a_cls, mask, positive, own_places)

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """The objective's terms, of all processes' features where negatives are gathered."""
        x = self.features(batch)
        parts = [x.image, x.audio, x.image_cls, x.audio_cls, x.mask, x.positive, x.image_mask]
        with torch.autocast(x.image.device.type, enabled=False):
            parts = [part.float() if part.is_floating_point() else part for part in parts]
            if self.negatives == "gathered":
                parts = [gather_rows(part) for part in parts]
            x = Features(*parts)
            # Every process draws alike, so that all of them compute one loss.
            generator = torch.Generator().manual_seed(self.global_step)
            draws = Draws.of(x, self.objective.samples, generator)
            return self.objective(x, self.aggregation, self.network.sim_cal, draws)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Each parameter's gradient by itself, as released, before what the trainer is asked for."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.clip is not None and grads:
            norms = torch._foreach_norm(grads)  # one kernel for all; torch has no public name for it
            torch._foreach_mul_(grads, [(self.clip / (n + 1e-6)).clamp(max=1.0) for n in norms])
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def localize(self, batch: AVBatch) -> Localization:
        """One source a sample: the largest head at each place, mean over true steps, each map from 0 to 1. The
        confidence grows with the similarity s of the pair: (1 + s / (1 + |s|)) / 2."""
        x = self.features(batch)
        with torch.autocast(x.image.device.type, enabled=False):
            cls = (x.image_cls.float(), x.audio_cls.float())
            S = self.aggregation.paired(x.image.float(), x.audio.float(), x.mask, *cls)
            cells, s = self.aggregation.cells(S).mean(-2), self.aggregation(S, x.mask)
            side = self.heatmap_size
            heatmap = prompted_maps(cells, x.mask, (side, side))
            return Localization(heatmap[:, None].clamp(0, 1), (0.5 + 0.5 * F.softsign(s))[:, None])


def adapt(tower: nn.Module, rank: int) -> None:
    """Freeze a tower but for new low-rank adapters on its attention.

    Raises:
        UsageError: peft is not installed.
        WeightError: the tower has no such layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as e:
        raise UsageError("image_lora needs peft: pip install 'avloc[lora]', or set it to null.") from e
    tower.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=LORA_ALPHA, lora_dropout=0.1, target_modules=[TARGET])
    try:
        inject_adapter_in_model(config, tower)
    except ValueError as e:
        raise WeightError(f"The image tower takes no adapter: {e}") from e
