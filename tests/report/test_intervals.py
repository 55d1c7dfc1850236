from __future__ import annotations

import numpy as np
import pytest

from avloc.report.intervals import Statistic, columns, difference, find_statistic, interval, rescored
from avloc.report.results import SampleFile, Samples
from tests.report.fabricated import per_sample, top50

SWEEP = [0.05 * i for i in range(1, 20)]


def statistic(score, cluster=None, name=None):
    n = len(score)
    cluster = np.arange(n) if cluster is None else np.asarray(cluster)
    name = np.arange(n).astype(str) if name is None else np.asarray(name)
    return Statistic(np.asarray(score, float), np.ones(n), cluster, name)


def samples(values, key=None, **changes):
    n = len(next(iter(values.values())))
    key = np.array([f"clip{i}" for i in range(n)] if key is None else key)
    base = {
        "label": np.array([""] * n),
        "negative": np.array([""] * n),
        "clip": np.unique([k.partition(".")[0] for k in key], return_inverse=True)[1] + 1.0,
        "group": np.zeros(n),
        "group_size": np.ones(n),
        "sounding": np.ones(n, bool),
    }
    return Samples(key=key, values={c: np.asarray(v, float) for c, v in values.items()}, **base | changes)


@pytest.mark.parametrize(("n", "p"), [(5158, 0.49), (4000, 0.85)])
def test_a_proportion_has_the_analytic_interval(n, p):
    hits = np.arange(n) < round(n * p)
    found = interval(statistic(hits))
    share = hits.mean()
    half = 1.96 * np.sqrt(share * (1 - share) / n)
    assert found.value == share
    assert found.low == pytest.approx(share - half, abs=0.1 * half)
    assert found.high == pytest.approx(share + half, abs=0.1 * half)


def test_frames_of_a_clip_count_once():
    clips = np.arange(1000) % 2
    found = interval(statistic(np.repeat(clips, 5), cluster=np.repeat(np.arange(1000), 5)))
    half = 1.96 * 0.5 / np.sqrt(1000)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_clips_of_unequal_length_weigh_as_many_frames_as_they_have():
    random = np.random.default_rng(3)
    length = random.integers(1, 9, 400)
    score = np.repeat(random.random(400), length)
    found = interval(statistic(score, cluster=np.repeat(np.arange(400), length)))
    assert found.value == pytest.approx(score.mean())
    # Delta method for a ratio of two sums over clips.
    per_clip = np.add.reduceat(score, np.r_[0, length.cumsum()[:-1]])
    half = 1.96 * np.sqrt(np.sum((per_clip - score.mean() * length) ** 2)) / length.sum()
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_one_clip_says_nothing_of_the_spread():
    assert interval(statistic([0.1, 0.9], cluster=[0, 0])) is None


def test_equal_runs_differ_by_exactly_nothing_in_any_order():
    score = np.random.default_rng(0).random(300)
    found = difference(statistic(score), statistic(score[::-1], name=np.arange(300)[::-1].astype(str)))
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_paired_interval_is_that_of_the_differences():
    random = np.random.default_rng(1)
    first = random.random(3000)
    second = first - 0.03 + random.normal(0, 0.1, 3000)
    found = difference(statistic(first), statistic(second))
    half = 1.96 * np.std(first - second) / np.sqrt(3000)
    assert found.value == pytest.approx(np.mean(first - second))
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)


def test_other_samples_are_not_paired():
    score = np.ones(3)
    assert difference(statistic(score), statistic(score, name=["0", "1", "3"])) is None
    assert difference(statistic(score), statistic(score[:2])) is None
    twice = statistic(score, name=["0", "0", "1"])
    assert difference(twice, twice) is None


def test_table_numbers_are_found_again():
    values = np.random.default_rng(2).random((200, 1))
    numbers = top50(values[:, 0])["vggss/top50"]
    stored = samples({"adaptive:ciou": values[::-1] ** 2, "top50:ciou": values})
    for metric, value in numbers.items():
        found = find_statistic(stored, "vggss/top50", metric, numbers)
        assert found is not None, metric
        assert found.value == pytest.approx(value, abs=1e-12)
        assert len(found.score) == 200
    hits = find_statistic(stored, "vggss/top50", "ciou", numbers)
    assert (hits.score == (values[:, 0] >= 0.5)).all()


def test_the_threshold_names_the_column_of_a_sweep():
    values = np.tile(np.linspace(0, 1, 40)[:, None], 19)
    values[:, 6] = values[::-1, 6]  # the same mean as every other column
    numbers = {"ciou": 0.5, "threshold": SWEEP[6]}
    found = find_statistic(samples({"sweep:ciou": values}), "vggss/acl", "ciou", numbers)
    assert (found.score == (values[:, 6] >= 0.5)).all()


@pytest.mark.parametrize(("metric", "value"), [("ciou", 0.123), ("fscore", 0.25), ("ap", 0.25), ("ciou", None)])
def test_a_number_that_is_no_mean_of_the_values_is_not_found(metric, value):
    stored = samples({"top50:ciou": np.array([[1.0], [0.0], [0.0], [0.0]])})
    assert find_statistic(stored, "vggss/top50", metric, {metric: value}) is None


