"""AVSBench's baseline: temporal pixel-wise audio-visual interaction (TPAVI) at four scales and an FPN-like decoder.

From OpenNLPLab/AVSBench (commit 4d4c901). F frames of a clip, C channels of the decoder, D width of the sound, h w side
of a stage. Torch and timm only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.pvt_v2 import checkpoint_filter_fn
from torch import Tensor, nn

__all__ = ["Interaction", "Segmentation", "TPAVINetwork", "build_encoder", "encoder_keys", "normalise", "official_keys"]

DILATIONS = (3, 6, 12, 18)
STRIDE = 32  # of the last stage
UNUSED = (".layer3_2.", ".layer4_2.", "path4.resConfUnit1.")  # in official files, never read by the official network


def normalise(image: Tensor) -> Tensor:
    """uint8 RGB ``[..., 3, H, W]`` to float32 with ImageNet's mean and deviation."""
    mean = torch.tensor([0.485, 0.456, 0.406], device=image.device).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=image.device).view(3, 1, 1)
    return (image.float() / 255 - mean) / std


def build_encoder(name: str, options: dict[str, Any] | None = None) -> nn.Module:
    """An untrained timm encoder that answers with its features at strides 4, 8, 16 and 32.

    Args:
        name: a timm model, ``resnet50`` or ``pvt_v2_b5`` in AVSBench. PVT drops paths at 0.1 as there.
        options: for the model; ``{layers: [1, 1, 1, 1], channels: [16, 32, 64, 128], stem_width: 16}`` makes a tiny
            ``resnet18``.

    Raises:
        ValueError: the model does not exist in timm or has other strides.
    """
    settings: dict[str, Any] = {"drop_path_rate": 0.1} if name.startswith("pvt") else {}
    if not timm.is_model(name):
        raise ValueError(f"TPAVI: timm has no model {name!r}. AVSBench uses resnet50 and pvt_v2_b5.")
    stages = (0, 1, 2, 3) if name.startswith("pvt") else (1, 2, 3, 4)
    encoder = timm.create_model(name, features_only=True, out_indices=stages, **settings | (options or {}))
    strides = encoder.feature_info.reduction()
    if strides != [4, 8, 16, STRIDE]:
        raise ValueError(f"TPAVI: {name} has strides {strides} instead of 4, 8, 16, 32. Use a ResNet or a PVT v2.")
    return encoder


