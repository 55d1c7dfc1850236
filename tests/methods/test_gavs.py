"""GAVS against hand-made numbers, one frame at a time, and the published counts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avloc.backbones.sam import SAM, TINY, VIT_B
from avloc.backbones.vggish import VGGish, VGGishConfig
from avloc.methods.gavs import GAVS
from avloc.methods.gavs.losses import Objective, alignment
from avloc.methods.gavs.network import DESIGNS, Design, GAVSNetwork, by_frame
from avloc.types import AVBatch
from tests.golden.case import Case, find_cases, golden_folder

GOLDEN = [c for c in find_cases(golden_folder()) if c.kind in ("gavs_decoder", "gavs_losses")]


def network(design: str | Design = "published", tune_v: int | None = 2, seed: int = 0) -> GAVSNetwork:
    torch.manual_seed(seed)
    return GAVSNetwork(SAM(TINY), DESIGNS[design] if isinstance(design, str) else design, tune_v=tune_v).eval()


def frames(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 64, 64), generator=g).to(torch.uint8), torch.rand(count, 128, generator=g)


def count(net: nn.Module, trained: bool = True) -> tuple[int, int]:
    chosen = [p for p in net.parameters() if p.requires_grad or not trained]
    return len(chosen), sum(p.numel() for p in chosen)


# ---- what is trained


def full_size(design: str, tune_v: int | None) -> GAVSNetwork:
    with torch.device("meta"):
        return GAVSNetwork(SAM(VIT_B), DESIGNS[design], tune_v=tune_v)


@pytest.mark.parametrize(("tune_v", "want"), [(9, (32, 927_872)), (6, (56, 1_529_600)), (12, (12, 329_216))])
def test_released_counts(tune_v: int, want: tuple[int, int]) -> None:
    net = full_size("released", tune_v)
    assert count(net) == want
    assert sum(p.numel() for p in net.parameters()) == 96_434_736
    assert len(net.state_dict()) == 374


def test_published_adds_cue_noise_and_a_wider_projection() -> None:
    cue = 256 * 512 + 512 + 512 * 128 + 128
    wider = 2 * 128 * 512
    assert count(full_size("published", 9))[1] == 927_872 + cue + 128 + wider
    assert count(full_size("audio_sam", None)) == (4, 197_376)  # the audio projection alone
    fusion = (256 + 128) * 256 + 256 + 256 * 256 + 256
    assert count(full_size("sam_fusion", None))[1] == 197_376 + fusion


def test_trained_keys_are_the_releases() -> None:
    names = {n for n, p in full_size("released", 10).named_parameters() if p.requires_grad}
    encoder = {f"model_v.image_encoder.blocks.{b}.adapter_v.{i}" for b in (10, 11) for i in (0, 2)}
    encoder |= {"model_v.image_encoder.blocks.11.norm1", "model_v.image_encoder.blocks.11.norm2"}
    decoder = {f"model_v.mask_decoder.transformer.layers.{i}.adapter_tf.{p}" for i in (0, 1) for p in ("dense", "proj")}
    decoder |= {"model_v.mask_decoder.audio_proj.0", "model_v.mask_decoder.audio_proj.2"}
    assert names == {f"{module}.{kind}" for module in encoder | decoder for kind in ("weight", "bias")}


@pytest.mark.parametrize("design", sorted(DESIGNS))
@pytest.mark.parametrize("tune_v", [None, 0, 2, 3])
def test_every_trained_tensor_gets_a_gradient(design: str, tune_v: int | None) -> None:
    net = network(design, tune_v)
    image, audio = frames(2)
    logits, _ = net.decode(net.encode(net.prepare(image)), audio)
    logits.square().sum().backward()
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    assert {n for n, p in net.named_parameters() if p.grad is not None} == trained


def test_negative_tune_v_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 3, or None; got -1"):
        network(tune_v=-1)


# ---- the network


@torch.no_grad()
@pytest.mark.parametrize("design", sorted(DESIGNS))
def test_a_batch_equals_its_frames_one_by_one(design: str) -> None:
    net = network(design)
    if net.design.fusion:
        nn.init.normal_(net.fusion[-1].weight, std=0.1)
    image, audio = frames(3)
    batch, _ = net.decode(net.encode(net.prepare(image)), audio)
    for b in range(3):
        one, _ = net.decode(net.encode(net.prepare(image[b : b + 1])), audio[b : b + 1])
        torch.testing.assert_close(batch[b : b + 1], one, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("tune_v", [None, 0, 3])
def test_frozen_and_rest_are_the_whole_encoder(tune_v: int | None) -> None:
    net = network(tune_v=tune_v)
    pixels = net.prepare(frames(2)[0])
    hooks = [
        block.mlp.register_forward_hook(lambda m, a, out, adapter=block.adapter_v: adapter(out) + out)
        for b, block in enumerate(net.model_v.image_encoder.blocks)
        if tune_v is not None and b >= tune_v
    ]
    want = net.model_v.image_encoder(pixels)  # the package's own walk
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(net.encode(pixels), want, atol=1e-5, rtol=1e-4)
    kept = net.encode_frozen(pixels)
    assert kept.shape == ((2, 64, 8, 8) if tune_v is None else (2, 8, 8, 64))
    assert net.frozen_part == ("embedding" if tune_v is None else f"block {tune_v}")
    torch.testing.assert_close(net.encode_rest(kept), want, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_prompt_is_cue_sound_and_noise_projected() -> None:
    net = network()
    image, audio = frames(2)
    embedding = net.encode(net.prepare(image))
    cue = net.visual_cue(embedding)
    pooled = embedding.flatten(2).mean(2)
    first, _, last = net.cue
    torch.testing.assert_close(cue, F.linear(F.linear(pooled, first.weight, first.bias).relu(), last.weight, last.bias))
    parts = torch.cat([cue, audio, net.noise[None].repeat(2, 1)], dim=1)
    assert parts.shape == (2, 384)
    torch.testing.assert_close(net.prompt(audio, cue)[:, 0], net.model_v.mask_decoder.audio_proj(parts))
    assert net.noise.std().item() == pytest.approx(0.02, rel=0.3)


@torch.no_grad()
def test_cola_in_the_context_reaches_the_image_alone() -> None:
    """Where the image attends to no token, the paper's placement does nothing, the release's something."""
    image, audio = frames(1)
    out = {}
    for cola in ("none", "context", "mlp"):
        net = network(Design(cola=cola), tune_v=None, seed=4)  # type: ignore[arg-type]
        torch.manual_seed(5)
        for layer in net.model_v.mask_decoder.transformer.layers:
            nn.init.zeros_(layer.cross_attn_image_to_token.out_proj.weight)
        for p in (*net.cue.parameters(), *net.model_v.mask_decoder.audio_proj.parameters(), net.noise):
            nn.init.normal_(p, std=0.1)
        out[cola] = net.decode(net.encode(net.prepare(image)), audio)[0]
    torch.testing.assert_close(out["context"], out["none"])
    assert (out["mlp"] - out["none"]).abs().max() > 1e-4


@torch.no_grad()
def test_the_released_noise_replaces_the_sound_in_training_only() -> None:
    net = network("released")
    audio = torch.tensor([[0.0, 3.0] * 64])
    clean = net.prompt(audio)
    torch.testing.assert_close(clean, net.prompt(audio, noise=torch.zeros(1, 128)))
    net.train()
    spread = 1.5 * math.sqrt(128 / 127)
    torch.testing.assert_close(net.training_noise(audio, torch.ones(1, 128)), torch.full((1, 128), spread))
    torch.testing.assert_close(
        net.prompt(audio, noise=torch.ones(1, 128)), net.prompt(audio + 7, noise=torch.ones(1, 128))
    )


def test_the_release_sees_blue_first() -> None:
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[:, 0] = 200  # red
    assert network("published").prepare(image)[0, 0, 0, 0].item() == pytest.approx((200 - 123.675) / 58.395)
    assert network("released").prepare(image)[0, 2, 0, 0].item() == pytest.approx((200 - 103.53) / 57.375)
    assert network("released").prepare([image[0]])[0, 2, 0, 0].item() == pytest.approx((200 - 103.53) / 57.375)


@torch.no_grad()
def test_sam_fusion_starts_as_plain_sam() -> None:
    image, audio = frames(1)
    fused, plain = network("sam_fusion", None), network("audio_sam", None)
    plain.load_state_dict({k: v for k, v in fused.state_dict().items() if not k.startswith("fusion")})
    embedding = fused.encode(fused.prepare(image))
    torch.testing.assert_close(fused.decode(embedding, audio)[0], plain.decode(embedding, audio)[0])


def test_a_sound_for_every_frame() -> None:
    with pytest.raises(ValueError, match="2 frames and 3 sounds"):
        network().decode(torch.zeros(2, 64, 8, 8), torch.zeros(3, 128))


def test_chunks_change_neither_values_nor_gradients() -> None:
    logits = torch.randn(5, 1, 8, 8, requires_grad=True)
    sizes: list[int] = []

    def loss(z: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(z))
        return F.binary_cross_entropy_with_logits(z, t, reduction="none").mean((1, 2, 3))

    target = (torch.rand(5, 1, 8, 8) > 0.5).float()
    whole = torch.autograd.grad(loss(logits, target).sum(), logits)[0]
    sizes.clear()
    chunked = by_frame(loss, logits, target, chunk=2)
    torch.testing.assert_close(torch.autograd.grad(chunked.sum(), logits)[0], whole)
    assert sizes == [2, 2, 1, *sizes[3:]]
    assert sorted(sizes[3:]) == [1, 2, 2]  # again in backward
    torch.testing.assert_close(chunked, loss(logits, target))
    torch.testing.assert_close(by_frame(loss, logits, list(target), chunk=2), chunked)


# ---- losses


@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("name", ["bce", "mse", "bbce", "focal", "dice_loss", "bce_dice", "avs"])
def test_empty_and_full_masks_have_a_loss_and_a_gradient(name: str, fill: float) -> None:
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    value = Objective(name).frames(logits, torch.full((2, 1, 8, 8), fill))  # type: ignore[arg-type]
    assert value.shape == (2,)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(logits.grad).all()


def test_balanced_bce_by_hand() -> None:
    logits, target = torch.tensor([[2.0, -1.0, 0.5, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    terms = [3 * math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(0.5)), math.log(2)]
    assert Objective("bbce").frames(logits, target).item() == pytest.approx(sum(terms) / 4, rel=1e-6)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="'dice' is none of bce"):
        Objective("dice")  # type: ignore[arg-type]


def test_alignment_by_a_loop() -> None:
    g = torch.Generator().manual_seed(0)
    cue, sound = torch.randn(5, 8, generator=g), torch.randn(5, 8, generator=g)
    video, margin = ["a", "a", "b", "", ""], 0.2

    def cos(x: Tensor, y: Tensor) -> float:
        return (x @ y / (x.norm() * y.norm())).item()

    per_anchor = []
    for i in range(5):
        others = [j for j in range(5) if i != j and (video[j] != video[i] or not video[i])]
        terms = [max(0.0, margin - cos(cue[i], sound[i]) + cos(cue[i], sound[j])) for j in others]
        per_anchor.append(sum(terms) / len(terms))
    assert alignment(cue, sound, video, margin).item() == pytest.approx(sum(per_anchor) / 5, rel=1e-5)


def test_alignment_of_one_video_is_zero() -> None:
    cue = torch.randn(3, 8, requires_grad=True)
    value = alignment(cue, torch.randn(3, 8), ["v"] * 3)
    value.backward()
    assert value.item() == 0
    assert cue.grad.abs().max() == 0


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in GOLDEN])
def test_golden_with_the_tolerance_of_each_tensor(case: Case) -> None:
    """The gradients' own bounds, which are narrower than those of test_golden."""
    actual, tolerance = case.runner().run(case), case.spec["tolerance"]
    for name, want in case.expected.items():
        prefixes = tolerance.get("per_prefix", {})
        bound = next((b for p, b in prefixes.items() if name.startswith(p)), tolerance)
        torch.testing.assert_close(
            actual[name].detach(), want, atol=bound["atol"], rtol=bound["rtol"], check_dtype=False
        )


