"""Which classes a method that knows no training asks about: a list of its own, or that of the set it is tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from avloc.data.indexed import EvalSet
from avloc.methods.base import Localizer
from avloc.methods.classes import BACKGROUND, ClassList, listed, repeated, spoken
from avloc.types import AVBatch, Localization

__all__ = ["ClassQuery", "classes_of", "read_classes"]


def read_classes(classes: str | Sequence[str]) -> ClassList:
    """A list of classes, numbered by place.

    Args:
        classes: a key of `LABEL_SPACES`, a file with one name a line, or names. A background at the head is counted
            and left out.

    Raises:
        ValueError: neither, no name, or a name twice.
    """
    given = listed(classes)
    first = int(given[:1] == [BACKGROUND])
    names = tuple(spoken(name) for name in given[first:])
    if not names:
        raise ValueError("model.classes is an empty list. Name a label space, or leave it out for the test set's own.")
    if twice := repeated(names):
        raise ValueError(f"model.classes has {twice[0]!r} twice (as {twice[1]!r}). Leave one out.")
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

    def class_names(self) -> dict[int, str]:
        """See `Localizer.class_names`."""
        found = self.given or self.of_set or self.otherwise
        return dict(zip(found.numbers, found.names, strict=True)) if found else {}

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
            self.of_set = classes_of(self.evaluated_sets()[dataloader_idx])
        return self.localize(batch)

    validation_step = test_step  # type: ignore[assignment]
    predict_step = test_step  # type: ignore[assignment]