def test_mean_over_clips_is_told_from_the_mean_over_frames():
    values = np.array([[1.0], [1.0], [1.0], [0.0]])
    stored = samples({"frames:iou": values}, key=["a.f0", "a.f1", "a.f2", "b.f0"])
    frames = find_statistic(stored, "avs/dataset", "miou", {"miou": 0.75})
    clips = find_statistic(stored, "avs/official", "miou", {"miou": 0.5})
    assert (len(frames.score), len(clips.score)) == (4, 2)
    assert frames.cluster.tolist() == [0, 0, 0, 1]


def test_a_group_succeeds_with_all_of_its_members():
    values = np.array([[0.9], [0.6], [0.9], [0.2], [0.7]])
    stored = samples({"adaptive:ciou": values}, group=np.array([1.0, 1, 2, 2, 0]))
    found = find_statistic(stored, "interactive/is3", "iiou_adap", {"iiou_adap": 0.5})
    assert found.score.tolist() == [1, 0]
    area = ((0.6 // 0.05) * 0.05 + 0.025 + (0.2 // 0.05) * 0.05 + 0.025) / 2
    assert find_statistic(stored, "interactive/is3", "iauc_adap", {"iauc_adap": area}) is not None


def test_a_condition_is_a_part_of_the_samples():
    values = np.array([[0.1], [0.3], [0.8], [0.4]])
    kinds = np.array(["", "noise", "noise", "silence"])
    stored = samples({"frames:share": values}, negative=kinds, sounding=kinds == "")
    found = find_statistic(stored, "robust/avsbench", "fpr_noise", {"fpr_noise": 0.55})
    assert found.weight.tolist() == [0, 1, 1, 0]


def test_sources_that_are_not_there_do_not_count():
    values = np.array([[0.9, 0.2], [0.6, np.nan]])
    stored = samples({"sources:ciou": values, "sources:ap": values})
    found = find_statistic(stored, "multi/tvsl", "ciou", {"ciou": 2 / 3})
    assert found.score.tolist() == [1, 0, 1, 0]
    assert found.weight.tolist() == [1, 1, 1, 0]
    assert found.cluster.tolist() == [0, 0, 1, 1]
    precise = find_statistic(stored, "multi/sources", "cap", {"cap": 1.7 / 3})
    assert precise.score.tolist() == [0.9, 0.2, 0.6, 0]


def test_sources_at_several_thresholds():
    # Two sources of two samples, each cut at two thresholds.
    values = np.array([[0.9, 0.8, 0.2, 0.1], [0.6, 0.5, np.nan, np.nan]])
    stored = samples({"tvsl:ciou": values})
    found = find_statistic(stored, "multi/tvsl", "ciou@30", {"ciou@30": (0.8 + 0.1 + 0.5) / 3})
    assert found.score.tolist() == [0.8, 0.1, 0.5, 0]
    assert found.name.tolist() == ["clip0#0", "clip0#1", "clip1#0", "clip1#1"]


def test_area_of_predicted_share_grows_as_the_share_falls():
    values = np.array([[0.0], [1.0]])
    # At or below each of 21 levels: one of two samples, but both at 1.
    area = 0.5 * 0.95 + 0.05 * 0.75
    assert find_statistic(samples({"pia:pia": values}), "negative/pia", "auc", {"auc": area}) is not None


def test_any_number_can_be_computed_again_on_every_resample():
    values = np.random.default_rng(4).random((400, 1))
    seen = []

    def rescore(names, table):
        assert names == ["p"]
        seen.append(table)
        return {"p": {"median": float(np.median(table["top50:ciou"])), "curve": [0.0]}}

    found = rescored(samples({"top50:ciou": values}), "p", rescore)
    assert list(found) == ["median"]
    bound = found["median"]
    assert bound.value == np.median(values)
    half = 1.96 * 0.5 / np.sqrt(400)  # the median of a uniform density
    assert (bound.high - bound.low) / 2 == pytest.approx(half, rel=0.25)
    assert all(len(np.unique(table["clip"])) == 400 for table in seen), "a clip drawn twice is two clips"


def test_drawn_clips_keep_their_frames_together():
    stored = samples({"frames:iou": np.arange(4.0)[:, None]}, key=["a.f0", "a.f1", "b.f0", "c.f0"])
    table = columns(stored, np.array([0, 1, 0, 1, 3]), np.array([0, 0, 1, 1, 2]))
    clip = table["clip"].tolist()
    assert clip[0] == clip[1] != clip[2] == clip[3] != clip[4]
    assert table["group"].tolist() == [0] * 5
    assert table["frames:iou"][:, 0].tolist() == [0, 1, 0, 1, 3]


def test_parquet_is_read_row_by_row(tmp_path):
    rows = {
        ("vggss", "model"): {
            "key": ["a.f0", "a.f1", "b@noise"],
            "top50:ciou": [[0.1], [0.2], [0.3]],
            "group": [0, 0, 7],
        },
        ("vggss", "noise"): {"key": ["a.f0"], "top50:ciou": [[0.9]]},
        ("avs", "model"): {"key": ["c"], "frames:iou": [[0.5] * 19]},
    }
    rows["vggss", "model"]["negative"] = ["", "", "noise"]
    per_sample(tmp_path, rows)
    file = SampleFile(tmp_path / "per_sample.parquet")
    stored = file.read("vggss", "model")
    assert stored.values["top50:ciou"].tolist() == [[0.1], [0.2], [0.3]]
    assert "frames:iou" not in stored.values
    assert stored.cluster.tolist() == [0, 0, 1]
    assert stored.sounding.tolist() == [True, True, False]
    assert file.read("avs", "model").values["frames:iou"].shape == (1, 19)
    assert file.read("vggss", "full frame") is None