# ---- the method


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("gavs")
    torch.manual_seed(0)
    SAM(TINY).save_world(folder / "sam.safetensors")
    VGGish(VGGishConfig((4, 4, 8, 8), 16, 128)).save_world(folder / "vggish.safetensors")
    return {name: f"file:{folder / name}.safetensors" for name in ("sam", "vggish")}


def method(files: dict[str, str], **options: Any) -> GAVS:
    torch.manual_seed(2)
    return GAVS(**(files | {"tune_v": 3} | options)).eval()


def batch(size: int = 4, sources: int = 2) -> AVBatch:
    g = torch.Generator().manual_seed(3)
    image = torch.randint(256, (size, 3, 64, 64), generator=g).to(torch.uint8)
    truth = (torch.rand(size, sources, 56, 56, generator=g) > 0.8).float()
    keys = [f"k{i}" for i in range(size)]
    sound = 0.3 * torch.randn(size, 16000, generator=g)
    return AVBatch(keys, image, sound, torch.full((size,), -1), truth, video=[f"v{i // 2}" for i in range(size)])


def test_losses_are_the_frames_mean_at_the_truths_size(files: dict[str, str]) -> None:
    model, b = method(files, chunk=3), batch()
    losses = model.training_losses(b)
    audio = torch.stack([model.vggish(x[None])[0, 0] for x in b.audio])
    want, cues = [], []
    for i in range(4):
        embedding = model.network.encode(model.network.prepare(b.image[i : i + 1]))
        logits, cue = model.network.decode(embedding, audio[i : i + 1])
        full = F.interpolate(F.interpolate(logits, (64, 64), mode="bilinear"), (56, 56), mode="bilinear")[0, 0]
        union = ((b.truth[i, 0] + b.truth[i, 1]) > 0).float()
        want.append(F.binary_cross_entropy_with_logits(full, union))
        cues.append(cue[0])
    torch.testing.assert_close(losses["mask"], torch.stack(want).mean())
    torch.testing.assert_close(losses["align"], alignment(torch.stack(cues), audio, b.video))
    torch.testing.assert_close(losses["loss"], losses["mask"] + losses["align"])


