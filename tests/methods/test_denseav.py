"""DenseAV against loops over cells and values by hand; what the golden cases do not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from avloc.backbones.hubert import own_names
from avloc.methods.base import step_seed
from avloc.methods.denseav import DenseAV
from avloc.methods.denseav.checkpoints import merged, official_state
from avloc.methods.denseav.losses import Draws, Features, Objective
from avloc.methods.denseav.network import Aggregation, Calibration, prompted_maps, step_masks
from avloc.methods.denseav.views import own_samples, quad_mixed, silenced, spliced
from avloc.methods.load import load_method
from avloc.types import AVBatch
from avloc.weights import WeightError
from tests.processes import together

CONV = [8] * 7
TINY: dict[str, Any] = {
    "image_weights": "random",
    "audio_weights": "random",
    "image_tower": {"image_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "audio_tower": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": CONV,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    },
    "code_dim": 12,
    "image_size": 32,
    "seconds": 0.5,
    "heatmap_size": 40,
}


def batch_of(n: int) -> AVBatch:
    g = torch.Generator().manual_seed(3)
    audio = torch.rand(n, 8000, generator=g) * 2 - 1
    audio[0, 5000:] = 0
    image = torch.randint(256, (n, 3, 32, 32), generator=g, dtype=torch.uint8)
    return AVBatch([str(i) for i in range(n)], image, audio, torch.arange(n))


def method(**options: Any) -> DenseAV:
    torch.manual_seed(0)
    return DenseAV(**TINY | options)


def test_all_pairs_are_what_a_loop_over_cells_finds() -> None:
    """The released similarity: of the heads the larger at each cell, of the places the best, of true steps the mean."""
    torch.manual_seed(0)
    image, audio = torch.randn(3, 8, 2, 3), torch.randn(5, 8, 1, 4)
    mask = torch.rand(5, 4) > 0.4
    mask[:, 1] = True
    found = Aggregation(heads=2, chunk=2).all_pairs(image, audio, mask)
    for a in range(5):
        for v in range(3):
            steps = []
            for t in range(4):
                cells = [
                    max(float(audio[a, :4, 0, t] @ image[v, :4, y, x]), float(audio[a, 4:, 0, t] @ image[v, 4:, y, x]))
                    for y in range(2)
                    for x in range(3)
                ]
                if mask[a, t]:
                    steps.append(max(cells))
            assert float(found[a, v]) == pytest.approx(sum(steps) / len(steps), abs=1e-5)


def test_recomputing_cells_changes_no_gradient() -> None:
    torch.manual_seed(0)
    grads = []
    start = torch.randn(4, 6, 2, 2), torch.randn(4, 6, 1, 5)
    for recompute in (False, True):
        image, audio = (x.clone().requires_grad_() for x in start)
        S = Aggregation(chunk=3).all_pairs(image, audio, torch.ones(4, 5) > 0, recompute=recompute)
        S.square().sum().backward()
        grads.append((image.grad, audio.grad))
    for a, b in zip(*grads, strict=True):
        assert a is not None
        torch.testing.assert_close(a, b)


def test_cells_of_all_pairs_are_not_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    raw = Aggregation.raw

    def noted(self: Aggregation, image: Tensor, audio: Tensor, *cls: Tensor) -> Tensor:
        S = raw(self, image, audio, *cls)
        seen.append(S.numel())
        return S

    monkeypatch.setattr(Aggregation, "raw", noted)
    Aggregation(chunk=2).all_pairs(torch.randn(6, 4, 3, 3), torch.randn(6, 4, 1, 5), torch.ones(6, 5) > 0)
    assert seen == [2 * 6 * 9 * 5] * 3


def test_the_objective_of_two_clips_by_hand() -> None:
    """One place, one step, one channel: inner products are products of numbers."""
    x = Features(
        torch.tensor([2.0, 1.0]).reshape(2, 1, 1, 1),
        torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1),
        torch.zeros(2, 1),
        torch.zeros(2, 1),
        torch.ones(2, 1) > 0,
        torch.tensor([[1.0], [0.25]]),
        torch.tensor([1.0, 0.5]).reshape(2, 1, 1, 1),
    )
    draws = Draws(*(torch.tensor([1]) if name == "b" else torch.tensor([0]) for name in "bhwft"))
    terms = Objective(samples=1)(x, Aggregation(), Calibration(), draws)
    S = torch.tensor([[2.0, 1.0], [-2.0, -1.0]])  # sound by picture; less its mean 0
    nce = sum(F.cross_entropy(s, torch.arange(2)) for s in (S, S.T)) / 2
    torch.testing.assert_close(terms["nce"], nce)
    assert float(terms["nonneg"]) == pytest.approx(1.0)  # (-1 * 1)^2
    assert float(terms["splice"]) == pytest.approx(1.0)  # 0.75 * (-1)^2 / 0.75
    assert float(terms["mixup"]) == pytest.approx((0.5 * -1) ** 2 / 0.5)
    assert float(terms["calibration"]) == 0
    assert not {"specialize", "silence_l1", "tv"} & terms.keys()  # one head, no silence, one step
    torch.testing.assert_close(terms["loss"], nce + 0.01 * 1 + 0.01 * 1 + 0.1 * 0.5)


def test_steps_follow_the_two_samples_in_their_middle() -> None:
    samples = torch.zeros(1, 12)
    samples[0, :7] = 1
    assert step_masks(samples, 3).tolist() == [[1.0, 1.0, 0.0]]  # samples 1 and 2, 5 and 6, 9 and 10
    samples[0, 6] = 0
    assert step_masks(samples, 3).tolist() == [[1.0, 0.5, 0.0]]


def test_own_samples_end_with_the_last_sound() -> None:
    wave = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0], [0.0] * 5])
    assert own_samples(wave).tolist() == [[True, True, True, True, False], [True] * 5]


def test_a_splice_fades_the_next_clip_in() -> None:
    torch.manual_seed(0)
    n = 8 * 16_000
    wave = torch.stack([torch.full((n,), k + 1.0) for k in range(3)])
    real = torch.ones(3, n) > 0
    real[2, 8000:] = False  # half a second: shorter than any splice
    mixed, own = spliced(wave, real)
    assert torch.equal(mixed[2], wave[2])
    assert own[2].all()
    for row, other in ((0, 3.0), (1, 1.0)):
        inside = torch.where(own[row] == 0)[0]
        assert 16_000 <= len(inside) <= 64_000
        assert torch.equal(inside, torch.arange(int(inside[0]), int(inside[-1]) + 1))
        middle = mixed[row, inside[len(inside) // 2]]
        assert float(middle) == pytest.approx(other, abs=1e-3)
        assert (mixed[row][own[row] == 1] == row + 1).all()
        ramp = max(len(inside) // 4, 8000)
        quarter = mixed[row, inside[0] + ramp // 2]  # half a ramp in: half of each
        assert float(quarter) == pytest.approx((row + 1 + other) / 2, abs=1e-3)


def test_silenced_sounds_keep_one_stretch() -> None:
    torch.manual_seed(0)
    wave, real = torch.ones(64, 32_000), torch.ones(64, 32_000) > 0
    kept, still = silenced(wave, real)
    cut = ~still.all(1)
    assert 16 < cut.sum() < 48
    assert torch.equal(kept != 0, still)
    for row in still[cut]:
        place = torch.where(row)[0]
        assert 8000 <= len(place) == int(place[-1] - place[0]) + 1


def test_quarters_hold_four_pictures_and_one_is_own() -> None:
    torch.manual_seed(0)
    image = torch.arange(5.0)[:, None, None, None].expand(5, 3, 8, 8)
    mixed, own = quad_mixed(image, share=1.0)
    for k in range(5):
        assert own[k].sum() == 16
        assert (mixed[k][own[k].expand(3, -1, -1) == 1] == k).all()
        assert mixed[k].unique().numel() == 4
    same, own = quad_mixed(image, share=0.0)
    assert torch.equal(same, image)
    assert own.all()


def test_maps_run_from_0_to_1_and_a_flat_one_is_0() -> None:
    cells = torch.rand(3, 4, 4, 5)
    cells[2] = 1.0
    maps = prompted_maps(cells, torch.ones(3, 5), (4, 4))
    assert maps[:2].amin((1, 2)).tolist() == [0, 0]
    assert maps[:2].amax((1, 2)).tolist() == [1, 1]
    assert not maps[2].any()


def test_a_step_of_frozen_towers_trains_the_aligners_alone() -> None:
    batch = batch_of(4)
    for frozen_steps, trained in ((10, False), (0, True)):
        model = method(frozen_steps=frozen_steps, splice=False).train()
        model.training_losses(batch)["loss"].backward()
        towers = [p for t in (model.network.image_tower, model.network.audio_tower) for p in t.parameters()]
        assert any(p.grad is not None for p in towers) is trained
        assert model.network.image_aligner.get_parameter("layer.weight").grad is not None
        assert model.network.audio_cls.grad is not None


def test_each_gradient_is_clipped_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = method(clip=0.5)
    monkeypatch.setattr(model, "clip_gradients", lambda *_: None)
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    a.grad, b.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.1, 0.0])
    model.configure_gradient_clipping(torch.optim.SGD([a, b], 0.1))
    torch.testing.assert_close(a.grad, torch.tensor([0.3, 0.4]), atol=1e-4, rtol=0)
    torch.testing.assert_close(b.grad, torch.tensor([0.1, 0.0]))


def official(model: DenseAV) -> dict[str, Tensor]:
    """The network's tensors under the release's names, with adapters of rank 2 on the picture tower."""
    named = {}
    for key, value in model.network.state_dict().items():
        if key.startswith("image_tower."):
            key = f"image_model.base_model.model.model.{key.removeprefix('image_tower.')}"
        key = key.replace("audio_tower.model.", "audio_model.model.")
        named[key] = value.clone()
        if key.endswith("attn.qkv.weight") and key.startswith("image_model"):
            layer = key.removesuffix(".weight")
            named[f"{layer}.lora_A.default.weight"] = torch.ones(2, value.shape[1])
            named[f"{layer}.lora_B.default.weight"] = torch.full((value.shape[0], 2), 0.01)
    return named


def test_a_releases_checkpoint_is_tested_with_its_adapters_merged(tmp_path: Path) -> None:
    trained = method()
    state = official(trained)
    save_file(state, tmp_path / "hub.safetensors")
    loaded = method(checkpoint=f"file:{tmp_path / 'hub.safetensors'}")
    for key, value in trained.network.state_dict().items():
        more = 32 / 2 * 2 * 0.01 if key.startswith("image_tower.") and key.endswith("attn.qkv.weight") else 0.0
        torch.testing.assert_close(loaded.network.state_dict()[key], value + more, msg=key)
    torch.save({"state_dict": state, "hyper_parameters": {"lr": 1.0}}, tmp_path / "lightning.ckpt")
    again = method(checkpoint=f"file:{tmp_path / 'lightning.ckpt'}")
    assert torch.equal(again.network.audio_cls, trained.network.audio_cls)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    state = official(method())
    for name, content, says in (
        ("other", {"weight": torch.ones(2)}, "no checkpoint of DenseAV"),
        ("torn", {k: v for k, v in state.items() if "audio_aligner.mod_list.1" not in k}, "mod_list.1.norm"),
        ("half", {k: v for k, v in state.items() if "lora_B" not in k}, "adapter of .* is not whole"),
    ):
        save_file(content, tmp_path / f"{name}.safetensors")
        with pytest.raises(WeightError, match=says):
            method(checkpoint=f"file:{tmp_path / name}.safetensors")


def test_gains_of_the_position_convolution_have_one_name() -> None:
    old = {"encoder.pos_conv_embed.conv.weight_g": torch.ones(1), "hubert.masked_spec_embed": torch.ones(2)}
    assert set(own_names(old | {"lm_head.weight": torch.ones(1)})) == {
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "masked_spec_embed",
    }
    assert merged({"a.base_layer.weight": torch.ones(1)}).keys() == {"a.weight"}
    assert official_state({"state_dict": {"audio_cls": torch.ones(1)}, "epoch": 3}).keys() == {"audio_cls"}


def test_an_answer_is_a_map_and_a_confidence() -> None:
    model, batch = method().eval(), batch_of(3)
    with torch.inference_mode():
        answer = model.localize(batch)
        alone = model.localize(batch.take([1]))
    assert answer.heatmap.shape == (3, 1, 40, 40)
    assert 0 <= float(answer.heatmap.min()) < float(answer.heatmap.max()) <= 1
    assert ((answer.confidence > 0) & (answer.confidence < 1)).all()
    torch.testing.assert_close(alone.heatmap[0], answer.heatmap[1], atol=1e-4, rtol=1e-3)


def test_a_checkpoint_rebuilds_the_method(tmp_path: Path) -> None:
    from lightning import Trainer

    model = method(aggregation=Aggregation(heads=2), objective=Objective(tv=0.5))
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    rebuilt = load_method(tmp_path / "m.ckpt", "cpu")
    assert isinstance(rebuilt, DenseAV)
    assert (rebuilt.aggregation, rebuilt.objective) == (model.aggregation, model.objective)
    for key, value in model.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[key], value), key


def test_adapters_train_and_their_tower_does_not() -> None:
    pytest.importorskip("peft")
    model = method(image_lora=4, frozen_steps=0, splice=False).train()
    trained = {k for k, p in model.network.image_tower.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in k for k in trained)
    model.training_losses(batch_of(4))["loss"].backward()
    assert all(p.grad is not None for k, p in model.network.image_tower.named_parameters() if "lora_B" in k)


def test_training_masks_spans_of_ten_steps() -> None:
    hubert = method().network.audio_tower
    torch.manual_seed(0)
    masked = hubert.spans(torch.zeros(50, 32_000))
    assert masked is not None
    assert masked.shape == (50, 99)
    assert (masked.sum(1) >= 11).all()  # two spans that differ in their start
    assert (masked.sum(1) <= 20).all()
    assert hubert.spans(torch.zeros(2, 3000)) is None


def loss_of(model: DenseAV, batch: AVBatch) -> Tensor:
    return model.train().training_losses(batch)["loss"]


QUIET: dict[str, Any] = {
    "splice": False,
    "silence_share": 0.0,
    "quad_share": 0.0,
    "frozen_steps": 0,
}


def still(model: DenseAV) -> DenseAV:
    """Without dropout, layer drop and masking, whose draws differ between ranks."""
    config = model.network.audio_tower.model.config
    config.layerdrop, config.apply_spec_augment = 0.0, False
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    return model


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = still(method(**QUIET)).train()
    loss = loss_of(model, batch_of(4).take([2 * rank, 2 * rank + 1]))
    loss.backward()
    for p in model.parameters():
        if p.grad is not None:
            torch.distributed.all_reduce(p.grad)
            p.grad /= 2
    found = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    torch.save({"loss": loss.detach(), "grads": found}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    whole = still(method(**QUIET)).train()
    loss = loss_of(whole, batch_of(4))
    loss.backward()
    together(one_of_two, (str(tmp_path),))
    for rank in range(2):
        half = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(half["loss"], loss.detach(), atol=1e-5, rtol=1e-5)
        for key, p in whole.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(half["grads"][key], p.grad, atol=1e-5, rtol=1e-3, msg=key)


def test_a_step_draws_alike_for_equal_samples() -> None:
    losses = []
    for _ in range(2):
        model, batch = method(), batch_of(4)
        torch.manual_seed(step_seed(batch.key, 0))
        losses.append(loss_of(model, batch))
    assert torch.equal(*losses)
