from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from avloc.evaluation.benchmarks import BENCHMARKS, benchmark
from avloc.evaluation.evaluator import hashes
from avloc.evaluation.measures import IDENTITIES, UNIVERSAL, Scored, extents, identities
from avloc.evaluation.protocols import PROTOCOLS, ProtocolError, protocol
from avloc.evaluation.results import chosen_threshold
from avloc.evaluation.summaries import Samples, Summary, summarise_universal
from avloc.methods.baselines.controls import centre_box, full_frame, random_map
from avloc.metrics.per_sample import PerSample
from avloc.types import AVBatch, Localization


def make(truth: Tensor | None, n: int = 0, **fields: object) -> AVBatch:
    n = n or len(truth)  # type: ignore[arg-type]
    return AVBatch(
        key=[f"s{i}" for i in range(n)],
        image=torch.zeros(n, 3, 32, 32, dtype=torch.uint8),
        audio=torch.zeros(n, 16),
        index=torch.arange(n),
        truth=truth,
        **fields,  # type: ignore[arg-type]
    )


def answer(heatmap: Tensor, confidence: Tensor | None = None, label: Tensor | None = None) -> Localization:
    return Localization(heatmap, torch.ones(heatmap.shape[:2]) if confidence is None else confidence, label)


def columns(names: Sequence[str], given: Localization, batch: AVBatch) -> Samples:
    """Per-sample columns of some protocols, through the metric that the evaluator uses."""
    measures = {m.name: m for name in names for m in protocol(name).measures}
    widths = {f"{m.name}:{c}": k for m in measures.values() for c, k in m.columns.items()} | dict(IDENTITIES)
    values = identities(batch, partial(hashes, device=batch.device))
    for m in measures.values():
        values |= {f"{m.name}:{c}": v for c, v in m.function(Scored(given, batch)).items()}
    metric = PerSample(len(batch), widths)
    metric.update(batch.index, **values)
    return metric.table()


def score(name: str, given: Localization | Tensor, batch: AVBatch | Tensor, clip: list[int] | None = None) -> Summary:
    given = given if isinstance(given, Localization) else answer(given)
    batch = batch if isinstance(batch, AVBatch) else make(batch)
    if clip:
        batch = replace(batch, key=[f"s{c}.f{i}" for i, c in enumerate(clip)])
    return protocol(name).summary(columns([name], given, batch))


@pytest.fixture
def boxes() -> Tensor:
    """Boxes that hold 1/8, 1/2 and 3/4 of a 32 x 32 grid."""
    truth = torch.zeros(3, 1, 32, 32)
    truth[0, :, :8, :16] = truth[1, :, :16] = truth[2, :, :24] = 1
    return truth


@pytest.mark.parametrize("name", [p for p in PROTOCOLS if p.startswith("vggss/")])
def test_a_full_frame_scores_the_area(name: str, boxes: Tensor) -> None:
    got = score(name, full_frame(make(boxes)), boxes)
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
    got = score("vggss/fixed", centre_box(make(boxes)), boxes)
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
    got = score("multi/sources", heatmap, truth)
    assert got["ciou@30"] == got["ciou@50"] == 0.5
    # a map of the wrong half is not predicted at all by its larger half, for the other half is 0; its AP is 4 / 8
    assert got["cap"] == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)
    assert got["piap"] == 1  # somebody's map fits each source
    union = score("vggss/fixed", heatmap, truth)
    assert union["ciou"] == 1
    one_map = score("multi/sources", truth[:, :1], truth)
    assert one_map["ciou@50"] == 0.5
    with pytest.raises(ValueError, match="2 sources and the method gave 3 maps"):
        score("multi/sources", truth[:, [0, 1, 0]], truth)


