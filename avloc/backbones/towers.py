"""What frozen towers share: they stay in eval mode, and the embedded world's are files of the suite's own making."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors.torch import save_file
from torch import Tensor, nn

from avloc.backbones.tokens import Tokenizer, world_tokenizer
from avloc.weights import WeightError, WeightFile, read_metadata

__all__ = ["Joint", "Tower", "header", "matrices_halved", "own_metadata", "own_parts"]

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


def own_parts(file: WeightFile, kind: str, named: str) -> tuple[Any, Tokenizer] | None:
    """Sizes and vocabulary in a file that `save_world` wrote; arguments and errors as of `own_metadata`."""
    own = own_metadata(file, kind, named)
    return None if own is None else (json.loads(own["config"]), world_tokenizer(own["tokenizer"]))


class Joint:
    """Towers of several kinds whose embeddings are compared, in one module; a file of the suite's own making holds all.

    Attributes:
        kind: by which such a file is known.
        config: a dataclass of sizes, among them ``embed_dim``.
        tokenizer: turns text into ids.
    """

    kind: ClassVar[str]
    config: Any
    tokenizer: Tokenizer | None

    @property
    def width(self) -> int:
        """D: size of the joint embedding."""
        return self.config.embed_dim

    def save_world(self, path: Path, **metadata: str) -> None:
        """Write safetensors with configuration and tokenizer inside; see `matrices_halved`."""
        assert isinstance(self, nn.Module)
        assert self.tokenizer is not None
        head = header(self.kind, asdict(self.config), self.tokenizer)
        save_file(matrices_halved(self.state_dict()), path, metadata=head | metadata)


def header(kind: str, config: Any, tokenizer: Tokenizer | None = None) -> dict[str, str]:
    """Metadata by which ``from_source`` knows a tower, its sizes and its vocabulary again."""
    head = {"kind": kind, "config": json.dumps(config)}
    return head if tokenizer is None else head | {"tokenizer": tokenizer.serialise()}


def matrices_halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in half precision. Vectors stay as they are: they are few, and half precision has no bin
    128.37 of AudioCLIP's spectrogram."""
    return {k: (v.half() if v.ndim > 1 else v).cpu().contiguous() for k, v in state.items()}
