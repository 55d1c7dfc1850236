"""Entries of a leaderboard: one small JSON a run, to be committed and put together from many people's machines.

An entry holds what a page of all methods and test sets needs, and nothing of the machine that made it::

    {"schema": "avloc leaderboard entry", "version": 1,
     "experiment": "ezvsl", "method": "avloc.methods.two_tower.method.EZVSL", "recipe": "3f0c...", "seed": 0,
     "trained_on": "vggsound_144k", "reproduces": {"paper": "acl_ssl", "table": "1", "method": "EZ-VSL"},
     "parameters": {"trainable": 22872064, "total": 22872064},
     "cost": {"flops": 4.9e9, "seconds": 0.004, "pictures": 8, "device": "...", "precision": "32-true"},
     "code": {"commit": "...", "dirty": false}, "threshold": null,
     "sets": {"vggss": {"samples": 5158, "missing": 0, "whole": true, "benchmark": "vggss", "primary": "vggss/acl",
                        "protocols": {"vggss/acl": {"headline": "ciou", "cut": "test set"}},
                        "rows": {"model": {"vggss/acl": {"ciou": {"value": 0.3596, "low": 0.347, "high": 0.372}}}},
                        "leaks": {"clips": 5158, "by_clip": 0, "by_video": 12, "unchecked": 0}, "notes": []}}}

Rows are those of ``results.json``; the model's own have every number of every protocol, the others each protocol's
headline. Numbers are fractions, lists are left out. ``recipe`` is a digest of everything that the training was told but
its seed: entries of one experiment and recipe are seeds of one method. ``cut`` says who chose where maps are cut:
`Cut`. ``python -c "from avloc.report.entries import schema; print(schema())"`` prints the JSON Schema.

Another layout gets another ``version``, and a reader refuses versions that it does not know.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from avloc.files import complete
from avloc.report.cells import NO_FRACTION, UNIVERSAL
from avloc.report.intervals import Bounds
from avloc.report.results import GUIDED, LOWER_IS_BETTER, MODEL, Run
from avloc.report.seeds import fingerprint, seed_of

__all__ = ["VERSION", "Cut", "Entry", "EntryError", "Leaks", "entry_of", "once", "read_entry", "schema", "write_entry"]

VERSION = 1
KIND = "avloc leaderboard entry"
DIGITS = 6
"""Decimals of a stored number: a ten-thousandth of a percent."""

Cut = Literal["test set", "fixed", "map", "truth", "none", "calibration", "unknown"]
"""Who chose where maps are cut: the test set itself, which no user has; somebody beforehand; each map (its larger
half); the ground truth's area; nobody, since all cuts count; calibration sets. ``unknown``: the protocol is silent."""


class EntryError(ValueError):
    """An entry that is damaged, of another version, or there twice; the message names file, thing and remedy."""


class Strict(BaseModel):
    """Unknown fields are errors: they would be lost silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Share = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""One line: entries are other people's, and a line break would leave a table's row or a comment."""


class Number(Strict):
    """A number with its 95 % interval, where there is one."""

    value: Share
    low: Share | None = None
    high: Share | None = None

    @model_validator(mode="after")
    def ordered(self) -> Number:
        if (self.low is None) != (self.high is None) or (
            self.low is not None and self.high is not None and self.low > self.high
        ):
            raise ValueError(f"the interval [{self.low}, {self.high}] is none")
        return self


class Scored(Strict):
    """How a protocol judges: its headline metric, and who chose the cut (`Cut`)."""

    headline: Name
    cut: Cut = "unknown"


class Leaks(Strict):
    """Clips of a test set that the training list holds, by clip and by video, and those that no id could tell."""

    clips: int = Field(ge=0)
    by_clip: int = Field(ge=0)
    by_video: int = Field(ge=0)
    unchecked: int = Field(ge=0)


class Tested(Strict):
    """One test set of an entry."""

    samples: int = Field(gt=0)
    missing: int = Field(0, ge=0)
    whole: bool = True
    benchmark: Name
    primary: Name
    protocols: dict[Name, Scored]
    rows: dict[Name, dict[Name, dict[Name, Number]]]
    leaks: Leaks | None = None
    notes: list[Name] = []

    @model_validator(mode="after")
    def hangs_together(self) -> Tested:
        if self.primary not in self.protocols:
            raise ValueError(f"the primary protocol {self.primary!r} is none of its protocols")
        if MODEL not in self.rows:
            raise ValueError(f"there is no row {MODEL!r}")
        for name, scored in self.protocols.items():
            for metric, number in self.rows[MODEL].get(name, {}).items():
                if not NO_FRACTION.search(metric) and not -1 <= number.value <= 1:
                    raise ValueError(f"{name}/{metric} is {number.value:g}, which is no fraction")
            if name in self.rows[MODEL] and scored.headline not in self.rows[MODEL][name]:
                raise ValueError(f"the model's numbers by {name} lack its headline {scored.headline!r}")
        return self


