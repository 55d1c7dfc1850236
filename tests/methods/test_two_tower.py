"""The two-tower family: each objective in a slow loop over its paper's equation, the network, checkpoints, a step."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from avloc.methods.base import CheckpointError
from avloc.methods.load import load_method
from avloc.methods.two_tower import EZVSL, FNAC, LVS, SLAVC, SSLTIE, Alignment, losses
from avloc.methods.two_tower.checkpoints import official_state
from avloc.methods.two_tower.method import TwoTower, heat
from avloc.methods.two_tower.network import TwoTowers, initialise, resnet
from avloc.methods.two_tower.views import Masks, Transformation, crop_and_flip, neighbours
from avloc.metrics.extended import top_quarter
from avloc.types import AVBatch
from avloc.weights import WeightError
from tests.processes import together

TOWER: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [4, 4, 6, 8], "stem_width": 4}
TINY: dict[str, Any] = {"tower": TOWER, "dim": 6, "image_size": 64, "seconds": 0.5, "heatmap_size": 16}
MEMBERS: list[type[TwoTower]] = [EZVSL, FNAC, SLAVC, LVS, SSLTIE, Alignment]


def features(B: int = 3, D: int = 5, h: int = 2, w: int = 3, seed: int = 0, heads: int = 0) -> tuple[Tensor, Tensor]:
    """Unit v and a that resemble each other in pairs."""
    torch.manual_seed(seed)
    lead = (heads,) if heads else ()
    shared = torch.randn(*lead, B, D)
    v = shared[..., None, None] + torch.randn(*lead, B, D, h, w)
    return F.normalize(v, dim=-3), F.normalize(shared + 0.5 * torch.randn(*lead, B, D), dim=-1)


def places(v: Tensor) -> list[tuple[int, int]]:
    return [(y, x) for y in range(v.shape[-2]) for x in range(v.shape[-1])]


def cosine(v: Tensor, a: Tensor, n: int, m: int, p: tuple[int, int]) -> float:
    return sum(v[n, d, p[0], p[1]].item() * a[m, d].item() for d in range(v.shape[1]))


def slow_ce(z: list[list[float]]) -> float:
    return -sum(row[n] - math.log(sum(math.exp(x) for x in row)) for n, row in enumerate(z)) / len(z)


def turned(z: list[list[float]]) -> list[list[float]]:
    return [list(row) for row in zip(*z, strict=True)]


def slow_softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


@pytest.mark.parametrize(("tau", "margin"), [(0.1, 0.0), (0.2, -0.2), (0.2, 0.3)])
def test_ez_vsl_and_a_margin_are_the_equation(tau: float, margin: float) -> None:
    v, a = features()
    z = [
        [(max(cosine(v, a, n, m, p) for p in places(v)) - margin * (n == m)) / tau for m in range(3)] for n in range(3)
    ]
    assert losses.EZVSL(tau, margin)(v, a)["loss"].item() == pytest.approx(slow_ce(z) + slow_ce(turned(z)), rel=1e-5)


def test_a_negative_margin_makes_the_loss_smaller() -> None:
    v, a = features()
    assert losses.EZVSL(0.1, -0.2)(v, a)["loss"] < losses.EZVSL(0.1)(v, a)["loss"]


def test_fnac_is_the_equation() -> None:
    tau, B = 0.2, 3
    v, a = features(B)
    u = [[sum(v[n, d, y, x].item() for y, x in places(v)) / 6 for d in range(5)] for n in range(B)]
    f = []
    for n in range(B):
        own = {p: cosine(v, a, n, n, p) / tau for p in places(v)}
        low, high = min(own.values()), max(own.values())
        inside = [p for p, s in own.items() if (s - low) / (high - low + 1e-5) > 0.6]
        f.append([sum(v[n, d, y, x].item() for y, x in inside) / 6 for d in range(5)])
    affinity = lambda x: [  # noqa: E731
        slow_softmax([sum(p * q for p, q in zip(x[n], x[m], strict=True)) / tau for m in range(B)]) for n in range(B)
    ]
    z = [[max(cosine(v, a, n, m, p) for p in places(v)) / tau for m in range(B)] for n in range(B)]
    pairs, sounds = [slow_softmax(row) for row in z], affinity(a.tolist())
    differ = lambda s, t: np.abs(np.array(s) - np.array(t)).mean()  # noqa: E731
    wanted = {
        "infonce": slow_ce(z) + slow_ce(turned(z)),
        "fns_1": differ(sounds, pairs),
        "tns": differ(sounds, affinity(f)),
        "fns_2": differ(affinity(u), pairs),
    }
    got = losses.FNAC(tau, 2, 3, 4)(v, a)
    for name, value in wanted.items():
        assert got[name].item() == pytest.approx(value, rel=1e-4), name
    total = wanted["infonce"] + 2 * wanted["fns_1"] + 3 * wanted["tns"] + 4 * wanted["fns_2"]
    assert got["loss"].item() == pytest.approx(total, rel=1e-4)
    assert losses.FNAC(tau)(v, a, warm_up=True).keys() == {"infonce", "loss"}


@pytest.mark.parametrize("j", ["audio_given_image", "image_given_audio"])
def test_slavc_is_the_equation(j: Any) -> None:
    tau, B = 0.3, 3
    v, a = features(B, heads=2)
    w, b = features(B, heads=2, seed=1)

    def logs(v: Tensor, a: Tensor, over_sounds: bool = True) -> list[list[float]]:
        one, two = (
            [[{p: cosine(v[k], a[k], n, m, p) / tau for p in places(v[k])} for m in range(B)] for n in range(B)]
            for k in (0, 1)
        )
        rows = []
        for n in range(B):
            row = []
            for m in range(B):
                total = 0.0
                for p in places(v[0]):
                    rivals = [one[n][k][p] for k in range(B)] if over_sounds else [one[k][m][p] for k in range(B)]
                    which = math.exp(one[n][m][p]) / sum(map(math.exp, rivals))
                    total += which * math.exp(two[n][m][p]) / sum(map(math.exp, two[n][m].values()))
                row.append(math.log(total))
            rows.append(row)
        return rows

    got = losses.SLAVC(tau, j)(v, a, w, b)
    second = logs(w, a) if j == "audio_given_image" else turned(logs(w, a, over_sounds=False))
    assert got["image_to_audio"].item() == pytest.approx(slow_ce(logs(v, b)), rel=1e-4)
    assert got["audio_to_image"].item() == pytest.approx(slow_ce(second), rel=1e-4)
    assert got["loss"] == got["image_to_audio"] + got["audio_to_image"]


@pytest.mark.parametrize("trimap", [True, False])
@pytest.mark.parametrize("diagonal", ["scaled", "masked"])
def test_lvs_is_the_equation(trimap: bool, diagonal: Any) -> None:
    B, tau, temperature, e_p, e_n = 3, 0.1, 0.2, 0.5, 0.3
    v, a = (x.abs() for x in features(B))  # the released towers' features are not negative
    v, a = F.normalize(v, dim=1), F.normalize(a, dim=1)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    losses_of_rows = []
    for n in range(B):
        cells = [[cosine(v, a, n, m, p) for p in places(v)] for m in range(B)]
        mean = lambda w, x: sum(p * q for p, q in zip(w, x, strict=True)) / sum(w)  # noqa: E731
        pos = [[sigmoid((s - e_p) / tau) for s in row] for row in cells]
        neg = [1 - sigmoid((s - e_n) / tau) if trimap else 1 - w for s, w in zip(cells[n], pos[n], strict=True)]
        row = [mean(pos[n], cells[n])]
        for m in range(B):
            if m != n:
                row.append(mean(pos[m], cells[m]))
            elif diagonal == "scaled":
                row.append(-99 * mean(pos[m], cells[m]))
        row.append(mean(neg, cells[n]))
        losses_of_rows.append(-row[0] / temperature + math.log(sum(math.exp(x / temperature) for x in row)))
    objective = losses.LVS(e_p, e_n, tau, temperature, trimap, diagonal=diagonal)
    assert objective(v, a)["loss"].item() == pytest.approx(sum(losses_of_rows) / B, rel=1e-4)
    assert objective.logits(v, a).shape == (B, B + 2)
    assert losses.LVS(hard_negatives=False).logits(v, a).shape == (B, B + 1)


def test_a_map_that_is_positive_throughout_has_a_finite_lvs_loss() -> None:
    v, a = features()
    v = a[:, :, None, None].expand_as(v)
    assert losses.LVS()(v, a)["loss"].isfinite()


@pytest.mark.parametrize("distance", ["mse", "l1"])
def test_ssl_tie_is_the_mean_contrast_and_the_distance_of_two_maps(distance: Any) -> None:
    v, a = features()
    w, b = features(seed=1)
    lvs = losses.LVS(0.3, 0.1)
    moved = torch.rand(3, 2, 3, requires_grad=True)
    got = losses.SSLTIE(lvs, 3.0, distance)(v, w, a, b, moved)
    gaps = [cosine(w, b, n, n, p) - moved[n, p[0], p[1]].item() for n in range(3) for p in places(w)]
    away = sum(g * g if distance == "mse" else abs(g) for g in gaps) / len(gaps)
    contrast = (lvs(v, a)["loss"] + lvs(w, b)["loss"]).item() / 2
    assert got["loss"].item() == pytest.approx(contrast + 3 * away, rel=1e-5)
    assert got["loss"].requires_grad
    assert not losses.SSLTIE(lvs, detach=True)(v, w, a, b, moved)["loss"].requires_grad


def test_alignment_is_the_mean_over_pairs_of_views() -> None:
    """Three pairs of views by hand; what comes from the clip of a row or column is no negative there."""
    B, tau = 3, 0.2
    v, a = features(B)
    own, near = torch.arange(B), torch.tensor([1, 0, 0])
    pictures = [losses.Views(v, own), losses.Views(v[near], near)]
    sounds = [losses.Views(a, own)]
    localise, align = [], []
    for view in pictures:
        for kind, found in (("max", localise), ("mean", align)):
            z = [[-math.inf] * B for _ in range(B)]
            for n in range(B):
                o = int(view.origin[n])
                for m in range(B):
                    if n != m and o in (m, n) and o == m:
                        continue  # the picture of clip m stands for n
                    cells = [cosine(v, a, o, m, p) for p in places(v)]
                    mean = v[o].mean((-2, -1)).norm().item()
                    z[n][m] = (max(cells) if kind == "max" else sum(cells) / len(cells) / mean) / tau
            found.append((slow_ce(z) + slow_ce(turned(z))) / 2)
    got = losses.Alignment(None, tau_l=tau, tau_a=tau, localise=2, align=3)(pictures, sounds)
    assert got["localise"].item() == pytest.approx(np.mean(localise), rel=1e-4)
    assert got["align"].item() == pytest.approx(np.mean(align), rel=1e-4)
    assert got["loss"].item() == pytest.approx(2 * np.mean(localise) + 3 * np.mean(align), rel=1e-4)


def objectives(negatives: Any) -> dict[str, Any]:
    made = {name: getattr(losses, name)(negatives=negatives) for name in ("EZVSL", "FNAC", "SLAVC", "LVS", "Alignment")}
    return made | {"SSLTIE": losses.SSLTIE(losses.LVS(negatives=negatives))}


def loss_of(name: str, objective: Any, rows: slice) -> tuple[Tensor, Tensor]:
    """A loss of features of samples ``rows`` of four, and its gradient to their v and w. Neighbours are pairs within
    either half, since each process looks for them among its own samples."""
    v, a = features(4, heads=2)
    w, b = features(4, heads=2, seed=1)
    v, a, w, b = (x[:, rows] for x in (v, a, w, b))
    v, w = (x.clone().requires_grad_() for x in (v, w))
    if name == "SLAVC":
        loss = objective(v, a, w, b)["loss"]
    elif name == "SSLTIE":
        loss = objective(v[0], w[0], a[0], b[0], w[0, :, 0])["loss"]
    elif name == "Alignment":
        own = torch.arange(len(a[0]))
        near = own.view(-1, 2).flip(1).flatten()
        pictures = [losses.Views(v[0], own), losses.Views(w[0], own), losses.Views(v[0][near], near)]
        loss = objective(pictures, [losses.Views(a[0], own), losses.Views(b[0][near], near)])["loss"]
    else:
        loss = objective(v[0], a[0])["loss"]
    loss.backward()
    assert v.grad is not None
    return loss.detach(), torch.stack([v.grad, torch.zeros_like(v) if w.grad is None else w.grad])


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    rows = slice(2 * rank, 2 * rank + 2)
    found = {name: loss_of(name, objective, rows) for name, objective in objectives("gathered").items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_gathered_negatives_are_one(tmp_path: Path) -> None:
    """Each member's loss is that of the whole batch; gradients to features are twice theirs, for DDP to average.
    SSL-TIE compares maps of its own samples, so there the mean of both losses is."""
    together(one_of_two, (str(tmp_path),))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, objective in objectives("local").items():
        loss, grad = loss_of(name, objective, slice(None))
        own = [f[name][0] for f in found]
        torch.testing.assert_close(torch.stack(own).mean(), loss)
        for rank, (_, part) in enumerate(f[name] for f in found):
            assert name == "SSLTIE" or own[rank] == pytest.approx(loss.item(), rel=1e-5)
            torch.testing.assert_close(part, 2 * grad[:, :, 2 * rank : 2 * rank + 2], atol=1e-5, rtol=1e-4)
            assert part.abs().sum() > 0


def tiny_batch(B: int = 2) -> AVBatch:
    torch.manual_seed(3)
    image = torch.randint(256, (B, 3, 64, 64), dtype=torch.uint8)
    return AVBatch([str(i) for i in range(B)], image, torch.randn(B, 8000) / 4, torch.arange(B))


@pytest.mark.parametrize("member", MEMBERS)
def test_a_step_trains_and_an_answer_is_a_map(member: type[TwoTower], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    method = member(**TINY).train()
    terms = method.training_losses(tiny_batch(3))
    terms["loss"].backward()
    without = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    answer = method.eval().localize(tiny_batch())
    assert answer.heatmap.shape == (2, 1, 16, 16)
    assert answer.heatmap.amin((-2, -1)).tolist() == [[0], [0]]
    assert answer.heatmap.amax((-2, -1)).tolist() == [[1], [1]]
    assert ((answer.confidence > 0) & (answer.confidence < 1)).all()


def test_channels_may_lie_innermost() -> None:
    answers, gradients = [], []
    for channels_last in (False, True):
        torch.manual_seed(0)
        wide = {"tower": TOWER | {"channels": [8, 8, 16, 16], "stem_width": 8}, "dim": 8}
        method = SLAVC(**TINY | wide, channels_last=channels_last)
        answers.append(method.eval().localize(tiny_batch()).heatmap)
        method.network.drop.p = method.network.momentum.drop.p = 0.0
        method.train().training_losses(tiny_batch())["loss"].backward()
        gradients.append(method.network.aud_proj[0].weight.grad)
    torch.testing.assert_close(*answers, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-2)


def test_widths_at_which_channels_may_not_lie_innermost_are_told() -> None:
    with pytest.raises(ValueError, match=r"multiples of 8 channels, but some have \[4, 6\]"):
        EZVSL(**TINY, channels_last=True)


def test_the_tower_that_hears_may_be_another() -> None:
    method = EZVSL(**TINY, sound_tower=TOWER | {"channels": [4, 4, 4, 4]})
    assert method.network.imgnet.num_features == 8
    assert method.network.audnet.num_features == 4
    assert method.localize(tiny_batch()).heatmap.isfinite().all()
    with pytest.raises(ValueError, match="tower has 8 channels and sound_tower 4"):
        LVS(**TINY, sound_tower=TOWER | {"channels": [4, 4, 4, 4]})


def test_ssl_tie_hears_a_batch_once() -> None:
    """The same sounds stand in both contrasts; their features are computed once."""
    method = SSLTIE(**TINY).train()
    heard = []
    method.network.audnet.conv1.register_forward_hook(lambda *_: heard.append(1))
    method.training_losses(tiny_batch())
    assert len(heard) == 1


def test_grids_are_those_of_the_papers() -> None:
    for design, side in (("one_head", 7), ("two_heads", 7), ("headless", 14)):
        net = TwoTowers(design, 6, TOWER).eval()
        with torch.no_grad():
            v, a = net(torch.zeros(1, 3, 224, 224), torch.zeros(1, 1, 257, 40))
        heads, width = {"one_head": (1, 6), "two_heads": (2, 6), "headless": (1, 8)}[design]
        assert v.shape == (heads, 1, width, side, side)
        assert a.shape == (heads, 1, width)


def test_full_size_has_the_papers_parameters() -> None:
    count = lambda net, all_of_them=True: sum(  # noqa: E731
        p.numel() for p in net.parameters() if all_of_them or p.requires_grad
    )
    with torch.device("meta"):
        one, two = TwoTowers("one_head"), TwoTowers("two_heads")
    assert count(one) == 22_872_064
    assert len(one.state_dict()) == 244
    assert (count(two), count(two, False)) == (46_794_752, 23_397_376)
    assert len(two.state_dict()) == 496


def test_towers_are_torchvisions_resnet() -> None:
    """The same tensors give the same features; torchvision's classifier alone is left out."""
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    ours = resnet().eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    x = torch.randn(1, 3, 32, 32)
    wanted = torch.nn.Sequential(*list(theirs.children())[:-2])(x)
    torch.testing.assert_close(ours.forward_features(x), wanted)


