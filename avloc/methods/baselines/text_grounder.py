"""CLIPSeg asked by words: the true class of what sounds, or the class that a sound is nearest to.

Baselines of ACL-SSL's journal paper, without training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import normalize  # type: ignore[import-untyped]

from avloc.backbones.clipseg import CLIP_MEAN, CLIP_STD, CLIPSeg
from avloc.methods.acl.network import at_side, feature_mask
from avloc.methods.baselines.classes import ClassQuery
from avloc.methods.baselines.spaces import Space
from avloc.methods.classes import spoken
from avloc.types import AVBatch, InputSpec, Localization

__all__ = ["TextGrounder"]

STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": (CLIP_MEAN, CLIP_STD),
}


class TextGrounder(ClassQuery):
    """A class name conditions CLIPSeg's decoder; the map is the sigmoid of its logits.

    Args:
        clipseg: weight source.
        space: in which the sound is compared with the names; None for the oracle, which is told the true names.
        classes: candidates of the space, see `ClassQuery`.
        otherwise: candidates where the tested set names no classes. (The paper has numbers for SoundNet-Flickr, which
            has none, and does not say whose names it took.)
        wording: around the name that CLIPSeg reads, with ``{}`` for it; the bare name by default. (Not stated.)
        space_wording: the same for what the space reads.
        statistics: mean and standard deviation of the pixels: ``imagenet``, CLIPSeg's own, or ``clip``, with which
            ACL-SSL feeds it. (Not stated.)
        image_size: side of the picture in pixels.
        heatmap_size: side of the map; every published evaluator asks for 224.

    Raises:
        ValueError: a wording without its place for the name.
        WeightError: a file is missing, damaged, or of another model.
    """

    def __init__(
        self,
        clipseg: str = "hf:CIDAS/clipseg-rd64-refined",
        space: Space | None = None,
        classes: str | list[str] | None = None,
        otherwise: str | list[str] | None = "vggss221",
        wording: str = "{}",
        space_wording: str = "{}",
        statistics: Literal["imagenet", "clip"] = "imagenet",
        image_size: int = 352,
        heatmap_size: int = 224,
    ) -> None:
        super().__init__(classes, otherwise)
        if wording.count("{}") != 1 or space_wording.count("{}") != 1:
            raise ValueError(f"TextGrounder: a wording must hold {{}} once; got {wording!r} and {space_wording!r}.")
        self.grounder, self.space = CLIPSeg.from_source(clipseg), space
        self.frozen_files = {"clipseg": self.grounder.file} | ({} if space is None else space.files)
        self.wording, self.space_wording, self.statistics = wording, space_wording, statistics
        self.heatmap_size = heatmap_size
        self.input_spec = InputSpec(image_size=image_size)
        if space is not None:
            self.input_spec = replace(self.input_spec, sample_rate=space.sample_rate, seconds=space.seconds)

    def localize(self, batch: AVBatch) -> Localization:
        """One map of the nearest class, whose number is the label where the list is the data set's own; from the oracle
        one map of each true source, of zeros where none sounds.

        The confidence is ACL-SSL's with the text in place of the sound: its cosine with CLIP's features under the mask
        (`avloc.methods.acl`); -1 for no source. (Not stated: these rows have no extended numbers.)

        Raises:
            ValueError: a sample sounds and the oracle has no name for it; or no classes were given.
        """
        with torch.no_grad():
            text, asked, label = self.named(batch) if self.space is None else self.nearest(batch, self.space)
            mean, std = STATISTICS[self.statistics]
            pixels = normalize(batch.image.float() / 255, mean, std)
            features = self.grounder.encode_image(pixels, reduced=True, dense=True)
            M = self.grounder.decode(features.reduced, text)
            assert features.dense is not None
            mask = feature_mask(M, features.dense.shape[-1])
            seen = torch.einsum("bshw,bdhw->bsd", mask.float(), features.dense.float())
            confidence = F.cosine_similarity(seen, text.float(), dim=-1)
        heatmap = torch.sigmoid(at_side(M, self.heatmap_size)) * asked[..., None, None]
        return Localization(heatmap, torch.where(asked, confidence, -1.0), label)

    def named(self, batch: AVBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Text of the true names ``[B, S, D]``, which of them there are bool ``[B, S]``, and their numbers."""
        sounding = [True] * len(batch) if batch.sounding is None else batch.sounding.tolist()
        given = batch.label or [[]] * len(batch)
        for key, sounds, names in zip(batch.key, sounding, given, strict=True):
            if sounds and not any(names):
                raise ValueError(
                    f"TextGrounder: {key} has no class name, which the oracle must be told. Test it on a set with "
                    "labels, or give model.space, which finds a name by listening."
                )
        every = sorted({spoken(name) for names in given for name in names if name})
        S = max(1, *(len(names) for names in given)) if batch.class_id is None else batch.class_id.shape[1]
        rows = torch.full((len(batch), S), -1)
        for row, names in zip(rows, given, strict=True):
            row[: len(names)] = torch.tensor([every.index(spoken(name)) if name else -1 for name in names])
        rows = rows.to(batch.device)
        text = torch.cat([self.texts((name,)) for name in every or [""]])[rows.clamp(min=0)]
        there = rows >= 0
        asked = there & torch.tensor(sounding, device=rows.device)[:, None]
        if batch.class_id is None or not bool(((batch.class_id >= 0) == there).all()):
            return text, asked, None
        return text, asked, torch.where(asked, batch.class_id, -1)

    def nearest(self, batch: AVBatch, space: Space) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `named`, of the one class whose name is nearest to the sound."""
        classes = self.classes()
        read = self.embedded("space", [self.space_wording.format(name) for name in classes.names], space.read)
        place = (space.hear(batch.audio) @ read.T).argmax(1, keepdim=True)
        numbered = classes is self.of_set and min(classes.numbers) >= 0
        label = torch.tensor(classes.numbers, device=place.device)[place] if numbered else None
        return self.texts(classes.names)[place], torch.ones_like(place, dtype=torch.bool), label

    def texts(self, names: tuple[str, ...]) -> Tensor:
        """CLIP's embeddings ``[N, D]`` of names in their words, not normalised; computed once for the same names."""

        def read(texts: list[str]) -> Tensor:
            return self.grounder.encode_text(self.grounder.tokenize(texts).to(self.device)).float()

        return self.embedded("clipseg", [self.wording.format(name) for name in names], read)
