"""BEATs, the frozen audio tower, under its official key names (microsoft/unilm, folder beats; Chen et al., 2023).

The fine-tuned AudioSet file's own configuration: 12 post-norm layers of 768 with DeepNorm's scale (2 x 12)^(1/4), and
a gated relative-position bias whose table all layers share. Of the classifier's 252 tensors two are not used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from avloc.frontends.kaldi import KaldiFbank
from avloc.weights import WeightError, load_into, locate, read_metadata, read_state

__all__ = ["BEATs", "BEATsConfig"]

REMEDY = "Get the file that `avloc weights` names."
PREDICTOR = ("predictor.weight", "predictor.bias")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_accurate": partial(F.gelu, approximate="tanh"),
    "gelu_fast": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
    "linear": nn.Identity(),
}


@dataclass(frozen=True)
class BEATsConfig:
    """The entries of the official ``cfg`` that shape the network; the defaults are those of iter3+ cpt2.

    The dropout entries are left out: they are zero in the official file, and the tower is frozen.

    Args:
        encoder_layers: transformer layers.
        encoder_embed_dim: their width D.
        encoder_ffn_embed_dim: width of their feed-forward part.
        encoder_attention_heads: heads; must divide the width.
        activation_fn: of the feed-forward part: gelu (erf), gelu_accurate, gelu_fast, relu, tanh, linear.
        encoder_layerdrop: probability of skipping a layer, in [0, 1]; see `BEATs` for when it applies.
        layer_norm_first: pre-norm layers.
        conv_bias: bias of the patch convolution.
        conv_pos: kernel of the convolution that encodes position.
        conv_pos_groups: its groups.
        relative_position_embedding: add the relative-position bias to the attention logits.
        num_buckets: rows of its table, for both signs together.
        max_distance: distance from which on all offsets share a bucket.
        gru_rel_pos: gate the bias by the query.
        deep_norm: scale the residual by ``(2 layers)^(1/4)`` (post-norm layers only).
        input_patch_size: side of a square patch, in frames and mel bands.
        embed_dim: width of the patch embedding.

    Raises:
        ValueError: an unknown activation, or a width that the heads or groups do not divide.
    """

    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    encoder_layerdrop: float = 0.05
    layer_norm_first: bool = False
    conv_bias: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    relative_position_embedding: bool = True
    num_buckets: int = 320
    max_distance: int = 800
    gru_rel_pos: bool = True
    deep_norm: bool = True
    input_patch_size: int = 16
    embed_dim: int = 512

    def __post_init__(self) -> None:
        if self.activation_fn not in ACTIVATIONS:
            raise ValueError(f"BEATs: activation_fn {self.activation_fn!r} is none of {', '.join(ACTIVATIONS)}.")
        width = self.encoder_embed_dim
        for name in ("encoder_attention_heads", "conv_pos_groups"):
            if width % getattr(self, name):
                raise ValueError(f"BEATs: {name} {getattr(self, name)} does not divide the width {width}.")

    @classmethod
    def from_dict(cls, cfg: Mapping[str, Any]) -> BEATsConfig:
        """From an official ``cfg``; entries that do not shape the network are ignored.

        Raises:
            ValueError: an entry that shapes the network is missing.
        """
        names = [f.name for f in fields(cls)]
        if missing := [n for n in names if n not in cfg]:
            raise ValueError(f"the BEATs cfg lacks {', '.join(missing)}")
        return cls(**{n: cfg[n] for n in names})


class BEATs(nn.Module):
    """Waveform to patch features: the outputs of some transformer layers side by side.

    The module has no dropout, so train and eval mode agree unless ``layer_drop`` is on.

    Args:
        config: sizes and switches.
        feature_layers: layers, counted from 1, whose outputs are the features; those that do not exist are
            left out.
        layer_drop: in train mode, skip each layer with probability ``config.encoder_layerdrop``. The released
            ACL-SSL script does so although the tower is frozen (commit 57f4a6c); a skipped
            layer hands on its input. One draw per layer and batch from torch's CPU generator.

    Raises:
        ValueError: no layer of ``feature_layers`` exists.
    """

    def __init__(
        self,
        config: BEATsConfig | None = None,
        feature_layers: tuple[int, ...] = (4, 8, 12),
        layer_drop: bool = False,
    ) -> None:
        super().__init__()
        self.config = c = config or BEATsConfig()
        self.feature_layers = tuple(n for n in feature_layers if 1 <= n <= c.encoder_layers)
        if not self.feature_layers:
            raise ValueError(f"BEATs: none of the layers {feature_layers} is among 1 to {c.encoder_layers}.")
        self.layer_drop = layer_drop
        self.fbank = KaldiFbank()
        patch = c.input_patch_size
        self.patch_embedding = nn.Conv2d(1, c.embed_dim, patch, stride=patch, bias=c.conv_bias)
        self.layer_norm = nn.LayerNorm(c.embed_dim)
        same_width = c.embed_dim == c.encoder_embed_dim
        self.post_extract_proj = None if same_width else nn.Linear(c.embed_dim, c.encoder_embed_dim)
        self.encoder = Encoder(c)
        self.register_load_state_dict_pre_hook(refuse_unequal_tables)

    @property
    def feature_size(self) -> int:
        """Channels of the features: D times the number of feature layers."""
        return len(self.feature_layers) * self.config.encoder_embed_dim

    @classmethod
    def from_source(cls, source: str, feature_layers: tuple[int, ...] = (4, 8, 12), layer_drop: bool = False) -> BEATs:
        """The frozen tower from an official ``.pt``, or from a file that `save_world` wrote.

        Args:
            source: a source string of `avloc.weights`; ``random`` gives the official size, untrained.
            feature_layers: as in the constructor.
            layer_drop: as in the constructor.

        Raises:
            WeightError: the file is missing, damaged, or of another model.
        """
        path = locate(source).path
        try:
            cfg, state = read_checkpoint(path) if path else (asdict(BEATsConfig()), None)
            config = BEATsConfig.from_dict(cfg)
        except ValueError as e:
            raise WeightError(f"{path} is no BEATs checkpoint: {e}. {REMEDY}") from e
        tower = cls(config, feature_layers, layer_drop)
        if state is not None:
            load_into(tower, state, str(path), ignore=PREDICTOR)
        return tower.requires_grad_(False)

    def save_world(self, path: Path, **notes: str) -> None:
        """Write the tower as safetensors, in float16 with its config, for `from_source` to read.

        Args:
            path: a file name that ends with ``.safetensors``.
            notes: how the weights came about, kept in the file's metadata.
        """
        tensors = {k: v.detach().to("cpu", torch.float16, copy=True) for k, v in self.state_dict().items()}
        config = json.dumps(asdict(self.config))
        save_file(tensors, path, metadata={**notes, "kind": "beats", "config": config})

    def forward(self, waveform: Tensor) -> Tensor:
        """Features of every patch.

        Args:
            waveform: ``[B, T]`` in [-1, 1] at 16 kHz.

        Returns:
            ``[B, N, feature_size]``; the N patches are time-major, the mel patches of a time step in a row.

        Raises:
            ValueError: the clip is shorter than one patch.
        """
        return self.extract_features(waveform)[1]

    def extract_features(self, waveform: Tensor) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """What `forward` gives, and more.

        Returns:
            The last output ``[B, N, D]``; the features ``[B, N, feature_size]``; the feature layers' outputs
            ``[B, N, D]`` by number, counted from 1. The last output is the last layer's, normalised once more
            with ``layer_norm_first``.
        """
        x, outputs = self.encoder(self.patches(self.fbank(waveform)), self.layer_drop)
        layers = {n: outputs[n - 1] for n in self.feature_layers}
        return x, torch.cat(list(layers.values()), dim=-1), layers

    def patches(self, fbank: Tensor) -> Tensor:
        """Embedded patches ``[B, N, D]`` of filter banks ``[B, frames, mels]``; incomplete ones are cut."""
        side = self.config.input_patch_size
        if fbank.shape[1] < side:
            samples = self.fbank.length + (side - 1) * self.fbank.shift
            raise ValueError(
                f"BEATs needs {samples} samples, {side} frames, for its first patch; got "
                f"{fbank.shape[1]} frames. Pad the clip with zeros."
            )
        x = self.patch_embedding(fbank.to(self.patch_embedding.weight.dtype).unsqueeze(1))
        x = self.layer_norm(x.flatten(2).transpose(1, 2))
        return x if self.post_extract_proj is None else self.post_extract_proj(x)


class Encoder(nn.Module):
    """Positional convolution and transformer layers over ``[B, N, D]``."""

    def __init__(self, c: BEATsConfig) -> None:
        super().__init__()
        self.config = c
        position = PositionalConv(c.encoder_embed_dim, c.conv_pos, c.conv_pos_groups)
        self.pos_conv = nn.Sequential(position, nn.GELU())
        # One table, which the official file lists under every layer's name.
        relative = c.relative_position_embedding
        table = nn.Embedding(c.num_buckets, c.encoder_attention_heads) if relative else None
        self.layers = nn.ModuleList(Layer(c, table) for _ in range(c.encoder_layers))
        self.layer_norm = nn.LayerNorm(c.encoder_embed_dim)

    def forward(self, x: Tensor, layer_drop: bool = False) -> tuple[Tensor, list[Tensor]]:
        """The last output and every layer's output, all ``[B, N, D]``."""
        x = x + self.pos_conv(x)
        if not self.config.layer_norm_first:
            x = self.layer_norm(x)
        bias = self.position_bias(x.shape[1]) if self.config.relative_position_embedding else None
        rate = self.config.encoder_layerdrop if layer_drop and self.training else 0.0
        dropped = (torch.rand(len(self.layers)) < rate).tolist() if rate else [False] * len(self.layers)
        outputs = []
        for layer, skip in zip(self.layers, dropped, strict=True):
            x = x if skip else layer(x, bias)
            outputs.append(x)
        return self.layer_norm(x) if self.config.layer_norm_first else x, outputs

    def position_bias(self, length: int) -> Tensor:
        """Ungated bias ``[heads, length, length]`` of query row and key column, from the length alone."""
        c = self.config
        table = self.get_parameter("layers.0.self_attn.relative_attention_bias.weight")
        per_offset = table[offset_buckets(length, c.num_buckets, c.max_distance, table.device)]
        # Row q is the window over the offsets -q ... length - 1 - q, so the windows give the last row first.
        return per_offset.T.unfold(1, length, 1).flip(1)


