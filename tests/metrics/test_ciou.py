from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import auc as sklearn_auc

from avloc.metrics.ciou import auc, ciou, success_curve, success_rate
from avloc.metrics.maps import flip_minmax, minmax, resize
from avloc.metrics.thresholds import SWEEP, area_threshold, median_threshold
from tests.golden.case import Case, find_cases, golden_folder


def test_by_hand() -> None:
    truth = torch.tensor([[[1.0, 0.5, 0.0, 0.0]]])
    maps = torch.tensor([[[0.9, 0.1, 0.8, 0.2]]])
    # predicted: pixels 0 and 2; 1 of 1.5 is found, and one pixel without weight is added to the denominator
    assert ciou(maps, truth, (0.5,)).item() == 1 / (1.5 + 1)
    assert ciou(maps, truth, (0.05, 0.85)).tolist() == [[1.5 / (1.5 + 2), 1 / 1.5]]


def test_full_frame_is_the_area_of_the_truth() -> None:
    truth = torch.zeros(2, 224, 224)
    truth[0, 10:66, 20:132] = 1  # 56 x 112 of 224 x 224
    truth[1] = 1
    assert ciou(torch.ones(2, 224, 224), truth, SWEEP).unique(dim=1).tolist() == [[0.125], [1.0]]


def test_empty_truth() -> None:
    maps, truth = torch.tensor([[[0.1, 0.1]], [[0.1, 0.9]]]), torch.zeros(2, 1, 2)
    values = ciou(maps, truth, (0.5,))
    assert math.isnan(values[0].item())
    assert values[1].item() == 0
    assert success_rate(values).item() == 0
    assert success_curve(values)[0].item() == 0.5  # NaN misses even the level 0
    assert ciou(maps, truth, (0.5,), eps=1e-12).tolist() == [[0.0], [0.0]]


def test_plateaus_decide_by_operator() -> None:
    truth = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    zeros = torch.tensor([[[0.0, 0.0, 0.0, 0.7]]])
    cut = median_threshold(zeros)
    assert ciou(zeros, truth, cut, ">=").item() == 2 / 4  # everything
    assert ciou(zeros, truth, cut, ">").item() == 0 / 3  # the last pixel alone
    ones = flip_minmax(torch.tensor([[[0.7, 0.7, 0.7, 0.0]]]))
    cut = median_threshold(ones)
    assert ciou(ones, truth, cut, ">").item() == 0  # nothing
    assert ciou(ones, truth, cut, "lvs").item() == 2 / 3  # the ones survive


def test_adaptive_takes_one_pixel_less_than_the_area() -> None:
    maps = torch.arange(100.0).reshape(1, 10, 10)
    truth = (maps >= 80).float()
    cut = area_threshold(maps, truth)
    assert ciou(maps, truth, cut, ">").item() == 19 / 20
    assert ciou(maps, truth, cut, ">=").item() == 1


def test_auc_is_sklearns_trapezoid() -> None:
    torch.manual_seed(0)
    values = torch.rand(40, 3, dtype=torch.float64)
    levels = [0.05 * i for i in range(21)]
    for k in range(3):
        curve = [sum(v >= t for v in values[:, k].tolist()) / 40 for t in levels]
        assert auc(values)[k].item() == pytest.approx(sklearn_auc(levels, curve), abs=1e-14)


def test_a_method_that_never_hits_has_auc_0025() -> None:
    assert auc(torch.zeros(5, dtype=torch.float64)).item() == pytest.approx(0.025)


def test_grid_values_miss_in_float64_and_hit_in_float32() -> None:
    values = torch.tensor([0.15], dtype=torch.float64)
    assert success_curve(values)[3].item() == 0
    assert success_curve(values.float())[3].item() == 1


def test_minmax_leaves_a_constant_map_alone() -> None:
    maps = torch.stack([torch.full((2, 2), 0.3), torch.tensor([[1.0, 2.0], [3.0, 5.0]])])
    assert torch.equal(minmax(maps), torch.stack([maps[0], torch.tensor([[0, 0.25], [0.5, 1]])]))
    assert flip_minmax(maps)[0].tolist() == [[pytest.approx(1.3)] * 2] * 2


def test_resize_widens_half_precision_before_it_interpolates() -> None:
    maps = torch.rand(1, 2, 7, 7).bfloat16()
    big = resize(maps, (224, 224))
    assert big.dtype == torch.float32
    assert torch.equal(big, resize(maps.float(), (224, 224)))
    assert len(big[0, 0].unique()) > 10_000  # a bfloat16 result has some hundreds


ADAPTIVE = [c for c in find_cases(golden_folder()) if c.kind == "metric_ciou_adaptive"]


@pytest.mark.parametrize("case", [c for c in ADAPTIVE if c.config["variant"] == "maps"], ids=lambda c: c.name)
def test_published_adaptive_values(case: Case) -> None:
    maps = case.inputs["k"].float() * case.config["scale"]
    truth = case.inputs["gt"].float() * case.config["gt_scale"]
    scaled = minmax(maps)
    torch.testing.assert_close(
        ciou(scaled, truth, area_threshold(scaled, truth), ">")[:, 0],
        case.expected["ssl.ciou_adap"],
        equal_nan=True,
        rtol=1e-7,
        atol=1e-7,
    )
    values = ciou(maps, truth, area_threshold(maps, truth), ">=", eps=1e-12)[:, 0]
    torch.testing.assert_close(values, case.expected["ge.ciou_adap"].double(), rtol=1e-6, atol=1e-7)
