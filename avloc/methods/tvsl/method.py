"""T-VSL (Mahmud, Tian, Marculescu: "T-VSL: Text-Guided Visual Sound Source Localization in Mixtures", CVPR 2024)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.audioclip import AudioCLIP
from avloc.backbones.clipseg import normalise
from avloc.data.labels import LABEL_SPACES
from avloc.data.mixing import mix_at_random, range_of
from avloc.methods.base import Localizer
from avloc.methods.classes import BACKGROUND, ClassList, known_sources, listed, plain, repeated, spoken
from avloc.methods.losses import gather_rows, rank_and_world
from avloc.methods.maps import transformed
from avloc.methods.tvsl.losses import Scales, classification, correspondence, detection
from avloc.methods.tvsl.network import DESIGNS, Design, DesignName, Tokens, TVSLNetwork
from avloc.metrics.maps import minmax
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import load_into, locate, read_state

__all__ = ["TVSL", "Detection", "draw_maps", "losses_of", "read_classes"]

LONGEST_PROMPT = 32


@dataclass(frozen=True)
class Detection:
    """Which classes are said to sound. The paper states none of it.

    Args:
        threshold: least probability of a class.
        most: largest number of classes of a sample; that of the maps of each answer.
        least: smallest number: so many are found, the most probable ones, whatever their probability.
        count: say exactly so many sound, the most probable ones; ``known`` for as many as the sample is known to have
            (which ones is not looked at), and by the threshold where that is unknown; None to let ``threshold``
            decide.

    Raises:
        ValueError: a count, or a smallest or largest number, that no answer can have.
    """

    threshold: float = 0.5
    most: int = 4
    least: int = 0
    count: int | Literal["known"] | None = None

    def __post_init__(self) -> None:
        if self.most < 1 or (isinstance(self.count, int) and not 1 <= self.count <= self.most):
            raise ValueError(f"T-VSL: detection wants 1 <= count <= most, got count {self.count}, most {self.most}.")
        if not 0 <= self.least <= self.most:
            raise ValueError(f"T-VSL: detection wants 0 <= least <= most, got least {self.least}, most {self.most}.")


class TVSL(Localizer):
    """Frozen AudioCLIP; small projectors learn which classes sound, and where each of them is. Needs class labels.

    A sample is one picture, or n pictures side by side, under one or several sounds. Each of its K classes gets a map;
    K may differ between samples.

    Args:
        classes: names of the N classes: a label space of `avloc.data.labels`, a text file with one name a line, or a
            list. Their places are the class numbers of ``AVBatch.class_id`` (a background at the head of a label space
            is skipped). Another list may be set at test time: nothing that is learnt depends on it (without
            ``prompts``; learnt prompts fit their own classes).
        audioclip: weight source of the three towers.
        design: ``published``, ``released``, or the parts one by one.
        sources: which classes are asked for at test time: those that are ``detected`` (paper), or the true ones that
            are ``given`` (release, whose every test is told what sounds). Of a sample that nobody named a class of,
            they are detected in any case.
        detected: how classes are detected.
        mixed: samples of a training mixture, or the least and largest number, drawn for each batch; their classes all
            differ. 1 trains on samples as they are.
        prompts: length of the learnt text before each name, 0 to 32; shared by all classes, initially noise of
            deviation 0.02 (choices: the paper states neither).
        negatives: sources of this process (``local``, release) or of all processes (``gathered``) in L_av.
        checkpoint: weight source of a checkpoint of the release (its own keys beside AudioCLIP's) to start from.
        image_size: side of each picture in pixels; the tower's own by default.
        seconds: length of the sound, the middle of the clip.
        train_scale: training pictures are resized to this multiple of the side and cropped. The release crops after
            a resize of the short side, and squashes in tests; here both squash.
        heatmap_size: height of the maps.
        training: options of `Localizer`. Paper: Adam, learning rate 1e-4, no schedule; the released script says 1e-2
            and cosine.

    Raises:
        ValueError: no class, a name twice, a side that is no multiple of the tower's stride, prompts or mixtures of
            impossible length.
        WeightError: a file is missing, damaged, or of another model.
    """

    network: TVSLNetwork
    not_stored: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        classes: str | list[str],
        audioclip: str = "audioclip_full",
        design: DesignName | Design = "published",
        sources: Literal["detected", "given"] = "detected",
        detected: Detection = Detection(),
        mixed: int | tuple[int, int] = 1,
        prompts: int = 0,
        negatives: Literal["local", "gathered"] = "local",
        checkpoint: str | None = None,
        image_size: int | None = None,
        seconds: float = 5.0,
        train_scale: float = 1.1,
        heatmap_size: int = 224,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.design = design if isinstance(design, Design) else DESIGNS[design]
        self.sources, self.detected, self.negatives = sources, detected, negatives
        self.mixed = range_of(mixed)
        self.heatmap_size = heatmap_size
        if not 0 <= prompts <= LONGEST_PROMPT:
            raise ValueError(f"T-VSL: learnt prompts have 0 to {LONGEST_PROMPT} tokens, got {prompts}.")
        self.towers = AudioCLIP.from_source(audioclip)
        self.towers.frozen = self.design.statistics == "stored"
        self.towers.train(not self.towers.frozen)
        self.frozen_files = {"audioclip": self.towers.file}
        spec = self.towers.config
        self.input_spec = InputSpec(
            image_size=image_size or spec.image.size,
            train_scale=train_scale,
            train_flip=0.5,
            sample_rate=spec.audio.sample_rate,
            seconds=seconds,
            window="centre",
            pad="tile",
            duet="wide",
        )
        self.towers.visual.grid(self.input_spec.image_size, self.input_spec.image_size)
        self.network = TVSLNetwork(self.towers.width, self.design)
        self.prompts = nn.Parameter(0.02 * torch.randn(prompts, spec.text.width)) if prompts else None
        self._bank: Tensor | None = None
        self.set_classes(classes)
        if checkpoint is not None:
            self.load_official(checkpoint)

    def set_classes(self, classes: str | Sequence[str]) -> None:
        """Ask for other classes from now on; see the constructor.

        Raises:
            ValueError: see `read_classes`; or a name that is too long for the text tower with its prompt.
        """
        self.names, self.first_class = read_classes(classes)
        self.classes = ClassList(tuple(self.names), tuple(range(self.first_class, self.first_class + len(self.names))))
        self.number = {plain(name): i for i, name in enumerate(self.names)}
        self._ids = self.towers.tokenize(self.names)
        self._bank = None
        length, longest = self.towers.config.text.context_length, self._ids.shape[1]
        if longest + len(self.learnt) > length:
            name = self.names[int((self._ids != 0).sum(1).argmax())]
            raise ValueError(
                f"T-VSL: {name!r} and a prompt of {len(self.learnt)} take {longest + len(self.learnt)} tokens, the "
                f"text tower has {length}. Use a shorter prompt."
            )
        self._targets = torch.tensor(crossed(self.names) if self.design.crossed_labels else range(len(self.names)))

    @property
    def learnt(self) -> Tensor | tuple[()]:
        return () if self.prompts is None else self.prompts

    def load_official(self, source: str) -> None:
        """Start from a checkpoint of the release.

        Raises:
            WeightError: the file is missing, or of another model or design.
        """
        file = locate(source)
        assert file.path is not None, "an official checkpoint is a file"
        state = read_state(Path(file.path))
        for wrapper in ("model", "state_dict"):
            state = state.get(wrapper, state)
        state = {k.removeprefix("module."): v for k, v in state.items()}
        theirs = self.towers.state_dict().keys()
        load_into(self.towers, {k: v for k, v in state.items() if k in theirs}, str(file.path))
        load_into(self.network, {k: v for k, v in state.items() if k not in theirs}, str(file.path))
        self.frozen_files = {"audioclip": file}

    # ---- what is seen, heard and read

    def perceive(self, batch: AVBatch) -> Tokens:
        """Both towers, once for each sample and without gradient, and what is projected of their tokens.

        Raises:
            ValueError: a side of the pictures is no multiple of the tower's stride.
        """
        with torch.no_grad():
            image = self.towers.image_tokens(normalise(batch.image), self.design.positions)
            audio = self.towers.audio_tokens(batch.audio, self.design.audio_scale)
        return self.network.prepare(image, audio)

    def bank(self) -> Tensor:
        """T ``[N, D]``, unit length; computed once, or once a training step where prompts are learnt."""
        if self._bank is None or (self.prompts is not None and self.training):
            bank = self.read_names()
            if self.prompts is not None and self.training:
                return bank
            self._bank = bank.detach()
        if self._bank.device != self.device:
            self._bank = self._bank.to(self.device)
        return self._bank

    def read_names(self) -> Tensor:
        ids = self._ids.to(self.device)
        if self.prompts is None:
            with torch.no_grad():
                return F.normalize(self.towers.encode_text(ids).float(), dim=-1)
        words = self.towers.token_embedding(ids)
        prompts = self.prompts.expand(len(ids), -1, -1)
        words = torch.cat([words[:, :1], prompts, words[:, 1:]], dim=1)  # behind the start of text
        return F.normalize(self.towers.encode_tokens(words, ids.argmax(-1) + len(self.prompts)).float(), dim=-1)

    def train(self, mode: bool = True) -> TVSL:
        if self.prompts is not None:
            self._bank = None
        return super().train(mode)

    def class_index(self, batch: AVBatch) -> Tensor:
        """The true classes as places in the list, int64 ``[B, S]``; -1 fills up, and stands for what is not known. By
        name where the batch has names.

        Raises:
            ValueError: a class is not in the list.
        """
        if any(name for names in batch.label for name in names):
            rows = [[self.find(name, key) for name in names] for names, key in zip(batch.label, batch.key, strict=True)]
            most = max(1, *(len(r) for r in rows))
            filled = torch.tensor([r + [-1] * (most - len(r)) for r in rows])
            return filled.to(batch.device, non_blocking=True)
        if batch.class_id is None:
            return torch.full((len(batch), 1), -1, device=batch.device)
        index = torch.where(batch.class_id < 0, -1, batch.class_id - self.first_class)
        if wrong := [c for c in index.flatten().tolist() if c >= len(self.names) or c < -1]:
            raise ValueError(
                f"T-VSL: {batch.key[0]}, ... have class {wrong[0] + self.first_class}, but the list has "
                f"{len(self.names)} names. Set model.classes to the list of this data set."
            )
        return index

    def find(self, name: str, key: str) -> int:
        if not name:
            return -1
        if plain(name) not in self.number:
            raise ValueError(
                f"T-VSL: {key} is of class {name!r}, which is not among the {len(self.names)} classes "
                f"({', '.join(self.names[:3])}, ...). Set model.classes to the list of this data set."
            )
        return self.number[plain(name)]

    # ---- training

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """``mcid``, ``image_cls``, ``audio_cls``, ``av`` (those that the design has), and their sum ``loss``.

        Raises:
            ValueError: a sample sounds and one of its classes is missing; or a class is not in the list, or there twice
                in one mixture; see `avloc.data.mixing` for what cannot be mixed.
        """
        batch = mix_at_random(batch, *self.mixed)  # a resumed run draws alike: the step's samples seed torch
        self.check_labels(batch)
        index = self.class_index(batch)
        target = torch.where(index < 0, -1, self.targets()[index.clamp(min=0)])
        temperature = self.towers.temperature
        scales = Scales(temperature("image_text"), temperature("audio_text"), temperature("audio_image"))
        gathered = self.negatives == "gathered"
        return losses_of(self.network, self.perceive(batch), self.bank(), index, target, scales, gathered)

    def check_labels(self, batch: AVBatch) -> None:
        """Nothing can be learnt of a sound whose classes are half known: is a class absent, or its name?"""
        sounding = [True] * len(batch) if batch.sounding is None else batch.sounding.tolist()
        numbers: list[list[int]] = [[]] * len(batch) if batch.class_id is None else batch.class_id.tolist()
        named = any(name for names in batch.label for name in names)
        for i, (key, sounds) in enumerate(zip(batch.key, sounding, strict=True)):
            names = batch.label[i] if batch.label else []
            known = any(names) if named else any(c >= 0 for c in numbers[i])
            if sounds and (not known or (named and not all(names))):
                raise ValueError(
                    f"T-VSL must be told what sounds, but {key} has {'a source' if known else 'sources'} without a "
                    "class. Train on a labelled set, or leave the sample out."
                )
            if twice := next((n for j, n in enumerate(names) if n and n in names[:j]), None):
                raise ValueError(
                    f"T-VSL tells sources apart by their class, but {key} has {twice!r} twice. Leave it out of the "
                    "training set, or train on single sources with model.mixed, which mixes different classes."
                )

    def targets(self) -> Tensor:
        """Row of the bank that each class is taught, int64 ``[N]``."""
        if self._targets.device != self.device:
            self._targets = self._targets.to(self.device)
        return self._targets

    # ---- inference

    def class_names(self) -> dict[int, str]:
        """See `Localizer.class_names`."""
        return dict(enumerate(self.names, self.first_class))

    def localize(self, batch: AVBatch) -> Localization:
        """One map per class that sounds, each min-max normalised; the confidence is the probability of the class.

        Where fewer classes are detected than there are maps, also where it is none, the other maps are zero and their
        label is -1; the confidence is that of the next probable class. A class that is given twice has its map twice.
        Given classes are found by name, and labelled with the data set's own numbers; a given source that has no class
        has no map, and a sample that has none at all, and is not known to be silent, has detected ones.

        Raises:
            ValueError: a given class is not in the list; or the batch numbers its classes otherwise than the list.
        """
        with torch.no_grad():
            tokens, bank = self.perceive(batch), self.bank()
            probability = self.network.class_logits(tokens.fused, bank).sigmoid()
            if self.sources == "given":
                index = self.class_index(batch)
                confidence = torch.where(index < 0, 0.0, probability.gather(1, index.clamp(min=0)))
                index, confidence = self.fill_in(batch, index, confidence, probability)
            else:
                index, confidence = self.detect(probability, known_sources(batch))
                self.classes.check(batch)
            found = self.network.separate(tokens, bank[index.clamp(min=0)])
            grid = self.towers.visual.grid(batch.image.shape[-2], batch.image.shape[-1])
            maps = self.network.similarity(tokens, found).unflatten(2, grid)
            size = self.heatmap_size, self.heatmap_size * grid[1] // grid[0]
            maps = draw_maps(maps, size, self.design) * (index >= 0)[..., None, None]
        label = torch.where(index < 0, -1, index + self.first_class)
        if self.sources == "given" and batch.class_id is not None:
            theirs = F.pad(batch.class_id, (0, label.shape[1] - batch.class_id.shape[1]), value=-1)
            label = torch.where((index < 0) | (theirs < 0), label, theirs)
        return Localization(maps, confidence, label)

    def fill_in(self, batch: AVBatch, index: Tensor, confidence: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
        """Detected classes for the samples that were given none, but for those that are known to be silent."""
        unknown = (index < 0).all(1)
        if batch.sounding is not None:
            unknown = unknown & batch.sounding
        if not unknown.any():
            return index, confidence
        found, sure = self.detect(probability, known_sources(batch))
        width = max(index.shape[1], found.shape[1])
        rows = [F.pad(x, (0, width - x.shape[1]), value=-1) for x in (index, found)]
        values = [F.pad(x, (0, width - x.shape[1])) for x in (confidence, sure)]
        return torch.where(unknown[:, None], rows[1], rows[0]), torch.where(unknown[:, None], values[1], values[0])

    def detect(self, probability: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Places of the detected classes int64 ``[B, most]``, -1 fills up, and probabilities.

        Args:
            probability: ``[B, N]``.
            known: int64 ``[B]``, how many sources each sample is known to have, 0 where that is unknown; None for
                nowhere.
        """
        d, N = self.detected, probability.shape[1]
        top = probability.topk(min(d.most, N), dim=1)
        place = torch.arange(top.values.shape[1], device=probability.device)
        kept = (top.values >= d.threshold) | (place < d.least)
        if isinstance(d.count, int):
            kept = (place < d.count).expand_as(kept)
        elif d.count == "known" and known is not None:
            kept = torch.where(known[:, None] > 0, place < known[:, None], kept)
        lacking = (0, d.most - top.values.shape[1])
        return F.pad(torch.where(kept, top.indices, -1), lacking, value=-1), F.pad(top.values, lacking)


def losses_of(
    network: TVSLNetwork,
    tokens: Tokens,
    bank: Tensor,
    index: Tensor,
    target: Tensor,
    scales: Scales,
    gathered: bool = False,
) -> dict[str, Tensor]:
    """All terms of a batch and their sum ``loss``.

    Args:
        network: what made the tokens.
        tokens: of B samples.
        bank: T ``[N, D]``, unit length.
        index: int64 ``[B, K]``, rows of the bank that are asked for; -1 fills up.
        target: int64 ``[B, K]``, rows that are right; the same but for ``Design.crossed_labels``.
        scales: frozen factors.
        gathered: sources of all processes are negatives in L_av.
    """
    design = network.design
    valid = index >= 0
    found = network.separate(tokens, bank[index.clamp(min=0)])
    terms = {"mcid": detection(network.class_logits(tokens.fused, bank), target, design.sources)}
    visual, audio = network.class_features(found)
    if design.visual_conditioning:
        terms["image_cls"] = classification(visual, bank, target, scales.image_text, design.sources)
    if design.audio_conditioning:
        terms["audio_cls"] = classification(audio, bank, target, scales.audio_text, design.sources)
    if design.correspondence:
        rows = [found.query, network.visual_query(tokens, found), valid[..., None].float()]
        if gathered:
            rows = [gather_rows(x) for x in same_width(rows)]
        query, seen, there = (x.flatten(0, 1) for x in rows)
        terms["av"] = correspondence(query, seen, there[:, 0] > 0, scales.audio_image)
    return terms | {"loss": torch.stack(list(terms.values())).sum()}


def same_width(rows: Sequence[Tensor]) -> list[Tensor]:
    """``[B, K, ...]`` with K filled up to the largest of all processes."""
    if rank_and_world()[1] == 1:
        return list(rows)
    most = torch.tensor(rows[0].shape[1], device=rows[0].device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return [F.pad(x, (0, 0, 0, int(most) - x.shape[1])) for x in rows]


def draw_maps(maps: Tensor, size: tuple[int, int], design: Design) -> Tensor:
    """Similarities ``[B, K, h, w]`` at another size and in [0, 1], each min-max normalised, and turned over where the
    design says so."""
    maps = transformed(maps.float(), design.transform)
    maps = minmax(F.interpolate(maps, size, mode=design.upsampling, align_corners=False)).clamp(0, 1)
    return 1 - maps if design.inverted else maps


def read_classes(classes: str | Sequence[str]) -> tuple[list[str], int]:
    """Names as they are read by the text tower, and the class number of the first.

    Args:
        classes: a key of `LABEL_SPACES` (``_`` is read as a blank), a file with one name a line, or names.

    Raises:
        ValueError: neither, no name, or a name twice.
    """
    of_space = isinstance(classes, str) and classes in LABEL_SPACES
    given = [spoken(name) for name in listed(classes)] if of_space else listed(classes)
    first = int(of_space and given[0] == BACKGROUND)
    names = given[first:]
    if not names:
        raise ValueError("T-VSL: the list of classes is empty.")
    if twice := repeated(names):
        raise ValueError(f"T-VSL: the class {twice[0]!r} is there twice (as {twice[1]!r}). Leave one out.")
    return names, first


def crossed(names: Sequence[str]) -> list[int]:
    """For each name, the one whose place among the sorted names it has among the sorted underscored names."""
    by_name = sorted(range(len(names)), key=lambda i: names[i])
    by_key = sorted(range(len(names)), key=lambda i: re.sub(r"[, ]", "_", names[i]))
    out = [0] * len(names)
    for theirs, ours in zip(by_key, by_name, strict=True):
        out[theirs] = ours
    return out


# Checkpoints keep it among the hyper-parameters, and are loaded without unpickling anything else.
torch.serialization.add_safe_globals([Detection])