def test_the_momentum_copy_follows_parameters_and_not_statistics() -> None:
    torch.manual_seed(0)
    net = TwoTowers("two_heads", 6, TOWER)
    initialise(net)
    net.align_momentum()
    before = {k: v.clone() for k, v in net.momentum.state_dict().items()}
    with torch.no_grad():
        for p in net.imgnet.parameters():
            p += 1
        for p in net.aud_proj.parameters():
            p += 2
    net.imgnet.bn1.running_mean += 5
    net.follow(0.9, 0.75)
    for name, value in net.momentum.state_dict().items():
        moved = 0.0
        if "running" not in name and "num_batches" not in name:
            moved = 0.1 if name.startswith("imgnet") else 0.5 if name.startswith("aud_proj") else 0.0
        torch.testing.assert_close(value, before[name] + moved if moved else before[name])
    assert not any(p.requires_grad for p in net.momentum.parameters())


def test_slavc_keeps_its_momentum_copy_in_checkpoints(tmp_path: Path) -> None:
    method = SLAVC(**TINY)
    keys = {k for k in method.state_dict() if k.startswith("network.momentum.")}
    assert keys
    assert keys <= method.learned_keys()


def saved(method: TwoTower, path: Path) -> Path:
    from lightning import Trainer

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(method)
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize("member", [EZVSL, SLAVC, SSLTIE])
@pytest.mark.filterwarnings("ignore")
def test_it_comes_back_from_its_checkpoint_alone(member: type[TwoTower], tmp_path: Path) -> None:
    torch.manual_seed(1)
    method = member(**TINY).eval()
    back = load_method(saved(method, tmp_path / "a.ckpt"), "cpu")
    torch.testing.assert_close(back.localize(tiny_batch()).heatmap, method.localize(tiny_batch()).heatmap)


