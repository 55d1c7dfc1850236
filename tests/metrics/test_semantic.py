from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, fbeta_score, jaccard_score

from avloc.metrics.semantic import (
    class_fscore,
    class_iou,
    class_means,
    confusion,
    dataset_scores,
    frame_means,
    label_counts,
    mean_over_classes,
    present,
)

CLASSES = 6


@pytest.fixture
def labels() -> tuple[torch.Tensor, torch.Tensor]:
    """Odd, not square; class 4 is never there, class 5 only predicted."""
    torch.manual_seed(0)
    truth = torch.randint(0, 4, (7, 13, 9))
    pred = torch.where(torch.rand(7, 13, 9) > 0.4, truth, torch.randint(0, 4, (7, 13, 9)))
    pred[2, :3] = 5
    truth[3], pred[3] = 0, 0
    return pred, truth


def test_frames_are_sklearns(labels: tuple[torch.Tensor, torch.Tensor]) -> None:
    pred, truth = labels
    counts = label_counts(pred, truth, CLASSES)
    iou, f = class_iou(counts), class_fscore(counts)
    for n in range(7):
        p, t = pred[n].flatten(), truth[n].flatten()
        options = {"labels": range(CLASSES), "average": None, "zero_division": 0}
        assert iou[n].tolist() == pytest.approx(jaccard_score(t, p, **options).tolist(), abs=1e-14)
        assert f[n].tolist() == pytest.approx(fbeta_score(t, p, beta=0.3**0.5, **options).tolist(), abs=1e-14)
        assert present(counts)[n].tolist() == [bool(((p == c) | (t == c)).any()) for c in range(CLASSES)]


def test_means_count_a_class_where_it_is_and_all_classes_in_the_end(labels: tuple[torch.Tensor, torch.Tensor]) -> None:
    counts = label_counts(*labels, CLASSES)
    iou, there = class_iou(counts), present(counts)
    means = class_means(iou, there)
    want = [iou[there[:, c], c].mean().item() if there[:, c].any() else 0.0 for c in range(CLASSES)]
    assert means.tolist() == pytest.approx(want)
    assert want[4] == want[5] == 0
    assert mean_over_classes(means).item() == pytest.approx(sum(want) / 6)
    assert mean_over_classes(means, drop_first=True).item() == pytest.approx(sum(want[1:]) / 5)
    assert mean_over_classes(means, drop_last=True).item() == pytest.approx(sum(want[:-1]) / 5)
    assert mean_over_classes(means, seen=there.any(0)).item() == pytest.approx(sum(want) / 5)


def test_frame_mean_leaves_out_zeros() -> None:
    iou = torch.tensor([[0.5, 0.0, 0.25], [0.0, 0.0, 0.0]], dtype=torch.float64)
    got = frame_means(iou).tolist()
    assert got[0] == 0.375
    assert math.isnan(got[1])


def test_data_set_is_sklearns_without_ignored_pixels(labels: tuple[torch.Tensor, torch.Tensor]) -> None:
    pred, truth = labels[0], labels[1].clone()
    truth[:, 0] = 255
    kept = truth != 255
    p, t = pred[kept], truth[kept]
    sums = [c.sum(0) for c in label_counts(pred, truth, CLASSES, ignore=255)]
    scores = dataset_scores(*sums)
    some = [0, 1, 2, 3, 5]  # class 4 is nowhere: nan-means leave it out
    assert scores.miou.item() == pytest.approx(
        jaccard_score(t, p, labels=some, average=None, zero_division=0).sum() / 6
    )
    assert scores.f1.item() == pytest.approx(f1_score(t, p, labels=some, average="macro", zero_division=0))
    want = fbeta_score(t, p, labels=some, beta=0.3**0.5, average="macro", zero_division=0)
    assert scores.f03.item() == pytest.approx(want)
    assert scores.accuracy.item() == pytest.approx(accuracy_score(t, p))
    fdr = [((t != c) & (p == c)).sum().item() / (p == c).sum().item() for c in some]
    assert scores.fdr.item() == pytest.approx(sum(fdr) / 5)
    table = confusion_matrix(t, p, labels=range(CLASSES))
    assert confusion(pred, truth, CLASSES).tolist() == table.tolist()


def test_pixels_of_no_class_still_are_predicted() -> None:
    pred, truth = torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 255, 0]]])
    counts = label_counts(pred, truth, 2)
    assert (counts.intersection.tolist(), counts.predicted.tolist(), counts.actual.tolist()) == (
        [[1, 1]],
        [[1, 2]],
        [[1, 1]],
    )
    assert label_counts(pred, truth, 2, ignore=255).predicted.tolist() == [[1, 1]]


def test_uint8_and_no_frames() -> None:
    pred = torch.randint(0, 70, (3, 8, 8), dtype=torch.uint8)
    assert torch.equal(label_counts(pred, pred, 71).actual, label_counts(pred.long(), pred.long(), 71).intersection)
    assert label_counts(pred[:0], pred[:0], 71).actual.shape == (0, 71)


def test_labels_outside_are_named() -> None:
    truth = torch.zeros(3, 4, 4, dtype=torch.int64)
    pred = truth.clone()
    pred[2, 1, 1] = 9
    with pytest.raises(ValueError, match="prediction of frame 2 holds labels between 0 and 9, but there are 5 classes"):
        label_counts(pred, truth, 5)
    with pytest.raises(ValueError, match="ground truth of frame 2"):
        label_counts(truth, pred, 5)
