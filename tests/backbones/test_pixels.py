"""Pixels are normalised by values by hand, and no constant is copied to the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from avloc.backbones import clipseg, openclip, resnet
from avloc.backbones.pixels import per_channel

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Seen(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("normalise", "statistics"),
    [
        (clipseg.normalise, CLIP),
        (openclip.normalise, CLIP),
        (lambda image: resnet.normalised(image, (5, 7)), IMAGENET),
    ],
    ids=["clipseg", "openclip", "resnet"],
)
def test_each_channel_by_hand_without_a_copied_constant(normalise, statistics):
    image = torch.randint(256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with Seen() as seen:
        found = normalise(image)
    assert "aten::lift_fresh" not in seen.names  # what torch.tensor([...]) leaves
    pixels = image.numpy().astype(np.float64)
    for channel, (mean, deviation) in enumerate(zip(*statistics, strict=True)):
        np.testing.assert_allclose(
            found[:, channel].numpy(), (pixels[:, channel] / 255 - mean) / deviation, rtol=1e-5, atol=1e-6
        )


def test_a_list_would_be_seen():
    with Seen() as seen:
        torch.tensor([1.0, 2.0])
    assert "aten::lift_fresh" in seen.names
    assert per_channel((1.0, 2.0), torch.device("meta")).shape == (2, 1, 1)
