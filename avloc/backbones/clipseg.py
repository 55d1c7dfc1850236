"""CLIPSeg as a grounder that is asked by a vector: CLIP's two towers and the mask decoder, frozen.

The parameters live in `transformers.CLIPSegForImageSegmentation`, so official checkpoints load unchanged
(`hf:CIDAS/clipseg-rd64-refined`). This module walks them in the three ways that the methods need:

* one pass of the vision tower gives the decoder's inputs, dense CLIP features and the pooled embedding;
* the text tower is driven by token embeddings, some of which come from sound;
* the decoder runs on (image, embedding) pairs, and what depends on the image alone is computed once.

What is walked, and in which order, follows ACL-SSL's published code (swimmiing/ACL-SSL, commit 57f4a6c).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from avloc.backbones.pixels import per_channel
from avloc.backbones.tokens import Tokenizer, clip_tokenizer
from avloc.backbones.towers import Tower, header, own_parts
from avloc.weights import load_into, locate, read_state

__all__ = ["CLIP_MEAN", "CLIP_STD", "RD64_REFINED", "CLIPSeg", "ImageFeatures", "normalise"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Architecture of CIDAS/clipseg-rd64-refined (its position table is that of a 224-pixel image).
RD64_REFINED: dict[str, Any] = {
    "text_config": {"eos_token_id": 49407, "bos_token_id": 49406},
    "vision_config": {"image_size": 224, "patch_size": 16},
    "projection_dim": 512,
    "extract_layers": [3, 6, 9],
    "reduce_dim": 64,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 2048,
    "conditional_layer": 0,
    "use_complex_transposed_convolution": True,
}

Layer = Any  # a transformer layer of transformers' CLIPSeg, whose parts carry no types


@dataclass
class ImageFeatures:
    """What one pass of the vision tower leaves behind; None where it was not asked for.

    Attributes:
        reduced: decoder inputs, deepest first, each ``[B, 1 + g*g, R]`` with R the decoder's width.
        dense: float ``[B, D, g, g]``, CLIP features of every patch, not normalised.
        pooled: float ``[B, D]``, CLIP's image embedding, not normalised.
        hidden: float ``[B, C]``, the class token before projection.
        activations: hidden states after the extracted layers, shallowest first.
    """

    reduced: list[Tensor]
    activations: list[Tensor]
    dense: Tensor | None = None
    pooled: Tensor | None = None
    hidden: Tensor | None = None


def normalise(image: Tensor) -> Tensor:
    """uint8 ``[B, 3, H, W]`` to float32 with CLIP's mean and standard deviation."""
    mean, std = (per_channel(v, image.device) for v in (CLIP_MEAN, CLIP_STD))
    return (image.float() / 255 - mean) / std