def test_named_sources_are_found_by_their_class() -> None:
    truth = torch.zeros(1, 2, 1, 8)
    truth[:, 0, :, :4] = truth[:, 1, :, 4:] = 1
    batch = make(truth, class_id=torch.tensor([[7, 3]]))
    swapped = answer(truth.flip(1), label=torch.tensor([[3, 7]]))
    assert score("multi/sources", swapped, batch)["ciou@50"] == 1
    half_named = answer(truth.flip(1), label=torch.tensor([[3, 5]]))  # class 7 gets no map: constant, all pixels
    got = score("multi/tvsl", half_named, batch)
    assert got["ciou@50"] == 0.5


def test_names_do_not_count_where_maps_are_assigned_at_will() -> None:
    truth = torch.zeros(1, 2, 1, 8)
    truth[:, 0, :, :4] = truth[:, 1, :, 4:] = 1
    batch = make(truth, class_id=torch.tensor([[7, 3]]))
    misnamed = answer(truth, label=torch.tensor([[3, 5]]))
    got = score("multi/sources", misnamed, batch)
    assert got["cap"] == 0.5  # class 7 has no map, class 3 the wrong half: all pixels at 4 / 8 both times
    assert got["piap"] == 1
    more = answer(torch.cat([torch.full((1, 3, 1, 8), 0.5), truth], 1), label=torch.tensor([[9, 8, 6, 3, 5]]))
    more.confidence[:, 3:] += 0.5  # five maps: the four surest hold both halves
    assert score("multi/sources", more, batch)["piap"] == 1
    one = answer(truth[:, :1], label=torch.tensor([[9]]))
    assert score("multi/sources", one, batch)["piap"] == pytest.approx((1 + 0.5) / 2)


def test_samples_with_fewer_sources_count_their_own() -> None:
    truth = torch.zeros(2, 2, 1, 8)
    truth[0, 0, :, :4] = truth[0, 1, :, 4:] = truth[1, 0, :, :4] = 1
    batch = make(truth, class_id=torch.tensor([[0, 1], [0, -1]]))
    got = score("multi/sources", answer(truth[:, :1]), batch)  # one map, of the left half
    assert got["ciou@50"] == pytest.approx(2 / 3)


def test_sizes_and_numbers_of_things() -> None:
    truth = torch.zeros(3, 2, 40, 80)
    truth[:, 0, :20, :40] = 1
    truth[:2, 1, 20:, 40:] = 1
    batch = make(truth, class_id=torch.tensor([[0, 1], [0, 1], [0, -1]]))
    maps = torch.zeros(3, 4, 40, 80)
    maps[:, 0, 2:6, 2:6] = maps[:, 1, 2:6, 10:14] = 0.5
    maps[1, 2, 30, 30] = 1  # one pixel of 3200 is no region
    got = extents(Scored(answer(maps, label=torch.tensor([[0, 1, -1, -1], [0, 1, 2, 3], [-1] * 4])), batch))
    assert got["truth_area"].tolist() == [0.5, 0.5, 0.25]
    assert got["sources"].tolist() == [2, 2, 1]
    assert got["answered"].tolist() == [2, 4, 0]  # as many as there are, more, none
    assert got["regions"].tolist() == [2, 2, 2]
    assert got["predicted_share"].tolist() == pytest.approx([32 / 3200, 33 / 3200, 32 / 3200])
    eight = torch.eye(8).view(1, 8, 8, 1).expand(2, 8, 8, 80)
    got = extents(Scored(answer(eight[:, :5]), make(eight)))
    assert got["sources"].tolist() == [8, 8]
    assert got["answered"].tolist() == [5, 5]
    blind = extents(Scored(answer(maps), make(None, 3)))
    assert blind["truth_area"].isnan().all()
    assert blind["sources"].isnan().all()
    labelled = extents(Scored(answer(maps), make(None, 3, class_id=batch.class_id)))
    assert labelled["sources"].tolist() == [2, 2, 1]


