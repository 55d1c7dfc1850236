"""The board and its entries: numbers against the runs that they come from, and what is told of bad entries."""

from __future__ import annotations

import json
import re
import statistics
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from avloc import cli
from avloc.report import published
from avloc.report.entries import EntryError, Leaks, entry_of, once, read_entry, schema, write_entry
from avloc.report.intervals import Bounds
from avloc.report.leaderboard import Board, board, leaderboard, leaks_in, over_all, to_frame, to_table
from avloc.report.results import read_run
from tests.report.fabricated import entry, per_sample, results, top50

JUDGED = {"vggss/top50": ("ciou", "map"), "vggss/acl": ("ciou", "test set"), "flickr/acl": ("ciou", "test set")}
GOAL = ("vggss/top50", "ciou")


def values(share: float, n: int = 40, shift: int = 0) -> np.ndarray:
    """cIoU of n samples, of which a share succeeds."""
    return np.array([0.8 if (i * 7 + shift) % n < share * n else 0.2 for i in range(n)])


def run(folder: Path, share: float, seed: int | None = 0, name: str = "mine", shift: int = 0, **about: Any) -> Path:
    """A tested run on vggss, with a control and its answers to other sounds."""
    keys = [f"k{i}" for i in range(40)]
    mine, other = values(share, shift=shift), values(0.1)
    rows = {"model": top50(mine), "shuffled sound": top50(other), "full frame": top50(values(0.05))}
    results(
        folder,
        {"vggss": entry(rows, GOAL, 40, "vggss", notes=["boxes"])},
        experiment=name,
        method="m.Mine",
        seed=seed,
        config={"data": {"train": "vggsound", "test": ["vggss"]}, "model": {"lr": 1}},
        parameters={"trainable": 10, "total": 2_000_000},
        **about,
    )
    per_sample(folder, {("vggss", "model"): {"key": keys, "top50:ciou": mine[:, None]}})
    return folder


def quiet() -> Console:
    return Console(file=StringIO(), width=200, emoji=False)


def laid_out(places: list[Path], **options: Any) -> Board:
    return leaderboard(places, judged=JUDGED, console=quiet(), **{"quote": False} | options)


