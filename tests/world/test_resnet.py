"""The world's ResNet-18: small, trained as its file says, and its object map lies on objects."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import torch

from avloc.backbones.resnet import ObjectResNet
from avloc.methods.baselines.ogl import object_map
from avloc.types import AVBatch
from avloc.weights import WORLD_ASSETS, read_metadata
from avloc.world.resnet import train_resnet, windows
from avloc.world.scenes import render, sample_scenes


def test_the_file_is_small_and_says_how_it_was_made() -> None:
    path = WORLD_ASSETS / "resnet18.safetensors"
    assert path.stat().st_size <= 500_000
    metadata = read_metadata(path)
    assert metadata["command"].startswith("python -m avloc.world.resnet --steps")
    assert metadata["seed"] == "0"
    score = ast.literal_eval(metadata["score"])
    assert score["accuracy"] > 0.7
    assert score["pointing"] > score["area"] + 0.5


def test_the_object_map_lies_on_objects_that_it_never_saw() -> None:
    network = ObjectResNet.from_source("world:resnet18")
    image, mask = render(sample_scenes(np.random.default_rng(4321), 60), 64)
    maps = object_map(network, AVBatch([""] * 60, image, torch.zeros(60, 1), torch.arange(60)))
    objects = mask.any(1).numpy()
    inside, hits = [], []
    for i in range(60):
        row, column = np.unravel_index(maps[i].numpy().argmax(), (7, 7))
        cell = objects[
            i, int(row * 64 / 7) : int((row + 1) * 64 / 7), int(column * 64 / 7) : int((column + 1) * 64 / 7)
        ]
        hits.append(cell.mean() >= 0.5)
        inside.append(objects[i].mean())
    assert np.mean(hits) > np.mean(inside) + 0.4


def test_windows_hold_the_centre_of_their_object() -> None:
    torch.manual_seed(0)
    centre = torch.rand(40, 2)
    image = torch.zeros(40, 3, 64, 64, dtype=torch.uint8)
    for picture, (x, y) in zip(image, (centre * 64).long().clamp(max=63).tolist(), strict=True):
        picture[:, y, x] = 255
    found = windows(image, centre, 32)
    assert found.shape == (40, 3, 32, 32)
    assert (found.flatten(1).amax(1) == 255).all()


def test_training_writes_a_file_that_loads(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    score = train_resnet(tmp_path / "r.safetensors", steps=2, batch=4, pool=8, scenes=8)
    torch.random.set_rng_state(before)
    assert set(score) == {"accuracy", "pointing", "area"}
    network = ObjectResNet.from_source(f"file:{tmp_path / 'r.safetensors'}")
    assert network.options["channels"] == [8, 16, 32, 64]
    assert not any(p.requires_grad for p in network.parameters())