@pytest.mark.filterwarnings("ignore")
def test_another_members_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    path = saved(LVS(**TINY), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"belongs to avloc\.methods\.two_tower\.method\.LVS"):
        SSLTIE(**TINY).start_from(path)


def released(design: Any, wrapper: str, prefix: str) -> tuple[dict[str, Any], TwoTowers]:
    """A checkpoint as a release writes it, with the tensors of a network."""
    torch.manual_seed(5)
    net = TwoTowers(design, 6, TOWER)
    initialise(net)
    state: dict[str, Tensor] = OrderedDict()
    for key, value in net.state_dict().items():
        momentum = key.startswith("momentum.")
        name = key.removeprefix("momentum.")
        for head in ("img_proj", "aud_proj"):
            for k in (0, 1):
                name = name.replace(f"{head}.{k}.", f"{head}{k + 1 if design == 'two_heads' else ''}.")
        if design == "headless" and name == "audnet.conv1.weight":
            name = "audnet.conv1_a.weight"
        state[prefix + ("momentum_" if momentum else "") + name] = value
    if design == "headless":
        for tower in ("imgnet", "audnet"):
            state |= {f"{prefix}{tower}.fc.weight": torch.zeros(3, 8), f"{prefix}{tower}.fc.bias": torch.zeros(3)}
            state[f"{prefix}{tower}.conv1_flow.weight"] = torch.zeros(4, 6, 7, 7)
        state[f"{prefix}imgnet.conv1_a.weight"] = torch.zeros(4, 1, 7, 7)
        state[f"{prefix}audnet.conv1.weight"] = torch.zeros(4, 3, 7, 7)
    beside = {"epoch": 3, "best_cIoU": np.float64(0.8), "best_Auc": np.float32(0.5), "optimizer": {"state": {}}}
    return ({wrapper: state} | beside if wrapper else dict(state)), net