class Layer(nn.Module):
    """Attention and feed-forward part, post-norm with a scaled residual (DeepNorm) or pre-norm."""

    def __init__(self, c: BEATsConfig, table: nn.Embedding | None) -> None:
        super().__init__()
        self.self_attn = Attention(c, table)
        self.self_attn_layer_norm = nn.LayerNorm(c.encoder_embed_dim)
        self.fc1 = nn.Linear(c.encoder_embed_dim, c.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(c.encoder_ffn_embed_dim, c.encoder_embed_dim)
        self.final_layer_norm = nn.LayerNorm(c.encoder_embed_dim)
        self.activation = ACTIVATIONS[c.activation_fn]
        self.pre_norm = c.layer_norm_first
        self.residual = (2 * c.encoder_layers) ** 0.25 if c.deep_norm else 1.0

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.pre_norm:
            x = x + self.self_attn(self.self_attn_layer_norm(x), bias)
            return x + self.feed_forward(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(self.residual * x + self.self_attn(x, bias))
        return self.final_layer_norm(self.residual * x + self.feed_forward(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head attention whose relative-position bias is scaled per query and head by a learnt gate.

    The official code divides the logits by 32, subtracts the row maximum and multiplies by 32 again: a guard
    against overflow that the softmax cancels and the fused attention does not need.
    """

    def __init__(self, c: BEATsConfig, table: nn.Embedding | None) -> None:
        super().__init__()
        width, self.heads = c.encoder_embed_dim, c.encoder_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.relative_attention_bias = table
        self.gated = c.gru_rel_pos
        if self.gated:
            self.grep_linear = nn.Linear(width // self.heads, 8)
            self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = None
        if bias is not None:
            mask = (self.gate(q) * bias if self.gated else bias.unsqueeze(0)).to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def gate(self, q: Tensor) -> Tensor:
        """Factor ``g1 (g2 a - 1) + 2`` of each query's bias row, ``[B, heads, N, 1]``; queries unscaled."""
        g1, g2 = self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1).sigmoid().chunk(2, dim=-1)
        return g1 * (g2 * self.grep_a - 1) + 2


class PositionalConv(nn.Module):
    """Grouped 1-D convolution over ``[B, N, D]`` with one gain per kernel tap (weight norm over dim 2).

    Gain and direction keep their old names ``weight_g`` and ``weight_v``. They are multiplied at use,
    which takes a hundredth of the time of one clip and less of a batch's.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups, self.padding = groups, kernel // 2
        direction = torch.randn(width, width // groups, kernel) * (4 / (kernel * width)) ** 0.5
        self.weight_v = nn.Parameter(direction)
        self.weight_g = nn.Parameter(direction.norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        # The sum of squares: norm() over two leading dimensions is seven times slower on a CPU.
        weight = self.weight_v * (self.weight_g * self.weight_v.square().sum((0, 1), keepdim=True).rsqrt())
        if x.device.type == "cpu":
            # oneDNN's grouped bfloat16 convolution is silently wrong for some shapes on CPUs with AMX.
            with torch.autocast("cpu", enabled=False):
                y = self.convolve(x.float(), weight.float(), self.bias.float()).to(x.dtype)
        else:
            y = self.convolve(x, weight, self.bias)
        return y[:, : x.shape[1]]  # an even kernel gives one output too many

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv1d(x.mT, weight, bias, padding=self.padding, groups=self.groups).mT


@lru_cache(maxsize=32)
def offset_buckets(length: int, num_buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """Table rows of the offsets key - query from ``1 - length`` to ``length - 1``, int64 ``[2 length - 1]``.

    Half of the rows is for offsets above zero. Within a half, the first rows are for one distance each, the
    rest are spaced logarithmically up to ``max_distance``.
    """
    half = num_buckets // 2
    exact = half // 2
    with torch.inference_mode(False):  # what is cached here may be needed by a backward pass later
        offset = torch.arange(1 - length, length)  # on the CPU, whose logarithm the official code uses
        distance = offset.abs()
        ratio = (distance.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
        far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
        return (torch.where(distance < exact, distance, far) + half * (offset > 0)).to(device)


def read_checkpoint(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Config and state dict of an official ``.pt`` or of a file that `BEATs.save_world` wrote."""
    content = read_state(path)
    if path.suffix == ".safetensors":
        metadata = read_metadata(path)
        if metadata.get("kind") == "beats" and "config" in metadata:
            return json.loads(metadata["config"]), content
    elif isinstance(content, dict) and {"cfg", "model"} <= content.keys():
        return content["cfg"], content["model"]
    raise WeightError(
        f"{path} is no BEATs checkpoint: an official .pt holds 'cfg' and 'model', a safetensors file of the "
        f"world says kind 'beats' in its metadata. {REMEDY}"
    )


def refuse_unequal_tables(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """The layers share one table, so a file with several would silently lose all but the last."""
    suffix = ".self_attn.relative_attention_bias.weight"
    names = [k for k in state if k.startswith(f"{prefix}encoder.layers.") and k.endswith(suffix)]
    for name in names[1:]:
        if not torch.equal(state[name], state[names[0]]):
            raise WeightError(f"{name} differs from {names[0]}, but BEATs shares one table among all layers. {REMEDY}")
