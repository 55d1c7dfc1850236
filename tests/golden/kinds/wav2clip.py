"""`avloc.backbones.wav2clip` against the released audio side: whole clips, a clip alone, frames."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.backbones.wav2clip import Wav2CLIP, Wav2CLIPConfig, standardise
from avloc.weights import load_into
from tests.golden.case import Case
from tests.golden.kinds.audioclip_audio import summarised


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    config = Wav2CLIPConfig(
        sample_rate=c["sample_rate"],
        n_fft=c["n_fft"],
        hop=c["spectrogram_hop"],
        power=c["power"],
        log_eps=c["log_eps"],
        std_eps=c["std_eps"],
        blocks=tuple(c["blocks"]),
        mlp_units=tuple(c["mlp_units"]),
    )
    model = Wav2CLIP(config).eval()
    load_into(model, case.weights, case.id)
    sound = case.inputs["waveform"].float() / 32768
    if c["frame_length"]:
        return summarised(
            case, {"frame_embedding": model.encode_frames(sound, c["frame_length"], c["hop_length_frames"])}
        )
    raw = model.audio_encoder.spectrogram(sound)
    outputs = {
        "raw_log": raw,
        "log_spectrogram": standardise(raw, config.std_eps, "batch").unsqueeze(1),
        "log_spectrogram_mean_std": torch.stack([raw.mean(), raw.std()]),
        "encoder_feature": model.features(sound),
        "embedding": model(sound),
        "embedding_first_alone": model(sound[:1]),
    }
    return summarised(case, outputs)
