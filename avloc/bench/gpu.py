"""What a GPU does with each method, in one command of a few minutes: `avloc bench gpu`, `python -m avloc.bench gpu`.

Needs random weights alone. Every case is tried in the order of `cases` until the time is up; what was not reached, did
not fit or failed is told as such, never left out.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.multiprocessing as mp
from torch import Tensor

from avloc.bench.step import Result, count_flops, named, peak_of, seconds
from avloc.files import write_whole
from avloc.methods.base import Localizer
from avloc.types import AVBatch

__all__ = ["METHODS", "Case", "agreement", "cases", "measure_gpu", "page", "syncs"]

Precision = Literal["32", "tf32", "bf16"]
METHODS = ("acl", "souple", "gavs", "seac", "tvsl", "ezvsl", "slavc", "fnac", "denseav")
OPTIONAL = ("acl", "souple")  # have compiled towers and a decoder that is computed again
FIRST = 8  # samples
WARM, TIMED = 2, 5  # steps
LEFT = 30.0  # seconds that a case is not begun in any more
DENSE: dict[str, tuple[float, float, float]] = {
    "H200": (67, 494, 989),
    "H100": (67, 494, 989),
    "A100": (19.5, 156, 312),
    "A6000": (38.7, 77.4, 154.8),
    "RTX 6000 Ada": (91.1, 182.1, 364.2),
    "L40S": (91.6, 183, 366),
    "4090": (82.6, 82.6, 165.2),
    "3090": (35.6, 35.6, 71),
}
"""Device to TFLOP/s of float32, TF32 and bf16 without sparsity, from the makers' data sheets."""


@dataclass(frozen=True)
class Case:
    """One measured step."""

    method: str
    precision: Precision
    batch_size: int = FIRST
    compiled: bool = False
    recompute: bool = False

    @property
    def options(self) -> dict[str, bool]:
        chosen = {"compile_towers": self.compiled, "recompute": self.recompute}
        return {name: True for name, on in chosen.items() if on}


def cases(most: int = 256) -> Iterator[Case]:
    """All methods first, in three precisions; then what is optional; then larger batches, as far as they fit."""
    for precision in ("32", "tf32", "bf16"):
        yield from (Case(method, precision) for method in METHODS)  # type: ignore[arg-type]
    for method in OPTIONAL:
        yield Case(method, "bf16", recompute=True)
        yield Case(method, "bf16", compiled=True)
    size = 2 * FIRST
    while size <= most:
        yield from (Case(method, "bf16", size) for method in METHODS)
        yield from (Case(method, "bf16", size, recompute=True) for method in OPTIONAL)
        size *= 2


def built(case: Case, tiny: bool, device: torch.device) -> tuple[Localizer, AVBatch]:
    """A method in training mode with a batch of random samples, on a device."""
    full, n, method = not tiny, case.batch_size, case.method
    torch.manual_seed(0)
    model: Any
    if method == "gavs":
        from avloc.bench import gavs

        model = gavs.build(full).to(device)
        return model.train(), gavs.random_batch(model, n, full)
    if method == "seac":
        from avloc.bench import seac

        model = seac.build_seac(full).to(device)
        return model.train(), seac.stored_batch(model, n)
    if method == "tvsl":
        from avloc.bench import tvsl

        model = tvsl.build_tvsl(full).to(device)
        return model.train(), tvsl.mixture_batch(model, n, sources=2, tiles=2)
    from avloc.bench import denseav, step, two_tower

    if method == "denseav":
        model = denseav.build_denseav(full).to(device)
    elif method in OPTIONAL:
        model = step.build(method, full, **case.options).to(device)  # type: ignore[arg-type]
    else:
        model = two_tower.build_two_tower(method, full).to(device)  # type: ignore[arg-type]
    return model.train(), two_tower.sounds_and_pictures(model, n)


def learner(model: Localizer, batch: AVBatch, precision: Precision) -> Callable[[], None]:
    """An update of the model."""
    optimizer = model.configure_optimizers()

    def update() -> None:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = model.training_losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return update