def test_tvsl_by_hand_and_by_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = torch.zeros(3, 2, 8, 16)
    truth[:, 0, 2:6, 1:5] = truth[:, 1, 3:7, 9:14] = 1
    truth[2, 0, 2, 1] = 2  # boxes that were summed without clipping
    maps = torch.tensor(rng.random((3, 2, 8, 16)), dtype=torch.float32)
    got = score("multi/tvsl", maps, truth)
    scaled = [(m - m.min()) / (m.max() - m.min()) for m in maps.flatten(0, 1).numpy()]
    goals = truth.flatten(0, 1).numpy()
    cut_there = []
    for at in (0.1, 0.3, 0.5):
        values = [
            (g[s >= at].sum() / (g.sum() + ((s >= at) & (g == 0)).sum())) for s, g in zip(scaled, goals, strict=True)
        ]
        assert got[f"release@{100 * at:.0f}"] == pytest.approx(np.mean(values))
        cut_there.append(np.array(values))
    for at in (0.1, 0.3, 0.5):
        assert got[f"ciou@{100 * at:.0f}"] == (cut_there[1] >= at).mean()
    levels = [0.05 * i for i in range(21)]
    assert got["auc"] == pytest.approx(np.trapezoid([(cut_there[1] >= level).mean() for level in levels], levels))
    aps = [average_precision_score(g.ravel(), s.ravel()) for s, g in zip(scaled, goals, strict=True) if g.max() == 1]
    assert len(aps) == 5
    assert got["cap"] == pytest.approx(np.mean(aps))


def test_duet_tiles_are_matched_greedily() -> None:
    truth = torch.zeros(1, 2, 4, 8)
    truth[:, 0, :, :2] = truth[:, 1, :, 6:] = 1  # outer halves of two pictures
    ramp = torch.linspace(0, 0.01, 4)[:, None].expand(1, 2, 4, 8)  # so that no tile of a map is constant
    maps = truth.flip(1) + ramp  # the maps answer in the other order: matching puts that right
    got = score("multi/noprior", maps, truth)
    # above the median lie three of the four rows of the true half: recall 6/8, then everything at precision 8/16
    assert got["ciou@50"] == got["count_accuracy"] == 1
    assert got["cap"] == got["piap"] == 6 / 8 + 2 / 8 * 8 / 16
    single = score("multi/noprior", maps[:, :1], truth)  # the missing map scores 0
    assert (single["ciou@50"], single["count_accuracy"]) == (0.5, 0)
    with pytest.raises(ValueError, match="rows of pictures"):
        score("multi/noprior", torch.ones(1, 1, 4, 4), torch.ones(1, 2, 4, 4))


def test_groups_succeed_together() -> None:
    truth = torch.zeros(5, 1, 1, 8)
    truth[..., :4] = 1
    heatmap = truth.clone()
    heatmap[1] = 1 - heatmap[1]  # the second member of the first group is wrong
    batch = make(truth, group=["a", "a", "b", "b", ""], group_size=[2, 2, 2, 2, 1])
    got = score("interactive/acl", heatmap, batch)
    assert got["iiou"] == pytest.approx(2 / 3)
    assert got["ciou"] == pytest.approx(4 / 5)
    assert (got["n_groups"], got["n_incomplete_groups"]) == (3, 0)
    ramp = torch.linspace(1, 0, 8).expand(5, 1, 1, 8).clone()  # strictly above the cut lie 3 pixels, all of them true
    ramp[1] = 1 - ramp[1]
    got = score("interactive/is3", ramp, batch)
    assert got["iiou"] == got["iiou_adap"] == pytest.approx(2 / 3)
    assert got["iauc"] == pytest.approx(0.05 * (16 * 2 / 3 + (1 - 2 / 3) / 2 - 0.5 * 2 / 3))  # 0.75 reaches 16 levels


def test_a_group_with_a_missing_member_is_left_out_and_counted() -> None:
    truth = torch.zeros(3, 1, 1, 8)
    truth[..., :4] = 1
    batch = make(truth, group=["a", "b", "b"], group_size=[2, 2, 2])
    got = score("interactive/acl", truth, batch)
    assert (got["iiou"], got["n_groups"], got["n_incomplete_groups"]) == (1, 1, 1)


