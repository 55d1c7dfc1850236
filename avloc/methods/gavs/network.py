"""GAVS: a frozen SAM whose mask decoder is asked by sound.

Symbols as in the paper: F_V image embedding, F_A sound, F_C visual cue, F_N adaptive noise, F_P prompt. What the paper
and its release do differently are the options of `Design`; completions of what neither states are marked "choice".
The release is GeWu-Lab/Generalizable-Audio-Visual-Segmentation (commit 753b23b). Torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avloc.backbones.sam import SAM

__all__ = ["DESIGNS", "Design", "DesignName", "GAVSNetwork", "by_frame"]


@dataclass(frozen=True)
class Design:
    """What of GAVS there is; the defaults are the article's method, with the choices that it leaves open.

    Args:
        prompt: ``sap`` projects the visual cue, the sound and the learnable noise; ``audio`` the sound alone.
        noise_size: d_N, size of the learnable noise; 0 for none (choice: 128).
        cola: correlation adapter of each two-way block: on the tokens that become ``context`` (keys and values) of
            the image's attention (paper; with the release's skip, choice), on the output of the block's ``mlp``
            (release), or ``none``.
        activation: inside that adapter: ``relu`` (paper's figure) or ``gelu`` (release).
        fusion: a residual MLP of every pixel's feature and the sound, before the decoder (SAM-Fusion; choice).
        train_noise: in training the sound is REPLACED by noise of its spread (a defect of the release).
        channels: order in which the image encoder sees colours; the release feeds ``bgr`` to a network of RGB.
        hidden: hidden width of the prompt's projection and the cue's MLP (release: 512).
        adapter_hidden: hidden width of all adapters (release: 128).
    """

    prompt: Literal["sap", "audio"] = "sap"
    noise_size: int = 128
    cola: Literal["context", "mlp", "none"] = "context"
    activation: Literal["relu", "gelu"] = "relu"
    fusion: bool = False
    train_noise: bool = False
    channels: Literal["rgb", "bgr"] = "rgb"
    hidden: int = 512
    adapter_hidden: int = 128


DesignName = Literal["published", "released", "audio_sam", "sam_fusion"]
DESIGNS: dict[str, Design] = {
    "published": Design(),
    "released": Design(prompt="audio", cola="mlp", activation="gelu", train_noise=True, channels="bgr"),
    "audio_sam": Design(prompt="audio", cola="none"),
    "sam_fusion": Design(prompt="audio", cola="none", fusion=True),
}

# Checkpoints keep it among the hyper-parameters, and are loaded without unpickling anything else.
torch.serialization.add_safe_globals([Design])


class ColA(nn.Module):
    """Correlation adapter: bottleneck with a skip, ``proj(act(dense(x))) + x``."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)
        self.act = nn.GELU() if activation == "gelu" else nn.ReLU()
        self.proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.act(self.dense(x))) + x


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class GAVSNetwork(nn.Module):
    """A frozen SAM with what GAVS adds to it; the state dict's keys are the release's.

    Trainable: the prompt's projection ``audio_proj``, the adapters ``adapter_tf`` of the decoder, with ``tune_v`` the
    encoder's ``adapter_v`` of blocks from ``tune_v`` on and ``norm1``, ``norm2`` of the blocks behind that one, and the
    published ``cue`` and ``noise``. Nothing else.

    Args:
        sam: receives the adapters as submodules of its own layers.
        design: what there is.
        tune_v: first block of the image encoder with an adapter; None (or one behind the last block) for none.
        audio_size: d_m, size of the sound's feature.

    Raises:
        ValueError: ``tune_v`` is negative.
    """

    def __init__(
        self, sam: SAM, design: Design = DESIGNS["published"], *, tune_v: int | None = None, audio_size: int = 128
    ) -> None:
        super().__init__()
        if tune_v is not None and tune_v < 0:
            raise ValueError(f"tune_v is the first tuned block, 0 to {sam.config.depth - 1}, or None; got {tune_v}.")
        self.design = design
        self.model_v = sam
        width, inner = sam.config.transformer_dim, design.adapter_hidden
        self.first_adapter = sam.config.depth if tune_v is None else min(tune_v, sam.config.depth)
        for block in sam.image_encoder.blocks:  # the release's blocks below tune_v own adapters, too
            c = sam.config.embed_dim
            block.adapter_v = mlp(c, inner, c).requires_grad_(False)
        heard = audio_size
        if design.prompt == "sap":
            heard += audio_size + design.noise_size
            self.cue = mlp(width, design.hidden, audio_size)
            if design.noise_size:
                self.noise = nn.Parameter(0.02 * torch.randn(design.noise_size))
        sam.mask_decoder.audio_proj = mlp(heard, design.hidden, width)
        if design.cola != "none":
            for layer in sam.mask_decoder.transformer.layers:
                layer.adapter_tf = ColA(width, inner, design.activation)
        if design.fusion:
            self.fusion = mlp(width + audio_size, width, width)
            for p in self.fusion[-1].parameters():
                nn.init.zeros_(p)  # starts as plain SAM
        for b, block in enumerate(sam.image_encoder.blocks):
            block.adapter_v.requires_grad_(b >= self.first_adapter)
            for norm in (block.norm1, block.norm2):
                norm.requires_grad_(b > self.first_adapter)

    # ---- image side

    def prepare(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """uint8 RGB pictures to padded, normalised pixels in the design's channel order; see `SAM.prepare`."""
        if self.design.channels == "bgr":
            images = images.flip(1) if isinstance(images, Tensor) else [x.flip(0) for x in images]
        return self.model_v.prepare(images)

    @property
    def frozen_part(self) -> str:
        """What `encode_frozen` returns: ``embedding``, or ``block N``, the input of the first adapted block."""
        return "embedding" if self.first_adapter == self.model_v.config.depth else f"block {self.first_adapter}"

    @torch.no_grad()
    def encode_frozen(self, pixels: Tensor) -> Tensor:
        """The part of the image encoder that never changes, and may be cached.

        Args:
            pixels: from `prepare`.

        Returns:
            F_V ``[B, D, g, g]`` without encoder adapters; else tokens ``[B, g, g, C]`` below the first one.
        """
        x = self.model_v.blocks(self.model_v.patches(pixels), stop=self.first_adapter)
        return self.model_v.neck(x) if self.frozen_part == "embedding" else x

    def encode_rest(self, x: Tensor) -> Tensor:
        """What `encode_frozen` left to F_V ``[B, D, g, g]``."""
        if self.frozen_part == "embedding":
            return x
        return self.model_v.neck(self.model_v.blocks(x, self.first_adapter, after_mlp=self._adapt_encoder))

    def encode(self, pixels: Tensor) -> Tensor:
        """Prepared pixels to F_V ``[B, D, g, g]``."""
        return self.encode_rest(self.encode_frozen(pixels))

    def is_below_adapters(self, name: str) -> bool:
        """Whether `encode_frozen` uses the image encoder's tensor of that name."""
        part, number = name.split(".")[:2] if "." in name else (name, "")
        if part == "blocks":
            return int(number) < self.first_adapter and "adapter_v" not in name
        return part != "neck" or self.frozen_part == "embedding"

    def _adapt_encoder(self, block: int, x: Tensor) -> Tensor:
        return self.model_v.image_encoder.blocks[block].adapter_v(x) + x

    # ---- sound side

    def visual_cue(self, embedding: Tensor) -> Tensor | None:
        """F_C ``[B, d_m]``: the MLP of F_V's global average; None where the design has no cue."""
        return self.cue(embedding.mean((-1, -2))) if self.design.prompt == "sap" else None

    def prompt(self, audio: Tensor, cue: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """F_P ``[B, 1, D]``: one prompt token for each frame.

        Args:
            audio: F_A ``[B, d_m]``.
            cue: F_C ``[B, d_m]``; wanted by ``sap``.
            noise: standard normal ``[B, d_m]`` for the release's training noise; drawn when absent.
        """
        if self.design.train_noise and self.training:
            audio = self.training_noise(audio, noise)
        if self.design.prompt == "sap":
            assert cue is not None
            learned = [self.noise.expand(len(audio), -1)] if self.design.noise_size else []
            audio = torch.cat([cue, audio, *learned], dim=-1)
        return self.model_v.mask_decoder.audio_proj(audio)[:, None]

    def training_noise(self, audio: Tensor, noise: Tensor | None = None) -> Tensor:
        """What the release trains on: noise times the standard deviation of each frame's own values."""
        noise = torch.randn_like(audio) if noise is None else noise
        return noise * audio.std(-1, keepdim=True)

    # ---- decoder

    def ask(self, embedding: Tensor, audio: Tensor, prompt: Tensor, masks: slice = slice(1)) -> tuple[Tensor, Tensor]:
        """Mask logits ``[B, M, 4g, 4g]`` and predicted IoUs ``[B, M]`` of frame b under prompt b.

        Args:
            embedding: F_V ``[B, D, g, g]``.
            audio: F_A ``[B, d_m]``, which the fusion wants.
            prompt: F_P ``[B, 1, D]``.
            masks: which of the decoder's outputs; the method uses the first.
        """
        if self.design.fusion:
            pixels = embedding.permute(0, 2, 3, 1)
            sound = audio[:, None, None].expand(*pixels.shape[:3], -1)
            embedding = embedding + self.fusion(torch.cat([pixels, sound], dim=-1)).permute(0, 3, 1, 2)
        return self.model_v.decode(
            embedding,
            prompt,
            masks=masks,
            after_mlp=self._adapt_decoder if self.design.cola == "mlp" else None,
            context=self._adapt_decoder if self.design.cola == "context" else None,
        )

    def decode(self, embedding: Tensor, audio: Tensor) -> tuple[Tensor, Tensor | None]:
        """Everything behind the image encoder.

        Args:
            embedding: F_V ``[B, D, g, g]``.
            audio: F_A ``[B, d_m]``.

        Returns:
            low-resolution logits ``[B, 1, 4g, 4g]``, and F_C ``[B, d_m]`` or None.

        Raises:
            ValueError: as many sounds as frames are needed, of the size the network was built for.
        """
        if len(embedding) != len(audio):
            raise ValueError(f"{len(embedding)} frames and {len(audio)} sounds: every frame wants one second of sound.")
        cue = self.visual_cue(embedding)
        logits, _ = self.ask(embedding, audio, self.prompt(audio, cue))
        return logits, cue

    def _adapt_decoder(self, layer: int, x: Tensor) -> Tensor:
        return self.model_v.mask_decoder.transformer.layers[layer].adapter_tf(x)


def by_frame(
    function: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor | Sequence[Tensor], chunk: int
) -> Tensor:
    """Apply ``function`` to a few frames at a time; full-size maps live for one chunk, in backward as well.

    Args:
        function: of low-resolution logits ``[n, ...]`` and targets ``[n, ...]``, to one value a frame ``[n]``.
        logits: ``[B, ...]``.
        targets: ``[B, ...]``, or B tensors of different sizes, which are taken one by one.
        chunk: frames at a time.

    Returns:
        ``[B]``.
    """
    step = chunk if isinstance(targets, Tensor) else 1
    out = []
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        target = targets[rows] if isinstance(targets, Tensor) else targets[start][None]
        if torch.is_grad_enabled() and logits.requires_grad:
            out.append(checkpoint(function, logits[rows], target, use_reentrant=False, preserve_rng_state=False))
        else:
            out.append(function(logits[rows], target))
    return torch.cat(out)
