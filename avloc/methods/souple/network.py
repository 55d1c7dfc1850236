"""SOUPLE: context tokens computed from the picture stand in front of the audio token, in place of a template's words.

``[SOT] V_1(x) ... V_M(x) [V_A] [EOT]`` goes through CLIP's text tower; everything else is ACL-SSL. What the paper
leaves open is an option of `Context`. Torch only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.beats import BEATs
from avloc.backbones.clipseg import CLIPSeg, ImageFeatures
from avloc.methods.acl.network import ACLNetwork, Grounding
from avloc.methods.losses import gather_rows

__all__ = ["Context", "MetaNet", "SOUPLENetwork"]

ImageFeature = Literal["pooled", "hidden", "patches"]
Emits = Literal["shared", "separate", "only", "none"]
Start = Literal["normal", "words"]
Variant = Literal["standard", "fusion", "ensemble", "ensemble_test"]
Ensemble = Literal["raw", "features", "logits"]
Conditioned = Literal["own", "asked"]

WORDS = "a photo of a"


class MetaNet(nn.Module):
    """Linear - ReLU - Linear with a bottleneck of 1/16 of the input's width: image feature to context.

    Args:
        inputs: width of the image feature F_I.
        width: width C of a text token.
        vectors: how many vectors it emits.
    """

    def __init__(self, inputs: int, width: int, vectors: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, max(1, inputs // 16))
        self.up = nn.Linear(max(1, inputs // 16), vectors * width)
        self.vectors = vectors

    def forward(self, F_I: Tensor) -> Tensor:
        """``[B, inputs]`` to ``[B, vectors, C]``."""
        return self.up(F.relu(self.down(F_I))).unflatten(-1, (self.vectors, -1))


@dataclass(frozen=True)
class Context:
    """The learnable context: how much of it, where, and what it depends on.

    Attributes:
        grounder: frozen CLIPSeg.
        ears: frozen BEATs.
        context: number M of context tokens.
        position: place of the audio token among the M + 1, from 1; 0 means last.
        image_feature: what enters the meta-net: CLIP's ``pooled`` L2-normalised image embedding, the ``hidden``
            class token before projection, or the mean of the dense features of all ``patches``.
        emits: one vector ``shared`` by (added to) every learned vector, ``separate`` vectors added, the emitted
            vectors ``only``, or ``none``: learned vectors that no picture changes, without a meta-net (CoOp).
        start: learned vectors drawn ``normal`` with standard deviation 0.02, or the ``words`` "a photo of a" (M = 4).
        variant: ``standard``; ``fusion``: context from the sum of picture and sound and no audio token;
            ``ensemble``: the audio token at every position in turn, then averaged, in training and in use;
            ``ensemble_test``: trained as ``standard``, averaged in use alone.
        ensemble: average the ``raw`` features, L2-normalised ``features`` (a mean of unit vectors reaches the decoder,
            which standard and fusion feed raw ones), or the mask ``logits`` of raw ones.
        conditioned: for picture i and the sound of sample j the context comes from the picture i that is
            ``asked`` (CoCoOp's reading: one prompt a pair), or from j's ``own`` picture (one prompt a sample: cheaper,
            but the prompt then tells its picture, which the contrast can match without listening).
    """

    context: int = 4
    position: int = 0
    image_feature: ImageFeature = "pooled"
    emits: Emits = "shared"
    start: Start = "normal"
    variant: Variant = "standard"
    ensemble: Ensemble = "raw"
    conditioned: Conditioned = "asked"


class SOUPLENetwork(ACLNetwork):
    """ACL with learnable, image-conditioned context.

    Args:
        grounder: frozen CLIPSeg.
        ears: frozen BEATs.
        learnt: the context.
        grounding: as of ACL; its template is the bare token, in front of which the context stands.

    Raises:
        ValueError: a position beyond M + 1, ``words`` with another M than 4, or ``fusion`` whose context nothing
            conditions.
    """

    def __init__(
        self,
        grounder: CLIPSeg,
        ears: BEATs,
        learnt: Context = Context(),
        grounding: Grounding = Grounding(),  # noqa: B008  frozen
    ) -> None:
        super().__init__(grounder, ears, replace(grounding, template="{}"))
        context, position, emits = learnt.context, learnt.position, learnt.emits
        if not 0 <= position <= context + 1:
            raise ValueError(f"position {position} of the audio token is not in 1..{context + 1} (0: last).")
        self.position = position or context + 1
        self.image_feature, self.variant, self.ensemble = learnt.image_feature, learnt.variant, learnt.ensemble
        self.conditioned = learnt.conditioned
        width = grounder.token_width
        self.V = None if emits == "only" else nn.Parameter(self._initial(context, width, learnt.start))
        inputs = grounder.config.vision_config.hidden_size if self.image_feature == "hidden" else grounder.width
        if self.variant == "fusion" and inputs != width:
            raise ValueError(f"fusion adds picture ({inputs}) and sound ({width}); use image_feature: pooled.")
        if self.variant == "fusion" and emits == "none":
            raise ValueError(
                "fusion puts the sound into the context, and emits: none has no meta-net to carry it there."
            )
        self.meta_net = None if emits == "none" else MetaNet(inputs, width, 1 if emits == "shared" else context)

    def _initial(self, context: int, width: int, start: Start) -> Tensor:
        if start == "normal":
            return 0.02 * torch.randn(context, width)
        ids = self.av_grounder.tokenize([WORDS])[0, 1:-1]
        if len(ids) != context:
            raise ValueError(f"start: words are the {len(ids)} tokens of {WORDS!r}; context is {context}.")
        return self.av_grounder.embed_tokens(ids).detach().clone()

    def see(self, image: Tensor) -> ImageFeatures:
        with torch.no_grad():
            pooled = self.image_feature != "patches"
            return self.av_grounder.encode_image(image, reduced=True, dense=True, pooled=pooled)

    def F_I(self, features: ImageFeatures) -> Tensor:  # noqa: N802  the paper's symbol
        """Image feature ``[B, D]`` that enters the meta-net, in float32."""
        if self.image_feature == "hidden":
            assert features.hidden is not None
            return features.hidden.float()
        if self.image_feature == "patches":
            assert features.dense is not None
            return F.normalize(features.dense.float().mean((-1, -2)), dim=-1)
        assert features.pooled is not None
        return F.normalize(features.pooled.float(), dim=-1)

    def ask(self, features: ImageFeatures, tokens: Tensor, gathered: bool = False) -> Tensor:
        F_I = self.F_I(features)
        if self.conditioned == "own" or self.meta_net is None:
            A = self.condition(F_I, tokens)
            A = gather_rows(A) if gathered else A
            return A.expand(len(F_I), *A.shape)
        tokens = gather_rows(tokens) if gathered else tokens
        B, M = len(F_I), len(tokens)
        pictures = F_I[:, None].expand(-1, M, -1).flatten(0, 1)
        sounds = tokens.expand(B, *tokens.shape).flatten(0, 1)
        return self.condition(pictures, sounds).unflatten(0, (B, M))

    def answer(self, features: ImageFeatures, tokens: Tensor) -> Tensor:
        return self.condition(self.F_I(features), tokens, everywhere=self.variant in ("ensemble", "ensemble_test"))

    def condition(self, F_I: Tensor, tokens: Tensor, everywhere: bool | None = None) -> Tensor:
        """A of picture features ``[B, D]`` and audio tokens ``[B, K, C]`` that belong together.

        Args:
            F_I: from `F_I`.
            tokens: from `hear`.
            everywhere: average over all positions of the audio token; by default as in training.

        Returns:
            ``[B, D]``, or ``[B, M + 1, D]`` for an ensemble that averages mask logits.
        """
        if self.variant == "fusion":
            return self.prompt(self._context(F_I + tokens.mean(1)))
        V = self._context(F_I)
        if not (self.variant == "ensemble" if everywhere is None else everywhere):
            return self.prompt(insert(V, tokens, self.position))
        every = torch.stack([self.prompt(insert(V, tokens, p)) for p in range(1, V.shape[1] + 2)], dim=1)
        if self.ensemble == "logits":
            return every
        return (F.normalize(every, dim=-1) if self.ensemble == "features" else every).mean(1)

    def _context(self, F_I: Tensor) -> Tensor:
        """Context tokens V_m(x), ``[B, M, C]``."""
        if self.meta_net is None:
            assert self.V is not None
            return self.V.expand(len(F_I), -1, -1)
        pi = self.meta_net(F_I)
        return pi if self.V is None else self.V + pi

    def mask_logits(self, reduced: list[Tensor], A: Tensor) -> Tensor:
        if A.ndim == 3:
            return super().mask_logits(reduced, A)
        places = A.shape[2]
        return super().mask_logits(reduced, A.flatten(1, 2)).unflatten(1, (-1, places)).mean(2)

    def embedding(self, A: Tensor) -> Tensor:
        return A if A.ndim == 3 else A.mean(2)


def insert(V: Tensor, tokens: Tensor, position: int) -> Tensor:
    """Audio tokens ``[B, K, C]`` among the context ``[B, M, C]``, the first at ``position`` (from 1)."""
    return torch.cat([V[:, : position - 1], tokens, V[:, position - 1 :]], dim=1)
