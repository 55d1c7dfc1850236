"""Pictures of a localisation: overlay, panel strip, gallery, and a page with sound that opens offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
import torch
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from avloc.files import write_whole

__all__ = [
    "Panel",
    "Sources",
    "gallery",
    "jpeg",
    "overlap",
    "overlay",
    "page",
    "panel_strip",
    "png",
    "sources_of",
    "wav",
]

Pixels = NDArray[np.uint8]
GREEN = (64, 255, 96)
GAP = 4
THRESHOLD = 0.5
PALETTE = ((230, 159, 0), (86, 180, 233), (204, 121, 167), (0, 158, 115), (240, 228, 66), (213, 94, 0), (0, 114, 178))
"""Colours of the sources of a mixture: those of Okabe and Ito (2008), which colour-blind readers tell apart too."""


@dataclass
class Sources:
    """The sources of a mixture, each with its own colour.

    Attributes:
        names: one per colour, "" where unknown: the true sources first, then what was answered beside them.
        truth: ``[n, G, G']`` in [0, 1], of the first n.
        maps: ``[m, h, w]`` in [0, 1], as they were answered.
        places: for each map, whose colour it has, a place in ``names``; empty where one map answers for all.
    """

    names: list[str]
    truth: Tensor
    maps: Tensor
    places: list[int]

    @property
    def colours(self) -> list[tuple[int, int, int]]:
        """RGB in 0..255, one per name."""
        return [PALETTE[i % len(PALETTE)] for i in range(len(self.names))]

    @property
    def legend(self) -> list[tuple[str, str]]:
        """(name, ``#rrggbb``) of each colour."""
        told = [name or f"source {i + 1}" for i, name in enumerate(self.names)]
        return [(name, "#{:02x}{:02x}{:02x}".format(*rgb)) for name, rgb in zip(told, self.colours, strict=True)]


@dataclass
class Panel:
    """One sample with its answer.

    Attributes:
        key: the sample's name.
        image: uint8 ``[3, H, W]``.
        heatmap: float ``[h, w]`` in [0, 1].
        truth: float ``[g, g]`` in [0, 1], or None.
        label: class name or kind of negative, "" when unknown.
        audio: float32 ``[T]`` in [-1, 1], or None.
        rate: samples per second of ``audio``.
        sources: of a mixture, for a colour each; None where there is one source at most.
    """

    key: str
    image: Tensor
    heatmap: Tensor
    truth: Tensor | None = None
    label: str = ""
    audio: Tensor | None = None
    rate: int = 16000
    sources: Sources | None = None

    @property
    def overlap(self) -> float | None:
        """`overlap` with the truth at 0.5; None without a truth."""
        return None if self.truth is None else overlap(self.heatmap, self.truth)


def overlap(heatmap: Tensor, truth: Tensor, threshold: float = THRESHOLD) -> float:
    """cIoU of one sample: found truth over truth plus false area (`avloc.metrics.ciou`).

    With a binary truth this is the IoU. Both empty counts as 1.

    Args:
        heatmap: ``[h, w]`` in [0, 1]; resized bilinearly to the truth.
        truth: ``[g, g]`` in [0, 1].
        threshold: the map is positive where it is at least this.
    """
    truth = truth.float()
    positive = resized(heatmap, truth.shape[-2:]) >= threshold
    union = truth.sum() + (positive & (truth == 0)).sum()
    return float((truth * positive).sum() / union) if union > 0 else 1.0


def overlay(
    image: Tensor | Pixels,
    heatmap: Tensor,
    truth: Tensor | None = None,
    alpha: float = 0.6,
    sources: Sources | None = None,
) -> Pixels:
    """The heat map laid over the picture; cold pixels stay as they are.

    Args:
        image: uint8 ``[3, H, W]``.
        heatmap: ``[h, w]`` in [0, 1]; resized bilinearly to the image.
        truth: ``[g, g]``; its outline is drawn where given.
        alpha: opacity where the map is 1; elsewhere in proportion to the map.
        sources: of a mixture: each is outlined in its colour, and where each has a map of its own, a pixel is tinted
            with the colour of the map that is highest there, instead of by heat.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    picture = torch.tensor(image) if isinstance(image, np.ndarray) else image
    picture = picture.permute(1, 2, 0).float().cpu()
    size = picture.shape[:2]
    if sources is not None and sources.places:
        heat, strongest = torch.stack([resized(m, size) for m in sources.maps]).clamp(0, 1).max(0)
        tints = torch.tensor([sources.colours[i] for i in sources.places], dtype=torch.float32)
        colour, alpha = tints[strongest], min(1.0, alpha + 0.15)  # one hue says less than a scale of them
    else:
        heat = resized(heatmap, size).clamp(0, 1)
        colour = colours()[(heat * 255).round().long()]
    mixed = torch.lerp(picture, colour, (alpha * heat).unsqueeze(-1))
    return marked(mixed.round().to(torch.uint8).numpy(), truth, sources)


def marked(picture: Pixels, truth: Tensor | None, sources: Sources | None = None) -> Pixels:
    """The picture with the outline of the truth, of a mixture with one in the colour of each source."""
    if sources is None:
        return picture if truth is None else outlined(picture, truth)
    for region, colour in zip(sources.truth, sources.colours, strict=False):
        picture = outlined(picture, region, colour)
    return picture


def sources_of(
    truth: Tensor | None,
    maps: Tensor,
    names: Sequence[str] = (),
    classes: Sequence[int] = (),
    answered: Sequence[int] | None = None,
    spelt: Mapping[int, str] | None = None,
) -> Sources | None:
    """Whose colour each map of a sample gets.

    A map that names its class has the colour of the true source of that class, or one of its own. Maps without
    classes are paired with the true sources so that they share the most heat, for a method that names nothing is not
    judged by its order; those that are left have colours of their own.

    Args:
        truth: ``[S, G, G']`` in [0, 1]; empty maps that fill up a batch are left out, or None.
        maps: ``[M, h, w]`` in [0, 1].
        names, classes: of the true sources; class -1 where unknown.
        answered: class of each map, -1 for one that fills up; None for maps without classes.
        spelt: names of classes, for those that are answered but not true.

    Returns:
        None where there is at most one source, true and answered.
    """
    kept = [] if truth is None else [i for i, region in enumerate(truth) if bool((region > 0).any())]
    given = [m for m in range(len(maps)) if answered is None or answered[m] >= 0]
    if len(kept) < 2 and (answered is None or len(given) < 2):
        return None
    true = [classes[i] if i < len(classes) else -1 for i in kept]
    told = [names[i] if i < len(names) else "" for i in kept]
    regions = maps.new_zeros(0, *maps.shape[-2:]) if truth is None else truth[kept]
    places: dict[int, int] = {}
    if answered is not None:
        places = {m: true.index(answered[m]) for m in given if answered[m] in true}
    elif len(given) > 1:
        heat = torch.stack([resized(maps[m], regions.shape[-2:]) for m in given]).double().flatten(1)
        found = linear_sum_assignment(-(heat @ regions.double().cpu().flatten(1).T).numpy())
        places = {given[m]: int(s) for m, s in zip(*found, strict=True)}
    if len(given) > 1 or answered is not None:
        for m in given:
            if m not in places:
                places[m] = len(told)
                told.append("" if answered is None else (spelt or {}).get(answered[m], f"class {answered[m]}"))
    given = [m for m in given if m in places]
    return Sources(told, regions, maps[given], [places[m] for m in given])


def panel_strip(
    image: Tensor | Pixels,
    truth: Tensor | None,
    heatmap: Tensor,
    label: str = "",
    iou: float | None = None,
    threshold: float = THRESHOLD,
    sources: Sources | None = None,
) -> Pixels:
    """Picture, ground-truth outline (where there is a truth), overlay and binarised map side by side.

    Args:
        image, heatmap, truth, sources: as in `overlay`.
        label, iou: written above; None leaves the IoU out.
        threshold: of the binarised map.

    Returns:
        uint8 ``[H + caption, n W + gaps, 3]``.
    """
    picture = np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0))
    found = resized(heatmap, picture.shape[:2]) >= threshold
    tiles = [picture]
    if truth is not None:
        tiles.append(marked(picture, truth, sources))
    tiles += [
        overlay(image, heatmap, truth, sources=sources),
        np.where(found.numpy()[..., None], picture, picture // 5),
    ]
    strip = beside([tile.astype(np.uint8) for tile in tiles])
    text = "   ".join([label] * bool(label) + ([f"IoU {iou:.2f}"] if iou is not None else []))
    return captioned(strip, text)


def gallery(panels: Sequence[Panel], path: Path | str, title: str = "") -> None:
    """One PNG with a `panel_strip` per panel, one above the other."""
    strips = [panel_strip(p.image, p.truth, p.heatmap, p.label or p.key, p.overlap, sources=p.sources) for p in panels]
    height = sum(s.shape[0] for s in strips)
    canvas = np.full((height, max((s.shape[1] for s in strips), default=1), 3), 255, np.uint8)
    top = 0
    for strip in strips:
        canvas[top : top + strip.shape[0], : strip.shape[1]] = strip
        top += strip.shape[0]
    write_whole(Path(path), png(captioned(canvas, title) if title else canvas))


def page(panels: Sequence[Panel], path: Path | str, title: str = "") -> None:
    """One HTML file with pictures and playable sounds inside; it opens without a network."""
    rows = [
        {
            "key": p.key,
            "label": p.label,
            "overlap": p.overlap,
            "picture": inline(png(panel_strip(p.image, p.truth, p.heatmap, sources=p.sources)), "image/png"),
            "legend": p.sources.legend if p.sources else [],
            "sound": None if p.audio is None else inline(wav(p.audio, p.rate), "audio/wav"),
        }
        for p in panels
    ]
    template = Environment(loader=PackageLoader("avloc.report"), autoescape=True).get_template("panels.html")
    write_whole(Path(path), template.render(title=title, rows=rows))


def png(picture: Pixels) -> bytes:
    """A picture uint8 ``[H, W, 3]`` as PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def jpeg(picture: Pixels, height: int) -> bytes:
    """A picture uint8 ``[H, W, 3]`` as JPEG, made smaller where it is higher than ``height``."""
    image = Image.fromarray(picture)
    if image.height > height:
        image = image.resize((round(image.width * height / image.height), height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def wav(audio: Tensor, rate: int) -> bytes:
    """A waveform ``[T]`` in [-1, 1] as 16-bit WAV."""
    file = io.BytesIO()
    soundfile.write(file, audio.detach().float().cpu().numpy(), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def outlined(picture: Pixels, truth: Tensor, colour: tuple[int, int, int] = GREEN) -> Pixels:
    """The picture with the outline of ``truth > 0``, two pixels wide and inside the region."""
    inside = (resized(truth, picture.shape[:2], "nearest-exact") > 0).float()[None, None]
    # The zero padding beyond the picture keeps the outline of a region that touches its border.
    core = -F.max_pool2d(-F.pad(inside, (2, 2, 2, 2)), kernel_size=5, stride=1)
    edge = (inside > core)[0, 0].numpy()
    return np.where(edge[..., None], np.array(colour, np.uint8), picture).astype(np.uint8)


def resized(plane: Tensor, size: Sequence[int], mode: str = "bilinear") -> Tensor:
    """A map ``[h, w]`` at another size, float32 on the CPU."""
    plane = plane.detach().float().cpu()
    if tuple(plane.shape) == tuple(size):
        return plane
    return F.interpolate(plane[None, None], size=tuple(size), mode=mode)[0, 0]


def beside(tiles: Sequence[Pixels]) -> Pixels:
    gap = np.full((tiles[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (gap, tile)][1:], axis=1)


def captioned(picture: Pixels, text: str) -> Pixels:
    """The picture under a line of text; unchanged where there is none."""
    if not text:
        return picture
    size = max(12, min(22, picture.shape[1] // 40))
    band = Image.new("RGB", (picture.shape[1], int(size * 1.7)), "white")
    ImageDraw.Draw(band).text((GAP, size * 0.25), text, fill="black", font=ImageFont.load_default(size))
    return np.concatenate([np.asarray(band), picture], axis=0)


def inline(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@cache
def colours() -> Tensor:
    """256 colours from cold to hot, float ``[256, 3]`` in 0..255."""
    return torch.tensor(matplotlib.colormaps["turbo"](np.linspace(0, 1, 256))[:, :3] * 255, dtype=torch.float32)
