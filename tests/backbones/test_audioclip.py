from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from avloc.backbones.audioclip import (
    WORLD,
    AudioCLIP,
    AudioCLIPConfig,
    AudioConfig,
    AudioTower,
    ImageConfig,
    ImageTower,
    TextConfig,
)
from avloc.backbones.tokens import clip_tokenizer, train_world_tokenizer
from avloc.weights import WeightError

TINY = AudioCLIPConfig(
    embed_dim=16,
    image=ImageConfig(64, (1, 1, 1, 1), width=4, heads=2),
    text=TextConfig(context_length=12, vocab_size=49408, width=8, heads=2, layers=2),
    audio=AudioConfig(8000, 256, 70, 200, layers=(1, 1, 1, 1), width=4, groups=2, width_per_group=32),
)
NAMES = ["drum", "bell", "saw", "dog"]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(module: nn.Module) -> nn.Module:
    """As if it had learnt something: no zero gains, no equal statistics."""
    g = torch.Generator().manual_seed(7)
    for name, x in module.state_dict().items():
        if name.endswith("running_var") or (".bn" in name and name.endswith("weight")):
            x.copy_(0.5 + torch.rand(x.shape, generator=g))
        elif name.endswith(("running_mean", "bias")):
            x.copy_(0.1 * torch.randn(x.shape, generator=g))
    return module.eval()


@pytest.fixture
def model() -> AudioCLIP:
    torch.manual_seed(0)
    tokenizer = train_world_tokenizer([*NAMES, "and"])
    text = replace(TINY.text, vocab_size=len(NAMES) + 4)
    clip = AudioCLIP(replace(TINY, text=text), tokenizer)
    trained(clip)
    return clip


def test_official_size_and_keys() -> None:
    with torch.device("meta"):
        official = AudioCLIP()
    state = {k: tuple(v.shape) for k, v in official.state_dict().items()}
    assert sum(p.numel() for p in official.parameters()) == 134_111_910  # counted in the authors' own model
    assert len(state) == 861
    for key, shape in {  # section 1.2
        "logit_scale_at": (),
        "positional_embedding": (77, 512),
        "text_projection": (512, 1024),
        "token_embedding.weight": (49408, 512),
        "transformer.resblocks.11.attn.in_proj_weight": (1536, 512),
        "transformer.resblocks.0.mlp.c_proj.weight": (512, 2048),
        "visual.conv3.weight": (64, 32, 3, 3),
        "visual.layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "visual.layer4.2.bn3.running_var": (2048,),
        "visual.attnpool.positional_embedding": (50, 2048),
        "visual.attnpool.c_proj.weight": (1024, 2048),
        "audio.window": (1654,),
        "audio.conv1.weight": (64, 3, 7, 7),
        "audio.layer4.0.downsample.1.weight": (2048,),
        "audio.att2.conv_depth.weight": (256, 1, 1, 5),
        "audio.att5.conv_depth.weight": (2048, 1, 3, 5),
        "audio.fc.weight": (1024, 2048),
        "audio.fbsp.bias": (0,),
    }.items():
        assert state[key] == shape, key


def test_tiles_of_the_official_tower() -> None:
    with torch.device("meta"):
        tower = AudioTower(AudioConfig(), 1024)
    columns = {1: 3, 2: 5, 3: 8, 4: 10, 5: 13, 10: 25}  # seconds to columns, of the released code
    assert {s: tower.grid(44100 * s) for s in columns} == {s: (11, n) for s, n in columns.items()}


def test_embedding_of_a_square_picture_is_that_of_open_clip(model: AudioCLIP) -> None:
    theirs = ModifiedResNet([1, 1, 1, 1], 16, 2, 64, 4).eval()
    theirs.load_state_dict(model.visual.state_dict())
    pixels = noise(2, 3, 64, 64)
    torch.testing.assert_close(model.encode_image(pixels), theirs(pixels))


def test_text_is_that_of_open_clip(model: AudioCLIP) -> None:
    text = {"context_length": 12, "vocab_size": 8, "width": 8, "heads": 2, "layers": 2}
    theirs = open_clip.model.CLIP(16, {"layers": [1, 1, 1, 1], "width": 4, "image_size": 64}, text, quick_gelu=True)
    own = {k: v for k, v in model.state_dict().items() if not k.startswith(("visual.", "audio.", "logit_scale_"))}
    vision = {k: v for k, v in theirs.state_dict().items() if k.startswith("visual.")}
    theirs.load_state_dict(own | vision)
    ids = model.tokenize(["dog and bell", "saw", ""])
    assert ids.tolist() == [[6, 3, 1, 2, 7], [6, 5, 7, 0, 0], [6, 7, 0, 0, 0]]
    want = theirs.eval().encode_text(F.pad(ids, (0, 12 - ids.shape[1])))
    torch.testing.assert_close(model.encode_text(ids), want)
    everywhere = model.text_tokens(ids)
    torch.testing.assert_close(everywhere[torch.arange(3), torch.tensor([4, 2, 1])], want)


