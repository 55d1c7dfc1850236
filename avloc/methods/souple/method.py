"""SOUPLE (Nguyen and Park: "Enhancing Audio-Visual Localization and Segmentation with Learnable Prompt Contexts")."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from avloc.backbones.beats import BEATs
from avloc.backbones.clipseg import CLIPSeg
from avloc.methods.acl.losses import Objective
from avloc.methods.acl.method import ACL
from avloc.methods.acl.network import ACLNetwork
from avloc.methods.souple.network import (
    Conditioned,
    Emits,
    Ensemble,
    ImageFeature,
    SOUPLENetwork,
    Start,
    Variant,
)

__all__ = ["SOUPLE"]


class SOUPLE(ACL):
    """ACL-SSL whose prompt is M learnable context tokens conditioned on the picture.

    The paper gives 2.38 M trainable parameters; the released audio projection alone has 7.28 M, and with
    ``feature_layers: [12]`` 1.77 M (`facts/souple.md` section 1), so its count cannot be met from what is published.

    Args:
        context: number M of context tokens (table 5: 4, 8, 16).
        position: place of the audio token, 1..M+1, 0 for last (table 6).
        image_feature: see `SOUPLENetwork`.
        emits: see `SOUPLENetwork`.
        start: see `SOUPLENetwork`.
        variant: ``standard``, ``fusion`` or ``ensemble`` (table 8).
        ensemble: see `SOUPLENetwork`.
        conditioned: see `SOUPLENetwork`.
        clipseg: see `ACL`, as all that follow.
        beats: weight source of the audio tower.
        objective: weights and readings of the loss.
        masker: initial w and b of the image mask.
        feature_layers: BEATs layers that are heard.
        layer_drop: let BEATs skip layers in training.
        image_size: side of the picture in pixels.
        seconds: length of the sound.
        train_scale: size of training pictures before the crop, relative to the side.
        heatmap_size: side of the heat map.
        chunk: pictures whose pairs go through the decoder together.
        recompute: recompute the decoder in backward.
        compile_towers: `torch.compile` the frozen vision tower.
        optimizer: see `Localizer`.
        lr_scheduler: see `Localizer`.
    """

    paper_parameters = 2_380_000

    def __init__(
        self,
        context: int = 4,
        position: int = 0,
        image_feature: ImageFeature = "pooled",
        emits: Emits = "shared",
        start: Start = "normal",
        variant: Variant = "standard",
        ensemble: Ensemble = "features",
        conditioned: Conditioned = "asked",
        clipseg: str = "hf:CIDAS/clipseg-rd64-refined",
        beats: str = "beats",
        objective: Objective = Objective(),  # noqa: B008  frozen
        masker: tuple[float, float] = (10.0, 14.0),
        feature_layers: tuple[int, ...] = (4, 8, 12),
        layer_drop: bool = False,
        image_size: int = 352,
        seconds: float = 10.0,
        train_scale: float = 1.1,
        heatmap_size: int = 224,
        chunk: int = 8,
        recompute: bool = False,
        compile_towers: bool = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        self.network_type = partial(
            SOUPLENetwork,
            context=context,
            position=position,
            image_feature=image_feature,
            emits=emits,
            start=start,
            variant=variant,
            ensemble=ensemble,
            conditioned=conditioned,
        )
        super().__init__(
            clipseg=clipseg,
            beats=beats,
            objective=objective,
            masker=masker,
            feature_layers=feature_layers,
            layer_drop=layer_drop,
            image_size=image_size,
            seconds=seconds,
            train_scale=train_scale,
            heatmap_size=heatmap_size,
            chunk=chunk,
            recompute=recompute,
            compile_towers=compile_towers,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )

    def build_network(self, grounder: CLIPSeg, ears: BEATs, **options: Any) -> ACLNetwork:
        del options["template"], options["tokens"]  # the learned context stands in their place
        return self.network_type(grounder, ears, **options)
