"""Classes that a method asks for by name: where lists come from, when two names are one, how they are numbered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from avloc.data.labels import LABEL_SPACES
from avloc.data.lists import text_lines
from avloc.types import AVBatch

__all__ = ["BACKGROUND", "ClassList", "known_sources", "listed", "plain", "repeated", "spoken"]

BACKGROUND = "background"


@dataclass(frozen=True)
class ClassList:
    """Names and what a data set calls them.

    Attributes:
        names: as they are read by a text tower.
        numbers: of each, as in ``AVBatch.class_id``; -1 where the data set has none.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]

    @cached_property
    def number(self) -> dict[str, int]:
        """Of each name, by its `plain` spelling."""
        return {plain(name): number for name, number in zip(self.names, self.numbers, strict=True)}

    def check(self, batch: AVBatch) -> None:
        """Labels of found classes would silently be read as others if the data set counted otherwise.

        Raises:
            ValueError: the batch gives one of the names another number.
        """
        if batch.class_id is None:
            return
        ours = self.number
        for key, names, numbers in zip(batch.key, batch.label, batch.class_id.tolist(), strict=False):
            for name, number in zip(names, numbers, strict=False):
                if number >= 0 and ours.get(plain(name), number) != number:
                    raise ValueError(
                        f"{key} numbers {name!r} as class {number}, the list of classes as {ours[plain(name)]}. Give "
                        "model.classes in the order of the data set's numbers."
                    )


def known_sources(batch: AVBatch) -> Tensor:
    """How many sources each sample is known to have, int64 ``[B]``; 0 where that is unknown."""
    if any(batch.label):
        return torch.tensor([len(names) for names in batch.label], device=batch.device)
    if batch.class_id is None:
        return torch.zeros(len(batch), dtype=torch.long, device=batch.device)
    return (batch.class_id >= 0).sum(1)


def spoken(name: str) -> str:
    """A name as it is read by a text tower: lists of files put ``_`` for blanks."""
    return name.replace("_", " ").strip()


def listed(classes: str | Sequence[str]) -> list[str]:
    """Names as they are given: a key of `LABEL_SPACES`, a file with one name a line, or names.

    Raises:
        ValueError: neither.
    """
    if not isinstance(classes, str):
        return list(classes)
    if classes in LABEL_SPACES:
        return list(LABEL_SPACES[classes])
    if Path(classes).is_file():
        return [line for _, line in text_lines(Path(classes))]
    raise ValueError(
        f"model.classes {classes!r} is neither a label space ({', '.join(LABEL_SPACES)}) nor a file with one "
        "name a line."
    )


def repeated(names: Sequence[str]) -> tuple[str, str] | None:
    """The first name that is an earlier one in another spelling, and that earlier one."""
    seen: dict[str, str] = {}
    for name in names:
        if plain(name) in seen:
            return name, seen[plain(name)]
        seen[plain(name)] = name
    return None


def plain(name: str) -> str:
    """What two spellings of a name have in common: list files put ``_`` for commas and blanks."""
    return re.sub(r"[\W_]+", " ", name).strip().lower()
