"""`avloc localize` against the network's own passes over the same moments."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from avloc.backbones.clipseg import normalise
from avloc.bench.step import Result, build, named, peak_of, seconds
from avloc.data.media import MovieWriter
from avloc.localize.asking import hearing_once
from avloc.localize.run import localize_video
from avloc.methods.acl import ACL
from avloc.types import AVBatch, Localization

__all__ = ["measure_localize", "passes", "write_clip"]

PICTURES = 25  # a second
RATE = 44_100
LONGER = 3  # times the clip, whose peak memory is told beside the clip's


def write_clip(path: Path, length: float, height: int) -> Path:
    """A clip of moving stripes, 16 by 9, with a rising tone: no two moments look or sound alike.

    Args:
        path: an mp4.
        length: seconds.
        height: pixels.
    """
    width = 2 * round(height * 8 / 9)
    x, y = np.arange(width), np.arange(height)[:, None]
    time = np.arange(round(length * RATE)) / RATE
    with MovieWriter(path, width, height, PICTURES, RATE) as movie:
        for i in range(round(length * PICTURES)):
            stripes = [(x + k * y + 7 * i) % 256 for k in (0, 1, 2)]
            movie.picture(i / PICTURES, np.stack(np.broadcast_arrays(*stripes), -1).astype(np.uint8))
        movie.sound((0.3 * np.sin(2 * np.pi * (200 + 50 * time) * time))[None].astype(np.float32))
    return path


@torch.inference_mode()
def passes(model: ACL, batches: list[AVBatch]) -> None:
    """What nobody can do without: each picture seen and each distinct window heard once, a prompt and a map each."""
    network = model.network
    with hearing_once(model):
        for batch in batches:
            features = network.see(normalise(batch.image))
            A = network.answer(features, network.hear(batch.audio))
            network.locate(features, A[:, None], model.heatmap_size)


def measure_localize(
    method: Literal["acl", "souple"] = "souple",
    full_size: bool = False,
    length: float = 4.0,
    fps: float = 4.0,
    height: int = 720,
    steps: int = 3,
) -> Result:
    """Measure; see `avloc.bench.command.bench_localize` for the arguments.

    Returns:
        ``localize_s`` and ``passes_s`` (medians of all steps), both also a second of video; ``ratio``, the passes by
        the whole; ``peak_bytes`` of the clip and ``longer_peak_bytes`` of one `LONGER` times as long: CUDA's peak, or
        the process's on a CPU; and what was run on what.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = build(method, full_size).to(device).eval()
    batches: list[AVBatch] = []
    own = model.localize

    def noted(batch: AVBatch) -> Localization:
        batches.append(batch)
        answer: Localization = own(batch)
        return answer

    with tempfile.TemporaryDirectory(prefix="avloc-bench-") as folder:
        here = Path(folder)
        clip = write_clip(here / "clip.mp4", length, height)
        longer = write_clip(here / "longer.mp4", LONGER * length, height)

        def run(video: Path = clip) -> None:
            localize_video(model, video, here / "out", fps=fps, progress=False, phrases=("a dog", "a cat"))

        model.localize = noted
        run()
        model.localize = own
        passes(model, batches)
        times = [(seconds(run, device), seconds(lambda: passes(model, batches), device)) for _ in range(steps)]
        peak = peak_of(run, device)
        longer_peak = peak_of(lambda: run(longer), device)
    run_s, passes_s = (statistics.median(t) for t in zip(*times, strict=True))
    return {
        "method": method,
        "size": "full" if full_size else "world",
        "device": named(device),
        "clip_s": length,
        "height": height,
        "moments": sum(map(len, batches)),
        "localize_s": run_s,
        "passes_s": passes_s,
        "localize_s_per_s": run_s / length,
        "passes_s_per_s": passes_s / length,
        "ratio": passes_s / run_s,
        "peak_bytes": peak,
        "longer_peak_bytes": longer_peak,
    }
