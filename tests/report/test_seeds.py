from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from avloc.report.curves import plots_of, svg
from avloc.report.intervals import Bounds, Statistic, interval, over_seeds
from avloc.report.results import read_run
from avloc.report.seeds import Seeds, with_seeds
from avloc.report.tables import compare, paper_table, report, to_frame
from tests.report.fabricated import entry, per_sample, results, top50

CONFIG = {"data": {"train": "vggsound"}, "model": {"lr": 1e-4}, "trainer": {"max_epochs": 2}}


def run_folder(folder: Path, overlap: np.ndarray, seed: int | None, name: str = "souple", **config) -> Path:
    """A tested run with one cIoU a sample, which with its sound shuffled overlaps by half of that."""
    rows = {"model": overlap, "shuffled sound": overlap / 2, "centre box": np.full(len(overlap), 0.45)}
    sets = {
        "vggss": entry({r: top50(v) for r, v in rows.items()}, ("vggss/top50", "ciou"), len(overlap), "vggss"),
    }
    keys = [f"clip{i}" for i in range(len(overlap))]
    per_sample(folder, {("vggss", row): {"key": keys, "top50:ciou": v[:, None]} for row, v in rows.items()})
    told = CONFIG | {"seed_everything": seed, "ckpt_path": None if seed else "best.ckpt"} | config
    return results(folder, sets, experiment=name, seed=seed, config=told)


def seeds(tmp_path: Path, name: str, shares: list[float], size: int = 400) -> list[Path]:
    """A run for each share of samples that are found, the found ones always the first."""
    return [
        run_folder(tmp_path / name / f"version_{s}", np.where(np.arange(size) < round(share * size), 0.9, 0.1), s, name)
        for s, share in enumerate(shares)
    ]


def test_seeds_of_one_experiment_are_a_row_of_means_and_deviations(tmp_path):
    shares = [0.5, 0.55, 0.75]
    runs = with_seeds([read_run(f) for f in seeds(tmp_path, "souple", shares)])
    (table,) = compare(runs)
    assert table.rows[0][0] == "souple (3 seeds)"
    assert table.rows[0][1] == f"60.00 ± {100 * np.std(shares, ddof=1):.2f}"
    assert table.rows[1][:2] == ["souple (3 seeds), shuffled sound", "0.00"]
    assert [row[0] for row in table.rows].count("centre box") == 1
    assert any(note.startswith("± is the standard deviation over seeds") for note in table.notes)
    (table,) = compare(runs, bounds=Bounds())
    assert "souple (3 seeds), ciou of seed 0: 50.00, 1: 55.00, 2: 75.00." in table.findings


def test_other_settings_other_weights_and_repeated_seeds_stand_apart(tmp_path):
    hit = np.full(20, 0.9)
    folders = [
        run_folder(tmp_path / "a" / "v0", hit, 0),
        run_folder(tmp_path / "b" / "v1", hit, 1),
        run_folder(tmp_path / "c" / "v2", hit, 1, trainer={"max_epochs": 2, "logger": None, "default_root_dir": "x"}),
        run_folder(tmp_path / "d" / "v3", hit, 2, model={"lr": 1e-3}),
        run_folder(tmp_path / "e" / "v4", hit, 3, name="other"),
        run_folder(tmp_path / "f" / "v5", hit, None),
        run_folder(tmp_path / "g" / "v6", hit, 4, data={"train": None}),
    ]
    runs = with_seeds([read_run(f) for f in folders])
    names = [(run.name, run.folder.name) for run in runs]
    # The repeated seed 1 of b stands alone; d, e, f and g differ in more than the seed, or have none.
    assert names[0] == ("souple (2 seeds)", "v0")
    assert [folder for _, folder in names[1:]] == ["v1", "v3", "v4", "v5", "v6"]
    assert isinstance(runs[0], Seeds)
    assert [m.folder.name for m in runs[0].members] == ["v0", "v2"]
    assert [m.name for m in runs[0].members] == ["souple, seed 0", "souple, seed 1"]
    about = json.loads((folders[1] / "run.json").read_text())
    (folders[1] / "run.json").write_text(json.dumps(about | {"seed": 5, "weights": {"beats": {"sha256": "other"}}}))
    assert len(with_seeds([read_run(f) for f in folders[:2]])) == 2