def test_an_entry_holds_the_runs_numbers_and_their_interval(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", 0.5)
    read, bounds = read_run(folder), Bounds()
    made = entry_of(read, bounds, JUDGED)
    tested = made.sets["vggss"]
    assert tested.rows["model"]["vggss/top50"]["mean_ciou"].value == pytest.approx(values(0.5).mean(), abs=1e-6)
    found, wanted = tested.rows["model"]["vggss/top50"]["ciou"], bounds.of(read, "vggss", GOAL)
    assert wanted is not None
    assert [found.value, found.low, found.high] == pytest.approx([0.5, wanted.low, wanted.high], abs=1e-6)
    assert tested.rows["full frame"]["vggss/top50"].keys() == {"ciou"}  # of a control the headline alone
    assert tested.protocols["vggss/top50"].cut == "map"
    assert made.seed == 0
    path = write_entry(made, tmp_path)
    assert path.stat().st_size < 3000
    assert read_entry(path) == made


def test_a_recipe_is_the_training_and_not_its_seed_test_or_machine(tmp_path: Path) -> None:
    def recipe(**changes: Any) -> str:
        config = {"data": {"train": "vggsound", "test": ["vggss"]}, "model": {"lr": 1}, "seed_everything": 0}
        folder = run(tmp_path / "x", 0.5)
        about = json.loads((folder / "run.json").read_text())
        for key, value in changes.items():
            part, _, name = key.partition("__")
            config[part] = config[part] | {name: value} if name else value  # type: ignore[operator]
        (folder / "run.json").write_text(json.dumps(about | {"config": config}))
        return entry_of(read_run(folder), None, JUDGED).recipe

    own = recipe()
    assert own == recipe(seed_everything=3, data__test=["flickr"], data__root="/elsewhere", data__num_workers=9)
    assert own != recipe(model__lr=2)
    assert own != recipe(data__train="other")


def test_seeds_are_means_with_deviations(tmp_path: Path) -> None:
    shares = [0.4, 0.5, 0.65]
    made = laid_out([run(tmp_path / str(i), s, i, shift=i) for i, s in enumerate(shares)])
    (line,) = [line for line in made.lines if line.kind == "own"]
    (cell,) = line.cells.values()
    assert cell.value == pytest.approx(statistics.mean(shares))
    assert cell.deviation == pytest.approx(statistics.stdev(shares))
    assert cell.low is not None
    assert cell.low < min(shares)
    (heard,) = [line for line in made.lines if line.kind == "heard"]
    assert heard.name == "mine, shuffled sound"
    assert made.controls == (("full frame", ["5.00"]),)
    text = to_table(made).rows[0]
    assert text[:2] == ["mine", "3"]
    assert text[-1].startswith(f"{100 * statistics.mean(shares):.2f} ± {100 * statistics.stdev(shares):.2f} [")


def test_an_interval_over_seeds_adds_their_spread_to_that_of_the_samples() -> None:
    # by hand: t(2) at 97.5 % is 4.302653, the deviation of 0.4, 0.5, 0.6 is 0.1; arms of 0.05 and 0.06
    low, high = over_all([(0.05, 0.06)] * 3, [0.4, 0.5, 0.6])
    seeds = 4.302653 * 0.1 / 3**0.5
    assert low == pytest.approx(0.5 - (0.05**2 + seeds**2) ** 0.5)
    assert high == pytest.approx(0.5 + (0.06**2 + seeds**2) ** 0.5)
    assert over_all([(0.05, 0.06)], [0.4]) == (pytest.approx(0.35), pytest.approx(0.46))
    assert over_all([(0.05, 0.06)], [0.4, 0.5]) == (None, None)  # a seed without an interval


def test_a_published_row_stands_beside_its_run_and_once(tmp_path: Path) -> None:
    row: dict[str, Any] = {"paper": "souple", "table": "1", "method": "SOUPLE", "variant": "ctx=4, 20 epochs"}
    printed = published.find(**row).value("vggss", "ciou")
    assert printed is not None
    rows = {"model": {"vggss/acl": {"ciou": 0.5, "auc": 0.4}}}
    sets = {"vggss": entry(rows, ("vggss/acl", "ciou"), 40, "vggss")}
    mine = results(tmp_path / "a", sets, experiment="mine", reproduces=row)
    made = laid_out([mine], quote=True)
    cells = {line.name: cell for line in made.lines for c, cell in line.cells.items() if c.set == "vggss"}
    assert cells["mine"].difference == pytest.approx(0.5 - float(printed.printed) / 100)
    quoted = [name for name in cells if name != "mine"]
    assert not [name for name in quoted if "ctx=4, 20 epochs" in name]
    assert len(quoted) == len(set(quoted)) > 10
    # prior work was scored by its own evaluators: quoted, but with no difference
    prior = next(cell for name, cell in cells.items() if name.startswith("EZ-VSL, "))
    assert not prior.same
    assert prior.difference is None
    acl = next(cell for name, cell in cells.items() if name.startswith("ACL-SSL (AV alignment), "))
    assert acl.same
    order = [line.cells[made.columns[0]].same for line in made.lines]
    assert order == sorted(order, reverse=True)  # what another rule judged comes last
    frame = to_frame(made).set_index("name")
    assert frame.loc["mine", "published"] == pytest.approx(float(printed.printed) / 100)
    assert frame["value"].isna()[next(n for n in quoted if n.startswith("EZ-VSL, "))]


def test_a_protocol_is_primary_a_rule_or_a_name(tmp_path: Path) -> None:
    numbers = {"ciou": 0.5}
    rows = {"model": {"vggss/top50": numbers, "vggss/acl": {"ciou": 0.6}}}
    sets = {
        "vggss": entry(rows, GOAL, 40, "vggss"),
        "flickr": entry({"model": {"flickr/acl": {"ciou": 0.7}}}, ("flickr/acl", "ciou"), 9, "flickr"),
    }
    folder = results(tmp_path / "a", sets, experiment="mine")

    def found(protocol: str) -> dict[str, float]:
        (line,) = laid_out([folder], protocol=protocol).lines
        return {f"{c.set} {c.protocol}": cell.value for c, cell in line.cells.items()}

    assert found("primary") == {"vggss vggss/top50": 0.5, "flickr flickr/acl": 0.7}
    assert found("acl") == {"vggss vggss/acl": 0.6, "flickr flickr/acl": 0.7}
    assert found("vggss/acl") == {"vggss vggss/acl": 0.6}
    with pytest.raises(EntryError, match=r"scored by 'nosuch'\. They know the protocols flickr/acl, vggss/acl"):
        found("nosuch")


def test_who_chose_the_cut_is_told(tmp_path: Path) -> None:
    rows = {"model": {"vggss/acl": {"ciou": 0.6}, "universal": {"ciou": 0.55, "threshold": 0.3}}}
    sets = {"vggss": entry(rows, ("vggss/acl", "ciou"), 40, "vggss")}
    folder = results(tmp_path / "a", sets, {"threshold": 0.3, "chosen_on": ["val"]}, experiment="mine")
    made = laid_out([folder])
    assert [(c.protocol, c.cut) for c in made.columns] == [("vggss/acl", "test set"), ("universal", "calibration")]
    table = to_table(made)
    assert table.columns[-2] == "vggss/acl ciou, cut: test set"
    assert any("a user of the method could not do" in note for note in table.notes)
    assert "mine: the one threshold is 0.3, chosen on val." in table.notes


def test_the_page_of_entries_is_that_of_their_runs(tmp_path: Path) -> None:
    folders = [run(tmp_path / "a", 0.4, 0), run(tmp_path / "b", 0.6, 1), run(tmp_path / "c", 0.5, 0, "other")]
    laid_out(folders, out=tmp_path / "one")
    again = laid_out([tmp_path / "one" / "entries"], out=tmp_path / "two")
    assert {line.name for line in again.lines} >= {"mine", "other"}
    for kind in ("html", "md", "tex", "csv"):
        assert (tmp_path / "one" / f"leaderboard.{kind}").read_bytes() == (
            tmp_path / "two" / f"leaderboard.{kind}"
        ).read_bytes(), kind
    assert not (tmp_path / "two" / "entries").exists()
    page = (tmp_path / "one" / "leaderboard.html").read_text()
    assert '<table class="sortable">' in page
    assert "aria-sort" in page
    assert "<script src" not in page


def test_names_of_strangers_are_escaped(tmp_path: Path) -> None:
    laid_out([run(tmp_path / "a", 0.4, 0, "<b>x</b> & 5 % | y")], out=tmp_path / "out")
    page, tex, md = ((tmp_path / "out" / f"leaderboard.{kind}").read_text() for kind in ("html", "tex", "md"))
    assert "<b>x" not in page
    assert "&lt;b&gt;x&lt;/b&gt; &amp; 5 % | y" in page
    assert r"<b>x</b> \& 5 \% | y" in tex
    assert r"5 % \| y" in md


def test_what_a_training_list_leaks_is_told(tmp_path: Path) -> None:
    ids = ["-0abcdefghi_000010", "-1abcdefghi_000020", "-2abcdefghi_000030"]
    for name, listed in (("vggsound/vggsound-train", ids[:2]), ("vggss/vggss-test", ids[1:])):
        path = tmp_path / "data" / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(listed))
    counted = leaks_in(tmp_path / "data")
    assert counted("vggsound", "vggss") == Leaks(clips=2, by_clip=1, by_video=1, unchecked=0)
    assert counted("vggsound", "vggss/heard") == counted("vggsound", "vggss")
    assert counted("vggsound", "flickr") is None
    table = to_table(laid_out([run(tmp_path / "a", 0.4)], data=tmp_path / "data"))
    assert table.rows[0][2] == "vggsound: leaks vggss 1 of 2 by video"
    assert table.rows[0][-1].endswith("(1 of 2 clips leak)")
    assert to_table(laid_out([tmp_path / "a"])).rows[0][2] == "vggsound: leaks not checked"


