"""AudioCLIP's image tower: CLIP's ResNet-50, whose pooling also gives patches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ImageConfig", "ImageTower", "Positions"]

Positions = Literal["sequence", "grid"]


@dataclass(frozen=True)
class ImageConfig:
    """Sizes of the image tower; the defaults are CLIP RN50's.

    Args:
        size: side of the square picture that the position table is made for, pixels.
        layers: blocks of the four stages.
        width: channels behind the stem; the map has 32 times as many.
        heads: attention heads of the pooling.
        strides: of stages two to four; the tower's stride is 4 times their product.

    Raises:
        ValueError: the size is no multiple of the stride, or the heads do not divide the map's channels.
    """

    size: int = 224
    layers: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    heads: int = 32
    strides: tuple[int, ...] = (2, 2, 2)

    def __post_init__(self) -> None:
        if self.size % self.stride:
            raise ValueError(f"AudioCLIP: image size {self.size} is no multiple of the stride {self.stride}.")
        if 32 * self.width % self.heads:
            raise ValueError(f"AudioCLIP: {self.heads} heads do not divide the map's {32 * self.width} channels.")

    @property
    def stride(self) -> int:
        """Pixels from one patch to the next."""
        return 4 * math.prod(self.strides)


class AttentionPool(AttentionPool2d):
    """Self-attention over the patches of a map, whose mean token is the picture's embedding."""

    def forward(self, x: Tensor) -> Tensor:
        """The embedding ``[B, D]`` of a map ``[B, C, h, w]``."""
        tokens = with_mean(x)
        tokens = tokens + self.positions(tokens.shape[1])
        return self.attend(tokens[:, :1], tokens)[:, 0]

    def tokens(self, x: Tensor, positions: Positions = "sequence") -> Tensor:
        """The patches ``[B, h*w, D]`` of a map ``[B, C, h, w]``; see `ImageTower.tokens`."""
        if positions == "grid":
            tokens = with_mean(x) + self.grid_positions(*x.shape[2:])
            return self.attend(tokens[:, 1:], tokens)
        tokens = x.flatten(2).mT
        tokens = tokens + self.positions(tokens.shape[1])
        return self.attend(tokens, tokens)

    def positions(self, rows: int) -> Tensor:
        """``[rows, C]``: the first row of the table, and the others resized as one sequence where they do not fit."""
        table = self.positional_embedding
        if rows == len(table):
            return table
        if rows == 1:
            return table[:1]
        resized = F.interpolate(table[1:].T[None].float(), rows - 1, mode="linear", align_corners=True)[0].T
        return torch.cat([table[:1], resized.to(table.dtype)])

    def grid_positions(self, height: int, width: int) -> Tensor:
        """``[1 + height*width, C]``: the rows behind the first resized as the picture's grid, bicubically."""
        table = self.positional_embedding
        side = math.isqrt(len(table) - 1)
        if (height, width) == (side, side):
            return table
        grid = table[1:].T.unflatten(1, (side, side))[None].float()
        grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)[0]
        return torch.cat([table[:1], grid.flatten(1).T.to(table.dtype)])

    def attend(self, queries: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, queries), (self.k_proj, context), (self.v_proj, context))
        )
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def with_mean(x: Tensor) -> Tensor:
    """``[B, C, h, w]`` to ``[B, 1 + h*w, C]``, the mean first."""
    tokens = x.flatten(2).mT
    return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)


class ImageTower(ModifiedResNet):
    """CLIP's ResNet: open_clip's stem and stages, and a pooling that also gives patches.

    Args:
        config: its sizes.
        embed_dim: D.
    """

    def __init__(self, config: ImageConfig, embed_dim: int) -> None:
        super().__init__(list(config.layers), embed_dim, config.heads, config.size, config.width)
        self.config = config
        for stage, stride in zip((self.layer2, self.layer3, self.layer4), config.strides, strict=True):
            stage[0].avgpool = nn.AvgPool2d(stride)
            stage[0].downsample[0] = nn.AvgPool2d(stride)
        channels = 32 * config.width
        self.attnpool = AttentionPool(config.size // config.stride, channels, config.heads, embed_dim)
        for project in (self.attnpool.q_proj, self.attnpool.k_proj, self.attnpool.v_proj, self.attnpool.c_proj):
            nn.init.normal_(project.weight, std=channels**-0.5)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches of a picture of ``height`` x ``width`` pixels.

        Raises:
            ValueError: a side is no multiple of the stride.
        """
        stride = self.config.stride
        if not height or not width or height % stride or width % stride:
            raise ValueError(
                f"AudioCLIP wants pictures whose sides are multiples of {stride} pixels; got {height} x {width}. "
                "Set image_size of the method's InputSpec accordingly."
            )
        return height // stride, width // stride

    def features(self, pixels: Tensor) -> Tensor:
        """The map before the pooling.

        Args:
            pixels: float ``[B, 3, H, W]``, with CLIP's mean and deviation (`avloc.backbones.clipseg.normalise`).

        Returns:
            ``[B, 32 width, H / stride, W / stride]``.

        Raises:
            ValueError: the pixels are not ``[B, 3, H, W]``, or a side is no multiple of the stride.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"AudioCLIP wants pictures [B, 3, H, W], got {list(pixels.shape)}.")
        self.grid(*pixels.shape[2:])
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(pixels)))))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embedding ``[B, D]`` of pictures as in `features`, not normalised."""
        return self.attnpool(self.features(pixels))

    def tokens(self, pixels: Tensor, positions: Positions = "sequence") -> Tensor:
        """Patches of pictures, row by row, not normalised; each attends to all of its picture.

        Args:
            pixels: as in `features`.
            positions: ``sequence`` is T-VSL's released way: there is no mean token, the first patch gets the mean
                token's position, and the table is resized as a sequence, which shifts all the others. ``grid``
                keeps the mean token among the keys and resizes the table as a picture: the attention that CLIP was
                trained with.

        Returns:
            ``[B, h*w, D]``.
        """
        return self.attnpool.tokens(self.features(pixels), positions)