def extended_batch(right: list[int], visible: list[int]) -> tuple[Tensor, AVBatch]:
    truth = torch.zeros(len(right), 1, 1, 8)
    truth[..., :4] = 1
    heatmap = torch.where(torch.tensor(right, dtype=torch.bool)[:, None, None, None], truth, 1 - truth)
    sounding = torch.tensor(visible, dtype=torch.bool)
    truth = truth * sounding[:, None, None, None]
    return heatmap, make(truth, sounding=sounding, negative=["" if v else "mismatch" for v in visible])


def test_average_precision_by_hand() -> None:
    heatmap, batch = extended_batch([1, 0, 1, 1], [1, 1, 0, 1])
    given = answer(heatmap, torch.tensor([[0.9], [0.7], [0.5], [0.3]]))
    exact = score("extended/exact", given, batch)
    # from the most certain: right, misplaced, silent, right; three visible
    assert exact["ap"] == pytest.approx(1 / 3 + 2 / 4 / 3)
    assert exact["pr_recall"] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3])
    # published: thresholds 0.7, 0.5, 0.3 with precision 1/2, 1/3, 2/4 and recall 1/2, 1/2, 2/2
    got = score("extended/acl", given, batch)
    assert got["ap"] == pytest.approx(0.5 * 0 + 0.5 * 0.5)
    assert got["max_f1"] == pytest.approx(0.667)  # at 0.3: 2/3, printed to a tenth of a percent
    assert got["loc_acc"] == pytest.approx(2 / 3)
    # at 0.3 precision 1/2 and recall 1 give the largest F1
    assert (got["precision"], got["recall"]) == (0.5, 1)
    assert got["recall_precision_gap"] == 0.5
    # all four are certain: two of three visible are found and one negative is taken, so precision exceeds recall
    heatmap, batch = extended_batch([1, 1, 1, 0], [1, 1, 1, 1])
    given = answer(heatmap, torch.tensor([[0.9], [0.8], [0.1], [0.7]]))
    gaps = score("extended/acl", given, batch)
    assert gaps["recall_precision_gap"] == abs(float(gaps["recall"]) - float(gaps["precision"]))  # type: ignore[arg-type]


def test_localisation_accuracy_is_the_ciou_of_the_sounding_half() -> None:
    """Whatever threshold gives the best AP, and half a cIoU of exactly 0.5 counts."""
    rng = torch.Generator().manual_seed(3)
    truth = (torch.rand(40, 1, 12, 12, generator=rng) > 0.7).float()
    visible = torch.arange(40) % 2 == 0
    truth[~visible] = 0
    truth[0] = 0
    truth[0, :, :6] = 1
    maps = 0.6 * truth + 0.4 * torch.rand(40, 1, 12, 12, generator=rng)
    maps[~visible] = torch.rand(20, 1, 12, 12, generator=rng)
    maps[0] = 1
    given = answer(maps, torch.rand(40, 1, generator=rng))
    got = score("extended/acl", given, make(truth, sounding=visible))
    alone = score("vggss/acl", answer(maps[visible]), truth[visible])
    assert got["loc_acc"] == alone["ciou"]
    assert got["loc_acc_threshold"] == alone["threshold"]
    assert got["loc_acc_threshold"] != got["threshold"]


def test_all_negative_sets_have_numbers() -> None:
    heatmap, batch = extended_batch([1, 1, 0], [0, 0, 0])
    for name in ("extended/acl", "extended/slavc", "extended/slavc-absolute", "extended/exact"):
        got = score(name, heatmap, batch)
        assert got["ap"] == 0
        assert math.isnan(float(got.get("loc_acc", math.nan)))  # type: ignore[arg-type]


