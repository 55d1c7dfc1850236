"""`avloc audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["audit"]


def audit(
    train: Annotated[Path, typer.Argument(help="Training list of ids (text or csv), or the index JSON of shards.")],
    evals: Annotated[list[Path], typer.Argument(help="Evaluation lists, box files or index JSONs.")],
    clean: Annotated[Path | None, typer.Option(help="Write the training list without the leaking lines here.")] = None,
    by: Annotated[
        Literal["clip", "video"],
        typer.Option(help="What the clean list leaves out: leaking clips, or every clip of a leaking video."),
    ] = "video",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the clips of evaluation sets in a training list, by clip and by video.

    Example: `avloc audit vggss_144k.txt vggss.json data/avs_s4/avs_s4-test.json --clean clean.txt`
    """
    from avloc.audit.leaks import audit as find

    find(train, evals, clean, by, json)
