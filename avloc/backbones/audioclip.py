"""AudioCLIP: CLIP's ResNet-50 and text transformer with an audio tower beside them.

The official files, full and partial training, load unchanged. Each tower gives one embedding, and tokens of the same
width: patches of the picture, positions of the text, time-frequency tiles of the sound. T-VSL's way to read the
patches is an option of `ImageTower.tokens`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.transformer import LayerNorm, QuickGELU, Transformer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck  # type: ignore[import-untyped]

from avloc.backbones.tokens import Tokenizer, clip_tokenizer, world_tokenizer
from avloc.frontends.fbsp import FBSPSpectrogram
from avloc.weights import WeightError, WeightFile, load_into, locate, read_metadata, read_state

__all__ = [
    "INT16",
    "WORLD",
    "AudioCLIP",
    "AudioCLIPConfig",
    "AudioConfig",
    "AudioTower",
    "ImageConfig",
    "ImageTower",
    "TextConfig",
    "TextTower",
]

INT16 = 32768.0  # brings sounds in [-1, 1] to the range that the audio tower was trained on
LARGEST_SCALE = 100.0

Pair = Literal["image_text", "audio_image", "audio_text"]
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


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower; the defaults are CLIP RN50's.

    Args:
        context_length: rows of the position table.
        vocab_size: ids of the tokenizer; the end of text has the largest.
        width: of the transformer.
        heads: its attention heads.
        layers: its blocks.
    """

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12


@dataclass(frozen=True)
class AudioConfig:
    """Spectrogram and sizes of the audio tower; the defaults are AudioCLIP's.

    Args:
        sample_rate: Hz; for the method's InputSpec, the tower cannot know what it is fed.
        n_fft: as the entries down to log10_eps, see `FBSPSpectrogram`.
        layers: blocks of the four stages.
        width: channels behind the first convolution; the map has 32 times as many.
        groups: of the bottlenecks' middle convolution.
        width_per_group: its channels per group in the first stage, times ``64 / width``.
        attention: gate each stage, and the output, by its input.

    Raises:
        ValueError: the middle convolutions would have no channel.
    """

    sample_rate: int = 44100
    n_fft: int = 2048
    hop_length: int = 561
    win_length: int = 1654
    window: str = "blackmanharris"
    normalized: bool = True
    onesided: bool = True
    scale_in: tuple[float, float] = (-32768.0, 32767.0)
    scale_out: tuple[float, float] = (-1.0, 1.0)
    log10_eps: float = 1e-18
    layers: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    groups: int = 32
    width_per_group: int = 4
    attention: bool = True

    def __post_init__(self) -> None:
        if self.width * self.width_per_group < 64:
            raise ValueError(
                f"AudioCLIP: width_per_group {self.width_per_group} leaves no channel per group at width {self.width}; "
                f"it must be {math.ceil(64 / self.width)} or more."
            )


@dataclass(frozen=True)
class AudioCLIPConfig:
    """The three towers and the width D of what they have in common.

    Args:
        embed_dim: D.
        image: image tower.
        text: text tower.
        audio: audio tower.
    """

    embed_dim: int = 1024
    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> AudioCLIPConfig:
        """What `dataclasses.asdict` gave, also after JSON made lists of its tuples."""

        def part(name: str) -> dict[str, Any]:
            return {k: tuple(v) if isinstance(v, list) else v for k, v in config[name].items()}

        image, text, audio = ImageConfig(**part("image")), TextConfig(**part("text")), AudioConfig(**part("audio"))
        return cls(config["embed_dim"], image, text, audio)


# Of the embedded world: pictures of 64 pixels in 8 x 8 patches, 2 s of 16 kHz in 3 x 5 tiles.
WORLD = AudioCLIPConfig(
    embed_dim=64,
    image=ImageConfig(size=64, layers=(1, 1, 2, 1), width=12, heads=6, strides=(2, 1, 1)),
    text=TextConfig(vocab_size=64, width=64, heads=4, layers=2),
    audio=AudioConfig(16000, 512, 200, 400, layers=(1, 1, 1, 1), width=12, groups=4, width_per_group=32),
)


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


class Gate(nn.Module):
    """What a stage's input says about the stage's output: factors in (0, 1).

    Args:
        inputs: channels of the input.
        outputs: channels of the factors.
        kernel: of the depthwise convolution, over (frequency, time).
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv_depth = nn.Conv2d(inputs, inputs, kernel, padding=padding, groups=inputs)
        self.conv_point = nn.Conv2d(inputs, outputs, 1)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, outputs, *size]`` of ``[B, inputs, h, w]``."""
        pooled = x if tuple(x.shape[2:]) == size else F.adaptive_max_pool2d(x, size)
        return self.bn(self.conv_point(self.conv_depth(pooled))).sigmoid()