def test_share_of_the_image() -> None:
    heatmap = torch.zeros(2, 1, 2, 5)
    heatmap[0, ..., :2] = 0.5  # two of five columns
    got = score("negative/pia", heatmap, make(None, 2))
    assert got["pia"] == pytest.approx(0.2)
    # one sample at 0, one at 0.4: half of the samples up to level 0.35, all from 0.40
    assert got["auc"] == pytest.approx(0.05 * (0.5 * 8 + 13 - 0.5 * (0.5 + 1)))
    mixed = make(None, 2, sounding=torch.tensor([True, False]), negative=["", "noise"])
    assert score("negative/pia", heatmap, mixed)["pia_noise"] == 0  # only the negative counts


def test_conditions_are_scored_apart() -> None:
    truth = torch.zeros(4, 1, 1, 10)
    truth[..., :5] = 1
    heatmap = truth.clone()
    heatmap[1:] = 0
    heatmap[2, ..., :2] = 1
    kinds = ["", "silence", "noise", "offscreen"]
    batch = make(truth, negative=kinds, sounding=torch.tensor([True, False, False, False]))
    got = score("robust/avsbench", heatmap, batch)
    assert (got["miou_positive"], got["fpr_positive"]) == (1, 0.5)
    assert (got["miou_silence"], got["fpr_silence"]) == (0, 0)
    assert (got["miou_noise"], got["fpr_noise"]) == (pytest.approx(0.4), pytest.approx(0.2))
    negative = 0.4 / 3
    whole = score("robust/global-inferred", heatmap, batch)
    assert whole["gmiou"] == pytest.approx(2 * (1 - negative) / (2 - negative))
    assert whole["gfpr"] == pytest.approx(0.2 / 3)


def test_robust_scores_by_the_rule_of_the_segmentation_table() -> None:
    rng = torch.Generator().manual_seed(0)
    n, kinds = 24, ["", "silence", "noise", "offscreen"]
    truth = (torch.rand(n, 1, 6, 6, generator=rng) > 0.6).float()
    maps = (0.45 * truth + 0.55 * torch.rand(n, 1, 6, 6, generator=rng)).clamp(0, 1)
    condition = [kinds[i % 4] for i in range(n)]
    maps[torch.tensor([c != "" for c in condition])] *= 0.8
    batch = make(truth, negative=condition, sounding=torch.tensor([c == "" for c in condition]))
    got = score("robust/acl", maps, batch)

    def of(kind: str, protocol: str = "avs/acl") -> Summary:
        rows = [i for i, c in enumerate(condition) if c == kind]
        return score(protocol, maps[rows], truth[rows])

    assert got["miou_positive"] == pytest.approx(of("")["miou"])
    assert got["fscore_positive"] == of("")["fscore"]
    assert got["threshold"] == of("")["threshold"]
    place = round(float(got["threshold"]) / 0.05) - 1  # type: ignore[arg-type]
    chosen = maps > torch.tensor(0.05 * (place + 1))
    shares = chosen.double().mean((1, 2, 3))
    for kind in kinds[1:]:
        sweep = of(kind)["sweep_miou"]
        assert isinstance(sweep, list)
        assert got[f"miou_{kind}"] == pytest.approx(sweep[place])
        assert got[f"fscore_{kind}"] == of(kind)["fscore"]
        assert got[f"fpr_{kind}"] == pytest.approx(shares[[c == kind for c in condition]].mean().item())
    assert got["gfpr"] == pytest.approx(shares[[c != "" for c in condition]].mean().item())
    for name, metric in (("gmiou", "miou"), ("gf", "fscore")):
        p, q = got[f"{metric}_positive"], 1 - np.mean([got[f"{metric}_{k}"] for k in kinds[1:]])
        assert got[name] == pytest.approx(2 * p * q / (p + q))  # type: ignore[operator]
    only = score("robust/acl", maps[::4], make(truth[::4], negative=[""] * 6))
    assert math.isnan(only["gmiou"])  # type: ignore[arg-type]