@pytest.mark.parametrize(
    ("member", "wrapper", "prefix"),
    [
        (EZVSL, "model", "module."),
        (FNAC, "model", ""),
        (SLAVC, "model", "module."),
        (LVS, "model_state_dict", "module."),
        (SSLTIE, "state_dict", ""),
        (Alignment, "model_state_dict", ""),
        (EZVSL, "", ""),
    ],
)
def test_a_releases_checkpoint_loads_whatever_it_is_wrapped_in(
    member: type[TwoTower], wrapper: str, prefix: str, tmp_path: Path
) -> None:
    content, net = released(member.design, wrapper, prefix)
    torch.save(content, tmp_path / "best.pth")
    method = member(checkpoint=f"file:{tmp_path / 'best.pth'}", **TINY)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(method.network.state_dict()[name], value, atol=0, rtol=0)


def test_wrong_checkpoints_are_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    content, _ = released("two_heads", "model", "module.")
    torch.save(content, path)
    with pytest.raises(WeightError, match=r"is a checkpoint of SLAVC .*, but the configuration builds LVS, SSL-TIE"):
        LVS(checkpoint=f"file:{path}", **TINY)
    torch.save({"model": {"encoder.weight": torch.zeros(2)}}, path)
    with pytest.raises(WeightError, match="is no two-tower checkpoint"):
        EZVSL(checkpoint=f"file:{path}", **TINY)
    content, _ = released("one_head", "model", "")
    content["model"].pop("img_proj.bias")
    torch.save(content, path)
    with pytest.raises(WeightError, match=r"1 missing \(img_proj\.0\.bias\)"):
        EZVSL(checkpoint=f"file:{path}", **TINY)