def test_localize(files: dict[str, str]) -> None:
    model, b = method(files, heatmap_size=48), batch()
    assert model.localize(b).heatmap.shape == (4, 1, 56, 56)  # the truth's own size
    b.truth = None
    answer = model.localize(b)
    assert answer.heatmap.shape == (4, 1, 48, 48)
    logits, _ = model.network.decode(model.see(b), model.hear(b.audio))
    full = F.interpolate(F.interpolate(logits, (64, 64), mode="bilinear"), (48, 48), mode="bilinear").sigmoid()
    torch.testing.assert_close(answer.heatmap, full.detach())
    torch.testing.assert_close(answer.confidence, full.detach().flatten(2).max(2).values)


@pytest.mark.parametrize("design", sorted(DESIGNS))
def test_a_step_learns(files: dict[str, str], design: str) -> None:
    model, b = method(files, design=design).train(), batch()
    optimizer = torch.optim.AdamW(model.trainable(), lr=1e-3)
    start = [p.detach().clone() for p in model.trainable()]
    losses = model.training_losses(b)
    assert ("align" in losses) == (design == "published")
    losses["loss"].backward()
    optimizer.step()
    assert all(not torch.equal(p, q) for p, q in zip(model.trainable(), start, strict=True))
    assert all(p.grad is None for p in model.vggish.parameters())