class AudioTower(FBSPSpectrogram):
    """ESResNeXt-fbsp: the spectrogram, which lies beside the network in the official files, and a gated ResNeXt.

    Args:
        config: its sizes.
        embed_dim: D.
    """

    def __init__(self, config: AudioConfig, embed_dim: int) -> None:
        c = config
        super().__init__(
            c.n_fft,
            c.hop_length,
            c.win_length,
            c.window,
            normalized=c.normalized,
            onesided=c.onesided,
            scale_in=c.scale_in,
            scale_out=c.scale_out,
            log10_eps=c.log10_eps,
        )
        self.config = c
        width, channels = c.width, 32 * c.width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for n, blocks in enumerate(c.layers):
            outputs = 4 * width * 2**n
            self.add_module(f"layer{n + 1}", stage(inputs, width * 2**n, blocks, 1 if n == 0 else 2, c))
            if c.attention:
                self.add_module(f"att{n + 1}", Gate(inputs, outputs, ((3, 1), (1, 5))[n % 2]))
            inputs = outputs
        if c.attention:
            self.att5 = Gate(channels, channels, (3, 5))
        self.fc = nn.Linear(channels, embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, waveform: Tensor, kernels: Tensor | None = None) -> Tensor:
        """The map before the head.

        Args:
            waveform: floating point ``[B, T]`` mono at ``config.sample_rate``, with values in ``config.scale_in``.
            kernels: see `FBSPSpectrogram.bands`.

        Returns:
            ``[B, 32 width, rows, columns]`` over (frequency, time).

        Raises:
            ValueError: the waveform is not ``[B, T]`` or has no sample.
        """
        return self.map(self.bands(waveform, kernels))

    def map(self, bands: Tensor) -> Tensor:
        """`features` of what `bands` gave."""
        x = self.bn1(self.conv1(bands.to(self.conv1.weight.dtype))).relu()
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for n in range(1, len(self.config.layers) + 1):
            y = self.get_submodule(f"layer{n}")(x)
            x = y * self.get_submodule(f"att{n}")(x, size(y)) if self.config.attention else y
        return x

    def tokens(self, features: Tensor) -> Tensor:
        """Tiles ``[B, rows * columns, D]`` of what `features` gave; frequency by frequency, the times in a row.

        Their mean is not what `pool` gives: the gate sees every tile instead of the largest values.
        """
        gated = features * self.att5(features, size(features)) if self.config.attention else features
        return self.fc(gated.flatten(2).mT)

    def pool(self, features: Tensor) -> Tensor:
        """Embedding ``[B, D]`` of what `features` gave, not normalised."""
        x = features.mean((2, 3))
        return self.fc(x * self.att5(features, (1, 1)).flatten(1) if self.config.attention else x)

    def forward(self, waveform: Tensor) -> Tensor:
        """Embedding ``[B, D]`` of a waveform as in `features`."""
        return self.pool(self.features(waveform))

    def grid(self, samples: int) -> tuple[int, int]:
        """Rows and columns of the tiles of a clip of ``samples`` samples."""
        rows, columns = self.rows, self.frames(samples)
        for _ in range(len(self.config.layers) + 1):
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        return rows, columns


def size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def stage(inputs: int, planes: int, blocks: int, stride: int, c: AudioConfig) -> nn.Sequential:
    """Bottlenecks of torchvision, the first with a projected shortcut."""
    outputs = 4 * planes
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
    width = {"groups": c.groups, "base_width": c.width_per_group}
    first = Bottleneck(inputs, planes, stride, shortcut, **width)
    return nn.Sequential(first, *(Bottleneck(outputs, planes, **width) for _ in range(blocks - 1)))


