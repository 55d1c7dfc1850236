"""The training loader against a bare decode of the same bytes, from one run on one machine."""

from __future__ import annotations

import io
import itertools
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from avloc.bench.step import Result
from avloc.data.index import read_index, read_shard
from avloc.data.module import AVDataModule
from avloc.data.schema import Audio, Frame, Record, Sample
from avloc.data.shards import write_shards
from avloc.types import InputSpec
from avloc.world.dataset import encode_audio
from avloc.world.scenes import render, sample_scenes
from avloc.world.sounds import sound

__all__ = ["LIKE_VGGSOUND", "bare_decode", "measure_loader", "write_like_vggsound"]


EPOCH = 4000  # records
LIKE_VGGSOUND = "like-vggsound"  # the default set: made on the spot, with pictures and sounds as large as VGGSound's


def write_like_vggsound(folder: Path, records: int = 160) -> Path:
    """A training set with 400-pixel JPEG of quality 90 and 10 s of 16 kHz FLAC, as `data_prep.vggsound` writes it."""
    rng = np.random.default_rng(0)
    samples = []
    scenes = sample_scenes(rng, records)
    for i in range(records):
        image, _ = render(scenes[i : i + 1], 400)
        picture = io.BytesIO()
        Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(picture, "JPEG", quality=90)
        members = {"f0.jpg": picture.getvalue(), "a0.flac": encode_audio(sound(rng, int(scenes.label[i, 0]), 10.0))}
        record = Record("bench", f"{i:04d}", frames=[Frame("f0.jpg", 400, 400)], audios=[Audio("a0.flac")])
        samples.append(Sample(record, members))
    index = write_shards(folder / "bench", "bench", "train", samples).index
    assert index is not None
    # Each shard several times over, by links: an epoch long enough that its start does not count.
    content = json.loads(index.read_text())
    times, again = EPOCH // records, []
    for n, shard in itertools.product(range(times), content["shards"]):
        name = f"{n:03d}-{shard['file']}"
        os.link(index.parent / shard["file"], index.parent / name)
        again.append(shard | {"file": name})
    content |= {"shards": again, "count": times * records, "classes": {"": times * records}}
    index.write_text(json.dumps(content))
    return index


def bare_decode(image: bytes, sound: bytes, size: int) -> None:
    """The least that turns a record's bytes into a picture of the asked size and a waveform."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    soundfile.read(io.BytesIO(sound), dtype="float32")


def measure_loader(
    train: str, root: Path, workers: int, batch_size: int, image_size: int, seconds: float, batches: int
) -> Result:
    """Measure; see `avloc.bench.command.bench_loader` for the arguments.

    Returns:
        ``samples_per_s_per_worker``, ``bare_samples_per_s`` (one process), their ``ratio``, and the sample count.
    """
    if train == LIKE_VGGSOUND:
        with tempfile.TemporaryDirectory() as folder:
            made = write_like_vggsound(Path(folder))
            measured = measure_loader(str(made), root, workers, batch_size, image_size, seconds, batches)
            return measured | {"set": LIKE_VGGSOUND}
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
    for image, audio in raw:
        bare_decode(image, audio, int(image_size * spec.train_scale))
    bare = len(raw) / (time.perf_counter() - start)

    batches_of = itertools.chain.from_iterable(itertools.repeat(data.train_dataloader()))  # epoch after epoch
    for _ in range(4 * max(1, workers)):  # processes have started and buffers are full
        next(batches_of)
    start = time.perf_counter()
    seen = sum(len(batch) for batch in itertools.islice(batches_of, batches))
    rate = seen / (time.perf_counter() - start) / max(1, workers)
    return {
        "set": train,
        "workers": workers,
        "samples": seen,
        "samples_per_s_per_worker": rate,
        "bare_samples_per_s": bare,
        "ratio": rate / bare,
    }
