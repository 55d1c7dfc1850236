"""VPO-SS: see `data_prep.vpo`."""

from __future__ import annotations

import sys
from functools import partial

from data_prep import vpo

__all__ = ["main"]

main = partial(vpo.main, "vpo_ss")

if __name__ == "__main__":
    sys.exit(main())
