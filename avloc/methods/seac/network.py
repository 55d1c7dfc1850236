"""SeAC's trained part: attention pooling of sound over time, mask encoder, projections, temperature.

What the paper leaves open is an option. B samples of N masks, K sounds of T seconds, d_m width of a mask's features,
d_a of a second of sound, d of the shared space. Torch only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Design", "SeACNetwork", "TimePooling"]


@dataclass(frozen=True)
class Design:
    """Sizes and readings of the association module.

    Args:
        layers: of the mask encoder's Transformer. Paper: 4.
        heads: not stated; they must divide the encoder's width.
        hidden: width of its feed-forward part; not stated.
        dropout: not stated.
        norm: LayerNorm before (``pre``) or after (``post``) the residual sums; not stated.
        final_norm: a LayerNorm behind the last layer, as pre-norm encoders have; not stated.
        width: of the mask encoder; None for that of the features, which the paper's phi_m (d_m x d) asks for; 256
            is a smaller variant (choice).
        size: d, of the shared space. Paper: 128.
        pooling: over the seconds of a sound. The paper says ``attention`` but cites a work whose code takes the
            ``max``.
        bias: of phi_a and phi_m; not stated.
        tau: initial temperature; not stated.
        tau_range: where it stays; not stated.
        learn_tau: as the paper does.
    """

    layers: int = 4
    heads: int = 8
    hidden: int = 2048
    dropout: float = 0.1
    norm: Literal["pre", "post"] = "pre"
    final_norm: bool = True
    width: int | None = None
    size: int = 128
    pooling: Literal["attention", "mean", "max"] = "attention"
    bias: bool = True
    tau: float = 0.07
    tau_range: tuple[float, float] = (0.01, 1.0)
    learn_tau: bool = True


class TimePooling(nn.Module):
    """One learned query over the seconds: ``w_t = softmax_t(q W_k x_t / sqrt(d))``, ``a = sum_t w_t W_v x_t``.

    Args:
        size: width d of a second.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(size))
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[K, T, d]`` to ``[K, d]``."""
        weights = (self.key(x) @ self.query / math.sqrt(len(self.query))).softmax(1)
        return (weights[:, None] @ self.value(x))[:, 0]


class SeACNetwork(nn.Module):
    """Masks and sounds in one space.

    Args:
        mask_size: d_m.
        audio_size: d_a.
        design: sizes and readings.

    Raises:
        ValueError: heads do not divide the width, or the temperature starts outside of its range.
    """

    def __init__(self, mask_size: int = 1024, audio_size: int = 128, design: Design = Design()) -> None:
        super().__init__()
        self.design = d = design
        self.mask_size = mask_size
        width = d.width or mask_size
        if width % d.heads:
            raise ValueError(f"SeAC: {d.heads} heads do not divide the mask encoder's width {width}. Set design.heads.")
        low, high = d.tau_range
        if not 0 < low <= d.tau <= high:
            raise ValueError(f"SeAC: tau {d.tau:g} is not within tau_range {low:g} to {high:g}, both above 0.")
        self.pool = TimePooling(audio_size) if d.pooling == "attention" else None
        self.fc = nn.Linear(mask_size, width)
        layer = nn.TransformerEncoderLayer(
            width, d.heads, d.hidden, d.dropout, "gelu", batch_first=True, norm_first=d.norm == "pre"
        )
        norm = nn.LayerNorm(width) if d.final_norm else None
        self.encoder = nn.TransformerEncoder(layer, d.layers, norm, enable_nested_tensor=False)
        self.phi_m = nn.Linear(width, d.size, bias=d.bias)
        self.phi_a = nn.Linear(audio_size, d.size, bias=d.bias)
        self.log_tau = nn.Parameter(torch.tensor(math.log(d.tau)), requires_grad=d.learn_tau)
        # The package's encoder copies one initialised layer; every layer shall start from numbers of its own.
        for p in self.encoder.parameters():
            if p.ndim > 1:
                nn.init.xavier_uniform_(p)

    def embed_masks(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Masks in the shared space. They see each other but have no order: there is no position code.

        Args:
            features: f_n, CLIP mixtures ``[B, N, d_m]`` of any float type.
            valid: bool ``[B, N]``, False for padding, which no mask sees; at least one mask per sample.

        Returns:
            ``[B, N, d]``; rows of padding mean nothing.
        """
        x = self.fc(features.to(self.fc.weight.dtype))
        return self.phi_m(self.encoder(x, src_key_padding_mask=None if valid is None else ~valid))

    def embed_audio(self, seconds: Tensor) -> Tensor:
        """Sounds in the shared space, ``[K, d]`` of VGGish embeddings ``[K, T, d_a]``."""
        if self.pool is not None:
            return self.phi_a(self.pool(seconds))
        return self.phi_a(seconds.mean(1) if self.design.pooling == "mean" else seconds.amax(1))

    def temperature(self) -> Tensor:
        """tau, float32 scalar.

        Its logarithm is put back into the range before it is used: clamping the value instead would stop its gradient
        outside for good.
        """
        low, high = self.design.tau_range
        with torch.no_grad():
            self.log_tau.clamp_(math.log(low), math.log(high))
        return self.log_tau.float().exp()