def test_given_token_embeddings_can_learn(model: AudioCLIP) -> None:
    ids = model.tokenize(["bell", "dog"])
    tokens = model.token_embedding(ids).detach()
    torch.testing.assert_close(model.encode_tokens(tokens, torch.tensor([2, 2])), model.encode_text(ids))
    learnt = noise(2, 3, 8).requires_grad_()
    prompt = torch.cat([tokens[:, :1], learnt, tokens[:, 1:]], dim=1)
    model.encode_tokens(prompt, torch.tensor([5, 5])).square().sum().backward()
    assert learnt.grad is not None
    assert (learnt.grad.abs().sum((0, 2)) > 0).all()


@pytest.mark.parametrize("rows", [4, 8, 2])
def test_positions_are_resized_as_a_sequence(model: AudioCLIP, rows: int) -> None:
    pool = model.visual.attnpool
    table = pool.positional_embedding.detach().numpy()  # 1 + 2 x 2 rows
    got = pool.positions(1 + rows).detach().numpy()
    np.testing.assert_array_equal(got[0], table[0])
    places = np.linspace(0, 3, rows)
    for channel in range(0, 128, 17):
        want = np.interp(places, range(4), table[1:, channel])
        np.testing.assert_allclose(got[1:, channel], want, atol=1e-6)


def attention(model: AudioCLIP, x: Tensor) -> Tensor:
    """Self-attention of ``[B, N, C]`` with the pool's projections, one query at a time."""
    pool = model.visual.attnpool
    q, k, v = (p(x).unflatten(2, (2, 64)) for p in (pool.q_proj, pool.k_proj, pool.v_proj))
    rows = []
    for n in range(x.shape[1]):
        weights = (torch.einsum("bhc,bmhc->bhm", q[:, n], k) / 8).softmax(-1)
        rows.append(pool.c_proj(torch.einsum("bhm,bmhc->bhc", weights, v).flatten(1)))
    return torch.stack(rows, dim=1)


