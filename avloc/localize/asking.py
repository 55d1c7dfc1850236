"""Asking a method about the moments of a clip: at most one pass of each tower for each of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from avloc.backbones.audioclip import AudioTower
from avloc.backbones.beats import BEATs
from avloc.backbones.clap import CLAP
from avloc.backbones.imagebind import ImageBind
from avloc.backbones.vggish import VGGish
from avloc.data.decoding import fit_audio
from avloc.data.media import Pixels
from avloc.data.views import draw_view, fit_image
from avloc.errors import UsageError
from avloc.localize.reading import Clip, heard, is_silent
from avloc.methods.acl.inversion import Heard, heard_as
from avloc.methods.base import Localizer
from avloc.types import AVBatch, InputSpec

__all__ = ["Moment", "Sample", "analysed", "ask", "hearing_once", "on_whole_picture", "refuse_several_frames"]

Sample = tuple[float, Pixels, NDArray[np.float32]]
"""Time in seconds, picture ``[H, W, 3]`` and waveform ``[T]``."""

EARS: dict[type[nn.Module], str] = {
    AudioTower: "features",
    BEATs: "forward",
    CLAP: "encode_audio",
    ImageBind: "encode_audio",
    VGGish: "forward",
}
"""What maps waveforms ``[B, T]`` to a tensor ``[B, ...]``, row by row. Wav2CLIP is left out: by the statistics of its
release, a sound is heard otherwise beside others."""


@dataclass(frozen=True)
class Moment:
    """The answer for one analysed frame.

    Attributes:
        time: seconds.
        heatmap: ``[S, h, w]`` in [0, 1], over the whole picture.
        confidence: ``[S]``.
        heard_as: what the sound is heard as.
        classes: name of each source, "" for one without; empty where the method names none.
        silent: no sample of what it is heard with is above -80 dB.
    """

    time: float
    heatmap: Tensor
    confidence: Tensor
    heard_as: Heard = field(default_factory=list)
    classes: Sequence[str] = ()
    silent: bool = False

    @cached_property
    def heat(self) -> Tensor:
        """The hottest source at each place, ``[h, w]``; cold where there is nothing to hear."""
        heat = self.heatmap.amax(0)
        return torch.zeros_like(heat) if self.silent else heat


def analysed(
    model: Localizer,
    clip: Clip,
    sound: NDArray[np.float32],
    fps: float,
    seconds: float,
    batch_size: int,
    phrases: Sequence[str] = (),
) -> Iterator[Moment]:
    """The answers for the first frame and then for ``fps`` frames a second, in order, asked in batches."""
    spec = model.input_spec

    def chosen() -> Iterator[Sample]:
        due = -math.inf
        for time, frame in clip.media.frames():
            if time >= due:
                due = (math.floor(time * fps + 1e-6) + 1) / fps - 1e-6
                yield time, clip.media.pixels(frame), heard(sound, time, seconds, spec.sample_rate)

    samples = chosen()
    with hearing_once(model):
        while group := list(islice(samples, batch_size)):
            yield from ask(model, group, phrases)


def refuse_several_frames(model: Localizer) -> None:
    """Raises `UsageError` for a method that looks at several pictures of one sound."""
    if model.input_spec.frames != 1:
        raise UsageError(
            f"{type(model).__name__} wants {model.input_spec.frames} frames a sample; localize gives one. Use a method "
            "of single pictures."
        )


@torch.inference_mode()
def ask(model: Localizer, group: Sequence[Sample], phrases: Sequence[str] = ()) -> list[Moment]:
    """One forward pass."""
    spec = model.input_spec
    waves = [fit_audio(sound[:, None], spec) for _, _, sound in group]
    batch = AVBatch(
        key=[f"{time:.3f}" for time, _, _ in group],
        image=torch.from_numpy(np.stack([fit_image(Image.fromarray(p), spec) for _, p, _ in group])),
        audio=torch.from_numpy(np.stack(waves)),
        index=torch.arange(len(group)),
        size=padded_sizes(group, spec),
    )
    training = model.training
    batch = batch.to(model.device)
    answer = model.eval().localize(batch)
    said = heard_as(model, batch, phrases, said=answer.said) or [[] for _ in group]
    model.train(training)
    heatmap, confidence = answer.heatmap.float().cpu(), answer.confidence.float().cpu()
    names = [()] * len(group) if answer.label is None else named(answer.label.tolist(), model.class_names())
    return [
        Moment(time, on_whole_picture(heatmap[i], picture, spec), confidence[i], said[i], names[i], is_silent(waves[i]))
        for i, (time, picture, _) in enumerate(group)
    ]


def named(labels: Sequence[Sequence[int]], names: Mapping[int, str]) -> list[tuple[str, ...]]:
    """Class names of labels; a class whose name is not known goes by its number, one that fills up is ""."""
    return [tuple("" if n < 0 else names.get(n, f"class {n}") for n in row) for row in labels]


def padded_sizes(group: Sequence[Sample], spec: InputSpec) -> Tensor | None:
    """Height and width of each picture inside of its square; None unless the method wants padded pictures."""
    if spec.resize != "pad":
        return None
    return torch.tensor([draw_view((p.shape[1], p.shape[0]), spec).size for _, p, _ in group])


def on_whole_picture(heatmap: Tensor, picture: Pixels, spec: InputSpec) -> Tensor:
    """Heat maps ``[S, h, w]`` over the whole picture: zero where a method saw only a centre crop."""
    if spec.resize in ("squash", "pad"):  # maps of padded pictures are the picture's already
        return heatmap
    (height, width), short = picture.shape[:2], min(picture.shape[:2])
    x = round(heatmap.shape[2] * (width / short - 1) / 2)
    y = round(heatmap.shape[1] * (height / short - 1) / 2)
    return F.pad(heatmap, (x, x, y, y))


class Ears:
    """An audio tower that hears equal waveforms once, of one batch and of the one before.

    Args:
        hear: from ``[B, T]`` to ``[B, ...]``, row by row.
    """

    def __init__(self, hear: Callable[..., Tensor]) -> None:
        self.hear, self.known = hear, dict[bytes, Tensor]()

    def __call__(self, waveform: Tensor, *args: Any, **options: Any) -> Tensor:
        rows = np.ascontiguousarray(waveform.detach().float().cpu().numpy())
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
        new = {key: i for i, key in enumerate(keys) if key not in self.known}
        known = dict(self.known)
        if new:
            heard = self.hear(waveform[list(new.values())], *args, **options)
            known |= dict(zip(new, heard.unbind(0), strict=True))
        self.known = {key: known[key] for key in keys}
        return torch.stack([self.known[key] for key in keys])


@contextmanager
def hearing_once(model: nn.Module) -> Iterator[None]:
    """While this lasts, the audio towers of a model (`EARS`) hear equal windows once."""
    towers = [(module, EARS[type(module)]) for module in model.modules() if type(module) in EARS]
    for module, name in towers:
        module.__dict__[name] = Ears(getattr(module, name))
    try:
        yield
    finally:
        for module, name in towers:
            module.__dict__.pop(name, None)
