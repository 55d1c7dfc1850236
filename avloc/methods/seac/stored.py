"""Masks and their CLIP features as one member of a shard, ``masks.f<i>.safetensors``, and how a batch of them looks.

===========  ==================  =========================================================================
tensor       type, shape         content, for n masks, 1 to N, the most confident box first
===========  ==================  =========================================================================
features     float16 [n, D]      CLIP mixtures f_n; at N = 50 and D = 1024, 100 KB
boxes        float32 [n, 4]      x1, y1, x2, y2 as fractions of the picture; may reach beyond it
scores       float16 [n]         confidence of the box
masks        uint8 [bytes]       deflated: rows of G pixels packed into bits, each XORed with the row above it
===========  ==================  =========================================================================

The file's metadata hold ``side`` (G), ``recipe`` (what the features depend on: weights and preprocessing) and
``origin`` (where the masks come from). What is XORed is zero but for outlines, so 50 masks of 224 x 224 pixels take
some 10 to 20 KB instead of 314. Training reads the features alone and does not inflate the masks.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from avloc.data.schema import SampleError

__all__ = ["MaskBatch", "StoredMasks", "decode", "encode", "member", "stack"]

VERSION = 1


@dataclass
class StoredMasks:
    """The masks of one picture.

    Attributes:
        features: ``[n, D]``, float16 once stored.
        boxes: float32 ``[n, 4]``, fractions of the picture.
        scores: float16 ``[n]``.
        bits: uint8 ``[n, G, ceil(G / 8)]``, rows as `numpy.packbits` packs them; None where they were not read.
        side: G.
    """

    features: NDArray[np.floating]
    boxes: NDArray[np.float32]
    scores: NDArray[np.floating]
    bits: NDArray[np.uint8] | None
    side: int


@dataclass
class MaskBatch:
    """Masks of B pictures, filled up to the most of any of them.

    Attributes:
        features: float16 ``[B, N, D]``, zero for padding.
        count: int64 ``[B]``, masks of each picture, 1 or more.
        boxes: float32 ``[B, N, 4]``.
        bits: uint8 ``[B, N, G, ceil(G / 8)]``; None in training.
        side: G.
    """

    features: Tensor
    count: Tensor
    boxes: Tensor
    bits: Tensor | None = None
    side: int = 0

    @property
    def valid(self) -> Tensor:
        """bool ``[B, N]``, False for padding."""
        return torch.arange(self.features.shape[1], device=self.count.device) < self.count[:, None]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MaskBatch:
        """The same with every tensor on ``device``."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MaskBatch:
        return self._map(lambda x: x.pin_memory())

    def take(self, rows: Sequence[int]) -> MaskBatch:
        """The pictures ``rows``, in that order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return self._map(lambda x: x[index.to(x.device)])

    def _map(self, function: Callable[[Tensor], Tensor]) -> MaskBatch:
        bits = None if self.bits is None else function(self.bits)
        return MaskBatch(function(self.features), function(self.count), function(self.boxes), bits, self.side)


def member(frame: int) -> str:
    """Name of the member of a record's frame."""
    return f"masks.f{frame}.safetensors"