def test_as_many_pixels_as_the_frame_has() -> None:
    truth, maps = torch.zeros(4, 1, 1, 10), torch.zeros(4, 1, 1, 10)
    truth[:3, ..., :4] = 1  # frame 3 is empty
    maps[0, 0, 0] = torch.tensor([0.9, 0.8, 0.1, 0.1, 0.7, 0.6, 0, 0, 0, 0])  # two of four
    maps[1, 0, 0] = torch.tensor([0.9, 0.5, 0.5, 0.2, 0.5, 0.5, 0.1, 0, 0, 0])  # one and three of four tied, two right
    got = score("avs/acl-adaptive", maps, truth)
    hits = [2, 1 + 3 * 2 / 4, 0]  # frame 2 answers nothing, which is no answer of four pixels
    assert got["fscore"] == pytest.approx(sum(h / 4 for h in hits) / 3)
    assert got["miou"] == pytest.approx((2 / 6 + 2.5 / 5.5 + 0 + 1) / 4)
    sparse = torch.zeros(1, 1, 1, 10)
    sparse[..., :2] = 0.4  # fewer pixels than the object has
    got = score("avs/acl-adaptive", sparse, truth[:1])
    assert got["miou"] == 2 / 4
    assert got["fscore"] == pytest.approx(1.3 * 2 / (0.3 * 4 + 2))


def test_mixtures_as_the_paper_scores_them() -> None:
    """Every pairing tried in turn, with scikit-learn's AP; named, unnamed, too few and too many maps."""
    rng = torch.Generator().manual_seed(1)
    n, S, M = 9, 3, 5
    truth = (torch.rand(n, S, 8, 9, generator=rng) > 0.7).float()
    class_id = torch.arange(S).repeat(n, 1)
    class_id[::3, 2], truth[::3, 2] = -1, 0  # some have two sources
    count = [2, 3, 1, 5, 0, 3, 2, 4, 5]
    label = torch.tensor([[7 + k if k < c else -1 for k in range(M)] for c in count])
    maps = torch.rand(n, M, 8, 9, generator=rng)
    maps[:, 1:4] = (0.5 * maps[:, 1:4] + 0.5 * truth.flip(1)).clamp(0, 1)
    got = score("multi/acl", answer(maps, label=label), make(truth, class_id=class_id))
    aps, overlaps, unions = [], [], []
    for i in range(n):
        goals = [truth[i, s] for s in range(S) if class_id[i, s] >= 0]
        given = list(maps[i, : count[i]]) + [None] * (len(goals) - count[i])

        def ap(given: Tensor | None, goal: Tensor) -> float:
            scores = torch.zeros(goal.numel()) if given is None else given.flatten()
            return float(average_precision_score(goal.flatten(), scores))

        best = max(permutations(given, len(goals)), key=lambda order: sum(map(ap, order, goals)))
        aps += map(ap, best, goals)
        for given_map, goal in zip(best, goals, strict=True):
            row = []
            for t in range(1, 20):
                chosen = torch.zeros(8, 9, dtype=torch.bool) if given_map is None else given_map >= 0.05 * t
                row.append(float((chosen & (goal > 0)).sum() / (chosen | (goal > 0)).sum()))
            overlaps.append(row)
        merged = torch.stack(list(maps[i, : count[i]])).amax(0) if count[i] else torch.zeros(8, 9)
        unions.append(ap(merged, torch.stack(goals).amax(0)))
    values, levels = np.float32(overlaps), np.float32([0.05 * i for i in range(21)])
    areas = np.trapezoid((values[None] >= levels[:, None, None]).mean(1), levels, axis=0)
    assert got["cap"] == pytest.approx(np.mean(aps))
    assert got["piap"] == pytest.approx(np.mean(unions))
    assert got["auc"] == pytest.approx(areas.max(), abs=1e-6)
    for at in (0.1, 0.3, 0.5):
        assert got[f"ciou@{100 * at:.0f}"] == pytest.approx((values[:, areas.argmax()] >= np.float32(at)).mean())


