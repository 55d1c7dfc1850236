from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from rich.console import Console

from avloc.report.curves import plots_of
from avloc.report.keys import KeysError
from avloc.report.panels import jpeg
from avloc.report.results import ResultsError, read_run
from avloc.report.tables import report
from tests.report.fabricated import entry, per_sample, results, top50
from tests.report.test_gallery import kept

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Every element with its attributes, the text, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        last = self.open.pop()
        assert last == tag, f"</{tag}> closes <{last}>"

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]


def run_folder(
    folder: Path, name: str = "a<b>", sets: tuple[str, ...] = ("vggss", "flickr"), pictures: int = 3
) -> Path:
    random = np.random.default_rng(0)
    found, values = {}, {}
    for test in sets:
        overlap = random.random(60)
        rows = {row: top50(overlap * share, test) for row, share in (("model", 1), ("noise", 0.4), ("centre box", 0.5))}
        curve = {"pr_recall": [0.0, 0.5, 1.0], "pr_precision": [1.0, 0.9, 0.2]}
        rows["model"] = rows["model"] | {f"{test}/extended": {"ap": 0.5} | curve}
        found[test] = entry(rows, (f"{test}/top50", "ciou"), 60, test, notes=["<i>a note</i>"])
        shares = (("model", 1.0), ("noise", 0.4), ("centre box", 0.5))
        keys = [f"k{i}" for i in range(60)]
        values |= {(test, row): {"key": keys, "top50:ciou": (overlap * s)[:, None]} for row, s in shares}
    per_sample(folder, values)
    kept(folder, {f"k{i}": i / max(pictures - 1, 1) for i in range(pictures)}, label="dog & cat", sound="s.wav")
    for picture in (folder / "panels").glob("*.jpg"):
        picture.write_bytes(jpeg(np.zeros((8, 20, 3), np.uint8), 8))
    soundfile.write(folder / "panels" / "s.wav", np.zeros(1600), 16000)
    reference = {"paper": "souple", "table": "1", "method": "SOUPLE", "variant": "ctx=4, 20 epochs"}
    return results(folder, found, experiment=name, reproduces=reference, git={"commit": "ab" * 20, "dirty": True})


def written(tmp_path: Path, *folders: Path, **options) -> Page:
    report(list(folders), tmp_path / "out", console=Console(quiet=True), **options)
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    return page


def test_page_stands_alone(tmp_path):
    page = written(tmp_path, run_folder(tmp_path / "a"))
    for tag, attrs in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
    assert "@import" not in page.text
    assert "url(http" not in (tmp_path / "out" / "report.html").read_text()


def test_names_notes_and_numbers_are_escaped_text(tmp_path):
    page = written(tmp_path, run_folder(tmp_path / "a"))
    assert "a<b>" in page.text
    assert "<i>a note</i>" in page.text
    assert "published: SOUPLE (ctx=4, 20 epochs), souple table 1" in page.text
    assert "53.21" in page.text
    assert "ababababab and changes" in page.text


def test_contents_lead_to_the_sets_and_ids_are_unique(tmp_path):
    page = written(tmp_path, run_folder(tmp_path / "a"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids)) > 10
    targets = [a["href"].removeprefix("#") for a in page.all("a")]
    assert len(targets) == 2
    assert set(targets) <= set(ids)
    single = written(tmp_path / "x", run_folder(tmp_path / "b", sets=("vggss",)))
    assert single.all("nav") == []


def test_gallery_can_be_filtered_and_heard(tmp_path):
    page = written(tmp_path, run_folder(tmp_path / "a"), run_folder(tmp_path / "b", "b"))
    figures = [f for f in page.all("figure") if "data-kinds" in f]
    assert [f["data-kinds"] for f in figures] == ["found", "found", "missed"]
    assert {f["data-label"] for f in figures} == {"dog & cat"}
    assert len(page.all("img")) == 6, "both runs' pictures"
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("audio")) == 3
    assert [s["name"] for s in page.all("select")] == ["label", "kind", "order"]
    assert "3 of the 3 samples whose pictures were kept, of 60 in the set" in " ".join(page.text.split())


def test_gallery_tells_what_a_sound_is_heard_as(tmp_path):
    folder = run_folder(tmp_path / "a", sets=("vggss",))
    assert "heard as" not in written(tmp_path, folder).text.lower()
    kept(folder, {"k0": 0.5}, heard_as=[["dog & cat", 0.414], ["bell", -0.2]])
    (folder / "panels" / "k0.jpg").write_bytes(jpeg(np.zeros((8, 20, 3), np.uint8), 8))
    page = written(tmp_path, folder)
    assert "heard as dog & cat 0.41, bell -0.20" in page.text
    assert '"Heard as" names' in page.text


def test_gallery_is_bounded(tmp_path):
    page = written(tmp_path, run_folder(tmp_path / "a", pictures=50))
    assert len(page.all("img")) == 24
    assert "24 of the 50 samples" in " ".join(page.text.split())


def test_paper_table_has_groups_of_columns(tmp_path):
    page = written(tmp_path, run_folder(tmp_path / "a"), paper="souple", table="1")
    spans = [(h["colspan"], h["scope"]) for h in page.all("th") if "colspan" in h]
    assert spans == [("2", "colgroup")] * 2
    assert "Alignment + OGL" in page.text
    assert "flickr: curves and pictures" in page.text


