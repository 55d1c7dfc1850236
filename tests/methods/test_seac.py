"""SeAC against hand-made numbers and plain loops over its equations; bad input; two processes against one."""

from __future__ import annotations

import copy
import io
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning import Callback, Trainer
from PIL import Image
from scipy.ndimage import gaussian_filter
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from avloc.backbones import proposals as P
from avloc.backbones.openclip import TINY, OpenCLIP, normalise
from avloc.backbones.sam import PIXEL_MEAN, PIXEL_STD, SAM
from avloc.backbones.tokens import train_world_tokenizer
from avloc.data.index import read_index
from avloc.data.indexed import EvalSet
from avloc.data.items import collate
from avloc.data.labels import LABEL_SPACES
from avloc.data.module import AVDataModule
from avloc.data.schema import SampleError
from avloc.data.shards import write_shards
from avloc.data.store import store_features
from avloc.data.stored import FeatureStore, StoreError, open_features
from avloc.data.stream import TrainStream
from avloc.methods.seac import SeAC, embed, losses
from avloc.methods.seac.aggregate import aggregate, box_masks, classify, normalised, unpack_bits
from avloc.methods.seac.embed import Mixture
from avloc.methods.seac.make import MaskMaker
from avloc.methods.seac.method import Mixing, read_categories
from avloc.methods.seac.network import Design, SeACNetwork, TimePooling
from avloc.methods.seac.segment import Segmentation, at_side, fingerprint
from avloc.methods.seac.stored import PictureMasks, as_rows, deflate, filled, inflate, read
from avloc.types import AVBatch
from avloc.weights import WeightError
from avloc.world.dataset import samples
from avloc.world.scenes import render, sample_scenes
from tests.processes import together

LITTLE = Design(layers=2, heads=4, hidden=32, dropout=0.0, size=16)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- losses