def test_number_that_a_seed_lacks_is_left_out(tmp_path):
    folders = seeds(tmp_path, "souple", [0.5, 0.6])
    content = json.loads((folders[1] / "results.json").read_text())
    content["sets"]["vggss"]["rows"]["model"]["vggss/top50"]["auc"] = None
    (folders[1] / "results.json").write_text(json.dumps(content))
    (table,) = compare(with_seeds([read_run(f) for f in folders]))
    assert table.rows[0][table.columns.index("auc")] == ""


def drawn(count: int, seed_sd: float, k: int, seed: int) -> list[Statistic]:
    """k seeds of a normal effect on samples of unit spread that all seeds share."""
    random = np.random.default_rng(seed)
    own = random.normal(size=count)
    each = np.arange(count)
    effects = seed_sd * random.normal(size=k)
    return [Statistic(own + e, np.ones(count), each, each.astype(np.str_)) for e in effects]


def test_interval_over_seeds_covers_the_mean_as_often_as_it_says():
    # True mean 0; the spread of seeds dominates in the first, that of samples in the second.
    for seed_sd, k in ((0.5, 5), (0.02, 5), (0.5, 3)):
        found = [over_seeds(drawn(200, seed_sd, k, s), resamples=300) for s in range(200)]
        covered = np.mean([f.low <= 0 <= f.high for f in found])
        assert 0.89 <= covered <= 1.0, (seed_sd, k)
    # What draws samples alone does not see that there are other seeds.
    blind = [interval(drawn(200, 0.5, 1, s)[0], resamples=300) for s in range(200)]
    assert np.mean([f.low <= 0 <= f.high for f in blind]) < 0.5


