"""Object-guided localisation (OGL): any method's map mixed with where a picture's objects are, whatever sounds.

Mo and Morgado, "Localizing Visual Sounds the Easy Way" (EZ-VSL, ECCV 2022) and SLAVC (NeurIPS 2022); read as their code
has it (stoneMo/EZ-VSL 95ff5bf, stoneMo/SLAVC 05b429c). It is applied to what a method answers, so it works on every
method and needs no training: the evaluator reports it as a row of its own (`avloc.evaluation.evaluator`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from avloc.backbones.resnet import SIDE, ObjectResNet, normalised
from avloc.metrics.maps import minmax, mix, resize
from avloc.types import AVBatch, Localization

__all__ = ["ObjectGuide", "guided", "object_map"]

OBJECT_RANGE = 2.5
"""SLAVC's fixed scale of an object map."""


@dataclass(frozen=True)
class ObjectGuide:
    """How an object map is mixed into a method's maps.

    Args:
        weights: weight source of the ResNet-18: ``resnet18`` (ImageNet), ``world:resnet18``, ``random``.
        alpha: weight of the method's own map, 0 to 1; the object map has the rest. 0.4 in EZ-VSL and SSLalign, on every
            set; 0.9 in SLAVC's published command.
        reading: ``ezvsl``: both maps brought to the truth's grid bilinearly (align_corners True) and min-maxed, mixed,
            min-maxed again. ``slavc``: bicubic (align_corners True), no min-max, the object map divided by 2.5; the map
            may then leave 0..1 by a little.

    Raises:
        ValueError: alpha out of range.
    """

    weights: str = "resnet18"
    alpha: float = 0.4
    reading: Literal["ezvsl", "slavc"] = "ezvsl"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"ogl.alpha is the weight of the method's own map, from 0 to 1; got {self.alpha}.")

    def build(self) -> ObjectResNet:
        """The frozen ResNet-18.

        Raises:
            WeightError: its file is missing, or of another model.
        """
        return ObjectResNet.from_source(self.weights)


@torch.no_grad()
def object_map(network: ObjectResNet, batch: AVBatch) -> Tensor:
    """The object map of each picture, float32 ``[B, h, w]``, 7 x 7 for a square; several frames show their first.

    Pictures that were padded to a square are looked at without their padding, which no heat map covers either.
    """
    image = batch.image if batch.image.ndim == 4 else batch.image[:, 0]
    height, width = image.shape[-2:]
    if batch.size is None:
        return network.object_map(normalised(image, (SIDE, SIDE * max(1, round(width / height)))))
    sizes = [(max(h, 1), max(w, 1)) for h, w in batch.size.tolist()]
    inner = [normalised(p[None, :, :h, :w], (SIDE, SIDE)) for p, (h, w) in zip(image, sizes, strict=True)]
    return network.object_map(torch.cat(inner))


def guided(answer: Localization, objects: Tensor, grid: tuple[int, int], guide: ObjectGuide) -> Localization:
    """The same answer with the object map in each source's heat map; its confidence stays the method's own.

    Args:
        answer: of any method.
        objects: `object_map`, ``[B, h, w]``.
        grid: height and width at which the maps are mixed, those of the ground truth.
        guide: alpha and reading.

    Returns:
        heat maps float32 ``[B, S, *grid]``. A source that the method did not find (label -1) keeps its map; a map of
        classes is left out where the method names its sources, for it would hide what was mixed.
    """
    mode: Literal["bilinear", "bicubic"] = "bilinear" if guide.reading == "ezvsl" else "bicubic"
    own = resize(answer.heatmap, grid, mode, align_corners=True)
    thing = resize(objects, grid, mode, align_corners=True)[:, None].expand_as(own)
    if guide.reading == "ezvsl":
        mixed = minmax(mix(own, thing, guide.alpha))
    else:
        mixed = guide.alpha * own + (1 - guide.alpha) * thing / OBJECT_RANGE
    if answer.label is None:
        return replace(answer, heatmap=mixed)
    return replace(answer, heatmap=torch.where(answer.label[..., None, None] >= 0, mixed, own), semantic=None)
