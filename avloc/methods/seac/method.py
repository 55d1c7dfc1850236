"""SeAC ("Segment, Associate, and Classify: Decoupled Audio-Visual Segmentation Framework", under anonymous review).

No public code exists. What the paper states is marked [P] in ``experiments/seac.yaml``; every choice that it leaves
open is an option.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from avloc.backbones.openclip import IMAGENET_TEMPLATES, OpenCLIP
from avloc.backbones.vggish import VGGish
from avloc.data.labels import LABEL_SPACES
from avloc.frontends.vggish import Precision, VGGishFrontEnd
from avloc.methods.base import Localizer
from avloc.methods.losses import gather_rows, rank_and_world
from avloc.methods.seac.aggregate import Degenerate, aggregate, box_masks, classify, unpack_bits
from avloc.methods.seac.embed import Mixture
from avloc.methods.seac.losses import best_similarity, draw_groups, mix, mixing_probability, msa_micl
from avloc.methods.seac.make import MaskMaker
from avloc.methods.seac.network import Design, SeACNetwork
from avloc.methods.seac.segment import Segmentation
from avloc.methods.seac.stored import MaskBatch, PictureMasks, Rows, as_rows, filled, read
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import locate

__all__ = ["Mixing", "SeAC"]

BACKGROUND = "background"
VERSION = "1"  # of what `SeAC.frozen` computes; another one makes stored features stale


@dataclass(frozen=True)
class Mixing:
    """The curriculum of mixed sounds; ``end: 0`` trains without (plain MICL).

    Args:
        start: probability that a batch is mixed, in the first epoch. Paper: 0.
        end: in the last epoch; linear between. Paper: 0.5.
        size: samples of a group. Paper: pairs.
        epochs: of the curriculum; the run's own by default.
    """

    start: float = 0.0
    end: float = 0.5
    size: int = 2
    epochs: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1) or self.size < 2:
            raise ValueError(f"SeAC: mixing wants probabilities from 0 to 1 and groups of 2 or more, got {self}.")


class SeAC(Localizer):
    """Masks that need no sound, a sound that picks among them, a text that names them. Learns from pairs alone.

    Detector, SAM and CLIP are frozen and see every frame once: `frozen` is stored (`data_prep.seac_masks`, or
    ``avloc store``), and with ``data.stored: true`` training reads that and no picture. VGGish runs in every step,
    because mixtures must be heard. Trained are the pooling of seconds, the mask encoder, two projections and the
    temperature.

    Args:
        clip: weight source of the CLIP that embeds masks and names. Paper: RN50, ViT-B/16.
        vggish: weight source of the audio tower, whose raw embeddings are read.
        mixture: how masks are embedded.
        design: sizes and readings of the association module.
        mixing: the curriculum of mixed sounds.
        negatives: samples of all processes (``gathered``, so that a batch means the same on one GPU and on two) or of
            this one (``local``). The paper used one GPU.
        count: N, masks of a picture that are used, the most confident boxes. Paper: 50, varied from 5 to 50. One store
            of ``segmentation.count`` masks serves every smaller number.
        categories: a key of `avloc.data.labels.LABEL_SPACES` or a list of names; None for no labels. Of a name that is
            there twice, the first wins.
        templates: of the text, with {} for the name; CLIP's 80 ImageNet templates by default, as in the paper.
        plain_names: read ``-`` and ``_`` in names as spaces; not stated.
        sigma: least normalised similarity of a labelled pixel, exclusive. Paper: 0.9.
        degenerate: normalised similarity where a picture's are all alike; not stated.
        box_sets: data sets whose samples are answered with boxes instead of masks. Paper: VGG-SS and its extension.
        segmentation: how masks are made.
        image_size: longest side in pixels of the picture that detector, SAM and CLIP's crops are given. SAM sees 1024.
        seconds: length of the sound, around the clip's middle. Paper: 5.
        spectrogram: arithmetic of VGGish's front end; the reference's is float64.
        heatmap_size: side of the maps; every published evaluator asks for 224.
        optimizer: see `Localizer`. Paper: AdamW, learning rate 1e-4, weight decay 0.01.
        training: other options of `Localizer`. Paper: linear decay over the whole run.

    Raises:
        ValueError: the sound is shorter than one VGGish example, or there are no categories in the list.
        WeightError: a file is missing, damaged, or of another model.
    """

    not_stored: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        clip: str = "clip_rn50",
        vggish: str = "vggish",
        mixture: Mixture = Mixture(),  # noqa: B008  frozen
        design: Design = Design(),  # noqa: B008  frozen
        mixing: Mixing = Mixing(),
        negatives: Literal["local", "gathered"] = "gathered",
        count: int = 50,
        categories: str | list[str] | None = None,
        templates: list[str] | None = None,
        plain_names: bool = True,
        sigma: float = 0.9,
        degenerate: Degenerate = "ones",
        box_sets: tuple[str, ...] = ("vggss", "vggss_ext"),
        segmentation: Segmentation = Segmentation(),  # noqa: B008  frozen
        image_size: int = 1024,
        seconds: float = 5.0,
        spectrogram: Precision = "float64",
        heatmap_size: int = 224,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        **training: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **training)
        self.mixture, self.mixing, self.negatives, self.count = mixture, mixing, negatives, count
        self.templates, self.sigma, self.degenerate = tuple(templates or IMAGENET_TEMPLATES), sigma, degenerate
        self.box_sets, self.segmentation, self.heatmap_size = tuple(box_sets), segmentation, heatmap_size
        self.names, self.first_class = read_categories(categories, plain_names)
        self.input_spec = InputSpec(
            image_size=image_size,
            resize="pad",
            interpolation="bilinear",
            seconds=seconds,
            window="centre",
            picture=False,
        )
        self.vggish = VGGish.from_source(vggish, front_end=VGGishFrontEnd(precision=spectrogram))
        # Not a submodule: training does not run it, so it stays off the GPU.
        self._clip = [OpenCLIP.from_source(clip)]
        self.frozen_files = {"clip": self._clip[0].file, "vggish": locate(vggish)}
        self._maker: list[MaskMaker] = []
        self._text: Tensor | None = None
        ears = self.vggish.front_end
        if not ears.examples(self.input_spec.samples):
            raise ValueError(
                f"SeAC: {seconds:g} s of sound are shorter than one VGGish example "
                f"({ears.samples(1) / ears.sample_rate:g} s). Set seconds to 1 or more."
            )
        self.network = SeACNetwork(self._clip[0].width, self.vggish.embedding_size, design)

    # ---- stage one, which may be stored

    def frozen(self, batch: AVBatch) -> Rows:
        """Masks of the pictures and their CLIP features, as `avloc.data.stored` keeps them: see `seac.stored`.

        Raises:
            KeyError: boxes are looked up, and there are none of a picture; names it.
        """
        return as_rows(self.make(batch, strict=True))

    @property
    def recipe(self) -> dict[str, str]:
        """What `frozen` depends on beside the pictures; the message about stale features tells what differs.

        Raises:
            WeightError: a file of stage one is not on this machine.
        """
        spec, clip = self.input_spec, self.frozen_files["clip"]
        seen = {f: str(getattr(spec, f)) for f in ("image_size", "resize", "interpolation")}
        made = {"clip": f"{clip.source} (sha256 {clip.sha256 or 'none'})", "side": str(self.heatmap_size)}
        return seen | made | self.segmentation.recipe | self.mixture.recipe

    def cache_key(self) -> str:
        """sha256 of `recipe`.

        Raises:
            ValueError: untrained weights, which are others in every process; or what `recipe` raises.
        """
        recipe = {"version": VERSION, **self.recipe}
        if untrained := [k for k, v in recipe.items() if "sha256 none" in v]:
            raise ValueError(
                f"SeAC: {', '.join(untrained)} has random weights, which are others in every process. Store what a "
                "weight file makes."
            )
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def make(self, batch: AVBatch, strict: bool) -> list[PictureMasks]:
        """Masks of the batch's pictures; ``strict`` see `Segmenter`."""
        if not self._maker:
            clip = self._clip[0].to(self.device)
            self._maker.append(MaskMaker(self.segmentation, self.mixture, clip, self.device, self.heatmap_size))
        pictures = list(batch.image)
        if batch.size is not None:
            pictures = [x[:, :h, :w] for x, (h, w) in zip(pictures, batch.size.tolist(), strict=True)]
        return self._maker[0](pictures, [key.partition("@")[0] for key in batch.key], strict)

    def masks(self, batch: AVBatch, pixels: bool) -> MaskBatch:
        """The batch's stored masks, or those made now; at most ``count`` of each picture.

        Args:
            batch: with stored features, or with pictures.
            pixels: read the masks too, and not their features alone.

        Raises:
            SampleError: stored features that are none of SeAC's, or damaged.
            KeyError: see `frozen`.
        """
        stored: Mapping[str, Tensor] = batch.stored
        if not stored:
            stored = {k: v.to(batch.device) for k, v in filled(as_rows(self.make(batch, strict=False))).items()}
        return read(stored, batch.key, self.network.mask_size, self.heatmap_size, self.count, pixels)

    # ---- training

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """``audio`` and ``mask``, the two sums of equation 8, and ``loss``, their sum.

        ``tau``, the temperature, and ``mixed``, 1 where this batch's sounds are mixed, are there to be logged.

        Raises as `masks`.
        """
        masks = self.masks(batch, pixels=False)
        mixed = self.draw_mixed()
        group = draw_groups(len(batch), self.mixing.size) if mixed else torch.arange(len(batch))
        groups = int(group.max()) + 1
        group = group.to(batch.device, non_blocking=True)
        # Each sound by itself is what a group of one is: nothing to sum.
        audio = self.hear(mix(batch.audio, group, groups) if mixed else batch.audio)
        embeddings = self.network.embed_masks(self.mixture.mixed(masks.embedded), masks.valid)
        tau = self.network.temperature()
        if self.negatives == "gathered":
            rank, _ = rank_and_world()
            S, _ = best_similarity(embeddings, gather_rows(audio), masks.valid)
            S, group = gather_rows(S), gather_rows(group + rank * groups)
        else:
            S, _ = best_similarity(embeddings, audio, masks.valid)
        terms = msa_micl(S, group, tau)
        audio_term, mask_term = terms.audio.sum(), terms.mask.sum()
        logged = {"tau": tau.detach(), "mixed": torch.tensor(float(mixed))}
        return {"audio": audio_term, "mask": mask_term, "loss": audio_term + mask_term, **logged}

    def draw_mixed(self) -> bool:
        """Whether this step's sounds are mixed: one draw a batch, the same in every process and in a resumed run.

        Raises:
            ValueError: the run has no known number of epochs.
        """
        if not (self.mixing.start or self.mixing.end):
            return False
        epochs = self.mixing.epochs or (self.trainer.max_epochs if self._trainer is not None else 1)
        if epochs is None or epochs < 1:
            raise ValueError("SeAC: mixing grows over the run. Set trainer.max_epochs, or mixing.epochs.")
        p = mixing_probability(self.current_epoch, epochs, self.mixing.start, self.mixing.end)
        seed = zlib.crc32(f"{os.environ.get('PL_GLOBAL_SEED', '0')} mixed {self.global_step}".encode())
        return float(torch.rand((), generator=torch.Generator().manual_seed(seed))) < p

    def hear(self, waveform: Tensor) -> Tensor:
        """a ``[K, d]`` of waveforms ``[K, T]``; gradients end at VGGish."""
        with torch.no_grad():
            seconds = self.vggish(waveform)
        return self.network.embed_audio(seconds)

    # ---- inference

    def class_names(self) -> dict[int, str]:
        """See `Localizer.class_names`."""
        return dict(enumerate(self.names, self.first_class))

    def localize(self, batch: AVBatch) -> Localization:
        """One source a sample.

        The heat map has the similarities, min-max over the picture's own masks: its best mask always has 1, so whether
        anything sounds is told by the confidence alone, the largest cosine before that. With categories, the label is
        the best mask's, and the semantic map is equation 5's.

        Raises as `masks`.
        """
        boxed = torch.tensor([key.partition("__")[0] in self.box_sets for key in batch.key])
        with torch.no_grad():
            masks = self.masks(batch, pixels=not boxed.all())
            features = self.mixture.mixed(masks.embedded)
            similarity = cosine(self.network.embed_masks(features, masks.valid), self.hear(batch.audio))
            answer = aggregate(similarity, self.pixels(masks, boxed), masks.valid, self.degenerate)
            label = semantic = None
            if self.names:
                labels, _ = classify(features, self.text())
                best = similarity.masked_fill(~masks.valid, -torch.inf).argmax(1, keepdim=True)
                label = labels.gather(1, best) + self.first_class
                semantic = answer.semantic(labels, self.sigma)
        return Localization(answer.heatmap[:, None], answer.confidence[:, None], label, semantic)

    def pixels(self, masks: MaskBatch, boxed: Tensor) -> Tensor:
        """Masks bool ``[B, N, H, H]`` at the heat map's size; boxes where ``boxed``, bool ``[B]``."""
        size, drawn = self.heatmap_size, None
        if masks.bits is not None:
            drawn = unpack_bits(masks.bits, size)
            if not boxed.any():
                return drawn
        boxes = box_masks(masks.boxes * size, (size, size))
        return boxes if drawn is None else torch.where(boxed.to(drawn.device)[:, None, None, None], boxes, drawn)

    def __getstate__(self) -> dict[str, Any]:
        # Detectors hold what cannot be sent to another process, which loads its own when it needs one.
        return super().__getstate__() | {"_maker": []}

    def text(self) -> Tensor:
        """Embeddings ``[Y, D]`` of the categories; computed once."""
        if self._text is None:
            self._text = self._clip[0].to(self.device).encode_names(self.names, self.templates)
        self._text = self._text.to(self.device)
        return self._text


