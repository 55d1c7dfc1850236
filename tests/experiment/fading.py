"""A method that is best after its first epoch, so that a run that forgets its best model is found out."""

from __future__ import annotations

import os
import signal
import time
from threading import Event

import torch
from torch import Tensor, nn

from avloc.methods.base import Localizer
from avloc.types import AVBatch, InputSpec, Localization


class Fading(Localizer):
    """Its map is the true mask's place by brightness, weaker with every step."""

    input_spec = InputSpec(image_size=32, sample_rate=16000, seconds=2.0)

    def __init__(self, good_steps: int = 3) -> None:
        super().__init__(optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        self.save_hyperparameters()
        self.good_steps = good_steps
        self.w = nn.Parameter(torch.ones(()))
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        if self.global_step == int(os.environ.get("FADING_ENDS_AT", "-1")):
            os.kill(os.getpid(), signal.SIGTERM)  # what a cluster sends
        time.sleep(float(os.environ.get("FADING_TAKES", "0")))
        if self.global_step == int(os.environ.get("FADING_HANGS_AT", "-1")):
            Event().wait()
        return {"loss": self.w * batch.audio.abs().mean() + torch.rand(())}

    def localize(self, batch: AVBatch) -> Localization:
        picture = batch.image.float().mean(1, keepdim=True) / 255
        faded = float(self.global_step > self.good_steps) * 0.7
        mixed = 0.01 * float(os.environ.get("FADING_MIXES", "0")) * picture.mean()  # as of a network's own floats
        maps = nn.functional.interpolate(picture, (8, 8)) * (1 - faded) + mixed
        return Localization(maps, maps.amax((2, 3)))
