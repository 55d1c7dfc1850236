"""``world:clap``: hears and reads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.backbones.clap import CLAP
from avloc.world.scenes import NAMES
from avloc.world.sounds import RATE
from avloc.world.towers.hearing import PHRASES, cosines, hearing_score, mixtures, tiny_tokenizer
from avloc.world.towers.pools import SECONDS, TAU, SoundPool
from avloc.world.towers.recipe import Recipe

__all__ = ["pretrain_clap"]

CLAP_SETTINGS: dict[str, Any] = {
    "feature_size": 32,
    "sampling_rate": RATE,
    "hop_length": 256,
    "max_length_s": round(SECONDS),
    "fft_window_size": 512,
    "frequency_min": 50,
    "frequency_max": 7800,
}

CLAP_AUDIO: dict[str, Any] = {
    "num_mel_bins": 32,
    "spec_size": 64,
    "window_size": 4,
    "patch_embeds_hidden_size": 32,
    "depths": [1, 1, 2],
    "num_attention_heads": [2, 4, 8],
    "hidden_size": 128,
    "hidden_dropout_prob": 0.0,
}

CLAP_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def tiny_clap() -> CLAP:
    tokenizer = tiny_tokenizer()
    end = tokenizer.encode("")[-1]
    text = CLAP_TEXT | {"vocab_size": end + 2, "pad_token_id": end + 1, "bos_token_id": end - 1, "eos_token_id": end}
    text["max_position_embeddings"] = end + 2 + 77  # RoBERTa counts positions from behind the padding's id
    config = {"text_config": text, "audio_config": CLAP_AUDIO, "projection_dim": 64}
    return CLAP(config, CLAP_SETTINGS, tokenizer)


def pretrain_clap(recipe: Recipe) -> None:
    torch.manual_seed(recipe.seed)
    model = tiny_clap().train()
    sounds = SoundPool(recipe.seed, recipe.pool)

    def report() -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            text = model.encode_text(NAMES)
        score = hearing_score(model.encode_audio, text, recipe.seed + 1)
        recipe.keep(model, score)
        model.train()
        return score

    def losses() -> dict[str, Tensor]:
        audio, truth = mixtures(*sounds.batch(recipe.batch))
        phrase = PHRASES[int(torch.randint(len(PHRASES), ()))]
        text = model.encode_text([phrase.format(n) for n in NAMES])
        return {"text": F.cross_entropy(cosines(model.encode_audio(audio), text) / TAU, truth)}

    apart = {id(model.model.logit_scale_a), id(model.model.logit_scale_t)}  # without a loss of their own
    recipe.train([p for p in model.parameters() if id(p) not in apart], losses, report, 200)
