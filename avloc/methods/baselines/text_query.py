"""A class's text asks the picture of an untrained AudioCLIP: what is T-VSL worth beyond its towers?"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.backbones.audioclip import Positions
from avloc.methods.baselines.classes import ClassQuery
from avloc.methods.baselines.similarity import AudioCLIPTowers, draw
from avloc.methods.classes import ClassList, known_sources, plain
from avloc.methods.maps import Transform, transformed
from avloc.types import AVBatch, InputSpec, Localization

__all__ = ["TextQuery"]

SOURCES = 2


class TextQuery(ClassQuery):
    """Cosine of each patch with the text of each class that sounds; nothing is learnt.

    The control of T-VSL, which asks with the same texts and the same towers. No table has it.

    Args:
        audioclip: weight source of the three towers.
        classes: see `ClassQuery`; names are read as they are.
        sources: the classes ``detected``, whose texts are most like the whole sound, or the true ones that are
            ``given``. Of a sample that nobody named a class of, they are detected in any case.
        k: how many are detected; by default as many as the sample is known to have, 2 where that is unknown.
        positions: of picture tokens, see `avloc.backbones.audioclip.ImageTower.tokens`.
        transform: of the cosines before they are resized, see `avloc.methods.maps.transformed`.
        seconds: length of the sound, the middle of the clip.
        heatmap_size: height of the maps.

    Raises:
        ValueError: k below 1.
        WeightError: a file is missing, damaged, or of another model.
    """

    def __init__(
        self,
        audioclip: str = "audioclip_full",
        classes: str | list[str] | None = None,
        sources: Literal["detected", "given"] = "detected",
        k: int | None = None,
        positions: Positions = "grid",
        transform: Transform = "none",
        seconds: float = 5.0,
        heatmap_size: int = 224,
    ) -> None:
        super().__init__(classes)
        if k is not None and k < 1:
            raise ValueError(f"TextQuery: k must be at least 1, got {k}.")
        self.towers = AudioCLIPTowers(audioclip, positions)
        self.sources, self.k, self.transform, self.heatmap_size = sources, k, transform, heatmap_size
        self.frozen_files = self.towers.files
        self.input_spec = InputSpec(
            image_size=self.towers.image_size,
            sample_rate=self.towers.sample_rate,
            seconds=seconds,
            window="centre",
            pad="tile",
            duet="wide",
        )

    def localize(self, batch: AVBatch) -> Localization:
        """One min-max normalised map a class, bilinear; the confidence is the cosine of the class's text with the
        sound. Maps of zeros with label -1 fill up samples with fewer classes.

        Raises:
            ValueError: no classes are known; a given class is not among them; or the batch numbers them otherwise.
        """
        classes = self.classes()
        classes.check(batch)
        with torch.no_grad():
            text = self.embedded("audioclip", classes.names, self.read)
            heard = F.normalize(self.towers.hear(batch.audio).float(), dim=-1) @ text.T
            index = self.asked(batch, classes, heard)
            patches = F.normalize(self.towers.see(batch.image).float(), dim=1)
            cosine = torch.einsum("bdhw,bkd->bkhw", patches, text[index.clamp(min=0)])
            maps = draw(transformed(cosine, self.transform), self.heatmap_size) * (index >= 0)[..., None, None]
        label = torch.tensor(classes.numbers, device=index.device)[index.clamp(min=0)]
        return Localization(maps, heard.gather(1, index.clamp(min=0)), torch.where(index < 0, -1, label))

    def asked(self, batch: AVBatch, classes: ClassList, heard: Tensor) -> Tensor:
        """Places in the list int64 ``[B, K]``, -1 fills up; of cosines ``[B, N]`` of sounds and texts."""
        known = known_sources(batch)
        wanted = torch.where(known > 0, known, SOURCES) if self.k is None else torch.full_like(known, self.k)
        most = min(int(wanted.max()), heard.shape[1])
        place = heard.topk(most, dim=1).indices
        index = torch.where(torch.arange(most, device=place.device) < wanted[:, None], place, -1)
        if self.sources == "detected" or not batch.label:
            return index
        number = {plain(name): i for i, name in enumerate(classes.names)}
        rows = []
        for key, names, found in zip(batch.key, batch.label, index.tolist(), strict=True):
            if wrong := [name for name in names if name and plain(name) not in number]:
                raise ValueError(
                    f"TextQuery: {key} is of class {wrong[0]!r}, which is not among the {len(number)} classes. Set "
                    "model.classes to the list of this data set."
                )
            rows.append([number.get(plain(name), -1) for name in names] if any(names) else found)
        width = max(map(len, rows))
        return torch.tensor([row + [-1] * (width - len(row)) for row in rows], device=index.device)

    def read(self, texts: list[str]) -> Tensor:
        """Unit embeddings ``[N, D]``."""
        clip = self.towers.clip
        return F.normalize(clip.encode_text(clip.tokenize(texts).to(self.device)).float(), dim=-1)
