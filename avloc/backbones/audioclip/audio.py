"""AudioCLIP's audio tower: ESResNeXt on a learnt spectrogram."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck  # type: ignore[import-untyped]

from avloc.frontends.fbsp import FBSPSpectrogram

__all__ = ["AudioConfig", "AudioTower"]


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
