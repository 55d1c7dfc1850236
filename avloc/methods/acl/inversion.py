"""Text inversion: which class phrases lie nearest to what a method makes of a sound in CLIP's text space.

ACL-SSL shows what its audio-driven embedding says by decoding it to a sentence. That decoder (CapDec, trained on
captions of GAMA) is not built here: the nearest of a list of phrases need no training and can be checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from avloc.data.labels import LABEL_SPACES
from avloc.data.lists import text_lines
from avloc.methods.classes import spoken
from avloc.types import AVBatch

__all__ = [
    "Heard",
    "HearsInText",
    "PhraseListError",
    "class_phrases",
    "default_phrases",
    "heard_as",
    "nearest",
    "read_phrases",
]

Heard = list[tuple[str, float]]
"""Phrases with their cosine, the nearest first."""


class PhraseListError(ValueError):
    """A list of phrases that cannot be read."""


@runtime_checkable
class HearsInText(Protocol):
    """A method whose sounds and phrases meet in one space. Whatever method has both can be read."""

    embed_phrases: Any
    """From N phrases to float ``[N, D]``."""

    def embed_sound(self, batch: AVBatch) -> Tensor:
        """Float ``[B, D]``."""
        ...


@torch.no_grad()
def heard_as(
    method: object, batch: AVBatch, phrases: Sequence[str], k: int = 3, said: Tensor | None = None
) -> list[Heard] | None:
    """What each sound of a batch is heard as; None for a method that cannot be read or without phrases.

    Args:
        method: in eval mode.
        batch: on the method's device.
        phrases: to choose from.
        k: how many to name.
        said: ``[B, D]`` of ``embed_sound``, where `localize` gave it already (`Localization.said`).
    """
    if not isinstance(method, HearsInText) or not phrases or not k:
        return None
    return nearest(method.embed_sound(batch) if said is None else said, method.embed_phrases(phrases), phrases, k)


def nearest(sounds: Tensor, texts: Tensor, phrases: Sequence[str], k: int = 3) -> list[Heard]:
    """The k phrases with the highest cosine to each sound.

    Args:
        sounds: ``[B, D]``.
        texts: ``[N, D]``, one for each phrase.
        phrases: N of them.
    """
    cosine = F.normalize(sounds.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    value, place = cosine.topk(min(k, len(phrases)), dim=-1)
    rows = zip(place.tolist(), value.tolist(), strict=True)
    return [[(phrases[i], v) for i, v in zip(where, values, strict=True)] for where, values in rows]


def class_phrases(data: Any) -> list[str]:
    """The class names of an evaluation set, as phrases, sorted; [] where it names fewer than two."""
    names = (t.class_name for record in getattr(data, "records", ()) for t in record.targets)
    found = distinct(names)
    return found if len(found) > 1 else []


def default_phrases(method: Any) -> list[str]:
    """The embedded world's classes for a method on its towers, else VGG-SS's."""
    sources = [file.source for file in getattr(method, "frozen_files", {}).values()]
    space = "world16" if any(source.startswith("world:") for source in sources) else "vggss221"
    return distinct(LABEL_SPACES[space])


def read_phrases(path: Path) -> list[str]:
    """One phrase a line; empty lines are left out.

    Raises:
        PhraseListError: the file is missing or holds no phrase.
    """
    try:
        found = [line for _, line in text_lines(path)]
    except (OSError, ValueError) as e:
        raise PhraseListError(f"{path} cannot be read as phrases ({e}). Write one phrase a line, in UTF-8.") from e
    if not found:
        raise PhraseListError(f"{path} holds no phrase. Write one phrase a line.")
    return list(dict.fromkeys(found))


def distinct(names: Iterable[str]) -> list[str]:
    return sorted({spoken(name) for name in names} - {""})
