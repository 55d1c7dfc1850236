"""`avloc localize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avloc import RUNS
from avloc.errors import UsageError
from avloc.names import newest

__all__ = ["localize"]


def localize(
    clip: Annotated[Path | None, typer.Argument(help="A video with sound.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the overlay video, the strip of pictures and regions.json.")
    ] = Path("localized"),
    image: Annotated[Path | None, typer.Option(help="A picture instead of a video.")] = None,
    audio: Annotated[Path | None, typer.Option(help="The sound that goes with the picture.")] = None,
    ckpt: Annotated[
        Path | None, typer.Option(help="Checkpoint of a trained method; by default the newest one under runs/.")
    ] = None,
    phrases: Annotated[
        Path | None,
        typer.Option(
            help="A file with one phrase a line, of which the nearest to the sound are told (ACL-SSL and SOUPLE); by "
            "default class names: the embedded world's for a method on its weights, else VGG-SS's."
        ),
    ] = None,
) -> None:
    """Show where the sound of a video, or of a picture with a sound, comes from.

    Example: `avloc localize clip.mp4 -o out`
    """
    if (clip is None) == (image is None) or (image is None) != (audio is None):
        raise UsageError("Name either a video, or --image and --audio together.")
    found = ckpt or newest(list(Path(RUNS).glob("*/version_*/checkpoints/best.ckpt")))
    if found is None:
        raise UsageError(
            "No trained method was found under runs/. Name one with --ckpt, or train one: make train EXP=quickstart."
        )
    from avloc.localize.run import localize_still, localize_video
    from avloc.methods.acl.inversion import default_phrases, read_phrases
    from avloc.methods.load import load_method

    model = load_method(found)
    known = read_phrases(phrases) if phrases else default_phrases(model)
    if clip is not None:
        localize_video(model, clip, out, phrases=known)
    else:
        assert image is not None
        assert audio is not None
        localize_still(model, image, audio, out, phrases=known)
    print(f"written to {out}")
