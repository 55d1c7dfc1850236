"""No circle of imports, and none upward: the floors of ARCHITECTURE.md hold."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def modules() -> dict[str, Path]:
    paths = [*ROOT.glob("avloc/**/*.py"), *ROOT.glob("data_prep/**/*.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The project's modules that a file names in an import, inside of functions too."""
    named: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            named += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
    found = set()
    for name in named:
        while name and name not in known:
            name = name.rpartition(".")[0]
        if name:
            found.add(name)
    return found


def floors() -> dict[str, int]:
    """Module prefix to floor, counted from the bottom, from the page's table."""
    table = (ROOT / "ARCHITECTURE.md").read_text().partition("## Floors")[2].partition("## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {prefix: number for number, row in enumerate(rows) for prefix in re.findall(r"`([\w.]+)`", row)}


def floor_of(module: str, known: dict[str, int]) -> int:
    name = module
    while name not in known:
        name = name.rpartition(".")[0]
        assert name not in ("", "avloc"), f"ARCHITECTURE.md gives {module} no floor"
    return known[name]


def test_no_import_goes_up() -> None:
    known, levels = modules(), floors()
    assert len(known) > 100
    assert len(set(levels.values())) > 8
    up = [
        f"{module} imports {other}"
        for module, path in known.items()
        for other in imports(path, known)
        if floor_of(other, levels) > floor_of(module, levels)
    ]
    assert not up, "\n".join(up)


def test_no_circle() -> None:
    known = modules()
    # raises CycleError, which names the circle
    list(TopologicalSorter({m: imports(p, known) - {m} for m, p in known.items()}).static_order())


def test_networks_and_losses_know_no_lightning() -> None:
    for path in [*ROOT.glob("avloc/methods/**/network.py"), *ROOT.glob("avloc/methods/**/losses.py")]:
        assert not re.search(r"^\s*(from|import) (lightning|pytorch_lightning)\b", path.read_text(), re.MULTILINE), path


def test_the_walker_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("def f():\n    from avloc.cli import main\n    import avloc.types as t\n")
    assert imports(file, modules()) == {"avloc.cli", "avloc.types"}