def test_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}, "args": Path("x")}, tmp_path / "best.pth")
    with pytest.raises(WeightError, match="loading it would run code"):
        EZVSL(checkpoint=f"file:{tmp_path / 'best.pth'}", **TINY)


def test_official_names_leave_nothing_unused_in() -> None:
    state = official_state(released("headless", "model_state_dict", "module.")[0])
    assert state.keys() == TwoTowers("headless", 6, TOWER).state_dict().keys()
    assert state["audnet.conv1.weight"].shape[1] == 1


def test_a_sound_shorter_than_a_window_is_told() -> None:
    with pytest.raises(ValueError, match=r"0\.03 s of sound are shorter than one window"):
        EZVSL(**TINY | {"seconds": 0.03})


def test_fnac_warms_up_with_ez_vsls_loss_alone() -> None:
    method = FNAC(warm_up=1, **TINY).train()
    assert method.training_losses(tiny_batch()).keys() == {"infonce", "loss"}  # epoch 0
    assert "tns" in FNAC(warm_up=0, **TINY).train().training_losses(tiny_batch())


def test_slavc_answers_with_the_network_that_is_asked_for() -> None:
    torch.manual_seed(0)
    online, momentum = (SLAVC(answers=who, **TINY).eval() for who in ("online", "momentum"))
    momentum.load_state_dict(online.state_dict())
    for method in (online, momentum):
        with torch.no_grad():
            method.network.img_proj[0].weight.add_(1)
    given = [m.localize(tiny_batch()).confidence for m in (online, momentum)]
    assert not torch.equal(*given)


