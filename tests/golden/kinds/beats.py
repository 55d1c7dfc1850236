"""`avloc.backbones.beats` against the official network with ACL-SSL's layer features."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.backbones.beats import PREDICTOR, BEATs, BEATsConfig
from avloc.weights import load_into
from tests.golden.case import Case


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    tower = BEATs(BEATsConfig.from_dict(case.config["beats_cfg"])).eval()
    load_into(tower, case.weights, case.id, ignore=PREDICTOR)
    actual = {}
    for name, waveform in case.inputs.items():
        suffix = name.removeprefix("waveform")
        x, features, layers = tower.extract_features(waveform)
        named = {"x": x, "features": features} | {f"layer_{n}": y for n, y in layers.items()}
        for output, value in named.items():
            full = output + suffix
            strides = case.config.get("slice", [1] * value.ndim)
            actual |= {
                full: value,
                f"{full}_slice": value[tuple(slice(None, None, s) for s in strides)],
                f"{full}_mean": value.mean(),
                f"{full}_std": value.std(correction=0),
            }
    return actual
