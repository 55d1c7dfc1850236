"""ACL against a slow reading of its equations: one pair at a time, no sharing, no chunks."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.backbones.clipseg import normalise
from avloc.data.phrases import PhraseError
from avloc.methods.acl import ACL
from avloc.methods.acl.losses import Objective, Pairs, caption_contrast, image_similarity
from avloc.methods.acl.network import ACLNetwork, Grounding, ImageMasker, feature_mask, upsampled
from avloc.methods.acl.phrases import PhraseEmbeddings, phrase_ids
from avloc.methods.base import CheckpointError
from avloc.methods.souple import SOUPLE
from avloc.methods.souple.network import SOUPLENetwork
from avloc.weights import WeightError
from tests.methods.tiny import tiny_batch, tiny_beats, tiny_clipseg, tiny_files

B = 3


def network(**options: object) -> ACLNetwork:
    torch.manual_seed(1)
    net = ACLNetwork(tiny_clipseg(), tiny_beats(), Grounding(**options))  # type: ignore[arg-type]
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


@pytest.mark.parametrize("method", ["acl", "souple"])
def test_the_printed_equations_one_pair_at_a_time(method: str) -> None:
    """`acl_ssl_equations`, `souple_ctx4_equations`: a mask of every pair by one draw of noise, its area, its sound."""
    torch.manual_seed(1)
    kind = ACLNetwork if method == "acl" else SOUPLENetwork
    net = kind(tiny_clipseg(), tiny_beats(), grounding=Grounding(one_noise=True, masker=(2.0, -0.1))).eval()
    image, features, A = asked(net)
    u, u_own = noise()
    objective = Objective(tau=0.07, p_plus=0.4, p_minus=0.1, area="pair", feature_sound="mask")
    terms = objective(net.pairs(image, features, A, noise=(u, u_own)))
    w, b = net.masker_i.w.item(), net.masker_i.b.item()
    cos = torch.nn.CosineSimilarity(dim=-1)
    S_I, S_F, reg = np.zeros((B, B)), np.zeros((B, B)), 0.0
    for i in range(B):
        seen = net.av_grounder.encode_image(image[i : i + 1], reduced=True, dense=True)
        for j in range(B):
            M = net.av_grounder.decode(seen.reduced, A[i, j].view(1, 1, -1))[0, 0]
            M_I = (torch.sigmoid(w * M + b + torch.log(u[i, j] / (1 - u[i, j]))) > 0.5).float()
            reg += abs(M_I.mean().item() - (0.4 if i == j else 0.1))
            m = (M - M.min()) / (M.max() - M.min())
            M_F = torch.sigmoid((m[::16, ::16] - 0.5) / 0.07)
            v_F = (M_F * seen.dense[0]).sum((-1, -2)) / M_F.sum()
            S_F[i, j] = cos(v_F, A[i, j]).item()
            if i == j:
                v_I = net.av_grounder.encode_image(image[i : i + 1] * M_I, pooled=True).pooled[0]
        for j in range(B):
            S_I[i, j] = cos(v_I, A[i, j]).item()
    assert 0.05 < reg < B * B  # neither full nor empty masks alone
    assert terms["area_reg"].item() == pytest.approx(reg, abs=1e-4)
    for term, S in (("acl_i", S_I), ("acl_f", S_F)):
        want = 0.0
        for i in range(B):
            to_sounds = sum(math.exp(S[i, j] / 0.07) for j in range(B))
            to_pictures = sum(math.exp(S[j, i] / 0.07) for j in range(B))
            want -= (math.log(math.exp(S[i, i] / 0.07) / to_sounds)) / (2 * B)
            want -= (math.log(math.exp(S[i, i] / 0.07) / to_pictures)) / (2 * B)
        assert terms[term].item() == pytest.approx(want, abs=2e-4), term
    assert terms["loss"].item() == pytest.approx(sum(terms[k].item() for k in ("acl_i", "acl_f", "area_reg")), rel=1e-5)


def test_the_printed_area_term_is_of_another_size_than_the_released() -> None:
    """Sixteen pictures whose masks cover a tenth, by hand: 16 x 0.3 + 240 x 0.1 against 0.3 + 0.1 x 15 / 16."""
    g = torch.Generator().manual_seed(1)
    v = torch.randn(16, 16, 4, generator=g)
    p = Pairs(v, torch.arange(16), v, v[0], torch.full((16, 16), 0.1))
    assert Objective(area="pair")(p)["area_reg"].item() == pytest.approx(28.8, rel=1e-5)
    assert Objective()(p)["area_reg"].item() == pytest.approx(0.39375, rel=1e-5)


@pytest.mark.parametrize("image_mask", ["soft", "feature"])
def test_one_draw_of_noise_leaves_the_chosen_image_mask(image_mask: str) -> None:
    seen = []
    for one_noise in (False, True):
        net = network(image_mask=image_mask, one_noise=one_noise)
        image, features, A = asked(net)
        seen.append(net.pairs(image, features, A, noise=noise()).v_i)
    torch.testing.assert_close(seen[0], seen[1])


def test_the_reused_feature_mask_is_upsampled_from_the_patch_grid() -> None:
    """Table 13, row 2, by hand: corners hold a patch's value, what lies between two their mean by distance."""
    mask = torch.tensor([[0.2, 0.8], [0.4, 1.0]])
    up = upsampled(mask, 4)
    assert up[0].tolist() == pytest.approx([0.2, 0.35, 0.65, 0.8])
    assert up[:, 0].tolist() == pytest.approx([0.2, 0.25, 0.35, 0.4])
    net, hidden = network(image_mask="feature"), []
    image, features, A = asked(net)
    encode = net.av_grounder.encode_image
    net.av_grounder.encode_image = lambda x, **k: hidden.append(x) or encode(x, **k)  # type: ignore[assignment]
    net.pairs(image, features, A)
    for i in range(B):
        M = net.mask_logits([r[i : i + 1] for r in features.reduced], A[i, i].view(1, 1, -1))[0, 0]
        m = ((M - M.min()) / (M.max() - M.min()))[::16, ::16]
        want = upsampled(torch.sigmoid((m - 0.5) / 0.07), 32)
        torch.testing.assert_close(hidden[0][i], image[i] * want, atol=1e-4, rtol=1e-3)


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


