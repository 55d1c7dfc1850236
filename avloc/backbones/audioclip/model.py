"""AudioCLIP's three towers as one module, under the official key names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avloc.backbones.audioclip.audio import AudioConfig, AudioTower
from avloc.backbones.audioclip.image import ImageConfig, ImageTower, Positions
from avloc.backbones.audioclip.text import TextTower
from avloc.backbones.tokens import TextConfig, Tokenizer, clip_tokenizer
from avloc.backbones.towers import Joint, Tower, own_parts
from avloc.weights import load_into, locate, read_state

__all__ = ["INT16", "WORLD", "AudioCLIP", "AudioCLIPConfig"]

INT16 = 32768.0  # brings sounds in [-1, 1] to the range that the audio tower was trained on
LARGEST_SCALE = 100.0

Pair = Literal["image_text", "audio_image", "audio_text"]


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

    @property
    def vision(self) -> ImageConfig:
        """The image tower, by ImageBind's name of it."""
        return self.image

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


class AudioCLIP(Joint, Tower, TextTower):
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

    kind = "audioclip"

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
        if (own := own_parts(file, "audioclip", "an AudioCLIP")) is not None:
            model = cls(AudioCLIPConfig.from_dict(own[0]), own[1], frozen)
        else:
            model = cls(AudioCLIPConfig(), clip_tokenizer(), frozen)
        if file.path:
            load_into(model, read_state(file.path), str(file.path))
        model.file = file
        return model.requires_grad_(not frozen)

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
