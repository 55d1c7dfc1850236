"""Commands on tested runs: `avloc report`, `avloc leaderboard` and `avloc rescore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from avloc.names import complete_run
from avloc.plugins import VARIABLE

__all__ = ["leaderboard", "report", "rescore"]

OF_A_PLUGIN = f"If a module of yours adds it, name that: {VARIABLE}=MODULE before the command."
Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Folders of tested runs.", autocompletion=complete_run)
]


def report(
    runs: Runs,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for report.html, .md, .csv and .tex.")] = None,
    metrics: Annotated[
        Literal["headline", "all"], typer.Option(help="The published columns, or all that was measured.")
    ] = "headline",
    paper: Annotated[
        str | None,
        typer.Option(help="Lay the runs into this paper's tables: souple, acl_ssl, gavs, seac, tvsl; all."),
    ] = None,
    table: Annotated[
        str | None, typer.Option(help="One table's number as printed; by default all in which a run has a row.")
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            metavar="KEY,KEY|FILE",
            help="Samples shown first, every run's answer side by side: those of which the runs' tests kept pictures "
            "(some of each set, and those of `avloc test ... --panels.keys`). Needs --out.",
        ),
    ] = None,
    seeds: Annotated[
        Literal["together", "apart"],
        typer.Option(help="Runs of one experiment that differ in their seed alone: mean and deviation, or a row each."),
    ] = "together",
) -> None:
    """Print measured rows beside the published ones, with the controls.

    Example: `avloc report runs/souple_ctx4/version_0 --paper souple --table 1`
    """
    from avloc.evaluation.protocols import PROTOCOLS
    from avloc.evaluation.results import numbers_of_some
    from avloc.report.tables import report as write_report

    write_report(
        runs,
        out,
        metrics,
        paper=paper,
        table=table,
        seeds=seeds,
        rescore=numbers_of_some,
        keys=keys,
        protocols=PROTOCOLS,
    )


def leaderboard(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|FILE...",
            help="Folders of tested runs, entries (JSON) that a leaderboard wrote, and folders of those.",
            autocompletion=complete_run,
        ),
    ],
    protocol: Annotated[
        str,
        typer.Option(
            help="primary for each set's own, a rule (acl, adaptive, top50) for every protocol of that rule, or one "
            "in full (vggss/acl)."
        ),
    ] = "primary",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for leaderboard.html, .md, .tex, .csv, and entries/ of the runs."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Data folder, to count which test clips each training list holds. Reads every record."),
    ] = None,
    published: Annotated[bool, typer.Option(help="Add the papers' rows that no run reproduces.")] = True,
) -> None:
    """Lay out all methods on all test sets under one protocol, with the published numbers.

    With --out, each run also becomes an entry: a small JSON to commit and to lay out with those of other people.

    Example: `avloc leaderboard runs/*/version_* board/entries --protocol acl --out board`
    """
    from avloc.evaluation.protocols import PROTOCOLS
    from avloc.evaluation.results import numbers_of_some
    from avloc.report.leaderboard import leaderboard as write_leaderboard

    judged = {name: (known.headline, known.cut) for name, known in PROTOCOLS.items()}
    write_leaderboard(results, protocol, out, data, published, judged, numbers_of_some)


def rescore(runs: Runs) -> None:
    """Compute every number of tested runs again from their per_sample.parquet, without the model.

    Example: `avloc rescore runs/quickstart/version_0`
    """
    from avloc.evaluation.results import rescore as write_results

    for run in runs:
        results, unknown = write_results(run)
        print(f"{run / 'results.json'}: {len(results['sets'])} sets")
        for name in unknown:
            print(f"  {name} is no protocol that is known here; its numbers stay as they are. {OF_A_PLUGIN}")
