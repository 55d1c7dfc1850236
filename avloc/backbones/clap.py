"""CLAP, which hears and reads: `transformers.ClapModel` behind a front end that runs in batches on any device.

A Hugging Face snapshot of an unfused model such as ``hf:laion/clap-htsat-unfused`` (Wu et al., 2023) loads unchanged:
the weights with ``config.json``, ``preprocessor_config.json`` and ``tokenizer.json`` beside them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from avloc.backbones.tokens import Tokenizer, world_tokenizer
from avloc.backbones.towers import Tower, header, matrices_halved, own_metadata
from avloc.frontends.constants import Constants
from avloc.weights import WeightError, load_into, locate, read_state

__all__ = ["CLAP", "UNFUSED", "ClapFrontend"]

# The preprocessor of laion/clap-htsat-unfused.
UNFUSED: dict[str, Any] = {
    "feature_size": 64,
    "sampling_rate": 48000,
    "hop_length": 480,
    "max_length_s": 10,
    "fft_window_size": 1024,
    "frequency_min": 50,
    "frequency_max": 14000,
    "truncation": "rand_trunc",
    "padding": "repeatpad",
}
DERIVED = ("position_ids", "token_type_ids", "relative_position_index")  # buffers that follow from the configuration
FLOOR = 1e-10
BESIDE = ("config.json", "preprocessor_config.json", "tokenizer.json")


class ClapFrontend(Constants):
    """What `transformers.ClapFeatureExtractor` computes with ``truncation="rand_trunc"``, in batches, always float32.

    Clips that are too short are repeated as often as they fit whole, then padded with zeros; of those that are too long
    the middle is taken (the extractor draws a place). Power spectrogram, centred and reflected, periodic Hann window;
    Slaney's mel bands; ``10 log10`` of at least 1e-10.

    Args:
        settings: arguments of the feature extractor, e.g. `UNFUSED`.

    Raises:
        ValueError: the settings ask for fusion of several crops, or another padding.
    """

    mel: Tensor

    def __init__(self, settings: dict[str, Any] = UNFUSED) -> None:
        super().__init__()
        self.settings = {k: settings.get(k, v) for k, v in UNFUSED.items()}
        if self.settings["truncation"] != "rand_trunc" or self.settings["padding"] != "repeatpad":
            raise ValueError(
                f"CLAP with truncation {self.settings['truncation']!r} and padding {self.settings['padding']!r} is not "
                "supported, only the unfused models' rand_trunc and repeatpad. Use hf:laion/clap-htsat-unfused."
            )
        self.sample_rate: int = self.settings["sampling_rate"]
        self.samples = self.sample_rate * self.settings["max_length_s"]
        self.keep_constants()

    def constants(self) -> dict[str, Tensor]:
        """The window ``[n_fft]`` and the bands ``[n_fft / 2 + 1, mels]``, float32 on the CPU."""
        mel = ClapFeatureExtractor(**self.settings).mel_filters_slaney
        return {"window": torch.hann_window(self.settings["fft_window_size"]), "mel": torch.from_numpy(mel).float()}

    def fitted(self, waveform: Tensor) -> Tensor:
        """``[B, T]`` to ``[B, samples]``."""
        T, wanted = waveform.shape[1], self.samples
        if wanted <= T:
            return waveform.narrow(1, (T - wanted) // 2, wanted)
        waveform = waveform.repeat(1, wanted // T)
        return F.pad(waveform, (0, wanted - waveform.shape[1]))

    def forward(self, waveform: Tensor) -> Tensor:
        """Log-mel spectrograms in decibels.

        Args:
            waveform: floating point ``[B, T]`` in [-1, 1].

        Returns:
            float32 ``[B, 1, frames, mels]``.

        Raises:
            ValueError: the waveform is not ``[B, T]`` or has no sample.
        """
        if waveform.ndim != 2 or waveform.shape[1] == 0:
            raise ValueError(
                f"CLAP needs a mono waveform [B, T] ({self.sample_rate} Hz), got {list(waveform.shape)}. Mix the "
                "channels, and leave no clip empty."
            )
        with torch.autocast(waveform.device.type, enabled=False):
            n_fft, hop = self.settings["fft_window_size"], self.settings["hop_length"]
            spectrum = torch.stft(
                self.fitted(waveform.float()),
                n_fft,
                hop,
                window=self.window,
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()
            return 10 * (power.mT @ self.mel).clamp(min=FLOOR).log10().unsqueeze(1)


class CLAP(Tower):
    """Both towers.

    Args:
        config: arguments of `transformers.ClapConfig`; none for the size of laion/clap-htsat-unfused.
        settings: see `ClapFrontend`.
        tokenizer: turns text into ids of the text tower's vocabulary.
        frozen: `train` leaves the module in eval mode.

    Attributes:
        file: where the weights came from.

    Raises:
        ValueError: a model with feature fusion.
    """

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        settings: dict[str, Any] = UNFUSED,
        tokenizer: Tokenizer | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.config = ClapConfig(**(config or {}))
        if self.config.audio_config.enable_fusion:
            raise ValueError(
                "This CLAP fuses random crops of long clips. Use an unfused one: hf:laion/clap-htsat-unfused."
            )
        self.frontend = ClapFrontend(settings)
        self.model = ClapModel(self.config)
        self.tokenizer, self.frozen = tokenizer, frozen
        self.train(not frozen)

    @classmethod
    def from_source(cls, source: str, frozen: bool = True) -> CLAP:
        """Build from a weight source (see `avloc.weights`): a snapshot, or a file that `save_world` wrote.

        Args:
            source: ``random`` gives the official size, untrained, without a tokenizer.
            frozen: no parameter asks for a gradient, and `train` leaves the module in eval mode.

        Raises:
            WeightError: a file is missing, damaged, or not an unfused CLAP.
        """
        file = locate(source)
        if file.path is None:
            return cls(frozen=frozen).requires_grad_(not frozen)
        if (own := own_metadata(file, "clap", "a CLAP")) is not None:
            config, settings, tokenizer = (own[k] for k in ("config", "frontend", "tokenizer"))
        else:
            if missing := [name for name in BESIDE if not (file.path.parent / name).is_file()]:
                raise WeightError(
                    f"{', '.join(missing)} of {source} must lie beside {file.path}. Get the model's whole snapshot."
                )
            config, settings, tokenizer = ((file.path.parent / name).read_text() for name in BESIDE)
        try:
            model = cls(json.loads(config), json.loads(settings), world_tokenizer(tokenizer), frozen)
        except ValueError as e:
            raise WeightError(f"{file.path}: {e}") from e
        derived = {k: v for k, v in model.model.state_dict().items() if k.endswith(DERIVED)}
        state = {k: v for k, v in read_state(file.path).items() if not k.endswith(DERIVED)}
        load_into(model.model, derived | state, str(file.path))
        model.file = file
        return model.requires_grad_(not frozen)

    def save_world(self, path: Path, **metadata: str) -> None:
        """Write safetensors with configuration, front end and tokenizer inside; matrices in half precision."""
        assert self.tokenizer is not None
        own = {k: v for k, v in self.model.state_dict().items() if not k.endswith(DERIVED)}
        config = self.config.to_diff_dict()
        keep = {k: config[k] for k in ("text_config", "audio_config", "projection_dim") if k in config}
        head = header("clap", keep, self.tokenizer) | {"frontend": json.dumps(self.frontend.settings)}
        save_file(matrices_halved(own), path, metadata=head | metadata)

    @property
    def width(self) -> int:
        """D: size of the joint embedding."""
        return self.config.projection_dim

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.frontend.sample_rate

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids int64 ``[N, L]`` with start and end of text, padded to the longest, and their attention mask ``[N, L]``.

        Raises:
            ValueError: a text exceeds the text tower's positions, or there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("This CLAP was built without a tokenizer.")
        text, pad = self.config.text_config, int(self.config.text_config.pad_token_id)
        ids = [torch.tensor(self.tokenizer.encode(t)) for t in texts]
        longest = text.max_position_embeddings - pad - 1
        for t, row in zip(texts, ids, strict=True):
            if len(row) > longest:
                raise ValueError(f"{t!r} has {len(row)} tokens, CLAP's text tower takes {longest}. Shorten it.")
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad).to(self.model.logit_scale_t.device)
        return padded, (padded != pad).long()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings ``[N, D]`` of texts.

        Raises:
            ValueError: see `tokenize`.
        """
        ids, mask = self.tokenize(texts)
        return self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output

    def encode_audio(self, waveform: Tensor) -> Tensor:
        """Unit embeddings ``[B, D]`` of waveforms ``[B, T]`` in [-1, 1], see `ClapFrontend`.

        Raises:
            ValueError: the waveform is not ``[B, T]`` or has no sample.
        """
        mel = self.frontend(waveform)
        return self.model.get_audio_features(input_features=mel.to(self.model.logit_scale_a.dtype)).pooler_output
