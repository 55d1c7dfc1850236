"""`avloc world`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["world"]


def world(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Data folder; shards go to its subfolder world, videos to world_videos.")
    ] = Path("data"),
    splits: Annotated[list[str] | None, typer.Option(help="Those wanted, each behind --splits; else all.")] = None,
    videos: Annotated[int, typer.Option(help="Write so many .mp4 files with their csv instead of shards.")] = 0,
    seconds: Annotated[float, typer.Option(help="Length of a video.")] = 10.0,
) -> None:
    """Write the embedded world: shards, or videos.

    Example: `avloc world --videos 3 -o data`
    """
    from avloc.world.dataset import ensure
    from avloc.world.video import write_videos

    if videos:
        print(write_videos(out / "world_videos", videos, seconds))
        return
    ensure(out, *(splits or ()))
    for index in sorted((out / "world").glob("world-*.json")):
        print(index, json.loads(index.read_text())["count"], "records")