def cosine(masks: Tensor, audio: Tensor) -> Tensor:
    """float32 ``[B, N]`` of each picture's masks ``[B, N, d]`` with its own sound ``[B, d]``."""
    with torch.autocast(masks.device.type, enabled=False):
        return (F.normalize(masks.float(), dim=-1) * F.normalize(audio.float(), dim=-1)[:, None]).sum(-1)


def read_categories(categories: str | list[str] | None, plain: bool) -> tuple[list[str], int]:
    """Names without the background, and the class number of the first of them in its label space.

    Raises:
        ValueError: an unknown label space, or no name at all.
    """
    if categories is None:
        return [], 0
    if isinstance(categories, str):
        if categories not in LABEL_SPACES:
            raise ValueError(f"SeAC: no label space {categories!r}; there are {', '.join(LABEL_SPACES)}.")
        categories = list(LABEL_SPACES[categories])
    first = int(categories[:1] == [BACKGROUND])
    names = categories[first:]
    if not names:
        raise ValueError("SeAC: the list of categories is empty. Leave categories out for no labels.")
    if twice := sorted({n for n in names if names.count(n) > 1}):
        warnings.warn(f"SeAC: {', '.join(twice)} is there twice among the categories; the first wins.", stacklevel=2)
    return [n.replace("_", " ").replace("-", " ") for n in names] if plain else names, first


# Checkpoints keep them among the hyper-parameters, and are loaded without unpickling anything else.
torch.serialization.add_safe_globals([Mixture, Design, Mixing])
