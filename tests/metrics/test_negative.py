from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import auc as sklearn_auc

from avloc.metrics.negative import image_share, share_auc, share_curve
from avloc.metrics.robust import fpr, global_score, harmonic_mean


def test_share_counts_pixels() -> None:
    torch.manual_seed(0)
    maps = torch.randint(0, 11, (5, 7, 9)) / 10.0
    cuts = torch.linspace(0, 1, 30)
    for operator, above in ((">", torch.gt), (">=", torch.ge)):
        got = image_share(maps, cuts, operator)  # type: ignore[arg-type]
        want = above(maps[:, None], cuts[:, None, None]).double().mean((2, 3))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-15)
    assert torch.equal(fpr(maps), (maps > 0.5).double().mean((1, 2)))


def test_area_under_shares() -> None:
    shares = torch.rand(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shares[0] = 0
    levels = [0.05 * i for i in range(21)]
    for strict in (False, True):
        for k in range(2):
            column = shares[:, k].tolist()
            curve = [sum(v < t or (v == t and not strict) for v in column) / 30 for t in levels]
            assert share_auc(shares, strict)[k].item() == pytest.approx(sklearn_auc(levels, curve))


def test_silence_answered_by_nothing() -> None:
    nothing = torch.zeros(4, dtype=torch.float64)
    assert share_auc(nothing).item() == pytest.approx(1)
    assert share_auc(nothing, strict=True).item() == pytest.approx(0.975)
    assert share_curve(torch.tensor([math.nan, 0.0]))[20].item() == 0.5


def test_inferred_scores_in_both_orders() -> None:
    positive, negatives = torch.tensor(0.8), torch.tensor([0.5, 0.1, 0.3])
    assert global_score(positive, negatives).item() == pytest.approx(2 * 0.8 * 0.7 / 1.5)
    each = [2 * 0.8 * (1 - n) / (1.8 - n) for n in (0.5, 0.1, 0.3)]
    assert global_score(positive, negatives, "mean-last").item() == pytest.approx(sum(each) / 3)
    # the row of the ACL paper's table that a later README quotes: positive 86.20, negatives alike, G-mIoU 23.79
    assert 100 * global_score(torch.tensor(0.862), torch.full((3,), 0.862)).item() == pytest.approx(23.79, abs=0.005)
    assert harmonic_mean(torch.tensor(0.0), torch.tensor(0.0)).item() == 0
