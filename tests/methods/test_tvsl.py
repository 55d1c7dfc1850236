"""T-VSL against its article's equations, and its release's, as slow loops: one sample and one class at a time."""

from __future__ import annotations

import copy
import io
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from avloc.backbones.clipseg import normalise
from avloc.data.items import make_item
from avloc.data.mixing import mix_at_random
from avloc.data.schema import Audio, Frame, Record, Sample, SampleError, Target
from avloc.evaluation.measures import NOPRIOR, OWN_SOURCES, Scored
from avloc.evaluation.measures import TVSL as TVSL_MEASURE
from avloc.methods.load import load_method
from avloc.methods.maps import transformed
from avloc.methods.tvsl import TVSL
from avloc.methods.tvsl.losses import Scales, classification, correspondence, detection
from avloc.methods.tvsl.method import Detection, crossed, draw_maps, losses_of, read_classes
from avloc.methods.tvsl.network import DESIGNS, Design, TVSLNetwork
from avloc.types import AVBatch, Localization
from avloc.weights import WeightError
from tests.methods.tiny import tiny_audioclip_files
from tests.processes import together

D, N = 8, 6
NAMES = ["bell", "drum", "flute", "dog", "cat", "bird"]
MIXED = replace(DESIGNS["released"], residual=0.6)
DESIGN_LIST = [MIXED, replace(MIXED, normalise="both", attention=True, fusion="single")]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def network(design: Design) -> TVSLNetwork:
    torch.manual_seed(1)
    net = TVSLNetwork(D, design)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim:
                p.add_(0.3 * torch.randn_like(p))
    return net


def cross_entropy(scores: Tensor, right: int) -> float:
    return float(scores.logsumexp(0) - scores[right])


def cosine(x: Tensor, y: Tensor) -> float:
    """By sums of numbers; 0 where there is nothing to compare."""
    pairs = [(m.double().tolist(), n.double().tolist()) for m, n in ((x, y), (x, x), (y, y))]
    dot, xx, yy = (math.fsum(p * q for p, q in zip(m, n, strict=True)) for m, n in pairs)
    return dot / math.sqrt(xx * yy) if xx * yy > 0 else 0.0


def phi(A: Tensor, b: Tensor, C: Tensor, positive: bool = False) -> Tensor:
    """Equation 6: each row of C, times the cosine of its row of A with b."""
    weights = [cosine(row, b) for row in A]
    weights = [max(0.0, w) for w in weights] if positive else weights
    return torch.stack([w * row for w, row in zip(weights, C, strict=True)])


def article(
    net: TVSLNetwork, image: Tensor, audio: Tensor, bank: Tensor, classes: list[list[int]], s: list[float]
) -> dict:
    """The article's equations in float64, one sample and one class at a time: losses and each source's map."""
    B, positive = len(image), net.design.mask == "positive"
    mcid = image_cls = audio_cls = 0.0
    pairs: list[tuple[Tensor, Tensor]] = []
    maps = []
    for b in range(B):
        v, a = image[b].double(), audio[b].double()
        if net.design.normalise == "both":
            v, a = unit(v), unit(a)
        V, A = net.visual_proj(v), net.audio_proj(a)  # V', A': nothing is renormalised from here on
        f = net.fusion_proj(torch.cat([A.mean(0), V.mean(0)]))
        for n in range(N):  # binary cross-entropy of the sigmoid of the cosine
            p = 1 / (1 + math.exp(-cosine(f, bank[n])))
            mcid -= math.log(p if n in classes[b] else 1 - p) / B
        for k in classes[b]:
            V_k, A_k = phi(V, bank[k], V, positive), phi(A, bank[k], A, positive)  # 4, 5
            for side, proj in ((V_k, net.img_cls_proj), (A_k, net.aud_cls_proj)):
                c = [cosine(proj(side.mean(0)), t) for t in bank]
                factor = s[0] if side is V_k else s[1]
                ce = math.log(math.fsum(math.exp(factor * x) for x in c)) - factor * c[k]
                image_cls, audio_cls = (
                    (image_cls + ce / B, audio_cls) if side is V_k else (image_cls, audio_cls + ce / B)
                )
            ghat_a = net.aud_img_proj(A_k.mean(0))
            Vhat = phi(V_k, ghat_a, V_k, positive)  # 8
            pairs.append((ghat_a, net.img_aud_proj(Vhat.mean(0))))
            if net.design.map == "cosine":
                maps.append(torch.tensor([cosine(row, ghat_a) for row in Vhat]))
            else:
                maps.append(torch.tensor([float(row @ unit(ghat_a)) for row in Vhat]))
    L = torch.tensor([[s[2] * cosine(heard, seen) for _, seen in pairs] for heard, _ in pairs])
    av = sum(cross_entropy(x[i], i) for x in (L, L.T) for i in range(len(L))) / (2 * len(L))  # 9
    terms = {"mcid": mcid, "image_cls": image_cls, "audio_cls": audio_cls, "av": av}
    return terms | {"loss": sum(terms.values()), "maps": maps}


