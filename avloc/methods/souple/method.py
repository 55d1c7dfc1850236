"""SOUPLE (Nguyen and Park: "Enhancing Audio-Visual Localization and Segmentation with Learnable Prompt Contexts")."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from avloc.backbones.beats import BEATs
from avloc.backbones.clipseg import CLIPSeg
from avloc.methods.acl.method import ACL
from avloc.methods.acl.network import ACLNetwork, Grounding
from avloc.methods.souple.network import (
    Conditioned,
    Context,
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
        image_feature: see `Context`.
        emits: see `Context`.
        start: see `Context`.
        variant: ``standard``, ``fusion``, ``ensemble`` or ``ensemble_test`` (table 8); see `Context`.
        ensemble: see `Context`.
        conditioned: see `Context`.
        template: none but the bare token, for the context takes its place. It is an argument so that a checkpoint of
            ACL, which names its own, is refused for what it is.
        acl: all other options of `ACL`.
    """

    paper_parameters = 2_380_000
    not_stored: ClassVar[tuple[str, ...]] = (*ACL.not_stored, "template")

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
        self.learnt = Context(context, position, image_feature, emits, start, variant, ensemble, conditioned)
        super().__init__(template="{}", **acl)
        self.conditioned = emits != "none"

    def build_network(self, grounder: CLIPSeg, ears: BEATs, grounding: Grounding) -> ACLNetwork:
        return SOUPLENetwork(grounder, ears, self.learnt, grounding)
