"""ResNet-18 as a judge of where objects are: the map that object-guided localisation mixes in.

Reads torchvision's ``resnet18-f37072fd.pth`` (source ``resnet18``), timm's copy of it (``hf:timm/resnet18.tv_in1k``),
and the embedded world's tiny one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from avloc.backbones.pixels import per_channel
from avloc.weights import WeightError, WeightFile, load_into, locate, read_metadata, read_state

__all__ = ["SIDE", "ObjectResNet", "normalised"]

SIDE = 224
"""Pixels of the picture's side; the last features are 7 x 7 then."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ObjectResNet(nn.Module):
    """A frozen ResNet-18 classifier whose last features, averaged over the channels, tell objects from background.

    Args:
        options: for timm's ``resnet18``; ``{channels: [8, 16, 32, 64], stem_width: 8}`` makes a tiny one.
    """

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.options = options or {}
        self.resnet = timm.create_model("resnet18", **self.options)
        self.file = WeightFile("random", None, "")

    @classmethod
    def from_source(cls, source: str) -> ObjectResNet:
        """The frozen network of a weight source, in eval mode; ``random`` is the same one on every process.

        Raises:
            WeightError: the file is missing, or of another model.
        """
        file = locate(source)
        if file.path is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = cls()
        else:
            metadata = read_metadata(file.path)
            if metadata.get("kind", "resnet18") != "resnet18":
                raise WeightError(f"{file.path} holds a {metadata['kind']}, not a ResNet-18. Name resnet18.")
            model = cls(json.loads(metadata.get("options", "null")))
            # Files of before torch 0.4.1 do not count batches, nor do the world's; nothing here reads the counts.
            counts = {k: v for k, v in model.resnet.state_dict().items() if k.endswith("num_batches_tracked")}
            load_into(model.resnet, counts | read_state(file.path), str(file.path))
        model.file = file
        return model.eval().requires_grad_(False)

    def save_world(self, path: Path, **metadata: str) -> None:
        """Write half-precision safetensors with the network's options inside."""
        state = {k: v for k, v in self.resnet.state_dict().items() if not k.endswith("num_batches_tracked")}
        head = {"kind": "resnet18", "options": json.dumps(self.options)}
        save_file({k: v.half().contiguous() for k, v in state.items()}, path, metadata=head | metadata)

    def train(self, mode: bool = True) -> ObjectResNet:
        """Frozen towers stay in eval mode."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def object_map(self, pixels: Tensor) -> Tensor:
        """Channel mean of the absolute last features (EZ-VSL, SLAVC: object-guided rows).

        Args:
            pixels: `normalised` ``[B, 3, H, W]``; 224 is the published side.

        Returns:
            float32 ``[B, H / 32, W / 32]``, at least 0.
        """
        features: Tensor = self.resnet.forward_features(pixels)  # type: ignore[operator]
        return features.float().abs().mean(1)


def normalised(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 RGB ``[B, 3, H, W]`` to float32 with ImageNet's mean and deviation, at another height and width."""
    mean, deviation = (per_channel(v, image.device) for v in (MEAN, DEVIATION))
    pixels = image.float() / 255
    if tuple(image.shape[-2:]) != size:
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    return (pixels - mean) / deviation