def test_cost_and_size_are_told_where_the_run_knows_them(tmp_path: Path) -> None:
    cost = {"flops": 3e9, "seconds": 0.25, "pictures": 8, "device": "CPU, 1 threads", "precision": "32-true"}
    made = laid_out([run(tmp_path / "a", 0.4, 0, "known", cost=cost), run(tmp_path / "b", 0.5, 0, "unknown")])
    told = {row[0]: row[3:6] for row in to_table(made).rows if row[1]}
    assert told["known"] == ["2.00 (0.00 trained)", "3", "250"]
    assert told["unknown"] == ["2.00 (0.00 trained)", "", ""]
    assert any("CPU, 1 threads, 32-true, 8 pictures at once" in note for note in made.notes)


def broken(path: Path, change: Any) -> str:
    """What is told of an entry behind a change to its JSON, or to its text."""
    text = path.read_text()
    if isinstance(change, dict):
        text = json.dumps(json.loads(text) | change)
    elif callable(change):
        text = change(text)
    bad = path.with_name("bad.json")
    bad.write_text(text)
    with pytest.raises(EntryError) as told:
        read_entry(bad)
    assert "bad.json" in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, r"an entry of version 2, and this avloc reads version 1\. Write it again"),
        ({"schema": "else"}, "no avloc leaderboard entry"),
        ({"stage": "test", "schema": None}, "results.json of a run: name its folder instead"),
        ({"seed": "0"}, "seed: Input should be a valid integer"),
        ({"sets": {}}, "sets: Dictionary should have at least 1 item"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"experiment": "a\nb"}, "experiment: String should match pattern"),
        ({"recipe": "../../x"}, "recipe: String should match pattern"),
        (lambda text: text[:-40], "is damaged"),
        (lambda text: "[" * 5000, "is damaged"),
        (lambda text: text.replace('"low": 0', '"low": 1'), "the interval"),
        (lambda text: text.replace('"value": 0.5', '"value": 50.0'), "is 50, which is no fraction"),
        (lambda text: text.replace('"value": 0.5', '"value": NaN'), "it holds NaN"),
        (lambda text: text.replace('"seed": 0', '"seed": 0, "seed": 1'), "the field 'seed' is there twice"),
        (lambda text: text.replace('"headline": "ciou"', '"headline": "cap"'), "lack its headline 'cap'"),
        (lambda text: text.replace('"primary": "vggss/top50"', '"primary": "x"'), "none of its protocols"),
    ],
)
def test_a_bad_entry_is_told_by_file_thing_and_remedy(tmp_path: Path, change: Any, told: str) -> None:
    path = write_entry(entry_of(read_run(run(tmp_path / "a", 0.5)), Bounds(), JUDGED), tmp_path)
    assert re.search(told, broken(path, change))


