"""The attentive audio tokenizer: audio features to one or several words."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AudioTokenizer"]


class AudioTokenizer(nn.Module):
    """Two-layer projection, then attentive pooling over the positions; one attention head a token.

    Key names are those of the ``audio_proj`` entry of the official ACL checkpoint, whose ``tokens`` is 1. The
    paper varies the number of tokens (1, 2, 4, 8) without saying how several are made, and the released code
    makes one. Here token k has potentials of its own (``un_models.k``, ``pp_models.k``,
    ``reduce_potentials.k``) over the shared projected features.

    Args:
        input_size: channels of the audio features.
        output_size: width of a token, C.
        tokens: number of tokens K.
        dropout: probability, in train mode, behind the ReLU of the unary potential.

    Raises:
        ValueError: ``tokens`` is below 1.
    """

    def __init__(self, input_size: int = 2304, output_size: int = 512, tokens: int = 1, dropout: float = 0.5) -> None:
        super().__init__()
        if tokens < 1:
            raise ValueError(f"AudioTokenizer: tokens must be 1 or more, got {tokens}.")
        self.fc1 = nn.Linear(input_size, input_size)
        self.fc2 = nn.Linear(input_size, output_size)
        self.fga = AttentivePooling(output_size, tokens, dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Tokens of each clip.

        Args:
            features: ``[B, N, input_size]``.

        Returns:
            ``[B, K, output_size]``, not normalised.
        """
        return self.fga(self.fc2(F.gelu(self.fc1(features))))


class AttentivePooling(nn.Module):
    """Weighted sums of ``[B, N, C]`` over the positions, ``[B, K, C]``.

    The weights are ``softmax_t(r0 u_t + r1 p_t)`` with a unary potential u and a self-interaction potential p
    (factor-graph attention).
    """

    def __init__(self, width: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.un_models = nn.ModuleList(UnaryPotential(width, dropout) for _ in range(tokens))
        self.pp_models = nn.ModuleList(InteractionPotential(width) for _ in range(tokens))
        self.reduce_potentials = nn.ModuleList(PointwiseConv(2, 1, bias=False) for _ in range(tokens))

    def forward(self, x: Tensor) -> Tensor:
        heads = zip(self.un_models, self.pp_models, self.reduce_potentials, strict=True)
        logits = [reduce(torch.stack([unary(x), pair(x)], dim=-1)).squeeze(-1) for unary, pair, reduce in heads]
        return torch.stack(logits, dim=1).softmax(dim=-1) @ x


class PointwiseConv(nn.Conv1d):
    """A 1x1 convolution over ``[B, N, C]``: a linear map whose weight has the official trailing 1."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.squeeze(-1), self.bias)


class UnaryPotential(nn.Module):
    """How much a position says by itself, ``[B, N]``; a softmax cancels the bias of the reduction."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.embed = PointwiseConv(width, width)
        self.feature_reduce = PointwiseConv(width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.feature_reduce(self.dropout(F.relu(self.embed(x)))).squeeze(-1)


class InteractionPotential(nn.Module):
    """Mean cosine between a position and all positions, ``[B, N]``.

    The mean over s of ``<X_t, Y_s>`` is ``<X_t, mean_s Y_s>``, so the N x N matrix is never built.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed_X = PointwiseConv(width, width)
        self.embed_Y = PointwiseConv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        centre = F.normalize(self.embed_Y(x), dim=-1).mean(dim=1, keepdim=True)
        return (F.normalize(self.embed_X(x), dim=-1) * centre).sum(dim=-1)