class TPAVINetwork(nn.Module):
    """Frames and the sound of each to one map of logits (or one per class) a frame.

    Args:
        encoder: see `build_encoder`.
        sound_size: width D of a frame's sound.
        channels: C.
        head: channels of the two convolutions before the last.
        stages: scales, counted from 1 for stride 4, at which the sound enters; none makes the network deaf.
        classes: 1 for a binary mask; 71 for AVSBench-semantic, class 0 being the background.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        sound_size: int = 128,
        channels: int = 256,
        head: tuple[int, int] = (128, 32),
        stages: Sequence[int] = (1, 2, 3, 4),
        classes: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages = tuple(stages)
        widths: list[int] = encoder.feature_info.channels()  # type: ignore[operator, union-attr]
        self.conv4 = DilatedSum(widths[3], channels)
        self.conv3 = DilatedSum(widths[2], channels)
        self.conv2 = DilatedSum(widths[1], channels)
        self.conv1 = DilatedSum(widths[0], channels)
        self.path4 = Fusion(channels, joins=False)
        self.path3 = Fusion(channels)
        self.path2 = Fusion(channels)
        self.path1 = Fusion(channels)
        for stage in self.stages:
            self.add_module(f"tpavi_b{stage}", Interaction(channels, sound_size))
        self.output_conv = nn.Sequential(
            nn.Conv2d(channels, head[0], 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(head[0], head[1], 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(head[1], classes, 1),
        )

    def forward(self, image: Tensor, sound: Tensor, clip: Tensor | None = None) -> Segmentation:
        """Segment every frame.

        Args:
            image: normalised ``[B, F, 3, H, W]``; H and W multiples of 32.
            sound: ``[B, F, D]``.
            clip: int64 ``[B]``, equal for the rows of one clip: clips of any lengths, as rows of F = 1. None where each
                row is a whole clip.

        Raises:
            ValueError: the shapes do not fit each other, or a side is no multiple of 32.
        """
        if image.ndim != 5 or image.shape[3] % STRIDE or image.shape[4] % STRIDE or sound.shape[:2] != image.shape[:2]:
            raise ValueError(
                f"TPAVI needs pictures [B, F, 3, H, W] with sides that {STRIDE} divides and sounds [B, F, D]; got "
                f"{list(image.shape)} and {list(sound.shape)}. Set image_size to a multiple of {STRIDE}."
            )
        clips = image.shape[:2]
        features: list[Tensor] = []
        sounds: dict[int, Tensor] = {}
        for stage, x in enumerate(self.encoder(image.flatten(0, 1)), start=1):
            x = self.get_submodule(f"conv{stage}")(x)
            if stage in self.stages:
                x, sounds[stage] = self.get_submodule(f"tpavi_b{stage}")(x.unflatten(0, clips), sound, clip)
                x = x.flatten(0, 1)
            features.append(F.relu(x))  # the official decoder rectifies them in place, before the loss reads them
        x = self.path4(features[3])
        x = self.path3(x, features[2])
        x = self.path2(x, features[1])
        x = self.path1(x, features[0])
        logits = self.output_conv(x).unflatten(0, clips)
        return Segmentation(logits, [f.unflatten(0, clips) for f in features], sounds)


@dataclass
class Segmentation:
    """What the network makes of B clips of F frames.

    Attributes:
        logits: ``[B, F, K, H, W]``, K classes or one map.
        features: rectified ``[B, F, C, h, w]`` of the four stages, stride 4 first.
        sounds: ``[B, F, C]`` of each stage that hears, by its number counted from 1.
    """

    logits: Tensor
    features: list[Tensor]
    sounds: dict[int, Tensor]


class Interaction(nn.Module):
    """TPAVI: every pixel of every frame asks the sounds of all frames, and takes what was seen when they sounded.

    With theta, phi, g pointwise maps of the pixels x, the sound a (the same at all pixels of its frame) and x, the
    published ``y_p = 1 / (F h w) sum_q <theta x_p, phi a_q> g x_q`` has no softmax. So the sum over q is taken first,
    ``y_p = (1 / F sum_t mean_q(g x_tq) (phi a_t)^T) theta x_p``, and the (F h w)^2 affinities (1 GB a clip at stride 4)
    are never built.

    Args:
        channels: C; theta, phi and g have half as many.
        sound_size: D.
    """

    def __init__(self, channels: int, sound_size: int = 128) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.align_channel = nn.Linear(sound_size, channels)
        self.norm_layer = nn.LayerNorm(channels)
        self.g = nn.Conv3d(channels, inner, 1)
        norm = nn.BatchNorm3d(channels)
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)
        self.W_z = nn.Sequential(nn.Conv3d(inner, channels, 1), norm)
        self.theta = nn.Conv3d(channels, inner, 1)
        self.phi = nn.Conv3d(channels, inner, 1)

    def forward(self, x: Tensor, sound: Tensor, clip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pixels ``[B, F, C, h, w]`` and sounds ``[B, F, D]`` to pixels of that shape and sounds ``[B, F, C]``.

        Args:
            x: pixels.
            sound: of each frame.
            clip: int64 ``[B]``, equal for the rows that are parts of one clip; None where each row is a whole one.
        """
        a = self.align_channel(sound)
        x = x.transpose(1, 2)  # [B, C, F, h, w]
        phi = self.phi(a.mT[..., None, None])[..., 0, 0]  # [B, C', F]
        seen = self.g(x).mean((-1, -2))
        mixing = torch.einsum("bit,bjt->bij", seen, phi) / x.shape[2]
        if clip is not None:
            same = (clip[:, None] == clip).to(mixing.dtype)
            mixing = torch.einsum("bc,cij->bij", same / same.sum(1, keepdim=True), mixing)
        y = torch.einsum("bij,bjthw->bithw", mixing, self.theta(x))
        z = (self.W_z(y) + x).permute(0, 2, 3, 4, 1)
        return self.norm_layer(z).permute(0, 1, 4, 2, 3), a


class DilatedSum(nn.Module):
    """Sum of dilated 3x3 convolutions, ``[N, width, h, w]`` to ``[N, channels, h, w]``."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv2d_list = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=d, dilation=d) for d in DILATIONS)
        for convolution in self.conv2d_list:
            nn.init.normal_(convolution.weight, 0, 0.01)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.conv2d_list
        return sum((convolution(x) for convolution in others), start=first(x))


class Fusion(nn.Module):
    """Joins a finer stage, refines, doubles the side (corners aligned).

    Args:
        channels: C.
        joins: False for the coarsest stage, which has none to join (official files carry unused weights for it).
    """

    def __init__(self, channels: int, joins: bool = True) -> None:
        super().__init__()
        if joins:
            self.resConfUnit1 = ResidualUnit(channels)
        self.resConfUnit2 = ResidualUnit(channels)

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        x = x if finer is None else x + self.resConfUnit1(finer)
        return F.interpolate(self.resConfUnit2(x), scale_factor=2, mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """Two convolutions with a skip of the RECTIFIED input: the official unit rectifies its input in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.conv2(F.relu(self.conv1(x))) + x


def encoder_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet of torchvision or timm, or a PVT v2 of its authors or timm, under the keys of `build_encoder`.

    Classifier weights are left out.
    """
    state = {k: v for k, v in state.items() if not k.startswith(("fc.", "head."))}
    if any(k.startswith("patch_embed") for k in state):
        state = {k.replace("stages.", "stages_", 1): v for k, v in checkpoint_filter_fn(state, None).items()}
    return state


def official_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An AVSBench checkpoint under the keys of `TPAVINetwork`.

    Its encoder is called ``resnet`` (whose stages 3 and 4 exist twice, the second copies unused) or
    ``encoder_backbone``. Other names agree.
    """
    state = {k.removeprefix("module."): v for k, v in state.items()}
    state = {k: v for k, v in state.items() if not any(part in k for part in UNUSED)}
    encoder, rest = {}, {}
    for key, value in state.items():
        head, _, tail = key.partition(".")
        if head in ("resnet", "encoder_backbone"):
            encoder[tail.replace("layer3_1.", "layer3.").replace("layer4_1.", "layer4.")] = value
        else:
            rest[key] = value
    return rest | {f"encoder.{k}": v for k, v in encoder_keys(encoder).items()}
