"""The network of the two-tower family: a ResNet-18 that sees, one that hears, and a cosine at every place.

Symbols: v_n(p) unit feature of picture n at place p, a_m unit feature of sound m, S_nm(p) = v_n(p) . a_m.

The towers are timm's ``resnet18``, which has torchvision's layers and names. LVS, SSL-TIE and Alignment take the last
stage without its stride (14 x 14 places of a picture of 224) and no heads; EZ-VSL, MarginNCE and FNAC take the whole
stride (7 x 7) and one head on each tower; SLAVC two heads, and a momentum copy of everything.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Design", "TwoTowers", "initialise", "matching", "resnet", "similarity"]

Design = Literal["headless", "one_head", "two_heads"]


def resnet(options: dict[str, Any] | None = None, channels: int = 3, stride: Literal[16, 32] = 32) -> nn.Module:
    """A ResNet-18 without classifier, randomly initialised.

    Args:
        options: for timm's ``resnet18``; ``{channels: [8, 16, 32, 64], stem_width: 8}`` makes a tiny one.
        channels: of its input.
        stride: of its last features. 16 leaves out the last stage's stride, without dilation, as LVS does.
    """
    body = timm.create_model("resnet18", in_chans=channels, num_classes=0, global_pool="", **(options or {}))
    if stride == 16:
        first = body.layer4[0]  # type: ignore[index, union-attr]
        for conv in (first.conv1, first.downsample[0]):
            conv.stride = (1, 1)
    return body


class TwoTowers(nn.Module):
    """Pictures and spectrograms to unit features.

    Args:
        design: ``headless``: the towers' last features (after their ReLU, so no cosine is negative), stride 16 (LVS,
            SSL-TIE, Alignment). ``one_head``: a 1 x 1 convolution and a linear layer, stride 32 (EZ-VSL, MarginNCE,
            FNAC). ``two_heads``: two of each, and a momentum copy of everything (SLAVC).
        dim: width of the heads; 512 in the papers.
        tower: see `resnet`, for both towers.
        sound_tower: see `resnet`, for the tower that hears; None for ``tower``.
        dropout: probability with which a picture's features are dropped before the heads, in training. 0.9 in SLAVC and
            FNAC.

    Raises:
        ValueError: ``headless`` with towers of different widths.

    Attributes:
        momentum: the copy that follows these weights (`follow`), without gradient; None but for ``two_heads``.
    """

    def __init__(
        self,
        design: Design = "one_head",
        dim: int = 512,
        tower: dict[str, Any] | None = None,
        dropout: float = 0.0,
        sound_tower: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.design: Design = design
        heads = {"headless": 0, "one_head": 1, "two_heads": 2}[design]
        stride: Literal[16, 32] = 32 if heads else 16
        self.imgnet, self.audnet = resnet(tower, 3, stride), resnet(sound_tower or tower, 1, stride)
        width: int = self.imgnet.num_features  # type: ignore[assignment]
        heard: int = self.audnet.num_features  # type: ignore[assignment]
        if not heads and width != heard:
            raise ValueError(
                f"Without heads both towers need last layers of one width, but tower has {width} channels and "
                f"sound_tower {heard}. Make their last channels equal."
            )
        self.img_proj = nn.ModuleList(nn.Conv2d(width, dim, 1) for _ in range(heads))
        self.aud_proj = nn.ModuleList(nn.Linear(heard, dim) for _ in range(heads))
        self.drop = nn.Dropout(dropout)
        self.momentum: TwoTowers | None = None
        if heads == 2:
            self.momentum = deepcopy(self).requires_grad_(False)

    def see(self, image: Tensor) -> Tensor:
        """v: unit features of each head, ``[heads or 1, B, D, h, w]``, of normalised pictures ``[B, 3, H, W]``."""
        x = self.imgnet.forward_features(image)  # type: ignore[operator]
        if not self.img_proj:
            return unit(x)[None]
        x = self.drop(x)
        return unit(torch.stack([head(x) for head in self.img_proj]), 2)

    def hear(self, spectrogram: Tensor) -> Tensor:
        """a: unit features of each head, ``[heads or 1, B, D]``, of spectrograms ``[B, 1, F, T]``."""
        x = self.audnet.forward_features(spectrogram).amax((-2, -1))  # type: ignore[operator]
        if not self.aud_proj:
            return unit(x)[None]
        return unit(torch.stack([head(x) for head in self.aud_proj]), 2)

    def forward(self, image: Tensor, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        """v and a of both."""
        return self.see(image), self.hear(spectrogram)

    @torch.no_grad()
    def follow(self, m_image: float, m_audio: float) -> None:
        """Move the momentum copy: parameter <- m * parameter + (1 - m) * online. Its BatchNorm statistics do not
        follow; they move by the copy's own passes in training, as in SLAVC's code."""
        assert self.momentum is not None, "only two_heads has a momentum copy"
        for part, m in (("imgnet", m_image), ("img_proj", m_image), ("audnet", m_audio), ("aud_proj", m_audio)):
            theirs, own = self.momentum.get_submodule(part), self.get_submodule(part)
            torch._foreach_lerp_(list(theirs.parameters()), list(own.parameters()), 1 - m)

    @torch.no_grad()
    def align_momentum(self) -> None:
        """Make the momentum copy equal, statistics too: how a training starts."""
        if self.momentum is not None:
            state = {k: v for k, v in self.state_dict().items() if not k.startswith("momentum.")}
            self.momentum.load_state_dict(state)


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """``x / max(|x|, 1e-12)`` over the channels ``dim``, in float32."""
    return F.normalize(x.float(), dim=dim)


def similarity(v: Tensor, a: Tensor) -> Tensor:
    """S_nm(p): cosines of every place of every picture with every sound.

    Args:
        v: unit features ``[N, D, h, w]``.
        a: unit features ``[M, D]``.

    Returns:
        ``[N, M, h, w]`` in [-1, 1].
    """
    return torch.einsum("ndhw,md->nmhw", v, a)


def matching(v: Tensor, a: Tensor) -> Tensor:
    """S_nn(p), ``[N, h, w]``: each picture's places with its own sound."""
    return torch.einsum("ndhw,nd->nhw", v, a)


def initialise(module: nn.Module) -> None:
    """How the releases start what is not pretrained: convolutions Kaiming-normal by fan-out, linear weights of
    deviation 0.01 cut at two, BatchNorm weights 1 with deviation 0.02."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.01)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)
