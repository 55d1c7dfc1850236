"""GAVS on AVSBench-shaped shards: what may be wrong with them, and with what was stored beside them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from avloc.backbones.sam import SAM, TINY
from avloc.data.index import read_index
from avloc.data.module import AVDataModule
from avloc.data.store import store_features
from avloc.data.stored import StoreError, open_features
from avloc.methods.base import CheckpointError
from avloc.methods.gavs import GAVS
from avloc.types import AVBatch
from tests.methods.tiny import avs_clip, avs_set, tiny_sam_files


def method(files: dict[str, str], **options: Any) -> GAVS:
    torch.manual_seed(2)
    return GAVS(**({"tune_v": 2} | files | options))


def batches(root: Path, model: GAVS, **options: Any) -> list[AVBatch]:
    options = {"train": "avs", "batch_size": 5, "truth": True, "frames": "all", "num_workers": 0} | options
    data = AVDataModule(root=str(root), input_spec=model.input_spec, **options)
    data.setup("fit")
    return list(data.train_dataloader())


def test_an_empty_mask_is_learned_from_and_scored(tmp_path: Path) -> None:
    avs_set(tmp_path, "avs", "train", [avs_clip(0, empty=True)])
    model = method(tiny_sam_files(tmp_path))
    (batch,) = batches(tmp_path, model)
    assert batch.truth is not None
    assert batch.truth.shape == (5, 1, 224, 224)
    assert not batch.truth.any()
    losses = model.training_losses(batch)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    # bce of an empty mask: -log(1 - p), which vanishes with p
    heat = model.localize(batch).heatmap
    torch.testing.assert_close(losses["mask"], -(1 - heat).log().mean(), atol=1e-4, rtol=1e-4)


def test_the_second_of_a_frame_that_the_sound_does_not_fill_ends_in_silence(tmp_path: Path) -> None:
    """A clip of 0.4 s is shorter than one VGGish example; every frame still hears one second."""
    avs_set(tmp_path, "avs", "train", [avs_clip(0, frames=1, seconds=0.4)])
    model = method(tiny_sam_files(tmp_path))
    (batch,) = batches(tmp_path, model, batch_size=1)
    assert batch.audio.shape == (1, 16000)
    assert batch.audio[:, :6400].std() > 0.1
    assert not batch.audio[:, 6400:].any()
    assert torch.isfinite(model.training_losses(batch)["loss"])


def test_frames_of_different_sizes_come_padded_in_one_batch(tmp_path: Path) -> None:
    upright = avs_clip(1)
    for k, frame in enumerate(upright.record.frames):
        frame.width, frame.height = 36, 64
        for name in (f"f{k}.jpg", f"m.f{k}.t0.png"):
            upright.members[name] = turned(upright.members[name])
    avs_set(tmp_path, "avs", "train", [avs_clip(0), upright])
    model = method(tiny_sam_files(tmp_path))
    (batch,) = batches(tmp_path, model, batch_size=10)
    assert batch.size is not None
    assert sorted(map(tuple, batch.size.tolist())) == [(36, 64)] * 5 + [(64, 36)] * 5
    assert model.localize(batch).heatmap.shape == (10, 1, 224, 224)
    assert torch.isfinite(model.training_losses(batch)["loss"])


def test_features_of_other_weights_are_stale_and_say_whose(tmp_path: Path) -> None:
    index = read_index(avs_set(tmp_path, "avs", "train", [avs_clip(0), avs_clip(1)]))
    files = tiny_sam_files(tmp_path / "one")
    model = method(files)
    store_features(model, index.url)
    rows = open_features(model, index).read(["avs__v001.f3"])["frozen"]
    assert rows.shape == (1, 8, 8, 64)  # tokens below the adapter
    with torch.no_grad():
        for p in model.trainable():
            p += 1
    assert open_features(model, index).read(["avs__v001.f3"])["frozen"].equal(rows)  # learning changes nothing
    other = method(files | {"sam": tiny_sam_files(tmp_path / "two", seed=9)["sam"]})
    with pytest.raises(StoreError, match=r"are stale: sam weights was .*one/sam.* is .*two/sam.*Run `avloc store"):
        open_features(other, index)
    with pytest.raises(StoreError, match="are stale: weights or preprocessing changed"):
        open_features(method(files, tune_v=3), index)


def test_a_sam_of_another_size_does_not_fit_what_was_learned(tmp_path: Path) -> None:
    files = tiny_sam_files(tmp_path)
    model = method(files)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    SAM(replace(TINY, depth=6)).save_world(tmp_path / "deep.safetensors")
    with pytest.raises(CheckpointError, match=r"trained on top of sam weights .*Put the file"):
        method(files | {"sam": f"file:{tmp_path / 'deep.safetensors'}"}).start_from(tmp_path / "a.ckpt")


def turned(data: bytes) -> bytes:
    picture, out = Image.open(io.BytesIO(data)), io.BytesIO()
    picture.transpose(Image.Transpose.ROTATE_90).save(out, picture.format)
    return out.getvalue()
