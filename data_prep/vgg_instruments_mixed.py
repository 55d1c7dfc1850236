"""VGGSound-Instruments, mixed: see `data_prep.vgg_instruments`."""

from __future__ import annotations

import sys
from functools import partial

from data_prep.vgg_instruments import convert_instruments

__all__ = ["main"]

main = partial(convert_instruments, "vgg_instruments_mixed")

if __name__ == "__main__":
    sys.exit(main())
