"""One pass of CLIPSeg's vision tower: dense features, pooled embedding, decoder inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.case import Case
from tests.golden.kinds.clipseg_audio_text import grounder


def decoded(image: Tensor) -> Tensor:
    """Golden images are uint8 and already 'normalised'."""
    return image.float() / 64 - 2


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    model = grounder(case)
    results: dict[str, Tensor] = {}
    slices = tuple(slice(None, None, s) for s in case.config["hidden_stride"])
    dense_slices = tuple(slice(None, None, s) for s in case.config.get("dense_stride", (1, 1, 1, 1)))
    for key, image in case.inputs.items():
        name = key.removeprefix("image_")
        seen = model.encode_image(decoded(image), reduced=True, dense=True, pooled=True)
        assert seen.dense is not None
        assert seen.pooled is not None
        results[f"pooled_{name}"] = seen.pooled
        results[f"dense_{name}"] = seen.dense[dense_slices]
        results[f"dense_{name}_mean"] = seen.dense.mean()
        results[f"dense_{name}_std"] = seen.dense.std(correction=0)
        for layer, activation in zip(model.config.extract_layers, seen.activations, strict=True):
            results[f"activation_{layer + 1}_{name}"] = activation[slices]
    return results
