"""Networks of a few thousand random weights, for tests of shape, gradient and arithmetic."""

from __future__ import annotations

from pathlib import Path

import torch

from avloc.backbones.beats import BEATs, BEATsConfig
from avloc.backbones.clipseg import CLIPSeg
from avloc.backbones.tokens import train_world_tokenizer
from avloc.types import AVBatch

SIDE, SECONDS = 32, 0.5


def tiny_clipseg(seed: int = 0) -> CLIPSeg:
    torch.manual_seed(seed)
    tokenizer = train_world_tokenizer(["a", "an", "photo", "photograph", "image", "of"])
    end = tokenizer.encode("")[-1]
    width = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    return CLIPSeg(
        {
            "text_config": width
            | {"num_hidden_layers": 2, "vocab_size": end + 1, "eos_token_id": end, "bos_token_id": end - 1},
            "vision_config": width | {"num_hidden_layers": 4, "image_size": SIDE, "patch_size": 16},
            "projection_dim": 64,
            "extract_layers": [0, 1, 2],
            "reduce_dim": 8,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 16,
            "use_complex_transposed_convolution": True,
        },
        tokenizer,
    )


def tiny_beats(seed: int = 0) -> BEATs:
    torch.manual_seed(seed)
    config = BEATsConfig(
        encoder_layers=2,
        encoder_embed_dim=16,
        encoder_ffn_embed_dim=32,
        encoder_attention_heads=2,
        conv_pos=8,
        conv_pos_groups=2,
        num_buckets=16,
        max_distance=40,
        embed_dim=16,
        encoder_layerdrop=0.0,
    )
    return BEATs(config, feature_layers=(1, 2)).requires_grad_(False)


def tiny_batch(size: int, seed: int = 0) -> AVBatch:
    g = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (size, 3, SIDE, SIDE), generator=g).to(torch.uint8)
    audio = 0.3 * torch.randn(size, round(SECONDS * 16000), generator=g)
    return AVBatch([f"s{seed}_{i}" for i in range(size)], image, audio, torch.full((size,), -1))


def tiny_files(folder: Path) -> dict[str, object]:
    """Arguments that build ACL or SOUPLE from tiny weight files written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_clipseg().save_world(folder / "clipseg.safetensors")
    tiny_beats().save_world(folder / "beats.safetensors")
    return {
        "clipseg": f"file:{folder / 'clipseg.safetensors'}",
        "beats": f"file:{folder / 'beats.safetensors'}",
        "feature_layers": (1, 2),
        "image_size": SIDE,
        "seconds": SECONDS,
    }
