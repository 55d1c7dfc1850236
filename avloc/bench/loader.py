"""The training loader against a bare decode of the same bytes, from one run on one machine."""

from __future__ import annotations

import io
import itertools
import time
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from avloc.bench.step import Result
from avloc.data.module import AVDataModule
from avloc.data.shards import read_index, read_shard
from avloc.types import InputSpec

__all__ = ["bare_decode", "measure_loader"]


def bare_decode(image: bytes, sound: bytes, size: int) -> None:
    """The least that turns a record's bytes into a picture of the asked size and a waveform."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    soundfile.read(io.BytesIO(sound), dtype="float32")


def measure_loader(
    train: str, root: Path, workers: int, batch_size: int, image_size: int, seconds: float, batches: int
) -> Result:
    """Measure; see `avloc.commands.bench_loader` for the arguments.

    Returns:
        ``samples_per_s_per_worker``, ``bare_samples_per_s`` (one process), their ``ratio``, and the sample count.
    """
    spec = InputSpec(image_size=image_size, seconds=seconds, train_scale=1.1, train_flip=0.5)
    data = AVDataModule(
        train=train,
        root=str(root),
        batch_size=batch_size,
        num_workers=workers,
        input_spec=spec,
        shuffle_buffer=200,
    )
    data.prepare_data()
    data.setup("fit")

    index = read_index(data.find(train, "train"))
    wanted = batch_size * min(batches, 20)
    records = itertools.chain.from_iterable(read_shard(index.locate(i)) for i in range(len(index.shards)))
    raw = [
        (r.get("f0.jpg") or r["f0.png"], r.get("a0.flac") or r["a0.opus"]) for r in itertools.islice(records, wanted)
    ]
    bare_decode(*raw[0], image_size)
    start = time.perf_counter()
    for image, sound in raw:
        bare_decode(image, sound, int(image_size * spec.train_scale))
    bare = len(raw) / (time.perf_counter() - start)

    loader = iter(data.train_dataloader())
    for _ in range(2 * max(1, workers)):  # processes have started and buffers are full
        next(loader)
    start = time.perf_counter()
    seen = sum(len(batch) for batch in itertools.islice(loader, batches))
    rate = seen / (time.perf_counter() - start) / max(1, workers)
    return {
        "set": train,
        "workers": workers,
        "samples": seen,
        "samples_per_s_per_worker": rate,
        "bare_samples_per_s": bare,
        "ratio": rate / bare,
    }
