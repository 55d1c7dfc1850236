from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avloc.evaluation.benchmarks import BENCHMARKS, benchmark
from avloc.evaluation.protocols import PROTOCOLS, Summary
from avloc.methods.baselines.controls import centre_box, full_frame, random_map
from avloc.types import AVBatch


def make(truth: Tensor | None, n: int = 0) -> AVBatch:
    n = n or len(truth)  # type: ignore[arg-type]
    return AVBatch(
        key=[f"s{i}" for i in range(n)],
        image=torch.zeros(n, 3, 32, 32, dtype=torch.uint8),
        audio=torch.zeros(n, 16),
        index=torch.arange(n),
        truth=truth,
    )


def score(name: str, heatmap: Tensor, truth: Tensor | None, clip: list[int] | None = None) -> Summary:
    protocol = PROTOCOLS[name]
    values = protocol.measure.function(heatmap, truth, make(truth, len(heatmap)))
    assert {k: v.reshape(len(heatmap), -1).shape[1] for k, v in values.items()} == protocol.measure.columns
    columns = {k: v.reshape(len(heatmap), -1).double() for k, v in values.items()}
    columns["clip"] = torch.tensor(clip or range(1, len(heatmap) + 1), dtype=torch.float64)[:, None]
    columns["group"] = torch.zeros(len(heatmap), 1, dtype=torch.float64)
    return protocol.summary(columns)


@pytest.fixture
def boxes() -> Tensor:
    """Boxes that hold 1/8, 1/2 and 3/4 of a 32 x 32 grid."""
    truth = torch.zeros(3, 1, 32, 32)
    truth[0, :, :8, :16] = truth[1, :, :16] = truth[2, :, :24] = 1
    return truth


@pytest.mark.parametrize("name", [p for p in PROTOCOLS if p.startswith("vggss/")])
def test_a_full_frame_scores_the_area(name: str, boxes: Tensor) -> None:
    got = score(name, full_frame(make(boxes)).heatmap, boxes)
    if name in ("vggss/top50-strict", "vggss/adaptive"):  # nothing lies strictly above a constant
        assert got["ciou"] == 0
        assert got["mean_ciou"] == 0
        return
    assert got["ciou"] == pytest.approx(2 / 3)
    assert got["mean_ciou"] == pytest.approx((1 / 8 + 1 / 2 + 3 / 4) / 3)
    # levels up to 0.10 are reached by all three, up to 0.50 by two, up to 0.75 (0.05 * 15 exactly) by one
    curve = [1] * 3 + [2 / 3] * 8 + [1 / 3] * 5 + [0] * 5
    assert got["auc"] == pytest.approx(0.05 * (sum(curve) - 0.5))


def test_a_centre_box_by_hand(boxes: Tensor) -> None:
    got = score("vggss/fixed", centre_box(make(boxes)).heatmap, boxes)
    # box rows and columns 8..23 (256 pixels): hits 0, 128, 256 of truths with 128, 512, 768 pixels
    want = [0, 128 / (512 + 128), 256 / 768]
    assert got["mean_ciou"] == pytest.approx(sum(want) / 3)
    assert got["ciou"] == 0


def test_the_sweep_takes_one_threshold_and_flags_the_best_column() -> None:
    truth = torch.zeros(4, 1, 1, 20)
    truth[..., :10] = 1
    heatmap = torch.zeros(4, 1, 1, 20)
    heatmap[:, 0, 0, :10] = 0.62
    heatmap[0, 0, 0, :6] = 0.97  # sample 0 keeps 6 of 10 pixels above 0.62
    heatmap[1:, 0, 0, 10:20] = 0.33  # the others predict everything below 0.33
    got = score("vggss/acl", heatmap, truth)
    assert got["threshold"] == pytest.approx(0.35)
    assert got["ciou"] == 1
    assert got["auc"] == 1
    assert got["sweep_threshold"] == pytest.approx([0.05 * i for i in range(1, 20)])
    sweep = got["sweep_mean_ciou"]
    assert isinstance(sweep, list)
    assert sweep[:6] == pytest.approx([(1 + 3 * 0.5) / 4] * 6)
    assert sweep[6:12] == pytest.approx([1] * 6)
    assert sweep[12:] == pytest.approx([0.6 / 4] * 7)
    assert score("vggss/fixed", heatmap, truth)["ciou"] == 1


def test_small_maps_come_to_the_grid_of_the_truth() -> None:
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., :4] = 1
    heatmap = torch.tensor([[[[1.0, 0.0]]]])  # bilinear, half-pixel centres: 1 1 .875 .625 .375 .125 0 0
    assert score("vggss/fixed", heatmap, truth)["mean_ciou"] == 1
    assert score("vggss/top50", heatmap, truth)["mean_ciou"] == 1


