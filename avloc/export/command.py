"""`avloc export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avloc.names import complete_run

__all__ = ["export"]


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, or a checkpoint.", autocompletion=complete_run)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    data: Annotated[
        Path | None, typer.Option(help="Data folder, to count which test clips the training list holds.")
    ] = None,
    program: Annotated[
        bool, typer.Option("--program", help="Add program.pt2, the inference path by torch.export; with all weights.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Add model.onnx; needs avloc[onnx].")] = False,
    name: Annotated[str, typer.Option(help="Of the model on its card; the experiment's by default.")] = "",
) -> None:
    """Write a run as safetensors, settings and a model card, which `avloc.load(FOLDER)` reads, also from the hub.

    Example: `avloc export runs/ezvsl/version_0 -o ezvsl_144k`
    """
    from avloc.export.write import export as write

    for file, what in write(run, out, data, program, onnx, name).items():
        print(f"{out / file}: {what}")