def numpy_contrast(S: np.ndarray, has: list[bool], T: np.ndarray | None = None) -> float:
    """L_ACL_C by a double loop over phrases i and sounds j; T holds the shares of targets, by default the own."""
    there = [i for i, h in enumerate(has) if h]
    total = 0.0
    for i in there:
        rows, columns = sum(math.exp(S[i, j]) for j in there), sum(math.exp(S[j, i]) for j in there)
        for j in there:
            share = float(i == j) if T is None else T[i, j]
            total -= share * math.log(math.exp(S[i, j]) / rows) / len(there) / 2
            total -= share * math.log(math.exp(S[j, i]) / columns) / len(there) / 2
    return total


def named(phrases: list[str], seed: int = 7, per_picture: bool = False) -> Pairs:
    """Random pairs whose equal phrases have one C; with ``per_picture``, a sound's embedding depends on the picture."""
    n, g = len(phrases), torch.Generator().manual_seed(seed)
    words = {p: torch.randn(6, generator=g) for p in dict.fromkeys(phrases)}
    C = torch.stack([words[p] if p else torch.zeros(6) for p in phrases]).requires_grad_()
    A = torch.randn(n, n, 6, generator=g) if per_picture else torch.randn(n, 6, generator=g).expand(n, n, 6)
    area = torch.full((n, n), 0.1)
    A = A.clone().requires_grad_()
    return Pairs(A, torch.arange(n), torch.randn(n, n, 6, generator=g), None, area, C, phrase_ids(phrases))


def cosines(p: Pairs, tau: float) -> np.ndarray:
    C, A = p.C.detach().double().numpy(), p.A.detach().double().numpy()
    n = len(C)
    norm = np.linalg.norm
    at = [[C[i] @ A[i, j] / max(norm(C[i]), 1e-12) / norm(A[i, j]) / tau for j in range(n)] for i in range(n)]
    return np.array(at)


@pytest.mark.parametrize("phrases", [["dog", "cat", "bell", "man"], ["dog", "", "bell", ""], ["dog", "dog", "cat", ""]])
@pytest.mark.parametrize("per_picture", [False, True])
def test_caption_contrast_is_the_double_loop(phrases: list[str], per_picture: bool) -> None:
    p = named(phrases, per_picture=per_picture)
    objective = Objective(lambda_c=2.0, lambda_i=0, tau=0.3)
    terms = objective(p)
    S, has = cosines(p, 0.3), [bool(x) for x in phrases]
    assert terms["acl_c"].item() == pytest.approx(numpy_contrast(S, has), rel=1e-5)
    assert terms["loss"].item() == pytest.approx((terms["acl_f"] + terms["area_reg"] + 2 * terms["acl_c"]).item())
    T = np.array([[float(a == b) for b in phrases] for a in phrases])
    T = T / np.array([[sum(a == b for b in phrases)] for a in phrases])
    spread = Objective(lambda_c=1, lambda_i=0, tau=0.3, equal_phrases="spread")(p)["acl_c"].item()
    assert spread == pytest.approx(numpy_contrast(S, has, T), rel=1e-5)


