"""The layers of ImageBind's towers, under the official key names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.imagebind.config import AudioConfig, VisionConfig
from avloc.backbones.tokens import TextConfig

__all__ = ["EPS", "AudioStem", "FirstToken", "Patches", "Scale", "TextStem", "Trunk", "VisionStem", "head"]

LARGEST_SCALE = 100.0
EPS = 1e-6  # of every LayerNorm but the audio stem's


class Block(nn.Module):
    """Pre-norm Transformer block with exact GELU; its drop-path serves training alone and is not built."""

    def __init__(self, width: int, heads: int, bias_kv: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, add_bias_kv=bias_kv, batch_first=True)
        self.norm_1, self.norm_2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.norm_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm_2(x))))


class Trunk(nn.Module):
    """Blocks; ``norm_before`` puts a LayerNorm in front of them."""

    def __init__(self, width: int, layers: int, heads: int, norm_before: bool = False, bias_kv: bool = False) -> None:
        super().__init__()
        self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(width, EPS) if norm_before else nn.Identity())
        self.blocks = nn.ModuleList(Block(width, heads, bias_kv) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.pre_transformer_layer(x)
        for block in self.blocks:
            x = block(x, mask)
        return x


class Positions(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, width))


class Patches(nn.Module):
    """What vision and audio share: class token and positions around a stem's patches."""

    def __init__(self, stem: nn.Module, tokens: int, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.rgbt_stem = stem
        self.pos_embedding_helper = Positions(tokens + 1, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rgbt_stem(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], 1)
        return x + self.pos_embedding_helper.pos_embed


class VisionStem(nn.Module):
    """A convolution over patches of video, for pictures."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        size = (c.frames, c.patch, c.patch)
        self.proj = nn.Sequential(nn.Identity(), nn.Conv3d(3, c.width, size, stride=size, bias=False))

    def forward(self, pixels: Tensor) -> Tensor:
        conv = self.proj[1]
        assert isinstance(conv, nn.Conv3d)
        # A picture repeated over the kernel's frames meets the sum of their kernels.
        return F.conv2d(pixels, conv.weight.sum(2), stride=conv.stride[1:]).flatten(2).mT


class AudioStem(nn.Module):
    def __init__(self, c: AudioConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, c.width, c.kernel, stride=c.stride, bias=False)
        self.norm_layer = nn.LayerNorm(c.width)

    def forward(self, spectrogram: Tensor) -> Tensor:
        return self.norm_layer(self.proj(spectrogram).flatten(2).mT)


class TextStem(nn.Module):
    mask: Tensor

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(c.vocab_size, c.width)
        self.pos_embed = nn.Parameter(0.01 * torch.randn(1, c.context_length, c.width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        causal = torch.full((c.context_length, c.context_length), -math.inf).triu(1)
        self.register_buffer("mask", causal)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.pos_embed[:, : ids.shape[1]]


class FirstToken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class Scale(nn.Module):
    """Unit vectors times ``exp(log_logit_scale)``, at most 100; learnt or fixed."""

    log_logit_scale: Tensor

    def __init__(self, initial: float, learnt: bool) -> None:
        super().__init__()
        value = torch.tensor(math.log(initial))
        if learnt:
            self.log_logit_scale = nn.Parameter(value)
        else:
            self.register_buffer("log_logit_scale", value)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.log_logit_scale.exp().clamp(max=LARGEST_SCALE)


def head(width: int, embed_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width, EPS), FirstToken(), nn.Linear(width, embed_dim, bias=False))