def encode(masks: StoredMasks, recipe: str, origin: str = "") -> bytes:
    """The bytes of a member.

    Args:
        masks: one or more, with bits.
        recipe: see `decode`.
        origin: where the masks come from, for people.

    Raises:
        ValueError: no mask at all, lengths that do not agree, or features that float16 cannot hold.
    """
    n, bits = len(masks.features), masks.bits
    shape = (n, masks.side, -(-masks.side // 8))
    if not n or bits is None or bits.shape != shape or not n == len(masks.boxes) == len(masks.scores):
        raise ValueError(
            f"{n} features, {len(masks.boxes)} boxes, {len(masks.scores)} scores and bits "
            f"{None if bits is None else list(bits.shape)} (wanted {list(shape)}): store one or more masks with each."
        )
    with np.errstate(over="ignore"):
        features = masks.features.astype(np.float16)
    if not np.isfinite(features).all():
        raise ValueError("Features of masks hold NaN, or numbers beyond float16. Compute them in float32.")
    outlines = bits.copy()
    outlines[:, 1:] ^= bits[:, :-1]
    tensors: dict[str, NDArray[Any]] = {
        "features": np.ascontiguousarray(features),
        "boxes": np.ascontiguousarray(masks.boxes, np.float32),
        "scores": np.ascontiguousarray(masks.scores, np.float16),
        "masks": np.frombuffer(zlib.compress(outlines.tobytes(), 9), np.uint8),
    }
    head = {"version": str(VERSION), "side": str(masks.side), "recipe": recipe, "origin": origin}
    return safetensors.numpy.save(tensors, metadata=head)


def decode(data: bytes, name: str, recipe: str | None = None, masks: bool = True) -> StoredMasks:
    """Read a member.

    Args:
        data: its bytes.
        name: for messages.
        recipe: what the method's features are made of (`avloc.methods.seac.embed.Mixture.recipe`); None for any.
        masks: inflate the masks too.

    Raises:
        avloc.data.schema.SampleError: damaged, of another version, empty, or of another recipe; names the member and
            both recipes.
    """
    try:
        (length,) = struct.unpack("<Q", data[:8])
        head = json.loads(data[8 : 8 + length])["__metadata__"]
        version, side = int(head["version"]), int(head["side"])
        if version != VERSION:
            raise ValueError(f"version {version} is unknown, avloc reads {VERSION}")
        tensors = safetensors.numpy.load(data)
        features, boxes, scores = (tensors[k] for k in ("features", "boxes", "scores"))
        n = len(features)
        if not n or features.ndim != 2 or boxes.shape != (n, 4) or scores.shape != (n,):
            raise ValueError(f"{list(features.shape)} features, {list(boxes.shape)} boxes, {list(scores.shape)} scores")
        if not (np.isfinite(features).all() and np.isfinite(boxes).all()):
            raise ValueError("features or boxes that are NaN or infinite")
        bits = inflate(tensors["masks"], n, side) if masks else None
    except (ValueError, KeyError, struct.error, zlib.error, safetensors.SafetensorError) as e:
        raise SampleError(f"{name} holds no masks that can be read ({e}). Run data_prep.seac_masks again.") from e
    if recipe is not None and head.get("recipe") != recipe:
        raise SampleError(
            f"{name} was computed with {head.get('recipe')}, but the method wants {recipe}. Run data_prep.seac_masks "
            "with the method's CLIP and mixture, or configure the method with those of the shards."
        )
    return StoredMasks(features, boxes, scores, bits, side)


def inflate(packed: NDArray[np.uint8], n: int, side: int) -> NDArray[np.uint8]:
    """Bits ``[n, G, ceil(G / 8)]``."""
    shape = (n, side, -(-side // 8))
    limit = n * shape[1] * shape[2]
    out = zlib.decompressobj()
    content = out.decompress(packed.tobytes(), limit + 1)  # never more than promised
    if len(content) != limit or not out.eof:
        raise ValueError(f"masks of another size than {n} x {side} x {side}")
    return np.bitwise_xor.accumulate(np.frombuffer(content, np.uint8).reshape(shape), axis=1)


def stack(items: Sequence[StoredMasks]) -> MaskBatch:
    """A batch, filled up with zeros.

    Raises:
        SampleError: features of different widths, or masks of different sides.
    """
    widths, sides = ({i.features.shape[1] for i in items}, {i.side for i in items if i.bits is not None})
    if len(widths) > 1 or len(sides) > 1:
        raise SampleError(
            f"Stored masks of one batch have features of {sorted(widths)} and sides of {sorted(sides)}: they come from "
            "different runs of data_prep.seac_masks. Write the set again."
        )
    most = max(len(i.features) for i in items)

    def filled(arrays: list[NDArray[Any]]) -> Tensor:
        out = np.zeros((len(arrays), most, *arrays[0].shape[1:]), arrays[0].dtype)
        for row, array in zip(out, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(out)

    bits = [i.bits for i in items if i.bits is not None]
    return MaskBatch(
        filled([i.features for i in items]),
        torch.tensor([len(i.features) for i in items]),
        filled([i.boxes for i in items]),
        filled(bits) if len(bits) == len(items) else None,
        items[0].side,
    )