def test_without_the_weight_no_phrase_is_needed() -> None:
    p = pairs_by_hand()
    assert set(Objective()(p)) == {"acl_i", "acl_f", "area_reg", "loss"}


@pytest.mark.parametrize("phrases", [["dog"], ["", ""], ["", "dog", ""]])
def test_fewer_than_two_phrases_make_no_loss_and_no_gradient(phrases: list[str]) -> None:
    p = named(phrases)
    loss = Objective(lambda_c=1, lambda_i=0)(p)["acl_c"]
    loss.backward()
    assert loss.item() == 0
    assert not p.A.grad.any()


def test_samples_without_a_phrase_are_left_out_of_rows_and_columns() -> None:
    p = named(["dog", "", "bell", "cat"])
    loss = Objective(lambda_c=1, lambda_i=0)(p)["acl_c"]
    loss.backward()
    assert not p.A.grad[1].any()  # picture 1 asks nothing
    assert not p.A.grad[:, 1].any()  # sound 1 is nobody's negative
    assert p.A.grad[0, [0, 2, 3]].abs().sum(-1).min() > 0
    few = [0, 2, 3]
    alone = replace(p, A=p.A[few][:, few], C=p.C[few], phrase=p.phrase[few])
    logits = image_similarity(alone.C, alone.A) / 0.07
    torch.testing.assert_close(loss, caption_contrast(logits, alone.phrase))


def test_equal_phrases_cannot_get_below_log_m() -> None:
    """Four clips of one phrase among eight: with embeddings that fit as well as can be, 4 x log 4 / 8."""
    phrases = ["dog"] * 4 + ["cat", "bell", "man", "car"]
    names = list(dict.fromkeys(phrases))
    C = torch.eye(8)[[names.index(p) for p in phrases]]
    for equal, floor in (("negatives", math.log(4) / 2), ("spread", math.log(4) / 2), ("left_out", 0.0)):
        loss = caption_contrast(C @ C.T / 0.01, phrase_ids(phrases), equal)
        assert loss.item() == pytest.approx(floor, abs=1e-5)
        for seed in range(5):
            A = F.normalize(torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)
            assert caption_contrast(C @ A.T / 0.01, phrase_ids(phrases), equal).item() >= floor


def test_shared_targets_are_the_own_targets_where_a_sound_has_one_embedding() -> None:
    """By the definition: the rows of equal phrases are equal then, and so is every sum that a gradient is made of."""
    grads, losses = [], []
    for equal in ("negatives", "spread", "left_out"):
        A = torch.randn(5, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
        C = named(["dog", "dog", "cat", "dog", "bell"]).C
        loss = caption_contrast(image_similarity(C, A) / 0.2, phrase_ids(["dog", "dog", "cat", "dog", "bell"]), equal)
        loss.backward()
        grads.append(A.grad)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-4)
    assert losses[2] < losses[0] - 0.1


def test_phrases_are_embedded_once_by_the_frozen_tower() -> None:
    tower, asked = tiny_clipseg(), []
    embed = PhraseEmbeddings(tower, most=3)
    tokenize = tower.tokenize
    tower.tokenize = lambda texts: asked.append(list(texts)) or tokenize(texts)  # type: ignore[method-assign]
    C = embed(["photo", "", "image", "photo"])
    for row, text in ((0, "photo"), (2, "image"), (3, "photo")):
        torch.testing.assert_close(C[row], tower.encode_text(tokenize([text]))[0])
    assert not C[1].any()
    assert not C.requires_grad
    assert torch.equal(embed(["image", "photo"]), C[[2, 0]])
    assert asked == [["photo", "image"]]
    embed(["a", "of"])  # a third and a fourth: the oldest gives way
    embed(["photo"])
    assert asked[1:] == [["a", "of"], ["photo"]]
    assert len(embed.known) == 3


def test_template_and_length_of_phrases() -> None:
    tower = tiny_clipseg()
    wrapped = PhraseEmbeddings(tower, "a photo of {}")(["image"])
    torch.testing.assert_close(wrapped[0], tower.encode_text(tower.tokenize(["a photo of image"]))[0])
    long = PhraseEmbeddings(tower)(["photo " * 200, "image"])  # 77 places
    cut = tower.tokenize(["photo " * 75])
    assert cut.shape[1] == 77
    torch.testing.assert_close(long[0], tower.encode_text(cut)[0])
    torch.testing.assert_close(long[1], tower.encode_text(tower.tokenize(["image"]))[0])
    with pytest.raises(ValueError, match="exactly once"):
        PhraseEmbeddings(tower, "a photo")


