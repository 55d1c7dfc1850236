"""SeAC's training step from stored features: what VGGish and the association module take of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Literal

import torch

from avloc.bench.step import Result, count_flops, named, peak_of, seconds, under
from avloc.methods.seac import SeAC
from avloc.methods.seac.method import Mixing
from avloc.methods.seac.network import Design
from avloc.types import AVBatch

__all__ = ["build_seac", "measure_seac", "stored_batch", "unavoidable_seac"]

WORLD = {
    "clip": "world:openclip",
    "vggish": "world:vggish",
    "design": Design(layers=2, heads=4, hidden=128, size=64),
    "count": 16,
    "seconds": 2.0,
}
FULL = {"clip": "random", "vggish": "random"}


def build_seac(full_size: bool, **options: object) -> SeAC:
    """The method with the embedded world's towers, or at the published size with random weights; without mixing, so
    that every step hears every sound."""
    settings = (FULL if full_size else WORLD) | {"mixing": Mixing(0.0, 0.0)} | options
    return SeAC(**settings)  # type: ignore[arg-type]


def stored_batch(model: SeAC, batch_size: int) -> AVBatch:
    """Random sounds beside random features of N masks each, as they are stored."""
    g = torch.Generator().manual_seed(0)
    n, width, spec = model.count, model.network.mask_size, model.input_spec
    stored = {
        "features": torch.randn(batch_size, n * width, generator=g).half(),
        "boxes": torch.rand(batch_size, 4 * n, generator=g).view(torch.int32),
        "scores": torch.rand(batch_size, n, generator=g).half(),
        "count": torch.full((batch_size,), n, dtype=torch.int16),
        "masks": torch.zeros(batch_size, 1, dtype=torch.uint8),
    }
    audio = 0.1 * torch.randn(batch_size, spec.samples, generator=g)
    image = torch.zeros(batch_size, 3, 0, 0, dtype=torch.uint8)
    keys = [f"random{i}" for i in range(batch_size)]
    return AVBatch(keys, image, audio, torch.full((batch_size,), -1), stored=stored).to(model.device)


def unavoidable_seac(model: SeAC, batch: AVBatch) -> tuple[Callable[[], None], Callable[[], None]]:
    """What any implementation of the objective has to compute for B samples of N masks, in two passes.

    Returns:
        VGGish over every sound, without graph. And the association module: the mask encoder and both projections over
        B x N masks and B sounds, all B x N x B similarities, with their backward.
    """
    net = model.network
    with torch.no_grad():
        heard = model.vggish(batch.audio)
    masks = model.masks(batch, pixels=False)

    def vggish() -> None:
        with torch.no_grad():
            model.vggish(batch.audio)

    def association() -> None:
        S = net.embed_masks(masks.embedded["features"], masks.valid) @ net.embed_audio(heard).T
        S.float().mean().backward()

    return vggish, association


def measure_seac(
    batch_size: int = 8, full_size: bool = False, steps: int = 3, precision: Literal["32", "bf16"] = "32"
) -> Result:
    """Measure; see `avloc.bench.command.bench_step` for the arguments.

    Returns:
        As `avloc.bench.step.measure_step` where it applies, and of VGGish and the association module: ``..._s``,
        ``..._share`` of the step's time, ``..._flops_share``. ``rest_share`` is that of loss, optimiser and what
        unpacks features.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_seac(full_size).to(device)
    batch = stored_batch(model, batch_size)
    learn, passes = under(model, precision)
    vggish_pass, association_pass = unavoidable_seac(model, batch)

    def step() -> None:
        learn(lambda: model.training_losses(batch)["loss"])

    def vggish() -> None:
        passes(vggish_pass)

    def association() -> None:
        passes(association_pass)

    for warm in (step, vggish, association):
        warm()
    peak = peak_of(step, device)
    times = [[seconds(run, device) for run in (step, vggish, association)] for _ in range(steps)]
    step_s, vggish_s, association_s = (statistics.median(t) for t in zip(*times, strict=True))
    flops, vggish_flops, association_flops = (count_flops(run) for run in (step, vggish, association))
    unavoidable_s, unavoidable_flops = vggish_s + association_s, vggish_flops + association_flops
    return {
        "method": "seac",
        "batch_size": batch_size,
        "masks": model.count,
        "size": "full" if full_size else "world",
        "precision": precision,
        "device": named(device),
        "step_s": step_s,
        "vggish_s": vggish_s,
        "vggish_share": vggish_s / step_s,
        "association_s": association_s,
        "association_share": association_s / step_s,
        "rest_share": 1 - unavoidable_s / step_s,
        "unavoidable_s": unavoidable_s,
        "time_ratio": step_s / unavoidable_s,
        "flops": flops,
        "vggish_flops_share": vggish_flops / flops,
        "association_flops_share": association_flops / flops,
        "unavoidable_flops": unavoidable_flops,
        "flops_ratio": flops / unavoidable_flops,
        "samples_per_s": batch_size / step_s,
        "peak_bytes": peak,
    }
