"""A training step against the passes that it cannot do without, from one run on one machine."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avloc.backbones.clipseg import normalise
from avloc.methods.acl import ACL
from avloc.methods.base import Localizer
from avloc.methods.souple import SOUPLE
from avloc.types import AVBatch

__all__ = [
    "Result",
    "against",
    "build",
    "count_flops",
    "measure_step",
    "named",
    "peak_of",
    "print_result",
    "random_batch",
    "seconds",
    "unavoidable_passes",
    "under",
]

Result = dict[str, float | int | str]

WORLD = {
    "clipseg": "world:clipseg",
    "beats": "world:beats",
    "image_size": 64,
    "seconds": 2.0,
    "feature_layers": (1, 2, 3),
}
FULL = {"clipseg": "random", "beats": "random"}


def build(method: Literal["acl", "souple"], full_size: bool, **options: object) -> ACL:
    """The method with the embedded world's towers, or at the published size with random weights."""
    kind = SOUPLE if method == "souple" else ACL
    return kind(**(FULL if full_size else WORLD) | options)  # type: ignore[arg-type]


def random_batch(model: ACL, batch_size: int) -> AVBatch:
    spec = model.input_spec
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (batch_size, 3, spec.image_size, spec.image_size), generator=generator)
    audio = 0.1 * torch.randn(batch_size, spec.samples, generator=generator)
    keys = [f"random{i}" for i in range(batch_size)]
    return AVBatch(keys, image.to(torch.uint8), audio, torch.full((batch_size,), -1)).to(model.device)


def unavoidable_passes(model: ACL, batch: AVBatch) -> None:
    """What any implementation of the objective has to compute for B samples.

    BEATs once per sound; the audio projection and the text tower with their backward, once per sound (once per pair
    where a prompt depends on the picture that is asked); the vision tower once per clean picture without graph, and
    once per masked picture with the backward to its pixels; the mask decoder on B x B pairs with the backward to the
    embeddings.
    """
    net = model.network
    image = normalise(batch.image)
    features = net.see(image)
    M = net.mask_logits(features.reduced, net.ask(features, net.hear(batch.audio)))
    pixels = image.detach().requires_grad_()
    pooled = net.av_grounder.encode_image(pixels, pooled=True).pooled
    assert pooled is not None
    (M.mean() + pooled.float().mean()).backward()


def measure_step(
    method: Literal["acl", "souple"] = "souple",
    batch_size: int = 8,
    full_size: bool = False,
    steps: int = 3,
    precision: Literal["32", "bf16"] = "32",
    recompute: bool = False,
    compile: bool = False,
) -> Result:
    """Measure; see `avloc.bench.command.bench_step` for the arguments.

    Returns:
        ``step_s``, ``unavoidable_s`` (medians), ``time_ratio``, ``flops``, ``unavoidable_flops``, ``flops_ratio``,
        ``samples_per_s``, ``peak_bytes`` (CUDA's peak, or the process's on a CPU), and what was run on what.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(method, full_size, recompute=recompute, compile_towers=compile).to(device)
    batch = random_batch(model, batch_size)
    told = against(model, batch, lambda: unavoidable_passes(model, batch), precision, steps)
    return {"method": method, "size": "full" if full_size else "world"} | told


def against(
    model: Localizer,
    batch: AVBatch,
    unavoidable: Callable[[], object],
    precision: Literal["32", "bf16"],
    steps: int,
    **others: Callable[[], object],
) -> Result:
    """An update of a model beside what it cannot do without, in turn.

    Args:
        model: in training mode, on its device.
        batch: on the same.
        unavoidable: passes with their backward.
        precision: of the autocast.
        steps: timed repetitions; medians are told.
        others: further updates that are timed, ``NAME_s`` and ``NAME_ratio``, its multiple of ours.

    Returns:
        See `measure_step`.
    """
    learn, passes = under(model, precision)

    def step() -> None:
        learn(lambda: model.training_losses(batch)["loss"])

    def least() -> None:
        passes(unavoidable)

    runs = {"step": step, "unavoidable": least} | others
    for run in runs.values():
        run()  # warms up
    peak = peak_of(step, model.device)
    times = [[seconds(run, model.device) for run in runs.values()] for _ in range(steps)]
    took = dict(zip(runs, (statistics.median(t) for t in zip(*times, strict=True)), strict=True))
    flops, unavoidable_flops = count_flops(step), count_flops(least)
    return {
        "batch_size": len(batch),
        "precision": precision,
        "device": named(model.device),
        "step_s": took["step"],
        "unavoidable_s": took["unavoidable"],
        "time_ratio": took["step"] / took["unavoidable"],
        **{f"{name}_s": took[name] for name in others},
        **{f"{name}_ratio": took[name] / took["step"] for name in others},
        "flops": flops,
        "unavoidable_flops": unavoidable_flops,
        "flops_ratio": flops / unavoidable_flops,
        "samples_per_s": len(batch) / took["step"],
        "peak_bytes": peak,
    }


def under(
    model: Localizer, precision: Literal["32", "bf16"]
) -> tuple[Callable[[Callable[[], Tensor]], None], Callable[[Callable[[], object]], None]]:
    """How a model learns in a benchmark, and what passes are compared with it under the same autocast.

    Returns:
        learn: an update of the optimiser from the loss that a function computes.
        passes: a function that does its own backward, from no gradients.
    """
    optimizer = model.configure_optimizers()

    def autocast() -> torch.autocast:
        return torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")

    def learn(loss_of: Callable[[], Tensor]) -> None:
        with autocast():
            loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def passes(run: Callable[[], object]) -> None:
        optimizer.zero_grad()
        with autocast():
            run()

    return learn, passes


def named(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def peak_of(run: Callable[[], None], device: torch.device) -> int:
    """Bytes: CUDA's peak during ``run``, or the process's resident memory at its highest.

    Linux forgets earlier peaks of a process when it is asked to; elsewhere this is the highest since the process began.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    run()
    try:
        (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def count_flops(run: Callable[[], object]) -> int:
    # Fused attention on a CPU has no formula in the counter; the plain one is made of counted products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return int(counter.get_total_flops())


def print_result(result: Result | list[Result], as_json: bool) -> None:
    """One measurement as fields below each other, several as the rows of a table; or JSON."""
    if as_json:
        print(json.dumps(result))
        return
    if isinstance(result, list):
        table = Table(*result[0], title="avloc bench")
        for row in result:
            table.add_row(*(shown(value) for value in row.values()))
    else:
        table = Table("field", "value", title="avloc bench")
        for name, value in result.items():
            table.add_row(name, shown(value))
    Console().print(table)


def shown(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else value
