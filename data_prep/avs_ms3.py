"""AVSBench MS3 (multi-source): videos of five seconds with a mask for each.

    python -m data_prep.avs_ms3 --media AVSBench --split train val test --out data
    python -m data_prep.avs_ms3 --media AVSBench --list avs1_ms3_test.csv --out data     # ACL-SSL's layout
    python -m data_prep.avs_ms3 --media AVSBench --boxes ms3_box.json --out data         # the set avs_ms3_box

Layouts: see ``data_prep.avsbench``. A record is a video: five pictures, the union of what sounds at each second
(perhaps nothing), and the sound as it is, stereo or mono. The objects' names come from ``--list``, or with ``--avss
metadata.csv`` from AVSS.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep import avsbench
from data_prep.common import Plan, convert

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    p = avsbench.parser(avsbench.MS3, "data_prep.avs_ms3", __doc__)
    p.add_argument("--boxes", type=Path, help="ms3_box.json: write the set avs_ms3_box, a record for each test frame")
    return p


def plans(args: argparse.Namespace) -> list[Plan]:
    return (avsbench.box_plans if args.boxes else avsbench.mask_plans)(avsbench.MS3, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when every split gave at least one record."""
    return convert(parser(), plans, argv)


if __name__ == "__main__":
    sys.exit(main())
