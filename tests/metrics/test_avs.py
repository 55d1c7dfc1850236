from __future__ import annotations

import pytest
import torch
from sklearn.metrics import fbeta_score, jaccard_score

from avloc.metrics.avs import THRESHOLDS, batch_fscores, batch_means, dataset_fscore, fscore_curve, iou
from tests.golden.case import find_cases, golden_folder


@pytest.fixture
def frames() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    truth = (torch.rand(5, 12, 10) > 0.7).float()
    truth[3] = 0
    maps = torch.randint(0, 41, (5, 12, 10)) / 40.0
    return maps, truth


def test_thresholds() -> None:
    assert THRESHOLDS[127].item() == 0.5
    assert THRESHOLDS[254].item() == 1.0


def test_iou_is_sklearns_jaccard(frames: tuple[torch.Tensor, torch.Tensor]) -> None:
    maps, truth = frames
    got = iou(maps, truth, (0.4, 0.5))
    for n in (0, 1, 2, 4):
        for k, t in enumerate((0.4, 0.5)):
            want = jaccard_score(truth[n].flatten(), (maps[n] > t).flatten())
            assert got[n, k].item() == pytest.approx(want, abs=1e-15)
    assert got[3, 1].item() == pytest.approx((maps[3] <= 0.5).double().mean().item())  # empty truth


def test_curve_is_sklearns_fbeta(frames: tuple[torch.Tensor, torch.Tensor]) -> None:
    maps, truth = frames
    got = fscore_curve(maps, truth)
    for n in (0, 2):
        for k in (0, 60, 127, 200, 254):
            want = fbeta_score(truth[n].flatten(), (maps[n] >= THRESHOLDS[k]).flatten(), beta=0.3**0.5, zero_division=0)
            assert got[n, k].item() == pytest.approx(want, abs=1e-12)
    assert got[3].max().item() == 0


def test_maximum_per_batch_or_over_the_set() -> None:
    curves = torch.zeros(4, 255, dtype=torch.float64)
    curves[0, 10], curves[1, 20], curves[2, 20] = 1.0, 0.6, 0.8
    nonempty = torch.tensor([True, True, True, False])
    # by video: (1 + 0)/1, then mean of frames 1 and 2 at the shared threshold, then an empty video
    video = torch.tensor([0, 1, 1, 2])
    torch.testing.assert_close(
        batch_fscores(curves, nonempty, video), torch.tensor([1.0, 0.7, 0.0], dtype=torch.float64)
    )
    value, threshold = dataset_fscore(curves, nonempty)
    assert value.item() == pytest.approx(1.4 / 3)
    assert threshold.item() == pytest.approx(20 / 254)
    assert batch_means(curves[:, 20], video).tolist() == pytest.approx([0.0, 0.7, 0.0])


def test_only_empty_frames_score_zero() -> None:
    assert dataset_fscore(torch.zeros(3, 255), torch.zeros(3, dtype=torch.bool))[0].item() == 0


@pytest.mark.parametrize(
    "case", [c for c in find_cases(golden_folder()) if c.kind == "metric_avs_adaptive"], ids=lambda c: c.name
)
def test_published_adaptive_values(case) -> None:
    from avloc.metrics.thresholds import area_threshold

    maps, truth = case.inputs["k"].float() * case.config["scale"], case.inputs["gt"].float()
    got = iou(maps, truth, area_threshold(maps, truth))[:, 0]
    torch.testing.assert_close(got.float(), case.expected["adaptive.bs1.batch_miou"], rtol=2e-6, atol=2e-6)
