"""A toy run: a method, two sets and a trainer."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from avloc.methods.base import Localizer
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import WeightFile


class Toy(Localizer):
    input_spec = InputSpec(image_size=16, sample_rate=8000, seconds=0.25)
    paper_parameters = 2_380_000

    def __init__(self):
        super().__init__(optimizer=lambda p: torch.optim.SGD(p, lr=0.125))
        self.gain = nn.Parameter(torch.ones(3))
        self.tower = nn.Linear(10, 10).requires_grad_(False)
        self.frozen_files = {"tower": WeightFile("world:tower", None, "ab" * 32)}

    def training_losses(self, batch):
        return {"loss": (self.gain * batch.audio.mean()).sum()}

    def localize(self, batch):
        heat = batch.image.float().mean(1, keepdim=True) / 255
        return Localization(heat, torch.ones(len(batch), 1))


def make_batch(first: int, n: int) -> AVBatch:
    image = torch.zeros(n, 3, 16, 16, dtype=torch.uint8)
    image[:, :, 4:8, 4:8] = 255
    truth = torch.zeros(n, 1, 16, 16)
    truth[:, :, 4:8, 4:12] = 1
    return AVBatch(
        key=[f"clip{i}" for i in range(first, first + n)],
        image=image,
        audio=torch.full((n, 2000), 0.25),
        index=torch.arange(first, first + n),
        truth=truth,
        label=[["dog", "cat"]] * n,
        negative=[""] * (n - 1) + ["noise"],
        sounding=torch.tensor([True] * (n - 1) + [False]),
    )


class Set(SimpleNamespace):
    def __init__(self, name, row):
        super().__init__(name=name, row=row)

    def __len__(self):
        return 12


class Data(LightningDataModule):
    def __init__(self):
        super().__init__()
        self.val_sets = [Set("world:val", "model")]
        self.test_sets = [Set("world:single", "model"), Set("world:single", "shuffled sound")]

    def loader(self):
        return DataLoader([make_batch(3 * i, 3) for i in range(4)], batch_size=None)

    def train_dataloader(self):
        return self.loader()

    def val_dataloader(self):
        return self.loader()

    def test_dataloader(self):
        return [self.loader(), self.loader()]


def trainer(folder, callbacks, logger=None, **options):
    return Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="toy") if logger is None else logger,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **options,
    )
