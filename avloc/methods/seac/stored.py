"""Masks and their CLIP features as rows of a feature store (`avloc.data.stored`), and how a batch of them looks.

A picture of n masks, 1 to N, the most confident box first, of features of width D and masks of G x G pixels:

==============  ================  =====================================================================
array           row               content
==============  ================  =====================================================================
features        float16 [n D]     CLIP mixtures f_n; at N = 50 and D = 1024, 100 KB
local, whole    float16 [n D]     instead of ``features`` where the parts of the mixtures are kept
boxes           int32 [4 n]       x1, y1, x2, y2 as fractions of the picture: the bits of float32 numbers
scores          float16 [n]       confidence of the box
count           int16             n
masks           uint8 [bytes]     deflated: rows of G pixels packed into bits, each XORed with the row above it
==============  ================  =====================================================================

What is XORed is zero but for outlines, so 50 masks of 224 x 224 pixels take some 10 to 20 KB instead of 314. Training
does not inflate them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from avloc.data.schema import SampleError

__all__ = ["MaskBatch", "PictureMasks", "Rows", "as_rows", "deflate", "filled", "inflate", "read"]

Rows = dict[str, Tensor | list[Tensor]]


@dataclass
class PictureMasks:
    """The masks of one picture.

    Attributes:
        embedded: ``features``, or ``local`` and ``whole``: ``[n, D]`` each.
        boxes: float32 ``[n, 4]``, fractions of the picture; may reach beyond it.
        scores: ``[n]``.
        bits: uint8 ``[n, G, ceil(G / 8)]``, rows as `numpy.packbits` packs them.
    """

    embedded: dict[str, Tensor]
    boxes: Tensor
    scores: Tensor
    bits: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass
class MaskBatch:
    """Masks of B pictures, filled up with zeros to the most of any of them.

    Attributes:
        embedded: ``features``, or ``local`` and ``whole``: ``[B, N, D]`` each.
        count: int64 ``[B]``, masks of each picture, 1 or more.
        boxes: float32 ``[B, N, 4]``, fractions of the picture.
        bits: uint8 ``[B, N, G, ceil(G / 8)]``; None where they were not asked for.
    """

    embedded: dict[str, Tensor]
    count: Tensor
    boxes: Tensor
    bits: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """bool ``[B, N]``, False for padding."""
        return torch.arange(self.boxes.shape[1], device=self.count.device) < self.count[:, None]


def as_rows(pictures: Sequence[PictureMasks]) -> Rows:
    """What a feature store takes of pictures of one or more masks each."""
    rows: Rows = {name: [p.embedded[name].flatten().half() for p in pictures] for name in pictures[0].embedded}
    # A store halves floats, and a box must be truncated to the same pixels again: its bits travel as integers.
    rows["boxes"] = [p.boxes.float().contiguous().view(torch.int32).flatten() for p in pictures]
    rows["scores"] = [p.scores.half() for p in pictures]
    rows["count"] = torch.tensor([len(p) for p in pictures], dtype=torch.int16)
    rows["masks"] = [torch.from_numpy(deflate(p.bits)) for p in pictures]
    return rows


def filled(rows: Rows) -> dict[str, Tensor]:
    """Rows as a store gives them back: with zeros up to the longest."""
    return {k: v if isinstance(v, Tensor) else pad_sequence(v, batch_first=True) for k, v in rows.items()}


def read(stored: Mapping[str, Tensor], names: Sequence[str], width: int, side: int, most: int, bits: bool) -> MaskBatch:
    """A batch of rows, with at most ``most`` masks of each picture.

    Args:
        stored: rows by name, filled up.
        names: of the pictures, for messages.
        width: D.
        side: G.
        most: N.
        bits: inflate the masks too.

    Raises:
        SampleError: these are no rows of masks, of features of another width, or damaged; names pictures and remedy.
    """
    embedded = {k: stored[k] for k in ("features", "local", "whole") if k in stored}
    if not embedded or not {"boxes", "count", "masks"} <= stored.keys():
        raise SampleError(f"{names[0]}, ... come with {sorted(stored)}, which are no masks of SeAC. {RENEW}")
    count = stored["count"].long()
    longest = stored["boxes"].shape[1] // 4
    for name, rows in embedded.items():
        if rows.shape[1] != longest * width:
            raise SampleError(
                f"{names[0]}, ...: stored {name} of up to {longest} masks have {rows.shape[1]} numbers, not "
                f"{longest} times the {width} of this CLIP. {RENEW}"
            )
    boxes = stored["boxes"].contiguous().view(torch.float32).unflatten(1, (-1, 4))
    return MaskBatch(
        {name: rows.unflatten(1, (-1, width))[:, :most] for name, rows in embedded.items()},
        count.clamp(max=most),
        boxes[:, :most],
        unpacked(stored["masks"], count.tolist(), side, min(most, longest), names) if bits else None,
    )


RENEW = "Delete the store's folder and run `avloc store` again."


def unpacked(masks: Tensor, count: Sequence[int], side: int, most: int, names: Sequence[str]) -> Tensor:
    """Bits ``[B, most, G, ceil(G / 8)]`` on the device of ``masks``."""
    out = np.zeros((len(count), most, side, -(-side // 8)), np.uint8)
    for row, packed, n, name in zip(out, masks.cpu().numpy(), count, names, strict=True):
        try:
            row[: min(n, most)] = inflate(packed, n, side)[:most]
        except (ValueError, zlib.error) as e:
            raise SampleError(f"{name}: its stored masks cannot be read ({e}). {RENEW}") from e
    return torch.from_numpy(out).to(masks.device)


def deflate(bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bits ``[n, G, ceil(G / 8)]`` as bytes."""
    outlines = bits.copy()
    outlines[:, 1:] ^= bits[:, :-1]
    return np.frombuffer(bytearray(zlib.compress(outlines.tobytes(), 9)), np.uint8)


def inflate(packed: NDArray[np.uint8], n: int, side: int) -> NDArray[np.uint8]:
    """Bits ``[n, G, ceil(G / 8)]`` of bytes, behind which there may be others.

    Raises:
        ValueError, zlib.error: other content than that.
    """
    shape = (n, side, -(-side // 8))
    limit = n * shape[1] * shape[2]
    out = zlib.decompressobj()
    content = out.decompress(packed.tobytes(), limit + 1)  # never more than promised
    if len(content) != limit or not out.eof:
        raise ValueError(f"masks of another size than {n} x {side} x {side}")
    return np.bitwise_xor.accumulate(np.frombuffer(content, np.uint8).reshape(shape), axis=1)