def test_curves_by_hand(tmp_path):
    folder = run_folder(tmp_path / "a", sets=("vggss",))
    success, precise = plots_of("vggss", [read_run(folder)])
    overlap = np.random.default_rng(0).random(60)
    assert [c.label for c in success.curves] == ["a<b>", "a<b>, noise", "centre box"]
    assert success.curves[0].y == [pytest.approx(np.mean(overlap >= 0.05 * i)) for i in range(21)]
    assert success.curves[2].y[10] == np.mean(overlap / 2 >= 0.5)
    assert (precise.curves[0].x, precise.curves[0].y) == ([0.0, 0.5, 1.0], [1.0, 0.9, 0.2])


def test_stored_curves_serve_where_no_samples_were_kept(tmp_path):
    stored = {"success_level": [0.0, 0.5, 1.0], "success_rate": [1.0, 0.4, 0.0]}
    sweep = {"sweep_threshold": [0.1, 0.5, 0.9], "sweep_ciou": [0.2, 0.6, 0.3], "threshold": 0.5}
    rows = {"model": {"p/acl": {"ciou": 0.6} | stored | sweep}}
    run = read_run(results(tmp_path, {"own": entry(rows, ("p/acl", "ciou"), 5)}))
    success, swept = plots_of("own", [run])
    assert success.curves[0].y == [1.0, 0.4, 0.0]
    assert swept.curves[0].y == [0.2, 0.6, 0.3]
    assert swept.curves[0].marked == (0.5, 0.6)


def with_tiles(folder: Path, keys: list[str], **changes) -> Path:
    """The run kept these samples with tiles of their own; "_0" and "_1" show one picture."""
    path = folder / "panels" / "panels.0.json"
    told = json.loads(path.read_text())["samples"][0] | {"set": "vggss", "overlap": 0.6, "sounding": True} | changes
    lines = []
    for i, key in enumerate(keys):
        files = {"true": f"{i}.truth.jpg", "heat": f"{i}.heat.jpg"}
        for file in files.values():
            Image.new("RGB", (12, 12)).save(folder / "panels" / file)
        lines.append(told | files | {"key": key, "index": i, "shows": key.partition("_")[0]})
    path.write_text(json.dumps({"processes": 1, "samples": lines}))
    return folder


def test_chosen_samples_stand_first_with_every_run_beside(tmp_path):
    names = ["k0", "k1", "pic_0", "pic_1"]
    a = with_tiles(run_folder(tmp_path / "a", "<b>a", sets=("vggss",)), names)
    b = with_tiles(run_folder(tmp_path / "b", "b", sets=("vggss",)), names[1:])
    page = written(tmp_path, a, b, keys="k1,k0,pic")
    first = [f for f in page.all("figure") if "data-kinds" in f][:2]
    assert [f["class"] for f in first] == ["beside", "beside"]
    chosen, _, rest = (tmp_path / "out" / "report.html").read_text().partition("</section>")
    part = Page(chosen[chosen.index("<section") :] + "</section>")
    assert [h["scope"] for h in part.all("th")].count("col") == 4
    told = " ".join(part.text.split())
    assert told.index("k1") < told.index("k0") < told.index("pic_0")
    assert "<b>a" in told
    assert len(part.all("img")) == 4 + 4 + 3
    assert part.text.count("no picture kept") == 1
    assert part.all("form") == []
    assert "b kept no picture of k0. Make them: avloc test -c EXPERIMENT --panels.keys k0" in told
    assert "<form" in rest
    pdf = (tmp_path / "out" / "chosen.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") == 2


def test_the_remedy_is_the_command_of_the_very_run(tmp_path):
    folder = run_folder(tmp_path / "it's", "a", sets=("vggss",))
    (folder / "config.yaml").write_text("")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"")
    written(tmp_path, folder, keys="k50")
    page = Page((tmp_path / "out" / "report.html").read_text())
    quoted = str(folder).replace("'", "'\"'\"'")
    assert f"-c '{quoted}/config.yaml' --ckpt_path '{quoted}/checkpoints/best.ckpt' --panels.keys k50" in page.text
    assert not (tmp_path / "out" / "chosen.pdf").exists()


def test_unknown_keys_are_named_with_their_neighbours(tmp_path):
    folder = run_folder(tmp_path / "a")
    with pytest.raises(KeysError, match=r"No run tested nothing_like_it, k55x \(did you mean k55"):
        written(tmp_path, folder, keys="k1,nothing_like_it,k55x")
    with pytest.raises(ResultsError, match="--out"):
        report([folder], keys="k1", console=Console(quiet=True))


def test_sounds_of_one_picture_and_colours_of_sources_in_the_gallery(tmp_path):
    legend = [["<i>dog</i>", "#e69f00"], ["bell", "red; background: url(x)"]]
    folder = with_tiles(run_folder(tmp_path / "a", sets=("vggss",)), ["pic_0", "pic_1", "k1"], sources=legend)
    page = written(tmp_path, folder)
    figures = [f for f in page.all("figure") if "data-kinds" in f]
    assert [f.get("class") for f in figures] == ["beside", None]
    assert {i.get("style") for i in page.all("i")} == {"background: #e69f00"}, "nothing but a colour"
    assert "<i>dog</i>" in page.text
    assert "Where several sources sound" in page.text
    assert "3 of the 3 samples" in " ".join(page.text.split())
