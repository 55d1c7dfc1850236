"""Boxes of a detector, of which the one that looks most like the sound is the answer.

Baselines of ACL-SSL's journal paper: Wav2CLIP, AudioCLIP and ImageBind without training, on
boxes of a GLIP-type detector.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from avloc.backbones.proposals import BoxSource, Detector, Proposals, SamPoints, keep
from avloc.methods.base import Localizer
from avloc.methods.baselines.spaces import Space
from avloc.methods.seac.aggregate import box_masks
from avloc.methods.seac.embed import resize_weights, square_span, tight_boxes
from avloc.methods.seac.segment import at_side
from avloc.types import AVBatch, InputSpec, Localization

__all__ = ["BoxRetrieval", "crop"]

NOTHING = -1.0  # the lowest cosine


class BoxRetrieval(Localizer):
    """The box with the largest cosine of its crop with the sound; inside it the map is 1, elsewhere 0.

    Args:
        space: in which crops and sounds are compared.
        boxes: where boxes come from; SAM's automatic masks by default, which need no detector. The paper: a GLIP-type
            detector, whose text it does not state.
        unit: of the boxes: ``pixel`` of the picture as it is seen, or ``fraction`` of its sides.
        threshold: boxes count whose score is above it. Paper: 0.05.
        count: of them the most confident ones. Paper: 100.
        iou: suppression among them; 1 for none, since detectors have their own.
        shape: what is answered: the ``box``, or the ``mask`` of a source that draws masks.
        view: the crop is ``stretched`` to the square that the space sees, or first widened to a ``square`` around its
            centre, black beyond the picture. (Not stated.)
        image_size: longest side in pixels of the picture in which boxes are found and cut out.
        heatmap_size: side of the map; every published evaluator asks for 224.
        chunk: boxes that are cut out together.

    Raises:
        ValueError: the space cannot look at pictures.
    """

    def __init__(
        self,
        space: Space,
        boxes: BoxSource | None = None,
        unit: Literal["pixel", "fraction"] = "pixel",
        threshold: float = 0.05,
        count: int = 100,
        iou: float = 1.0,
        shape: Literal["box", "mask"] = "box",
        view: Literal["stretched", "square"] = "stretched",
        image_size: int = 800,
        heatmap_size: int = 224,
        chunk: int = 32,
    ) -> None:
        super().__init__()
        if not space.image_size:
            raise ValueError(f"BoxRetrieval: {type(space).__name__} cannot look at boxes. Use a space with pictures.")
        self.space, self.boxes, self.unit = space, boxes or SamPoints(), unit
        self.threshold, self.count, self.iou, self.shape, self.view = threshold, count, iou, shape, view
        self.heatmap_size, self.chunk = heatmap_size, chunk
        self.frozen_files = space.files
        self.input_spec = InputSpec(
            image_size=image_size,
            resize="pad",
            interpolation="bilinear",
            sample_rate=space.sample_rate,
            seconds=space.seconds,
        )
        self._detector: list[Detector] = []

    def localize(self, batch: AVBatch) -> Localization:
        """One two-valued map a sample; the confidence is the best box's cosine. A picture without boxes has a map of
        zeros and the lowest confidence, -1.

        Raises:
            ValueError: masks are asked of a source that draws none.
            KeyError: boxes are looked up, and there are none of a picture; names it.
        """
        pictures = list(batch.image)
        if batch.size is not None:
            pictures = [x[:, :h, :w] for x, (h, w) in zip(pictures, batch.size.tolist(), strict=True)]
        G, device = self.heatmap_size, batch.device
        heatmap = torch.zeros(len(batch), 1, G, G, device=device)
        confidence = torch.full((len(batch), 1), NOTHING, device=device)
        with torch.no_grad():
            found = self.proposals(pictures, batch.key)
            numbers = torch.tensor([len(p) for p in found], device=device)
            if numbers.any():
                crops = [self.cut(x, p.boxes) for x, p in zip(pictures, found, strict=True) if len(p)]
                owner = torch.arange(len(batch), device=device).repeat_interleave(numbers)
                cosine = (self.space.look(torch.cat(crops)) * self.space.hear(batch.audio)[owner]).sum(-1)
                confidence = confidence.scatter_reduce(0, owner[:, None], cosine[:, None], "amax")
                for b, own in enumerate(cosine.split(numbers.tolist())):
                    if len(own):
                        heatmap[b, 0] = self.painted(found[b].take(own.argmax()[None]), pictures[b], batch.key[b])
        return Localization(heatmap, confidence)

    def proposals(self, pictures: list[Tensor], keys: list[str]) -> list[Proposals]:
        """Boxes in whole pixels of each picture uint8 ``[3, H, W]``, cut at its edges; those beside it are left out."""
        if not self._detector:
            self._detector.append(self.boxes.load(self.device))
        found = self._detector[0](pictures, [key.partition("@")[0] for key in keys])
        kept = []
        for picture, p in zip(pictures, found, strict=True):
            p = keep(p.take((p.scores > self.threshold).nonzero()[:, 0]), self.count, self.iou, "continuous")
            frame = torch.tensor([picture.shape[2], picture.shape[1]] * 2, device=p.boxes.device)
            boxes = p.boxes * frame if self.unit == "fraction" else p.boxes
            if p.masks is not None and len(p):  # whose boxes end at the last pixel, not behind it
                boxes = tight_boxes(p.masks).float()
            boxes = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1).clamp(min=0).minimum(frame)
            there = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero()[:, 0]
            kept.append(Proposals(boxes, p.scores, p.masks).take(there))
        return kept

    def cut(self, picture: Tensor, boxes: Tensor) -> Tensor:
        side, square = self.space.image_size, self.view == "square"
        return torch.cat([crop(picture, some, side, square) for some in boxes.split(self.chunk)])

    def painted(self, best: Proposals, picture: Tensor, key: str) -> Tensor:
        """The map ``[G, G]`` of one box ``[1, 4]``, or of its mask."""
        G = self.heatmap_size
        if self.shape == "mask":
            if best.masks is None:
                raise ValueError(
                    f"BoxRetrieval: {type(self.boxes).__name__} draws no masks ({key}). Set model.shape to box, or use "
                    "SamPoints."
                )
            return at_side(best.masks, G)[0].float()
        scale = torch.tensor([G / picture.shape[2], G / picture.shape[1]] * 2, device=best.boxes.device)
        cells = (best.boxes * scale).trunc()  # as ground truth is drawn
        cells[:, 2:] = torch.maximum(cells[:, 2:], cells[:, :2] + 1)
        return box_masks(cells, (G, G))[0].float()

    def __getstate__(self) -> dict[str, Any]:
        # A detector holds what cannot be sent to another process, which loads its own when it needs one.
        return super().__getstate__() | {"_detector": []}


def crop(picture: Tensor, boxes: Tensor, side: int, square: bool = False) -> Tensor:
    """What is in each box, resized to a square: bicubic with antialiasing, as Pillow resizes.

    Args:
        picture: uint8 ``[3, H, W]``.
        boxes: whole pixels ``[n, 4]`` x1, y1, x2, y2, ends exclusive.
        side: S, pixels.
        square: widen each box to a square around its centre first, black beyond the picture.

    Returns:
        uint8 ``[n, 3, S, S]``.
    """
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    if square:
        longest = torch.maximum(x2 - x1, y2 - y1)
        (x1, x2), (y1, y2) = square_span(x1, x2, longest), square_span(y1, y2, longest)
    rows = resize_weights(y1, y2, picture.shape[1], side)
    columns = resize_weights(x1, x2, picture.shape[2], side)
    pixels = rows[:, None] @ picture.float() @ columns[:, None].mT
    return pixels.round().clamp(0, 255).to(torch.uint8)
