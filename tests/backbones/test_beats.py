from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from avloc.backbones.beats import Attention, BEATs, BEATsConfig, PositionalConv, offset_buckets
from avloc.weights import WeightError

TINY = BEATsConfig(
    encoder_layers=4,
    encoder_embed_dim=24,
    encoder_ffn_embed_dim=32,
    encoder_attention_heads=4,
    conv_pos=16,
    conv_pos_groups=4,
    num_buckets=32,
    max_distance=80,
    embed_dim=16,
)
UNSHAPED = {
    "dropout": 0.0,
    "predictor_class": 5,
    "finetuned_model": True,
    "layer_wise_gradient_decay_ratio": 0.6,
}


@pytest.fixture
def tower() -> BEATs:
    torch.manual_seed(0)
    return BEATs(TINY, feature_layers=(2, 4, 8)).eval()


@pytest.fixture
def waveform() -> Tensor:
    return 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))


def official_file(tower: BEATs, path: Path, **cfg: object) -> Path:
    predictor = {"predictor.weight": torch.ones(5, 24), "predictor.bias": torch.ones(5)}
    torch.save({"cfg": asdict(tower.config) | UNSHAPED | cfg, "model": tower.state_dict() | predictor}, path)
    return path


def bucket(offset: int, num_buckets: int, max_distance: int) -> int:
    """One offset at a time, in double precision."""
    half, distance = num_buckets // 2, abs(offset)
    row = half if offset > 0 else 0
    if distance < half // 2:
        return row + distance
    spaced = math.log(distance / (half // 2)) / math.log(max_distance / (half // 2)) * (half - half // 2)
    return row + min(half // 2 + int(spaced), half - 1)


@pytest.mark.parametrize(("length", "num_buckets", "max_distance"), [(496, 320, 800), (70, 32, 80), (1, 32, 80)])
def test_buckets_against_one_at_a_time(length: int, num_buckets: int, max_distance: int) -> None:
    got = offset_buckets(length, num_buckets, max_distance, torch.device("cpu"))
    want = [bucket(d, num_buckets, max_distance) for d in range(1 - length, length)]
    assert got.tolist() == want


def test_position_bias_is_indexed_by_key_minus_query(tower: BEATs) -> None:
    table = tower.encoder.layers[0].self_attn.relative_attention_bias.weight
    got = tower.encoder.position_bias(20)
    for query, key in [(0, 0), (3, 9), (9, 3), (19, 0), (0, 19)]:
        assert torch.equal(got[:, query, key], table[bucket(key - query, 32, 80)])


def test_attention_against_loops() -> None:
    torch.manual_seed(2)
    attention = Attention(TINY, None)
    nn.init.normal_(attention.grep_a)
    x, bias = torch.randn(2, 5, 24), torch.randn(4, 5, 5)
    q, k, v = (p(x).reshape(2, 5, 4, 6) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    y = torch.zeros(2, 5, 4, 6)
    for b in range(2):
        for h in range(4):
            for i in range(5):
                eight = attention.grep_linear(q[b, i, h])
                g1, g2 = eight[:4].sum().sigmoid(), eight[4:].sum().sigmoid()
                factor = g1 * (g2 * attention.grep_a[0, h, 0, 0] - 1) + 2
                logits = [q[b, i, h] @ k[b, j, h] / 6**0.5 + factor * bias[h, i, j] for j in range(5)]
                y[b, i, h] = torch.stack(logits).softmax(0) @ v[b, :, h]
    torch.testing.assert_close(attention(x, bias), attention.out_proj(y.reshape(2, 5, 24)))


@pytest.mark.parametrize("kernel", [16, 7])
def test_positional_conv_against_weight_norm(kernel: int) -> None:
    torch.manual_seed(3)
    ours = PositionalConv(24, kernel, 4)
    nn.init.uniform_(ours.weight_g, 0.5, 2)
    nn.init.normal_(ours.bias)
    theirs = weight_norm(nn.Conv1d(24, 24, kernel, padding=kernel // 2, groups=4), dim=2)
    theirs.parametrizations.weight.original0.data = ours.weight_g.data
    theirs.parametrizations.weight.original1.data = ours.weight_v.data
    theirs.bias.data = ours.bias.data
    x = torch.randn(2, 30, 24)
    torch.testing.assert_close(ours(x), theirs(x.mT)[..., :30].mT)


def test_patches_are_time_major(tower: BEATs) -> None:
    fbank = torch.randn(1, 50, 128, generator=torch.Generator().manual_seed(4))
    changed = fbank.clone()
    changed[:, 16:32, 48:64] += 1  # second time step, fourth mel patch
    moved = (tower.patches(fbank) != tower.patches(changed)).any(-1)
    assert moved.shape == (1, 3 * 8)
    assert moved.nonzero().tolist() == [[0, 8 + 3]]


def test_features_are_the_layers_side_by_side(tower: BEATs, waveform: Tensor) -> None:
    x, features, layers = tower.extract_features(waveform)
    assert list(layers) == [2, 4]
    assert features.shape == (2, 3 * 8, 48)  # 48 frames: three time steps of eight mel patches
    assert torch.equal(features[..., :24], layers[2])
    assert torch.equal(features[..., 24:], layers[4])
    assert torch.equal(x, layers[4])
    assert torch.equal(tower(waveform), features)


def test_pre_norm_normalises_the_last_output_only(waveform: Tensor) -> None:
    torch.manual_seed(5)
    tower = BEATs(replace(TINY, layer_norm_first=True), feature_layers=(4,))
    x, features, _ = tower.extract_features(waveform)
    torch.testing.assert_close(x, tower.encoder.layer_norm(features))
    assert not torch.allclose(x, features, atol=0.1)


def test_a_clip_does_not_depend_on_its_batch(tower: BEATs, waveform: Tensor) -> None:
    torch.testing.assert_close(tower(waveform)[1:], tower(waveform[1:]))


def test_official_size() -> None:
    with torch.device("meta"):
        tower = BEATs()
    assert sum(p.numel() for p in tower.parameters()) == 90_311_792  # counted in Microsoft's own model
    assert len(tower.state_dict()) == 252 - 2  # the official file's keys without the classifier
    assert tower.feature_size == 2304


def test_official_file_loads_frozen(tower: BEATs, waveform: Tensor, tmp_path: Path) -> None:
    loaded = BEATs.from_source(f"file:{official_file(tower, tmp_path / 'beats.pt')}", (2, 4))
    assert loaded.config == TINY
    assert not any(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(loaded(waveform), tower(waveform))


def test_world_file_is_half_precision_and_carries_its_config(tower: BEATs, waveform: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "beats.safetensors"
    tower.save_world(path, seed="7")
    with safe_open(path, "pt") as f:
        assert {f.get_slice(k).get_dtype() for k in f.keys()} == {"F16"}  # noqa: SIM118
        assert f.metadata()["seed"] == "7"
    loaded = BEATs.from_source(f"file:{path}", (2, 4))
    assert loaded.config == TINY
    assert loaded.patch_embedding.weight.dtype == torch.float32
    torch.testing.assert_close(loaded(waveform), tower(waveform), atol=0.02, rtol=0)


def test_table_is_one_parameter_under_every_layer(tower: BEATs) -> None:
    names = [k for k in tower.state_dict() if k.endswith("relative_attention_bias.weight")]
    assert len(names) == 4
    assert sum(n.endswith("relative_attention_bias.weight") for n, _ in tower.named_parameters()) == 1


def test_unequal_tables_are_refused_also_inside_a_method(tower: BEATs) -> None:
    state = {k: v.clone() for k, v in nn.ModuleDict({"audio": tower}).state_dict().items()}
    state["audio.encoder.layers.2.self_attn.relative_attention_bias.weight"][0, 0] += 1
    with pytest.raises(WeightError, match=r"layers\.2\..* differs from .*layers\.0\."):
        nn.ModuleDict({"audio": tower}).load_state_dict(state)


def test_files_of_another_kind_are_refused(tower: BEATs, tmp_path: Path) -> None:
    plain = tmp_path / "plain.pt"
    torch.save(tower.state_dict(), plain)
    with pytest.raises(WeightError, match=r"plain\.pt is no BEATs checkpoint.*'cfg' and 'model'"):
        BEATs.from_source(f"file:{plain}")
    other = official_file(tower, tmp_path / "size.pt", encoder_ffn_embed_dim=40)
    with pytest.raises(WeightError, match=r"size\.pt does not fit BEATs.*of another shape"):
        BEATs.from_source(f"file:{other}")
    cfg = {k: v for k, v in asdict(TINY).items() if k not in ("conv_pos", "deep_norm")}
    torch.save({"cfg": cfg, "model": tower.state_dict()}, tmp_path / "cfg.pt")
    with pytest.raises(WeightError, match=r"cfg\.pt is no BEATs checkpoint: .*lacks conv_pos, deep_norm"):
        BEATs.from_source(f"file:{tmp_path / 'cfg.pt'}")
    nameless = tmp_path / "nameless.safetensors"
    save_file({"a": torch.ones(1)}, nameless)
    with pytest.raises(WeightError, match=r"nameless\.safetensors is no BEATs checkpoint.*kind 'beats'"):
        BEATs.from_source(f"file:{nameless}")


def test_layer_drop_skips_what_the_generator_says(tower: BEATs, waveform: Tensor) -> None:
    c = replace(TINY, encoder_layerdrop=0.5)
    dropping = BEATs(c, feature_layers=(1, 2, 3, 4), layer_drop=True).train()
    dropping.load_state_dict(tower.state_dict())
    torch.manual_seed(7)
    skipped = (torch.rand(4) < 0.5).tolist()
    assert {True, False} == set(skipped[1:])
    torch.manual_seed(7)
    layers = dropping.extract_features(waveform)[2]
    for n in (2, 3, 4):
        assert torch.equal(layers[n], layers[n - 1]) == skipped[n - 1]


def test_layer_drop_is_off_by_default_and_in_eval_mode(tower: BEATs, waveform: Tensor) -> None:
    c = replace(TINY, encoder_layerdrop=1.0)
    want = tower(waveform)
    for layer_drop, training in [(False, True), (True, False)]:
        other = BEATs(c, feature_layers=(2, 4), layer_drop=layer_drop).train(training)
        other.load_state_dict(tower.state_dict())
        assert torch.equal(other(waveform), want)


@pytest.mark.parametrize("whole", [False, True])
def test_bfloat16_stays_near(tower: BEATs, waveform: Tensor, whole: bool) -> None:
    want = tower(waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not whole):
        got = (tower.bfloat16() if whole else tower)(waveform)
    assert (got.float() - want).abs().max() < 0.2  # the features have unit variance
    assert (got.float() - want).abs().mean() < 0.02


def test_it_can_be_trained_after_inference_mode(waveform: Tensor) -> None:
    tower = BEATs(TINY, feature_layers=(4,))
    short = waveform[:, :6000]  # a length that no other test has put into the bucket cache
    with torch.inference_mode():
        tower(short)
    tower(short).square().mean().backward()
    table = tower.encoder.get_parameter("layers.0.self_attn.relative_attention_bias.weight")
    assert table.grad is not None
    assert all(p.grad is not None for p in tower.parameters())


def test_unusable_settings_and_clips_are_named(tower: BEATs) -> None:
    with pytest.raises(ValueError, match=r"none of the layers \(8, 12\) is among 1 to 4"):
        BEATs(TINY, feature_layers=(8, 12))
    with pytest.raises(ValueError, match="encoder_attention_heads 5 does not divide the width 24"):
        replace(TINY, encoder_attention_heads=5)
    with pytest.raises(ValueError, match="activation_fn 'glu' is none of gelu"):
        replace(TINY, activation_fn="glu")
    with pytest.raises(ValueError, match=r"needs 2800 samples, 16 frames.*got 15 frames"):
        tower(torch.zeros(1, 2799))
    assert tower(torch.zeros(1, 2800)).shape == (1, 8, 48)
