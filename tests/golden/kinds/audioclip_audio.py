"""`avloc.backbones.audioclip`'s audio tower and its spectrogram against the published ones, gradients too."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from avloc.backbones.audioclip import AudioConfig, AudioTower
from avloc.weights import load_into
from tests.golden.case import Case

GRADIENT = "grad."
PREFIX = "audio."


def summarised(case: Case, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs and the case's expressions over them."""
    expressions: dict[str, str] = case.config["summaries"] or {}
    return outputs | {name: eval(text, {"torch": torch}, outputs) for name, text in expressions.items()}


def part(case: Case, prefix: str) -> dict[str, Tensor]:
    """The weights of one tower, without the checkpoint's prefix."""
    return {k.removeprefix(prefix): v for k, v in case.weights.items() if k.startswith(prefix)}


def audio_config(config: dict[str, Any]) -> AudioConfig:
    assert (config["spec_height"], config["spec_width"]) == (-1, -1), "the spectrogram is never resized"
    named = {f.name: config[f.name] for f in fields(AudioConfig) if f.name in config}
    tuples = {k: tuple(v) for k, v in named.items() if isinstance(v, list)}
    return AudioConfig(
        **named | tuples | {"width": 64 // config["width_divisor"], "attention": config["apply_attention"]}
    )


def waveform(case: Case) -> Tensor:
    """What is fed to the tower: 16-bit values, or T-VSL's mixtures in [-2, 2]."""
    if case.config["input_mode"] == "unit_mix":
        mixture = sum(case.inputs[f"waveform_{k}"].double() / 32767 for k in (1, 2))
    else:
        mixture = case.inputs["waveform"]
    return torch.as_tensor(mixture).float().squeeze(1)


def run(case: Case) -> dict[str, Tensor]:
    tower = AudioTower(audio_config(case.config), case.config["embed_dim"]).eval()
    load_into(tower, part(case, PREFIX), case.id)
    sound, gradients = waveform(case), case.config["gradients"]
    with torch.set_grad_enabled(gradients):
        kernels = tower.fbsp()
        bands = tower.bands(sound, kernels)
        features = tower.map(bands)
        assert tuple(features.shape[2:]) == tower.grid(sound.shape[1])
        outputs = {
            "fbsp_kernels": kernels,
            "loss_ttf": tower.fbsp.regulariser(kernels),
            "x_db": bands.unsqueeze(1),
            "feature_map": features,
            "tokens": tower.tokens(features),
            "embedding": tower.pool(features),
        }
    if gradients:
        probe = outputs["grad_probe"] = case.expected["grad_probe"]
        (outputs["embedding"] * probe).sum().backward()
        for name in case.expected:
            if name.startswith(GRADIENT):
                gradient = tower.get_parameter(name.removeprefix(GRADIENT + PREFIX)).grad
                assert gradient is not None, name
                outputs[name] = gradient
    return summarised(case, {k: v.detach() for k, v in outputs.items()})