def test_patches_of_a_wide_picture_in_both_ways(model: AudioCLIP) -> None:
    pixels, pool = noise(2, 3, 64, 128), model.visual.attnpool
    patches = model.visual.features(pixels).flatten(2).mT
    assert patches.shape == (2, 2 * 4, 128)
    sequence = attention(model, patches + pool.positions(8))
    torch.testing.assert_close(model.image_tokens(pixels), sequence, atol=1e-5, rtol=1e-4)
    tokens = torch.cat([patches.mean(1, keepdim=True), patches], dim=1) + pool.grid_positions(2, 4)
    grid = attention(model, tokens)[:, 1:]
    torch.testing.assert_close(model.image_tokens(pixels, "grid"), grid, atol=1e-5, rtol=1e-4)
    square = model.visual.features(pixels[..., :64]).flatten(2).mT
    tokens = torch.cat([square.mean(1, keepdim=True), square], dim=1) + pool.positional_embedding
    want = attention(model, tokens)
    torch.testing.assert_close(model.encode_image(pixels[..., :64]), want[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.image_tokens(pixels[..., :64], "grid"), want[:, 1:], atol=1e-5, rtol=1e-4)


def test_a_grid_of_positions_keeps_its_corners_apart(model: AudioCLIP) -> None:
    """A table that says "right half" must say so in the resized one."""
    pool = model.visual.attnpool
    with torch.no_grad():
        pool.positional_embedding.copy_(torch.tensor([9.0, -1, 1, -1, 1])[:, None].expand(5, 128))
    got = pool.grid_positions(2, 4)[:, 0]
    assert got[0] == 9
    assert (got[1:].view(2, 4).sign() == torch.tensor([-1, -1, 1, 1])).all()


def test_strides_make_finer_patches() -> None:
    assert ImageConfig(64, strides=(2, 1, 1)).stride == 8
    tower = ImageTower(replace(TINY.image, strides=(2, 1, 1)), 16)
    trained(tower)
    assert tower.tokens(noise(1, 3, 64, 128)).shape == (1, 8 * 16, 16)
    pixels = noise(1, 3, 64, 64)
    changed = pixels.clone()
    changed[..., 40:44, 16:20] += 5
    moved = (tower.features(pixels) - tower.features(changed)).abs().sum(1)[0]
    assert divmod(int(moved.argmax()), 8) == (5, 2)


def test_sounds_are_brought_to_sixteen_bits(model: AudioCLIP) -> None:
    sound = 0.1 * noise(2, 4000)
    torch.testing.assert_close(model.encode_audio(sound), model.audio(sound * 32768), atol=0, rtol=0)
    torch.testing.assert_close(model.encode_audio(sound, scale=1.0), model.audio(sound), atol=0, rtol=0)
    assert not torch.allclose(model.encode_audio(sound), model.encode_audio(sound, scale=1.0), atol=1e-3)
    features = model.audio_features(sound)
    assert tuple(features.shape[2:]) == model.audio.grid(4000) == (2, 2)
    torch.testing.assert_close(model.audio_tokens(sound), model.audio.tokens(features), atol=0, rtol=0)


def test_tiles_run_through_the_times_of_a_frequency_first(model: AudioCLIP) -> None:
    features = noise(1, 128, 2, 3)
    rows = features.clone()
    rows[:, :, 1] += 1  # the upper frequencies
    changed = (model.audio.tokens(features) - model.audio.tokens(rows)).abs().sum(2)[0]
    # The gate's depthwise kernel of three rows lets the lower frequencies notice, but only a little.
    assert changed[3:].min() > changed[:3].max()


def test_without_gates_the_embedding_is_the_mean_tile() -> None:
    torch.manual_seed(3)
    tower = AudioTower(replace(TINY.audio, attention=False), 16)
    assert not any(k.startswith("att") for k in tower.state_dict())
    features = tower.eval().features(3000 * noise(2, 4000))
    torch.testing.assert_close(tower.pool(features), tower.tokens(features).mean(1))


def test_a_clip_and_a_picture_do_not_depend_on_their_batch(model: AudioCLIP) -> None:
    sound, pixels = 0.1 * noise(3, 4000), noise(3, 3, 64, 128)
    torch.testing.assert_close(model.audio_tokens(sound)[1:2], model.audio_tokens(sound[1:2]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.image_tokens(pixels)[1:2], model.image_tokens(pixels[1:2]))


def test_temperatures_are_bounded(model: AudioCLIP) -> None:
    start = [model.temperature(pair).item() for pair in ("image_text", "audio_image", "audio_text")]
    assert start == pytest.approx([1 / 0.07, 100, 100])
    with torch.no_grad():
        model.logit_scale.fill_(-1)
        model.logit_scale_ai.fill_(5)
        model.logit_scale_at.fill_(1)
    bounded = [model.temperature(pair).item() for pair in ("image_text", "audio_image", "audio_text")]
    assert bounded == pytest.approx([1, 100, np.e])


def test_official_file_loads_frozen(model: AudioCLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avloc.backbones.audioclip.model.AudioCLIPConfig", lambda: TINY)  # the official one has 537 MB
    torch.manual_seed(5)
    official = AudioCLIP(TINY)
    trained(official)
    torch.save(official.state_dict(), tmp_path / "official.pt")
    loaded = AudioCLIP.from_source(f"file:{tmp_path / 'official.pt'}")
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(m.training for m in loaded.train().modules())
    assert loaded.file.sha256
    ids = loaded.tokenize(["dog barking"])
    assert ids.tolist() == [[49406, 1929, 32676, 49407]]
    torch.testing.assert_close(loaded.encode_text(ids), official.encode_text(ids))
    assert AudioCLIP.from_source(f"file:{tmp_path / 'official.pt'}", frozen=False).train().audio.bn1.training
    clip = {k: v for k, v in official.state_dict().items() if not k.startswith("audio.")}
    torch.save(clip, tmp_path / "CLIP.pt")
    with pytest.raises(WeightError, match=r"CLIP\.pt does not fit AudioCLIP: \d+ missing \(audio\."):
        AudioCLIP.from_source(f"file:{tmp_path / 'CLIP.pt'}")


def test_batch_statistics_are_a_switch(model: AudioCLIP) -> None:
    frozen = AudioCLIP(model.config, model.tokenizer, frozen=True)
    before = frozen.visual.bn1.running_mean.clone()
    frozen.train()
    frozen.encode_image(noise(2, 3, 64, 64))
    assert torch.equal(frozen.visual.bn1.running_mean, before)
    frozen.frozen = False
    frozen.train()
    frozen.encode_image(noise(2, 3, 64, 64))
    assert not torch.equal(frozen.visual.bn1.running_mean, before)


def test_world_file_is_half_precision_where_it_may_be(model: AudioCLIP, tmp_path: Path) -> None:
    with torch.no_grad():
        model.audio.fbsp.fc[100] = 100.03125 + 2**-10
    path = tmp_path / "audioclip.safetensors"
    model.save_world(path, seed="7")
    with safe_open(path, "pt") as f:
        half = {k for k in f.keys() if f.get_slice(k).get_dtype() == "F16"}  # noqa: SIM118
        assert f.metadata()["seed"] == "7"
    assert {"audio.fc.weight", "positional_embedding", "visual.conv1.weight"} <= half
    assert not half & {"audio.fbsp.fc", "visual.bn1.running_var", "logit_scale"}
    loaded = AudioCLIP.from_source(f"file:{path}")
    assert loaded.config == model.config
    assert torch.equal(loaded.audio.fbsp.fc, model.audio.fbsp.fc)
    assert loaded.tokenize(["bell and dog"]).tolist() == model.tokenize(["bell and dog"]).tolist()
    pixels, sound = noise(1, 3, 64, 64), 0.1 * noise(1, 4000)
    for got, want in (
        (loaded.image_tokens(pixels), model.image_tokens(pixels)),
        (loaded.audio_tokens(sound), model.audio_tokens(sound)),
        (loaded.encode_text(loaded.tokenize(NAMES)), model.encode_text(model.tokenize(NAMES))),
    ):
        assert F.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.999


def test_a_world_file_of_another_kind_is_refused() -> None:
    with pytest.raises(WeightError, match=r"holds a clipseg, not an AudioCLIP"):
        AudioCLIP.from_source("world:clipseg")


def test_every_parameter_of_the_world_size_learns() -> None:
    torch.manual_seed(0)
    tokenizer = train_world_tokenizer(NAMES)
    size = replace(WORLD, text=replace(WORLD.text, vocab_size=len(NAMES) + 3))
    clip = AudioCLIP(size, tokenizer)
    trained(clip).train()
    assert sum(p.numel() for p in clip.parameters()) < 2_000_000
    pixels, sound = noise(4, 3, 64, 64), 0.1 * noise(4, 32000)
    ids = clip.tokenize(NAMES)
    image, patches = clip.encode_image(pixels), clip.image_tokens(pixels)
    audio, tiles = clip.encode_audio(sound), clip.audio_tokens(sound)
    assert patches.shape == (4, 64, 64)
    assert tiles.shape == (4, 15, 64)
    text = clip.encode_text(ids)
    with torch.no_grad():
        clip.logit_scale_ai.fill_(3)
        clip.logit_scale_at.fill_(3)
    total = sum(
        clip.temperature(pair) * (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum()
        for pair, a, b in (("image_text", image, text), ("audio_image", audio, image), ("audio_text", audio, text))
    )
    assert isinstance(total, Tensor)
    (total + patches.square().mean() + tiles.square().mean()).backward()
    assert not [n for n, p in clip.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_bfloat16_stays_near(model: AudioCLIP) -> None:
    pixels, sound, ids = noise(2, 3, 64, 64), 0.1 * noise(2, 4000), model.tokenize(NAMES)

    def run() -> list[Tensor]:
        return [model.image_tokens(pixels), model.audio_tokens(sound), model.encode_text(ids)]

    want = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run()
    for a, b in zip(got, want, strict=True):
        assert F.cosine_similarity(a.float().flatten(), b.flatten(), dim=0) > 0.99


def test_unusable_inputs_are_named(model: AudioCLIP) -> None:
    with pytest.raises(ValueError, match=r"multiples of 32 pixels; got 64 x 100.*image_size"):
        model.image_tokens(torch.zeros(1, 3, 64, 100))
    with pytest.raises(ValueError, match=r"multiples of 32 pixels; got 0 x 64"):
        model.encode_image(torch.zeros(1, 3, 0, 64))
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\], got \[3, 64, 64\]"):
        model.encode_image(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match=r"at least 200 samples \(8000 Hz\), got \[2, 199\].*pad the clip"):
        model.encode_audio(torch.zeros(2, 199))
    with pytest.raises(ValueError, match=r"mono waveform \[B, T\].*got \[1, 2, 4000\]. Mix the channels"):
        model.audio_tokens(torch.zeros(1, 2, 4000))
    with pytest.raises(ValueError, match=r"'dog dog.*has 14 tokens, the text tower takes 12"):
        model.tokenize(["saw", " ".join(["dog"] * 12)])
    with pytest.raises(ValueError, match="13 tokens exceeds the text tower's 12"):
        model.encode_text(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="without a tokenizer"):
        AudioCLIP(model.config).tokenize(["dog"])


def test_unusable_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="image size 80 is no multiple of the stride 32"):
        ImageConfig(80)
    with pytest.raises(ValueError, match="7 heads do not divide the map's 2048 channels"):
        ImageConfig(heads=7)
    with pytest.raises(ValueError, match="width_per_group 4 leaves no channel per group at width 12; it must be 6"):
        AudioConfig(width=12)


def test_clip_tokenizer_is_the_official_one() -> None:
    with torch.device("meta"):
        official = AudioCLIP(tokenizer=clip_tokenizer())
    with pytest.raises(ValueError, match="has 82 tokens, the text tower takes 77"):
        official.tokenize(["dog " * 80])
