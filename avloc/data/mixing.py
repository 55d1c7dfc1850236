"""Mixtures made of a batch: pictures side by side, sounds summed (T-VSL).

For training alone. Mixtures that are evaluated are records of their own, see `avloc.data.mixtures`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from avloc.types import AVBatch

__all__ = ["draw_partners", "mix_at_random", "mix_batch", "range_of", "sources_of", "sum_sounds"]


def sources_of(batch: AVBatch) -> list[Hashable]:
    """The class of each sample's one source: its name, else its number.

    Raises:
        ValueError: a sample without class, or with several sources.
    """
    numbers: list[list[int]] = [[]] * len(batch) if batch.class_id is None else batch.class_id.tolist()
    found: list[Hashable] = []
    for i, (key, row) in enumerate(zip(batch.key, numbers, strict=True)):
        named: list[Hashable] = [name for name in batch.label[i] if name] if batch.label else []
        classes = named or [c for c in row if c >= 0]
        if len(classes) != 1:
            raise ValueError(
                f"{key} has {len(classes) or 'no'} known sources; mixtures are made of samples with one. Train on a "
                "set of labelled single sources, or switch the mixing off."
            )
        found.append(classes[0])
    return found


def draw_partners(classes: Sequence[Hashable], sources: int, generator: torch.Generator | None = None) -> Tensor:
    """What each sample of a batch is mixed with.

    Args:
        classes: of B samples.
        sources: K, samples of a mixture.
        generator: of the draws; torch's own by default, which a training step seeds by its samples.

    Returns:
        int64 ``[B, K]`` on the CPU. Row b begins with b itself; each further one is drawn uniformly from the samples of
        classes that its row does not have yet.

    Raises:
        ValueError: there are fewer than K classes in the batch.
    """
    distinct = {c: i for i, c in enumerate(dict.fromkeys(classes))}
    if len(distinct) < sources:
        raise ValueError(
            f"A batch of {len(classes)} samples of {len(distinct)} classes has no mixtures of {sources}, whose classes "
            "must all differ. Use a larger batch_size (of each process), or mix fewer."
        )
    number = torch.tensor([distinct[c] for c in classes])
    rows = torch.arange(len(number))[:, None]
    for _ in range(sources - 1):
        taken = (number[rows][:, :, None] == number).any(1)  # [B, B]
        order = torch.rand(len(number), len(number), generator=generator).masked_fill(taken, -1)
        rows = torch.cat([rows, order.argmax(1, keepdim=True)], dim=1)
    return rows


def range_of(mixed: int | tuple[int, int]) -> tuple[int, int]:
    """The least and the largest number of samples of a mixture.

    Raises:
        ValueError: less than one sample, or none between the two.
    """
    least, most = (mixed, mixed) if isinstance(mixed, int) else mixed
    if not 1 <= least <= most:
        raise ValueError(f"mixed counts the samples of a mixture, 1 or more, or [least, most]; got {mixed}.")
    return least, most


def mix_at_random(batch: AVBatch, least: int, most: int) -> AVBatch:
    """Each sample with partners of other classes; the number is one for the batch, drawn by torch's own generator.

    Args:
        batch: single sources.
        least: samples of a mixture, at least.
        most: at most; 1 leaves the batch as it is.

    Raises:
        ValueError: see `sources_of`, `draw_partners` and `mix_batch`.
    """
    if most == 1:
        return batch
    K = least if least == most else int(torch.randint(least, most + 1, ()))
    return mix_batch(batch, draw_partners(sources_of(batch), K))


def sum_sounds(waveform: Tensor, rows: Tensor) -> Tensor:
    """Plain sums of waveforms ``[B, T]`` over the K samples of each row ``[M, K]``, ``[M, T]``: neither rescaled nor
    clipped."""
    return waveform[rows].sum(1)


def mix_batch(batch: AVBatch, rows: Tensor) -> AVBatch:
    """A batch of M mixtures of K single-source samples.

    Args:
        batch: B samples of one source and one picture each.
        rows: int64 ``[M, K]``, the samples of each mixture from left to right.

    Returns:
        pictures ``[M, 3, H, K W]``, summed sounds, ``class_id`` ``[M, K]``, ``truth`` ``[M, K, G, K G']`` with each
        source in its own tile; the key is those of the samples, joined by ``+``.

    Raises:
        ValueError: samples of several sources or frames, padded pictures, or stored features, which are those of the
            single pictures.
    """
    what = {
        "several sources": any(x is not None and x.shape[1] > 1 for x in (batch.class_id, batch.truth)),
        "several frames": batch.image.ndim != 4,
        "padded pictures": batch.size is not None,
        "stored features": bool(batch.stored),
    }
    if wrong := [name for name, there in what.items() if there]:
        raise ValueError(
            f"{batch.key[0]}, ...: samples with {wrong[0]} cannot be mixed. Switch that or the mixing off."
        )
    M, K = rows.shape
    names = [[batch.key[i] for i in row] for row in rows.tolist()]
    index = rows.to(batch.device, non_blocking=True)

    def side_by_side(x: Tensor) -> Tensor:
        return torch.cat(x[index].unbind(1), dim=-1)

    truth = None
    if batch.truth is not None:
        tiles = batch.truth[:, 0][index]  # [M, K, G, G']
        own = torch.eye(K, device=tiles.device)[:, None, :, None]
        truth = (tiles[:, :, :, None] * own).flatten(3)
    return replace(
        batch,
        key=["+".join(n) for n in names],
        image=side_by_side(batch.image),
        audio=sum_sounds(batch.audio, index),
        index=batch.index.new_full((M,), -1),
        truth=truth,
        semantic=None if batch.semantic is None else side_by_side(batch.semantic),
        class_id=None if batch.class_id is None else batch.class_id[:, 0][index],
        sounding=None if batch.sounding is None else batch.sounding[index].any(1),
        label=[[name for i in row for name in batch.label[i]] for row in rows.tolist()] if batch.label else [],
        caption=[" ".join(batch.caption[i] for i in row) for row in rows.tolist()] if batch.caption else [],
        phrase=[" and ".join(p for i in row if (p := batch.phrase[i])) for row in rows.tolist()]
        if batch.phrase
        else [],
        negative=[""] * M,
        group=[""] * M,
        group_size=[1] * M,
        video=[""] * M,
    )
