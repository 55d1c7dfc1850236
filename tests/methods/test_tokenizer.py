from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avloc.methods.acl.tokenizer import AudioTokenizer


def slow_token(tokenizer: AudioTokenizer, features: Tensor, k: int) -> Tensor:
    """Token k of one clip ``[N, D]`` from the equations of factor-graph attention, with the N x N matrix of cosines."""
    w = dict(tokenizer.named_parameters())

    def conv(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"][:, :, 0].T + w[f"{name}.bias"]

    hidden = features @ w["fc1.weight"].T + w["fc1.bias"]
    x = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)) @ w["fc2.weight"].T + w["fc2.bias"]
    unary = conv(f"fga.un_models.{k}.feature_reduce", conv(f"fga.un_models.{k}.embed", x).clamp(min=0))[:, 0]
    X, Y = (conv(f"fga.pp_models.{k}.embed_{side}", x) for side in "XY")
    cosines = torch.tensor([[float(a @ b / (a.norm() * b.norm())) for b in Y] for a in X])
    r0, r1 = w[f"fga.reduce_potentials.{k}.weight"].flatten()
    return (r0 * unary + r1 * cosines.mean(1)).softmax(0) @ x


@pytest.mark.parametrize("tokens", [1, 2, 8])
@torch.no_grad()
def test_each_token_against_the_equations(tokens: int) -> None:
    torch.manual_seed(0)
    tokenizer = AudioTokenizer(6, 5, tokens).eval()
    for reduce in tokenizer.fga.reduce_potentials:
        torch.nn.init.normal_(reduce.weight, std=4)
    features = torch.randn(2, 7, 6)
    got = tokenizer(features)
    assert got.shape == (2, tokens, 5)
    want = torch.stack([torch.stack([slow_token(tokenizer, f, k) for k in range(tokens)]) for f in features])
    torch.testing.assert_close(got, want)


def test_released_size_and_names() -> None:
    with torch.device("meta"):
        tokenizer = AudioTokenizer()
    shapes = {k: list(v.shape) for k, v in tokenizer.state_dict().items()}
    assert sum(p.numel() for p in tokenizer.parameters()) == 7_279_363  # of the official ACL checkpoint
    assert len(shapes) == 13
    assert shapes["fc2.weight"] == [512, 2304]
    assert shapes["fga.un_models.0.embed.weight"] == shapes["fga.pp_models.0.embed_Y.weight"] == [512, 512, 1]
    assert shapes["fga.un_models.0.feature_reduce.weight"] == [1, 512, 1]
    assert shapes["fga.reduce_potentials.0.weight"] == [1, 2, 1]


def test_dropout_is_in_the_unary_potential_of_train_mode_only() -> None:
    torch.manual_seed(1)
    tokenizer = AudioTokenizer(6, 32)
    features = torch.randn(2, 7, 6)
    assert not torch.equal(tokenizer(features), tokenizer(features))
    with torch.no_grad():
        tokenizer.fga.reduce_potentials[0].weight[:, 0] = 0  # without the unary potential nothing is random
    assert torch.equal(tokenizer(features), tokenizer(features))


def test_every_parameter_learns() -> None:
    torch.manual_seed(2)
    tokenizer = AudioTokenizer(6, 5, tokens=3, dropout=0.0)
    tokenizer(torch.randn(2, 7, 6)).square().sum().backward()
    for name, p in tokenizer.named_parameters():
        assert p.grad is not None, name
        if not name.endswith("feature_reduce.bias"):  # the softmax cancels it
            assert p.grad.abs().max() > 1e-8, name


def test_no_token_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens must be 1 or more, got 0"):
        AudioTokenizer(6, 5, tokens=0)
