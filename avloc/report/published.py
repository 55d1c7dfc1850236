"""The papers' own numbers, as printed, next to which a run's numbers are laid.

One YAML per paper in ``avloc/report/published``; their header comments explain the fields. Values are kept as
strings, so that ``84.80`` stays ``84.80``. Numbers of one name are not the same number: every value says which protocol
and metric of this suite it may be compared with, or why none is known.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "Paper",
    "PublishedError",
    "Reference",
    "Row",
    "Table",
    "Unreached",
    "Value",
    "alike",
    "comparisons",
    "find",
    "find_table",
    "load",
    "papers",
    "quoted",
    "register",
    "told_comparisons",
    "unreached",
]

FOLDER = Path(__file__).parent / "published"
EXCUSES = Path(__file__).parent / "unreached.yaml"
LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # leaves every scalar a string


class PublishedError(LookupError):
    """No such paper, table or row; the message lists those that exist."""


@dataclass(frozen=True)
class Reference:
    """Where a published row stands: the arguments of `find`."""

    paper: str
    table: str
    method: str
    variant: str | None = None
    ogl: bool = False


@dataclass(frozen=True)
class Value:
    """One printed cell.

    Attributes:
        benchmark: test set, e.g. ``vggss``.
        metric: e.g. ``ciou``.
        printed: the digits as printed.
        unit: ``percent`` or ``fraction``.
        threshold: overlap at which a sample counts as a success, as printed; None where there is none.
        protocol, measured: the protocol and its metric that it may be compared with; "" where none is known.
        reason: why none is known, else "".
    """

    benchmark: str
    metric: str
    printed: str
    unit: str
    threshold: str | None
    protocol: str = ""
    measured: str = ""
    reason: str = ""

    @property
    def percent(self) -> str:
        """The printed digits in percent: ``0.879`` becomes ``87.9``."""
        return self.printed if self.unit == "percent" else str(Decimal(self.printed).scaleb(2))

    @property
    def fraction(self) -> float:
        return float(Decimal(self.percent).scaleb(-2))


@dataclass(frozen=True)
class Row:
    """One row of a paper's table.

    Attributes:
        method, variant: what was measured; ``variant`` is None where the paper names none.
        group: ``prior``, ``baseline``, ``ours`` or ``ablation``.
        flags: ``ogl``, ``oracle``, ``ours``, ``zero_shot``; None where the paper does not say.
        trained_on: training data, None where the paper does not say.
        values: the row's cells, in the paper's order.
        doubts: what could not be taken at face value about this row or its whole table.
    """

    method: str
    variant: str | None
    group: str
    flags: dict[str, bool | None]
    trained_on: str | None
    values: tuple[Value, ...]
    doubts: tuple[str, ...]

    def value(self, benchmark: str, metric: str) -> Value | None:
        """The cell of a benchmark and a metric; None where the paper leaves it empty."""
        return next((v for v in self.values if (v.benchmark, v.metric) == (benchmark, metric)), None)

    def comparable(self, benchmark: str, protocol: str, measured: str) -> Value | None:
        """The cell that a protocol's metric on a benchmark may be compared with; None where there is none."""
        wanted = (benchmark, protocol, measured)
        return next((v for v in self.values if v.protocol and (v.benchmark, v.protocol, v.measured) == wanted), None)

    @property
    def name(self) -> str:
        """Method, variant and ``+ OGL`` in one line."""
        name = f"{self.method} ({self.variant})" if self.variant else self.method
        return f"{name} + OGL" if self.flags["ogl"] else name


@dataclass(frozen=True)
class Table:
    """One table of a paper.

    Attributes:
        id: its number as printed.
        caption: what it shows.
        benchmarks: test sets, in the paper's order.
        rows: as printed; a row may stand in several blocks.
        doubts: what could not be taken at face value about any of its rows.
    """

    id: str
    caption: str
    benchmarks: tuple[str, ...]
    rows: tuple[Row, ...]
    doubts: tuple[str, ...]

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(benchmark, metric) of every column, the benchmarks in the paper's order."""
        found = dict.fromkeys((v.benchmark, v.metric) for row in self.rows for v in row.values)
        return sorted(found, key=lambda column: self.benchmarks.index(column[0]))