def test_maps_are_min_maxed_or_keep_their_level() -> None:
    S = torch.tensor([[[-0.5, 0.0], [0.25, 0.5]]])
    assert heat(S, 2, "bilinear").flatten().tolist() == [0, 0.5, 0.75, 1]
    assert heat(S, 2, "bilinear", "affine").flatten().tolist() == [0.25, 0.5, 0.625, 0.75]
    assert heat(S, 3, "bilinear_corners")[0, 1, 1].item() == pytest.approx(0.5625)
    assert top_quarter(torch.arange(16.0).view(1, 4, 4)).item() == 13.5


def test_what_turns_a_picture_turns_its_map() -> None:
    """A quarter turn about (112, 112) takes (x, y) to (y, 224 - x); a flip mirrors; a half scale shrinks twice."""
    x = torch.zeros(1, 1, 224, 224)
    x[0, 0, 60, 30] = 1
    turned = Transformation(torch.tensor([90.0]))(x)[0, 0]
    assert turned.argmax().item() == (224 - 30) * 224 + 60
    assert Transformation(torch.zeros(1), flip=True)(x)[0, 0].argmax().item() == 60 * 224 + 223 - 30
    half = Transformation(torch.zeros(1), 0.5)(torch.ones(1, 3, 224, 224))
    assert half.shape == (1, 3, 112, 112)
    assert half[0, 0, 30:82, 30:82].min() == 1
    assert half[0, 0, :27].max() == 0
    assert Transformation(torch.zeros(2), 0.5)(torch.ones(2, 14, 14)).shape == (2, 7, 7)