OURS = replace(DESIGNS["published"], mask="positive", map="product")
RAW = replace(DESIGNS["published"], normalise="none")


@pytest.mark.parametrize("design", [DESIGNS["published"], RAW, OURS], ids=["published", "raw", "ours"])
@pytest.mark.parametrize("classes", [[[0, 3], [2, 5], [4, 1]], [[1], [2, 0, 4], [5, 3]], [[2], [5], [1]]])
def test_losses_and_maps_are_those_of_the_article_s_equations(design: Design, classes: list[list[int]]) -> None:
    net = network(design)
    image, audio, bank = noise(3, 7, D), 3 * noise(3, 5, D, seed=1), unit(noise(N, D, seed=2))
    most = max(map(len, classes)) + 1
    index = torch.tensor([row + [-1] * (most - len(row)) for row in classes])
    s = [14.0, 20.0, 30.0]
    with torch.no_grad():
        tokens = net.prepare(image, audio)
        got = losses_of(net, tokens, bank, index, index, Scales(*map(torch.tensor, s)))
        maps = net.similarity(tokens, net.separate(tokens, bank[index.clamp(min=0)]))
        want = article(copy.deepcopy(net).double(), image, audio, bank.double(), classes, s)
    for name, value in got.items():
        assert value.item() == pytest.approx(want[name], rel=2e-4, abs=2e-5), name
    torch.testing.assert_close(maps[index >= 0], torch.stack(want["maps"]).float(), atol=1e-5, rtol=1e-4)
    if design.map == "cosine":  # the text's weight cancels, and both signs with it
        assert (maps >= 0).all()


def test_with_the_signed_mask_what_is_unlike_a_class_by_text_and_by_sound_counts_as_like_it() -> None:
    """One token opposite to text and sound, one between: the article's map prefers the former, the positive mask does
    not."""
    e = torch.eye(D)[0]
    V = torch.stack([-e, e + 3 * torch.eye(D)[1]])[None]
    A = e.expand(1, 4, D)
    for design, first in ((DESIGNS["published"], True), (OURS, False)):
        net = TVSLNetwork(D, design)  # the projectors start as the identity
        with torch.no_grad():
            tokens = net.prepare(V, A)
            x = net.similarity(tokens, net.separate(tokens, e[None, None]))[0, 0]
        assert bool(x[0] > x[1]) == first


def slow(
    net: TVSLNetwork, image: Tensor, audio: Tensor, bank: Tensor, classes: list[list[int]], s: list[float]
) -> dict:
    """The release's losses and, for each source, the map."""
    d, B = net.design, len(image)
    logits_av: list[tuple[Tensor, Tensor]] = []
    terms = {"mcid": 0.0, "image_cls": 0.0, "audio_cls": 0.0}
    maps = []
    sources = sum(map(len, classes))
    for b in range(B):
        v = net.project("visual_proj", unit(image[b]))
        a = net.project("audio_proj", unit(audio[b]) if d.normalise == "both" else audio[b])
        means = [v.mean(0), a.mean(0)] if d.fusion == "double" else [a.mean(0), v.mean(0)]
        f = unit(net.fusion_proj(torch.cat(means)))
        v, a = unit(v), unit(a)
        wide = unit(torch.cat([bank, bank], 1)) if d.fusion == "double" else bank
        scale = 1.0 if d.scale_ml is None else min(100.0, float(net.logit_scale_ml.exp()))
        for n in range(N):
            z = scale * float(f @ wide[n])
            bce = math.log1p(math.exp(-z if n in classes[b] else z))
            terms["mcid"] += bce / (B * N if d.sources == "mean" else B)
        for k in classes[b]:
            cv, ca = torch.stack([x @ bank[k] for x in v]), torch.stack([x @ bank[k] for x in a])
            if d.normalised_mask:
                cv, ca = cv / cv.norm(), ca / ca.norm()
            V, A = cv[:, None] * v, ca[:, None] * a
            g_v, g_a = V.mean(0), A.mean(0)
            count = sources if d.sources == "mean" else B
            for name, g, factor in (("image_cls", g_v, s[0]), ("audio_cls", g_a, s[1])):
                u = unit(net.project({"image_cls": "img_cls_proj", "audio_cls": "aud_cls_proj"}[name], g))
                terms[name] += cross_entropy(factor * bank @ u, k) / count
            q = unit(net.project("aud_img_proj", g_a))
            if d.attention:
                V = phi(V, q, V)
            logits_av.append((q, unit(net.project("img_aud_proj", V.mean(0)))))
            maps.append(torch.stack([unit(net.project("img_aud_proj", x)) @ q for x in V]))
    L = torch.stack([torch.stack([s[2] * q @ w for _, w in logits_av]) for q, _ in logits_av])
    both = [cross_entropy(x[i], i) for x in (L, L.T) for i in range(len(L))]
    terms["av"] = sum(both) / (2 * len(L))
    return terms | {"loss": sum(terms.values()), "maps": maps}


