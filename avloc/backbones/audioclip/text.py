"""AudioCLIP's text tower: CLIP's transformer."""

from __future__ import annotations

import torch
from open_clip.transformer import LayerNorm, QuickGELU, Transformer
from torch import Tensor, nn

from avloc.backbones.tokens import TextConfig

__all__ = ["TextTower"]


class TextTower(nn.Module):
    """CLIP's text transformer, whose keys have no prefix in the official files.

    Args:
        config: its sizes.
        embed_dim: D.
    """

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.transformer = Transformer(width, config.layers, config.heads, act_layer=QuickGELU, norm_layer=LayerNorm)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.context_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * config.layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * config.layers) ** -0.5)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Embedding ``[N, D]`` of int64 ids ``[N, L]``, not normalised, read at the first largest id (end of text).

        Padding behind the end of text cannot matter: attention is causal.

        Raises:
            ValueError: L exceeds the context.
        """
        return self.encode_tokens(self.token_embedding(ids), ids.argmax(-1))

    def encode_tokens(self, tokens: Tensor, end: Tensor) -> Tensor:
        """Embedding of given token embeddings, some of which may be learnt. Gradients pass to them.

        Args:
            tokens: ``[N, L, C]`` without positions; L up to the context.
            end: int64 ``[N]``, where the end of text stands.

        Returns:
            ``[N, D]``, not normalised.
        """
        x = self.hidden(tokens)
        return x[torch.arange(len(x), device=x.device), end] @ self.text_projection

    def text_tokens(self, ids: Tensor) -> Tensor:
        """Projected outputs of all positions, ``[N, L, D]``, of int64 ids ``[N, L]``."""
        return self.hidden(self.token_embedding(ids)) @ self.text_projection

    def hidden(self, tokens: Tensor) -> Tensor:
        """Normalised outputs ``[N, L, C]`` of the last block."""
        length, longest = tokens.shape[1], len(self.positional_embedding)
        if length > longest:
            raise ValueError(f"A text of {length} tokens exceeds the text tower's {longest}. Shorten it.")
        causal = torch.full((length, length), float("-inf"), device=tokens.device).triu(1)
        x = tokens + self.positional_embedding[:length]
        return self.ln_final(self.transformer(x, attn_mask=causal))
