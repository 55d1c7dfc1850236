"""Stage one and CLIP for pictures: what is stored once per frame, and what pictures without stored masks need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from avloc.backbones.openclip import OpenCLIP
from avloc.backbones.proposals import Proposals
from avloc.methods.seac.embed import Mixture
from avloc.methods.seac.segment import Segmentation, at_side
from avloc.methods.seac.stored import PictureMasks

__all__ = ["MaskMaker"]


class MaskMaker:
    """Pictures to masks and their features.

    Args:
        segmentation: how masks are made.
        mixture: how they are embedded.
        clip: the frozen CLIP, already on ``device``.
        device: where all of it runs.
        side: G of the masks; every published evaluator looks at 224.
        chunk: masks that go through CLIP together.

    Raises:
        WeightError: weights of a detector are missing or damaged.
    """

    def __init__(
        self,
        segmentation: Segmentation,
        mixture: Mixture,
        clip: OpenCLIP,
        device: torch.device | str,
        side: int = 224,
        chunk: int = 32,
    ) -> None:
        self.segment = segmentation.load(device)
        self.mixture, self.clip, self.device, self.side, self.chunk = mixture, clip, device, side, chunk

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor], names: Sequence[str], strict: bool = True) -> list[PictureMasks]:
        """Masks of pictures uint8 ``[3, H, W]`` RGB of any sizes; ``names`` and ``strict`` see `Segmenter`.

        In float32 under any autocast, so that they are what is stored.
        """
        with torch.autocast(torch.device(self.device).type, enabled=False):
            found = self.segment(images, names, strict)
            return [self.embedded(image.to(self.device), one) for image, one in zip(images, found, strict=True)]

    def embedded(self, image: Tensor, found: Proposals) -> PictureMasks:
        """One picture's masks with their features."""
        assert found.masks is not None
        features = self.mixture.embed(self.clip, image, found.masks, self.chunk)
        frame = torch.tensor([image.shape[2], image.shape[1]] * 2, device=found.boxes.device)
        small = at_side(found.masks, self.side).cpu().numpy()
        return PictureMasks(features, found.boxes / frame, found.scores, np.packbits(small, axis=2))
