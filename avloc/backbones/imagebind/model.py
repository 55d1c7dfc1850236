"""ImageBind's vision, audio and text towers (facebookresearch/ImageBind; Girdhar et al., 2023).

``imagebind_huge.pth`` loads unchanged; its towers for depth, heat and motion are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.imagebind.config import ImageBindConfig
from avloc.backbones.imagebind.layers import EPS, AudioStem, Patches, Scale, TextStem, Trunk, VisionStem, head
from avloc.backbones.tokens import Tokenizer, clip_tokenizer
from avloc.backbones.towers import Joint, own_parts
from avloc.frontends.kaldi import KaldiFbank
from avloc.weights import WeightFile, load_into, locate, read_state

__all__ = ["ImageBind", "pieces"]

OTHERS = ("depth", "thermal", "imu")


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


class ImageBind(Joint, nn.Module):
    """The three towers under the official key names.

    Args:
        config: sizes; None for the official ones.
        tokenizer: turns text into ids of the text tower's vocabulary.

    Attributes:
        file: where the weights came from.
    """

    kind = "imagebind"

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
        if (own := own_parts(file, "imagebind", "an ImageBind")) is not None:
            model = cls(ImageBindConfig.from_dict(own[0]), own[1])
        else:
            model = cls(ImageBindConfig(), clip_tokenizer())
        if file.path:
            state = {k: v for k, v in read_state(file.path).items() if k.split(".")[1:2] not in ([o] for o in OTHERS)}
            load_into(model, state, str(file.path))
        model.file = file
        return model.eval().requires_grad_(not frozen)

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