class Source(Strict):
    """The published row that the run is compared with, as arguments of `avloc.report.published.find`."""

    paper: Name
    table: Name
    method: Name
    variant: Name | None = None
    ogl: bool = False


class Parameters(Strict):
    trainable: int = Field(ge=0)
    total: int = Field(ge=0)


class Cost(Strict):
    """What an answer costs, per picture: floating-point operations and seconds, in batches of ``pictures``."""

    flops: Share | None
    seconds: Share
    pictures: int = Field(gt=0)
    device: Name
    precision: Name = ""


class Code(Strict):
    commit: Name = ""
    dirty: bool = False


class Threshold(Strict):
    """The one threshold for all sets, and the calibration sets that chose it."""

    value: Share
    chosen_on: list[Name]


class Entry(Strict):
    """One run, as the module describes it."""

    schema_: Literal["avloc leaderboard entry"] = Field(alias="schema")
    version: Literal[1]
    experiment: Annotated[Name, Field(min_length=1)]
    method: Name
    recipe: str = Field(pattern=r"^[0-9a-f]{12}$")
    seed: int | None = None
    trained_on: Name | None = None
    reproduces: Source | None = None
    parameters: Parameters | None = None
    cost: Cost | None = None
    code: Code = Code()
    threshold: Threshold | None = None
    sets: dict[Name, Tested] = Field(min_length=1)

    @property
    def of(self) -> tuple[str, str]:
        """Entries that agree on it are runs of one method."""
        return self.experiment, self.recipe


def schema() -> str:
    """The JSON Schema of an entry."""
    return json.dumps(Entry.model_json_schema(by_alias=True), indent=1)


def entry_of(
    run: Run,
    bounds: Bounds | None = None,
    judged: Mapping[str, tuple[str, str]] | None = None,
    leaks: Callable[[str, str], Leaks | None] | None = None,
) -> Entry:
    """The entry of a tested run.

    Args:
        run: of one seed.
        bounds: gives the headlines' intervals; None for none.
        judged: protocol to its headline metric and its `Cut`; of one that is not there, the set's primary metric or
            the first one is the headline, and the cut is unknown.
        leaks: what of a test set, by its name, a training list holds; None where the lists are not at hand.

    Raises:
        EntryError: the run's numbers do not make an entry.
    """
    about, config = run.about, run.about.get("config") or {}
    trained_on = (config.get("data") or {}).get("train")
    told = "" if trained_on is None else plain(str(trained_on))
    sets: dict[str, Any] = {}
    for name, scores in run.sets.items():
        protocols = {}
        for protocol, numbers in scores.rows[MODEL].items():
            headline, cut = (judged or {}).get(protocol, ("", "unknown"))
            if protocol == UNIVERSAL:
                headline, cut = next((m for m in ("ciou", "fpr") if m in numbers), ""), "calibration"
            if headline not in numbers:
                known = [m for m in numbers if not NO_FRACTION.search(m)]
                headline = scores.primary[1] if scores.primary[0] == protocol else next(iter(known), "")
            if numbers.get(headline) is not None:
                protocols[protocol] = {"headline": headline, "cut": cut}
        found = leaks(told, name) if leaks is not None and told else None
        sets[plain(name)] = {
            "samples": scores.n,
            "missing": scores.missing,
            "whole": scores.whole,
            "benchmark": scores.published,
            "primary": scores.primary[0],
            "protocols": protocols,
            "rows": rows_of(run, name, protocols, bounds),
            "leaks": None if found is None else found.model_dump(),
            "notes": list(scores.notes),
        }
    chosen, git, cost = run.universal, about.get("git") or {}, about.get("cost")
    content = {
        "schema": KIND,
        "version": VERSION,
        "experiment": run.name,
        "method": about.get("method") or "unknown",
        "recipe": recipe_of(run),
        "seed": seed_of(run),
        "trained_on": told or None,
        "reproduces": run.reproduces,
        "parameters": about.get("parameters"),
        "cost": cost,
        "code": {"commit": git.get("commit", ""), "dirty": bool(git.get("dirty", False))},
        "threshold": {"value": chosen["threshold"], "chosen_on": chosen.get("chosen_on", [])} if chosen else None,
        "sets": sets,
    }
    return validated(content, str(run.folder), "Test the run again.")