def test_interval_over_seeds_is_that_of_a_slow_loop():
    random = np.random.default_rng(3)
    n, k = 60, 4
    cluster = np.arange(n) // 3
    weight = random.integers(1, 4, n).astype(float)
    scores = [weight * random.random(n) for _ in range(k)]
    names = np.arange(n).astype(np.str_)
    found = over_seeds([Statistic(s, weight, cluster, names) for s in scores], resamples=4000)
    centre = np.mean([s.sum() / weight.sum() for s in scores])
    stretch = 3.182446 / 1.959964 * np.sqrt(4 / 3)  # t and z at 97.5 %, by table
    values = []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(cluster == c) for c in random.integers(n // 3, size=n // 3)])
        each = [s[rows].sum() / weight[rows].sum() for s in scores]
        middle = sum(each) / k
        values.append(middle + stretch * (np.mean([each[i] for i in random.integers(k, size=k)]) - middle))
    assert found.value == pytest.approx(centre)
    assert (found.low, found.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.006)


def test_methods_are_compared_over_seeds_and_samples(tmp_path):
    first = [read_run(f) for f in seeds(tmp_path, "souple", [0.6, 0.62, 0.64, 0.66, 0.68])]
    close = [read_run(f) for f in seeds(tmp_path, "acl", [0.5, 0.55, 0.6, 0.65, 0.7])]
    far = [read_run(f) for f in seeds(tmp_path, "gavs", [0.2, 0.21, 0.22, 0.23, 0.24])]
    (table,) = compare(with_seeds([*first, *close, *far]), bounds=Bounds())
    told = [f for f in table.findings if " - " in f]
    assert told[0].startswith("souple (5 seeds) - acl (5 seeds): +4.0 [")
    assert told[0].endswith("points of ciou over seeds and the same 400 samples; the interval holds zero.")
    assert told[1].startswith("souple (5 seeds) - gavs (5 seeds): +42.0 [")
    assert told[1].endswith("samples.")
    (table,) = compare(with_seeds([*first, close[0]]), bounds=Bounds())
    assert any("acl has one seed, whose chance the interval leaves out" in f for f in table.findings)


def test_gain_over_a_control_is_taken_seed_by_seed(tmp_path):
    runs = with_seeds([read_run(f) for f in seeds(tmp_path, "souple", [0.5, 0.5, 0.5])])
    (table,) = compare(runs, bounds=Bounds())
    single = compare([read_run(seeds(tmp_path, "souple", [0.5])[0])], bounds=Bounds())[0]
    # Seeds that do not differ add nothing to the spread of the samples.
    assert table.rows[0][-1] == single.rows[0][-1].replace("souple", "souple (3 seeds)")


def test_page_plots_every_seed_and_files_hold_each(tmp_path):
    folders = [*seeds(tmp_path, "souple", [0.6, 0.7]), *seeds(tmp_path, "acl", [0.5])]
    report(folders, tmp_path / "out", console=Console(file=io.StringIO()))
    assert "60.00, 1: 70.00" in (tmp_path / "out" / "report.md").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<span class="number">65.00 ± 7.07</span>' in page
    assert "ciou of each seed" in page
    frame = pd.read_csv(tmp_path / "out" / "report.csv")
    own = frame[(frame.row == "model") & (frame.metric == "ciou")].set_index("experiment")
    assert own["value"].to_dict() == pytest.approx(
        {"souple (2 seeds)": 0.65, "souple, seed 0": 0.6, "souple, seed 1": 0.7, "acl": 0.5}
    )
    assert own["sd"]["souple (2 seeds)"] == pytest.approx(np.sqrt(0.005))
    runs = with_seeds([read_run(f) for f in folders])
    dots, curve = plots_of("vggss", runs)[:2]
    assert [c.y for c in dots.curves] == [[0.6, 0.7], [0.5]]
    assert {x for c in dots.curves for x in c.x} == {0.25, 0.75}
    assert curve.curves[0].y[10] == pytest.approx(0.65), "the mean of the seeds' success at 0.5"
    assert "Samples found" not in svg(dots, "a")
    assert not to_frame(runs).empty


def test_apart_gives_every_run_its_row(tmp_path):
    folders = seeds(tmp_path, "souple", [0.6, 0.7])
    (table,) = report(folders, seeds="apart", console=Console(file=io.StringIO()))
    assert [row[0] for kind, row in zip(table.kinds, table.rows, strict=True) if kind == "own"] == [
        "souple [version_0]",
        "souple [version_1]",
    ]


def test_one_seed_says_what_it_cannot_tell(tmp_path):
    (folder,) = seeds(tmp_path, "souple", [0.6])
    (table,) = compare([read_run(folder)])
    (note,) = table.notes
    assert note.startswith(
        "One run each (souple; seed 0): brackets tell what other test samples would change, not what"
    )
    untrained = run_folder(tmp_path / "b", np.ones(4), 0, data={"train": None})
    assert compare([read_run(untrained)])[0].notes == []


def test_seeds_stand_in_a_paper_s_table(tmp_path):
    row = {"paper": "souple", "table": "1", "method": "SOUPLE", "variant": "ctx=4, 20 epochs"}
    folders = seeds(tmp_path, "souple", [0.6, 0.7])
    for folder in folders:
        about = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(about | {"reproduces": row}))
        scored = (folder / "results.json").read_text()  # by the protocol that the printed value names
        (folder / "results.json").write_text(scored.replace("vggss/top50", "vggss/acl"))
    table = paper_table(with_seeds([read_run(f) for f in folders]), "souple", "1")
    names = [r[0] for r in table.rows]
    at = names.index("SOUPLE (ctx=4, 20 epochs)")
    assert table.rows[at + 1][:2] == ["souple (2 seeds)", "65.00 ± 7.07"]
    assert table.rows[at + 2][:2] == ["souple (2 seeds) - SOUPLE (ctx=4, 20 epochs)", "+11.79"]