@dataclass(frozen=True)
class Paper:
    """A paper and its result tables; ``year`` as printed."""

    key: str
    title: str
    authors: str
    venue: str | None
    year: str | None
    tables: tuple[Table, ...]


ADDED: dict[str, Path] = {}
"""Papers of other people's packages: key to its YAML."""


def papers() -> list[str]:
    """Keys of the papers whose numbers are here."""
    return sorted({path.stem for path in FOLDER.glob("*.yaml")} | ADDED.keys())


def register(path: Path | str) -> None:
    """Add a paper of one's own: a YAML written like those of ``avloc/report/published``, named by the paper's key.

    Raises:
        PublishedError: there is no such file, it is no such YAML, or another paper has the key.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise PublishedError(f"There is no {path} with published numbers.")
    if ADDED.get(path.stem, path) != path or (FOLDER / path.name).is_file():
        raise PublishedError(f"There is a paper {path.stem!r} already. Name {path} by another key.")
    ADDED[path.stem] = path
    all_rows.cache_clear()
    try:
        load(path.stem)
    except (KeyError, TypeError, AttributeError, yaml.YAMLError) as e:
        del ADDED[path.stem]
        raise PublishedError(f"{path} is not written like the papers in {FOLDER} ({type(e).__name__}: {e}).") from e
    except PublishedError:
        del ADDED[path.stem]
        raise


@cache
def load(paper: str) -> Paper:
    """All tables of a paper.

    Raises:
        PublishedError: there is no such paper, or a value neither names a protocol nor says why it has none.
    """
    path = ADDED.get(paper, FOLDER / f"{paper}.yaml")
    if paper not in papers():
        raise PublishedError(f"No published numbers for paper {paper!r}; there are {', '.join(papers())}.")
    content = yaml.load(path.read_text(), LOADER)
    about = content["paper"]
    tables = tuple(read_table(table, content["doubts"], content.get("compare", [])) for table in content["tables"])
    venue, year = nullable(about["venue"]), nullable(about["year"])
    return Paper(about["key"], about["title"], about["authors"], venue, year, tables)


def comparisons() -> list[tuple[str, str, Row, Value]]:
    """Every value of every paper: paper, table, row, value."""
    return [
        (paper, table.id, row, value)
        for paper in papers()
        for table in load(paper).tables
        for row in table.rows
        for value in row.values
    ]


def told_comparisons() -> str:
    """How many published values may be compared with a number of this suite, by paper and protocol, and how many may
    not, by reason."""
    every = comparisons()
    lines = []
    for paper in papers():
        mine = [value for p, _, _, value in every if p == paper]
        known = Counter(value.protocol for value in mine if value.protocol)
        lines.append(f"{paper}: {sum(known.values())} of {len(mine)} values are compared")
        lines += [f"  {count:5} by {protocol}" for protocol, count in sorted(known.items())]
        unknown = Counter(value.reason for value in mine if not value.protocol)
        lines += [f"  {count:5} not: {reason}" for reason, count in unknown.most_common()]
    compared = sum(bool(value.protocol) for *_, value in every)
    return "\n".join(
        [*lines, f"in all {compared} of {len(every)} values are compared, {len(every) - compared} are not"]
    )


def find_table(paper: str, table: str) -> Table:
    """A paper's table with one row per method, which holds the cells of all blocks in which it is printed.

    Raises:
        PublishedError: there is no such paper or table; the message lists those that exist.
    """
    tables = {t.id: t for t in load(paper).tables}
    if str(table) not in tables:
        raise PublishedError(f"Paper {paper!r} has no table {table!r}; there are {', '.join(tables)}.")
    found = tables[str(table)]
    blocks: dict[tuple[str, str | None, bool], list[Row]] = {}
    for row in found.rows:
        blocks.setdefault((row.method, row.variant, bool(row.flags["ogl"])), []).append(row)
    rows = tuple(
        replace(
            same[0],
            values=tuple(v for r in same for v in r.values),
            doubts=tuple(dict.fromkeys(d for r in same for d in r.doubts)),
        )
        for same in blocks.values()
    )
    return replace(found, rows=rows)


def find(paper: str, table: str, method: str, variant: str | None = None, ogl: bool = False) -> Row:
    """One row of a paper's table, with the cells of all blocks in which the table is printed.

    Args:
        paper: key, e.g. ``souple``.
        table: its number as printed, e.g. ``"1"``.
        method, variant: as printed in that table.
        ogl: the row with object-guided refinement.

    Raises:
        PublishedError: there is no such row; the message lists the table's rows.
    """
    rows = find_table(paper, table).rows
    for row in rows:
        if (row.method, row.variant, bool(row.flags["ogl"])) == (method, variant, ogl):
            return row
    names = "; ".join(row.name for row in rows)
    wanted = f"{method} ({variant})" if variant else method
    raise PublishedError(f"Table {table} of {paper!r} has no row {wanted!r} with ogl={ogl}; its rows are: {names}.")


@dataclass(frozen=True)
class Unreached:
    """Cells of the suite's own methods that no experiment measures.

    Attributes:
        paper, table, method, variant, ogl: the row, as in `find`.
        benchmarks: test sets whose cells are meant, in the paper's order.
        why: a sentence.
    """

    paper: str
    table: str
    method: str
    variant: str | None
    benchmarks: tuple[str, ...]
    why: str
    ogl: bool = False

    @property
    def name(self) -> str:
        """As `Row.name`."""
        return find(self.paper, self.table, self.method, self.variant, self.ogl).name


@cache
def unreached() -> tuple[Unreached, ...]:
    """The published rows of the suite's methods that no experiment measures, and why (``unreached.yaml``).

    Raises:
        PublishedError: one of them is no row, or a set has no cell in it.
    """
    found = []
    for entry in yaml.load(EXCUSES.read_text(), LOADER)["rows"]:
        variant = nullable(entry.get("variant", "null"))
        ogl = entry.get("ogl") == "true"
        row = find(entry["paper"], entry["table"], entry["method"], variant, ogl)
        of_row = tuple(dict.fromkeys(v.benchmark for v in row.values))
        named = tuple(entry.get("benchmarks", of_row))
        if strange := set(named) - set(of_row):
            raise PublishedError(f"unreached.yaml: {row.name} has no number on {', '.join(sorted(strange))}.")
        found.append(Unreached(entry["paper"], entry["table"], row.method, row.variant, named, entry["why"], ogl))
    return tuple(found)


@cache
def quoted() -> frozenset[str]:
    """The methods that the suite does not have: their rows are only quoted (``unreached.yaml``)."""
    return frozenset(yaml.load(EXCUSES.read_text(), LOADER)["quoted"])


Place = tuple[str, str]
"""Paper and table."""


def alike(paper: str, table: str, row: Row) -> dict[Place, Row]:
    """Every row that prints the same model as this one, by (paper, table), this one first.

    A paper prints one model under several names: its main result is a row of each of its ablations. Two rows are the
    same model when they have the same method, training data and use of OGL and agree on every cell that both print:
    on two cells or more, or on none but under one name in one paper. Two rows of ablations are not joined by their
    cells alone, for neighbours in an ablation may agree by accident.
    """
    start = (paper, str(table), row)
    found, waiting = [start], [start]
    while waiting:
        here = waiting.pop()
        new = [other for other in all_rows().get(row.method, ()) if other not in found and same_model(here, other)]
        found += new
        waiting += new
    order = sorted(found, key=lambda f: (f != start, f[0] != paper))
    places: dict[Place, Row] = {}
    for where in order:
        places.setdefault(where[:2], where[2])
    return places


@cache
def all_rows() -> dict[str, list[tuple[str, str, Row]]]:
    """Method to its (paper, table, row) in all papers."""
    found: dict[str, list[tuple[str, str, Row]]] = {}
    for paper in papers():
        for table in load(paper).tables:
            for row in find_table(paper, table.id).rows:
                found.setdefault(row.method, []).append((paper, table.id, row))
    return found


def same_model(first: tuple[str, str, Row], second: tuple[str, str, Row]) -> bool:
    (paper, table, a), (other_paper, other_table, b) = first, second
    trained, other_trained = a.trained_on or "", b.trained_on or ""
    if (paper, table) == (other_paper, other_table) or bool(a.flags["ogl"]) != bool(b.flags["ogl"]):
        return False
    if trained not in other_trained and other_trained not in trained:
        return False
    shared = [(v, w) for v in a.values if (w := b.value(v.benchmark, v.metric)) is not None]
    if not all(agree(v, w) for v, w in shared):
        return False
    if paper == other_paper and a.variant == b.variant:
        return True
    return len(shared) > 1 and not a.group == b.group == "ablation"


def agree(a: Value, b: Value) -> bool:
    """Whether two cells print one number, to the digits of the shorter one."""
    digits = min(-int(Decimal(v.percent).as_tuple().exponent) for v in (a, b))
    return round(Decimal(a.percent), digits) == round(Decimal(b.percent), digits)


def read_table(table: dict[str, Any], doubts: list[dict[str, str]], compare: list[dict[str, Any]]) -> Table:
    mine = [d for d in doubts if concerns_table(d["table"], table["id"])]
    names = [n for r in table["rows"] for n in (r["method"], nullable(r["variant"])) if n]
    rules = [rule for rule in compare if allows(rule, "table", table["id"])]
    rows = tuple(read_row(row, table.get("trained_on", "null"), mine, names, rules) for row in table["rows"])
    return Table(table["id"], table["caption"], tuple(table["benchmarks"]), rows, tuple(map(told, mine)))


def read_row(
    row: dict[str, Any], trained_on: str, doubts: list[dict[str, str]], names: list[str], compare: list[dict[str, Any]]
) -> Row:
    own = [n for n in (row["method"], nullable(row["variant"])) if n]
    rules = [rule for rule in compare if all(allows(rule, key, row[key]) for key in ("group", "method"))]
    return Row(
        method=row["method"],
        variant=nullable(row["variant"]),
        group=row["group"],
        flags={k: {"true": True, "false": False, "null": None}[v] for k, v in row["flags"].items()},
        trained_on=nullable(row.get("trained_on", trained_on)),
        values=tuple(read_value(v, rules, row["method"]) for v in row["values"]),
        doubts=tuple(
            told(d)
            for d in doubts
            if any(mentions(d["cell"], n) for n in own) or not any(mentions(d["cell"], n) for n in names)
        ),
    )


def read_value(cell: dict[str, str], compare: list[dict[str, Any]], method: str) -> Value:
    """A cell, with what the first rule that concerns it says of its comparison."""
    about = (cell["benchmark"], cell["metric"], cell["value"], cell["unit"], nullable(cell["threshold"]))
    for rule in compare:
        if all(allows(rule, key, cell[key]) for key in ("benchmark", "metric", "threshold")):
            if "no" in rule:
                return Value(*about, reason=rule["no"])
            if "protocol" in rule:
                return Value(*about, rule["protocol"], rule.get("as", cell["metric"]))
            break
    raise PublishedError(
        f"{method}, {cell['benchmark']} {cell['metric']} {cell['value']}: nothing says which protocol this published "
        "value may be compared with. Add a line with protocol: or no: to compare: in its paper's file."
    )


def allows(rule: dict[str, Any], key: str, value: str) -> bool:
    wanted = rule.get(key, value)
    return value in wanted if isinstance(wanted, list) else value == wanted


def told(doubt: dict[str, str]) -> str:
    return f"{doubt['cell']}: {doubt['note']}"


def concerns_table(tables: str, table: str) -> bool:
    """Whether a doubt's ``table`` field ("all", "1, 2", "2 against acl_ssl table 8") names this table."""
    return tables == "all" or table in re.split(r"\s*,\s*", tables.split(" against ")[0])


def mentions(cell: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", cell) is not None


def nullable(text: str) -> str | None:
    return None if text == "null" else text
