"""Which classes a method that knows no training asks about: a list of its own, or that of the set it is tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avloc.data.indexed import EvalSet
from avloc.data.labels import LABEL_SPACES
from avloc.methods.base import Localizer
from avloc.methods.tvsl.method import BACKGROUND, plain
from avloc.types import AVBatch, Localization

__all__ = ["ClassList", "ClassQuery", "classes_of", "read_classes", "spoken"]


@dataclass(frozen=True)
class ClassList:
    """Names and what a data set calls them.

    Attributes:
        names: as they are read by a text tower.
        numbers: of each, as in ``AVBatch.class_id``; -1 where the data set has none.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]

    def check(self, batch: AVBatch) -> None:
        """Labels of found classes would silently be read as others if the data set counted otherwise.

        Raises:
            ValueError: the batch gives one of the names another number.
        """
        if batch.class_id is None:
            return
        ours = {plain(name): number for name, number in zip(self.names, self.numbers, strict=True)}
        for key, names, numbers in zip(batch.key, batch.label, batch.class_id.tolist(), strict=False):
            for name, number in zip(names, numbers, strict=False):
                if number >= 0 and ours.get(plain(name), number) != number:
                    raise ValueError(
                        f"{key} numbers {name!r} as class {number}, the list of classes as {ours[plain(name)]}. Give "
                        "model.classes in the order of the data set's numbers, or leave it out."
                    )


def spoken(name: str) -> str:
    """A name as it is read by a text tower: lists of files put ``_`` for blanks."""
    return name.replace("_", " ").strip()


def read_classes(classes: str | Sequence[str]) -> ClassList:
    """A list of classes, numbered by place.

    Args:
        classes: a key of `LABEL_SPACES`, a file with one name a line, or names. A background at the head is counted
            and left out.

    Raises:
        ValueError: neither, no name, or a name twice.
    """
    if isinstance(classes, str):
        if classes in LABEL_SPACES:
            classes = LABEL_SPACES[classes]
        elif Path(classes).is_file():
            classes = [line.strip() for line in Path(classes).read_text().splitlines() if line.strip()]
        else:
            raise ValueError(
                f"model.classes {classes!r} is neither a label space ({', '.join(LABEL_SPACES)}) nor a file with one "
                "name a line."
            )
    first = int(tuple(classes[:1]) == (BACKGROUND,))
    names = tuple(spoken(name) for name in classes[first:])
    if not names:
        raise ValueError("model.classes is an empty list. Name a label space, or leave it out for the test set's own.")
    seen: dict[str, str] = {}
    for name in names:
        if plain(name) in seen:
            raise ValueError(f"model.classes has {name!r} twice (as {seen[plain(name)]!r}). Leave one out.")
        seen[plain(name)] = name
    return ClassList(names, tuple(range(first, first + len(names))))


def classes_of(data: EvalSet) -> ClassList | None:
    """The classes that a set's records name, by their numbers; None where they name none."""
    found = {(t.class_id, spoken(t.class_name)) for r in data.records for t in r.targets if t.class_name}
    numbers, names = zip(*sorted(found), strict=True) if found else ((), ())
    return ClassList(names, numbers) if names else None


class ClassQuery(Localizer):
    """A method that asks for each class of a list.

    Args:
        classes: a label space of `avloc.data.labels`, a text file with one name a line, or names; by default the
            classes of the set that is tested.
        otherwise: the same, for tested sets whose samples have no names.
    """

    def __init__(self, classes: str | list[str] | None = None, otherwise: str | list[str] | None = None) -> None:
        super().__init__()
        self.given = None if classes is None else read_classes(classes)
        self.otherwise = None if otherwise is None else read_classes(otherwise)
        self.of_set: ClassList | None = None
        self._texts: dict[tuple[str, ...], Tensor] = {}

    def classes(self) -> ClassList:
        """What is asked for now.

        Raises:
            ValueError: no list was given, and no set that names classes is being tested.
        """
        found = self.given or self.of_set or self.otherwise
        if found is None:
            raise ValueError(
                f"{type(self).__name__} must be told which classes to ask for: what it is shown names none. Set "
                "model.classes to a label space or a file with one name a line."
            )
        return found

    def embedded(self, tower: str, texts: Sequence[str], read: Callable[[list[str]], Tensor]) -> Tensor:
        """``[N, D]`` of texts by the ``read`` of a tower, once for the same texts."""
        key = (tower, *texts)
        if key not in self._texts:
            with torch.no_grad():
                self._texts[key] = read(list(texts))
        self._texts[key] = self._texts[key].to(self.device)
        return self._texts[key]

    def test_step(  # type: ignore[override]
        self, batch: AVBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> Localization:
        if self.given is None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            sets = data.val_sets if self.trainer.validating else data.test_sets
            self.of_set = classes_of(sets[dataloader_idx])
        return self.localize(batch)

    validation_step = test_step  # type: ignore[assignment]
    predict_step = test_step  # type: ignore[assignment]
