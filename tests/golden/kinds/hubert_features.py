"""HuBERT with DenseAV's epsilon, of sounds of mean 0 and variance 1."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.backbones.hubert import HuBERT, own_names, standardised
from avloc.methods.denseav.checkpoints import official_state
from avloc.weights import load_into
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    model = HuBERT(c["hubert_config"]).eval()
    weights = own_names(case.weights)
    if c.get("lora"):
        weights = {k.removeprefix("audio_tower.model."): v for k, v in official_state(case.weights).items()}
    load_into(model.model, weights, case.id)
    waveform = case.inputs["waveform"]
    with torch.no_grad():
        normalised = standardised(waveform)
        found = {
            "normalised": normalised,
            "features": model(normalised),
            "features_unnormalised": model(waveform),
            "conv_features": model.model.feature_extractor(normalised),
        }
    if "features_stride" in c:
        features = found["features"]
        found |= {"features_mean": features.mean(), "features_std": features.std(correction=0)}
        found |= {
            f"{n}_slice": found[n][:, :: c[f"{n}_stride"][1]] for n in ("features", "conv_features", "normalised")
        }
    return found