def measured(case: Case, tiny: bool, device: torch.device, flops: int | None) -> Result:
    """A case's row: ``step_s`` (the median), ``samples_per_s``, ``peak_bytes``, ``flops``, and ``device_share``, the
    part of what the maker says that the device can do."""
    torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = case.precision == "tf32"
    model, batch = built(case, tiny, device)
    update = learner(model, batch, case.precision)
    for _ in range(WARM):
        update()
    took = statistics.median(seconds(update, device) for _ in range(TIMED))
    peak = peak_of(update, device)
    row: Result = {"step_s": took, "samples_per_s": len(batch) / took, "peak_bytes": peak}
    if flops is None and not case.options:
        flops = count_flops(update)
    if flops is not None:
        row["flops"] = flops
        if (most := fastest(device, case.precision)) is not None:
            row["device_share"] = flops / took / most
    return row


def fastest(device: torch.device, precision: Precision) -> float | None:
    """FLOP/s of a device as its maker tells; None where that is unknown."""
    found = next((v for name, v in DENSE.items() if device.type == "cuda" and name in named(device)), None)
    return None if found is None else 1e12 * found[("32", "tf32", "bf16").index(precision)]


def syncs(method: str, tiny: bool, device: torch.device) -> int | None:
    """How often a step makes the host wait for the device; None where there is none to wait for."""
    if device.type != "cuda":
        return None
    model, batch = built(Case(method, "bf16"), tiny, device)
    for _ in range(WARM):
        model.training_losses(batch)["loss"].backward()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            model.training_losses(batch)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in seen)


def agreement(method: str, tiny: bool, device: torch.device) -> Result:
    """bf16 beside float32 with the same weights, samples and noise: ``loss_difference``, relative, and of the
    gradients the ``cosine`` and ``length``, bf16's by float32's."""
    found: list[tuple[float, Tensor]] = []
    for enabled in (False, True):
        model, batch = built(Case(method, "32"), tiny, device)
        torch.manual_seed(1)
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            loss = model.training_losses(batch)["loss"]
        loss.backward()
        each = [p.grad.flatten().double() for p in model.trainable() if p.grad is not None]
        found.append((float(loss.detach()), torch.cat(each)))
    (exact, g), (half, h) = found
    return {
        "loss_difference": abs(half - exact) / max(abs(exact), 1e-12),
        "cosine": float(g @ h / (g.norm() * h.norm()).clamp_min(1e-300)),
        "length": float(h.norm() / g.norm().clamp_min(1e-300)),
    }


