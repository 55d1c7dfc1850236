"""Trains the embedded world's spaces: what hears beside ``world:openclip``, and a tiny CLAP and ImageBind.

    python -m avloc.world.spaces wav2clip
    python -m avloc.world.spaces clap
    python -m avloc.world.spaces imagebind

Each command is deterministic on one machine (seed 0), prints the score on scenes and sounds that it never saw, and
writes it with the command into the file's metadata.
"""

from __future__ import annotations

from avloc.world.towers.clap import pretrain_clap
from avloc.world.towers.imagebind import pretrain_imagebind
from avloc.world.towers.recipe import Tower, run
from avloc.world.towers.wav2clip import pretrain_wav2clip

__all__ = ["SPACES", "main"]

MIXED = "mixtures of one to three sounds"
SPACES = {
    "wav2clip": Tower(pretrain_wav2clip, 600, 5000, multiple=4, why=MIXED),
    "clap": Tower(pretrain_clap, 600, 5000, multiple=4, why=MIXED),
    "imagebind": Tower(pretrain_imagebind, 1200, 6000, multiple=4, why=MIXED),
}


def main() -> None:
    run("avloc.world.spaces", __doc__, SPACES)


if __name__ == "__main__":
    main()
