"""T-VSL: what sounds is named, and each name asks the picture and the sound for its own part.

Symbols as in the paper: V' and A' projected tokens of picture and sound, T the text bank, e_k the text of class k;
``phi(A, b, C)_j = cos(A_j, b) C_j`` (equation 6); V_k = phi(V', e_k, V') and A_k = phi(A', e_k, A') (4, 5), g^a_k the
mean of A_k, ghat^a_k = P_av(g^a_k); Vhat_k = phi(V_k, ghat^a_k, V_k), whose mean is g^v_k, ghat^v_k = P_va(g^v_k) (8).
L_av compares ghat^v_k with ghat^a_k (9), the map the tokens of Vhat_k with ghat^a_k.

What the paper and its release do differently are the options of `Design`; completions of what neither states, and what
departs from both, are marked "choice". Torch only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.methods.maps import Transform

__all__ = ["DESIGNS", "Design", "DesignName", "Separation", "TVSLNetwork", "Tokens"]


@dataclass(frozen=True)
class Design:
    """What T-VSL computes; the defaults are the equations of the article.

    Args:
        projector: every projector is one ``linear`` layer, initially the identity (paper; the start is a choice), or an
            ``mlp`` D - 2D - D with exact GELU (release).
        residual: initial weight w of a learnt mixture ``w x + (1 - w) P(x)`` at each projector but P_f; None for P(x)
            alone (paper). The release starts at 1, which gives its projectors no gradient in the first step.
        fusion: P_f maps the means of A' and V' to D channels, ``single`` (paper), or of V' and A' to 2D, ``double``,
            which meets the bank beside itself (release).
        normalise: tokens that have unit length before P_v and P_a: ``both`` (choice), the ``image``'s alone, so that
            the sound dominates the class head by its scale (release), or ``none`` (choice; the paper is silent).
        renormalise: V' and A' get unit length behind their projectors (release); the paper has nothing there.
        scale_ml: initial factor of the cosines of the class head, learnt as its logarithm within [1, 100]; None for 1
            (paper). The release's 100 lies on the bound, where it has no gradient.
        mask: the cosines of phi as they are, ``signed`` (paper, release), or without the negative ones, ``positive``
            (choice). Signed, a token that is unlike a class by its text and by its sound counts as like it: the
            paper's map is ``|cos(V'_j, ghat^a_k)|``, whatever the text's weight.
        normalised_mask: cosines with e_k are divided by their length over the tokens (release).
        attention: phi^av of equation 8, which the release does not have; without, Vhat_k is V_k.
        projected_map: the map compares ``P_va`` of each token (release); in the paper P_va sees means alone.
        sources: losses of a sample's K sources, and of its N classes, are added (``sum``, paper) or averaged (``mean``,
            release; over all sources of the batch where K varies).
        audio_conditioning: sounds are conditioned on the classes; without, all classes hear A' (ablation).
        visual_conditioning: pictures are conditioned on the classes; without, all classes see V' (ablation).
        correspondence: P_av, phi^av, P_va and their loss; without, maps are cosines of the conditioned tokens with
            g^a_k (ablation).
        audio_scale: factor from [-1, 1] to what the audio tower is fed: 32768 (AudioCLIP) or 1, which is 90 dB too
            quiet (release).
        positions: of picture tokens, see `avloc.backbones.audioclip.ImageTower.tokens`: ``grid`` (choice) or
            ``sequence`` (release).
        statistics: the frozen towers' batch norms use their own ``stored`` statistics (paper: frozen) or in training
            those of the ``batch``, and drift (release).
        map: of a token of Vhat_k and ghat^a_k, the ``cosine`` (paper, release), which forgets by how much text and
            sound conditioned the token, or the dot ``product`` with the unit ghat^a_k, which does not (choice).
        transform: of the similarities before they are resized, see `avloc.methods.maps.transformed` (choice).
        upsampling: of the maps: ``bilinear`` (paper) or ``bicubic`` (release).
        inverted: low similarity counts as sounding (release's evaluation).
        crossed_labels: targets number the classes by names with ``_`` for commas and blanks, the bank by plain names,
            whose orders differ (release: "cattle mooing" and "cattle, bovinae cowbell" learn each other's text).

    Raises:
        ValueError: an initial factor outside of [1, 100].
    """

    projector: Literal["linear", "mlp"] = "linear"
    residual: float | None = None
    fusion: Literal["single", "double"] = "single"
    normalise: Literal["both", "image", "none"] = "both"
    renormalise: bool = False
    scale_ml: float | None = None
    mask: Literal["signed", "positive"] = "signed"
    normalised_mask: bool = False
    attention: bool = True
    projected_map: bool = False
    sources: Literal["sum", "mean"] = "sum"
    audio_conditioning: bool = True
    visual_conditioning: bool = True
    correspondence: bool = True
    audio_scale: float = 32768.0
    positions: Literal["grid", "sequence"] = "grid"
    statistics: Literal["stored", "batch"] = "stored"
    map: Literal["cosine", "product"] = "cosine"
    transform: Transform = "none"
    upsampling: Literal["bilinear", "bicubic"] = "bilinear"
    inverted: bool = False
    crossed_labels: bool = False

    def __post_init__(self) -> None:
        if self.scale_ml is not None and not 1 <= self.scale_ml <= 100:
            raise ValueError(f"T-VSL: scale_ml must lie in [1, 100], got {self.scale_ml:g}.")


DesignName = Literal["published", "released"]
DESIGNS: dict[str, Design] = {
    "published": Design(),
    "released": Design(
        projector="mlp",
        residual=1.0,
        fusion="double",
        normalise="image",
        renormalise=True,
        scale_ml=100.0,
        normalised_mask=True,
        attention=False,
        projected_map=True,
        sources="mean",
        audio_scale=1.0,
        positions="sequence",
        statistics="batch",
        upsampling="bicubic",
        inverted=True,
        crossed_labels=True,
    ),
}


@dataclass
class Tokens:
    """What is computed once for a sample, whatever its classes.

    Attributes:
        visual: V' ``[B, n_v, D]``.
        audio: A' ``[B, n_a, D]``.
        fused: f ``[B, D]`` or ``[B, 2D]``, unit length: the class-instance feature.
    """

    visual: Tensor
    audio: Tensor
    fused: Tensor


@dataclass
class Separation:
    """What each of K classes makes of the tokens.

    Attributes:
        visual_weight: cosines ``[B, K, n_v]`` that condition the picture; V_k is their product with V'.
        audio_weight: the same of the sound, ``[B, K, n_a]``.
        visual: mean of V_k, ``[B, K, D]``.
        audio: g^a_k ``[B, K, D]``, mean of A_k.
        query: ghat^a_k ``[B, K, D]``, unit length: what the picture's tokens are compared with.
    """

    visual_weight: Tensor
    audio_weight: Tensor
    visual: Tensor
    audio: Tensor
    query: Tensor


def projector(width: int, kind: Literal["linear", "mlp"]) -> nn.Module:
    """D to D."""
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class TVSLNetwork(nn.Module):
    """Everything between the frozen towers' tokens and the losses or maps; keys are those of the release.

    Args:
        width: D of the towers.
        design: the parts.
    """

    def __init__(self, width: int, design: Design = DESIGNS["published"]) -> None:
        super().__init__()
        self.width, self.design = width, design
        for name in PROJECTORS:
            self.add_module(name, projector(width, design.projector))
        if design.fusion == "double":
            self.fusion_proj: nn.Module = nn.Sequential(
                nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, 2 * width)
            )
        else:
            self.fusion_proj = nn.Linear(2 * width, width)
        if design.residual is not None:
            for weight in PROJECTORS.values():
                self.register_parameter(weight, nn.Parameter(torch.tensor(float(design.residual))))
        if design.scale_ml is not None:
            self.logit_scale_ml = nn.Parameter(torch.tensor(math.log(design.scale_ml)))
        # What an ablation leaves out must not wait for gradients (DDP would).
        self.leave_out("aud_cls_proj", not design.audio_conditioning)
        self.leave_out("img_cls_proj", not design.visual_conditioning)
        self.leave_out("aud_img_proj", not design.correspondence)
        self.leave_out("img_aud_proj", not design.correspondence)

    def leave_out(self, name: str, unused: bool) -> None:
        self.get_submodule(name).requires_grad_(not unused)
        if self.design.residual is not None:
            self.get_parameter(PROJECTORS[name]).requires_grad_(not unused)

    def project(self, name: str, x: Tensor) -> Tensor:
        """The named projector, mixed with its input where the design says so; float32."""
        y = self.get_submodule(name)(x).float()
        if self.design.residual is None:
            return y
        w = self.get_parameter(PROJECTORS[name])
        return w * x + (1 - w) * y

    def scale_of_classes(self) -> Tensor | float:
        return self.logit_scale_ml.exp().clamp(1, 100) if self.design.scale_ml is not None else 1.0

    # ---- once for a sample

    def prepare(self, image_tokens: Tensor, audio_tokens: Tensor) -> Tokens:
        """Project and fuse the towers' tokens.

        Args:
            image_tokens: float ``[B, n_v, D]``, as the tower gave them.
            audio_tokens: float ``[B, n_a, D]``.
        """
        v, a = image_tokens.float(), audio_tokens.float()
        v = F.normalize(v, dim=-1) if self.design.normalise != "none" else v
        a = F.normalize(a, dim=-1) if self.design.normalise == "both" else a
        v, a = self.project("visual_proj", v), self.project("audio_proj", a)
        m_v, m_a = v.mean(1), a.mean(1)
        means = [m_v, m_a] if self.design.fusion == "double" else [m_a, m_v]
        fused = F.normalize(self.fusion_proj(torch.cat(means, dim=-1)).float(), dim=-1)
        if self.design.renormalise:
            v, a = F.normalize(v, dim=-1), F.normalize(a, dim=-1)
        return Tokens(v, a, fused)

    def class_logits(self, fused: Tensor, bank: Tensor) -> Tensor:
        """How likely each class sounds, float32 ``[B, N]``, of f and the unit text bank ``[N, D]``."""
        with torch.autocast(fused.device.type, enabled=False):
            if self.design.fusion == "double":
                bank = F.normalize(torch.cat([bank, bank], dim=-1), dim=-1)
            return self.scale_of_classes() * fused @ bank.T

    # ---- once for a class

    def separate(self, tokens: Tokens, text: Tensor) -> Separation:
        """Condition tokens on classes.

        The conditioned tokens themselves are never built: only their means are needed, which are products of matrices.

        Args:
            tokens: of B samples.
            text: e_k, unit length, ``[B, K, D]``.
        """
        with torch.autocast(text.device.type, enabled=False):
            visual_weight = self.condition(tokens.visual, text, self.design.visual_conditioning)
            audio_weight = self.condition(tokens.audio, text, self.design.audio_conditioning)
            visual = visual_weight @ tokens.visual / tokens.visual.shape[1]
            audio = audio_weight @ tokens.audio / tokens.audio.shape[1]
        query = self.project("aud_img_proj", audio) if self.design.correspondence else audio
        return Separation(visual_weight, audio_weight, visual, audio, F.normalize(query, dim=-1))

    def condition(self, x: Tensor, text: Tensor, conditioned: bool) -> Tensor:
        """Cosines ``[B, K, n]`` of tokens ``[B, n, D]`` with texts ``[B, K, D]``; ones where nothing is conditioned."""
        if not conditioned:
            return x.new_ones(*text.shape[:2], x.shape[1])
        cosine = self.masked(text @ F.normalize(x, dim=-1).mT)
        return F.normalize(cosine, dim=-1) if self.design.normalised_mask else cosine

    def masked(self, cosine: Tensor) -> Tensor:
        return cosine.clamp(min=0) if self.design.mask == "positive" else cosine

    def class_features(self, found: Separation) -> tuple[Tensor, Tensor]:
        """What L_cls compares with the bank: of picture and sound, unit length, ``[B, K, D]`` each."""
        visual, audio = self.project("img_cls_proj", found.visual), self.project("aud_cls_proj", found.audio)
        return F.normalize(visual, dim=-1), F.normalize(audio, dim=-1)

    def attend(self, tokens: Tokens, found: Separation) -> Tensor:
        """Factors of V' that give Vhat_k, float32 ``[B, K, n_v]``."""
        if not (self.design.attention and self.design.correspondence):
            return found.visual_weight
        with torch.autocast(found.query.device.type, enabled=False):
            cosine = found.query @ F.normalize(tokens.visual, dim=-1).mT
            # V_k is V' times a weight, which turns the cosine's sign with its own; where it is 0 there is no cosine.
            return found.visual_weight * self.masked(found.visual_weight.sign() * cosine)

    def visual_query(self, tokens: Tokens, found: Separation) -> Tensor:
        """ghat^v_k, which L_av compares with ``found.query``: unit length, ``[B, K, D]``."""
        with torch.autocast(found.query.device.type, enabled=False):
            mean = self.attend(tokens, found) @ tokens.visual / tokens.visual.shape[1]
        return F.normalize(self.project("img_aud_proj", mean), dim=-1)

    def similarity(self, tokens: Tokens, found: Separation) -> Tensor:
        """How alike each token of Vhat_k is to that class's sound: float32 ``[B, K, n_v]``."""
        factor, cosine = self.attend(tokens, found), self.design.map == "cosine"
        if self.design.projected_map and self.design.correspondence:
            v = self.project("img_aud_proj", factor[..., None] * tokens.visual[:, None])
            with torch.autocast(v.device.type, enabled=False):
                return torch.einsum("bknd,bkd->bkn", F.normalize(v, dim=-1) if cosine else v, found.query)
        with torch.autocast(factor.device.type, enabled=False):  # of a multiple of V', which need not be built
            v = F.normalize(tokens.visual, dim=-1) if cosine else tokens.visual
            return (factor.sign() if cosine else factor) * (found.query @ v.mT)


# Projector and its mixing weight. P_v, P_a; P_vc, P_ac of the class loss; P_av, P_va of the correspondence.
PROJECTORS = {
    "visual_proj": "vp_w",
    "audio_proj": "ap_w",
    "img_cls_proj": "icp_w",
    "aud_cls_proj": "acp_w",
    "aud_img_proj": "aip_w",
    "img_aud_proj": "iap_w",
}

# Checkpoints keep it among the hyper-parameters, and are loaded without unpickling anything else.
torch.serialization.add_safe_globals([Design])
