"""ACL: a sound becomes a token in CLIP's text tower, and CLIPSeg draws the mask that the token asks for.

Symbols as in the paper: A audio-driven embedding, M mask logits, v_f and v_i the features pooled under the mask at
feature and image level. Where the paper and its released code differ, an option offers both. Torch only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avloc.backbones.beats import BEATs
from avloc.backbones.clipseg import CLIPSeg, ImageFeatures
from avloc.methods.acl.losses import Pairs
from avloc.methods.acl.tokenizer import AudioTokenizer
from avloc.methods.losses import gather_rows, rank_and_world

__all__ = ["ACLNetwork", "Grounding", "ImageMasker", "feature_mask", "upsampled"]

ImageMask = Literal["hard", "soft", "feature"]
FeatureMask = Literal["feature", "hard"]


class ImageMasker(nn.Module):
    """Mask logits to a binary mask with a learnable threshold at ``-b / w``.

    Args:
        w: initial slope.
        b: initial offset; the released start, -1.4 in logits, fits CLIPSeg's calibration.
    """

    def __init__(self, w: float = 10.0, b: float = 14.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(float(w)))
        self.b = nn.Parameter(torch.tensor(float(b)))

    def forward(self, M: Tensor, u: Tensor | None = None) -> Tensor:
        """Stochastic binary mask, straight-through.

        Args:
            M: float32 logits of any shape.
            u: uniform noise in (0, 1) of that shape; drawn when absent.

        Returns:
            The value is ``1[y > 0.5]`` with ``y = sigmoid(w M + b + log(u / (1 - u)))``, the gradient is y's.
        """
        u = torch.rand_like(M) if u is None else u
        y = torch.sigmoid(self.w * M + self.b + torch.logit(u, eps=1e-7))
        return (y > 0.5).to(y.dtype) + y - y.detach()

    def heatmap(self, M: Tensor) -> Tensor:
        """``sigmoid(M + b / w)``: the slope is left out, only the crossing at 0.5 agrees with training."""
        return torch.sigmoid(M + self.b / self.w)


def feature_mask(M: Tensor, grid: int, threshold: float = 0.5, tau: float = 0.07) -> Tensor:
    """Min-max-normalised soft mask, sampled on the patch grid.

    Args:
        M: float32 logits ``[..., H, W]``.
        grid: side g of the patch grid; nearest sampling as the reference resizes.
        threshold: centre of the sigmoid on the normalised map.
        tau: its temperature.

    Returns:
        float32 ``[..., g, g]``; 0.5 everywhere for a constant map (the reference divides zero by zero there).
    """
    low, high = M.amin((-1, -2), keepdim=True), M.amax((-1, -2), keepdim=True)
    m = (sample_grid(M, grid) - low + 1e-7) / (high - low + 2e-7)
    return torch.sigmoid((m - threshold) / tau)


def sample_grid(M: Tensor, grid: int) -> Tensor:
    """Nearest resize of ``[..., H, W]`` to ``[..., g, g]``."""
    rows = torch.arange(grid, device=M.device) * M.shape[-2] // grid
    columns = torch.arange(grid, device=M.device) * M.shape[-1] // grid
    return M[..., rows[:, None], columns]


@dataclass(frozen=True)
class Grounding:
    """How a sound asks, and what hides pixels and pools features.

    Attributes:
        tokens: audio tokens K of a sound (the paper's ablation: 1, 2, 4, 8).
        template: words around the audio token, ``{}`` marking its place. The released code says "A photo of {}",
            the paper "A photo of a {}".
        image_mask: what hides pixels for v_i: the ``hard`` stochastic mask, the ``soft`` sigmoid of M, or the
            ``feature`` mask of the patch grid, upsampled (rows of ACL-SSL table 13).
        feature_mask: what pools features for v_f: the ``feature`` mask, or the ``hard`` one reused.
        one_noise: a ``hard`` image mask and the area share one draw of noise (paper: one mask) instead of two
            (released).
        pooling: v_f is divided by the ``map``'s own sum (paper) or the whole ``batch``'s (released); the losses
            normalise v_f, so nothing else changes.
        chunk: pictures whose pairs go through the decoder together; peak memory grows with chunk x B.
        recompute: run the decoder again in backward instead of keeping its activations.
        masker: initial w and b of the image masker.
    """

    tokens: int = 1
    template: str = "A photo of {}"
    image_mask: ImageMask = "hard"
    feature_mask: FeatureMask = "feature"
    one_noise: bool = False
    masker: tuple[float, float] = (10.0, 14.0)
    chunk: int = 8
    recompute: bool = False
    pooling: Literal["map", "batch"] = "map"


class ACLNetwork(nn.Module):
    """Frozen BEATs and CLIPSeg with the trainable audio projection and mask scalars between them.

    Args:
        grounder: frozen CLIPSeg.
        ears: frozen BEATs.
        grounding: template, masks, pooling.
    """

    before: Tensor
    after: Tensor

    def __init__(self, grounder: CLIPSeg, ears: BEATs, grounding: Grounding = Grounding()) -> None:
        super().__init__()
        self.av_grounder = grounder
        self.beats = ears
        self.audio_proj = AudioTokenizer(ears.feature_size, grounder.token_width, grounding.tokens)
        self.masker_i = ImageMasker(*grounding.masker)
        self.image_mask, self.feature_mask = grounding.image_mask, grounding.feature_mask
        self.one_noise, self.pooling = grounding.one_noise, grounding.pooling
        self.chunk, self.recompute = grounding.chunk, grounding.recompute
        self.set_template(grounding.template)

    def set_template(self, template: str) -> None:
        """Cut the template at ``{}``; the words' ids become the rows before and behind the audio tokens.

        Raises:
            ValueError: not exactly one ``{}``.
        """
        if template.count("{}") != 1:
            raise ValueError(f"template must hold {{}} exactly once, where the sound goes; got {template!r}.")
        before, after = (self.av_grounder.tokenize([part])[0] for part in template.split("{}"))
        # The released code cuts the prompt one row behind its last word: that row is the end of text.
        self.register_buffer("before", before[:-1], persistent=False)
        self.register_buffer("after", after[1:], persistent=False)

    # ---- the parts

    def hear(self, audio: Tensor) -> Tensor:
        """Waveforms ``[B, T]`` to audio tokens ``[B, K, C]``; the frozen tower runs without gradient."""
        with torch.no_grad():
            features = self.beats(audio)
        return self.audio_proj(features)

    def see(self, image: Tensor) -> ImageFeatures:
        """The one clean pass over normalised pictures ``[B, 3, H, H]``, without gradient."""
        with torch.no_grad():
            return self.av_grounder.encode_image(image, reduced=True, dense=True)

    def ask(self, features: ImageFeatures, tokens: Tensor, gathered: bool = False) -> Tensor:
        """A ``[B, M, D]``: the embedding that every picture is asked with, for its own and the others' sounds."""
        A = self.prompt(tokens)
        A = gather_rows(A) if gathered else A
        return A.expand(len(tokens), *A.shape)

    def answer(self, features: ImageFeatures, tokens: Tensor) -> Tensor:
        """A ``[B, D]`` of matching pairs, for inference."""
        return self.prompt(tokens)

    def prompt(self, tokens: Tensor) -> Tensor:
        """Audio tokens ``[B, K, C]`` in their template to audio-driven embeddings ``[B, D]``, not normalised."""
        B = len(tokens)
        before, after = (self.av_grounder.embed_tokens(ids).expand(B, -1, -1) for ids in (self.before, self.after))
        return self.av_grounder.encode_tokens(torch.cat([before, tokens, after], dim=1))

    def mask_logits(self, reduced: list[Tensor], A: Tensor) -> Tensor:
        """M float32 ``[I, M, h, w]`` of pictures and the embeddings A ``[I, M, D]`` asked of each."""
        return self.av_grounder.decode(reduced, A)

    # ---- training

    def pairs(
        self,
        image: Tensor,
        features: ImageFeatures,
        A: Tensor,
        image_level: bool = True,
        noise: tuple[Tensor, Tensor] | None = None,
    ) -> Pairs:
        """Every picture under the mask of every sound.

        Args:
            image: normalised ``[B, 3, H, H]``.
            features: of those pictures, from `see`.
            A: ``[B, M, D]`` from `ask`.
            image_level: whether v_i is needed.
            noise: recorded uniform noise for the areas ``[B, M, h, w]`` and the image masks ``[B, 1, h, w]``.
        """
        B, M = A.shape[:2]
        rank = rank_and_world()[0] if M > B else 0
        own = torch.arange(B, device=A.device) + rank * B
        areas: list[Tensor] = []
        fmasks: list[Tensor] = []
        own_logits: list[Tensor] = []
        own_masks: list[Tensor] = []
        for start in range(0, B, self.chunk):
            rows = slice(start, start + self.chunk)
            reduced = [r[rows] for r in features.reduced]
            arguments = (reduced, A[rows], own[rows], noise[0][rows] if noise else None)
            if self.recompute and torch.is_grad_enabled():
                out = checkpoint(self._pair_rows, *arguments, use_reentrant=False)
            else:
                out = self._pair_rows(*arguments)
            for part, value in zip((areas, fmasks, own_logits, own_masks), out, strict=True):
                part.append(value)
        fmask = torch.cat(fmasks)
        v_i = None
        if image_level:
            side = image.shape[-1]
            if self.one_noise and self.image_mask == "hard":
                mask = at_side(torch.cat(own_masks)[:, None], side)
            else:
                grid = features.dense.shape[-1] if features.dense is not None else side
                mask = self._image_mask(torch.cat(own_logits)[:, None], side, grid, noise[1] if noise else None)
            v_i = self.av_grounder.encode_image(image * mask, pooled=True).pooled
        return Pairs(self.embedding(A), own, self._pool(features, fmask), v_i, torch.cat(areas))

    def _pair_rows(
        self, reduced: list[Tensor], A: Tensor, own: Tensor, u: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Areas ``[k, M]``, pooling masks ``[k, M, g, g]``, and the matching pairs' logits and masks ``[k, h, w]``."""
        M = self.mask_logits(reduced, A)
        hard = self.masker_i(M, u)
        grid = round((reduced[0].shape[1] - 1) ** 0.5)
        pooling = feature_mask(M, grid) if self.feature_mask == "feature" else sample_grid(hard, grid)
        rows = torch.arange(len(own), device=own.device)
        return hard.mean((-1, -2)), pooling, M[rows, own], hard[rows, own]

    def _image_mask(self, M: Tensor, side: int, grid: int, u: Tensor | None) -> Tensor:
        """What multiplies the pixels, ``[B, 1, H, H]``."""
        if self.image_mask == "feature":
            return upsampled(feature_mask(M, grid), side)
        M = at_side(M, side)
        return torch.sigmoid(M) if self.image_mask == "soft" else self.masker_i(M, u)

    def _pool(self, features: ImageFeatures, mask: Tensor) -> Tensor:
        """v_f ``[B, M, D]``: dense features under masks ``[B, M, g, g]``, in float32."""
        assert features.dense is not None
        with torch.autocast(mask.device.type, enabled=False):
            v_f = torch.einsum("imhw,idhw->imd", mask.float(), features.dense.float())
            total = mask.sum() if self.pooling == "batch" else mask.sum((-1, -2))[..., None]
            return v_f / (total + 1e-6)

    # ---- inference

    def locate(self, features: ImageFeatures, A: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Heat maps and confidences of S sounds in each picture.

        Args:
            features: of B pictures.
            A: ``[B, S, D]``.
            size: side of the heat map. Logits of another side are resized bicubically before the sigmoid.

        Returns:
            float32 ``[B, S, size, size]`` in [0, 1], and the cosine of v_f and A, ``[B, S]``.
        """
        M = self.mask_logits(features.reduced, A)
        grid = round((features.reduced[0].shape[1] - 1) ** 0.5)
        v_f = self._pool(features, feature_mask(M, grid))
        confidence = (F.normalize(v_f, dim=-1) * F.normalize(self.embedding(A).float(), dim=-1)).sum(-1)
        return self.masker_i.heatmap(at_side(M, size)), confidence

    def embedding(self, A: Tensor) -> Tensor:
        """The vector that stands for an asked embedding in a cosine; A itself here."""
        return A


def upsampled(mask: Tensor, side: int) -> Tensor:
    """A feature mask ``[..., g, g]`` at the picture's side, ``[..., H, H]``.

    The paper says that it is upsampled and has blurred boundaries (4.3.6): bilinear, align_corners False, is a choice.
    """
    flat = mask.flatten(0, -3)[:, None] if mask.ndim > 2 else mask[None, None]
    return F.interpolate(flat, (side, side), mode="bilinear", align_corners=False).view(*mask.shape[:-2], side, side)


def at_side(M: Tensor, side: int) -> Tensor:
    """``[B, S, h, w]`` at another side, bicubic (align_corners False) in float32; untouched where it fits."""
    if M.shape[-1] == side:
        return M
    return F.interpolate(M.float(), (side, side), mode="bicubic", align_corners=False)
