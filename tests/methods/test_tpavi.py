from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avloc.backbones.vggish import VGGish, VGGishConfig
from avloc.methods.load import load_method
from avloc.methods.tpavi import TPAVI
from avloc.methods.tpavi.losses import Objective, matching
from avloc.methods.tpavi.network import (
    Interaction,
    ResidualUnit,
    Segmentation,
    TPAVINetwork,
    build_encoder,
    encoder_keys,
    normalise,
    official_keys,
)
from avloc.types import AVBatch
from avloc.weights import WeightError

TINY = {"layers": [1, 1, 1, 1], "channels": [4, 6, 8, 10], "stem_width": 4}
B, FRAMES, C, D, SIDE = 2, 3, 8, 6, 64


def network(**options: object) -> TPAVINetwork:
    torch.manual_seed(0)
    settings = {"sound_size": D, "channels": C, "head": (6, 4)} | options
    net = TPAVINetwork(build_encoder("resnet18", TINY), **settings).eval()  # type: ignore[arg-type]
    for module in net.modules():  # at its zero initialisation no sound is heard
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean, 0, 0.1)
    return net


def clips(frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(B, frames, 3, SIDE, SIDE, generator=g), torch.rand(B, frames, D, generator=g)


def test_interaction_is_the_quadratic_definition() -> None:
    torch.manual_seed(2)
    block = Interaction(C, D).eval()
    nn.init.normal_(block.W_z[1].weight)
    nn.init.normal_(block.W_z[1].running_mean)
    x, sound = torch.randn(B, FRAMES, C, 2, 4), torch.randn(B, FRAMES, D)
    z, a = block(x, sound)
    torch.testing.assert_close(a, sound @ block.align_channel.weight.T + block.align_channel.bias)
    theta, phi, g = (lambda v, m=m: v @ m.weight[..., 0, 0, 0].T + m.bias for m in (block.theta, block.phi, block.g))
    for b in range(B):
        pixels = x[b].permute(0, 2, 3, 1).reshape(-1, C)  # (frame, row, column)
        heard = a[b].repeat_interleave(8, dim=0)  # the sound of each pixel's frame
        affinity = theta(pixels) @ phi(heard).T / len(pixels)
        y = affinity @ g(pixels)
        w = y @ block.W_z[0].weight[..., 0, 0, 0].T + block.W_z[0].bias
        norm = block.W_z[1]
        w = (w - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        want = F.layer_norm(w + pixels, (C,), block.norm_layer.weight, block.norm_layer.bias)
        torch.testing.assert_close(z[b].permute(0, 2, 3, 1).reshape(-1, C), want, atol=1e-5, rtol=1e-4)


def test_an_untrained_interaction_is_deaf() -> None:
    block, x = Interaction(C, D), torch.randn(B, FRAMES, C, 2, 4)
    z, _ = block(x, torch.randn(B, FRAMES, D))
    torch.testing.assert_close(z, F.layer_norm(x.transpose(2, 4), (C,)).transpose(2, 4))


def test_skip_is_rectified() -> None:
    unit, x = ResidualUnit(2), torch.randn(1, 2, 3, 3)
    for p in unit.parameters():
        nn.init.zeros_(p)
    assert torch.equal(unit(x), x.clamp(min=0))


@pytest.mark.parametrize("frames", [1, FRAMES])
def test_shapes_and_who_hears(frames: int) -> None:
    net, (image, sound) = network(), clips(frames)
    out = net(image, sound)
    assert out.logits.shape == (B, frames, 1, SIDE, SIDE)
    assert [f.shape for f in out.features] == [(B, frames, C, s, s) for s in (16, 8, 4, 2)]
    assert [(k, v.shape) for k, v in out.sounds.items()] == [(k, (B, frames, C)) for k in (1, 2, 3, 4)]
    assert all((f >= 0).all() for f in out.features)
    other = net(image, sound.flip(0)).logits
    assert not torch.allclose(other, out.logits, atol=1e-4)
    one = net(image[1:], sound[1:])
    torch.testing.assert_close(one.logits[0], out.logits[1], atol=1e-5, rtol=1e-4)


def test_deaf_and_many_classes() -> None:
    image, sound = clips()
    deaf = network(stages=())
    assert torch.equal(deaf(image, sound).logits, deaf(image, 1 - sound).logits)
    assert not deaf(image, sound).sounds
    assert network(classes=5)(image, sound).logits.shape == (B, FRAMES, 5, SIDE, SIDE)


def test_encoder_is_torchvisions_resnet() -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.resnet50(weights=None).eval()
    ours = build_encoder("resnet50").eval()
    ours.load_state_dict(encoder_keys(theirs.state_dict()))
    x = torch.randn(1, 3, 64, 64)
    y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    for got, layer in zip(ours(x), (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True):
        y = layer(y)
        torch.testing.assert_close(got, y)


def official_resnet(net: TPAVINetwork) -> dict[str, Tensor]:
    """The state as AVSBench saves it: twin stages, and weights that nothing reads."""
    state = {}
    for k, v in net.state_dict().items():
        name = k.replace("encoder.", "resnet.")
        for stage in ("layer3", "layer4"):
            if f"resnet.{stage}." in name:
                state[name.replace(stage, f"{stage}_2")] = torch.zeros_like(v)
                name = name.replace(stage, f"{stage}_1")
        state[name] = v
    unit = {f"path4.resConfUnit1.{k}": v for k, v in ResidualUnit(C).state_dict().items()}
    return state | unit


def test_official_resnet_checkpoint() -> None:
    net = network()
    state = official_resnet(net)
    assert {"resnet.layer3_1.0.conv1.weight", "resnet.layer4_2.0.bn1.running_var"} <= state.keys()
    named = {
        "align_channel.weight": (C, D),
        "norm_layer.bias": (C,),
        "g.weight": (C // 2, C, 1, 1, 1),
        "W_z.0.weight": (C, C // 2, 1, 1, 1),
        "W_z.1.running_mean": (C,),
        "theta.bias": (C // 2,),
        "phi.weight": (C // 2, C, 1, 1, 1),
    }
    shapes = {f"tpavi_b{k}.{name}": shape for k in (1, 2, 3, 4) for name, shape in named.items()}
    shapes |= {f"conv{k}.conv2d_list.3.weight": (C, w, 3, 3) for k, w in enumerate((4, 6, 8, 10), start=1)}
    shapes |= {f"path{k}.resConfUnit2.conv1.weight": (C, C, 3, 3) for k in (1, 2, 3, 4)}
    shapes |= {"output_conv.0.weight": (6, C, 3, 3), "output_conv.4.bias": (1,)}
    assert {k: tuple(state[k].shape) for k in shapes} == shapes
    other = network()
    for p in other.parameters():
        nn.init.zeros_(p)
    other.load_state_dict(official_keys({f"module.{k}": v for k, v in state.items()}))
    image, sound = clips()
    assert torch.equal(other(image, sound).logits, net(image, sound).logits)


def test_official_pvt_keys() -> None:
    """Names of whai362's PVT v2, which AVSBench keeps behind ``encoder_backbone.``."""
    encoder = build_encoder("pvt_v2_b0")
    names = []
    for stage, depth in enumerate((2, 2, 2, 2), start=1):
        names += [f"patch_embed{stage}.{m}" for m in ("proj", "norm")] + [f"norm{stage}"]
        reduced = ["attn.sr", "attn.norm"] if stage < 4 else []
        layers = ["norm1", "norm2", "attn.q", "attn.kv", "attn.proj", "mlp.fc1", "mlp.dwconv.dwconv", "mlp.fc2"]
        names += [f"block{stage}.{i}.{m}" for i in range(depth) for m in layers + reduced]
    state = {
        f"encoder_backbone.{n}.{p}": torch.tensor(float(i)) for i, n in enumerate(names) for p in ("weight", "bias")
    }
    ours = official_keys(state)
    assert ours.keys() == {f"encoder.{k}" for k in encoder.state_dict()}
    got = ours["encoder.stages_2.blocks.1.mlp.dwconv.weight"]
    assert got == state["encoder_backbone.block3.1.mlp.dwconv.dwconv.weight"]
    assert ours["encoder.stages_1.downsample.norm.bias"] == state["encoder_backbone.patch_embed2.norm.bias"]
    assert ours["encoder.stages_3.norm.bias"] == state["encoder_backbone.norm4.bias"]
    plain = {k.removeprefix("encoder_backbone."): v for k, v in state.items()} | {"head.bias": torch.ones(1)}
    assert encoder_keys(plain).keys() == encoder.state_dict().keys()


def test_pvt_has_the_official_epsilons_and_drops_paths() -> None:
    encoder = build_encoder("pvt_v2_b0")
    eps = {name: m.eps for name, m in encoder.named_modules() if isinstance(m, nn.LayerNorm)}
    outer = {n for n in eps if n.endswith(("attn.norm", "patch_embed.norm", "downsample.norm"))}
    assert {eps[n] for n in outer} == {1e-5}
    assert {e for n, e in eps.items() if n not in outer} == {1e-6}
    assert encoder.get_submodule("stages_3.blocks.1.drop_path1").drop_prob == pytest.approx(0.1)
    assert [tuple(f.shape[1:]) for f in encoder(torch.zeros(1, 3, 64, 64))] == [
        (32, 16, 16),
        (64, 8, 8),
        (160, 4, 4),
        (256, 2, 2),
    ]


@pytest.mark.parametrize(("name", "message"), [("resnet5000", "no model 'resnet5000'"), ("vgg11", "has strides")])
def test_unusable_encoder_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(name)


def test_normalise() -> None:
    got = normalise(torch.full((1, 1, 3, 2, 2), 255, dtype=torch.uint8))[0, 0, :, 0, 0]
    assert got.tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


def test_side_that_does_not_fit_is_refused() -> None:
    image, sound = clips()
    for x, y in [(image[..., :40], sound), (image[:, 0], sound), (image, sound[:, :1])]:
        with pytest.raises(ValueError, match="multiple of 32"):
            network()(x, y)


# ---- losses


def segmentation(classes: int = 1) -> Segmentation:
    g = torch.Generator().manual_seed(4)
    features = [torch.rand(B, FRAMES, C, s, s, generator=g) for s in (8, 4, 2, 1)]
    sounds = {k: torch.randn(B, FRAMES, C, generator=g) for k in (2, 4)}
    return Segmentation(2 * torch.randn(B, FRAMES, classes, 32, 32, generator=g), features, sounds)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("classes", [1, 4])
def test_matching_frame_by_frame(classes: int, normalised: bool) -> None:
    out = segmentation(classes)
    stages = {}
    for stage in out.sounds:
        divergences = []
        for b in range(B):
            for f in range(FRAMES):
                x = out.features[stage - 1][b, f].double().numpy()
                logits = out.logits[b, f].double().numpy()
                side = x.shape[-1]
                shown = logits[0] if classes == 1 else (logits.argmax(0) != 0).astype(float)
                cells = shown.reshape(side, 32 // side, side, 32 // side).mean((1, 3))
                mask = 1 / (1 + np.exp(-cells)) if classes == 1 else cells
                v, a = (x * mask).mean((1, 2)), out.sounds[stage][b, f].double().numpy()
                if normalised:
                    v, a = v / np.linalg.norm(v), a / np.linalg.norm(a)
                p, q = softmax(a), softmax(v)
                divergences.append((p * np.log(p / q)).sum())
        stages[stage] = divergences
    sums, means = ([reduce(d) for d in stages.values()] for reduce in (np.sum, np.mean))
    assert matching(out, "sum", normalised).item() == pytest.approx(np.mean(sums), rel=1e-4)
    assert matching(out, "mean", normalised).item() == pytest.approx(np.mean(means), rel=1e-4)


def test_objective_reads_the_first_frame() -> None:
    out = segmentation()
    target = (torch.rand(B, 32, 32, generator=torch.Generator().manual_seed(5)) > 0.7).float()
    terms = Objective(lambda_avm=0.5, avm="sum")(out, target)
    p = 1 / (1 + np.exp(-out.logits[:, 0, 0].double().numpy()))
    t = target.numpy()
    want = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    assert terms["bce"].item() == pytest.approx(want, rel=1e-4)
    assert terms["loss"].item() == pytest.approx(want + 0.5 * terms["avm"].item(), rel=1e-4)
    assert terms["avm"].item() == pytest.approx(matching(out, "sum").item(), rel=1e-5)
    plain = Objective()(out, target)
    assert plain.keys() == {"bce", "loss"}


def test_objective_at_the_truths_size() -> None:
    out = Segmentation(torch.full((1, 1, 1, 32, 32), 3.0), [], {})
    terms = Objective()(out, torch.zeros(1, 90, 160))
    assert terms["loss"].item() == pytest.approx(math.log(1 + math.exp(3.0)), rel=1e-5)


def test_classes_with_pixels_that_are_not_scored() -> None:
    out = segmentation(4)
    target = torch.randint(4, (B, 32, 32), generator=torch.Generator().manual_seed(6))
    target[0, :16] = 255
    logits = out.logits[:, 0].double().permute(0, 2, 3, 1).reshape(-1, 4).numpy()
    rows = [-np.log(softmax(x)[y]) for x, y in zip(logits, target.flatten().tolist(), strict=True) if y != 255]
    assert Objective()(out, target)["ce"].item() == pytest.approx(np.mean(rows), rel=1e-4)
    assert Objective()(out, torch.full_like(target, 255))["loss"].item() == 0


# ---- the method


def tiny_files(folder: Path) -> dict[str, object]:
    torch.manual_seed(7)
    VGGish(VGGishConfig((4, 4, 4, 4), 16, D)).save_world(folder / "vggish.safetensors")
    return {
        "encoder": "resnet18",
        "encoder_options": TINY,
        "encoder_weights": "random",
        "vggish": f"file:{folder / 'vggish.safetensors'}",
        "channels": C,
        "head": (6, 4),
        "image_size": SIDE,
        "seconds": 2.0,
    }


def batch(size: int = 4) -> AVBatch:
    g = torch.Generator().manual_seed(8)
    image = torch.randint(256, (size, 3, SIDE, SIDE), generator=g).to(torch.uint8)
    audio = 0.3 * torch.randn(size, 32000, generator=g)
    truth = torch.zeros(size, 2, SIDE, SIDE)
    truth[:, 0, :20, :20] = 1
    truth[:, 1, 40:, 40:] = 1
    return AVBatch([f"s{i}" for i in range(size)], image, audio, torch.full((size,), -1), truth=truth)


def test_training_step_and_answer(tmp_path: Path) -> None:
    torch.manual_seed(9)
    wider = tiny_files(tmp_path) | {"channels": 16, "head": (16, 16)}
    method = TPAVI(**wider, objective=Objective(lambda_avm=0.5))  # type: ignore[arg-type]
    data = batch()
    optimizer = torch.optim.Adam(method.trainable(), lr=3e-3)
    losses = []
    for _ in range(25):
        terms = method.training_losses(data)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["bce"].item())
    missing = [k for k, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing  # DDP stops at a parameter without gradient
    assert losses[-1] < losses[0] / 2
    answer = method.eval().localize(data)
    assert answer.heatmap.shape == (4, 1, SIDE, SIDE)
    union = data.truth.amax(1, keepdim=True)
    agreement = ((answer.heatmap > 0.5) == (union > 0.5)).float().mean()
    assert agreement > 0.9  # the union of the sources was learnt
    assert torch.equal(answer.confidence, answer.heatmap.flatten(2).max(2).values)


def test_vggish_is_frozen_and_outside_the_checkpoint(tmp_path: Path) -> None:
    method = TPAVI(**tiny_files(tmp_path))  # type: ignore[arg-type]
    assert {k.split(".")[0] for k in method.learned_keys()} == {"network"}
    assert {"network.encoder.bn1.running_var", "network.tpavi_b1.W_z.1.running_mean"} <= method.learned_keys()


def test_a_frame_hears_the_mean_of_its_examples(tmp_path: Path) -> None:
    method = TPAVI(**tiny_files(tmp_path))  # type: ignore[arg-type]
    audio = batch().audio
    with torch.no_grad():
        first, second = (method.vggish.embed(method.vggish.front_end(audio)[:, i]) for i in (0, 1))
        torch.testing.assert_close(method.hear(audio), (first + second) / 2)


def hearing(folder: Path, **options: object) -> TPAVI:
    """A method whose interactions are not those of the start, which pass everything by."""
    torch.manual_seed(10)
    method = TPAVI(**tiny_files(folder) | {"frames": FRAMES} | options)  # type: ignore[arg-type]
    for module in method.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.weight)
    return method.eval()


def test_rows_of_a_clip_are_what_the_network_makes_of_the_clip(tmp_path: Path) -> None:
    """Against ``[B, F]`` clips, whose interaction is compared with the quadratic definition above."""
    method, data = hearing(tmp_path), batch(2 * FRAMES)
    data.clip = torch.tensor([0, 0, 0, 3, 3, 3])
    with torch.no_grad():
        image = normalise(data.image).unflatten(0, (2, FRAMES))
        want = method.network(image, method.hear(data.audio).unflatten(0, (2, FRAMES))).logits.flatten(0, 1)[:, 0]
        got = method.localize(data).heatmap
        torch.testing.assert_close(got[:, 0], want.sigmoid(), atol=1e-5, rtol=1e-4)
        order = torch.tensor([4, 0, 3, 2, 5, 1])  # who belongs together, not who is next to whom
        torch.testing.assert_close(method.localize(data.take(order.tolist())).heatmap, got[order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changed", ["image", "sound"])
def test_the_frames_of_a_video_are_mixed_and_two_videos_never(changed: str) -> None:
    net, (image, sound) = network(), (x.flatten(0, 1)[:5, None] for x in clips())
    clip = torch.tensor([0, 0, 0, 3, 3])  # of different lengths
    before = net(image, sound, clip).logits
    one = {"image": image, "sound": sound}[changed]
    one[1] = one[1].flip(-1)
    moved = (net(image, sound, clip).logits - before).abs().amax((1, 2, 3, 4))
    assert (moved[:3] > 1e-5).all()
    assert torch.equal(moved[3:], torch.zeros(2))
    moved = (net(image, sound).logits - net(image, sound, clip).logits).abs().amax((1, 2, 3, 4))
    assert (moved > 1e-5).all()


def test_frames_without_truth_are_seen_and_not_supervised(tmp_path: Path) -> None:
    method, data = hearing(tmp_path), batch(2 * FRAMES)
    data.clip = torch.tensor([0, 0, 0, 3, 3, 3])
    data.annotated = torch.tensor([True, False, False] * 2)
    got = method.training_losses(data)
    logits = method.segment(data).logits[[0, 3], 0, 0].double().detach()
    p, t = torch.sigmoid(logits).numpy(), data.truth[[0, 3]].amax(1).numpy()  # type: ignore[index]
    assert got["bce"].item() == pytest.approx(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(), rel=1e-4)
    unseen = data.take(range(2 * FRAMES))
    unseen.image[1] = 255 - unseen.image[1]
    assert method.training_losses(unseen)["bce"].item() != pytest.approx(got["bce"].item(), rel=1e-6)
    unseen = data.take(range(2 * FRAMES))
    unseen.truth[1] = 1  # type: ignore[index]
    assert torch.equal(method.training_losses(unseen)["bce"], got["bce"])


def test_several_classes(tmp_path: Path) -> None:
    method = TPAVI(**tiny_files(tmp_path), classes=4).eval()  # type: ignore[arg-type]
    data = batch()
    with pytest.raises(ValueError, match="no semantic map"):
        method.training_losses(data)
    data.semantic = torch.randint(4, (4, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    assert method.training_losses(data)["ce"] > 0
    answer = method.localize(data)
    assert answer.semantic.shape == (4, SIDE, SIDE)
    # Where another class wins over the background, the background has less than half the probability of all.
    assert (answer.heatmap[:, 0][answer.semantic != 0] > 0.5).all()


def test_batch_without_truth_is_named(tmp_path: Path) -> None:
    data = batch()
    data.truth = None
    with pytest.raises(ValueError, match=r"s0, s1, s2.*no truth.*data\.truth"):
        TPAVI(**tiny_files(tmp_path)).training_losses(data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 72}, "image_size 72 is no multiple of 32"),
        ({"seconds": 0.96}, r"0\.96 s of sound are shorter than one VGGish example \(0\.975 s\)"),
        ({"frames": 0}, "clip 0 and frames 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        TPAVI(**tiny_files(tmp_path) | change)


def test_start_from_files(tmp_path: Path) -> None:
    files = tiny_files(tmp_path)
    torch.save(official_resnet(network()), tmp_path / "S4_best.pth")
    method = TPAVI(**files, checkpoint=f"file:{tmp_path / 'S4_best.pth'}")  # type: ignore[arg-type]
    assert torch.equal(method.network.conv1.conv2d_list[0].weight, network().conv1.conv2d_list[0].weight)
    torch.save(network().encoder.state_dict() | {"fc.bias": torch.ones(3)}, tmp_path / "encoder.pth")
    method = TPAVI(**files | {"encoder_weights": f"file:{tmp_path / 'encoder.pth'}"})  # type: ignore[arg-type]
    assert torch.equal(method.network.encoder.conv1.weight, network().encoder.conv1.weight)
    with pytest.raises(WeightError, match="does not fit"):
        TPAVI(**files | {"encoder_options": None, "encoder_weights": f"file:{tmp_path / 'encoder.pth'}"})


def test_checkpoint_comes_back_from_itself(tmp_path: Path) -> None:
    method = TPAVI(**tiny_files(tmp_path), objective=Objective(lambda_avm=0.5))  # type: ignore[arg-type]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_steps=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(method, DataLoader([batch(), batch()], batch_size=None))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    back = load_method(tmp_path / "last.ckpt", device="cpu")
    assert back.objective == Objective(lambda_avm=0.5)
    assert torch.equal(back.localize(batch()).heatmap, method.eval().localize(batch()).heatmap)
