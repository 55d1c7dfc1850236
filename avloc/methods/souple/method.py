"""SOUPLE (Nguyen and Park: "Enhancing Audio-Visual Localization and Segmentation with Learnable Prompt Contexts")."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from avloc.backbones.beats import BEATs
from avloc.backbones.clipseg import CLIPSeg
from avloc.methods.acl.method import ACL, NOT_STORED
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
    ``feature_layers: [12]`` 1.77 M, so its count cannot be met from what is published.

    Args:
        context: number M of context tokens (table 5: 4, 8, 16).
        position: place of the audio token, 1..M+1, 0 for last (table 6).
        image_feature: see `SOUPLENetwork`.
        emits: see `SOUPLENetwork`.
        start: see `SOUPLENetwork`.
        variant: ``standard``, ``fusion``, ``ensemble`` or ``ensemble_test`` (table 8); see `SOUPLENetwork`.
        ensemble: see `SOUPLENetwork`.
        conditioned: see `SOUPLENetwork`.
        template: none but the bare token, for the context takes its place. It is an argument so that a checkpoint of
            ACL, which names its own, is refused for what it is.
        acl: all other options of `ACL`.
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
        ensemble: Ensemble = "raw",
        conditioned: Conditioned = "asked",
        template: Literal["{}"] = "{}",
        **acl: Any,
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
        super().__init__(template="{}", **acl)
        self.conditioned = emits != "none"
        self.save_hyperparameters(ignore=["template", *NOT_STORED], logger=False)

    def build_network(self, grounder: CLIPSeg, ears: BEATs, **options: Any) -> ACLNetwork:
        del options["template"]  # the learned context stands in its place
        return self.network_type(grounder, ears, **options)