@pytest.mark.parametrize("design", DESIGN_LIST)
@pytest.mark.parametrize("classes", [[[0, 3], [2, 5], [4, 1]], [[1], [2, 0, 4], [5, 3]], [[2], [5], [1]]])
def test_losses_and_maps_of_any_number_of_sources_equal_the_loop(design: Design, classes: list[list[int]]) -> None:
    net = network(design)
    image, audio, bank = noise(3, 7, D), 3 * noise(3, 5, D, seed=1), unit(noise(N, D, seed=2))
    most = max(map(len, classes)) + 1  # one more than needed: filling up must not matter
    index = torch.tensor([row + [-1] * (most - len(row)) for row in classes])
    s = [14.0, 20.0, 30.0]
    with torch.no_grad():
        tokens = net.prepare(image, audio)
        got = losses_of(net, tokens, bank, index, index, Scales(*map(torch.tensor, s)))
        maps = net.similarity(tokens, net.separate(tokens, bank[index.clamp(min=0)]))
        want = slow(net, image, audio, bank, classes, s)
    for name, value in got.items():
        assert value.item() == pytest.approx(want[name], rel=2e-4, abs=2e-5), name
    torch.testing.assert_close(maps[index >= 0], torch.stack(want["maps"]), atol=1e-5, rtol=1e-4)


def test_published_projectors_start_as_the_towers_with_gradients_and_released_ones_without() -> None:
    image, audio, bank = noise(2, 7, D), noise(2, 5, D, seed=1), unit(noise(N, D, seed=2))
    index = torch.tensor([[0, 3], [2, 5]])
    scales = Scales(*(torch.tensor(10.0),) * 3)
    torch.manual_seed(0)
    for name, still in (("published", 0), ("released", 6)):
        net = TVSLNetwork(D, DESIGNS[name])
        tokens = net.prepare(image, audio)
        torch.testing.assert_close(tokens.visual, unit(image))  # P_v is the identity, or mixed in with 0
        losses_of(net, tokens, bank, index, index, scales)["loss"].backward()
        idle = [m for m, p in net.named_parameters() if m.endswith("proj.weight") or m.endswith("proj.0.weight")]
        zero = [m for m in idle if not net.get_parameter(m).grad.any()]
        assert len(zero) == still, name


def test_an_ablation_leaves_its_block_out_and_no_parameter_waiting() -> None:
    image, audio, bank = noise(2, 7, D), noise(2, 5, D, seed=1), unit(noise(N, D, seed=2))
    index = torch.tensor([[0, 3], [2, 5]])
    scales = Scales(*(torch.tensor(10.0),) * 3)
    parts = ("audio_conditioning", "visual_conditioning", "correspondence")
    for off in ((), parts[:1], parts[1:2], parts[2:], parts):
        for base in (DESIGNS["published"], MIXED):
            net = network(replace(base, **dict.fromkeys(off, False)))
            tokens = net.prepare(image, audio)
            losses = losses_of(net, tokens, bank, index, index, scales)
            losses["loss"].backward()
            assert all(p.grad is not None for p in net.parameters() if p.requires_grad), off
            assert ("av" in losses) == ("correspondence" not in off)
            assert ("audio_cls" in losses) == ("audio_conditioning" not in off)
            maps = net.similarity(tokens, net.separate(tokens, bank[index]))
            if len(off) == 3:  # plain cosine of the tokens with the mean sound, whoever is asked
                want = unit(tokens.visual) @ unit(tokens.audio.mean(1))[:, :, None]
                torch.testing.assert_close(maps, want[:, None, :, 0].expand(-1, 2, -1), atol=1e-5, rtol=1e-4)


def test_terms_without_any_source_are_zero_and_finite() -> None:
    none = torch.full((2, 3), -1)
    bank, x = unit(noise(N, D)), unit(noise(2, 3, D, seed=1)).requires_grad_()
    cls = classification(x, bank, none, torch.tensor(10.0), "mean")
    av = correspondence(x.flatten(0, 1), x.flatten(0, 1), (none >= 0).flatten(), torch.tensor(10.0))
    (cls + av).backward()
    assert cls.item() == av.item() == 0
    assert torch.isfinite(x.grad).all()
    # N log 2 a sample, whichever class it is.
    assert detection(torch.zeros(2, N), none, "sum").item() == pytest.approx(N * math.log(2))


