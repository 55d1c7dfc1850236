"""What a heat map says in numbers: connected regions, or that nothing sounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from avloc.localize.asking import Moment
from avloc.metrics.regions import SMALLEST_REGION

__all__ = ["Maps", "Threshold", "described", "regions", "told"]


@dataclass(frozen=True)
class Threshold:
    """A region is where the heat map is at least ``value``; nothing sounds where no place of it is. The universal
    threshold of a run is chosen for both, on sets with and without audible objects (`avloc.metrics.universal`).

    Attributes:
        value: in [0, 1].
        origin: where it comes from, in words.
    """

    value: float = 0.5
    origin: str = "the default"

    def __str__(self) -> str:
        return f"{self.value:g}, {self.origin}"


def described(moment: Moment, width: int, height: int, threshold: float) -> dict[str, Any]:
    """One entry of ``regions.json``: connected regions of each source, the largest first, or why there are none."""
    found = [
        region
        for source, plane in enumerate(moment.heatmap.numpy())
        for region in ([] if moment.silent else regions(plane, source, width, height, threshold))
    ]
    if moment.classes:
        found = [{"class": moment.classes[region["source"]], **region} for region in found]
    said = [{"phrase": phrase, "cosine": round(cosine, 4)} for phrase, cosine in moment.heard_as]
    why = "its sound is silent" if moment.silent else f"no region of the map reaches {threshold:g}"
    return {
        "time": round(moment.time, 4),
        "confidence": [round(c, 4) for c in moment.confidence.tolist()],
        **({"classes": list(moment.classes)} if moment.classes else {}),
        "regions": sorted(found, key=lambda region: -region["area_share"]),
        **({} if found else {"nothing_sounds": why}),
        **({"heard_as": said} if said else {}),
    }


def told(moment: Moment, most: int = 3) -> str:
    """What the sound is heard as, in one line; "" where nobody asked."""
    return ", ".join(f"{phrase} {cosine:.2f}" for phrase, cosine in moment.heard_as[:most])


def regions(
    heatmap: NDArray[np.float32], source: int, width: int, height: int, threshold: float
) -> list[dict[str, Any]]:
    """Connected regions (eight neighbours) where a map is at least ``threshold``, without specks."""
    labels, _ = ndimage.label(heatmap >= threshold, structure=np.ones((3, 3)))
    rows, columns = heatmap.shape
    found = []
    for label, (y, x) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[y, x] == label
        share = float(inside.sum() / heatmap.size)
        if share < SMALLEST_REGION:
            continue
        heat = heatmap[y, x][inside]
        place = np.argwhere(inside).mean(0) + np.array([y.start + 0.5, x.start + 0.5])
        box = [x.start / columns, y.start / rows, x.stop / columns, y.stop / rows]
        centre = [place[1] / columns, place[0] / rows]
        found.append(
            {
                "source": source,
                "box": scaled(box, width, height),
                "box_normalised": [round(float(v), 4) for v in box],
                "centre": scaled(centre, width, height),
                "centre_normalised": [round(float(v), 4) for v in centre],
                "area_share": round(share, 4),
                "confidence": round(float(heat.mean()), 4),
                "peak": round(float(heat.max()), 4),
            }
        )
    return found


def scaled(place: Sequence[float], width: int, height: int) -> list[int]:
    """Shares of the picture's sides in whole pixels; x and y alternate."""
    return [round(float(v) * (height if i % 2 else width)) for i, v in enumerate(place)]


class Maps:
    """Heat maps on their way into ``maps.npz``, kept in a file meanwhile, so that memory does not grow with a clip.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = (folder / "maps.raw").open("wb")
        self.times: list[float] = []
        self.sources: list[int] = []
        self.side: tuple[int, int] = (0, 0)

    def add(self, moment: Moment) -> None:
        """Keep the maps as the method gave them, those of silent moments too; all have the size of the first."""
        planes = moment.heatmap
        if not self.times:
            self.side = (planes.shape[1], planes.shape[2])
        elif tuple(planes.shape[1:]) != self.side:  # of pictures whose size changes
            planes = F.interpolate(planes[None], self.side, mode="bilinear")[0]
        self.times.append(moment.time)
        self.sources.append(len(planes))
        self.file.write(planes.to(torch.float16).numpy().tobytes())

    def close(self) -> Path:
        """Write ``maps.npz``: ``time`` float64 ``[M]`` and ``heatmap`` float16 ``[M, S, h, w]``, with zeros where a
        moment has fewer sources than another."""
        self.file.close()
        most, (h, w) = max(self.sources, default=1), self.side
        shape, even = (len(self.times), most, h, w), self.folder / "maps.even"
        if min(self.sources, default=1) == most:
            even = self.folder / "maps.raw"
        else:
            with (self.folder / "maps.raw").open("rb") as source, even.open("wb") as target:
                for n in self.sources:
                    target.write(source.read(n * h * w * 2).ljust(most * h * w * 2, b"\0"))
        maps = np.memmap(even, np.float16, "r", shape=shape) if self.times else np.zeros((0, 1, 1, 1), np.float16)
        path = self.folder / "maps.npz"
        np.savez_compressed(path, time=np.array(self.times), heatmap=maps)
        return path