def test_a_source_that_is_not_answered_is_empty_in_every_mixture_protocol() -> None:
    """A map of zeros was a full frame where it was cut at its own median."""
    truth = torch.zeros(1, 2, 8, 16)
    truth[:, 0, :7, :8] = truth[:, 1, :7, 8:] = 1  # nearly half of the row each: a full frame has cIoU 0.44
    nobody = answer(torch.zeros(1, 2, 8, 16), label=torch.tensor([[-1, -1]]))
    batch = make(truth, class_id=torch.tensor([[4, 5]]))
    for name in ("multi/acl", "multi/sources", "multi/tvsl"):
        got = score(name, nobody, batch)
        assert got["ciou@10"] == got["ciou@30"] == 0
        assert got["cap"] == pytest.approx(56 / 128)  # the AP of a constant is its share of true pixels
    single = truth.amax(1, keepdim=True)
    assert score("single/tvsl", torch.zeros(1, 1, 8, 16), single)["iou@30"] == 0
    full = answer(torch.ones(1, 1, 8, 16))
    assert score("multi/sources", full, truth)["ciou@30"] == 1  # a full answer is a full prediction
    assert score("single/tvsl", full, single)["iou@50"] == 1
    sharp = torch.zeros(1, 2, 8, 16)
    sharp[:, 0, :7, :8] = sharp[:, 1, :7, 8:] = 0.2  # 0 on more than half of its pixels: only the others are predicted
    assert score("multi/sources", sharp, truth)["ciou@50"] == 1


def test_eight_sources_are_paired_in_no_time() -> None:
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(8, generator=rng)
    truth = torch.eye(8).view(1, 8, 8, 1).expand(3, 8, 8, 4)
    start = time.perf_counter()
    got = score("multi/acl", truth[:, order], truth)
    assert got["cap"] == got["ciou@50"] == 1
    assert score("multi/sources", truth[:, order], truth)["piap"] == 1
    fewer = score("multi/acl", truth[:, order[:6]], truth)
    assert fewer["ciou@50"] == 6 / 8
    assert fewer["cap"] == pytest.approx((6 + 2 / 8) / 8)
    assert time.perf_counter() - start < 10  # 40,320 orders of 8 maps, tried in turn, would take minutes
    with pytest.raises(ValueError, match="a sample has 9 sources; at most 8"):
        score("multi/acl", torch.ones(1, 9, 4, 4), torch.ones(1, 9, 4, 4))


def test_semantic_maps_are_painted_with_the_answered_class() -> None:
    truth = torch.zeros(1, 1, 2, 4)
    truth[..., :2] = 1
    semantic = torch.zeros(1, 2, 4, dtype=torch.int64)
    semantic[..., :2] = 5
    batch = make(truth, semantic=semantic)
    heatmap = torch.zeros(1, 1, 2, 4)
    heatmap[..., :3] = 0.8
    got = score("avss17/official", answer(heatmap, label=torch.tensor([[4]])), batch)
    # class 5: 4 of 6 pixels; background 2 of 4; fifteen classes never seen
    assert got["miou"] == pytest.approx((4 / 6 + 2 / 4) / 17)
    seen = score("avss17/seen", answer(heatmap, label=torch.tensor([[4]])), batch)
    assert seen["miou"] == pytest.approx((4 / 6 + 2 / 4) / 2)
    wrong = score("avss17/seen", answer(heatmap, label=torch.tensor([[7]])), batch)
    assert wrong["miou"] == pytest.approx((2 / 4) / 3)
    with pytest.raises(ValueError, match=r"needs Localization.label"):
        score("avss17/official", heatmap, batch)