class CLIPSeg(Tower):
    """A frozen CLIPSeg.

    Args:
        config: arguments of `transformers.CLIPSegConfig`, e.g. `RD64_REFINED`.
        tokenizer: turns text into ids of the text tower's vocabulary.
    """

    def __init__(self, config: dict[str, Any], tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = CLIPSegConfig(**config)
        model = CLIPSegForImageSegmentation(self.config)
        self.clip, self.decoder = model.clip, model.decoder
        self.tokenizer = tokenizer
        self.block: Callable[[Layer, Tensor], Tensor] = encoder_block
        self.requires_grad_(False).eval()

    @classmethod
    def from_source(cls, source: str) -> CLIPSeg:
        """Build from a weight source (see `avloc.weights`).

        Raises:
            WeightError: the file is missing, damaged, or not a CLIPSeg.
        """
        file = locate(source)
        if file.path is None:
            return cls(RD64_REFINED, clip_tokenizer())
        if (own := own_parts(file, "clipseg", "a CLIPSeg")) is not None:
            model = cls(*own)
        else:
            beside = file.path.parent / "config.json"
            model = cls(json.loads(beside.read_text()) if beside.is_file() else RD64_REFINED, clip_tokenizer())
        load_into(model, read_state(file.path), str(file.path), ignore=("position_ids",))
        model.file = file
        return model

    def save_world(self, path: Path, **metadata: str) -> None:
        """Write half-precision safetensors with configuration and tokenizer inside."""
        assert self.tokenizer is not None
        config = self.config.to_diff_dict()
        keep = {k: config[k] for k in RD64_REFINED if k in config}
        state = {k: v.half().contiguous() for k, v in self.state_dict().items()}
        save_file(state, path, metadata=header("clipseg", keep, self.tokenizer) | metadata)

    def compile_towers(self) -> None:
        """`torch.compile` the vision tower's layers in place; state-dict keys keep their names."""
        self.block = torch.compile(encoder_block)

    @property
    def width(self) -> int:
        """D: size of CLIP's joint embedding."""
        return self.config.projection_dim

    @property
    def token_width(self) -> int:
        """Size of a text token's embedding."""
        return self.config.text_config.hidden_size

    # ---- vision tower

    def encode_image(
        self, pixels: Tensor, *, reduced: bool = False, dense: bool = False, pooled: bool = False
    ) -> ImageFeatures:
        """One pass over normalised images; only what is asked for is computed in the last layer.

        Args:
            pixels: float ``[B, 3, H, H]``, H a multiple of the patch size.
            reduced: the decoder's inputs.
            dense: CLIP features per patch: in the last layer the attention is replaced by
                ``out_proj(v_proj(layer_norm1(h)))``, as ACL-SSL's code does: every patch then speaks for itself.
            pooled: CLIP's image embedding.

        Raises:
            ValueError: the image is not square or not a multiple of the patch size.
        """
        vision = self.clip.vision_model
        x = vision.pre_layrnorm(self._embed(pixels))
        layers = vision.encoder.layers
        taps = list(self.config.extract_layers)
        activations: dict[int, Tensor] = {}
        last = len(layers) - 1
        for i, layer in enumerate(layers[:last]):
            x = self.block(layer, x)
            if i in taps:
                activations[i] = x
        out = ImageFeatures(reduced=[], activations=[])
        if last in taps and reduced:
            activations[last] = self.block(layers[last], x)
        if dense:
            y = vision.post_layernorm(values_only_block(layers[last], x[:, 1:]))
            y = self.clip.visual_projection(y)
            side = pixels.shape[-1] // self.config.vision_config.patch_size
            out.dense = y.transpose(1, 2).unflatten(2, (side, side))
        if pooled:
            out.hidden = vision.post_layernorm(class_token_block(layers[last], x))
            out.pooled = self.clip.visual_projection(out.hidden)
        if reduced:
            out.activations = [activations[i] for i in taps]
            deepest_first = zip(self.decoder.reduces, reversed(out.activations), strict=True)
            out.reduced = [reduce(a) for reduce, a in deepest_first]
        return out

    def _embed(self, pixels: Tensor) -> Tensor:
        patch = self.config.vision_config.patch_size
        if pixels.shape[-1] != pixels.shape[-2] or pixels.shape[-1] % patch:
            raise ValueError(
                f"CLIPSeg wants square images with a side that is a multiple of {patch}; got "
                f"{pixels.shape[-2]} x {pixels.shape[-1]}. Set image_size of the method's InputSpec accordingly."
            )
        e = self.clip.vision_model.embeddings
        x = e.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([e.class_embedding.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
        return x + self._positions(pixels.shape[-1] // patch)

    def _positions(self, side: int) -> Tensor:
        """Position table ``[1 + side*side, C]``, resized bicubically where the grid is another one."""
        table = self.clip.vision_model.embeddings.position_embedding.weight
        own = round((len(table) - 1) ** 0.5)
        if side == own:
            return table
        grid = table[1:].T.unflatten(1, (own, own))[None].float()
        grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)[0]
        return torch.cat([table[:1], grid.flatten(1).T.to(table.dtype)])

    # ---- text tower

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """int64 ``[..., L]`` to token embeddings ``[..., L, C]``, without positions."""
        return self.clip.text_model.embeddings.token_embedding(ids)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Text feature of given token embeddings: the **last** row, projected, not normalised.

        Args:
            tokens: float ``[B, L, C]`` without position embeddings; L at most 77.

        Returns:
            float ``[B, D]``. Gradients pass to ``tokens``.
        """
        return self.clip.text_projection(self._text(tokens)[:, -1])

    def encode_text(self, ids: Tensor) -> Tensor:
        """CLIP's text feature ``[B, D]`` of int64 ids ``[B, L]``, pooled at the first largest id (end of text).

        Padding behind the end of text cannot matter: attention is causal.
        """
        x = self._text(self.embed_tokens(ids))
        return self.clip.text_projection(x[torch.arange(len(ids), device=ids.device), ids.argmax(-1)])

    def _text(self, tokens: Tensor) -> Tensor:
        text = self.clip.text_model
        positions = text.embeddings.position_embedding.weight
        if tokens.shape[1] > len(positions):
            raise ValueError(f"A prompt of {tokens.shape[1]} tokens exceeds the text tower's {len(positions)}.")
        x = tokens + positions[: tokens.shape[1]]
        for layer in text.encoder.layers:
            x = encoder_block(layer, x, causal=True)
        return text.final_layer_norm(x)

    def tokenize(self, texts: list[str]) -> Tensor:
        """int64 ``[N, L]`` ids with start and end of text, zero-padded to the longest."""
        if self.tokenizer is None:
            raise ValueError("This CLIPSeg was built without a tokenizer.")
        ids = [torch.tensor(self.tokenizer.encode(t)) for t in texts]
        return nn.utils.rnn.pad_sequence(ids, batch_first=True)

    # ---- mask decoder

    def decode(self, reduced: list[Tensor], embedding: Tensor) -> Tensor:
        """Mask logits of (image, embedding) pairs.

        Args:
            reduced: `ImageFeatures.reduced` of I images, each ``[I, N, R]``.
            embedding: float ``[I, M, D]``, the M embeddings asked of each image.

        Returns:
            float32 logits ``[I, M, h, w]``; for patch 16 (h, w) is the image's size.
        """
        decoder = self.decoder
        images, asked = embedding.shape[:2]
        mul, add = decoder.film_mul(embedding), decoder.film_add(embedding)  # [I, M, R]
        x = None
        for depth, (r, layer) in enumerate(zip(reduced, decoder.layers, strict=True)):
            r = r[:, None]
            x = r.expand(-1, asked, -1, -1) if x is None else x + r
            if depth == decoder.conditional_layer:
                x = mul[:, :, None] * x + add[:, :, None]
            x = decoder_block(layer, x.flatten(0, 1)).unflatten(0, (images, asked))
        assert x is not None
        side = round((x.shape[2] - 1) ** 0.5)
        grid = x[:, :, 1:].flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
        logits = decoder.transposed_convolution(grid).float()
        return logits.view(images, asked, *logits.shape[-2:])


def attend(attention: Any, queries: Tensor, context: Tensor, causal: bool = False) -> Tensor:
    """Multi-head attention with a CLIP attention's projections; ``[B, Lq, C]`` over ``[B, Lk, C]``."""
    heads = attention.num_heads

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = (
        split(attention.q_proj(queries)),
        split(attention.k_proj(context)),
        split(attention.v_proj(context)),
    )
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return attention.out_proj(y.transpose(1, 2).flatten(2))


def encoder_block(layer: Layer, x: Tensor, causal: bool = False) -> Tensor:
    h = layer.layer_norm1(x)
    x = x + attend(layer.self_attn, h, h, causal)
    return x + layer.mlp(layer.layer_norm2(x))


def decoder_block(layer: Layer, x: Tensor) -> Tensor:
    """Post-norm layer of the mask decoder."""
    x = layer.layer_norm1(x + attend(layer.self_attn, x, x))
    return layer.layer_norm2(x + layer.mlp(x))


def class_token_block(layer: Layer, x: Tensor) -> Tensor:
    """`encoder_block`, class token only: ``[B, N, C]`` to ``[B, C]``."""
    h = layer.layer_norm1(x)
    y = x[:, :1] + attend(layer.self_attn, h[:, :1], h)
    return (y + layer.mlp(layer.layer_norm2(y)))[:, 0]


def values_only_block(layer: Layer, x: Tensor) -> Tensor:
    """`encoder_block` in which every position attends to itself alone."""
    attention = layer.self_attn
    y = x + attention.out_proj(attention.v_proj(layer.layer_norm1(x)))
    return y + layer.mlp(layer.layer_norm2(y))
