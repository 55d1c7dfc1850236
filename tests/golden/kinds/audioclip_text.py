"""`avloc.backbones.audioclip`'s text tower, and the ids of the strings where the case gives them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avloc.backbones.audioclip import AudioCLIP, TextConfig, TextTower
from avloc.backbones.tokens import clip_tokenizer
from avloc.weights import load_into
from tests.golden.case import Case
from tests.golden.kinds.audioclip_audio import summarised


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    config = TextConfig(
        context_length=c["context_length"],
        vocab_size=c["vocab_size"],
        width=c["transformer_width"],
        heads=c["transformer_heads"],
        layers=c["transformer_layers"],
    )
    tower = TextTower(config, c["embed_dim"]).eval()
    load_into(tower, case.weights, case.id)
    ids = case.inputs["token_ids"]
    if strings := c.get("strings"):
        with torch.device("meta"):
            tokenised = AudioCLIP(tokenizer=clip_tokenizer())
        ours = tokenised.tokenize(strings)
        padded = F.pad(ours, (0, c["context_length"] - ours.shape[1]))
        wrong = [s for s, got, want in zip(strings, padded, ids, strict=True) if not torch.equal(got, want)]
        assert not wrong, f"{case.id}: other ids for {wrong}"
        # Shorter rows give the same features: attention is causal.
        torch.testing.assert_close(tower.encode_text(ours), tower.encode_text(ids), atol=1e-4, rtol=1e-4)
    features = tower.encode_text(ids)
    outputs = {
        "features": features,
        "features_normalised": F.normalize(features, dim=-1),
        "tokens": tower.text_tokens(ids),
    }
    return summarised(case, outputs)
