"""Mixtures by a model that was trained on single sounds: class names draw the masks, the sound chooses among them.

The multi-source rows of ACL-SSL's journal paper (table 8), which need class names and no training. SOUPLE is asked in
the same way.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.clipseg import ImageFeatures, normalise
from avloc.methods.acl.method import ACL
from avloc.methods.acl.network import at_side
from avloc.methods.base import CheckpointError
from avloc.methods.baselines.classes import ClassQuery
from avloc.methods.load import load_method
from avloc.methods.souple.method import SOUPLE
from avloc.types import AVBatch, Localization

__all__ = ["ZeroShotMixture"]

WORDS = "A photo of a {}"
SOURCES = 2


class ZeroShotMixture(ClassQuery):
    """The k classes whose masked picture is most like the sound, each with its mask.

    For each class name the text conditions CLIPSeg's decoder, the image masker turns its logits M_n into
    ``sigmoid(M_n + b / w)``, and CLIP sees the picture under that mask, v_n. The k largest cosines of v_n with the
    audio-driven embedding A of the whole sound are the sources.

    Args:
        checkpoint: of a trained ACL or SOUPLE, written by `avloc fit`.
        method: that method itself instead, such as an `ACL` with the official ``audio_proj``.
        classes: see `ClassQuery`. The paper: T-VSL's lists, 37 instruments or 221 names of VGG-SS.
        k: how many sources are found; by default as many as the sample has, 2 where that is unknown. (Not stated.)
        wording: around each name, with ``{}`` for it; by default the words that the method was trained with, of SOUPLE
            the ones that its context stands for. "{}" for the bare name. (Not stated.)
        geometry: a row of pictures is fitted into the square that the model knows (``squash``; maps have the row's
            proportions again), or its pictures are seen one by one (``tiles``): a class then counts by its best
            picture. (Not stated.)
        synonyms: leave out classes whose text has at least this cosine with that of a class already found; None keeps
            them all, so one object can be found twice. (Not in the paper.)
        chunk: pictures under masks that go through CLIP together.
        heatmap_size: height of the maps; every published evaluator asks for 224.

    Raises:
        ValueError: not one of ``checkpoint`` and ``method``; a wording without its place for the name; k below 1.
        CheckpointError: the checkpoint is missing, damaged, or of another method.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        method: ACL | None = None,
        classes: str | list[str] | None = None,
        k: int | None = None,
        wording: str | None = None,
        geometry: Literal["squash", "tiles"] = "squash",
        synonyms: float | None = None,
        chunk: int = 64,
        heatmap_size: int = 224,
    ) -> None:
        super().__init__(classes)
        if (checkpoint is None) == (method is None):
            raise ValueError("ZeroShotMixture asks a trained method: give model.checkpoint or model.method, not both.")
        self.method = method if method is not None else load_trained(str(checkpoint))
        self.method.requires_grad_(False).eval()
        if (wording is not None and wording.count("{}") != 1) or (k is not None and k < 1):
            raise ValueError(f"ZeroShotMixture: wording {wording!r} must hold {{}} once, and k {k} be at least 1.")
        self.wording = wording or (WORDS if isinstance(self.method, SOUPLE) else None)
        self.k, self.synonyms, self.chunk, self.heatmap_size = k, synonyms, chunk, heatmap_size
        self.frozen_files = self.method.frozen_files
        self.input_spec = replace(self.method.input_spec, duet="squash" if geometry == "squash" else "wide")

    def localize(self, batch: AVBatch) -> Localization:
        """The most likely source first; label and confidence, the cosine, are its class's.

        A sample with fewer sources than its batch's largest has maps of zeros and label -1 behind them.

        Raises:
            ValueError: no classes were given; or the batch numbers them otherwise than the list.
        """
        classes, network = self.classes(), self.method.network
        classes.check(batch)
        side = batch.image.shape[-2]
        tiles = batch.image.shape[-1] // side
        with torch.no_grad():
            image = normalise(torch.cat(batch.image.split(side, dim=-1)))  # the first picture of every row comes first
            features = network.see(image)
            tokens = network.hear(batch.audio).repeat(tiles, 1, 1)
            A = network.embedding(network.answer(features, tokens)[:, None])[:, 0]
            text = self.texts(classes.names)
            cosine = self.cosines(image, features, A, text).unflatten(0, (tiles, -1)).amax(0)
            index, confidence = self.choose(cosine, text, self.wanted(batch))
            asked = text[index.clamp(min=0)].repeat(tiles, 1, 1)
            maps = self.draw(network.mask_logits(features.reduced, asked), tiles, batch)
        label = torch.tensor(classes.numbers, device=index.device)[index.clamp(min=0)]
        numbered = min(classes.numbers) >= 0
        return Localization(
            maps * (index >= 0)[..., None, None],
            confidence,
            torch.where(index < 0, -1, label) if numbered else None,
        )

    def texts(self, names: tuple[str, ...]) -> Tensor:
        """CLIP's embeddings ``[N, D]`` of the names in their words, not normalised; computed once for each list."""
        network = self.method.network
        grounder, before, after = network.av_grounder, network.before, network.after
        if self.wording is not None:
            parts = [grounder.tokenize([part])[0].to(self.device) for part in self.wording.split("{}")]
            before, after = parts[0][:-1], parts[1][1:]

        def read(names: list[str]) -> Tensor:
            ids = [grounder.tokenize([name])[0, 1:-1].to(self.device) for name in names]
            rows = [torch.cat([before, row, after]) for row in ids]
            return grounder.encode_text(nn.utils.rnn.pad_sequence(rows, batch_first=True)).float()

        return self.embedded("grounder", names, read)

    def cosines(self, image: Tensor, features: ImageFeatures, A: Tensor, text: Tensor) -> Tensor:
        """Cosine of each picture under each class's mask with its sound, float32.

        Args:
            image: normalised ``[B, 3, H, H]``.
            features: of those pictures.
            A: ``[B, D]``.
            text: ``[N, D]``.

        Returns:
            ``[B, N]``.
        """
        network, found = self.method.network, []
        heard = F.normalize(A.float(), dim=-1)[:, None]
        for some in text.split(max(1, self.chunk // len(image))):
            M = network.mask_logits(features.reduced, some.expand(len(image), -1, -1))
            mask = network.masker_i.heatmap(at_side(M, image.shape[-1]))
            masked = (image[:, None] * mask[:, :, None]).flatten(0, 1)
            v = network.av_grounder.encode_image(masked, pooled=True).pooled
            assert v is not None
            found.append((F.normalize(v.float(), dim=-1).unflatten(0, (len(image), -1)) * heard).sum(-1))
        return torch.cat(found, dim=1)

    def wanted(self, batch: AVBatch) -> Tensor:
        """How many sources of each sample are asked for, int64 ``[B]``."""
        if self.k is not None or batch.class_id is None:
            return torch.full((len(batch),), self.k or SOURCES, device=batch.device)
        known = (batch.class_id >= 0).sum(1)
        return torch.where(known > 0, known, SOURCES)

    def choose(self, cosine: Tensor, text: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The classes with the largest cosines.

        Args:
            cosine: ``[B, N]``.
            text: ``[N, D]``.
            wanted: int64 ``[B]``.

        Returns:
            Places in the list int64 ``[B, k]``, -1 where no more is wanted or left, and their cosines (-1 where nothing
            is left).
        """
        taken = torch.eye(len(text), dtype=torch.bool, device=text.device)
        if self.synonyms is not None:
            unit = F.normalize(text.float(), dim=-1)
            taken |= unit @ unit.T >= self.synonyms
        places, values = [], []
        for i in range(int(wanted.max())):
            value, place = cosine.max(1)
            there = torch.isfinite(value)
            places.append(torch.where(there & (i < wanted), place, -1))
            values.append(torch.where(there, value, -1.0))
            cosine = cosine.masked_fill(taken[place], -torch.inf)
        return torch.stack(places, 1), torch.stack(values, 1)

    def draw(self, M: Tensor, tiles: int, batch: AVBatch) -> Tensor:
        """Maps ``[B, k, G, G']`` of logits ``[tiles B, k, h, h]``, resized bicubically before the sigmoid."""
        G, proportion = self.heatmap_size, 1
        if tiles == 1 and batch.truth is not None:  # the row that was squashed
            proportion = max(1, batch.truth.shape[-1] // batch.truth.shape[-2])
        M = F.interpolate(M.float(), (G, G * proportion), mode="bicubic", align_corners=False)
        return torch.cat(self.method.network.masker_i.heatmap(M).split(len(batch)), dim=-1)


def load_trained(checkpoint: str) -> ACL:
    """A trained ACL or SOUPLE.

    Raises:
        CheckpointError: it is missing, damaged, or of another method.
    """
    if not Path(checkpoint).is_file():
        raise CheckpointError(
            f"There is no checkpoint {checkpoint}. Train an ACL or SOUPLE first (make train EXP=acl_ssl), or name its "
            "checkpoint with --model.init_args.checkpoint."
        )
    method = load_method(Path(checkpoint), "cpu")
    if not isinstance(method, ACL):
        raise CheckpointError(f"{checkpoint} is of {type(method).__name__}; a mixture is asked of an ACL or a SOUPLE.")
    return method
