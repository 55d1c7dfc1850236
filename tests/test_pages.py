"""The pages that strangers read: every experiment, file, weight and published number that they name exists."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from avloc.names import known

ROOT = Path(__file__).resolve().parents[1]
METHODS = sorted(ROOT.glob("avloc/methods/*/README.md"))
PAGES = [
    *METHODS,
    ROOT / "data_prep" / "README.md",
    *(ROOT / f"{n}.md" for n in ("README", "CONTRIBUTING", "CHANGELOG")),
]
MODELS = "ezvsl|lvs|slavc|fnac|marginnce|ssltie|alignment|acl_|souple_|gavs|seac|tvsl|tpavi_|audioclip_|wav2clip_"
STEMS = rf"(?:{MODELS}|quickstart|boxes_|clipseg_|zero_shot_|text_query|stored_maps)"
TEXT = {path: path.read_text() for path in PAGES}


def weights() -> set[str]:
    """Weight sources by name, read without torch."""
    return set(re.findall(r'^    "([^"]+)": KnownWeight', (ROOT / "avloc" / "weights.py").read_text(), re.MULTILINE))


@cache
def printed() -> set[str]:
    """Every value of the published tables, as printed."""
    found = set()
    for path in (ROOT / "avloc" / "report" / "published").glob("*.yaml"):
        for table in yaml.load(path.read_text(), yaml.CBaseLoader)["tables"]:
            found |= {value["value"] for row in table["rows"] for value in row["values"]}
    return found


def is_named(stem: str) -> bool:
    return stem in known() or any(re.fullmatch(stem.replace("*", ".*"), name) for name in known())


@pytest.mark.parametrize("page", METHODS, ids=lambda p: p.parent.name)
def test_experiments_exist(page: Path) -> None:
    words = set(re.findall(rf"`({STEMS}[\w*]*)`", TEXT[page])) | set(re.findall(r"EXP=(\w+)|-c (\w+)", TEXT[page]))
    stems = {w for word in words for w in ([word] if isinstance(word, str) else word) if w} - weights()
    golden = {path.stem for path in (ROOT / "tests" / "golden" / "kinds").glob("*.py")}
    stems = {s for s in stems if not any(re.fullmatch(s.replace("*", ".*"), kind) for kind in golden)}
    assert stems, "a page without commands"
    assert not [s for s in sorted(stems) if not is_named(s)]


@pytest.mark.parametrize("page", METHODS, ids=lambda p: p.parent.name)
def test_printed_numbers_are_in_the_published_tables(page: Path) -> None:
    part = TEXT[page].partition("## Published")[2].partition("## Wh")[0]
    numbers = set(re.findall(r"(?<![\w@.-])\d{2}\.\d{1,2}(?![\w.])|(?<![\w@.-])0\.\d{3}\b", part))
    assert len(numbers) >= 6
    assert not sorted(numbers - printed())


def test_links_lead_somewhere() -> None:
    for page, text in TEXT.items():
        for link in re.findall(r"\]\(([\w./-]+\.(?:md|png))\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_nothing_points_outside_the_repository() -> None:
    files = [
        p
        for top in ("avloc", "data_prep", "experiments")
        for p in (ROOT / top).rglob("*")
        if p.suffix in {".py", ".yaml", ".md"}
    ]
    outside = re.compile(r"\bfacts/|\bfact sheet|\.\./shared|/work/")
    assert not [str(p.relative_to(ROOT)) for p in [*files, *PAGES] if outside.search(p.read_text())]
