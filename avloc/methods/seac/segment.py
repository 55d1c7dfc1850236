"""Stage one: boxes, non-maximum suppression, the N best, SAM's mask of each (``facts/seac.md`` section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.backbones.proposals import BoxSource, Convention, Detector, Proposals, keep, sam_embedding
from avloc.backbones.sam import SAM
from avloc.methods.seac.aggregate import box_masks

__all__ = ["Segmentation", "Segmenter", "at_side"]


@dataclass(frozen=True)
class Segmentation:
    """How masks are made. Only a description: `load` brings the networks.

    Args:
        boxes: where boxes come from. Paper: MAVL's, asked for "all objects", here `StoredBoxes`; another source costs
            accuracy.
        sam: weight source of the segmenter. Paper: ViT-H.
        count: N, most masks of a picture. Paper: 50, varied from 5 to 50.
        iou: threshold of the suppression. Paper: 0.5.
        convention: of the suppression; not stated, MAVL's own by default.
        multimask: take the best of SAM's three masks by its own judgement instead of the one for an unambiguous prompt;
            not stated.
        chunk: masks that are at full size together.
    """

    boxes: BoxSource
    sam: str = "sam_vit_h"
    count: int = 50
    iou: float = 0.5
    convention: Convention = "pixel"
    multimask: bool = False
    chunk: int = 16

    def load(self, device: torch.device | str) -> Segmenter:
        """The networks on ``device``."""
        return Segmenter(self, self.boxes.load(device), device)


class Segmenter:
    """Pictures to masks.

    Args:
        how: its description.
        detector: gives boxes.
        device: where it works.
    """

    def __init__(self, how: Segmentation, detector: Detector, device: torch.device | str) -> None:
        self.how, self.detector, self.device = how, detector, device
        self._sam: SAM | None = None

    @property
    def sam(self) -> SAM:
        """Loaded when a box without a mask turns up first: a source that draws masks needs none."""
        if self._sam is None:
            self._sam = SAM.from_source(self.how.sam).to(self.device)
        return self._sam

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor], names: Sequence[str]) -> list[Proposals]:
        """Masks of pictures.

        Args:
            images: uint8 ``[3, H, W]`` RGB, of any sizes.
            names: one each, for sources that look boxes up.

        Returns:
            For each picture 1 to N masks, the most confident box first. Empty masks are dropped; where all are, the
            best box is the mask, and the whole picture where there is no box.
        """
        images = [image.to(self.device) for image in images]
        how = self.how
        found = [keep(p, how.count, how.iou, how.convention) for p in self.detector(images, names)]
        return [self.masked(image, p) for image, p in zip(images, found, strict=True)]

    def masked(self, image: Tensor, found: Proposals) -> Proposals:
        height, width = image.shape[1:]
        if not len(found):
            whole = torch.tensor([[0.0, 0.0, width, height]], device=image.device)
            found = Proposals(whole, torch.zeros(1, device=image.device))
        masks = self.draw(image, found.boxes) if found.masks is None else found.masks
        seen = masks.flatten(1).any(1).nonzero()[:, 0]
        if len(seen):
            return Proposals(found.boxes, found.scores, masks).take(seen)
        best = found.boxes[:1]
        drawn = box_masks(best, (height, width))
        if not drawn.any():  # a box of no extent, or beside the picture
            drawn = torch.ones_like(drawn)
        return Proposals(best, found.scores[:1], drawn)

    def draw(self, image: Tensor, boxes: Tensor) -> Tensor:
        """SAM's masks bool ``[n, H, W]`` of boxes ``[n, 4]``."""
        sam, size = self.sam, (image.shape[1], image.shape[2])
        embedding, inner = sam_embedding(sam, image)
        asked = sam.to_model_frame(boxes.view(-1, 2, 2), size).view(-1, 4)
        masks = []
        for some in asked.split(self.how.chunk):
            sparse, _ = sam.prompts(boxes=some)
            chosen = slice(1, None) if self.how.multimask else slice(1)
            logits, quality = sam.decode(embedding, sparse, masks=chosen)
            best = quality.argmax(1)[:, None, None, None].expand(-1, 1, *logits.shape[2:])
            masks.append(sam.upscale(logits.gather(1, best), inner, size)[:, 0] > 0)
        return torch.cat(masks)


def at_side(masks: Tensor, side: int) -> Tensor:
    """Masks bool ``[n, H, W]`` on a square grid of the whole picture, by nearest neighbour as ground truth is.

    A mask too small for any cell's centre gets the cell of its centre of mass: none becomes empty.
    """
    small = F.interpolate(masks[None].to(torch.uint8), (side, side), mode="nearest-exact")[0].bool()
    lost = ~small.flatten(1).any(1) & masks.flatten(1).any(1)
    rows, columns = masks.any(2).float(), masks.any(1).float()

    def cell(seen: Tensor) -> Tensor:
        at = torch.arange(seen.shape[1], device=seen.device) + 0.5
        return ((seen @ at / seen.sum(1).clamp(min=1)) * side / seen.shape[1]).long().clamp(max=side - 1)

    n = torch.arange(len(masks), device=masks.device)
    small[n, cell(rows), cell(columns)] |= lost
    return small


# Checkpoints keep it among the hyper-parameters, and are loaded without unpickling anything else.
torch.serialization.add_safe_globals([Segmentation])