def half_of_a_step(rank: int, folder: str, tiny: bool) -> None:
    """A step of EZ-VSL under DDP on one of two devices; process 0 notes its time and that the weights stay alike."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, batch = built(Case("ezvsl", "bf16"), tiny, device)
    network = model.network = DistributedDataParallel(model.network, device_ids=[rank])  # type: ignore[assignment]
    update = learner(model, batch, "bf16")
    for _ in range(WARM):
        update()
    took = statistics.median(seconds(update, device) for _ in range(TIMED))
    sums = torch.stack([p.detach().double().sum() for p in network.parameters()])
    both = [torch.empty_like(sums) for _ in range(2)]
    dist.all_gather(both, sums)
    if rank == 0:
        told = {"step_s": took, "weights_differ_by": float((both[0] - both[1]).abs().max())}
        Path(folder, "told.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def nccl(tiny: bool) -> Any:
    """Two processes on two devices; None where there are not two."""
    if torch.cuda.device_count() < 2:
        return None
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(half_of_a_step, (folder, tiny), nprocs=2)
        return json.loads(Path(folder, "told.json").read_text())


def measure_gpu(out: Path, minutes: float = 8.0, tiny: bool = False, most: int = 256) -> dict[str, Any]:
    """Measure all, and write ``gpu.json`` and ``gpu.md``.

    Args:
        out: folder for both.
        minutes: after which no case is begun any more.
        tiny: the embedded world's sizes, to try the command on a CPU.
        most: samples of the largest batch.

    Returns:
        ``device``, ``packages``, ``rows`` (a `Case` each, with its numbers or why there are none), ``syncs`` and
        ``agreement`` by method, ``nccl`` (two processes, where there are two devices), ``tests`` (those marked
        ``gpu``).
    """
    start = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    told: dict[str, Any] = {
        "device": named(device),
        "torch": torch.__version__,
        "size": "world" if tiny else "full",
        "rows": [],
        "syncs": {},
        "agreement": {},
    }

    def over() -> bool:
        return time.monotonic() - start > 60 * minutes - LEFT

    def tried(run: Callable[[], Any]) -> Any:
        """What a measurement gives, or in words why it gives nothing."""
        if over():
            return "not reached: the time is up"
        try:
            return run()
        except torch.OutOfMemoryError:
            return "does not fit"
        except Exception as e:  # one method's trouble must not cost the others' numbers
            return f"failed: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:300]
        finally:
            if device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()

    counted: dict[tuple[str, int], int] = {}
    full: set[tuple[str, bool]] = set()
    ordered = list(cases(most))
    head, larger = [c for c in ordered if c.batch_size == FIRST], [c for c in ordered if c.batch_size > FIRST]

    def measure(case: Case) -> None:
        if (case.method, case.recompute) in full:
            return
        known = counted.get((case.method, case.batch_size))
        row = tried(lambda: measured(case, tiny, device, known))
        if isinstance(row, dict) and "flops" in row:
            counted[case.method, case.batch_size] = row["flops"]
        if row == "does not fit":
            full.add((case.method, case.recompute))
        told["rows"].append(asdict(case) | (row if isinstance(row, dict) else {"why": row}))
        write_whole(out / "gpu.json", json.dumps(told, indent=1))

    out.mkdir(parents=True, exist_ok=True)
    for case in head:
        measure(case)
    for method in METHODS:
        told["agreement"][method] = tried(partial(agreement, method, tiny, device))
        told["syncs"][method] = tried(partial(syncs, method, tiny, device))
    for case in larger:
        measure(case)
    told["nccl"] = tried(lambda: nccl(tiny))
    told["tests"] = tried(marked_tests) if device.type == "cuda" else "no CUDA device"
    told["minutes"] = (time.monotonic() - start) / 60
    write_whole(out / "gpu.json", json.dumps(told, indent=1))
    write_whole(out / "gpu.md", page(told))
    return told


def marked_tests() -> str:
    """The last line of the tests marked ``gpu``."""
    tests = Path(__file__).resolve().parents[2] / "tests"
    if not tests.is_dir():
        return "no tests in an installed package"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(tests)], capture_output=True, text=True, timeout=300
    )
    return (done.stdout.strip().splitlines() or [f"exit {done.returncode}"])[-1]


def page(told: dict[str, Any]) -> str:
    """The numbers as a page of Markdown."""
    head = ["method", "precision", "B", "", "step, s", "samples/s", "peak, GiB", "TFLOP", "share of the device"]
    lines = [f"# {told['device']}, torch {told['torch']}, {told['size']} size", "", row(head), row(["---"] * len(head))]
    for r in told["rows"]:
        options = ", ".join(name for name in ("compiled", "recompute") if r[name])
        first = [r["method"], r["precision"], str(r["batch_size"]), options]
        if "why" in r:
            lines.append(row([*first, r["why"], "", "", "", ""]))
            continue
        share = f"{100 * r['device_share']:.1f} %" if "device_share" in r else ""
        flops = f"{r['flops'] / 1e12:.3g}" if "flops" in r else ""
        numbers = [f"{r['step_s']:.4g}", f"{r['samples_per_s']:.4g}", f"{r['peak_bytes'] / 2**30:.2f}", flops, share]
        lines.append(row([*first, *numbers]))
    lines += ["", "## bf16 beside float32, and how often a step waits for the device", ""]
    lines += [row(["method", "loss", "cosine", "length", "waits"]), row(["---"] * 5)]
    for method, found in told["agreement"].items():
        waits = told["syncs"].get(method)
        if isinstance(found, dict):
            values = [f"{found['loss_difference']:.2g}", f"{found['cosine']:.4f}", f"{found['length']:.3f}"]
        else:
            values = [str(found), "", ""]
        lines.append(row([method, *values, "no device" if waits is None else str(waits)]))
    return "\n".join([*lines, "", f"Tests marked gpu: {told.get('tests', '')}", ""])


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