def test_frames_by_video_and_over_the_set() -> None:
    truth, heatmap = torch.zeros(3, 1, 1, 10), torch.zeros(3, 1, 1, 10)
    truth[0, ..., :5] = truth[1, ..., :5] = 1  # frame 2 is empty
    heatmap[0, ..., :5] = 0.9
    heatmap[1, ..., 3:8] = 0.9
    heatmap[2, ..., :4] = 0.9
    ious, f = [1, 2 / 8, 0.6], [1.0, 1.3 * 2 / (0.3 * 5 + 5)]
    whole = score("avs/dataset", heatmap, truth)
    assert whole["miou"] == pytest.approx(sum(ious) / 3)
    assert whole["fscore"] == pytest.approx(sum(f) / 2)
    single = score("avs/gavs", heatmap, truth, clip=[9, 4, 7])
    everything = 1.3 * 5 / (0.3 * 5 + 10)  # threshold 0, the best of frame 1 alone
    assert single["fscore"] == pytest.approx((1 + everything + 0) / 3)  # the empty video counts 0
    paired = score("avs/gavs", heatmap, truth, clip=[9, 9, 4])  # one clip of two frames, one of one
    assert paired["miou"] == pytest.approx(((1 + 0.25) / 2 + 0.6) / 2)
    assert paired["fscore"] == pytest.approx(sum(f) / 2 / 2)
    shared = score("avs/official", heatmap, truth, clip=[9, 4, 7])  # four videos share a batch
    assert shared["fscore"] == pytest.approx(sum(f) / 2)
    assert shared["miou"] == pytest.approx(sum(ious) / 3)


def test_the_acl_sweep_on_masks_takes_the_best_threshold() -> None:
    truth, heatmap = torch.zeros(1, 1, 1, 4), torch.tensor([[[[0.9, 0.62, 0.3, 0.0]]]])
    truth[..., :2] = 1
    got = score("avs/acl", heatmap, truth)
    assert got["miou"] == 1
    assert got["threshold"] == pytest.approx(0.3)  # strict: 0.3 itself is background
    assert got["fscore"] == 1


def test_two_sources() -> None:
    truth = torch.zeros(2, 2, 1, 8)
    truth[:, 0, :, :4] = truth[:, 1, :, 4:] = 1
    heatmap = truth.clone()
    heatmap[1] = heatmap[1].flip(0)  # the second sample answers with the sources swapped
    got = score("mixture/top50", heatmap, truth)
    assert got["ciou"] == 0.5
    union = score("vggss/fixed", heatmap, truth)
    assert union["ciou"] == 1
    one_map = score("mixture/top50", truth[:, :1], truth)
    assert one_map["ciou"] == 0.5
    with pytest.raises(ValueError, match="scores two sources; the truth has 1"):
        score("mixture/top50", heatmap[:, :1], truth[:, :1])


def test_share_of_the_image() -> None:
    heatmap = torch.zeros(2, 1, 2, 5)
    heatmap[0, ..., :2] = 0.5  # two of five columns
    got = score("negative/pia", heatmap, None)
    assert got["pia"] == pytest.approx(0.2)
    # one sample at 0, one at 0.4: half of the samples up to level 0.35, all from 0.40
    assert got["auc"] == pytest.approx(0.05 * (0.5 * 8 + 13 - 0.5 * (0.5 + 1)))


def test_every_benchmark_names_existing_protocols() -> None:
    batch = make(torch.ones(2, 2, 8, 8))
    for bench in [*BENCHMARKS.values(), benchmark("my own set")]:
        protocol, metric = bench.primary
        assert protocol in bench.protocols
        for name in bench.protocols:
            got = score(name, random_map(batch).heatmap, batch.truth)
            assert name != protocol or metric in got


def test_random_map_depends_on_the_index_alone() -> None:
    batch = make(torch.ones(6, 1, 8, 8))
    whole = random_map(batch).heatmap
    assert torch.equal(random_map(batch.take([4, 1])).heatmap, whole[[4, 1]])
    assert (whole[0] != whole[1]).all()
    big = random_map(make(torch.ones(500, 1, 4, 4))).heatmap
    assert big.min() >= 0
    assert big.max() < 1
    quarters = torch.histc(big, 4, 0, 1) / big.numel()
    assert quarters.tolist() == pytest.approx([0.25] * 4, abs=0.01)
