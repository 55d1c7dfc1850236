"""`avloc.backbones.audioclip`'s image tower: the pooled embedding and T-VSL's patches, square and wide."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avloc.backbones.audioclip import ImageConfig, ImageTower
from avloc.weights import load_into
from tests.golden.case import Case
from tests.golden.kinds.audioclip_audio import part, summarised


def normalised(image: Tensor, config: dict) -> Tensor:
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (image.float() / 255 - mean) / std


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    config = ImageConfig(c["image_resolution"], tuple(c["layers"]), c["width"], c["heads"])
    tower = ImageTower(config, c["embed_dim"]).eval()
    load_into(tower, part(case, "visual."), case.id)
    outputs = {}
    for key, image in case.inputs.items():
        name = key.removeprefix("image_")
        pixels = normalised(image, c)
        features = tower.features(pixels)
        tokens = tower.attnpool.tokens(features)
        outputs |= {
            f"layer4_{name}": features,
            f"layer4_{name}_sub": features[:, ::4],
            f"pooled_{name}": tower.attnpool(features),
            f"tokens_{name}": tokens.transpose(0, 1),
            f"tvsl_tokens_{name}": F.normalize(tokens, dim=-1),
        }
    return summarised(case, outputs)
