"""Wav2CLIP: a ResNet-18 that hears into a CLIP space of 512 dimensions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock  # type: ignore[import-untyped]

from avloc.backbones.towers import Tower, header, matrices_halved, own_metadata
from avloc.frontends.constants import Float32Window
from avloc.weights import load_into, locate, read_state

__all__ = ["LogSpectrogram", "Wav2CLIP", "Wav2CLIPConfig", "standardise"]

OWN = ("audio_encoder.", "audio_transform.")  # the rest of an official file served its pre-training

Statistics = Literal["batch", "clip"]


@dataclass(frozen=True)
class Wav2CLIPConfig:
    """Spectrogram and sizes; the defaults are the official ones.

    Args:
        sample_rate: Hz; for the method's InputSpec, the tower cannot know what it is fed.
        n_fft: window and FFT, samples.
        hop: samples.
        power: exponent of the magnitudes.
        log_eps: added before the logarithm.
        std_eps: added to the standard deviation.
        blocks: basic blocks of the four stages.
        mlp_units: widths of the projection: input (8 times the stem's channels), hidden, embedding.

    Raises:
        ValueError: the projection's input is no multiple of 8, or there are not three widths.
    """

    sample_rate: int = 16000
    n_fft: int = 512
    hop: int = 353
    power: float = 2.0
    log_eps: float = 1e-7
    std_eps: float = 1e-9
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    mlp_units: tuple[int, ...] = (512, 512, 512)

    def __post_init__(self) -> None:
        if len(self.mlp_units) != 3 or self.mlp_units[0] % 8:
            raise ValueError(f"Wav2CLIP: mlp_units must be three widths, the first a multiple of 8: {self.mlp_units}.")


class LogSpectrogram(Float32Window):
    """``ln(|STFT|^power + eps)``, centred frames with reflected ends, periodic Hann window; always float32.

    Args:
        config: its sizes.
    """

    def __init__(self, config: Wav2CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.n_fft, dtype=torch.float32))

    def forward(self, waveform: Tensor) -> Tensor:
        """Of a batch, not standardised.

        Args:
            waveform: floating point ``[B, T]`` in [-1, 1].

        Returns:
            float32 ``[B, n_fft / 2 + 1, 1 + T // hop]``.

        Raises:
            ValueError: the waveform is not ``[B, T]`` or too short to be reflected.
        """
        c = self.config
        if waveform.ndim != 2 or waveform.shape[1] <= c.n_fft // 2:
            raise ValueError(
                f"Wav2CLIP needs a mono waveform [B, T] of more than {c.n_fft // 2} samples ({c.sample_rate} Hz), got "
                f"{list(waveform.shape)}. Mix the channels, or pad the clip with zeros."
            )
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float(),
                c.n_fft,
                c.hop,
                window=self.window,
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )
            return (spectrum.abs().pow(c.power) + c.log_eps).log()


def standardise(x: Tensor, eps: float, statistics: Statistics) -> Tensor:
    """``(x - mean) / (std + eps)`` of ``[B, ...]`` with one mean and unbiased std for the batch or for each clip."""
    dims = tuple(range(x.ndim)) if statistics == "batch" else tuple(range(1, x.ndim))
    return (x - x.mean(dims, keepdim=True)) / (x.std(dims, keepdim=True) + eps)


class Encoder(nn.Module):
    """The spectrogram, which the official files list inside the network, and a ResNet of one input channel.

    Of torchvision's blocks: its own ``ResNet`` has three channels and a stem of 64, and timm's draws other weights.
    """

    def __init__(self, config: Wav2CLIPConfig) -> None:
        super().__init__()
        self.spectrogram = LogSpectrogram(config)
        width = config.mlp_units[0] // 8
        self.conv1 = nn.Conv2d(1, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages, inputs = [], width
        for n, blocks in enumerate(config.blocks):
            stages.append(stage(inputs, width * 2**n, blocks, 1 if n == 0 else 2))
            inputs = width * 2**n
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Features ``[B, 8 width]`` of standardised spectrograms ``[B, bins, frames]``."""
        x = self.bn1(self.conv1(spectrogram.to(self.conv1.weight.dtype).unsqueeze(1))).relu()
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


def stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """Basic blocks of torchvision; the shortcut of the first is projected where its shape changes."""
    shortcut = None
    if stride > 1:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


class Projection(nn.Module):
    """Two linear layers; dropout 0.1 between them in train mode."""

    def __init__(self, units: tuple[int, ...]) -> None:
        super().__init__()
        inputs, hidden, outputs = units
        self.sequential = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.sequential(x)


class Wav2CLIP(Tower):
    """Waveform to an embedding in CLIP's space (ViT-B/32 by its width; the release names none).

    Args:
        config: sizes; None for the official ones.
        statistics: what a spectrogram is standardised with. ``batch`` is the released way: one mean and deviation
            for the whole batch, so that an embedding depends on its batch mates. ``clip`` takes each clip's own,
            which is what the released way gives for a batch of one.
        frozen: `train` leaves the module in eval mode.

    Attributes:
        file: where the weights came from.
    """

    def __init__(
        self, config: Wav2CLIPConfig | None = None, statistics: Statistics = "batch", frozen: bool = False
    ) -> None:
        super().__init__()
        self.config = config or Wav2CLIPConfig()
        self.statistics = statistics
        self.frozen = frozen
        self.audio_encoder = Encoder(self.config)
        self.audio_transform = Projection(self.config.mlp_units)
        self.train(not frozen)

    @classmethod
    def from_source(cls, source: str, statistics: Statistics = "batch", frozen: bool = True) -> Wav2CLIP:
        """Build from a weight source (see `avloc.weights`): the official file, or one that `save_world` wrote.

        Args:
            source: ``random`` gives the official size, untrained.
            statistics: as in the constructor.
            frozen: no parameter asks for a gradient, and `train` leaves the module in eval mode.

        Raises:
            WeightError: the file is missing, damaged, or not a Wav2CLIP with its projection.
        """
        file = locate(source)
        config = Wav2CLIPConfig()
        if (own := own_metadata(file, "wav2clip", "a Wav2CLIP")) is not None:
            entries = json.loads(own["config"]).items()
            sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entries}
            config = Wav2CLIPConfig(**sizes)
        model = cls(config, statistics, frozen)
        if file.path:
            content = read_state(file.path)
            state = content.get("state_dict", content)
            load_into(model, {k: v for k, v in state.items() if k.startswith(OWN)}, str(file.path))
        model.file = file
        return model.requires_grad_(not frozen)

    def save_world(self, path: Path, **metadata: str) -> None:
        """Write safetensors with the configuration inside; matrices and kernels in half precision."""
        head = header("wav2clip", asdict(self.config))
        save_file(matrices_halved(self.state_dict()), path, metadata=head | metadata)

    @property
    def width(self) -> int:
        """D: size of the embedding."""
        return self.config.mlp_units[2]

    def features(self, waveform: Tensor) -> Tensor:
        """What the encoder says before the projection.

        Args:
            waveform: floating point ``[B, T]`` mono in [-1, 1] at the rate of ``config.sample_rate``. A wrong rate
                cannot be seen here: the method's InputSpec declares it.

        Returns:
            ``[B, mlp_units[0]]``.

        Raises:
            ValueError: the waveform is not ``[B, T]`` or not longer than half a window.
        """
        spectrogram = self.audio_encoder.spectrogram(waveform)
        return self.audio_encoder(standardise(spectrogram, self.config.std_eps, self.statistics))

    def forward(self, waveform: Tensor) -> Tensor:
        """Embedding ``[B, D]`` of a waveform as in `features`; not normalised."""
        return self.audio_transform(self.features(waveform))

    def encode_frames(self, waveform: Tensor, length: int, hop: int) -> Tensor:
        """Embeddings of pieces of each clip; with batch statistics, all pieces of all clips share them.

        Args:
            waveform: as in `features`.
            length: of a piece, samples.
            hop: from one piece to the next, samples.

        Returns:
            ``[B, D, 1 + (T - length) // hop]``; what is left at the end is not heard.

        Raises:
            ValueError: the clip is shorter than a piece.
        """
        if waveform.ndim != 2 or waveform.shape[1] < length:
            raise ValueError(f"Wav2CLIP: clips {list(waveform.shape)} hold no piece of {length} samples.")
        pieces = waveform.unfold(1, length, hop)
        return self(pieces.flatten(0, 1)).unflatten(0, pieces.shape[:2]).mT
