"""T-VSL's training step against the passes that it cannot do without, and four sources against two."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Literal

import torch

from avloc.backbones.clipseg import normalise
from avloc.bench.step import Result, count_flops, named, peak_of, seconds, under
from avloc.methods.tvsl import TVSL
from avloc.types import AVBatch

__all__ = ["build_tvsl", "measure_tvsl", "mixture_batch", "unavoidable_tvsl"]

WORLD = {"classes": "world16", "audioclip": "world:audioclip", "seconds": 2.0}
FULL = {"classes": "vggss221", "audioclip": "random"}


def build_tvsl(full_size: bool, **options: object) -> TVSL:
    """The method with the embedded world's towers, or at the published size with random weights."""
    return TVSL(**(FULL if full_size else WORLD) | options)  # type: ignore[arg-type]


def mixture_batch(model: TVSL, batch_size: int, sources: int, tiles: int) -> AVBatch:
    """Random mixtures of ``sources`` different classes under rows of ``tiles`` pictures."""
    spec = model.input_spec
    g = torch.Generator().manual_seed(0)
    image = torch.randint(256, (batch_size, 3, spec.image_size, tiles * spec.image_size), generator=g)
    audio = 0.1 * torch.randn(batch_size, spec.samples, generator=g)
    keys = [f"random{i}" for i in range(batch_size)]
    classes = torch.stack([torch.randperm(len(model.names), generator=g)[:sources] for _ in keys])
    index = torch.full((batch_size,), -1)
    return AVBatch(keys, image.to(torch.uint8), audio, index, class_id=classes).to(model.device)


def unavoidable_tvsl(model: TVSL, batch: AVBatch) -> Callable[[], None]:
    """What any implementation of the objective has to compute, whatever the number of sources: both towers once a
    sample, without graph; the projectors of their tokens and the class head, with their backward."""
    net, design = model.network, model.design

    def run() -> None:
        with torch.no_grad():
            image = model.towers.image_tokens(normalise(batch.image), design.positions)
            audio = model.towers.audio_tokens(batch.audio, design.audio_scale)
        tokens = net.prepare(image, audio)
        (tokens.visual.mean() + tokens.audio.mean() + net.class_logits(tokens.fused, model.bank()).mean()).backward()

    return run


def measure_tvsl(
    batch_size: int = 16, full_size: bool = False, steps: int = 3, precision: Literal["32", "bf16"] = "32"
) -> Result:
    """Measure; see `avloc.bench.command.bench_step` for the arguments.

    Returns:
        Of two sources under two pictures, as `avloc.bench.step.measure_step`; ``step4_s``, ``flops4`` and
        ``peak4_bytes`` of four sources under the same pictures, and ``sources_ratio``, their time over that of two.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_tvsl(full_size).to(device)
    learn, passes = under(model, precision)
    batches = {k: mixture_batch(model, batch_size, sources=k, tiles=2) for k in (2, 4)}

    def step(sources: int) -> Callable[[], None]:
        return lambda: learn(lambda: model.training_losses(batches[sources])["loss"])

    def unavoidable() -> None:
        passes(unavoidable_tvsl(model, batches[2]))

    two, four = step(2), step(4)
    for warm in (two, four, unavoidable):
        warm()
    peaks = [peak_of(run, device) for run in (two, four)]
    times = [[seconds(run, device) for run in (two, four, unavoidable)] for _ in range(steps)]
    two_s, four_s, unavoidable_s = (statistics.median(t) for t in zip(*times, strict=True))
    flops, flops4, unavoidable_flops = (count_flops(run) for run in (two, four, unavoidable))
    return {
        "method": "tvsl",
        "batch_size": batch_size,
        "size": "full" if full_size else "world",
        "precision": precision,
        "device": named(device),
        "step_s": two_s,
        "unavoidable_s": unavoidable_s,
        "time_ratio": two_s / unavoidable_s,
        "flops": flops,
        "unavoidable_flops": unavoidable_flops,
        "flops_ratio": flops / unavoidable_flops,
        "step4_s": four_s,
        "sources_ratio": four_s / two_s,
        "flops4": flops4,
        "flops4_ratio": flops4 / unavoidable_flops,
        "samples_per_s": batch_size / two_s,
        "peak_bytes": peaks[0],
        "peak4_bytes": peaks[1],
    }
