"""Object phrases in CLIP's space: what the fourth loss of ACL-SSL pulls the audio-driven embedding towards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from avloc.backbones.clipseg import CLIPSeg

__all__ = ["PhraseEmbeddings", "phrase_ids"]


class PhraseEmbeddings:
    """Embeddings C of phrases by the frozen text tower, each distinct phrase computed once.

    Args:
        tower: a frozen CLIPSeg.
        template: words around the phrase, ``{}`` marking its place; the bare phrase by default.
        most: phrases that are kept, 2 KB each at CLIP's size; the oldest give way.

    Raises:
        ValueError: the template has not exactly one ``{}``.
    """

    def __init__(self, tower: CLIPSeg, template: str = "{}", most: int = 50_000) -> None:
        if template.count("{}") != 1:
            raise ValueError(f"phrase_template must hold {{}} exactly once, where the phrase goes; got {template!r}.")
        self.tower, self.template, self.most = tower, template, most
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, phrases: Sequence[str]) -> Tensor:
        """C float32 ``[B, D]`` on the tower's device, not normalised and without gradient; zeros for ""."""
        device = self.tower.clip.text_projection.weight.device
        new = list(dict.fromkeys(p for p in phrases if p and p not in self.known))
        if new:
            with torch.autocast(device.type, enabled=False):
                embedded = self.tower.encode_text(self.tokenize(new).to(device)).float().cpu()
            self.known |= dict(zip(new, embedded, strict=True))
        nothing = torch.zeros(self.tower.width)
        C = torch.stack([self.known[p] if p else nothing for p in phrases])
        for oldest in list(self.known)[: max(0, len(self.known) - self.most)]:
            del self.known[oldest]
        return C.to(device)

    def tokenize(self, phrases: Sequence[str]) -> Tensor:
        """Ids ``[N, L]``; of a phrase that is too long for the tower, the beginning, and the end of text."""
        ids = self.tower.tokenize([self.template.format(p) for p in phrases])
        longest = len(self.tower.clip.text_model.embeddings.position_embedding.weight)
        if ids.shape[1] > longest:
            end = ids.max()
            cut = (ids[:, :longest] != end).all(1)
            ids = ids[:, :longest].clone()
            ids[cut, -1] = end
        return ids


def phrase_ids(phrases: Sequence[str]) -> Tensor:
    """int64 ``[B]``: equal phrases have equal numbers in every process; 0 for none."""
    digests = [hashlib.blake2b(p.encode(), digest_size=8).digest() if p else bytes(8) for p in phrases]
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64)