def test_masks_hide_neighbouring_places_inside() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 1, 20, 30)
    hidden = Masks(6, 4, -7)(x) == -7
    rows, columns = hidden.all(-1)[:, 0].sum(1), hidden.all(-2)[:, 0].sum(1)
    assert set(rows.tolist()) <= set(range(7))
    assert set(columns.tolist()) <= set(range(5))
    assert rows.max() == 6
    assert columns.max() == 4
    assert (Masks(6, 4, -7, 0.0)(x) == x).all()
    assert Masks()(x) is x


def test_neighbours_are_the_nearest_others() -> None:
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert neighbours(x).tolist() == [1, 0, 3, 2]
    assert neighbours(x[:1]).tolist() == [0]
    torch.manual_seed(0)
    assert {int(neighbours(x, 2)[0]) for _ in range(20)} == {1, 3}


def test_a_crop_shows_the_pictures_own_colours() -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 3, 16, 16)
    view = crop_and_flip(x)
    assert view.shape == x.shape
    assert view.amin() >= x.amin()
    assert view.amax() <= x.amax()
    torch.testing.assert_close(crop_and_flip(torch.ones(2, 3, 8, 8)), torch.ones(2, 3, 8, 8))


def test_alignment_finds_neighbours_with_frozen_encoders() -> None:
    torch.manual_seed(0)
    method = Alignment(neighbours_image="world:resnet18", neighbours_audio="world:vggish", **TINY | {"seconds": 2.0})
    batch = tiny_batch(3)
    batch.audio = batch.audio.repeat(1, 4)
    method.train().training_losses(batch)["loss"].backward()
    assert all(p.grad is None for p in [*method.sees_alike.parameters(), *method.hears_alike.parameters()])
    assert not any(k.startswith(("sees_alike", "hears_alike")) for k in method.learned_keys())
