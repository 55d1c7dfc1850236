from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve

from avloc.metrics.extended import (
    SIZES,
    average_precision,
    exact_average_precision,
    exact_curve,
    exact_max_f1,
    f1_at,
    f1_curve,
    loc_acc,
    max_f1,
    precision_recall,
    size_group,
    top_quarter,
)


def frames(n: int, seed: int = 0, levels: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """cIoU, confidences with ties, and which frames are visible."""
    torch.manual_seed(seed)
    visible = torch.rand(n) > 0.4
    ciou = torch.rand(n, dtype=torch.float64).where(visible, torch.zeros((), dtype=torch.float64))
    return ciou, torch.randint(levels, (n,)) / levels, visible


def counted(ciou, confidence, visible, threshold: float, level: float) -> tuple[float, float]:
    """The definition, one frame after another."""
    true = false = missed = 0
    for overlap, c, v in zip(ciou.tolist(), confidence.tolist(), visible.tolist(), strict=True):
        if c >= threshold:
            true += v and overlap >= level
            false += not (v and overlap >= level)
        else:
            missed += v
    return true / (true + false) if true + false else 1.0, true / (true + missed) if true + missed else 1.0


@pytest.mark.parametrize("level", [0.5, 0.75])
def test_precision_and_recall_by_counting(level: float) -> None:
    ciou, confidence, visible = frames(60)
    ciou[3] = math.nan
    thresholds = torch.cat([confidence[:20], torch.tensor([-1000.0, 2.0])])
    precision, recall = precision_recall(ciou, confidence, visible, thresholds, level)
    for i, t in enumerate(thresholds.tolist()):
        assert (precision[i].item(), recall[i].item()) == pytest.approx(
            counted(ciou, confidence, visible, t, level), abs=1e-15
        )


@pytest.mark.parametrize("n", [2, 7, 250, 613])
def test_average_precision_by_walking(n: int) -> None:
    ciou, confidence, visible = frames(n)
    walk = sorted(confidence.tolist())[:-1][:: -max(1, n // 200)]
    points = [counted(ciou, confidence, visible, t, 0.5) for t in walk]
    want = sum(max(p for p, _ in points[i:]) * (points[i + 1][1] - points[i][1]) for i in range(len(points) - 1))
    assert average_precision(ciou, confidence, visible).item() == pytest.approx(want, abs=1e-12)


def test_maximum_over_ten_thresholds_or_all() -> None:
    ciou, confidence, visible = frames(95, levels=1000)
    thresholds, f1 = f1_curve(ciou, confidence, visible)
    assert thresholds.tolist() == sorted(confidence.tolist())[::9]
    every = [counted(ciou, confidence, visible, t, 0.5) for t in sorted(confidence.tolist())]
    scores = [2 * p * r / (p + r) if p + r else 0.0 for p, r in every]
    assert f1.tolist() == pytest.approx(scores[::9])
    assert max_f1(ciou, confidence, visible).item() == pytest.approx(max(scores[::9]))
    assert max_f1(ciou, confidence, visible, skip=None).item() == pytest.approx(max(scores))
    reported = max(float(f"{100 * s:.1f}") for s in scores[::9])
    assert 100 * max_f1(ciou, confidence, visible, rounded=True).item() == pytest.approx(reported, abs=1e-12)
    p, r = counted(ciou, confidence, visible, 0.5, 0.3)
    assert f1_at(ciou, confidence, visible, 0.5, 0.3).item() == pytest.approx(2 * p * r / (p + r))


def test_all_variants_at_once() -> None:
    ciou, confidence, visible = frames(40)
    both = torch.stack([ciou, ciou.flip(0)], 1)
    for metric in (average_precision, max_f1, f1_at):
        apart = [metric(c, confidence, visible) for c in both.unbind(1)]  # type: ignore[operator]
        assert torch.equal(metric(both, confidence, visible), torch.stack(apart))  # type: ignore[operator]


def test_location_is_strict_and_of_visible_frames() -> None:
    ciou = torch.tensor([0.5, 0.6, 0.9, math.nan])
    visible = torch.tensor([True, True, False, True])
    assert loc_acc(ciou, visible).item() == pytest.approx(1 / 3)
    assert loc_acc(ciou, visible, 0.45).item() == pytest.approx(2 / 3)


def test_degenerate_sets() -> None:
    ciou, confidence, visible = torch.tensor([0.7]), torch.tensor([0.2]), torch.tensor([True])
    assert average_precision(ciou, confidence, visible).item() == 0
    assert max_f1(ciou, confidence, visible).item() == 1
    assert exact_average_precision(exact_curve(ciou, confidence, visible)).item() == 1
    silent = torch.zeros(5, dtype=torch.bool)
    ciou, confidence = torch.zeros(5), torch.rand(5)
    precision, recall = precision_recall(ciou, confidence, silent, confidence)
    assert precision.unique().tolist() == [0]  # every detection is false
    assert recall.unique().tolist() == [1]  # nothing could be missed
    assert max_f1(ciou, confidence, silent).item() == 0
    none = torch.zeros(0)
    assert average_precision(none, none, none.bool()).isnan()
    assert max_f1(none, none, none.bool()).isnan()
    assert exact_max_f1(exact_curve(none, none, none.bool())).isnan()


def test_exact_curve_is_sklearns() -> None:
    ciou, confidence, visible = frames(300)
    found = (visible & (ciou >= 0.5)).numpy()
    curve = exact_curve(ciou, confidence, visible)
    precision, recall, thresholds = precision_recall_curve(found, confidence)
    assert curve.thresholds.tolist() == thresholds[::-1].tolist()
    assert curve.precision.tolist() == pytest.approx(precision[-2::-1].tolist())
    share = found.sum() / int(visible.sum())  # misplaced frames count as missed, which scikit-learn cannot know
    assert curve.recall.tolist() == pytest.approx((share * recall[-2::-1]).tolist())
    assert exact_average_precision(curve).item() == pytest.approx(share * average_precision_score(found, confidence))


def test_exact_f1_where_every_visible_frame_is_placed() -> None:
    _, confidence, visible = frames(80)
    best = max(f1_score(visible, confidence >= t) for t in confidence.unique())
    assert exact_max_f1(exact_curve(torch.ones(80), confidence, visible)).item() == pytest.approx(best)


def test_top_quarter_rounds_its_count_up() -> None:
    maps = torch.arange(9.0).flip(0).reshape(1, 3, 3)
    assert top_quarter(maps).item() == (8 + 7 + 6) / 3
    torch.manual_seed(0)
    maps = torch.rand(5, 10, 7)
    want = [m.flatten().sort(descending=True).values[:18].double().mean().item() for m in maps]
    assert top_quarter(maps).tolist() == pytest.approx(want, abs=1e-15)


def test_size_groups_at_their_bounds() -> None:
    area = torch.tensor([0.0, 1023.5, 1024, 9215, 9216, 20735, 20736, 50176])
    names = [SIZES[i] for i in size_group(area).tolist()]
    assert names == ["small", "small", "medium", "medium", "large", "large", "huge", "huge"]
