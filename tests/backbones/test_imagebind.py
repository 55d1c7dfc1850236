"""ImageBind's towers against timm, torch's own layers, Kaldi's own filter banks and sums written out."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import kaldi_native_fbank
import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from avloc.backbones import imagebind
from avloc.backbones.imagebind import (
    AudioConfig,
    ImageBind,
    ImageBindConfig,
    TextConfig,
    VisionConfig,
    pieces,
)
from avloc.backbones.imagebind.layers import Block
from avloc.backbones.imagebind.model import HannFbank
from avloc.backbones.openclip import OpenCLIP
from avloc.backbones.tokens import clip_tokenizer, train_world_tokenizer
from avloc.weights import WeightError

WORDS = ["a", "dog", "cat", "barking"]
TINY = ImageBindConfig(
    embed_dim=12,
    vision=VisionConfig(size=28, patch=14, width=16, layers=2, heads=2),
    audio=AudioConfig(seconds=0.5, mels=32, frames=52, width=24, layers=2, heads=3),
    text=TextConfig(context_length=9, vocab_size=7, width=16, layers=2, heads=4),
)


def noise(*shape: int, seed: int = 1, scale: float = 0.1) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module) -> nn.Module:
    """Every parameter random, norms and biases too, so that none can be forgotten."""
    torch.manual_seed(3)
    for p in module.parameters():
        if p.ndim:
            nn.init.normal_(p, mean=1.0 if p.ndim == 1 else 0.0, std=0.2)
    return module.eval()


@pytest.fixture
def model() -> ImageBind:
    model = ImageBind(TINY, train_world_tokenizer(WORDS))
    shaken(model)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def huge() -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = ImageBind()
    return {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize(("tower", "millions"), [("vision", 633), ("text", 354), ("audio", 86)])
def test_sizes_of_the_official_towers(huge: dict[str, torch.Size], tower: str, millions: int) -> None:
    own = [s.numel() for k, s in huge.items() if k.split(".")[1] == tower and not k.endswith("mask")]
    assert round(sum(own) / 1e6) == millions


def test_official_keys_and_shapes(huge: dict[str, torch.Size]) -> None:
    pre, trunks, heads = "modality_preprocessors.", "modality_trunks.", "modality_heads."
    want: dict[str, tuple[int, ...]] = {
        f"{pre}vision.cls_token": (1, 1, 1280),
        f"{pre}vision.rgbt_stem.proj.1.weight": (1280, 3, 2, 14, 14),
        f"{pre}vision.pos_embedding_helper.pos_embed": (1, 257, 1280),
        f"{pre}audio.cls_token": (1, 1, 768),
        f"{pre}audio.rgbt_stem.proj.weight": (768, 1, 16, 16),
        f"{pre}audio.rgbt_stem.norm_layer.weight": (768,),
        f"{pre}audio.rgbt_stem.norm_layer.bias": (768,),
        f"{pre}audio.pos_embedding_helper.pos_embed": (1, 229, 768),
        f"{pre}text.pos_embed": (1, 77, 1024),
        f"{pre}text.token_embedding.weight": (49408, 1024),
        f"{pre}text.mask": (77, 77),
        f"{trunks}vision.pre_transformer_layer.0.weight": (1280,),
        f"{trunks}vision.pre_transformer_layer.0.bias": (1280,),
        f"{heads}vision.2.weight": (1024, 1280),
        f"{heads}audio.2.weight": (1024, 768),
        f"{heads}text.proj.1.weight": (1024, 1024),
        "modality_postprocessors.text.1.log_logit_scale": (),
        "modality_postprocessors.audio.1.log_logit_scale": (),
    }
    for head, width in (("vision.0", 1280), ("audio.0", 768), ("text.proj.0", 1024)):
        want |= {f"{heads}{head}.{w}": (width,) for w in ("weight", "bias")}
    for tower, width, layers in (("vision", 1280, 32), ("text", 1024, 24), ("audio", 768, 12)):
        for i in range(layers):
            block = f"{trunks}{tower}.blocks.{i}."
            want |= {
                f"{block}attn.in_proj_weight": (3 * width, width),
                f"{block}attn.in_proj_bias": (3 * width,),
                f"{block}attn.out_proj.weight": (width, width),
                f"{block}attn.out_proj.bias": (width,),
                f"{block}mlp.fc1.weight": (4 * width, width),
                f"{block}mlp.fc1.bias": (4 * width,),
                f"{block}mlp.fc2.weight": (width, 4 * width),
                f"{block}mlp.fc2.bias": (width,),
            }
            want |= {f"{block}norm_{n}.{w}": (width,) for n in (1, 2) for w in ("weight", "bias")}
            if tower == "audio":
                want |= {f"{block}attn.bias_{x}": (1, 1, width) for x in "kv"}
    assert {k: tuple(s) for k, s in huge.items()} == want


def test_block_is_torch_s_pre_norm_layer_with_exact_gelu() -> None:
    block = shaken(Block(16, 4, bias_kv=False))
    theirs = nn.TransformerEncoderLayer(16, 4, 64, 0.0, F.gelu, 1e-6, batch_first=True, norm_first=True)
    names = {"attn": "self_attn", "norm_1": "norm1", "norm_2": "norm2", "mlp.fc1": "linear1", "mlp.fc2": "linear2"}
    theirs.load_state_dict(
        {next(k.replace(a, b) for a, b in names.items() if k.startswith(a)): v for k, v in block.state_dict().items()}
    )
    x, causal = noise(2, 5, 16, scale=1), nn.Transformer.generate_square_subsequent_mask(5)
    theirs.train()  # its fast path is another computation; there is no dropout
    torch.testing.assert_close(block(x, None), theirs(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(block(x, causal), theirs(x, src_mask=causal), atol=1e-5, rtol=1e-4)


def test_audio_s_attention_sees_one_learnt_key_more() -> None:
    block = shaken(Block(6, 2, bias_kv=True))
    nn.init.normal_(block.attn.bias_k, std=1.0)
    nn.init.normal_(block.attn.bias_v, std=1.0)
    x = noise(1, 4, 6, scale=1)
    state = {k: v.double().numpy() for k, v in block.state_dict().items()}

    def norm(v: np.ndarray, name: str) -> np.ndarray:
        return (v - v.mean()) / math.sqrt(v.var() + 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]

    rows = x[0].double().numpy()
    q, k, v = np.split(
        np.stack([state["attn.in_proj_weight"] @ norm(r, "norm_1") + state["attn.in_proj_bias"] for r in rows]), 3, 1
    )
    k, v = np.vstack([k, state["attn.bias_k"][0]]), np.vstack([v, state["attn.bias_v"][0]])
    for i, row in enumerate(rows):
        heads = []
        for h in (slice(0, 3), slice(3, 6)):
            e = np.exp(k[:, h] @ q[i, h] / math.sqrt(3))
            heads.append(e @ v[:, h] / e.sum())
        y = row + state["attn.out_proj.weight"] @ np.concatenate(heads) + state["attn.out_proj.bias"]
        hidden = state["mlp.fc1.weight"] @ norm(y, "norm_2") + state["mlp.fc1.bias"]
        gelu = np.array([0.5 * u * (1 + math.erf(u / math.sqrt(2))) for u in hidden])
        y = y + state["mlp.fc2.weight"] @ gelu + state["mlp.fc2.bias"]
        np.testing.assert_allclose(block(x, None)[0, i].detach().numpy(), y, rtol=1e-4, atol=1e-5)


def test_vision_tower_is_a_vit_of_timm_on_a_picture_shown_twice(model: ImageBind) -> None:
    c = TINY.vision
    vit = VisionTransformer(
        img_size=c.size,
        patch_size=c.patch,
        num_classes=TINY.embed_dim,
        embed_dim=c.width,
        depth=c.layers,
        num_heads=c.heads,
        pre_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()
    own = {k.replace(".vision.", "."): v for k, v in model.state_dict().items() if ".vision." in k}
    pre, trunk, head = "modality_preprocessors.", "modality_trunks.", "modality_heads."
    state = {
        "cls_token": own[f"{pre}cls_token"],
        "pos_embed": own[f"{pre}pos_embedding_helper.pos_embed"],
        "patch_embed.proj.weight": own[f"{pre}rgbt_stem.proj.1.weight"][:, :, 0],
        "head.weight": own[f"{head}2.weight"],
        "head.bias": torch.zeros(TINY.embed_dim),
    }
    for w in ("weight", "bias"):
        state[f"norm_pre.{w}"] = own[f"{trunk}pre_transformer_layer.0.{w}"]
        state[f"norm.{w}"] = own[f"{head}0.{w}"]
        for i in range(c.layers):
            block = f"{trunk}blocks.{i}."
            state[f"blocks.{i}.attn.qkv.{w}"] = own[f"{block}attn.in_proj_{w}"]
            for ours, theirs in (("attn.out_proj", "attn.proj"), ("norm_1", "norm1"), ("norm_2", "norm2")):
                state[f"blocks.{i}.{theirs}.{w}"] = own[f"{block}{ours}.{w}"]
            for fc in ("fc1", "fc2"):
                state[f"blocks.{i}.mlp.{fc}.{w}"] = own[f"{block}mlp.{fc}.{w}"]
    vit.load_state_dict(state)
    pixels = noise(3, 3, c.size, c.size, scale=1)
    kernel = own[f"{pre}rgbt_stem.proj.1.weight"]
    video = pixels.unsqueeze(2).repeat(1, 1, 2, 1, 1)
    stem = F.conv3d(video, kernel, stride=(2, 14, 14)).flatten(2).mT
    vit.patch_embed = nn.Identity()  # its convolution sees one frame; the stem sees two
    want = vit(stem)
    torch.testing.assert_close(model.encode_image(pixels), F.normalize(want, dim=-1), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"ImageBind sees \[B, 3, 28, 28\]; got \[1, 3, 28, 42\]"):
        model.encode_image(torch.zeros(1, 3, 28, 42))


def test_text_tower_pools_the_end_of_text_and_padding_cannot_matter(model: ImageBind) -> None:
    ids = model.tokenize(["a dog barking", "cat"])
    assert ids.tolist() == [[5, 1, 4, 2, 6], [5, 3, 6, 0, 0]]
    own = {k: v for k, v in model.state_dict().items() if ".text." in k}
    full = F.pad(ids, (0, 9 - ids.shape[1]))
    x = own["modality_preprocessors.text.token_embedding.weight"][full] + own["modality_preprocessors.text.pos_embed"]
    layer = nn.TransformerEncoderLayer(16, 4, 64, 0.0, F.gelu, 1e-6, batch_first=True, norm_first=True)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    names = {"attn.": "self_attn.", "norm_": "norm", "mlp.fc1": "linear1", "mlp.fc2": "linear2"}
    state = {}
    for k, v in own.items():
        if k.startswith("modality_trunks.text.blocks."):
            i, _, rest = k.removeprefix("modality_trunks.text.blocks.").partition(".")
            state[f"layers.{i}.{next(rest.replace(a, b) for a, b in names.items() if rest.startswith(a))}"] = v
    stack.load_state_dict(state)
    y = stack(x, mask=nn.Transformer.generate_square_subsequent_mask(9))
    y = torch.stack([y[0, 4], y[1, 2]])
    head = [own[f"modality_heads.text.proj.0.{w}"] for w in ("weight", "bias")]
    y = F.layer_norm(y, (16,), *head, eps=1e-6) @ own["modality_heads.text.proj.1.weight"].T
    want = F.normalize(y, dim=-1) / 0.07  # the temperature that it starts with
    torch.testing.assert_close(model.encode_text(ids), want, atol=1e-4, rtol=1e-4)
    model.get_parameter("modality_postprocessors.text.1.log_logit_scale").fill_(9.0)
    assert model.encode_text(ids).norm(dim=-1).tolist() == pytest.approx([100, 100], rel=1e-4)


def test_long_text_keeps_its_end(model: ImageBind) -> None:
    ids = model.tokenize(["a " * 20])
    assert ids.tolist() == [[5, 1, 1, 1, 1, 1, 1, 1, 6]]
    assert clip_tokenizer().encode("dog barking") == [49406, 1929, 32676, 49407]
    with pytest.raises(ValueError, match="without a tokenizer"):
        ImageBind(TINY).tokenize(["a"])


@pytest.mark.parametrize(
    ("samples", "count", "length", "starts"),
    [(160000, 3, 32000, [0, 64000, 128000]), (33001, 3, 32000, [0, 500, 1001]), (9, 2, 4, [0, 5]), (7, 1, 4, [0])],
)
def test_pieces_are_evenly_spaced(samples: int, count: int, length: int, starts: list[int]) -> None:
    got = pieces(torch.arange(samples)[None].float(), count, length)
    assert got[0, :, 0].tolist() == starts
    assert got.shape == (1, count, length)


def test_a_short_clip_is_every_piece_itself() -> None:
    clip = noise(2, 5)
    assert torch.equal(pieces(clip, 3, 8), torch.stack([clip] * 3, 1))


def test_front_end_against_kaldi() -> None:
    rate, n = 16000, 32000
    t = torch.arange(n) / rate
    clip = torch.stack([0.02 * torch.sin(880 * 6.2832 * t) + noise(n, scale=0.01) + 0.05, torch.zeros(n)])
    with torch.device("meta"):
        model = ImageBind()
    model.fbank = HannFbank(rate, 128)
    got = model.spectrograms(clip)
    assert got.shape == (2, 3, 1, 128, 204)
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither = rate, 0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins, options.use_energy, options.htk_compat = 128, False, True
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(rate, (clip[0] - clip[0].mean()).tolist())
    bank.input_finished()
    want = torch.stack([torch.from_numpy(bank.get_frame(i)) for i in range(bank.num_frames_ready)], 1)
    assert want.shape == (128, 198)
    torch.testing.assert_close(got[0, 0, 0, :, :198], (want + 4.268) / 9.138, atol=2e-3, rtol=0)
    assert torch.allclose(got[0, :, :, :, 198:], torch.tensor(4.268 / 9.138))
    assert torch.equal(got[0, 0], got[0, 2])  # two seconds have room for one piece only
    silence = (math.log(torch.finfo(torch.float32).eps) + 4.268) / 9.138
    assert torch.allclose(got[1, ..., :198], torch.tensor(silence), atol=1e-4)


def test_a_sound_is_the_mean_of_its_pieces_at_length_twenty(model: ImageBind) -> None:
    clip = noise(2, 20000, seed=5)
    parts = [clip[:, s : s + 8000] for s in (0, 6000, 12000)]
    got = model.encode_audio(clip)
    each = [model.encode_audio(p) for p in parts]  # a clip of one piece is heard three times
    for e in each:
        assert e.norm(dim=-1).tolist() == pytest.approx([20, 20], rel=1e-4)
    torch.testing.assert_close(got, sum(each) / 3, atol=1e-4, rtol=1e-4)
    x = model.spectrograms(clip)
    assert torch.equal(x[:, 1], model.spectrograms(parts[1])[:, 0])
    stem = nn.Conv2d(1, 24, 16, 10, bias=False)
    stem.weight.data = model.state_dict()["modality_preprocessors.audio.rgbt_stem.proj.weight"]
    assert stem(x[0]).shape == (3, 24, 2, 4)  # bands by frames, 8 patches
    with pytest.raises(ValueError, match=r"at least 400 samples \(16000 Hz\), got \[2, 399\]"):
        model.encode_audio(torch.zeros(2, 399))


def test_world_file_loads_as_it_was_saved(model: ImageBind, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    model.save_world(path, command="none")
    again = ImageBind.from_source(f"file:{path}")
    assert again.config == TINY
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, atol=1e-3, rtol=1e-3)
    assert torch.equal(again.tokenize(["a cat"]), model.tokenize(["a cat"]))
    with pytest.raises(WeightError, match="holds a imagebind, not an open_clip CLIP"):
        OpenCLIP.from_source(f"file:{path}")


def test_official_file_loads_without_its_other_senses(
    model: ImageBind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagebind.model, "ImageBindConfig", lambda: TINY)
    state = model.state_dict()
    others = {
        "modality_preprocessors.imu.pos_embed": torch.zeros(2),
        "modality_heads.depth.0.weight": torch.zeros(2),
        "modality_postprocessors.thermal.1.log_logit_scale": torch.zeros(()),
    }
    path = tmp_path / "imagebind_huge.pth"
    torch.save(state | others, path)
    loaded = ImageBind.from_source(f"file:{path}")
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in state.items())
    del state["modality_heads.audio.2.weight"]
    torch.save(state | {"modality_heads.audio.3.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightError, match=r"1 missing \(modality_heads.audio.2.weight\); 1 unknown"):
        ImageBind.from_source(f"file:{path}")


def test_official_towers_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = ImageBind()
        heard = torch.zeros(2, 3, 1, 128, 204)  # as in `test_front_end_against_kaldi`, which has no meta device
        monkeypatch.setattr(model, "spectrograms", lambda waveform: heard)
        answers = (
            model.encode_image(torch.zeros(2, 3, 224, 224)),
            model.encode_audio(torch.zeros(2, 160000)),
            model.encode_text(torch.zeros(2, 77, dtype=torch.long)),
        )
    assert [a.shape for a in answers] == [(2, 1024)] * 3
