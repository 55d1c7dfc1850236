"""The three objects that travel along the road: what a method is fed, and what it answers.

Dimension letters used in all docstrings of the package:

====  =======================================================
B     samples of a batch
S     sources of a sample (1 for single-source methods)
H W   height and width in pixels
T     audio samples of the waveform
G     side of the ground-truth grid (224 in every published evaluator)
====  =======================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["AVBatch", "InputSpec", "Localization"]


@dataclass(frozen=True)
class InputSpec:
    """What a method wants to be fed. Declared by the method, obeyed by the data module.

    Args:
        image_size: side of the square image, pixels.
        resize: ``squash`` gives up the aspect ratio (every published evaluator does);
            ``crop`` scales the short side and cuts the centre; ``pad`` scales the long side, with the picture at the
            top left and zeros elsewhere (SAM; see `AVBatch.size`). Ground truth of ``pad`` is that of the picture.
        interpolation: PIL filter of that resize.
        train_scale: training images are resized to ``int(image_size * train_scale)`` and cropped at random.
        train_flip: probability of a horizontal flip in training.
        sample_rate: Hz. Shards are resampled when they are written; another rate in a shard is an error.
        seconds: length of the waveform.
        window: which part of a longer clip is heard. ``frame``: that of the scored frame, which was taken t seconds
            into the clip: the stretch from ``floor(t / seconds) * seconds`` on; where the clip has ended by then,
            the last stretch that begins in it. (AVSBench: second i for frame i.)
        pad: how a shorter clip is completed.
        channels: how stereo becomes mono. ``left_then_right`` lays the channels end to end, which is how
            ACL-SSL's released loader reads AVSBench.
        frames: pictures per sample; 1 makes every annotated frame a sample of its own.
        clip: frames of a video that a batch holds together, each as a row of its own with its picture, sound and truth,
            in their order and whether they are annotated or not (`AVBatch.clip`, `AVBatch.annotated`). 1 leaves rows
            independent of each other.
        short_clips: let a video of fewer frames be a shorter clip; False makes it a broken one.
        duet: how several pictures of one sample, each made square, are laid side by side: ``squash`` fits the row
            into the square, ``wide`` keeps it, ``[3, H, n H]`` (T-VSL). Ground truth is ``[S, G, n G]`` in both.
        picture: False where training does without pixels as soon as there are stored features (``AVBatch.stored``):
            ``AVBatch.image`` is then ``[B, 3, 0, 0]``. Evaluation always shows them.

    Raises:
        ValueError: ``pad`` with ``train_scale`` (nothing is cut out of a padded picture), ``frame`` with
            ``left_then_right`` (channels that lie end to end have no time), or ``clip`` below 1 or with ``frames``.
    """

    image_size: int = 352
    resize: Literal["squash", "crop", "pad"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    train_scale: float = 1.0
    train_flip: float = 0.0
    sample_rate: int = 16000
    seconds: float = 10.0
    window: Literal["head", "centre", "frame"] = "head"
    pad: Literal["zeros", "tile"] = "zeros"
    channels: Literal["mean", "first", "left_then_right"] = "mean"
    frames: int = 1
    clip: int = 1
    short_clips: bool = False
    duet: Literal["squash", "wide"] = "squash"
    picture: bool = True

    def __post_init__(self) -> None:
        if self.resize == "pad" and self.train_scale != 1:
            raise ValueError(
                f"InputSpec: resize pad shows the whole picture, but train_scale {self.train_scale:g} would cut a part "
                "out. Set train_scale to 1."
            )
        if self.window == "frame" and self.channels == "left_then_right":
            raise ValueError(
                "InputSpec: window frame cuts the sound by time, and channels left_then_right lays one channel after "
                "the other. Use channels mean or first."
            )
        if self.clip < 1 or (self.clip > 1 and self.frames > 1):
            raise ValueError(
                f"InputSpec: clip {self.clip} and frames {self.frames}: the frames of a video are rows of the batch "
                "(clip) or pictures of one row (frames), at least 1 of either and not both."
            )

    @property
    def samples(self) -> int:
        """Length T of the waveform."""
        return round(self.seconds * self.sample_rate)


@dataclass
class AVBatch:
    """A batch before any normalisation.

    Attributes:
        key: one name per sample.
        image: uint8 ``[B, 3, H, W]``, RGB (``[B, F, 3, H, W]`` when ``InputSpec.frames`` F > 1).
        audio: float32 ``[B, T]`` in [-1, 1] at the method's sample rate.
        index: int64 ``[B]``, place of the sample in its evaluation set; -1 in training.
        size: int64 ``[B, 2]`` in the host's memory, height and width of the picture at the top left of its square; None
            unless ``InputSpec.resize`` is ``pad``.
        truth: float32 ``[B, S, G, G']``, ground-truth map of each source, or None; in [0, 1] (overlapping boxes that a
            published reading does not clip exceed 1); G' = n G for n pictures side by side, and another side where
            ``data.truth_size`` asks for one.
        semantic: int64 ``[B, G, G']``, class of each pixel with 0 for background and 255 for "do not score", or None.
        class_id: int64 ``[B, S]``, -1 where unknown, or None.
        sounding: bool ``[B]``, False where the true map is the zero map, or None.
        label: class names of each sample's sources.
        negative: kind of negative (``silence``, ``noise``, ``offscreen``, ...), "" for a positive.
        group: interactive group of each sample, "" for none.
        group_size: number of samples of its group, 1 for none.
        video: video of each sample, "" when unknown (AVSBench averages over batches of videos).
        clip: int64 ``[B]``, equal for the rows that are frames of one video under one sound, which are all in the
            batch; None unless ``InputSpec.clip`` is above 1.
        annotated: bool ``[B]``, False for a frame that is seen but has no truth (``truth`` is 0 there, ``semantic``
            255); None unless ``InputSpec.clip`` is above 1.
        caption: one caption per sample, "" for none.
        phrase: a few words that name what sounds in each sample, written by machines, "" for none; empty unless
            ``data.phrases`` asks for them in training (`avloc.data.phrases`).
        context: uint8, as ``image``: the pictures that condition the method in place of the samples' own, for the
            control "another context" (``data.contexts``); None for their own. Methods that no picture conditions leave
            it alone.
        stored: features by name, ``[B, ...]``, that were stored beside the shards (`avloc.data.stored`; float16 where
            the method gave floats; rows of varying length with zeros up to the batch's longest): what ``frozen``
            would compute of the pictures. Empty for none.
    """

    key: list[str]
    image: Tensor
    audio: Tensor
    index: Tensor
    truth: Tensor | None = None
    semantic: Tensor | None = None
    class_id: Tensor | None = None
    sounding: Tensor | None = None
    label: list[list[str]] = field(default_factory=list)
    negative: list[str] = field(default_factory=list)
    group: list[str] = field(default_factory=list)
    group_size: list[int] = field(default_factory=list)
    video: list[str] = field(default_factory=list)
    caption: list[str] = field(default_factory=list)
    phrase: list[str] = field(default_factory=list)
    size: Tensor | None = None
    clip: Tensor | None = None
    annotated: Tensor | None = None
    context: Tensor | None = None
    stored: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.key)

    @property
    def device(self) -> torch.device:
        return self.image.device

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> AVBatch:
        """The same batch on ``device``, but for `size`, by which rows are cut: it stays where it is.

        Args:
            device: where to.
            non_blocking: not to wait for copies. None waits for all but those to a GPU, whose kernels wait themselves.
        """
        if non_blocking is None:
            non_blocking = torch.device(device).type == "cuda"
        return replace(self._map(lambda x: x.to(device, non_blocking=non_blocking)), size=self.size)

    def pin_memory(self) -> AVBatch:
        return self._map(lambda x: x.pin_memory())

    def take(self, rows: Sequence[int]) -> AVBatch:
        """The samples ``rows``, in that order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        changes: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                changes[f.name] = value[index.to(value.device)]
            elif isinstance(value, dict):
                changes[f.name] = {k: v[index.to(v.device)] for k, v in value.items()}
            elif value:
                changes[f.name] = [value[i] for i in rows]
        return replace(self, **changes)

    def _map(self, function: Any) -> AVBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        changes = {k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)}
        return replace(self, **changes, stored={k: function(v) for k, v in self.stored.items()})


@dataclass
class Localization:
    """A method's answer.

    Attributes:
        heatmap: float32 ``[B, S, H, W]`` in [0, 1].
        confidence: float32 ``[B, S]``: how sure the method is that source s sounds in the picture.
        label: int64 ``[B, S]`` class of each source, numbered like ``AVBatch.class_id``, or None.
        semantic: int64 ``[B, H, W]``, class of each pixel as in ``AVBatch.semantic``, or None.
        said: float ``[B, D]``, what each sound says in the space of the method's phrases, or None.
    """

    heatmap: Tensor
    confidence: Tensor
    label: Tensor | None = None
    semantic: Tensor | None = None
    said: Tensor | None = None

    def __post_init__(self) -> None:
        if self.heatmap.ndim != 4 or self.confidence.shape != self.heatmap.shape[:2]:
            raise ValueError(
                f"Localization: heatmap must be [B, S, H, W] with confidence [B, S]; got "
                f"{tuple(self.heatmap.shape)} and {tuple(self.confidence.shape)}."
            )