def test_a_result_that_is_there_twice_is_told(tmp_path: Path) -> None:
    folders = [run(tmp_path / "a", 0.4), run(tmp_path / "b", 0.5)]
    with pytest.raises(EntryError, match=r"/b and .*/a both hold mine, seed 0 on vggss\. Name one of them"):
        laid_out(folders)
    first = entry_of(read_run(folders[0]), None, JUDGED)
    once([("a", first), ("b", first.model_copy(update={"seed": 1}))])


def test_empty_places_and_absent_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(EntryError, match="Nothing to lay out"):
        laid_out([])
    with pytest.raises(EntryError, match=r"holds neither results\.json nor entries"):
        laid_out([tmp_path])
    with pytest.raises(EntryError, match="does not exist"):
        laid_out([tmp_path / "none.json"])


def test_the_schema_is_json_schema() -> None:
    told = json.loads(schema())
    assert {"schema", "version", "sets"} <= told["properties"].keys()
    assert told["additionalProperties"] is False


def test_two_recipes_of_one_name_are_two_rows(tmp_path: Path) -> None:
    first = entry_of(read_run(run(tmp_path / "a", 0.4)), None, JUDGED)
    second = first.model_copy(update={"recipe": "0123456789ab"})
    names = [line.name for line in board([first, second], quote=False).lines if line.kind == "own"]
    assert sorted(names) == sorted([f"mine [{first.recipe[:6]}]", "mine [012345]"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["leaderboard", str(run(tmp_path / "a", 0.4)), "--no-published", "--out", str(tmp_path / "out")])
    assert "mine" in capsys.readouterr().out
    assert (tmp_path / "out" / "leaderboard.csv").is_file()
    with pytest.raises(SystemExit) as ended:
        cli.main(["leaderboard", str(tmp_path / "none.json")])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("avloc leaderboard: ")
