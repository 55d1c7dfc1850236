"""Networks of a few thousand random weights, for tests of shape, gradient and arithmetic."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

from avloc.backbones.audioclip import AudioCLIP, AudioCLIPConfig, AudioConfig, ImageConfig, TextConfig
from avloc.backbones.beats import BEATs, BEATsConfig
from avloc.backbones.clipseg import CLIPSeg
from avloc.backbones.openclip import TINY as CLIP
from avloc.backbones.openclip import OpenCLIP
from avloc.backbones.sam import SAM, TINY
from avloc.backbones.tokens import train_world_tokenizer
from avloc.backbones.vggish import VGGish, VGGishConfig
from avloc.backbones.wav2clip import Wav2CLIP, Wav2CLIPConfig
from avloc.data.schema import Audio, Frame, Record, Sample, Target
from avloc.data.shards import write_shards
from avloc.types import AVBatch

SIDE, SECONDS = 32, 0.5
AUDIOCLIP = AudioCLIPConfig(
    embed_dim=16,
    image=ImageConfig(32, (1, 1, 1, 1), width=4, heads=2, strides=(2, 1, 1)),
    text=TextConfig(context_length=40, vocab_size=0, width=16, heads=2, layers=2),
    audio=AudioConfig(8000, 256, 70, 200, layers=(1, 1, 1, 1), width=4, groups=2, width_per_group=32),
)
WAV2CLIP = Wav2CLIPConfig(8000, 128, 90, blocks=(1, 1, 1, 1), mlp_units=(64, 32, 64))


def tiny_clipseg(seed: int = 0, words: Sequence[str] = ()) -> CLIPSeg:
    torch.manual_seed(seed)
    tokenizer = train_world_tokenizer(["a", "an", "photo", "photograph", "image", "of", *words])
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


def tiny_sam_files(folder: Path, seed: int = 0) -> dict[str, str]:
    """Weight sources of GAVS: a SAM of 64 pixels and 4 blocks, and a VGGish, written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    SAM(TINY).save_world(folder / "sam.safetensors")
    VGGish(VGGishConfig((4, 4, 8, 8), 16, 128)).save_world(folder / "vggish.safetensors")
    return {name: f"file:{folder / name}.safetensors" for name in ("sam", "vggish")}


def tiny_audioclip_files(folder: Path, words: list[str], rate: int = 8000) -> dict[str, str]:
    """Weight sources ``audioclip``, and ``wav2clip`` with its ``clip``, written to ``folder``.

    AudioCLIP sees 32 pixels with a stride of 8; its texts are of these words. CLIP sees 64 pixels.
    """
    torch.manual_seed(0)
    tokenizer = train_world_tokenizer(words)
    size = tokenizer.encode("")[-1] + 1
    text, audio = replace(AUDIOCLIP.text, vocab_size=size), replace(AUDIOCLIP.audio, sample_rate=rate)
    AudioCLIP(replace(AUDIOCLIP, text=text, audio=audio), tokenizer).save_world(folder / "audioclip.safetensors")
    clip = CLIP | {"text_cfg": CLIP["text_cfg"] | {"vocab_size": size}}
    OpenCLIP(clip, tokenizer).save_world(folder / "clip.safetensors")
    Wav2CLIP(replace(WAV2CLIP, sample_rate=rate)).save_world(folder / "wav2clip.safetensors")
    return {name: f"file:{folder / name}.safetensors" for name in ("audioclip", "clip", "wav2clip")}


def avs_clip(
    i: int,
    frames: int = 5,
    seconds: float = 5.0,
    empty: bool = False,
    tags: tuple[str, ...] = (),
    semantic: bool = False,
) -> Sample:
    """A video as AVSBench's converters write it: a wide picture and a mask for each second, one sound.

    Args:
        i: number of the video.
        frames: seconds with a picture.
        seconds: length of the sound.
        empty: the masks hold nothing.
        tags: of the record.
        semantic: with a map of classes a second, 1 where the mask is.
    """
    rng = np.random.default_rng(i)
    members = {"a0.wav": encoded(0.3 * rng.standard_normal(round(16000 * seconds)))}
    for k in range(frames):
        members[f"f{k}.jpg"] = picture(rng.integers(0, 256, (36, 64, 3)).astype(np.uint8), "JPEG")
        mask = np.zeros((36, 64), bool)
        mask[8:24, 4 * k + i % 8 : 4 * k + i % 8 + 20] = not empty
        members[f"m.f{k}.t0.png"] = picture(mask, "PNG")
        if semantic:
            members[f"sem.f{k}.png"] = picture(mask.astype(np.uint8), "PNG")
    classes = [f"sem.f{k}.png" if semantic else None for k in range(frames)]
    record = Record(
        "avs",
        f"v{i:03d}",
        tags=list(tags),
        video=f"v{i:03d}",
        frames=[Frame(f"f{k}.jpg", 64, 36, t=k, annotated=True, semantic=classes[k]) for k in range(frames)],
        audios=[Audio("a0.wav", duration=seconds, rate=16000)],
        targets=[Target(0, "dog", audio=0, masks=[f"m.f{k}.t0.png" for k in range(frames)])],
        map_rule="mask",
    )
    return Sample(record, members)


def avs_set(root: Path, dataset: str, split: str, clips: Iterable[Sample], per_shard: int = 3) -> Path:
    """The index of ``<root>/<dataset>/<dataset>-<split>.json``, after its shards of a few clips each are written."""
    report = write_shards(root / dataset, dataset, split, clips, records_per_shard=per_shard)
    assert report.index is not None
    return report.index


def encoded(wave: np.ndarray) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave, 16000, format="WAV", subtype="PCM_16")
    return out.getvalue()


def picture(pixels: np.ndarray, format: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format)
    return out.getvalue()
