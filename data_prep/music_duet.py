"""MUSIC-Duet: see `data_prep.music`."""

from __future__ import annotations

import sys
from functools import partial

from data_prep import music

__all__ = ["main"]

main = partial(music.main, 2)

if __name__ == "__main__":
    sys.exit(main())