def test_universal_threshold_is_chosen_on_positives_and_negatives() -> None:
    truth = torch.zeros(2, 1, 1, 10)
    truth[0, ..., :5] = 1
    heatmap = torch.zeros(2, 1, 1, 10)
    heatmap[0, ..., :5] = 0.8
    heatmap[0, ..., 5:] = 0.3
    heatmap[1] = 0.6  # what is heard without a source
    batch = make(truth, sounding=torch.tensor([True, False]), negative=["", "noise"])
    values = {f"universal:{c}": v for c, v in UNIVERSAL.function(Scored(answer(heatmap), batch)).items()}
    samples = values | identities(batch, partial(hashes, device=batch.device))
    samples = {k: v.reshape(2, -1).double() for k, v in samples.items()}
    chosen = chosen_threshold({"val": samples})
    assert chosen is not None
    assert chosen["threshold"] == pytest.approx(0.61)  # the lowest above the negative's 0.6
    got = summarise_universal(samples, chosen["place"])
    assert (got["iou"], got["ciou"], got["fpr"]) == (pytest.approx(1), 1, 0)
    with pytest.raises(ValueError, match="hold no negatives"):
        chosen_threshold({"val": {k: v[:1] for k, v in samples.items()}})


def scenes(name: str, n: int) -> tuple[Localization, AVBatch]:
    """Random answers and truths that fit a protocol; some truths are empty."""
    rng = torch.Generator().manual_seed(n)
    width = 24 if name.startswith("multi/noprior") else 12
    truth = (torch.rand(n, 2, 12, width, generator=rng) > 0.7).float()
    truth[1:2] = 0
    batch = make(
        truth,
        semantic=torch.randint(0, 17, (n, 12, 12), generator=rng),
        class_id=torch.randint(0, 16, (n, 2), generator=rng),
        sounding=torch.arange(n) % 3 != 1,
        negative=["" if i % 3 != 1 else "noise" for i in range(n)],
        group=[f"g{i // 2}" for i in range(n)],
        group_size=[min(2, n - i // 2 * 2) for i in range(n)],
    )
    batch.key = [f"clip{i // 3}.f{i % 3}" for i in range(n)]
    maps = torch.rand(n, 2, 6, width // 2, generator=rng)
    return Localization(maps, torch.rand(n, 2, generator=rng), batch.class_id), batch


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("n", [1, 7, 16])
def test_any_share_of_the_work_gives_the_same_numbers(name: str, n: int) -> None:
    """1 to 4 processes over uneven shares, one of them empty; what is summed is what `PerSample` keeps."""
    given, batch = scenes(name, n)
    whole = protocol(name).summary(columns([name], given, batch))
    measures = protocol(name).measures
    widths = {f"{m.name}:{c}": k for m in measures for c, k in m.columns.items()} | dict(IDENTITIES)
    rng = np.random.default_rng(n)
    for processes in (1, 2, 3, 4):
        owner = rng.integers(0, max(1, processes - 1), n)  # the last process meets nothing
        parts = []
        for p in range(processes):
            metric = PerSample(n, widths)
            for rows in np.array_split(rng.permutation(np.flatnonzero(owner == p)), 2):
                if len(rows):
                    part, said = batch.take(rows.tolist()), Localization(given.heatmap[rows], given.confidence[rows])
                    said.label = None if given.label is None else given.label[rows]
                    values = identities(part, partial(hashes, device=part.device))
                    for m in measures:
                        values |= {f"{m.name}:{c}": v for c, v in m.function(Scored(said, part)).items()}
                    metric.update(part.index, **values)
            parts.append(metric)
        joined = parts[0]
        for other in parts[1:]:
            for state in ("values", "seen", "unread"):
                setattr(joined, state, getattr(joined, state) + getattr(other, state))
        joined._update_count = 1
        assert joined.seen.tolist() == [1] * n
        got = protocol(name).summary(joined.table())
        assert repr(got) == repr(whole)  # to the last digit, NaN included


def test_every_benchmark_names_existing_protocols() -> None:
    for bench in [*BENCHMARKS.values(), benchmark("my own set")]:
        name, metric = bench.primary
        assert name in bench.protocols
        for each in bench.protocols:
            got = score(each, *scenes(each, 6))
            assert each != name or metric in got or metric == "miou_positive"


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(ProtocolError, match=r"no protocol 'vggss/top5'\. Did you mean vggss/top50"):
        benchmark("vggss", ["vggss/top5"])
    assert benchmark("vggss", ["vggss/lvs"]).primary == ("vggss/lvs", "ciou")


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