def test_the_released_scale_lies_on_its_bound() -> None:
    net = TVSLNetwork(D, DESIGNS["released"])
    assert net.scale_of_classes().item() == 100.0
    with pytest.raises(ValueError, match=r"scale_ml must lie in \[1, 100\]"):
        Design(scale_ml=0.5)


# ---- two processes

CLASSES = [[0, 3], [2], [4, 1, 5], [3, 0]]  # the second process has three sources at most, the first two


class Step(nn.Module):
    """One loss, so that DistributedDataParallel sees the whole step."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network(DESIGNS["published"])

    def forward(self, rows: list[int], gathered: bool) -> Tensor:
        image, audio, bank = noise(4, 7, D)[rows], noise(4, 5, D, seed=1)[rows], unit(noise(N, D, seed=2))
        most = max(len(CLASSES[i]) for i in rows)
        index = torch.tensor([CLASSES[i] + [-1] * (most - len(CLASSES[i])) for i in rows])
        scales = Scales(*(torch.tensor(10.0),) * 3)
        return losses_of(self.network, self.network.prepare(image, audio), bank, index, index, scales, gathered)["loss"]


def one_of_two(rank: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    step = Step()
    wrapped = nn.parallel.DistributedDataParallel(step)  # must outlive the backward pass, which it listens to
    loss = wrapped([0, 1] if rank == 0 else [2, 3], True)
    loss.backward()
    torch.save({k: p.grad for k, p in step.named_parameters()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_different_numbers_of_sources_equal_the_whole_batch(tmp_path: Path) -> None:
    step = Step()
    step([0, 1, 2, 3], False).backward()
    together(one_of_two, (str(tmp_path),))
    for rank in range(2):
        grads = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for k, p in step.named_parameters():
            torch.testing.assert_close(grads[k], p.grad, atol=1e-5, rtol=1e-3, msg=k)


# ---- the method


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("towers")
    return tiny_audioclip_files(folder, [*NAMES, "cow", "saw", "playing"])["audioclip"]


def method(towers: str, **options: object) -> TVSL:
    torch.manual_seed(1)
    given: dict = {"classes": NAMES, "audioclip": towers, "seconds": 0.5, "heatmap_size": 32}
    return TVSL(**given | options)


def batch(classes: list[list[int]], tiles: int = 1, seed: int = 0) -> AVBatch:
    B, S = len(classes), max(1, *map(len, classes))
    image = (noise(B, 3, 32, 32 * tiles, seed=seed) * 60 + 128).clamp(0, 255).to(torch.uint8)
    return AVBatch(
        key=[f"s{i}" for i in range(B)],
        image=image,
        audio=0.3 * noise(B, 4000, seed=seed + 1),
        index=torch.arange(B),
        class_id=torch.tensor([row + [-1] * (S - len(row)) for row in classes]),
        label=[[NAMES[c] for c in row] for row in classes],
    )


def test_only_what_lies_between_the_towers_learns(towers: str) -> None:
    model = method(towers)
    assert {k.split(".")[0] for k in model.learned_keys()} == {"network"}
    assert not any(p.requires_grad for p in model.towers.parameters())
    assert model.input_spec.duet == "wide"
    assert model.input_spec.sample_rate == 8000


@pytest.mark.parametrize("design", ["published", "released"])
def test_training_steps_lower_the_loss_with_frozen_towers(towers: str, design: str) -> None:
    model = method(towers, design=design).train()
    before = {k: v.clone() for k, v in model.towers.state_dict().items()}
    b = batch([[0, 3], [2, 5], [1], [4, 0]], tiles=2)
    optimizer = torch.optim.Adam(model.trainable(), lr=3e-3)
    losses = []
    for _ in range(12):
        terms = model.training_losses(b)
        assert terms["loss"].item() == pytest.approx(sum(v.item() for k, v in terms.items() if k != "loss"), rel=1e-5)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < 0.9 * losses[0]
    changed = {k for k, v in model.towers.state_dict().items() if not torch.equal(v, before[k])}
    if design == "published":
        assert not changed
    else:  # statistics drift, nothing else does, and the checkpoint has them
        assert changed
        assert all("running_" in k or "num_batches" in k for k in changed)
        assert {f"towers.{k}" for k in changed if "running_" in k} <= model.learned_keys()


def test_towers_run_once_a_sample_whatever_the_number_of_classes(towers: str) -> None:
    model, calls = method(towers), []
    model.towers.visual.conv1.register_forward_hook(lambda m, x, y: calls.append(("see", len(x[0]))))
    model.towers.audio.conv1.register_forward_hook(lambda m, x, y: calls.append(("hear", len(x[0]))))
    model.training_losses(batch([[0, 1, 2, 3], [4, 5, 1, 2], [3, 4, 5, 0]], tiles=4))
    assert calls == [("see", 3), ("hear", 3)]


def test_the_sound_reaches_the_tower_at_the_scale_of_the_design(towers: str) -> None:
    heard: list[float] = []
    for design, factor in (("published", 32768.0), ("released", 1.0)):
        model = method(towers, design=design)
        model.towers.audio.features = lambda x, k=None: heard.append(x.abs().max().item()) or torch.zeros(2, 128, 1, 2)
        b = batch([[0], [1]])
        model.perceive(b)
        assert heard[-1] == pytest.approx(factor * b.audio.abs().max().item(), rel=1e-5)


def test_given_classes_carry_the_numbers_of_the_data_set(towers: str) -> None:
    """A list in another order, of another length: the names say which is meant, the numbers come back as they were."""
    b = batch([[4, 2], [1]], tiles=2)
    answer = method(towers, sources="given", classes=["cow", *reversed(NAMES)]).eval().localize(b)
    assert answer.label.tolist() == [[4, 2], [1, -1]]
    same = method(towers, sources="given").eval().localize(b)
    torch.testing.assert_close(answer.heatmap, same.heatmap)


def test_given_classes_have_one_map_each_in_their_order(towers: str) -> None:
    model = method(towers, sources="given").eval()
    b = batch([[4, 2], [1], []], tiles=3)
    b.sounding = torch.tensor([True, True, False])
    answer = model.localize(b)
    assert answer.heatmap.shape == (3, 2, 32, 96)
    assert answer.label.tolist() == [[4, 2], [1, -1], [-1, -1]]
    assert answer.heatmap[answer.label < 0].eq(0).all()
    maps = answer.heatmap[answer.label >= 0].flatten(1)
    torch.testing.assert_close(maps.amin(1), torch.zeros(3))
    torch.testing.assert_close(maps.amax(1), torch.ones(3))
    with torch.no_grad():  # by hand: one sample, one class
        one = model.network.prepare(
            model.towers.image_tokens(normalise(b.image[1:2]), "grid"), model.towers.audio_tokens(b.audio[1:2])
        )
        e = unit(model.towers.encode_text(model.towers.tokenize(["drum"])))
        cosine = model.network.similarity(one, model.network.separate(one, e[None]))[0, 0].view(1, 1, 4, 12)
        low = F.interpolate(cosine, (32, 96), mode="bilinear", align_corners=False)[0, 0]
    want = (low - low.min()) / (low.max() - low.min())
    torch.testing.assert_close(answer.heatmap[1, 0], want, atol=1e-4, rtol=1e-4)


def test_a_class_given_twice_has_its_map_twice(towers: str) -> None:
    answer = method(towers, sources="given").eval().localize(batch([[4, 4]], tiles=2))
    assert answer.label.tolist() == [[4, 4]]
    assert torch.equal(answer.heatmap[0, 0], answer.heatmap[0, 1])


def test_detected_classes_are_those_above_the_threshold(towers: str) -> None:
    model = method(towers)
    p = torch.tensor([[0.9, 0.1, 0.6, 0.5, 0.2, 0.0], [0.4, 0.3, 0.1, 0.2, 0.0, 0.0]])
    index, confidence = model.detect(p)
    assert index.tolist() == [[0, 2, 3, -1], [-1, -1, -1, -1]]
    assert confidence[0].tolist() == pytest.approx([0.9, 0.6, 0.5, 0.2])
    index, _ = method(towers, detected=Detection(count=2)).detect(p)
    assert index.tolist() == [[0, 2, -1, -1], [0, 1, -1, -1]]
    index, _ = method(towers, detected=Detection(most=8)).detect(p)
    assert index.shape == (2, 8)
    with pytest.raises(ValueError, match="1 <= count <= most"):
        Detection(count=5)


def test_no_class_detected_is_an_empty_answer_that_can_be_scored(towers: str) -> None:
    model = method(towers, detected=Detection(threshold=1.1)).eval()
    b = batch([[4, 2], [1, 0]], tiles=2)
    answer = model.localize(b)
    assert answer.label.eq(-1).all()
    assert answer.heatmap.eq(0).all()
    b.truth = torch.ones(2, 2, 8, 16)
    scored = Scored(Localization(answer.heatmap, answer.confidence, answer.label), b)
    assert scored.sources.eq(0).all()
    assert scored.answered.tolist() == [0, 0]


def test_a_clip_without_labels_is_detected_whatever_its_batch_mates(towers: str) -> None:
    given = method(towers, sources="given", detected=Detection(count=2)).eval()
    found = method(towers, detected=Detection(count=2)).eval()
    b = batch([[4, 2], [1], [0]], tiles=2)
    want = found.localize(replace(b, label=[], class_id=None))
    nothing = given.localize(replace(b, label=[], class_id=None))
    torch.testing.assert_close(nothing.heatmap, want.heatmap)
    assert torch.equal(nothing.label, want.label)
    assert (nothing.label >= 0).sum(1).tolist() == [2, 2, 2]
    # labels on some samples only, by name and by number; the second is not named
    some = replace(b, label=[["cat", "flute"], [], ["bell"]])
    for known in (some, replace(b, label=[], class_id=torch.tensor([[4, 2], [-1, -1], [0, -1]]))):
        answer = given.localize(known)
        assert answer.label[0].tolist() == [4, 2, -1, -1]
        assert answer.label[2].tolist() == [0, -1, -1, -1]
        assert torch.equal(answer.label[1], want.label[1])
        torch.testing.assert_close(answer.heatmap[1], want.heatmap[1])
        torch.testing.assert_close(answer.confidence[1], want.confidence[1])
    # labels on some sources only: the other has no map
    half = given.localize(replace(b, label=[["cat", ""], ["drum", "dog"], ["", "bell"]], class_id=None))
    assert half.label.tolist() == [[4, -1], [1, 3], [-1, 0]]
    assert half.heatmap[0, 1].eq(0).all()
    assert half.heatmap[2, 0].eq(0).all()
    assert half.heatmap[half.label >= 0].flatten(1).amax(1).eq(1).all()


def test_detection_by_a_known_number_looks_at_no_class(towers: str) -> None:
    p = torch.tensor([[0.9, 0.1, 0.6, 0.5, 0.2, 0.0], [0.4, 0.3, 0.1, 0.2, 0.0, 0.0], [0.9, 0.8, 0.7, 0.6, 0.55, 0.5]])
    model = method(towers, detected=Detection(count="known", least=1))
    index, _ = model.detect(p, torch.tensor([3, 0, 1]))
    assert index.tolist() == [[0, 2, 3, -1], [0, -1, -1, -1], [0, -1, -1, -1]]
    index, _ = model.detect(p)  # unknown: the threshold, and one at least
    assert index.tolist() == [[0, 2, 3, -1], [0, -1, -1, -1], [0, 1, 2, 3]]
    b = batch([[4, 2], [1], [0]], tiles=2)
    number = (model.eval().localize(b).label >= 0).sum(1)
    assert number.tolist() == [2, 1, 1]
    other = replace(b, label=[["drum", "dog"], ["dog"], ["cat"]], class_id=None)
    torch.testing.assert_close(model.localize(other).heatmap, model.localize(b).heatmap)
    with pytest.raises(ValueError, match="0 <= least <= most, got least 5"):
        Detection(least=5)


@pytest.mark.parametrize("found", [1, 3])
def test_fewer_or_more_classes_than_sources_can_be_scored(towers: str, found: int) -> None:
    """A true source that was not found has a map of zeros, one that is not there is left out."""
    model = method(towers, detected=Detection(count=found)).eval()
    b = batch([[4, 2], [1, 0]], tiles=2)
    b.truth = torch.zeros(2, 2, 8, 16)
    b.truth[:, 0, :, :4], b.truth[:, 1, :, 9:] = 1, 1
    answer = model.localize(b)
    scored = Scored(answer, b)
    assert scored.answered.tolist() == [found, found]
    for i in range(2):
        for k in range(2):
            place = (answer.label[i] == b.class_id[i, k]).nonzero()
            assert scored.sources[i, k].any() == (len(place) > 0)
    for measure in (TVSL_MEASURE, OWN_SOURCES, NOPRIOR):
        assert all(v.shape[0] == 2 for v in measure.function(scored).values())


def test_the_square_sharpens_and_keeps_the_order_of_what_is_alike() -> None:
    x = torch.tensor([[[[-0.9, 0.1], [0.2, 0.4]]]])
    assert transformed(x, "none") is x
    assert transformed(x, "squared").flatten().tolist() == pytest.approx([0, 0.01, 0.04, 0.16])
    drawn = draw_maps(x, (2, 2), replace(DESIGNS["published"], transform="squared"))
    assert drawn.flatten().tolist() == pytest.approx([0, 0.0625, 0.25, 1])


def test_silence_and_single_samples_are_finite(towers: str) -> None:
    model = method(towers).train()
    b = batch([[3]])
    b.audio.zero_()
    assert all(torch.isfinite(v) for v in model.training_losses(b).values())
    assert torch.isfinite(model.eval().localize(b).heatmap).all()


def test_other_classes_at_test_time(towers: str) -> None:
    model = method(towers, sources="given").eval()
    b = batch([[4, 2]], tiles=2)
    learnt = {k: v.clone() for k, v in model.network.state_dict().items()}
    before = model.localize(b)
    model.set_classes(["cow", "flute", "saw", "cat"])
    b.class_id = torch.tensor([[3, 1]])
    after = model.localize(b)
    assert after.label.tolist() == [[3, 1]]
    torch.testing.assert_close(after.heatmap, before.heatmap)  # the same names, wherever they stand
    assert all(torch.equal(v, learnt[k]) for k, v in model.network.state_dict().items())


def test_a_checkpoint_rebuilds_the_method_with_its_classes(towers: str, tmp_path: Path) -> None:
    model = method(towers, design=replace(MIXED, scale_ml=14.0), prompts=3, detected=Detection(count=2))
    with torch.no_grad():
        for p in model.trainable():
            p.add_(0.05 * torch.randn_like(p))
    state = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    state["pytorch-lightning_version"] = "2.5.0"
    model.on_save_checkpoint(state)
    assert all(k.startswith(("network.", "prompts", "towers.")) for k in state["state_dict"])
    torch.save(state, tmp_path / "best.ckpt")
    again = load_method(tmp_path / "best.ckpt", "cpu")
    b = batch([[4, 2], [1]], tiles=2)
    torch.testing.assert_close(again.localize(b).heatmap, model.eval().localize(b).heatmap)
    assert again.names == NAMES


def test_prompts_learn_and_stand_between_start_and_name(towers: str) -> None:
    words: list[tuple[Tensor, Tensor]] = []
    for length in (0, 2, 32):
        model = method(towers, prompts=length).train()
        losses = model.training_losses(batch([[0, 3], [2, 5]], tiles=2))
        losses["loss"].backward()
        assert ("prompts" in model.learned_keys()) == (length > 0)
        if length:
            assert model.prompts.grad.abs().sum() > 0
            model.towers.encode_tokens = lambda x, end: words.append((x, end)) or torch.ones(N, 16)
            model.read_names()
            x, end = words[-1]
            start = model.towers.token_embedding(torch.tensor(model.towers.tokenizer.encode("")[0]))
            torch.testing.assert_close(x[0, 0], start)
            torch.testing.assert_close(x[3, 1 : 1 + length], model.prompts)
            assert end.tolist() == [length + 2] * N  # start, prompt, one word


def test_prompts_are_read_once_in_evaluation_and_again_after_training(towers: str) -> None:
    model = method(towers, prompts=2).eval()
    first = model.bank()
    assert model.bank() is first
    model.train()
    with torch.no_grad():
        model.prompts.add_(1)
    assert not torch.allclose(model.eval().bank(), first)


def test_training_mixtures_have_as_many_pictures_as_asked(towers: str) -> None:
    model = method(towers, mixed=[2, 4]).train()
    single, widths = batch([[0], [3], [2], [5], [1], [4]]), []
    for seed in range(12):
        torch.manual_seed(seed)
        mixture = mix_at_random(single, *model.mixed)
        K = mixture.class_id.shape[1]
        assert mixture.image.shape == (6, 3, 32, 32 * K)
        widths.append(K)
    assert set(widths) == {2, 3, 4}
    torch.manual_seed(3)
    assert torch.isfinite(model.training_losses(single)["loss"])


def test_the_map_of_the_release_is_turned_over_and_bicubic() -> None:
    x = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
    want = F.interpolate(x, (6, 6), mode="bicubic", align_corners=False)
    want = (want - want.min()) / (want.max() - want.min())
    torch.testing.assert_close(draw_maps(x, (6, 6), DESIGNS["released"]), 1 - want)
    want = F.interpolate(x, (6, 6), mode="bilinear", align_corners=False) / 4
    torch.testing.assert_close(draw_maps(x, (6, 6), DESIGNS["published"]), want)


def test_the_release_crosses_two_classes() -> None:
    names = ["cattle mooing", "cattle, bovinae cowbell", "dog barking"]
    assert crossed(names) == [1, 0, 2]
    shuffled = ["dog barking", "cattle, bovinae cowbell", "cattle mooing"]
    assert crossed(shuffled) == [0, 2, 1]
    assert crossed(NAMES) == list(range(N))


# ---- bad input


def test_lists_of_classes(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("playing erhu\n\nopening or closing drawers\n")
    assert read_classes(str(tmp_path / "names.txt")) == (["playing erhu", "opening or closing drawers"], 0)
    names, first = read_classes("avss71")
    assert (first, len(names), names[0]) == (1, 70, "accordion")
    assert read_classes("music11")[0][1] == "acoustic guitar"
    with pytest.raises(ValueError, match="neither a label space"):
        read_classes("no_such_space")
    with pytest.raises(ValueError, match="is empty"):
        read_classes([])
    with pytest.raises(ValueError, match=r"'playing_erhu' is there twice \(as 'playing erhu'\)"):
        read_classes(["playing erhu", "dog", "playing_erhu"])


def test_names_are_found_in_any_spelling(towers: str) -> None:
    model = method(towers, classes=["cattle, bovinae cowbell", "dog"])
    b = replace(batch([[0], [0]]), label=[["cattle__bovinae_cowbell"], ["DOG"]])
    assert model.class_index(b).tolist() == [[0], [1]]


def test_a_class_that_is_not_in_the_list_is_named(towers: str) -> None:
    model = method(towers, classes=["bell", "drum"])
    with pytest.raises(ValueError, match=r"s1 is of class 'flute', which is not among the 2 classes.*model\.classes"):
        model.training_losses(batch([[0], [2]]))
    with pytest.raises(ValueError, match="have class 2, but the list has 2 names"):
        model.training_losses(replace(batch([[0], [2]]), label=[]))


def test_training_must_know_every_source(towers: str) -> None:
    model, b = method(towers), batch([[0, 3], [2, 5]], tiles=2)
    for names, numbers, said in (
        ([["bell", "dog"], ["flute", ""]], b.class_id, "s1 has a source without a class"),
        ([["bell", "dog"], []], b.class_id, "s1 has sources without a class"),
        ([], torch.tensor([[0, 3], [-1, -1]]), "s1 has sources without a class"),
        ([], None, "s0 has sources without a class"),
    ):
        with pytest.raises(ValueError, match=f"must be told what sounds, but {said}"):
            model.training_losses(replace(b, label=names, class_id=numbers))
    silent = replace(b, label=[["bell", "dog"], []], sounding=torch.tensor([True, False]))
    assert torch.isfinite(model.training_losses(silent)["loss"])


def test_another_numbering_of_the_classes_is_refused(towers: str) -> None:
    model = method(towers, classes=["drum", "bell", "flute", "dog"]).eval()
    with pytest.raises(ValueError, match="numbers 'bell' as class 0, the list of classes as 1"):
        model.localize(batch([[0]]))


def test_a_class_twice_in_a_training_mixture_is_refused(towers: str) -> None:
    with pytest.raises(ValueError, match="but s1 has 'dog' twice"):
        method(towers).training_losses(batch([[0, 1], [3, 3]], tiles=2))


def test_sizes_that_the_tower_cannot_see(towers: str) -> None:
    with pytest.raises(ValueError, match="multiples of 8 pixels; got 36 x 36"):
        method(towers, image_size=36)
    b = batch([[0]])
    b.image = b.image[..., :30]
    with pytest.raises(ValueError, match="multiples of 8 pixels; got 32 x 30"):
        method(towers).localize(b)


def test_stereo_is_averaged_and_another_rate_or_shape_is_refused(towers: str) -> None:
    model = method(towers).eval()
    spec = model.input_spec
    left, right = noise(2, 4000, seed=5).clamp(-1, 1).numpy() / 4
    for wave, rate in ((np.stack([left, right], 1), 8000), (left, 8000), (left, 16000)):
        out = io.BytesIO()
        soundfile.write(out, wave, rate, format="FLAC", subtype="PCM_16")
        audio = Audio("a0.flac", duration=len(wave) / rate, rate=rate, channels=wave.ndim)
        record = Record(
            "toy", "x", frames=[Frame("f0.png", 32, 32)], audios=[audio], targets=[Target(0, "bell", audio=0)]
        )
        picture = io.BytesIO()
        Image.new("RGB", (32, 32)).save(picture, "PNG")
        sample = Sample(record, {"f0.png": picture.getvalue(), "a0.flac": out.getvalue()})
        if rate == 8000:
            want = wave.mean(1) if wave.ndim == 2 else wave
            np.testing.assert_allclose(make_item(sample, spec).audio, want, atol=2e-5)
        else:
            with pytest.raises(SampleError, match="has 16000 Hz, the method wants 8000 Hz"):
                make_item(sample, spec)
    b = batch([[0]])
    b.audio = torch.stack([b.audio, b.audio], 1)
    with pytest.raises(ValueError, match="needs a mono waveform"):
        model.localize(b)


def test_options_that_cannot_be(towers: str) -> None:
    with pytest.raises(ValueError, match="0 to 32 tokens, got 33"):
        method(towers, prompts=33)
    with pytest.raises(ValueError, match=r"1 or more, or \[least, most\]; got 0"):
        method(towers, mixed=0)
    with pytest.raises(ValueError, match="the text tower has 40"):
        method(towers, classes=["dog", "playing " * 20], prompts=32)


def test_a_checkpoint_of_the_release_loads_and_another_is_refused(towers: str, tmp_path: Path) -> None:
    model = method(towers, design="released")
    state = {k: v + 0.1 for k, v in model.network.state_dict().items()} | model.towers.state_dict()
    save_file({f"module.{k}": v.clone().contiguous() for k, v in state.items()}, tmp_path / "tvsl.safetensors")
    source = f"file:{tmp_path / 'tvsl.safetensors'}"
    loaded = method(towers, design="released", checkpoint=source)
    assert np.allclose(loaded.network.ap_w.item(), 1.1)
    with pytest.raises(WeightError, match="does not fit TVSLNetwork"):
        method(towers, design="published", checkpoint=source)
