"""Stage one and CLIP for pictures: what `data_prep.seac_masks` stores, and what pictures without stored masks need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from avloc.backbones.openclip import OpenCLIP
from avloc.methods.seac.embed import Mixture
from avloc.methods.seac.segment import Segmentation, at_side
from avloc.methods.seac.stored import StoredMasks

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

    @property
    def recipe(self) -> str:
        """What the features depend on."""
        return self.mixture.recipe(self.clip.file)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor], names: Sequence[str]) -> list[StoredMasks]:
        """Masks of pictures uint8 ``[3, H, W]`` RGB of any sizes, with bits; ``names`` see `Segmenter`."""
        made = []
        for image, found in zip(images, self.segment(images, names), strict=True):
            assert found.masks is not None
            image = image.to(self.device)
            features = self.mixture.embed(self.clip, image, found.masks, self.chunk)
            frame = torch.tensor([image.shape[2], image.shape[1]] * 2, device=found.boxes.device)
            small = at_side(found.masks, self.side).cpu().numpy()
            made.append(
                StoredMasks(
                    features.cpu().numpy().astype(np.float16),
                    (found.boxes / frame).cpu().numpy(),
                    found.scores.cpu().numpy().astype(np.float16),
                    np.packbits(small, axis=2),
                    self.side,
                )
            )
        return made