def test_cached_features_replace_the_encoder(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for tune_v in (None, 2):
        model, b = method(files, tune_v=tune_v), batch()
        want, kept = model.localize(b).heatmap, model.frozen(b)
        b.stored = {"frozen": kept.half()}
        with monkeypatch.context() as patch:
            patch.setattr(model.network, "encode_frozen", None)
            torch.testing.assert_close(model.localize(b).heatmap, want, atol=2e-3, rtol=0)  # half precision


def test_frames_of_different_sizes_form_one_batch(files: dict[str, str]) -> None:
    model, b = method(files, chunk=2), batch()
    sizes = [(64, 40), (64, 64), (32, 64), (64, 40)]
    for picture, (h, w) in zip(b.image, sizes, strict=True):
        picture[:, h:] = picture[:, :, w:] = 0
    b.size = torch.tensor(sizes)

    def losses_of(b: AVBatch) -> Tensor:
        assert b.truth is not None
        logits, _ = model.network.decode(model.see(b), model.hear(b.audio))
        return model.frame_losses(logits, b.truth.amax(1, keepdim=True), b)

    together, losses = model.localize(b).heatmap, losses_of(b)
    for i, (h, w) in enumerate(sizes):
        alone = b.take([i])
        alone.image, alone.size = alone.image[:, :, :h, :w], None  # as SAM's own predictor is given it
        torch.testing.assert_close(together[i : i + 1], model.localize(alone).heatmap, atol=1e-5, rtol=0)
        torch.testing.assert_close(losses[i : i + 1], losses_of(alone))


def test_the_cache_key_follows_weights_and_preprocessing(files: dict[str, str]) -> None:
    model = method(files)
    key = model.cache_key()
    assert key == method(files, objective=Objective(margin=0.5)).cache_key()
    others = [method(files, tune_v=2), method(files, tune_v=None), method(files, design="released")]
    assert len({key, *(m.cache_key() for m in others)}) == 4
    with torch.no_grad():
        model.network.model_v.image_encoder.blocks[3].adapter_v[0].weight += 1
        model.network.model_v.image_encoder.blocks[3].norm1.weight += 1
        assert model.cache_key() == key
        model.network.model_v.image_encoder.blocks[2].norm1.weight += 1
    assert model.cache_key() != key


def test_bf16_autocast_agrees(files: dict[str, str]) -> None:
    model, b = method(files), batch()
    want = model.localize(b).heatmap
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.localize(b).heatmap, want, atol=0.03, rtol=0)
        assert model.training_losses(b)["loss"].dtype == torch.float32


