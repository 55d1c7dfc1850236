"""HuBERT (Hsu et al., 2021), as DenseAV hears with it: `transformers.HubertModel` on waveforms of 16 kHz.

Reads ``hf:facebook/hubert-large-ls960-ft``. DenseAV sets the epsilon of all norms but the seven convolutions' to 1e-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import HubertConfig, HubertModel

from avloc.backbones.dino import EPSILON
from avloc.weights import WeightFile, load_into, locate, read_state

__all__ = ["LARGE", "HuBERT", "own_names", "standardised"]

LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}
"""What facebook/hubert-large-ls960-ft has otherwise than `transformers.HubertConfig`."""

POSITION = "encoder.pos_conv_embed.conv."
GAINS = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


class HuBERT(nn.Module):
    """The transformer's last hidden state, every 20 ms.

    In training mode it has the dropout, the layer drop and the masking of its configuration.

    Args:
        config: of `transformers.HubertConfig`, over `LARGE`.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.model = HubertModel(HubertConfig(**{**LARGE, **(config or {}), "layer_norm_eps": EPSILON}))
        self.file = WeightFile("random", None, "")

    @classmethod
    def from_source(cls, source: str, config: Mapping[str, Any] | None = None) -> HuBERT:
        """The network of a weight source; ``random`` keeps its initial values.

        Raises:
            WeightError: the file is missing, damaged, or of another model or size.
        """
        model, file = cls(config), locate(source)
        if file.path is not None:
            load_into(model.model, own_names(read_state(file.path)), str(file.path))
        model.file = file
        return model

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    def forward(self, waveform: Tensor) -> Tensor:
        """Features ``[B, C, 1, L]``. No step is masked, so that what a sound is filled up with is heard, too.

        Args:
            waveform: ``[B, T]`` at 16 kHz, `standardised`.
        """
        masked = self.spans(waveform) if self.training and self.model.config.apply_spec_augment else None
        hidden: Tensor = self.model(waveform, mask_time_indices=masked).last_hidden_state
        return hidden.mT[:, :, None]

    def spans(self, waveform: Tensor) -> Tensor | None:
        """Which steps training masks, bool ``[B, L]``: as many spans as transformers draws, which takes NumPy's random
        numbers, by those of PyTorch, so that a seed fixes them. None for a sound that is no longer than a span."""
        config = self.model.config
        L = int(self.model._get_feat_extract_output_lengths(waveform.shape[-1]))
        long = config.mask_time_length
        if not config.mask_time_prob or long >= L:
            return None
        n = max(int(config.mask_time_prob * L / long + float(torch.rand(()))), config.mask_time_min_masks)
        starts = torch.rand(len(waveform), L - long + 1, device=waveform.device).topk(min(n, L - long + 1)).indices
        begun = torch.zeros(len(waveform), L, device=waveform.device).scatter(1, starts, 1.0)
        return F.max_pool1d(F.pad(begun, (long - 1, 0)), long, 1) > 0


def standardised(waveform: Tensor) -> Tensor:
    """Each sound ``[B, T]`` with mean 0 and variance 1 over all that it was filled up to."""
    waveform = waveform.float()
    mean, variance = waveform.mean(-1, keepdim=True), waveform.var(-1, keepdim=True, correction=0)
    return (waveform - mean) / (variance + 1e-7).sqrt()


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A HuBERT's tensors without a prefix and a recogniser's head, the position convolution's gains named as PyTorch
    names them now."""
    named = {k.removeprefix("hubert."): v for k, v in state.items() if not k.startswith("lm_head.")}
    for old, new in GAINS.items():
        if POSITION + old in named:
            named[POSITION + new] = named.pop(POSITION + old)
    return named