def test_numbers_of_phrases_are_equal_when_the_phrases_are() -> None:
    ids = phrase_ids(["dog", "", "cat", "dog"]).tolist()
    assert ids[0] == ids[3] != ids[2]
    assert ids[1] == 0
    digest = hashlib.blake2b(b"dog", digest_size=8).digest()
    assert ids[0] == int.from_bytes(digest, "little", signed=True)  # the same in every process


@pytest.mark.parametrize("method", [ACL, SOUPLE])
def test_the_methods_take_phrases_from_the_batch(method: type[ACL], tmp_path: Path) -> None:
    files = tiny_files(tmp_path)
    model = method(objective=Objective(lambda_c=1.0, p_plus=0.1), **files)  # type: ignore[arg-type]
    batch = tiny_batch(3)
    with pytest.raises(PhraseError, match=r"lambda_c 1 needs object phrases.*data\.phrases"):
        model.training_losses(batch)
    torch.manual_seed(0)
    losses = model.training_losses(replace(batch, phrase=["photo", "", "image"]))
    assert set(losses) == {"acl_i", "acl_f", "area_reg", "acl_c", "loss"}
    losses["acl_c"].backward()
    learned = {k for k, p in model.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(k.startswith("audio_proj") for k in learned)
    assert not any(k.startswith("masker_i") for k in learned)  # w, b and the decoder are not touched by this term
    assert all(p.grad is None for p in model.network.av_grounder.parameters())
    # By hand: the audio-driven embeddings of the pictures asked, and the tower's own text features.
    net = model.network
    torch.manual_seed(0)
    net.train()
    image = normalise(batch.image)
    A = net.embedding(net.ask(net.see(image), net.hear(batch.audio))).detach()
    C = [net.av_grounder.encode_text(net.av_grounder.tokenize([p]))[0] for p in ("photo", "image")]
    cos = torch.nn.CosineSimilarity(dim=0)
    S = [[cos(C[a], A[i, j]).item() / 0.07 for j in (0, 2)] for a, i in enumerate((0, 2))]
    assert losses["acl_c"].item() == pytest.approx(numpy_contrast(np.array(S), [True, True]), rel=1e-3)


def test_plain_training_is_untouched_by_phrases(tmp_path: Path) -> None:
    model = ACL(**tiny_files(tmp_path))  # type: ignore[arg-type]
    batch, losses = tiny_batch(3), []
    for b in (batch, replace(batch, phrase=["photo", "", "image"])):
        torch.manual_seed(0)
        losses.append(model.training_losses(b))
    assert losses[0].keys() == losses[1].keys() == {"acl_i", "acl_f", "area_reg", "loss"}
    assert all(torch.equal(losses[0][k], losses[1][k]) for k in losses[0])


def test_starts_from_the_authors_checkpoint_and_from_our_own(tmp_path: Path) -> None:
    files = tiny_files(tmp_path)
    torch.manual_seed(3)
    trained = ACL(masker=(3.0, 5.0), **files)  # type: ignore[arg-type]
    state = trained.network.state_dict()
    parts = {p: {k[len(p) + 1 :]: v for k, v in state.items() if k.startswith(p)} for p in ("audio_proj", "masker_i")}
    torch.save(parts, tmp_path / "official.pth")
    own = {"state_dict": trained.state_dict(), "hyper_parameters": dict(trained.hparams)}
    trained.on_save_checkpoint(own)
    torch.save(own, tmp_path / "own.ckpt")
    for method in (ACL, SOUPLE):
        for name in ("official.pth", "own.ckpt"):
            torch.manual_seed(4)
            started = method(audio_proj=f"file:{tmp_path / name}", **files)  # type: ignore[arg-type]
            for k, v in started.network.state_dict().items():
                if k.startswith(("audio_proj", "masker_i")):
                    assert torch.equal(v, state[k]), k
            assert "audio_proj" not in started.hparams  # a rebuilt method does not need that file
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(WeightError, match="no ACL checkpoint"):
        ACL(audio_proj=f"file:{tmp_path / 'other.pth'}", **files)  # type: ignore[arg-type]
    tiny_beats(seed=9).save_world(tmp_path / "beats.safetensors")
    with pytest.raises(CheckpointError, match="trained on top of beats weights"):
        SOUPLE(audio_proj=f"file:{tmp_path / 'own.ckpt'}", **files)  # type: ignore[arg-type]