def test_an_example_worked_by_hand() -> None:
    S = torch.tensor([[0.62, 0.15], [0.20, 0.48], [0.35, 0.30], [0.05, 0.71]], dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    terms = losses.msa_micl(S, torch.tensor([0, 1, 0, 1]), tau)
    assert terms.audio.tolist() == pytest.approx([0.017040, 0.018256], abs=1e-6)
    assert terms.mask.tolist() == pytest.approx([0.009054, 0.059033, 0.474077, 0.001359], abs=1e-6)
    assert terms.loss.item() == pytest.approx(0.578820, abs=1e-6)
    terms.loss.backward()
    want = [[-0.248454, 0.123134], [0.711380, -0.589726], [-3.786047, 3.923307], [0.044408, -0.178002]]
    torch.testing.assert_close(S.grad, torch.tensor(want, dtype=torch.float64), atol=1e-6, rtol=0)
    assert tau.grad is not None
    assert tau.grad.item() == pytest.approx(5.486495, abs=1e-6)


def test_without_mixing_it_is_two_cross_entropies() -> None:
    S, target = random(6, 6), torch.arange(6)
    want = F.cross_entropy(S / 0.3, target, reduction="sum") + F.cross_entropy(S.T / 0.3, target, reduction="sum")
    torch.testing.assert_close(losses.msa_micl(S, target, 0.3).loss, want)


def test_best_similarity_is_a_loop_and_leaves_padding_out() -> None:
    masks, audio, count = random(4, 5, 8), random(3, 8, seed=1), torch.tensor([5, 2, 1, 4])
    S, best = losses.best_similarity(masks, audio, torch.arange(5) < count[:, None])
    for i in range(4):
        for k in range(3):
            cosine = [F.cosine_similarity(masks[i, n], audio[k], dim=0).item() for n in range(count[i])]
            assert S[i, k].item() == pytest.approx(max(cosine), abs=1e-6)
            assert best[i, k].item() == int(np.argmax(cosine))


def test_gradients_reach_the_best_mask_alone() -> None:
    masks, audio = random(3, 4, 8).requires_grad_(), random(3, 8, seed=1)
    S, best = losses.best_similarity(masks, audio)
    losses.msa_micl(S, torch.arange(3), 0.1).loss.backward()
    assert masks.grad is not None
    for i in range(3):
        touched = masks.grad[i].abs().sum(1).nonzero()[:, 0].tolist()
        assert touched == sorted(set(best[i].tolist()))


def test_losses_are_float32_under_autocast() -> None:
    masks, audio = random(4, 3, 8), random(4, 8, seed=1)
    want = losses.msa_micl(losses.best_similarity(masks, audio)[0], torch.arange(4), 0.07).loss
    with torch.autocast("cpu", torch.bfloat16):
        S, _ = losses.best_similarity(masks, audio)
        got = losses.msa_micl(S, torch.arange(4), 0.07).loss
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def test_curriculum() -> None:
    assert [losses.mixing_probability(e, 6) for e in range(6)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert losses.mixing_probability(0, 1) == 0
    assert losses.mixing_probability(9, 6) == 0.5
    assert losses.mixing_probability(2, 3, 0.2, 0.4) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("samples", "size", "sizes"), [(6, 2, [2, 2, 2]), (5, 2, [1, 2, 2]), (1, 2, [1]), (7, 3, [1, 3, 3])]
)
def test_groups_of_an_odd_batch(samples: int, size: int, sizes: list[int]) -> None:
    group = losses.draw_groups(samples, size)
    assert sorted(torch.bincount(group).tolist()) == sizes


def test_every_pair_is_drawn() -> None:
    g = torch.Generator().manual_seed(0)
    pairs = {tuple((losses.draw_groups(4, 2, g) == 0).nonzero()[:, 0].tolist()) for _ in range(100)}
    assert len(pairs) == 6


def test_sounds_are_summed_without_clipping() -> None:
    wave = torch.tensor([[0.75, -1.0], [0.5, 0.25], [0.5, -0.75]])
    assert losses.mix(wave, torch.tensor([1, 0, 1]), 2).tolist() == [[0.5, 0.25], [1.25, -1.75]]


# ---- aggregation


def painted(similarity: np.ndarray, masks: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Equation 4 pixel by pixel: O, and the lowest mask that it is of."""
    s = similarity[:count]
    scaled = (s - s.min()) / (s.max() - s.min()) if s.max() > s.min() else np.ones(count)
    heat, which = np.zeros(masks.shape[1:]), np.full(masks.shape[1:], -1)
    for v in range(masks.shape[1]):
        for u in range(masks.shape[2]):
            for n in range(count):
                if masks[n, v, u] and (which[v, u] < 0 or scaled[n] > heat[v, u]):
                    heat[v, u], which[v, u] = scaled[n], n
    return heat, which


def test_aggregate_is_a_loop_over_pixels() -> None:
    g = torch.Generator().manual_seed(0)
    count = torch.tensor([5, 3, 1, 4])
    masks = torch.rand(4, 5, 6, 7, generator=g) < 0.3
    similarity = torch.randn(4, 5, generator=g)
    similarity[3] = torch.tensor([0.2, 0.7, 0.7, -0.1, 9.0])  # a tie, and padding that must not count
    label = torch.randint(9, (4, 5), generator=g)
    got = aggregate(similarity, masks, torch.arange(5) < count[:, None])
    semantic = got.semantic(label, 0.4)
    for b in range(4):
        heat, which = painted(similarity[b].numpy(), masks[b].numpy(), int(count[b]))
        np.testing.assert_allclose(got.heatmap[b].numpy(), heat, atol=1e-6)
        np.testing.assert_array_equal(got.mask[b].numpy(), which)
        classes = np.where(heat > 0.4, 1 + label[b].numpy()[which.clip(0)], 0)
        np.testing.assert_array_equal(semantic[b].numpy(), classes)
        assert got.confidence[b] == similarity[b, : count[b]].max()


def test_aggregation_stays_on_the_device_and_loops_over_no_masks() -> None:
    """Meta tensors have no values: whatever asked for one on the host would fail. And N does not change the work."""
    called = {}
    for n in (2, 50):
        bits = torch.zeros(3, n, 16, 2, dtype=torch.uint8, device="meta")
        valid = torch.ones(3, n, dtype=torch.bool, device="meta")
        with Operators() as operators:
            masks = unpack_bits(bits, 16) | box_masks(torch.zeros(3, n, 4, device="meta"), (16, 16))
            answer = aggregate(torch.zeros(3, n, device="meta"), masks, valid)
            semantic = answer.semantic(torch.zeros(3, n, dtype=torch.long, device="meta"))
        assert answer.heatmap.shape == semantic.shape == (3, 16, 16)
        called[n] = operators.called
    assert called[2] == called[50]


class Operators(TorchDispatchMode):
    """Notes every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(str(func))
        return func(*args, **(kwargs or {}))


def test_zero_range_and_padding() -> None:
    similarity = torch.tensor([[0.3, 5.0], [0.2, 0.2]])
    valid = torch.tensor([[True, False], [True, True]])
    assert normalised(similarity, valid).tolist() == [[1, 0], [1, 1]]
    assert normalised(similarity, valid, "zeros").tolist() == [[0, 0], [0, 0]]


def test_sigma_is_exclusive_and_not_negative() -> None:
    masks = torch.eye(3, dtype=torch.bool)[None, :, None]
    answer = aggregate(torch.tensor([[0.0, 0.5, 1.0]]), masks)
    assert answer.semantic(torch.tensor([[4, 5, 6]]), 0.5).tolist() == [[[0, 0, 7]]]
    assert answer.semantic(torch.tensor([[4, 5, 6]]), 0.0).tolist() == [[[0, 6, 7]]]
    with pytest.raises(ValueError, match="sigma must be 0 or more"):
        answer.semantic(torch.tensor([[4, 5, 6]]), -0.1)


def test_boxes_are_painted_half_open_truncated_and_clamped() -> None:
    boxes = torch.tensor([[-3.7, 1.9, 2.9, 4.2], [1.0, 1.0, 1.9, 3.0], [3.0, 0.0, 99.0, 2.0], [-5, -5, -2, -2]])
    want = np.zeros((4, 5, 6), bool)
    want[0, 1:4, 0:2] = True  # the second has no width left
    want[2, 0:2, 3:6] = True
    np.testing.assert_array_equal(box_masks(boxes, (5, 6)).numpy(), want)


@pytest.mark.parametrize("width", [8, 13, 1])
def test_bits_are_numpys(width: int) -> None:
    masks = np.random.default_rng(0).random((3, 4, width)) < 0.5
    assert torch.equal(unpack_bits(torch.from_numpy(np.packbits(masks, axis=2)), width), torch.from_numpy(masks))


def test_a_tie_of_texts_goes_to_the_first() -> None:
    text = torch.tensor([[1.0, 0], [0, 1], [0, 1]])
    label, cosine = classify(torch.tensor([[3.0, 4.0]]), text)
    assert label.tolist() == [1]
    torch.testing.assert_close(cosine, torch.tensor([[0.6, 0.8, 0.8]]))


# ---- mask embedding


def blobs(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Ragged discs of all sizes."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    noise = F.interpolate(torch.randn(n, 1, 9, 12, generator=g), (height, width), mode="bicubic")[:, 0]
    c = torch.rand(n, 3, generator=g)[..., None, None]
    return (x - c[:, 0]) ** 2 + (y - c[:, 1]) ** 2 < (0.06 + 0.3 * c[:, 2] + 0.02 * noise) ** 2


@pytest.mark.parametrize("side", [32, 224])
def test_crops_are_each_boxs_resize(side: int) -> None:
    image, masks = 255 * torch.rand(3, 80, 100, generator=torch.Generator().manual_seed(0)), blobs(6, 80, 100)
    masks[0] = False
    masks[0, 11, 7] = True  # one pixel
    got = embed.crops(image, masks, side)
    for n, mask in enumerate(masks.numpy()):
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        y, x = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        part = (image * masks[n])[:, y, x]
        want = F.interpolate(part[None], (side, side), mode="bicubic", antialias=True)[0].clamp(0, 255)
        torch.testing.assert_close(got[n], want, atol=2e-3, rtol=0)
        pillow = Image.fromarray(part.permute(1, 2, 0).round().byte().numpy()).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        # Pillow rounds and clips between its two passes.
        assert np.abs(np.asarray(pillow) - got[n].permute(1, 2, 0).numpy()).mean() < 1


def test_square_crops_are_padded_with_black() -> None:
    image, mask = 255 * torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 40, 60)
    mask[:, 2:7, 10:52] = 1  # 42 wide, 5 high: the square begins above the picture
    got = embed.crops(image, mask.bool(), 16, square=True)
    above = math.floor((2 + 7 - 42) / 2)
    part = F.pad((image * mask)[:, : above + 42, 10:52], (0, 0, -above, 0))
    assert part.shape == (3, 42, 42)
    want = F.interpolate(part[None], (16, 16), mode="bicubic", antialias=True).clamp(0, 255)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=0)


@pytest.mark.parametrize("sigma", [1.5, 10.0, 100.0])
def test_blur_is_scipys_with_edges_extended(sigma: float) -> None:
    image = 255 * torch.rand(3, 30, 44, generator=torch.Generator().manual_seed(0))
    want = np.stack([gaussian_filter(c.astype(np.float64), sigma, mode="nearest", truncate=4) for c in image.numpy()])
    np.testing.assert_allclose(embed.blur(image, sigma).numpy(), want, atol=2e-3)
    assert embed.blur(image, 0) is image


def tiny_clip(seed: int = 0) -> OpenCLIP:
    torch.manual_seed(seed)
    tokenizer = train_world_tokenizer(["a", "photo", "of", *LABEL_SPACES["world16"]])
    config = copy.deepcopy(TINY)
    config["vision_cfg"]["layers"] = 1
    config["text_cfg"]["vocab_size"] = tokenizer.encode("")[-1] + 1
    clip = OpenCLIP(config, tokenizer)
    nn.init.normal_(clip.clip.text_projection, std=0.5)
    return clip


@pytest.mark.parametrize("mixture", [Mixture(blur_sigma=5), Mixture(1.0), Mixture(0.0), Mixture(0.5, 2, scale="unit")])
def test_mixture_is_equations_one_to_three(mixture: Mixture) -> None:
    clip, masks = tiny_clip(), blobs(3, 50, 70)
    image = torch.randint(256, (3, 50, 70), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    (got,) = mixture.embed(clip, image, masks, chunk=2).values()
    blurred = np.stack(
        [gaussian_filter(c.astype(np.float64), mixture.blur_sigma, mode="nearest") for c in image.numpy()]
    )

    def look(picture: Tensor) -> Tensor:
        resized = F.interpolate(picture[None], (64, 64), mode="bicubic", antialias=True).clamp(0, 255)
        f = clip.encode_image(normalise(resized))[0]
        return f / f.norm() if mixture.scale == "unit" else f

    for f, mask in zip(got, masks, strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        local = look((image * mask).float()[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        whole = look(torch.where(mask, image.float(), torch.from_numpy(blurred).float()))
        share = mixture.lambda_local
        torch.testing.assert_close(f, share * local + (1 - share) * whole, atol=2e-4, rtol=1e-3)


def test_parts_are_mixed_later_for_any_share() -> None:
    clip, masks = tiny_clip(), blobs(3, 50, 70)
    image = torch.randint(256, (3, 50, 70), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    parts = Mixture(0.6, 5, parts=True).embed(clip, image, masks)
    assert sorted(parts) == ["local", "whole"]
    for share in (0.0, 0.2, 0.6, 1.0):
        mixture = Mixture(share, 5)
        want = mixture.embed(clip, image, masks)["features"]
        torch.testing.assert_close(Mixture(share, 5, parts=True).mixed(parts), want, atol=1e-5, rtol=1e-5)
        assert mixture.mixed({"features": want}) is want
    assert torch.equal(Mixture(1.0, 5, parts=True).mixed(parts), parts["local"])


def test_a_share_outside_of_0_to_1() -> None:
    with pytest.raises(ValueError, match="share from 0 to 1"):
        Mixture(1.2)


# ---- network


def test_time_pooling_by_hand() -> None:
    torch.manual_seed(0)
    pool, x = TimePooling(6), random(2, 5, 6)
    with torch.no_grad():
        for k in range(2):
            score = [float(pool.query @ (pool.key.weight @ x[k, t])) / math.sqrt(6) for t in range(5)]
            weight = np.exp(score) / np.exp(score).sum()
            want = sum(w * (pool.value.weight @ x[k, t]) for t, w in enumerate(weight.tolist()))
            torch.testing.assert_close(pool(x)[k], want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_padding_is_not_seen_and_order_does_not_matter(mode: str) -> None:
    torch.manual_seed(0)
    net = SeACNetwork(32, 8, LITTLE).train(mode == "train")
    features, valid = random(2, 6, 32), torch.arange(6) < torch.tensor([[6], [4]])
    want = net.embed_masks(features, valid)
    garbage = features.clone()
    garbage[1, 4:] = 1e3
    torch.testing.assert_close(net.embed_masks(garbage, valid)[1, :4], want[1, :4])
    torch.testing.assert_close(net.embed_masks(features[1:, :4])[0], want[1, :4], atol=1e-5, rtol=1e-4)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    torch.testing.assert_close(net.embed_masks(features[:1, order])[0], want[0, order], atol=1e-5, rtol=1e-4)


def test_published_sizes_and_every_layer_of_its_own() -> None:
    net = SeACNetwork()
    attention = 4 * 1024 * 1024 + 4 * 1024
    feed_forward = 2 * 1024 * 2048 + 2048 + 1024
    layer = attention + feed_forward + 2 * 2 * 1024
    pooling = 128 + 2 * 128 * 128
    projections = 1024 * 128 + 128 + 128 * 128 + 128
    total = 1024 * 1024 + 1024 + 4 * layer + 2 * 1024 + pooling + projections + 1
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == total == 34_831_745
    first, second = (net.encoder.layers[i].linear1.weight for i in (0, 1))
    assert not torch.equal(first, second)
    assert sum(p.numel() for p in SeACNetwork(1024, 128, Design(width=256)).parameters()) < 8e6


def test_temperature_stays_in_its_range_and_comes_back() -> None:
    net = SeACNetwork(32, 8, LITTLE)
    assert net.temperature().item() == pytest.approx(0.07)
    with torch.no_grad():
        net.log_tau.fill_(-9.0)
    tau = net.temperature()
    assert tau.item() == pytest.approx(0.01)
    tau.backward()
    assert net.log_tau.grad is not None
    assert net.log_tau.grad.item() == pytest.approx(0.01)
    assert not SeACNetwork(32, 8, Design(heads=4, learn_tau=False)).log_tau.requires_grad


def test_poolings_of_time() -> None:
    x = random(2, 5, 8)
    for pooling, want in (("mean", x.mean(1)), ("max", x.amax(1))):
        net = SeACNetwork(32, 8, Design(heads=4, pooling=pooling))  # type: ignore[arg-type]
        torch.testing.assert_close(net.embed_audio(x), want @ net.phi_a.weight.T + net.phi_a.bias)


def test_bad_designs() -> None:
    with pytest.raises(ValueError, match="8 heads do not divide the mask encoder's width 36"):
        SeACNetwork(36)
    with pytest.raises(ValueError, match="not within tau_range"):
        SeACNetwork(64, design=Design(tau=2.0))


# ---- segmentation


class Fixed(P.BoxSource):
    """The same proposals for every picture."""

    def __init__(self, found: P.Proposals) -> None:
        self.found = found

    def load(self, device: torch.device | str) -> P.Detector:
        return lambda images, names: [self.found for _ in images]


def segmented(found: P.Proposals, image: Tensor, **options: Any) -> P.Proposals:
    return Segmentation(Fixed(found), sam="world:sam", **options).load("cpu")([image], ["x"])[0]


def scene(seed: int = 0) -> Tensor:
    return render(sample_scenes(np.random.default_rng(seed), 1), 64)[0][0]


def test_masks_of_boxes_are_sams() -> None:
    image = scene()[:, :48]
    boxes = torch.tensor([[4.0, 4, 30, 30], [20, 10, 60, 44], [30, 2, 50, 20]])
    got = segmented(P.Proposals(boxes, torch.tensor([0.3, 0.9, 0.6])), image, chunk=2)
    sam = SAM.from_source("world:sam")
    package = Sam(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder, list(PIXEL_MEAN), list(PIXEL_STD))
    predictor = SamPredictor(package.eval())
    predictor.set_image(image.permute(1, 2, 0).numpy())
    assert got.masks is not None
    for n, row in enumerate([1, 2, 0]):  # by confidence
        mask, _, _ = predictor.predict(box=boxes[row].numpy(), multimask_output=False)
        assert (got.masks[n].numpy() != mask[0]).sum() <= 2  # logits at zero
        assert torch.equal(got.boxes[n], boxes[row])


def test_no_box_is_the_whole_picture() -> None:
    got = segmented(P.Proposals(torch.zeros(0, 4), torch.zeros(0)), scene())
    assert got.boxes.tolist() == [[0, 0, 64, 64]]
    assert got.masks is not None
    assert got.masks.shape == (1, 64, 64)
    assert got.masks.any()


def test_empty_masks_are_dropped_and_all_empty_is_the_best_box() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 50], [5, 40, 9, 60]])
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    scores = torch.tensor([0.5, 0.9, 0.1])
    got = segmented(P.Proposals(boxes, scores, masks), scene())
    assert got.boxes.tolist() == [[20, 20, 40, 50]]
    assert got.masks is not None
    assert torch.equal(got.masks[0].nonzero().aminmax(dim=0).min, torch.tensor([20, 20]))
    assert int(got.masks.sum()) == 20 * 30
    masks[2, 45, 6] = True
    got = segmented(P.Proposals(boxes, scores, masks), scene())
    assert got.boxes.tolist() == [[5, 40, 9, 60]]
    beside = P.Proposals(torch.tensor([[90.0, 90, 95, 95]]), torch.tensor([1.0]), masks[:1])
    got = segmented(beside, scene())
    assert got.masks is not None
    assert got.masks.all()


def test_at_most_n_masks_after_suppression() -> None:
    boxes = torch.tensor([[10.0 * i, 0, 10.0 * i + 9, 9] for i in range(6)] + [[0.0, 0, 9, 8]])
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.05])
    masks = torch.ones(7, 64, 64, dtype=torch.bool)
    assert segmented(P.Proposals(boxes, scores, masks), scene(), count=4).boxes[:, 0].tolist() == [50, 40, 30, 20]
    assert len(segmented(P.Proposals(boxes, scores, masks), scene())) == 6


def test_boxes_of_a_file_are_fractions_and_never_guessed(tmp_path: Path) -> None:
    boxes = np.array([[0.25, 0.25, 0.75, 0.5], [0.0, 0.5, 0.25, 1.0]], np.float32)
    P.write_boxes(tmp_path / "b.safetensors", [("x", boxes, np.array([0.4, 0.8]))])
    masks = torch.ones(1, 32, 64, dtype=torch.bool)
    whole = P.Proposals(torch.tensor([[1.0, 2, 3, 4]]), torch.ones(1), masks)
    how = Segmentation(P.StoredBoxes(str(tmp_path / "b.safetensors")), Fixed(whole), "fraction", "world:sam")
    segment, image = how.load("cpu"), scene()[:, :32]
    found = segment.detected([image], ["x"], strict=True)[0]
    assert found.boxes.tolist() == [[16, 8, 48, 16], [0, 16, 16, 32]]
    with pytest.raises(KeyError, match="no boxes of picture 'y'"):
        segment([image, image], ["x", "y"])
    known, unknown = segment([image, image], ["x", "y"], strict=False)
    assert known.boxes.tolist()[0] != [1, 2, 3, 4]
    assert unknown.boxes.tolist() == [[1, 2, 3, 4]]
    with pytest.raises(KeyError):
        Segmentation(how.boxes, unit="fraction").load("cpu")([image], ["y"], strict=False)


def test_a_recipe_knows_files_by_their_content(tmp_path: Path) -> None:
    for n in (1, 2):
        P.write_boxes(tmp_path / f"{n}.safetensors", [("x", np.zeros((n, 4)), np.zeros(n))])
    first, second = (Segmentation(P.StoredBoxes(str(tmp_path / f"{n}.safetensors")), sam="world:sam") for n in (1, 2))
    assert first.recipe != second.recipe
    (tmp_path / "there").mkdir()
    (tmp_path / "1.safetensors").rename(tmp_path / "there" / "1.safetensors")
    moved = Segmentation(P.StoredBoxes(str(tmp_path / "there" / "1.safetensors")), sam="world:sam")
    assert moved.recipe["segmentation.sam"] == second.recipe["segmentation.sam"]
    with pytest.raises(WeightError, match=r"sam_vit_h.* not on this machine"):
        _ = replace(moved, sam="sam_vit_h").recipe
    points = [Segmentation(P.SamPoints("world:sam", points=n, chunk=c)).boxes for n, c in ((8, 64), (8, 2), (9, 64))]
    assert fingerprint(points[0]) == fingerprint(points[1]) != fingerprint(points[2])


def test_no_mask_is_lost_on_a_coarser_grid() -> None:
    masks = blobs(4, 90, 120)
    masks[0] = False
    masks[0, 85:87, 30] = True
    small = at_side(masks, 24)
    assert small[0].nonzero().tolist() == [[22, 6]]  # 86 / 90 and 30.5 / 120 of 24 cells
    want = np.stack([np.asarray(Image.fromarray(m).resize((24, 24), Image.Resampling.NEAREST)) for m in masks.numpy()])
    np.testing.assert_array_equal(small[1:].numpy(), want[1:])


# ---- stored masks


def kept(n: int = 4, width: int = 64, side: int = 32, seed: int = 0) -> PictureMasks:
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.random((n, 4)), axis=1)
    return PictureMasks(
        {"features": torch.from_numpy(rng.standard_normal((n, width)).astype(np.float16))},
        torch.from_numpy(boxes.astype(np.float32)),
        torch.from_numpy(np.sort(rng.random(n))[::-1].astype(np.float16)),
        np.packbits(blobs(n, side, side, seed).numpy(), axis=2),
    )


@pytest.mark.parametrize("side", [32, 30])
def test_rows_come_back(side: int) -> None:
    given = [kept(2, side=side), kept(4, side=side, seed=1)]
    got = read(filled(as_rows(given)), ["a", "b"], 64, side, 50, bits=True)
    assert got.count.tolist() == [2, 4]
    assert got.valid.tolist() == [[True, True, False, False], [True] * 4]
    assert got.bits is not None
    for b, one in enumerate(given):
        assert torch.equal(got.embedded["features"][b, : len(one)], one.embedded["features"])
        assert torch.equal(got.boxes[b, : len(one)], one.boxes)  # exactly, to be truncated to the same pixels
        np.testing.assert_array_equal(got.bits[b, : len(one)].numpy(), one.bits)
    assert not got.embedded["features"][0, 2:].any()
    few = read(filled(as_rows(given)), ["a", "b"], 64, side, 3, bits=True)
    assert few.count.tolist() == [2, 3]
    assert few.bits is not None
    assert torch.equal(few.bits, got.bits[:, :3])
    assert torch.equal(few.embedded["features"], got.embedded["features"][:, :3])
    assert read(filled(as_rows(given)), ["a", "b"], 64, side, 3, bits=False).bits is None


def test_fifty_masks_fit_into_25_kb_beside_100_of_features() -> None:
    given = kept(50, 1024, 224)
    rows = as_rows([given])
    assert isinstance(rows["features"], list)
    assert rows["features"][0].numel() * 2 == 102_400
    rest = {k: v[0] for k, v in rows.items() if k != "features"}
    assert sum(v.numel() * v.element_size() for v in rest.values()) < 25_000
    assert given.bits.nbytes == 313_600


def test_deflated_masks_end_where_they_end() -> None:
    bits = kept(3).bits
    packed = np.concatenate([deflate(bits), np.zeros(9, np.uint8)])
    np.testing.assert_array_equal(inflate(packed, 3, 32), bits)
    with pytest.raises(ValueError, match="another size than 3 x 31 x 31"):
        inflate(packed, 3, 31)
    with pytest.raises(ValueError, match="another size than 4 x 32 x 32"):
        inflate(packed, 4, 32)


def test_damaged_rows_are_named() -> None:
    rows = filled(as_rows([kept(2), kept(4, seed=1)]))
    broken = rows | {"masks": rows["masks"].clone()}
    broken["masks"][1, 5:9] ^= 255
    with pytest.raises(SampleError, match=r"b: its stored masks cannot be read .*avloc store"):
        read(broken, ["a", "b"], 64, 32, 50, bits=True)
    with pytest.raises(SampleError, match=r"a, \.\.\.: stored features of up to 4 masks have 256 numbers"):
        read(rows, ["a", "b"], 32, 32, 50, bits=False)
    with pytest.raises(SampleError, match=r"come with \['frozen'\], which are no masks"):
        read({"frozen": torch.zeros(2, 3)}, ["a", "b"], 64, 32, 50, bits=False)


# ---- the method


def toy_set(folder: Path, pictures: int = 5) -> Path:
    """Index of records with a mask: squares, and pictures twice as wide as high."""
    made = []
    for i, sample in enumerate(samples("single", scenes=pictures)):
        if i % 2:
            picture = Image.open(io.BytesIO(sample.members["f0.png"])).crop((0, 32, 128, 96))
            data = io.BytesIO()
            picture.save(data, "PNG")
            sample.members["f0.png"] = data.getvalue()
        made.append(sample)
    report = write_shards(folder / "world", "world", "single", iter(made), records_per_shard=3)
    assert report.index is not None
    return report.index


def sets(index: Path, method: SeAC, store: FeatureStore) -> tuple[EvalSet, EvalSet]:
    """The same set with stored features and without."""
    return (
        EvalSet(index, method.input_spec, truth_size=32, store=store),
        EvalSet(index, method.input_spec, truth_size=32),
    )


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    tiny_clip().save_world(path)
    return f"file:{path}"


def seac(clip_file: str, **options: Any) -> SeAC:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"design": LITTLE, "seconds": 2.0, "heatmap_size": 32, "image_size": 64}
    return SeAC(clip_file, "world:vggish", **settings | options)


