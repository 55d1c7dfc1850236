"""Similarities of pooled features, which DenseAV is compared with: CAVMAE's, ImageBind's, SimPool's. No released model
uses them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SimPool", "cavmae", "imagebind", "simpool"]


def cavmae(image: Tensor, audio: Tensor) -> Tensor:
    """Cosine of the means over all cells, ``[A, V]``, of ``[V, C, h, w]`` and ``[A, C, F, T]``."""
    v, a = (F.normalize(x.mean((-2, -1)), dim=-1) for x in (image, audio))
    return a @ v.T


def imagebind(image_cls: Tensor, audio_cls: Tensor) -> Tensor:
    """Inner product of the class vectors, ``[A, V]``."""
    return audio_cls @ image_cls.T


class SimPool(nn.Module):
    """One vector of all tokens, by an attention that their mean asks for (Psomas et al., ICCV 2023).

    Args:
        dim: C.
        gamma: exponent of the generalised mean.
    """

    def __init__(self, dim: int, gamma: float = 1.25) -> None:
        super().__init__()
        self.gamma = gamma
        self.norm_patches = nn.LayerNorm(dim, 1e-6)
        self.wq, self.wk = (nn.Linear(dim, dim, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C]`` of ``[B, C, ...]``. The smallest value, of the whole batch, is what becomes 0."""
        tokens = x.flatten(2).mT
        v = self.norm_patches(tokens)
        q, k = self.wq(tokens.mean(1, keepdim=True)), self.wk(v)
        weights = (q @ k.mT * tokens.shape[-1] ** -0.5).softmax(-1)
        return (weights @ (v - v.amin() + 1e-6).pow(self.gamma)).pow(1 / self.gamma)[:, 0]


def simpool(pool: SimPool, image: Tensor, audio: Tensor) -> Tensor:
    """Inner products of what one pooling makes of both, ``[A, V]``."""
    out: Tensor = torch.einsum("ac,vc->av", pool(audio), pool(image))
    return out
