"""Trains the embedded world's tiny towers: it made the files in `avloc/world/assets` with `avloc.world.spaces`,
`avloc.world.openclip` and `avloc.world.resnet`. One file a tower in `avloc.world.towers`.

    python -m avloc.world.pretrain clipseg
    python -m avloc.world.pretrain beats
    python -m avloc.world.pretrain sam
    python -m avloc.world.pretrain vggish
    python -m avloc.world.pretrain audioclip

Each command is deterministic on one machine (seed 0), prints the score on scenes or sounds that it never saw,
and writes it with the command into the file's metadata.
"""

from __future__ import annotations

from avloc.world.towers.audioclip import pretrain_audioclip
from avloc.world.towers.beats import pretrain_beats
from avloc.world.towers.clipseg import pretrain_clipseg
from avloc.world.towers.recipe import Tower, run
from avloc.world.towers.sam import pretrain_sam
from avloc.world.towers.vggish import pretrain_vggish

__all__ = ["TOWERS", "main"]

TOWERS = {
    "clipseg": Tower(pretrain_clipseg, 3000, 30000),
    "beats": Tower(pretrain_beats, 1000, 8000),
    "sam": Tower(pretrain_sam, 3000, 15000),
    "vggish": Tower(pretrain_vggish, 600, 4000),
    "audioclip": Tower(pretrain_audioclip, 1500, 6000, 24, multiple=12, why="rows of 1 to 4 pictures"),
}


def main() -> None:
    run("avloc.world.pretrain", __doc__, TOWERS)


if __name__ == "__main__":
    main()
