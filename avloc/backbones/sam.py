"""SAM: an image encoder, a prompt encoder and a mask decoder, frozen, over batches of different images.

The parameters live in the modules of the `segment-anything` package, so official ``.pth`` files load unchanged. This
module walks them in the ways that the methods need:

* the image encoder in parts (patches, a range of blocks, neck), so that what is frozen can be computed once and kept;
* attention in constant memory: the decomposed relative positions become extra columns of queries and keys, and the
  fused kernel of `scaled_dot_product_attention` never holds the 4096 x 4096 map that the package does;
* the decoder on (image, prompt) pairs: image b is asked prompt b (the package asks one image many prompts).

The arithmetic is that of facebookresearch/segment-anything, commit dca509f.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from avloc.backbones.pixels import per_channel
from avloc.backbones.towers import Tower, header, own_metadata
from avloc.weights import WeightError, load_into, locate, read_state

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "SAM", "TINY", "VIT_B", "VIT_H", "VIT_L", "SAMConfig"]

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class SAMConfig:
    """Sizes of a SAM; the defaults are ViT-B's.

    Args:
        image_size: side of the padded square image, pixels.
        patch_size: side of a patch; the embedding's grid is ``image_size / patch_size``.
        embed_dim: width of the image encoder.
        depth: its blocks.
        num_heads: its attention heads.
        mlp_ratio: hidden over outer width of its MLPs.
        window_size: side of the attention windows of blocks that are not global.
        global_attn_indexes: blocks whose attention sees the whole grid.
        transformer_dim: width of the embedding, the prompts and the decoder.
        mask_in_chans: hidden channels of the mask prompt.
        decoder_depth: two-way blocks.
        decoder_heads: attention heads of the decoder.
        mlp_dim: hidden width of the decoder's MLPs.
        attention_downsample_rate: outer over inner width of the cross-attentions.
        num_multimask_outputs: masks beside the first one.
        iou_head_depth: layers of the quality head.
        iou_head_hidden_dim: its hidden width.
    """

    image_size: int = 1024
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4
    window_size: int = 14
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    transformer_dim: int = 256
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    mlp_dim: int = 2048
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256

    @property
    def grid(self) -> int:
        """Side of the embedding."""
        return self.image_size // self.patch_size


VIT_B = SAMConfig()
VIT_L = SAMConfig(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23))
VIT_H = SAMConfig(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31))
OFFICIAL = {"sam_vit_b": VIT_B, "sam_vit_l": VIT_L, "sam_vit_h": VIT_H}

# The embedded world's: 64-pixel pictures, masks of 32 x 32, 0.35 M parameters.
TINY = SAMConfig(
    image_size=64,
    patch_size=8,
    embed_dim=64,
    depth=4,
    num_heads=4,
    mlp_ratio=2,
    window_size=4,
    global_attn_indexes=(1, 3),
    transformer_dim=64,
    mask_in_chans=8,
    decoder_heads=4,
    mlp_dim=128,
    iou_head_hidden_dim=64,
)

Layer = Any  # a layer of the segment-anything package, whose parts carry no types
Tap = Callable[[int, Tensor], Tensor]


class SAM(Tower):
    """A frozen SAM. Keys of the state dict are the official ones.

    Args:
        config: its sizes, e.g. `VIT_B`.
    """

    def __init__(self, config: SAMConfig = VIT_B) -> None:
        super().__init__()
        c = self.config = config
        self.image_encoder = ImageEncoderViT(
            img_size=c.image_size,
            patch_size=c.patch_size,
            embed_dim=c.embed_dim,
            depth=c.depth,
            num_heads=c.num_heads,
            mlp_ratio=c.mlp_ratio,
            out_chans=c.transformer_dim,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=c.window_size,
            global_attn_indexes=tuple(c.global_attn_indexes),
        )
        self.prompt_encoder = PromptEncoder(
            embed_dim=c.transformer_dim,
            image_embedding_size=(c.grid, c.grid),
            input_image_size=(c.image_size, c.image_size),
            mask_in_chans=c.mask_in_chans,
        )
        self.mask_decoder = MaskDecoder(
            transformer_dim=c.transformer_dim,
            transformer=TwoWayTransformer(
                depth=c.decoder_depth,
                embedding_dim=c.transformer_dim,
                num_heads=c.decoder_heads,
                mlp_dim=c.mlp_dim,
                attention_downsample_rate=c.attention_downsample_rate,
            ),
            num_multimask_outputs=c.num_multimask_outputs,
            iou_head_depth=c.iou_head_depth,
            iou_head_hidden_dim=c.iou_head_hidden_dim,
        )
        self.requires_grad_(False).eval()

    @classmethod
    def from_source(cls, source: str) -> SAM:
        """Build from a weight source (see `avloc.weights`); the size is read off the file.

        Raises:
            WeightError: the file is missing, damaged, no SAM, or a SAM of another size than its name says.
        """
        if source == "random":
            return cls(VIT_B)
        file = locate(source)
        assert file.path is not None
        state = read_state(file.path)
        if (own := own_metadata(file, "sam", "a SAM")) is not None:
            stored = json.loads(own["config"])
            config = SAMConfig(**stored | {"global_attn_indexes": tuple(stored["global_attn_indexes"])})
        else:
            config = official_size(state, file.path)
            if OFFICIAL.get(source, config) != config:
                raise WeightError(
                    f"{file.path} holds SAM of width {config.embed_dim}, but {source} has width "
                    f"{OFFICIAL[source].embed_dim}. Put the file that {source} names there, or ask for "
                    f"{next(name for name, size in OFFICIAL.items() if size == config)}."
                )
        model = cls(config)
        load_into(model, state, str(file.path))
        model.file = file
        return model

    def save_world(self, path: Path, **metadata: str) -> None:
        """Write half-precision safetensors with the configuration inside."""
        state = {k: v.half().contiguous() for k, v in self.state_dict().items()}
        save_file(state, path, metadata=header("sam", asdict(self.config)) | metadata)

    # ---- image encoder

    def prepare(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Normalise, then pad with zeros at right and bottom.

        Args:
            images: uint8 ``[B, 3, H, W]``, or B pictures ``[3, H, W]`` of different sizes, RGB; the longest side of
                each must be the model's ``image_size`` (see `resize_longest`).

        Returns:
            float32 ``[B, 3, image_size, image_size]``.

        Raises:
            ValueError: a picture has another longest side; names the first.
        """
        side = self.config.image_size
        mean, std = (per_channel(v, images[0].device) for v in (PIXEL_MEAN, PIXEL_STD))
        out = []
        for i, image in enumerate([images] if isinstance(images, Tensor) else images):
            height, width = image.shape[-2:]
            if max(height, width) != side:
                which = "" if isinstance(images, Tensor) else f"picture {i} of the batch "
                raise ValueError(
                    f"SAM wants pictures whose longest side is {side} pixels; {which}has {height} x {width}. Set "
                    "image_size of the method's InputSpec accordingly, or call SAM.resize_longest first."
                )
            out.append(F.pad((image.float() - mean) / std, (0, side - width, 0, side - height)))
        return out[0] if isinstance(images, Tensor) else torch.stack(out)

    def resize_longest(self, image: np.ndarray) -> np.ndarray:
        """uint8 ``[H, W, 3]`` with its longest side at ``image_size``: PIL's bilinear filter, antialiased."""
        return ResizeLongestSide(self.config.image_size).apply_image(image)

    def model_size(self, original_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a picture of ``original_size`` in the model's frame, without padding."""
        return ResizeLongestSide.get_preprocess_shape(*original_size, self.config.image_size)

    def to_model_frame(self, points: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Points ``[..., 2]`` as (x, y) in pixels of the original picture, to pixels of the model's frame.

        A box is two points: view ``[P, 4]`` as ``[P, 2, 2]``.
        """
        new, old = self.model_size(original_size), original_size
        return points * torch.tensor([new[1] / old[1], new[0] / old[0]], device=points.device)

    def patches(self, pixels: Tensor) -> Tensor:
        """Prepared pixels ``[B, 3, image_size, image_size]`` to tokens with positions, ``[B, g, g, C]``.

        Raises:
            ValueError: pixels of another size.
        """
        side = self.config.image_size
        if pixels.shape[-2:] != (side, side):
            raise ValueError(
                f"This SAM sees {side} x {side} pixels; got {pixels.shape[-2]} x {pixels.shape[-1]}. "
                "Prepare pictures with SAM.prepare."
            )
        return self.image_encoder.patch_embed(pixels) + self.image_encoder.pos_embed

    def blocks(self, x: Tensor, start: int = 0, stop: int | None = None, after_mlp: Tap | None = None) -> Tensor:
        """Blocks ``start`` to ``stop`` (exclusive) over tokens ``[B, g, g, C]``.

        Args:
            x: what block ``start - 1`` left.
            start: first block.
            stop: the block before which to stop; None for all.
            after_mlp: called with a block's number and its MLP's output, before the residual sum.
        """
        for i, block in list(enumerate(self.image_encoder.blocks))[start:stop]:
            x = encoder_block(block, x, partial(after_mlp, i) if after_mlp else None)
        return x

    def neck(self, x: Tensor) -> Tensor:
        """Tokens ``[B, g, g, C]`` to the image embedding ``[B, transformer_dim, g, g]``."""
        return self.image_encoder.neck(x.permute(0, 3, 1, 2))

    def encode(self, pixels: Tensor) -> Tensor:
        """Prepared pixels to the image embedding ``[B, transformer_dim, g, g]``."""
        return self.neck(self.blocks(self.patches(pixels)))

    # ---- prompts and decoder

    def prompts(
        self,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sparse tokens ``[P, N, D]`` and dense prompt ``[P, D, g, g]`` of P prompts.

        Args:
            points: coordinates ``[P, n, 2]`` (x, y) in the model's frame and labels ``[P, n]``: 1 inside,
                0 outside, -1 padding.
            boxes: ``[P, 4]``, top-left and bottom-right corner in the model's frame.
            masks: logits ``[P, 1, 4g, 4g]``.
        """
        with torch.autocast(self.no_mask().device.type, enabled=False):  # positions are phases
            return self.prompt_encoder(points=points, boxes=boxes, masks=masks)

    def dense_position(self) -> Tensor:
        """Position code of the grid's cells, float32 ``[1, D, g, g]``."""
        with torch.autocast(self.no_mask().device.type, enabled=False):
            return self.prompt_encoder.get_dense_pe()

    def no_mask(self) -> Tensor:
        """Dense prompt ``[1, D, 1, 1]`` where no mask is given."""
        return self.prompt_encoder.no_mask_embed.weight[:, :, None, None]

    def decode(
        self,
        embedding: Tensor,
        sparse: Tensor,
        dense: Tensor | None = None,
        *,
        masks: slice = slice(None),
        after_mlp: Tap | None = None,
        context: Tap | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mask logits of P (image, prompt) pairs.

        Args:
            embedding: ``[P, D, g, g]``, or ``[1, D, g, g]`` for one image that is asked P prompts.
            sparse: prompt tokens ``[P, N, D]``.
            dense: dense prompt that broadcasts to the embedding; `no_mask` if absent.
            masks: which of the decoder's outputs; 0 is the one for an unambiguous prompt, 1.. the multi-mask ones.
            after_mlp: called with a two-way block's number and its MLP's output, before the residual sum.
            context: called with the block's number and its tokens ``[P, 5 + N, D]`` on their way to being keys and
                values of the image's attention; the tokens themselves go on unchanged.

        Returns:
            logits ``[P, M, 4g, 4g]`` and predicted IoUs ``[P, M]`` of the M outputs asked for.

        Raises:
            ValueError: neither one image nor one per prompt.
        """
        if len(embedding) not in (1, len(sparse)):
            raise ValueError(
                f"{len(embedding)} image embeddings and {len(sparse)} prompts: give one image, or one per prompt."
            )
        decoder, P = self.mask_decoder, len(sparse)
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(P, -1, -1), sparse], dim=1)
        source = embedding + (self.no_mask() if dense is None else dense)
        image = source.expand(P, -1, -1, -1).flatten(2).transpose(1, 2)
        position = self.dense_position().flatten(2).transpose(1, 2)
        tokens, image = two_way(decoder.transformer, tokens, image, position, after_mlp, context)

        g = self.config.grid
        upscaled = decoder.output_upscaling(image.transpose(1, 2).unflatten(2, (g, g)))
        chosen = range(decoder.num_mask_tokens)[masks]
        weights = [decoder.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in chosen]
        logits = torch.einsum("pmc,pchw->pmhw", torch.stack(weights, dim=1), upscaled)
        return logits, decoder.iou_prediction_head(tokens[:, 0])[:, masks]

    def upscale(self, logits: Tensor, input_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Low-resolution logits ``[P, M, 4g, 4g]`` to a picture's own size.

        Args:
            logits: from `decode`.
            input_size: height and width of the picture in the model's frame, without padding.
            size: height and width wanted.

        Returns:
            float32 ``[P, M, *size]``: bilinear to ``image_size``, cropped, bilinear to ``size``.
        """
        side, resize = self.config.image_size, partial(F.interpolate, mode="bilinear", align_corners=False)
        framed = resize(logits.float(), (side, side))[..., : input_size[0], : input_size[1]]
        return resize(framed, size)


def official_size(state: dict[str, Any], path: Path) -> SAMConfig:
    """Which published SAM a state dict is."""
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if not isinstance(patches, Tensor):
        raise WeightError(f"{path} is no SAM checkpoint: it has {sorted(state)[:3]}, no image_encoder.patch_embed.")
    for config in OFFICIAL.values():
        if config.embed_dim == len(patches):
            return config
    raise WeightError(
        f"{path} holds an image encoder of width {len(patches)}; SAM comes in "
        f"{', '.join(f'{c.embed_dim} ({name})' for name, c in OFFICIAL.items())}."
    )


# ---- pieces of the image encoder


def encoder_block(block: Layer, x: Tensor, after_mlp: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """One block of the image encoder over tokens ``[B, g, g, C]``."""
    h, size = block.norm1(x), x.shape[1:3]
    if block.window_size:
        h, padded = window_partition(h, block.window_size)
        h = window_unpartition(encoder_attention(block.attn, h), block.window_size, padded, size)
    else:
        h = encoder_attention(block.attn, h)
    x = x + h
    h = block.mlp(block.norm2(x))
    return x + (after_mlp(h) if after_mlp else h)


def encoder_attention(attention: Layer, x: Tensor) -> Tensor:
    """Self-attention with decomposed relative positions over ``[B, H, W, C]``.

    The score of a pair is ``q k / sqrt(d) + q R_h[dy] + q R_w[dx]``. With one-hot rows and columns beside the keys it
    is a single scalar product, ``(q / sqrt(d), q R_h, q R_w) (k, row, column)``, which a fused kernel can take.
    """
    B, H, W, C = x.shape
    heads, N = attention.num_heads, H * W
    q, k, v = attention.qkv(x).view(B, N, 3, heads, C // heads).permute(2, 0, 3, 1, 4)
    grid = q.unflatten(2, (H, W))
    by_row = torch.einsum("bnhwc,hkc->bnhwk", grid, relative(attention.rel_pos_h, H).to(q.dtype)).flatten(2, 3)
    by_column = torch.einsum("bnhwc,wkc->bnhwk", grid, relative(attention.rel_pos_w, W).to(q.dtype)).flatten(2, 3)
    if N <= SMALL_GRID:
        bias = (by_row[..., :, None] + by_column[..., None, :]).flatten(-2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    else:
        rows = torch.eye(H, dtype=k.dtype, device=k.device).repeat_interleave(W, 0).expand(B, heads, -1, -1)
        columns = torch.eye(W, dtype=k.dtype, device=k.device).repeat(H, 1).expand(B, heads, -1, -1)
        queries = torch.cat([q * attention.scale, by_row, by_column], dim=-1)
        keys = torch.cat([k, rows, columns], dim=-1)
        values = F.pad(v, (0, H + W))  # the fused kernels want one width
        y = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., : C // heads]
    return attention.proj(y.transpose(1, 2).reshape(B, H, W, C))


SMALL_GRID = 256  # positions up to which a bias is cheaper than wider queries


def relative(table: Tensor, size: int) -> Tensor:
    """Vectors ``[size, size, d]`` of relative positions, from their table ``[2 size - 1, d]``."""
    at = torch.arange(size, device=table.device)
    return table[at[:, None] - at[None] + size - 1]


# ---- pieces of the decoder


def two_way(
    transformer: Layer,
    tokens: Tensor,
    image: Tensor,
    position: Tensor,
    after_mlp: Tap | None,
    context: Tap | None,
) -> tuple[Tensor, Tensor]:
    """Tokens ``[P, N, D]`` and image ``[P, g*g, D]`` attending to each other; the first tokens are their own code."""
    code, x = tokens, tokens
    for i, layer in enumerate(transformer.layers):
        if layer.skip_first_layer_pe:
            x = attend(layer.self_attn, x, x, x)
        else:
            x = x + attend(layer.self_attn, x + code, x + code, x)
        x = layer.norm1(x)
        x = layer.norm2(x + attend(layer.cross_attn_token_to_image, x + code, image + position, image))
        h = layer.mlp(x)
        x = layer.norm3(x + (after_mlp(i, h) if after_mlp else h))
        c = context(i, x) if context else x
        image = layer.norm4(image + attend(layer.cross_attn_image_to_token, image + position, c + code, c))
    x = x + attend(transformer.final_attn_token_to_image, x + code, image + position, image)
    return transformer.norm_final_attn(x), image


def attend(attention: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Multi-head attention with a decoder attention's projections."""

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    y = F.scaled_dot_product_attention(
        split(attention.q_proj(q)), split(attention.k_proj(k)), split(attention.v_proj(v))
    )
    return attention.out_proj(y.transpose(1, 2).flatten(2))
