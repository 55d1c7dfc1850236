"""Stage one: boxes, non-maximum suppression, the N best, SAM's mask of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.backbones.proposals import BoxSource, Convention, Detector, Proposals, SamPoints, keep, sam_embedding
from avloc.backbones.sam import SAM
from avloc.methods.seac.aggregate import box_masks
from avloc.weights import locate

__all__ = ["Segmentation", "Segmenter", "at_side"]


@dataclass(frozen=True)
class Segmentation:
    """How masks are made. Only a description: `load` brings the networks.

    Args:
        boxes: where boxes come from. Paper: MAVL's, asked for "all objects", here `StoredBoxes`; another source costs
            accuracy. SAM's automatic masks by default, which need no other file.
        otherwise: asked for pictures that ``boxes`` does not know, such as those of a new video; never where features
            are stored. None for no other.
        unit: of what ``boxes`` gives: ``pixel`` of the picture as it is seen, which every detector does, or
            ``fraction`` of the picture's sides, which a file should hold: pictures are scaled before they are seen.
        sam: weight source of the segmenter. Paper: ViT-H.
        count: N, most masks of a picture. Paper: 50, varied from 5 to 50.
        iou: threshold of the suppression. Paper: 0.5.
        convention: of the suppression; not stated, MAVL's own by default.
        multimask: take the best of SAM's three masks by its own judgement instead of the one for an unambiguous prompt;
            not stated.
        chunk: masks that are at full size together.
    """

    boxes: BoxSource = field(default_factory=SamPoints)
    otherwise: BoxSource | None = None
    unit: Literal["pixel", "fraction"] = "pixel"
    sam: str = "sam_vit_h"
    count: int = 50
    iou: float = 0.5
    convention: Convention = "pixel"
    multimask: bool = False
    chunk: int = 16

    @property
    def recipe(self) -> dict[str, str]:
        """What masks depend on, files by their SHA-256.

        Raises:
            WeightError: a file is not on this machine.
        """
        told = {f: str(getattr(self, f)) for f in ("unit", "count", "iou", "convention", "multimask")}
        told |= {"boxes": fingerprint(self.boxes), "sam": digest(self.sam)}
        return {f"segmentation.{name}": value for name, value in told.items()}

    def load(self, device: torch.device | str) -> Segmenter:
        """The networks on ``device``.

        Raises:
            WeightError: those of ``boxes`` are missing or damaged.
        """
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
        self._other: Detector | None = None

    @property
    def sam(self) -> SAM:
        """Loaded when a box without a mask turns up first: a source that draws masks needs none."""
        if self._sam is None:
            self._sam = SAM.from_source(self.how.sam).to(self.device)
        return self._sam

    @property
    def other(self) -> Detector | None:
        """Gives boxes of pictures that ``detector`` does not know. Loaded for the first of them: storing needs none."""
        if self._other is None and self.how.otherwise is not None:
            self._other = self.how.otherwise.load(self.device)
        return self._other

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor], names: Sequence[str], strict: bool = True) -> list[Proposals]:
        """Masks of pictures.

        Args:
            images: uint8 ``[3, H, W]`` RGB, of any sizes.
            names: one each, for sources that look boxes up.
            strict: do not ask ``otherwise``.

        Returns:
            For each picture 1 to N masks, the most confident box first. Empty masks are dropped; where all are, the
            best box is the mask, and the whole picture where there is no box.

        Raises:
            KeyError: a source that looks boxes up has none of a picture; names it.
            WeightError: weights of ``otherwise`` or of SAM are missing or damaged.
        """
        images = [image.to(self.device) for image in images]
        how = self.how
        found = self.detected(images, names, strict)
        found = [keep(p, how.count, how.iou, how.convention) for p in found]
        return [self.masked(image, p) for image, p in zip(images, found, strict=True)]

    def detected(self, images: Sequence[Tensor], names: Sequence[str], strict: bool) -> list[Proposals]:
        """Boxes in pixels."""
        found = []
        for image, name in zip(images, names, strict=True):
            try:
                (one,) = self.detector([image], [name])
            except KeyError:
                other = None if strict else self.other
                if other is None:
                    raise
                found += other([image], [name])
                continue
            if self.how.unit == "fraction":
                frame = torch.tensor([image.shape[2], image.shape[1]] * 2, device=one.boxes.device)
                one = replace(one, boxes=one.boxes * frame)
            found.append(one)
        return found

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


def fingerprint(source: BoxSource) -> str:
    """What its boxes depend on: its settings, files by their SHA-256.

    Raises:
        WeightError: a file is not on this machine.
    """
    settings = {k: v for k, v in vars(source).items() if k != "chunk"}  # of the work, not of the result
    told = {k: digest(v) if k in ("sam", "source", "path") else repr(v) for k, v in sorted(settings.items())}
    return f"{type(source).__name__}({', '.join(f'{k} {v}' for k, v in told.items())})"


def digest(source: str) -> str:
    """Name and SHA-256 of the file behind a weight source, of a file by its path, or of a snapshot by its folder."""
    plain = Path(source).expanduser()
    content = plain / "model.safetensors" if plain.is_dir() else plain
    file = locate(f"file:{content}") if content.is_file() else locate(source)
    return f"{plain.name} (sha256 {file.sha256 or 'none'})"


# Checkpoints keep it among the hyper-parameters, and are loaded without unpickling anything else.
torch.serialization.add_safe_globals([Segmentation])