def test_bad_input(files: dict[str, str]) -> None:
    model = method(files)
    with pytest.raises(ValueError, match=r"batch of k0, k1, k2, \.\.\. has no truth.*data\.truth"):
        model.training_losses(replace(batch(), truth=None))
    with pytest.raises(ValueError, match=r"0.96 s of sound are shorter than one VGGish example \(0.975 s\)"):
        method(files, seconds=0.96)
    with pytest.raises(ValueError, match="longest side is 64"):
        model.localize(replace(batch(), image=torch.zeros(4, 3, 32, 32, dtype=torch.uint8)))
    with pytest.raises(ValueError, match="15600 samples"):
        model.localize(replace(batch(), audio=torch.zeros(4, 8000)))
    assert torch.isfinite(model.training_losses(replace(batch(), truth=torch.zeros(4, 1, 56, 56)))["loss"])


def test_two_seconds_are_averaged(files: dict[str, str]) -> None:
    model, audio = method(files, seconds=2.0), 0.3 * torch.randn(1, 32000)
    assert model.input_spec.samples == 32000
    both = model.vggish(audio)
    torch.testing.assert_close(model.hear(audio), (both[:, 0] + both[:, 1]) / 2)


def test_design_from_its_parts_and_hyper_parameters(files: dict[str, str], tmp_path: Path) -> None:
    model = method(files, design=Design(cola="mlp", activation="gelu"))
    assert model.network.design.cola == "mlp"
    torch.save(dict(model.hparams), tmp_path / "h.pt")
    again = torch.load(tmp_path / "h.pt", weights_only=True)
    assert again["design"] == Design(cola="mlp", activation="gelu")