def rows_of(
    run: Run, name: str, protocols: Mapping[str, Mapping[str, str]], bounds: Bounds | None
) -> dict[str, dict[str, dict[str, Any]]]:
    """The numbers of a set: all of the model's own rows, the headlines of the others."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for row, measured in run.sets[name].rows.items():
        own, kept = row in (MODEL, GUIDED), {}
        for protocol, scored in protocols.items():
            headline, numbers = scored["headline"], measured.get(protocol, {})
            wanted = {m: v for m, v in numbers.items() if v is not None and (own or m == headline)}
            found: dict[str, Any] = {m: {"value": round(float(v), DIGITS)} for m, v in wanted.items()}
            interval = bounds.of(run, name, (protocol, headline), row=row) if own and bounds else None
            if interval is not None and headline in found and math.isfinite(interval.low + interval.high):
                found[headline] |= {"low": round(interval.low, DIGITS), "high": round(interval.high, DIGITS)}
            if found:
                kept[protocol] = found
        if kept:
            out[row] = kept
    return out


TESTING = ("test", "calibration", "sound_controls", "contexts", "eval_batch_size", "root", "num_workers", "truth_size")
"""Keys of ``data`` that no training depends on."""


def recipe_of(run: Run) -> str:
    """Twelve hexadecimal digits of everything that a run was told, but for its seed, its tests and its machine."""
    config = run.about.get("config") or {}
    data = {k: v for k, v in (config.get("data") or {}).items() if k not in TESTING}
    kept = {
        k: v
        for k, v in config.items()
        if k not in ("evaluator", "panels", "experiment", "reproduces", "checkpoint", "resume")
    }
    told = run.about | {"config": kept | {"data": data}}
    text = fingerprint(Run(run.name, run.folder, {}, None, None, told))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plain(name: str) -> str:
    """A set's name; of an index file its stem alone, for paths are the machine's."""
    return Path(name).stem if name.endswith(".json") else name


def write_entry(entry: Entry, folder: Path) -> Path:
    """Write ``<experiment>-<recipe>[-seed<n>].json`` and say where."""
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in entry.experiment)
    seed = "" if entry.seed is None else f"-seed{entry.seed}"
    path = folder / f"{safe}-{entry.recipe[:6]}{seed}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with complete(path) as part:
        part.write_text(entry.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n", encoding="utf-8")
    return path


def read_entry(path: Path) -> Entry:
    """An entry from its file.

    Raises:
        EntryError: the file is absent, damaged, no entry, or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse, object_pairs_hook=without_doubles)
    except FileNotFoundError as e:
        raise EntryError(f"{path} does not exist. Name a folder of a tested run, or an entry's JSON.") from e
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as e:
        raise EntryError(f"{path} is damaged ({e}). {AGAIN}") from e
    if not isinstance(content, dict) or content.get("schema") != KIND:
        kind = "results.json of a run: name its folder instead" if is_results(content) else f"no {KIND}"
        raise EntryError(f"{path} is {kind}. Entries are written by `avloc leaderboard RUN... --out FOLDER`.")
    if content.get("version") != VERSION:
        raise EntryError(
            f"{path} is an entry of version {content.get('version')!r}, and this avloc reads version {VERSION}. {AGAIN}"
        )
    return validated(content, str(path), AGAIN)


AGAIN = "Write it again from its run with `avloc leaderboard RUN --out FOLDER`, or leave the file out."


def is_results(content: Any) -> bool:
    return isinstance(content, dict) and "sets" in content and "stage" in content


def refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}, which is no number")


def without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is there twice")
    return found


def validated(content: dict[str, Any], where: str, remedy: str) -> Entry:
    """An entry from parsed JSON.

    Raises:
        EntryError: a field is wrong; the message names the first one.
    """
    try:
        return Entry.model_validate(content)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        more = f", and {e.error_count() - 1} more" if e.error_count() > 1 else ""
        raise EntryError(f"{where}, {field}: {first['msg']}{more}. {remedy}") from e


def once(entries: Iterable[tuple[str, Entry]]) -> None:
    """That no result is there twice, for a second copy is no further seed.

    Args:
        entries: each with the name of its file or folder.

    Raises:
        EntryError: two of them tell of one method, seed and test set.
    """
    met: dict[tuple[str, str, int | None, str], str] = {}
    for where, entry in entries:
        for name in entry.sets:
            key = (*entry.of, entry.seed, name)
            if key in met:
                seed = "" if entry.seed is None else f", seed {entry.seed}"
                raise EntryError(
                    f"{where} and {met[key]} both hold {entry.experiment}{seed} on {name}. Name one of them, or train "
                    "the other with another seed."
                )
            met[key] = where


def lower_is_better(metric: str) -> bool:
    return bool(LOWER_IS_BETTER.match(metric))
