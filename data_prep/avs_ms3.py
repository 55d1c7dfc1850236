"""AVSBench MS3 (multi-source): videos of five seconds with a mask for each.

    python -m data_prep.avs_ms3 --media AVSBench --split train val test --out data
    python -m data_prep.avs_ms3 --media AVSBench --list avs1_ms3_test.csv --out data     # ACL-SSL's layout
    python -m data_prep.avs_ms3 --media AVSBench --boxes ms3_box.json --out data         # the set avs_ms3_box

Layouts: see ``data_prep.avsbench``. A record is a video: five pictures, the union of what sounds at each second
(perhaps nothing), and the sound as it is, stereo or mono. The objects' names come from ``--list``, or with ``--avss
metadata.csv`` from AVSS.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data_prep import avsbench

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when every split gave at least one record."""
    return avsbench.convert_subset(avsbench.MS3, "data_prep.avs_ms3", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
