"""DINO's vision transformer (Caron et al., ICCV 2021), as DenseAV sees with it.

Reads ``dino_deitsmall8_pretrain.pth`` (source ``dino_vits8``). The layers are timm's; DenseAV's epsilon of every norm
(1e-4, where DINO and timm have 1e-6) and its way of resizing positions are here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from avloc.weights import WeightFile, load_into, locate, read_state

__all__ = ["DINO", "EPSILON"]

EPSILON = 1e-4


class DINO(VisionTransformer):
    """ViT-S/8 by default: 384 wide, 12 blocks, positions of 28 x 28 patches. Its parameters have DINO's own names.

    Args:
        image_size: side in pixels of the square that the stored positions belong to.
        patch_size: pixels.
        embed_dim, depth, num_heads: width, blocks, heads.
    """

    def __init__(
        self, image_size: int = 224, patch_size: int = 8, embed_dim: int = 384, depth: int = 12, num_heads: int = 6
    ) -> None:
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=0,
            global_pool="",
            norm_layer=partial(nn.LayerNorm, eps=EPSILON),
        )
        self.patch_size, self.stored_side = patch_size, image_size // patch_size
        self.file = WeightFile("random", None, "")

    @classmethod
    def from_source(cls, source: str, **sizes: Any) -> DINO:
        """The network of a weight source; ``random`` keeps its initial values.

        Raises:
            WeightError: the file is missing, damaged, or of another model or size.
        """
        model, file = cls(**sizes), locate(source)
        if file.path is not None:
            load_into(model, read_state(file.path), str(file.path))
        model.file = file
        return model

    def positions(self, h: int, w: int) -> Tensor:
        """The table that is added to a class token and ``h`` x ``w`` patches, ``[1, 1 + h w, C]``: as stored where the
        picture is a square of the stored size, else resized bicubically by (n + 0.1) / 28 a side, which also says where
        the samples lie."""
        stored, n = self.pos_embed, self.stored_side
        if h == w == n:
            return stored
        grid = stored[:, 1:].reshape(1, n, n, -1).movedim(-1, 1)
        scale = ((h + 0.1) / n, (w + 0.1) / n)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
        return torch.cat([stored[:, :1], grid.flatten(2).mT], 1)

    def see(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens ``[B, C, H / 8, W / 8]`` and class tokens ``[B, C]`` behind the last norm.

        Args:
            image: normalised pixels ``[B, 3, H, W]``; sides are multiples of the patch.
        """
        patches = self.patch_embed.proj(image)
        h, w = patches.shape[-2:]
        x = torch.cat([self.cls_token.expand(len(image), -1, -1), patches.flatten(2).mT], 1) + self.positions(h, w)
        x = self.norm(self.blocks(x))
        return x[:, 1:].mT.unflatten(-1, (h, w)), x[:, 0]
