"""What frozen towers share: they stay in eval mode, and the embedded world's are files of the suite's own making."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from avloc.backbones.tokens import Tokenizer
from avloc.weights import WeightError, WeightFile, read_metadata

__all__ = ["Tower", "header", "matrices_halved", "own_metadata"]

REMEDY = "Get the file that `avloc weights` names."


class Tower(nn.Module):
    """A network that is used as it was trained elsewhere.

    Attributes:
        frozen: `train` leaves the module in eval mode.
        file: where the weights came from.
    """

    frozen: bool = True
    file: WeightFile = WeightFile("random", None, "")

    def train(self, mode: bool = True) -> Self:
        """Train mode, unless the module is frozen."""
        return super().train(mode and not self.frozen)


def own_metadata(file: WeightFile, kind: str, named: str) -> dict[str, str] | None:
    """The metadata of a file that a tower's ``save_world`` wrote; None of an official file, and of ``random``.

    Args:
        file: any weight file.
        kind: of the towers that are looked for.
        named: the same for a message, with its article.

    Raises:
        WeightError: a file of the suite's own making holds another tower.
    """
    metadata = read_metadata(file.path) if file.path else {}
    if "kind" not in metadata:
        return None
    if metadata["kind"] != kind:
        raise WeightError(f"{file.path} holds a {metadata['kind']}, not {named}. {REMEDY}")
    return metadata


def header(kind: str, config: Any, tokenizer: Tokenizer | None = None) -> dict[str, str]:
    """Metadata by which ``from_source`` knows a tower, its sizes and its vocabulary again."""
    head = {"kind": kind, "config": json.dumps(config)}
    return head if tokenizer is None else head | {"tokenizer": tokenizer.serialise()}


def matrices_halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in half precision. Vectors stay as they are: they are few, and half precision has no bin
    128.37 of AudioCLIP's spectrogram."""
    return {k: (v.half() if v.ndim > 1 else v).cpu().contiguous() for k, v in state.items()}
