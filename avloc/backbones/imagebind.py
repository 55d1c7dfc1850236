"""ImageBind's vision, audio and text towers (facebookresearch/ImageBind; Girdhar et al., 2023).

``imagebind_huge.pth`` loads unchanged; its towers for depth, heat and motion are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from avloc.backbones.tokens import Tokenizer, clip_tokenizer, world_tokenizer
from avloc.frontends.kaldi import KaldiFbank
from avloc.weights import WeightError, WeightFile, load_into, locate, read_metadata, read_state

__all__ = ["AudioConfig", "ImageBind", "ImageBindConfig", "TextConfig", "VisionConfig", "pieces"]

LARGEST_SCALE = 100.0
EPS = 1e-6  # of every LayerNorm but the audio stem's
OTHERS = ("depth", "thermal", "imu")


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower; the defaults are imagebind_huge's.

    Args:
        size: side of the square picture, pixels.
        patch: side of a patch, pixels.
        frames: that a patch of video spans; a picture is repeated so often.
        width: of the transformer.
        layers: its blocks.
        heads: its attention heads.
    """

    size: int = 224
    patch: int = 14
    frames: int = 2
    width: int = 1280
    layers: int = 32
    heads: int = 16

    @property
    def tokens(self) -> int:
        """Patches of a picture."""
        return (self.size // self.patch) ** 2


@dataclass(frozen=True)
class AudioConfig:
    """Front end and sizes of the audio tower; the defaults are imagebind_huge's.

    Args:
        sample_rate: Hz.
        pieces: of a clip that are heard, evenly spaced.
        seconds: of a piece.
        mels: bands of the spectrogram.
        frames: of 10 ms, to which a piece's spectrogram is cut or padded with zeros.
        mean: subtracted from the padded spectrogram.
        std: its divisor.
        kernel: side of a patch, bands and frames.
        stride: from one patch to the next.
        width: of the transformer.
        layers: its blocks.
        heads: its attention heads.
        scale: fixed factor of the unit embeddings.
    """

    sample_rate: int = 16000
    pieces: int = 3
    seconds: float = 2.0
    mels: int = 128
    frames: int = 204
    mean: float = -4.268
    std: float = 9.138
    kernel: int = 16
    stride: int = 10
    width: int = 768
    layers: int = 12
    heads: int = 12
    scale: float = 20.0

    @property
    def tokens(self) -> int:
        """Patches of a piece."""
        return ((self.mels - self.kernel) // self.stride + 1) * ((self.frames - self.kernel) // self.stride + 1)


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower; the defaults are imagebind_huge's.

    Args:
        context_length: rows of the position table.
        vocab_size: ids of the tokenizer; the end of text has the largest.
        width: of the transformer.
        layers: its blocks.
        heads: its attention heads.
    """

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 1024
    layers: int = 24
    heads: int = 16


@dataclass(frozen=True)
class ImageBindConfig:
    """Sizes; the defaults are imagebind_huge's.

    Args:
        embed_dim: D, size of the joint embedding.
        vision: see `VisionConfig`.
        audio: see `AudioConfig`.
        text: see `TextConfig`.
    """

    embed_dim: int = 1024
    vision: VisionConfig = field(default_factory=VisionConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> ImageBindConfig:
        """From what `dataclasses.asdict` gave."""
        towers = {"vision": VisionConfig, "audio": AudioConfig, "text": TextConfig}
        return cls(**{k: towers[k](**v) if k in towers else v for k, v in entries.items()})


class HannFbank(KaldiFbank):
    """Kaldi's filter banks with a Hann window and waveforms as they are, neither scaled nor normalised."""

    def __init__(self, sample_rate: int, mels: int) -> None:
        super().__init__(sample_rate, mels, scale=1.0, mean=0.0, std=0.5)

    def constants(self) -> dict[str, Tensor]:
        window = torch.hann_window(self.length, periodic=False, dtype=torch.float64)
        return super().constants() | {"window": window.float()}


def pieces(waveform: Tensor, count: int, length: int) -> Tensor:
    """Evenly spaced pieces of a clip, the first at its start, the last at its end.

    Args:
        waveform: ``[B, T]``.
        count: of pieces.
        length: of a piece, samples; a shorter clip is every piece itself.

    Returns:
        ``[B, count, min(T, length)]``.
    """
    room = max(0, waveform.shape[1] - length)
    starts = [i * room // max(1, count - 1) for i in range(count)]
    return torch.stack([waveform[:, s : s + length] for s in starts], 1)


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


class ImageBind(nn.Module):
    """The three towers under the official key names.

    Args:
        config: sizes; None for the official ones.
        tokenizer: turns text into ids of the text tower's vocabulary.

    Attributes:
        file: where the weights came from.
    """

    def __init__(self, config: ImageBindConfig | None = None, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = c = config or ImageBindConfig()
        v, a, t = c.vision, c.audio, c.text
        self.modality_preprocessors = nn.ModuleDict(
            {
                "vision": Patches(VisionStem(v), v.tokens, v.width),
                "audio": Patches(AudioStem(a), a.tokens, a.width),
                "text": TextStem(t),
            }
        )
        self.modality_trunks = nn.ModuleDict(
            {
                "vision": Trunk(v.width, v.layers, v.heads, norm_before=True),
                "audio": Trunk(a.width, a.layers, a.heads, bias_kv=True),
                "text": Trunk(t.width, t.layers, t.heads),
            }
        )
        project = nn.Sequential(nn.LayerNorm(t.width, EPS), nn.Linear(t.width, c.embed_dim, bias=False))
        self.modality_heads = nn.ModuleDict(
            {
                "vision": head(v.width, c.embed_dim),
                "audio": head(a.width, c.embed_dim),
                "text": nn.ModuleDict({"proj": project}),
            }
        )
        self.modality_postprocessors = nn.ModuleDict(
            {
                "audio": nn.ModuleDict({"1": Scale(a.scale, learnt=False)}),
                "text": nn.ModuleDict({"1": Scale(1 / 0.07, learnt=True)}),
            }
        )
        self.fbank = HannFbank(a.sample_rate, a.mels)  # its constants are no part of the state
        self.tokenizer = tokenizer
        self.file = WeightFile("random", None, "")

    @classmethod
    def from_source(cls, source: str, frozen: bool = True) -> ImageBind:
        """Build from a weight source (see `avloc.weights`): the official file, or one that `save_world` wrote.

        Args:
            source: ``random`` gives the official size, untrained.
            frozen: no parameter asks for a gradient.

        Raises:
            WeightError: the file is missing, damaged, or not an ImageBind with these three towers.
        """
        file = locate(source)
        metadata = read_metadata(file.path) if file.path else {}
        if "kind" in metadata:  # written by save_world
            if metadata["kind"] != "imagebind":
                raise WeightError(f"{file.path} holds a {metadata['kind']}, not an ImageBind.")
            config = ImageBindConfig.from_dict(json.loads(metadata["config"]))
            model = cls(config, world_tokenizer(metadata["tokenizer"]))
        else:
            model = cls(ImageBindConfig(), clip_tokenizer())
        if file.path:
            state = {k: v for k, v in read_state(file.path).items() if k.split(".")[1:2] not in ([o] for o in OTHERS)}
            load_into(model, state, str(file.path))
        model.file = file
        return model.eval().requires_grad_(not frozen)

    def save_world(self, path: Path, **metadata: str) -> None:
        """Write safetensors with configuration and tokenizer inside; matrices and kernels in half precision."""
        assert self.tokenizer is not None
        state = {k: (v.half() if v.ndim > 1 else v).cpu().contiguous() for k, v in self.state_dict().items()}
        config = json.dumps(asdict(self.config))
        top = {"kind": "imagebind", "config": config, "tokenizer": self.tokenizer.serialise()}
        save_file(state, path, metadata=top | metadata)

    @property
    def width(self) -> int:
        """D: size of the joint embedding."""
        return self.config.embed_dim

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit embeddings of pictures.

        Args:
            pixels: float ``[B, 3, S, S]`` with CLIP's mean and standard deviation, S = ``config.vision.size``.

        Returns:
            ``[B, D]``.

        Raises:
            ValueError: another size.
        """
        side = self.config.vision.size
        if pixels.shape[1:] != (3, side, side):
            raise ValueError(f"ImageBind sees [B, 3, {side}, {side}]; got {list(pixels.shape)}. Resize the pictures.")
        x = self.modality_trunks["vision"](self.modality_preprocessors["vision"](pixels))
        return F.normalize(self.modality_heads["vision"](x), dim=-1)

    def spectrograms(self, waveform: Tensor) -> Tensor:
        """What the audio tower is given.

        Args:
            waveform: floating point ``[B, T]`` mono in [-1, 1] at the rate of ``config.audio.sample_rate``.

        Returns:
            float32 ``[B, pieces, 1, mels, frames]``.

        Raises:
            ValueError: the waveform is not ``[B, T]`` or is shorter than one frame of 25 ms.
        """
        c = self.config.audio
        if waveform.ndim != 2 or waveform.shape[1] < self.fbank.length:
            raise ValueError(
                f"ImageBind needs a mono waveform [B, T] of at least {self.fbank.length} samples ({c.sample_rate} Hz), "
                f"got {list(waveform.shape)}. Mix the channels, or pad the clip with zeros."
            )
        x = pieces(waveform.float(), c.pieces, round(c.seconds * c.sample_rate))
        x = x - x.mean(-1, keepdim=True)
        bands = self.fbank(x.flatten(0, 1)).mT
        bands = F.pad(bands, (0, c.frames - bands.shape[2]))  # cuts where there are more
        return ((bands - c.mean) / c.std).unsqueeze(1).unflatten(0, x.shape[:2])

    def encode_audio(self, waveform: Tensor) -> Tensor:
        """Embeddings of sounds: the mean of their pieces' unit embeddings times 20, hence of no fixed length.

        Args:
            waveform: see `spectrograms`.

        Returns:
            ``[B, D]``.

        Raises:
            ValueError: see `spectrograms`.
        """
        x = self.spectrograms(waveform)
        stem = self.modality_preprocessors["audio"]
        y = self.modality_trunks["audio"](stem(x.flatten(0, 1).to(stem.get_parameter("cls_token").dtype)))
        y = F.normalize(self.modality_heads["audio"](y), dim=-1)
        return self.modality_postprocessors["audio"].get_submodule("1")(y).unflatten(0, x.shape[:2]).mean(1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """int64 ``[N, L]`` ids with start and end of text, cut to the context with the end kept, zero-padded.

        Raises:
            ValueError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("This ImageBind was built without a tokenizer.")
        longest = self.config.text.context_length
        ids = [self.tokenizer.encode(t) for t in texts]
        rows = [torch.tensor(row if len(row) <= longest else [*row[: longest - 1], row[-1]]) for row in ids]
        stem = self.modality_preprocessors["text"]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(stem.get_buffer("mask").device)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Embeddings of texts, unit vectors times the learnt temperature.

        Args:
            ids: int64 ``[N, L]``; what lies behind the end of text (the first largest id) cannot matter, so L may be
                shorter than the context.

        Returns:
            ``[N, D]``.
        """
        stem = self.modality_preprocessors["text"]
        L = ids.shape[1]
        x = self.modality_trunks["text"](stem(ids), stem.get_buffer("mask")[:L, :L])
        x = x[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
        x = F.normalize(self.modality_heads["text"].get_submodule("proj")(x), dim=-1)
        return self.modality_postprocessors["text"].get_submodule("1")(x)
