"""ACL against a slow reading of its equations: one pair at a time, no sharing, no chunks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.backbones.clipseg import normalise
from avloc.methods.acl.losses import Objective, Pairs
from avloc.methods.acl.network import ACLNetwork, ImageMasker, feature_mask
from tests.methods.tiny import tiny_batch, tiny_beats, tiny_clipseg

B = 3


def network(**options: object) -> ACLNetwork:
    torch.manual_seed(1)
    net = ACLNetwork(tiny_clipseg(), tiny_beats(), **options)  # type: ignore[arg-type]
    return net.eval()  # no dropout


def asked(net: ACLNetwork) -> tuple[Tensor, object, Tensor]:
    batch = tiny_batch(B)
    image = normalise(batch.image)
    features = net.see(image)
    return image, features, net.ask(features, net.hear(batch.audio))


def noise(seed: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(B, B, 32, 32, generator=g), torch.rand(B, 1, 32, 32, generator=g)


def test_pairs_equal_one_pair_at_a_time() -> None:
    net = network()
    image, features, A = asked(net)
    u, u_own = noise()
    pairs = net.pairs(image, features, A, noise=(u, u_own))
    w, b = net.masker_i.w.item(), net.masker_i.b.item()
    for i in range(B):
        one = net.av_grounder.encode_image(image[i : i + 1], reduced=True, dense=True)
        for j in range(B):
            M = net.av_grounder.decode(one.reduced, A[i, j].view(1, 1, -1))[0, 0]
            soft = torch.sigmoid(w * M + b + torch.log(u[i, j] / (1 - u[i, j])))
            assert pairs.area[i, j].item() == pytest.approx((soft > 0.5).float().mean().item(), abs=1e-6)
            m = (M - M.min()) / (M.max() - M.min())
            small = torch.sigmoid((m[::16, ::16] - 0.5) / 0.07)
            v_f = (small * one.dense[0]).sum((-1, -2)) / small.sum()
            torch.testing.assert_close(pairs.v_f[i, j], v_f, atol=1e-4, rtol=1e-4)
        M = net.av_grounder.decode(one.reduced, A[i, i].view(1, 1, -1))[0, 0]
        mask = torch.sigmoid(w * M + b + torch.log(u_own[i, 0] / (1 - u_own[i, 0]))) > 0.5
        v_i = net.av_grounder.encode_image(image[i : i + 1] * mask, pooled=True).pooled
        torch.testing.assert_close(pairs.v_i[i : i + 1], v_i, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 2, "recompute": True}, {"recompute": True}])
def test_chunks_and_recomputation_change_neither_loss_nor_gradient(options: dict) -> None:
    def step(net: ACLNetwork) -> tuple[Tensor, dict[str, Tensor]]:
        image, features, A = asked(net)
        loss = Objective(p_plus=0.1)(net.pairs(image, features, A, noise=noise()))["loss"]
        loss.backward()
        return loss.detach(), {k: p.grad for k, p in net.named_parameters() if p.grad is not None}

    loss, grads = step(network())
    other, others = step(network(**options))
    torch.testing.assert_close(other, loss)
    assert grads.keys() == others.keys()
    assert len(grads) == 15  # 13 tensors of the audio projection, w and b
    for k, g in grads.items():
        torch.testing.assert_close(others[k], g, atol=1e-5, rtol=1e-3, msg=k)


def test_only_the_projection_and_the_mask_scalars_learn() -> None:
    names = {k for k, p in network().named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in names} == {"audio_proj", "masker_i"}


def test_vision_tower_runs_twice_whatever_the_batch() -> None:
    net, calls = network(), []
    embeddings = net.av_grounder.clip.vision_model.embeddings.patch_embedding
    embeddings.register_forward_hook(lambda m, x, y: calls.append(len(x[0])))
    image, features, A = asked(net)
    net.pairs(image, features, A)
    assert calls == [B, B]


def test_feature_mask_of_a_constant_map_is_finite() -> None:
    M = torch.full((1, 1, 32, 32), -10.0, requires_grad=True)
    mask = feature_mask(M, 2)
    mask.sum().backward()
    assert torch.allclose(mask, torch.full_like(mask, 0.5))
    assert torch.isfinite(M.grad).all()


def test_hard_mask_is_binary_with_a_soft_gradient() -> None:
    masker, u = ImageMasker(2.0, 1.0), torch.tensor([0.5, 0.5, 0.9])
    M = torch.tensor([-2.0, 3.0, -1.0], requires_grad=True)
    y = masker(M, u)
    y.sum().backward()
    # By hand: l = 2 M + 1 + log(u / (1 - u)) = -3, 7, -1 + log 9.
    s = [1 / (1 + math.exp(-v)) for v in (-3, 7, -1 + math.log(9))]
    assert y.tolist() == pytest.approx([0, 1, 1])
    assert M.grad.tolist() == pytest.approx([2 * v * (1 - v) for v in s], rel=1e-4)
    assert masker.heatmap(torch.tensor([-0.5])).item() == pytest.approx(0.5)  # -b / w


def pairs_by_hand() -> Pairs:
    g = torch.Generator().manual_seed(5)
    A = torch.randn(2, 4, generator=g).expand(2, 2, 4)
    v_f, v_i = torch.randn(2, 2, 4, generator=g), torch.randn(2, 4, generator=g)
    return Pairs(A, torch.arange(2), v_f, v_i, torch.tensor([[0.5, 0.2], [0.1, 0.3]]))


def test_readings_of_the_feature_contrast() -> None:
    p = pairs_by_hand()
    cos = torch.nn.CosineSimilarity(dim=0)
    for reading, sound in (("picture", lambda i, j: p.A[0, i]), ("mask", lambda i, j: p.A[0, j])):
        S = [[cos(p.v_f[i, j], sound(i, j)).item() / 0.07 for j in range(2)] for i in range(2)]
        rows = [-math.log(math.exp(S[i][i]) / sum(math.exp(s) for s in S[i])) for i in range(2)]
        columns = [-math.log(math.exp(S[i][i]) / sum(math.exp(S[k][i]) for k in range(2))) for i in range(2)]
        want = (sum(rows) / 2 + sum(columns) / 2) / 2
        assert Objective(feature_sound=reading)(p)["acl_f"].item() == pytest.approx(want, rel=1e-4)


def test_readings_of_the_area_term() -> None:
    p = pairs_by_hand()
    # Batch: diagonal mean 0.4, off-diagonal sum 0.3 over B^2 = 4. Pair: |0.1| + |-0.1| and 0.2 + 0.1.
    assert Objective(p_plus=0.4)(p)["area_reg"].item() == pytest.approx(0.0 + 0.075, abs=1e-6)
    assert Objective(p_plus=0.4, area="pair")(p)["area_reg"].item() == pytest.approx(0.2 + 0.3, abs=1e-6)


def test_weights_and_absent_terms() -> None:
    p = pairs_by_hand()
    full = Objective()(p)
    weighted = Objective(lambda_i=2, lambda_f=3, lambda_reg=0.5)(p)
    want = 2 * full["acl_i"] + 3 * full["acl_f"] + 0.5 * full["area_reg"]
    torch.testing.assert_close(weighted["loss"], want)
    assert "acl_i" not in Objective(lambda_i=0)(p)


@pytest.mark.parametrize("tokens", [1, 2, 4, 8])
def test_prompt_has_the_template_around_the_tokens(tokens: int) -> None:
    net, seen = network(tokens=tokens, template="A photo of {}"), []
    net.av_grounder.encode_tokens = lambda x: seen.append(x) or x[:, -1]  # type: ignore[assignment]
    net.prompt(torch.zeros(2, tokens, 64))
    rows = net.av_grounder.embed_tokens(net.av_grounder.tokenize(["a photo of"])[0])  # start, 3 words, end
    assert seen[0].shape[1] == 5 + tokens
    torch.testing.assert_close(seen[0][0, :4], rows[:4])
    torch.testing.assert_close(seen[0][0, -1], rows[-1])
    assert not seen[0][0, 4 : 4 + tokens].any()


def test_template_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="exactly once"):
        network(template="A photo of a")


@pytest.mark.parametrize(
    "options",
    [{"image_mask": "soft"}, {"image_mask": "feature"}, {"feature_mask": "hard"}, {"one_noise": True}],
)
def test_mask_options_train(options: dict) -> None:
    net = network(**options)
    image, features, A = asked(net)
    pairs = net.pairs(image, features, A, noise=noise())
    Objective(p_plus=0.1)(pairs)["loss"].backward()
    assert net.audio_proj.fc1.weight.grad.abs().sum() > 0
    default = network()
    image, features, A = asked(default)
    plain = default.pairs(image, features, A, noise=noise())
    assert not torch.equal(pairs.v_i, plain.v_i) or not torch.equal(pairs.v_f, plain.v_f)


def test_heatmap_is_resized_before_the_sigmoid() -> None:
    net = network()
    _, features, A = asked(net)
    heat, confidence = net.locate(features, A[:, :1], 48)
    M = net.mask_logits(features.reduced, A[:, :1])
    want = torch.sigmoid(F.interpolate(M, (48, 48), mode="bicubic") + net.masker_i.b / net.masker_i.w)
    torch.testing.assert_close(heat, want)
    assert confidence.abs().max() <= 1