def sounds(n: int, seed: int = 0) -> Tensor:
    """Each of another pitch."""
    t = torch.arange(32000) / 16000
    pitch = 200 * 1.4 ** torch.arange(seed, seed + n)
    return 0.3 * torch.sin(2 * math.pi * pitch[:, None] * t)


def batch(counts: Sequence[int], seed: int = 0, dataset: str = "world") -> AVBatch:
    n = len(counts)
    image = torch.stack([scene(seed + i) for i in range(n)])
    rows = filled(as_rows([kept(c, seed=seed + i) for i, c in enumerate(counts)]))
    keys = [f"{dataset}__{i}" for i in range(n)]
    return AVBatch(keys, image, sounds(n, seed), torch.full((n,), -1), stored=rows)


def test_training_runs_no_frozen_tower_but_vggish(clip_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = seac(clip_file)

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a frozen tower ran")

    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(OpenCLIP, name, refuse)
    monkeypatch.setattr(SAM, "encode", refuse)
    out = method.training_losses(batch([4, 2, 3]))
    assert out["loss"].item() == pytest.approx((out["audio"] + out["mask"]).item())
    out["loss"].backward()
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert {n for n, p in method.named_parameters() if p.grad is not None} == trained == method.learned_keys()
    assert all(n.startswith("network.") for n in trained)
    assert "clip" in method.frozen_files


@pytest.mark.parametrize("mixed", [False, True])
@torch.no_grad()
def test_the_loss_is_that_of_the_equations(clip_file: str, monkeypatch: pytest.MonkeyPatch, mixed: bool) -> None:
    method, given = seac(clip_file, mixing=Mixing(float(mixed), float(mixed))), batch([4, 2, 3, 1, 4])
    group = torch.tensor([2, 0, 1, 0, 1]) if mixed else torch.arange(5)
    monkeypatch.setattr("avloc.methods.seac.method.draw_groups", lambda n, size: group)
    out = method.training_losses(given)
    assert out["mixed"] == float(mixed)
    net, S = method.network, np.zeros((5, int(group.max()) + 1))
    for k in range(S.shape[1]):
        wave = sum(given.audio[i] for i in range(5) if group[i] == k)
        assert isinstance(wave, Tensor)
        a = net.embed_audio(method.vggish(wave[None]))[0]
        for i, n in enumerate([4, 2, 3, 1, 4]):
            f = net.embed_masks(kept(n, seed=i).embedded["features"][None].float())[0]
            S[i, k] = max(F.cosine_similarity(m, a, dim=0).item() for m in f)
    e = np.exp(S / 0.07)
    audio = sum(-math.log(sum(e[i, k] for i in range(5) if group[i] == k) / e[:, k].sum()) for k in range(S.shape[1]))
    mask = sum(-math.log(e[i, group[i]] / e[i].sum()) for i in range(5))
    assert out["audio"].item() == pytest.approx(audio, abs=1e-3)
    assert out["mask"].item() == pytest.approx(mask, abs=1e-3)


def test_it_learns_which_mask_goes_with_which_sound(clip_file: str) -> None:
    method, given = seac(clip_file, mixing=Mixing(0.5, 0.5)), batch([4, 4, 4, 4])
    optimizer = torch.optim.AdamW(method.trainable(), 1e-3)
    torch.manual_seed(0)
    first = method.training_losses(given)["loss"].item()
    for _ in range(60):
        loss = method.training_losses(given)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    method.mixing = Mixing(0.0, 0.0)
    assert method.training_losses(given)["loss"].item() < 0.3 < first


def test_only_the_first_n_masks_are_used(clip_file: str) -> None:
    few, all_of_them, given = seac(clip_file, count=2).eval(), seac(clip_file).eval(), batch([4, 4, 1])
    first = [kept(4, seed=0), kept(4, seed=1), kept(1, seed=2)]
    for one in first:
        one.embedded = {"features": one.embedded["features"][:2]}
        one.boxes, one.scores, one.bits = one.boxes[:2], one.scores[:2], one.bits[:2]
    want = replace(given, stored=filled(as_rows(first)))
    assert torch.equal(few.localize(given).heatmap, all_of_them.localize(want).heatmap)
    assert not torch.equal(few.localize(given).heatmap, all_of_them.localize(given).heatmap)


def test_a_part_of_a_batch_is_answered_as_in_the_whole(clip_file: str) -> None:
    method, given = seac(clip_file).eval(), batch([4, 1, 2])
    want = method.localize(given)
    got = method.localize(given.take([2, 1]))  # its rows are padded for the first picture still
    assert torch.equal(got.heatmap, want.heatmap[[2, 1]])


def test_localize_is_the_equations(clip_file: str) -> None:
    method, given = seac(clip_file, categories="world16", sigma=0.5).eval(), batch([4, 1, 3])
    answer = method.localize(given)
    assert answer.heatmap.shape == (3, 1, 32, 32)
    assert answer.semantic is not None
    assert answer.label is not None
    net, clip = method.network, tiny_clip()
    with torch.no_grad():
        for p in clip.parameters():
            p.copy_(p.half().float())  # as in the file
        text = clip.encode_names(LABEL_SPACES["world16"])
        for b, n in enumerate([4, 1, 3]):
            one = kept(n, seed=b)
            features = one.embedded["features"].float()
            a = net.embed_audio(method.vggish(given.audio[b : b + 1]))[0]
            s = F.cosine_similarity(net.embed_masks(features[None])[0], a[None]).numpy()
            masks = np.unpackbits(one.bits, axis=2)[..., :32].astype(bool)
            heat, which = painted(s, masks, n)
            t = (F.normalize(features, dim=1) @ text.T).argmax(1).numpy()
            np.testing.assert_allclose(answer.heatmap[b, 0].numpy(), heat, atol=1e-3)
            np.testing.assert_array_equal(answer.semantic[b].numpy(), np.where(heat > 0.5, 1 + t[which.clip(0)], 0))
            assert answer.confidence[b].item() == pytest.approx(s.max(), abs=1e-4)
            assert answer.label[b].item() == t[s.argmax()]


def test_one_mask_has_zero_range(clip_file: str) -> None:
    answer = seac(clip_file).localize(batch([1, 1]))
    for b, one in enumerate(kept(1, seed=i).bits for i in (0, 1)):
        np.testing.assert_array_equal(answer.heatmap[b, 0].numpy(), np.unpackbits(one, axis=2)[0])


def test_boxes_are_painted_for_box_sets(clip_file: str) -> None:
    method = seac(clip_file, box_sets=("vggss",))
    given = batch([1, 1], dataset="vggss")
    x1, y1, x2, y2 = (int(v) for v in kept(1).boxes[0] * 32)
    want = torch.zeros(32, 32)
    want[y1:y2, x1:x2] = 1
    assert torch.equal(method.localize(given).heatmap[0, 0], want)
    mixed = batch([1, 1], dataset="vggss")
    mixed.key[1] = "vggss_ext__1"  # not asked for: masks
    got = method.localize(mixed).heatmap
    assert torch.equal(got[0, 0], want)
    bits = kept(1, seed=1).bits
    np.testing.assert_array_equal(got[1, 0].numpy(), np.unpackbits(bits, axis=2)[0])


def test_label_spaces_with_and_without_background() -> None:
    names, first = read_categories("avss71", plain=True)
    assert len(names) == 70
    assert first == 1
    assert names[0] == "accordion"
    assert "emergency car" in names
    assert "emergency-car" in read_categories("avss71", plain=False)[0]
    assert read_categories("world16", plain=True)[1] == 0
    assert read_categories(None, plain=True) == ([], 0)


def test_bad_categories(clip_file: str) -> None:
    with pytest.raises(ValueError, match="no label space 'nothing'"):
        seac(clip_file, categories="nothing")
    for empty in ([], ["background"]):
        with pytest.raises(ValueError, match="list of categories is empty"):
            seac(clip_file, categories=empty)
    with pytest.warns(UserWarning, match="dog is there twice"):
        twice = seac(clip_file, categories=["cat", "dog", "bell", "dog"])
    labels = twice.localize(batch([4] * 6)).semantic
    assert labels is not None
    assert 4 not in labels.unique()  # the second dog


POINTS = Segmentation(P.SamPoints("world:sam", points=5, quality=0.3, stability=0.5), sam="world:sam", count=6)


def test_what_is_stored_is_what_is_made_at_once(clip_file: str, tmp_path: Path) -> None:
    """Through the data road: pictures of two shapes, padded; some masks lost to none; whole files and mapped rows."""
    index = toy_set(tmp_path)
    method = seac(clip_file, segmentation=POINTS).eval()
    report = store_features(method, index, batch_size=3)
    assert report.units == 5
    store = open_features(method, read_index(index))
    stored, live = (collate([d[i] for i in range(5)]) for d in sets(index, method, store))
    assert live.size is not None
    assert sorted(live.size.tolist()) == [[32, 64]] * 2 + [[64, 64]] * 3
    assert not live.stored
    got, want = method.masks(stored, True), method.masks(live, True)
    assert got.count.tolist() == want.count.tolist()
    assert int(got.count.max()) > 1
    for name in ("boxes", "bits"):
        assert torch.equal(getattr(got, name), getattr(want, name))
    # Pictures go through CLIP one by one in both: the numbers are equal, not only close.
    assert torch.equal(got.embedded["features"], want.embedded["features"])
    assert torch.equal(method.localize(stored).heatmap, method.localize(live).heatmap)
    maker = MaskMaker(POINTS, Mixture(), OpenCLIP.from_source(clip_file), "cpu", side=32)
    wide = live.size[:, 0].tolist().index(32)
    alone = maker([live.image[wide][:, :32]], [live.key[wide]])[0]
    assert torch.equal(got.embedded["features"][wide, : len(alone)], alone.embedded["features"].half())
    with torch.autocast("cpu", torch.bfloat16):
        again = method.masks(live, True)
    assert torch.equal(got.embedded["features"], again.embedded["features"])
    loss = method.training_losses(live)["loss"]
    loss.backward()
    assert torch.equal(loss, method.training_losses(stored)["loss"])


def test_training_decodes_no_picture(clip_file: str, tmp_path: Path) -> None:
    index = toy_set(tmp_path)
    method = seac(clip_file, segmentation=POINTS)
    store_features(method, index)
    store = open_features(method, read_index(index))
    stream = TrainStream(read_index(index), method.input_spec, batch=5, store=store)
    (given,) = DataLoader(stream, batch_size=None)
    assert given.image.shape == (5, 3, 0, 0)
    assert torch.isfinite(method.training_losses(given)["loss"])


def test_features_of_another_recipe_are_stale(clip_file: str, tmp_path: Path) -> None:
    index = toy_set(tmp_path)
    method = seac(clip_file, segmentation=POINTS)
    store_features(method, index)
    assert method.cache_key() == seac(clip_file, segmentation=POINTS, count=3, sigma=0.5).cache_key()
    tiny_clip(seed=5).save_world(tmp_path / "other.safetensors")
    other = f"file:{tmp_path / 'other.safetensors'}"
    for changed, message in (
        (seac(clip_file, segmentation=POINTS, mixture=Mixture(0.4)), r"mixture\.lambda_local was 0\.6, is 0\.4"),
        (seac(clip_file, segmentation=replace(POINTS, count=5)), r"segmentation\.count was 6, is 5"),
        (seac(clip_file, segmentation=POINTS, image_size=96), r"image_size was 64, is 96"),
        (seac(other, segmentation=POINTS), r"clip was file:.* is file:.*other\.safetensors"),
    ):
        with pytest.raises(StoreError, match=message):
            open_features(changed, read_index(index))


def test_one_store_of_parts_serves_every_share(clip_file: str) -> None:
    first, second = (
        seac(clip_file, segmentation=POINTS, mixture=Mixture(share, parts=True)).eval() for share in (0.2, 0.8)
    )
    assert first.cache_key() == second.cache_key()
    given = replace(batch([1, 1]), stored={})
    given.stored = filled(first.frozen(given))
    for method in (first, second):
        share = method.mixture.lambda_local
        exact = seac(clip_file, segmentation=POINTS, mixture=Mixture(share)).eval()
        alone = replace(given, stored=filled(exact.frozen(given)))
        torch.testing.assert_close(
            method.localize(given).confidence, exact.localize(alone).confidence, atol=2e-3, rtol=0
        )


def test_random_weights_cannot_be_stored(clip_file: str) -> None:
    boxes = P.TorchvisionBoxes("fasterrcnn_mobilenet_v3_large_320_fpn", "random")
    with pytest.raises(ValueError, match=r"segmentation\.boxes has random weights"):
        seac(clip_file, segmentation=Segmentation(boxes, sam="world:sam")).cache_key()


def test_a_sound_too_short_for_vggish(clip_file: str) -> None:
    with pytest.raises(ValueError, match=r"0\.5 s of sound are shorter than one VGGish example"):
        seac(clip_file, seconds=0.5)


def test_bad_mixing() -> None:
    for bad in ({"end": 1.5}, {"size": 1}):
        with pytest.raises(ValueError, match="mixing wants"):
            Mixing(**bad)  # type: ignore[arg-type]


def test_a_checkpoint_of_other_clip_weights_is_refused(clip_file: str, tmp_path: Path) -> None:
    method = seac(clip_file)
    checkpoint: dict[str, Any] = {"state_dict": {}}
    checkpoint["state_dict"] = method.state_dict()
    method.on_save_checkpoint(checkpoint)
    seac(clip_file).on_load_checkpoint(copy.deepcopy(checkpoint))
    tiny_clip(seed=5).save_world(tmp_path / "other.safetensors")
    with pytest.raises(RuntimeError, match="trained on top of clip weights"):
        seac(f"file:{tmp_path / 'other.safetensors'}").on_load_checkpoint(checkpoint)


# ---- two processes


class Step(nn.Module):
    """One loss, so that DistributedDataParallel sees the whole step."""

    def __init__(self, clip_file: str, mixed: float) -> None:
        super().__init__()
        self.method = seac(clip_file, mixing=Mixing(mixed, mixed))

    def forward(self, rows: list[int]) -> Tensor:
        return self.method.training_losses(batch([4, 2, 3, 1]).take(rows))["loss"]


def gradients(step: Step) -> dict[str, Tensor]:
    return {k: p.grad for k, p in step.named_parameters() if p.grad is not None}


def pairs_in_order(samples: int, size: int) -> Tensor:
    return torch.arange(samples) // size


def one_of_two(rank: int, clip_file: str, mixed: float, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    from avloc.methods.seac import method

    method.draw_groups = pairs_in_order  # type: ignore[assignment]
    step = Step(clip_file, mixed)
    wrapped = nn.parallel.DistributedDataParallel(step)
    loss = wrapped([0, 1] if rank == 0 else [2, 3])
    loss.backward()
    torch.save({"loss": loss.detach(), "grads": gradients(step)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [0.0, 1.0])
def test_two_ranks_equal_the_whole_batch(
    clip_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixed: float
) -> None:
    monkeypatch.setattr("avloc.methods.seac.method.draw_groups", pairs_in_order)
    step = Step(clip_file, mixed)
    loss = step([0, 1, 2, 3])
    loss.backward()
    together(one_of_two, (clip_file, mixed, str(tmp_path)))
    for rank in (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)):
        torch.testing.assert_close(rank["loss"], loss.detach(), atol=1e-4, rtol=1e-5)
        assert rank["grads"].keys() == gradients(step).keys()
        for k, g in gradients(step).items():
            torch.testing.assert_close(rank["grads"][k], g, atol=1e-4, rtol=1e-3, msg=k)


class Watch(Callback):
    """Writes what each process saw and learned."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = folder, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: Trainer, method: Any, out: Any, batch: AVBatch, i: int) -> None:  # type: ignore[override]
        mixed = float(trainer.logged_metrics["train/mixed"])
        self.steps.append({"keys": batch.key, "loss": out["loss"].detach(), "mixed": mixed})

    def on_train_end(self, trainer: Trainer, method: Any) -> None:
        learned = {k: p.detach() for k, p in method.named_parameters() if p.requires_grad}
        torch.save({"steps": self.steps, "learned": learned}, self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_train_as_one_batch(clip_file: str, tmp_path: Path) -> None:
    """Stored features, the first epoch unmixed and the second mixed, an odd number of pictures."""
    index = toy_set(tmp_path, pictures=9)
    method = seac(clip_file, segmentation=POINTS, mixing=Mixing(0.0, 1.0))
    store_features(method, index)
    first = copy.deepcopy(method)
    data = AVDataModule(train=str(index), batch_size=4, num_workers=0, stored=True)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    two = dict(accelerator="cpu", devices=2, strategy="ddp_spawn", max_epochs=2, use_distributed_sampler=False)
    Trainer(**quiet, **two, callbacks=[Watch(tmp_path)]).fit(method, data)  # type: ignore[arg-type]
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert [s["mixed"] for s in one["steps"]] == [0, 0, 1, 1]
    for mine, theirs in zip(one["steps"], other["steps"], strict=True):
        assert mine["mixed"] == theirs["mixed"]
        assert not set(mine["keys"]) & set(theirs["keys"])
        torch.testing.assert_close(mine["loss"], theirs["loss"])
    for k, p in one["learned"].items():
        assert torch.equal(p, other["learned"][k]), k
    seen = sets(index, first, open_features(first, read_index(index)))[0]
    place = {seen.key(i): i for i in range(len(seen))}
    both = collate([seen[place[k]] for k in one["steps"][0]["keys"] + other["steps"][0]["keys"]])
    first.mixing = Mixing(0.0, 0.0)
    torch.testing.assert_close(
        one["steps"][0]["loss"], first.training_losses(both)["loss"].detach(), rtol=1e-4, atol=1e-4
    )


def test_processes_agree_on_whether_a_step_is_mixed(clip_file: str) -> None:
    method = seac(clip_file, mixing=Mixing(0.3, 0.3))

    class Run:
        max_epochs, current_epoch, global_step = 4, 0, 0

    run = Run()
    draws = []
    method._trainer = run  # type: ignore[assignment]
    for run.global_step in range(400):
        torch.manual_seed(run.global_step % 7)  # what a step's own samples seed differs between ranks
        draws.append(method.draw_mixed())
    torch.manual_seed(123)
    again = []
    for run.global_step in range(400):
        again.append(method.draw_mixed())
    assert draws == again
    assert 0.2 < np.mean(draws) < 0.4
    run.max_epochs = -1
    with pytest.raises(ValueError, match=r"Set trainer\.max_epochs"):
        method.draw_mixed()
