"""AVSBench S4 (single-source): videos of five seconds with a mask for each.

    python -m data_prep.avs_s4 --media AVSBench --split train val test --out data
    python -m data_prep.avs_s4 --media AVSBench --list avs1_s4_test.csv --out data     # ACL-SSL's layout
    python -m data_prep.avs_s4 --media AVSBench --boxes s4_box.json --out data         # the set avs_s4_box

Layouts: see ``data_prep.avsbench``. A record is a video: five pictures, their masks (of the first only in train), one
category, and the sound as it is, stereo or mono.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data_prep import avsbench

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when every split gave at least one record."""
    return avsbench.convert_subset(avsbench.S4, "data_prep.avs_s4", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