class AudioCLIP(TextTower):
    """The three towers under the official key names; the text tower's have no prefix, so it is the base class.

    Args:
        config: sizes; None for the official ones.
        tokenizer: turns text into ids of the text tower's vocabulary.
        frozen: `train` leaves the module in eval mode. T-VSL's release lets the batch normalisations of frozen
            towers run on batch statistics: set the attribute to False for that.

    Attributes:
        frozen: as above; may be changed.
        file: where the weights came from.
    """

    def __init__(
        self, config: AudioCLIPConfig | None = None, tokenizer: Tokenizer | None = None, frozen: bool = False
    ) -> None:
        self.config = c = config or AudioCLIPConfig()
        super().__init__(c.text, c.embed_dim)
        self.visual = ImageTower(c.image, c.embed_dim)
        self.audio = AudioTower(c.audio, c.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_scale_ai = nn.Parameter(torch.tensor(math.log(100)))
        self.logit_scale_at = nn.Parameter(torch.tensor(math.log(100)))
        self.tokenizer = tokenizer
        self.frozen = frozen
        self.file = WeightFile("random", None, "")
        self.train(not frozen)

    @classmethod
    def from_source(cls, source: str, frozen: bool = True) -> AudioCLIP:
        """Build from a weight source (see `avloc.weights`): an official file, or one that `save_world` wrote.

        Args:
            source: ``random`` gives the official size, untrained.
            frozen: no parameter asks for a gradient, and `train` leaves the module in eval mode.

        Raises:
            WeightError: the file is missing, damaged, or not an AudioCLIP with all three towers.
        """
        file = locate(source)
        metadata = read_metadata(file.path) if file.path else {}
        if "kind" in metadata:  # written by save_world
            if metadata["kind"] != "audioclip":
                raise WeightError(f"{file.path} holds a {metadata['kind']}, not an AudioCLIP.")
            config = AudioCLIPConfig.from_dict(json.loads(metadata["config"]))
            model = cls(config, world_tokenizer(metadata["tokenizer"]), frozen)
        else:
            model = cls(AudioCLIPConfig(), clip_tokenizer(), frozen)
        if file.path:
            load_into(model, read_state(file.path), str(file.path))
        model.file = file
        return model.requires_grad_(not frozen)

    def save_world(self, path: Path, **metadata: str) -> None:
        """Write safetensors with configuration and tokenizer inside; matrices and kernels in half precision.

        Vectors stay as they are: they are few, and half precision has no bin 128.37 of the spectrogram.
        """
        assert self.tokenizer is not None
        state = {k: (v.half() if v.ndim > 1 else v).cpu().contiguous() for k, v in self.state_dict().items()}
        config = json.dumps(asdict(self.config))
        head = {"kind": "audioclip", "config": config, "tokenizer": self.tokenizer.serialise()}
        save_file(state, path, metadata=head | metadata)

    def train(self, mode: bool = True) -> AudioCLIP:
        """Train mode, unless the module is frozen."""
        return super().train(mode and not self.frozen)

    @property
    def width(self) -> int:
        """D: size of the joint embedding."""
        return self.config.embed_dim

    def temperature(self, pair: Pair) -> Tensor:
        """Learnt factor of the cosines of a pair, float32 ``[]`` in [1, 100].

        It starts at log 100 for the audio pairs, where float32 puts the exponential just above 100 on a CPU: the
        bound then gives it no gradient.
        """
        scale = {"image_text": self.logit_scale, "audio_image": self.logit_scale_ai, "audio_text": self.logit_scale_at}
        return scale[pair].float().exp().clamp(1.0, LARGEST_SCALE)

    def tokenize(self, texts: list[str]) -> Tensor:
        """int64 ``[N, L]`` ids with start and end of text, zero-padded to the longest.

        AudioCLIP joins several labels of a clip with ", "; T-VSL passes one name. Neither uses a template.

        Raises:
            ValueError: a text exceeds the text tower's context, or there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("This AudioCLIP was built without a tokenizer.")
        ids = [torch.tensor(self.tokenizer.encode(t)) for t in texts]
        for text, row in zip(texts, ids, strict=True):
            if len(row) > self.config.text.context_length:
                longest = self.config.text.context_length
                raise ValueError(f"{text!r} has {len(row)} tokens, the text tower takes {longest}. Shorten it.")
        return nn.utils.rnn.pad_sequence(ids, batch_first=True)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Embedding ``[B, D]`` of normalised pictures, see `ImageTower.features`; not normalised."""
        return self.visual(pixels)

    def image_tokens(self, pixels: Tensor, positions: Positions = "sequence") -> Tensor:
        """Patches ``[B, h*w, D]`` of normalised pictures, see `ImageTower.tokens`; not normalised."""
        return self.visual.tokens(pixels, positions)

    def encode_audio(self, waveform: Tensor, scale: float = INT16) -> Tensor:
        """Embedding ``[B, D]`` of sounds as in `audio_features`; not normalised."""
        return self.audio.pool(self.audio_features(waveform, scale))

    def audio_tokens(self, waveform: Tensor, scale: float = INT16) -> Tensor:
        """Time-frequency tiles ``[B, rows * columns, D]`` of sounds as in `audio_features`; not normalised."""
        return self.audio.tokens(self.audio_features(waveform, scale))

    def audio_features(self, waveform: Tensor, scale: float = INT16) -> Tensor:
        """The map that ``audio.pool`` and ``audio.tokens`` read, where both are wanted.

        Args:
            waveform: floating point ``[B, T]`` mono in [-1, 1] (sums of K sounds in [-K, K]) at the rate of
                ``config.audio.sample_rate``. A wrong rate cannot be seen here: the method's InputSpec declares it.
            scale: factor to the 16-bit range that the tower was trained on. T-VSL's release forgets it, which is 1.

        Returns:
            ``[B, C, rows, columns]``.

        Raises:
            ValueError: the waveform is not ``[B, T]`` or is shorter than one window.
        """
        window = self.config.audio.win_length
        if waveform.ndim != 2 or waveform.shape[1] < window:
            rate = self.config.audio.sample_rate
            raise ValueError(
                f"AudioCLIP needs a mono waveform [B, T] of at least {window} samples ({rate} Hz), got "
                f"{list(waveform.shape)}. Mix the channels, or pad the clip with zeros."
            )
        return self.audio.features(waveform.float() * scale)
