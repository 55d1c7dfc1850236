"""What all converters share: their options, and the writing of shards with a progress bar and a report. What a
converter outside this package needs of `members`, `tables` and `telling` can be imported from here too.

A converter is a function from parsed options to `Plan`s; `convert` does the rest::

    def main(argv=None):
        return convert(options("data_prep.x", __doc__, {"media": "the folder of the archive"}), plans, argv)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from avloc.data.index import ShardError
from avloc.data.media import MediaError
from avloc.data.schema import Sample
from avloc.data.shards import Job, Skipped, write_json, write_shards
from data_prep.members import (
    AS_PUBLISHED,
    RATE,
    collected,
    flac,
    mask_png,
    met,
    picture,
    read_mask,
    sound,
    stored_mask,
)
from data_prep.pool import Pool
from data_prep.tables import (
    clip_boxes,
    files_by_stem,
    no_twins,
    read_ids,
    read_table,
    read_tags,
    unlisted,
    unmatched_tags,
)
from data_prep.telling import holds, lacking, summarise, unannotated, write_table

__all__ = [
    "AS_PUBLISHED",
    "RATE",
    "Plan",
    "clip_boxes",
    "convert",
    "files_by_stem",
    "flac",
    "lacking",
    "mask_png",
    "met",
    "no_twins",
    "options",
    "picture",
    "rate_option",
    "read_ids",
    "read_mask",
    "read_table",
    "read_tags",
    "run",
    "sound",
    "stored_mask",
    "unannotated",
    "unlisted",
    "unmatched_tags",
]

MISSING = re.compile(r"\w+ missing: ")  # reasons of records whose media may come later


@dataclass(frozen=True)
class Plan:
    """A split that a converter is ready to write.

    Attributes:
        dataset, split: of the records and of the shards' names.
        jobs: the records whose media are there; unique keys.
        missing: annotation rows without media, and media without an annotation row, each with its reason. A
            reason starts with what can be counted, then a colon, and ends with what to do about it; see
            `data_prep.telling`.
        notes: defects met and fixes made, a sentence each; printed, and kept in the index.
        licence: for the index.
        counted: defects that only show when media are read: tag of such records to a sentence, which becomes a
            note with their number.
    """

    dataset: str
    split: str
    jobs: list[Job]
    missing: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    licence: str = ""
    counted: dict[str, str] = field(default_factory=dict)


def options(
    module: str,
    doc: str | None,
    folders: Mapping[str, str],
    published: str = "nothing differs for this set; its records get the tag as_published",
    *,
    files: Mapping[str, str] | None = None,
) -> argparse.ArgumentParser:
    """The options that every converter has; it adds its own.

    Args:
        module: ``data_prep.flickr``.
        doc: the module's docstring.
        folders: names of its required folder options to their help.
        published: what ``--as-published`` does.
        files: names of its required file options to their help.
    """
    p = argparse.ArgumentParser(
        f"python -m {module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.allow_abbrev = False
    for name, says in folders.items():
        p.add_argument(f"--{name}", type=Path, required=True, help=says)
    for name, says in (files or {}).items():
        p.add_argument(f"--{name}", type=Path, required=True, help=says)
    p.set_defaults(folders=[name.replace("-", "_") for name in folders])
    p.add_argument("--out", type=Path, required=True, help="data root; shards go to OUT/NAME")
    p.add_argument("--name", default="", help="of the set (default: the set's own)")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    p.add_argument("--num-parts", type=int, default=1, help="number of jobs that share the work")
    p.add_argument("--part", type=int, default=0, help="which of them this is, from 0")
    p.add_argument("--records-per-shard", type=int, default=500, help="(default: 500)")
    p.add_argument("--seed", type=int, default=0, help="of the order of records over shards, and of random choices")
    p.add_argument("--dry-run", action="store_true", help="count, report, and write nothing")
    p.add_argument("--as-published", action="store_true", help=published)
    return p


def rate_option(parser: argparse.ArgumentParser) -> None:
    """``--rate``, of converters whose sets are listened to at more than one. A method reads its own rate alone."""
    says = "Hz of stored sounds (default: 16000; 44100 for AudioCLIP and T-VSL, in another data root)"
    parser.add_argument("--rate", type=int, default=RATE, help=says)


def convert(
    parser: argparse.ArgumentParser,
    plans: Callable[[argparse.Namespace], Iterable[Plan]],
    argv: Sequence[str] | None = None,
) -> int:
    """A converter's ``main``: parse, plan, write. Bad options and unreadable annotations end it with a message.

    Returns:
        0 when every plan wrote at least one record (with ``--dry-run``: would have tried to).
    """
    args = parser.parse_args(argv)
    if not 0 <= args.part < args.num_parts:
        parser.error(f"--part {args.part} must lie between 0 and --num-parts {args.num_parts} minus 1")
    for name in args.folders:
        if not getattr(args, name).is_dir():
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} is not a folder")
    if args.name and not re.fullmatch(r"[a-z0-9_]+", args.name):
        parser.error(f"--name {args.name} must be of lower-case letters, digits and underscores")
    try:
        return max([run(plan, args) for plan in list(plans(args))], default=1)
    except (OSError, ValueError, ShardError) as e:
        parser.error(str(e))


def absent(reason: str) -> Sample | None:
    """A job whose media are not there. It keeps their place, so that they are taken when they come."""
    raise MediaError(reason)


def jobs_of(plan: Plan, as_stored: bool) -> tuple[list[Job], list[Skipped]]:
    """The jobs of a plan, those whose media are missing too, and what else is left out."""
    jobs = [replace(job, make=partial(collected, job.make, as_stored)) for job in plan.jobs]
    taken = Counter(j.key for j in plan.jobs) + Counter(s.key for s in plan.missing)
    waiting = [s for s in plan.missing if MISSING.match(s.reason) and taken[s.key] == 1]
    keys = {s.key for s in waiting}
    return [*jobs, *(Job(s.key, partial(absent, s.reason)) for s in waiting)], [
        s for s in plan.missing if s.key not in keys
    ]


NOT_MADE_OF = ("out", "name", "jobs", "num_parts", "part", "dry_run", "folders", "records_per_shard", "seed")


def recipe(args: argparse.Namespace) -> dict[str, str]:
    """What the records of a set follow from, apart from media: the options, and the content of the files among
    them."""
    made = {}
    for name, value in vars(args).items():
        if name in NOT_MADE_OF:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        parts = []
        for v in values:
            tag, _, file = str(v).rpartition("=")
            path = Path(file)
            if v is not None and not isinstance(v, bool | int | float) and path.is_file():
                # As it is read: without its byte order mark, blank lines, the kind of line ends, and its order.
                raw = [text.strip(b" \t\xef\xbb\xbf") for text in path.read_bytes().splitlines()]
                lines = sorted(filter(None, raw))
                content = hashlib.sha256(b"\n".join(lines)).hexdigest()[:16]
                parts.append(f"{tag}={content}")
            elif not path.is_dir() or not isinstance(v, Path):
                parts.append(str(v))
        made[name] = " ".join(parts)
    return made


def refuse_other_recipe(folder: Path, name: str, args: argparse.Namespace) -> None:
    """Keep what a set is made with, and refuse to go on with it in another way.

    Raises:
        ShardError: names the option that differs.
    """
    path, now = folder / ".parts" / f"{name}.made.json", recipe(args)
    if path.is_file() and list((folder / ".parts").glob(f"{name}-[0-9]*.json")):
        known = json.loads(path.read_text())
        if other := [option for option in now if option in known and known[option] != now[option]]:
            said = ", ".join(f"--{o.replace('_', '-')}" for o in other)
            raise ShardError(
                f"{folder} already holds {name}, made with another {said}. Give the new one another --name or --out, "
                f"or delete the old {name} files first."
            )
    elif not path.is_file() or json.loads(path.read_text()) != now:
        write_json(path, now)


def run(plan: Plan, args: argparse.Namespace) -> int:
    """Write a plan's shards, ``skipped-<split>.csv`` and the notes; with ``--dry-run``, say what would be written.

    Returns:
        0 when at least one record was written (or would be tried).
    """
    console = Console(stderr=True)
    if args.dry_run:
        left_out = plan.missing if args.part == 0 else []
        report = f"{plan.dataset}-{plan.split}: {len(plan.jobs)} records to write, {len(left_out)} left out"
        console.print(report, highlight=False, markup=False, soft_wrap=True)
        summarise(console, left_out, plan.notes)
        return 0 if plan.jobs else 1
    folder = args.out / plan.dataset
    refuse_other_recipe(folder, f"{plan.dataset}-{plan.split}", args)
    jobs, missing = jobs_of(plan, args.as_published)
    missing = missing if args.part == 0 else []
    pool = Pool(max(1, args.jobs))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as bar:
            shown = f"{plan.dataset}-{plan.split}" + (f" part {args.part}" if args.num_parts > 1 else "")
            task = bar.add_task(shown, total=len(jobs) if args.num_parts == 1 else None)
            written = write_shards(
                folder,
                plan.dataset,
                plan.split,
                jobs,
                records_per_shard=args.records_per_shard,
                seed=args.seed,
                licence=plan.licence,
                num_parts=args.num_parts,
                part=args.part,
                mapper=pool,
                progress=lambda n: bar.advance(task, n),
            )
    finally:
        pool.close()
    skipped = [*written.skipped, *missing]
    notes = [*plan.notes, *(f"{n} records {says}" for tag, says in plan.counted.items() if (n := written.tags[tag]))]
    part = f"-{args.part:03d}" if args.num_parts > 1 else ""
    report_path = folder / f"skipped-{plan.split}{part}.csv"
    write_table(report_path, ["key", "reason"], ((s.key, s.reason) for s in skipped))
    if written.found:
        write_table(folder / f"media-{plan.split}{part}.csv", ["key", "what", "extent"], written.found)
    console.print(f"{written.written} records written, {len(skipped)} clips skipped", highlight=False)
    summarise(console, skipped, notes)
    if skipped:
        console.print(f"each with its reason in {report_path}", highlight=False, markup=False, soft_wrap=True)
    if written.index:
        if notes:
            write_json(written.index, json.loads(written.index.read_text()) | {"notes": notes})
        console.print(f"index: {written.index}", highlight=False, markup=False, soft_wrap=True)
    elif args.num_parts > 1:
        console.print("the index is written by the job that finishes the last part", highlight=False)
    holds(console, written)
    return 0 if written.written else 1
