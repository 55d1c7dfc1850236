"""Three lines of Python::

import avloc
model = avloc.load("clipseg_clap")              # an experiment, a run's folder or a checkpoint
found = model.find(image, sound, rate=44100)    # paths, arrays, tensors or PIL pictures; one, or lists of them
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from PIL import Image

from avloc.data.decoding import fit_audio
from avloc.data.media import Floats, Pixels
from avloc.data.media.pictures import eight_bits
from avloc.data.media.sounds import downmix, mono, refuse_not_finite
from avloc.download import DownloadError, fetch
from avloc.errors import UsageError, told_by
from avloc.localize.asking import Moment, ask, refuse_several_frames
from avloc.localize.models import Chosen, choose, name_classes, toy_warning
from avloc.localize.reading import read_image, refuse_short, still_sound
from avloc.localize.regions import Threshold, described
from avloc.methods.base import Localizer
from avloc.report.panels import overlay, png
from avloc.types import InputSpec

__all__ = ["Found", "Model", "load"]

ON_HUB = re.compile(r"(hf:)?[\w][\w.-]*/[\w][\w.-]*")
"""``OWNER/NAME``, as no experiment is called."""
Picture = str | Path | Image.Image | NDArray[Any] | torch.Tensor
Sound = str | Path | NDArray[Any] | torch.Tensor


@dataclass(frozen=True, eq=False)
class Found:
    """Where one sound comes from in one picture.

    Attributes:
        maps: float32 ``[S, h, w]`` in [0, 1], one a source, over the whole picture.
        confidence: ``[S]``, that a source sounds.
        names: of the sources, where the method names them; else empty.
        regions: as in ``regions.json``: ``box`` ``[x0, y0, x1, y1]`` and ``centre`` in pixels, ``*_normalised``,
            ``area_share``, ``confidence``, ``peak``, ``source``, and ``class`` where it has a name; the largest first.
        heard_as: phrases and their cosines, where phrases were asked for.
        threshold: at which regions begin, and where it comes from.
        picture: uint8 ``[H, W, 3]``, upright, as it was seen.
    """

    maps: NDArray[np.float32]
    confidence: NDArray[np.float32]
    names: tuple[str, ...]
    regions: list[dict[str, Any]]
    heard_as: list[tuple[str, float]]
    threshold: Threshold
    picture: Pixels

    @property
    def sounds(self) -> bool:
        """Whether anything in the picture does."""
        return bool(self.regions)

    def overlay(self, alpha: float = 0.6) -> Image.Image:
        """The picture under its heat, the hottest source at each place.

        Args:
            alpha: opacity where the heat is 1.
        """
        heat = torch.from_numpy(self.maps.max(0)) if self.sounds else torch.zeros(self.maps.shape[1:])
        drawn = overlay(self.picture.transpose(2, 0, 1), heat, alpha=alpha)
        return Image.fromarray(drawn)

    def __repr__(self) -> str:
        if not self.sounds:
            return f"Found(nothing sounds, threshold {self.threshold.value:g})"
        first = self.regions[0]
        named = f"{first['class']}, " if first.get("class") else ""
        return f"Found({len(self.regions)} regions, the largest: {named}box {first['box']}, {first['confidence']:.2f})"

    def _repr_html_(self) -> str:
        data = base64.b64encode(png(np.asarray(self.overlay()))).decode()
        told = html.escape(repr(self))
        return f'<figure><img src="data:image/png;base64,{data}"/><figcaption>{told}</figcaption></figure>'


class Model:
    """A method that is ready to answer; made by `load`.

    Attributes:
        method: the Lightning module, in eval mode.
        told: which method it is and where its weights come from, in words.
        threshold: of its run, else 0.5.
        warning: what its user must know (toy weights), else "".
    """

    def __init__(self, chosen: Chosen) -> None:
        self.method: Localizer = chosen.model
        self.told, self.threshold, self.warning = chosen.told, chosen.threshold, toy_warning(chosen.model)
        refuse_several_frames(self.method)

    def __repr__(self) -> str:
        return f"Model({self.told}{'; ' + self.warning if self.warning else ''})"

    def to(self, device: str | torch.device) -> Model:
        """Move it; returns itself."""
        self.method.to(device)
        return self

    @overload
    def find(
        self,
        image: Picture,
        sound: Sound,
        rate: int | None = ...,
        *,
        threshold: float | None = ...,
        phrases: Sequence[str] = ...,
        batch_size: int = ...,
    ) -> Found: ...
    @overload
    def find(
        self,
        image: list[Picture] | tuple[Picture, ...],
        sound: list[Sound] | tuple[Sound, ...],
        rate: int | None = ...,
        *,
        threshold: float | None = ...,
        phrases: Sequence[str] = ...,
        batch_size: int = ...,
    ) -> list[Found]: ...
    def find(
        self,
        image: Picture | list[Picture] | tuple[Picture, ...],
        sound: Sound | list[Sound] | tuple[Sound, ...],
        rate: int | None = None,
        *,
        threshold: float | None = None,
        phrases: Sequence[str] = (),
        batch_size: int = 8,
    ) -> Found | list[Found]:
        """Where the sound comes from in the picture.

        Args:
            image: a file, a PIL picture, or an array or tensor: ``[H, W]``, ``[H, W, 1|3|4]`` or ``[1|3|4, H, W]``,
                uint8, uint16, or floats in [0, 1]; alpha lies on black. A list of them for several.
            sound: a file (a video's sound too), or an array or tensor: ``[T]``, ``[channels, T]`` or ``[T, channels]``,
                integers of any width, or floats in [-1, 1]. A list, as long as that of the pictures.
            rate: Hz of sounds that are no files.
            threshold: where regions begin; that of the run by default.
            phrases: the nearest of them are told as ``heard_as``, by methods whose sounds lie in CLIP's text space; a
                method that asks for classes, and was given none, asks for these.
            batch_size: pictures a forward pass.

        Returns:
            One answer, or a list of them for lists.

        Raises:
            UsageError: another number of pictures than of sounds, a missing rate, or what is no picture or sound.
            MediaError: a file is missing or damaged.
        """
        one = not isinstance(image, list | tuple)
        if one == isinstance(sound, list | tuple):
            raise UsageError("find wants one picture and one sound, or a list of each.")
        pictures, sounds = ([image], [sound]) if one else (list(image), list(sound))  # type: ignore[arg-type]
        if len(pictures) != len(sounds):
            raise UsageError(f"find was given {len(pictures)} pictures and {len(sounds)} sounds: each needs the other.")
        limit = self.threshold if threshold is None else Threshold(threshold, "as asked")
        if not 0 <= limit.value <= 1:
            raise UsageError(f"find wants a threshold in 0..1, not {limit.value:g}.")
        name_classes(self.method, phrases)
        spec = self.method.input_spec
        samples = [
            (float(i), picture_of(p), sound_of(s, rate, spec))
            for i, (p, s) in enumerate(zip(pictures, sounds, strict=True))
        ]
        found: list[Found] = []
        for first in range(0, len(samples), batch_size):
            group = samples[first : first + batch_size]
            found += [
                answered(moment, picture, limit)
                for moment, (_, picture, _) in zip(ask(self.method, group, phrases), group, strict=True)
            ]
        return found[0] if one else found


def load(name: str | Path, weights: str | Path | None = None) -> Model:
    """A method that is ready to answer.

    Args:
        name: an experiment (its name or YAML), the folder of a run or of an export, a checkpoint, or the ``OWNER/NAME``
            of an export on the Hugging Face hub, which is fetched once (`avloc.download.fetch`).
        weights: a checkpoint or run for an experiment that has to be trained; the newest run of it by default.

    Raises:
        UsageError: there is no such thing, or it has to be trained first.
        WeightError: a frozen tower's file is missing, the message says how it comes; or the hub has no such export.
    """
    path = Path(name)
    try:
        if ON_HUB.fullmatch(str(name)) and not path.exists() and not path.suffix:
            return Model(choose(None, fetch_export(str(name))))
        if path.is_dir() or path.suffix == ".ckpt":
            return Model(choose(None, path))
        return Model(choose(str(name), Path(weights) if weights else None))
    except Exception as e:
        told = told_by(e)  # what reads the YAML wraps it
        if told is None:
            raise
        raise told from None


def fetch_export(name: str) -> Path:
    """The folder of an export on the hub, fetched where it is not here.

    Raises:
        DownloadError: the hub does not answer, or has none of that name.
    """
    source = f"hf:{name.removeprefix('hf:')}"
    try:
        return fetch([source])[source].parent
    except DownloadError as e:
        raise DownloadError(
            f"{name} is no experiment, run or export on this machine, and as a name on the hub: {e}"
        ) from e


def answered(moment: Moment, picture: Pixels, limit: Threshold) -> Found:
    height, width = picture.shape[:2]
    said = described(moment, width, height, limit.value)
    return Found(
        moment.heatmap.numpy().astype(np.float32),
        moment.confidence.numpy().astype(np.float32),
        tuple(moment.classes),
        said["regions"],
        list(moment.heard_as),
        limit,
        picture,
    )


def picture_of(image: object) -> Pixels:
    """``[H, W, 3]`` uint8 of whatever stands for a picture.

    Raises:
        UsageError: it does not; MediaError: a file that cannot be read.
    """
    if isinstance(image, str | Path):
        return np.asarray(read_image(Path(image)))
    if isinstance(image, Image.Image):
        return np.asarray(eight_bits(image))
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image
    if not isinstance(array, np.ndarray):
        raise UsageError(f"A picture is a file, a PIL picture, an array or a tensor, not a {type(image).__name__}.")
    shape = array.shape
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in shape:
        raise UsageError(f"A picture is [H, W], [H, W, 1|3|4] or [1|3|4, H, W]; this one is {list(shape)}.")
    return np.asarray(eight_bits(Image.fromarray(bytes_of(array))))


def bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return np.round(array / 257.0).astype(np.uint8)
    if array.dtype.kind != "f":
        raise UsageError(f"A picture's values are uint8, uint16, or floats in [0, 1], not {array.dtype}.")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise UsageError(f"A picture of floats lies in [0, 1]; this one reaches from {low:g} to {high:g}.")
    return np.round(array.astype(np.float64) * 255).astype(np.uint8)


def sound_of(sound: object, rate: int | None, spec: InputSpec) -> Floats:
    """``[T]`` float32 at the method's rate, of whatever stands for a sound.

    Raises:
        UsageError: it does not, or its rate is missing; MediaError: a file that cannot be read.
    """
    if isinstance(sound, str | Path):
        return still_sound(Path(sound), spec)
    array = sound.detach().cpu().numpy() if isinstance(sound, torch.Tensor) else sound
    if not isinstance(array, np.ndarray):
        raise UsageError(f"A sound is a file, an array or a tensor, not a {type(sound).__name__}.")
    if rate is None or rate <= 0:
        raise UsageError("An array of samples needs its rate in Hz: find(image, sound, rate=44100).")
    if array.ndim not in (1, 2) or not array.size:
        raise UsageError(f"A sound is [T], [channels, T] or [T, channels]; this one is {list(array.shape)}.")
    wave = np.atleast_2d(array)
    if wave.shape[0] > wave.shape[1]:
        wave = wave.T
    if wave.shape[0] > 64:
        raise UsageError(f"A sound of {list(array.shape)} has too many channels to be one.")
    wave = floats_of(wave)
    refuse_not_finite(wave, "The sound")
    own = mono(downmix(wave, ()))
    heard = own if rate == spec.sample_rate else soxr.resample(own, rate, spec.sample_rate)
    refuse_short(heard, spec.sample_rate, Path("The sound"))
    return fit_audio(heard.astype(np.float32)[:, None], spec)


def floats_of(wave: NDArray[Any]) -> Floats:
    if wave.dtype.kind == "f":
        return wave.astype(np.float32)
    if wave.dtype.kind == "u":
        half = (np.iinfo(wave.dtype).max + 1) / 2
        return ((wave.astype(np.float64) - half) / half).astype(np.float32)
    if wave.dtype.kind != "i":
        raise UsageError(f"A sound's samples are integers or floats, not {wave.dtype}.")
    return (wave.astype(np.float64) / (np.iinfo(wave.dtype).max + 1)).astype(np.float32)
