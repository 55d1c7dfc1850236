"""AVSBench S4 (single-source): videos of five seconds with a mask for each.

    python -m data_prep.avs_s4 --media AVSBench --split train val test --out data
    python -m data_prep.avs_s4 --media AVSBench --list avs1_s4_test.csv --out data     # ACL-SSL's layout
    python -m data_prep.avs_s4 --media AVSBench --boxes s4_box.json --out data         # the set avs_s4_box

Layouts: see ``data_prep.avsbench``. A record is a video: five pictures, their masks (of the first only in train), one
category, and the sound as it is, stereo or mono.
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
    p = avsbench.parser(avsbench.S4, "data_prep.avs_s4", __doc__)
    p.add_argument("--boxes", type=Path, help="s4_box.json: write the set avs_s4_box, a record for each test frame")
    return p


def plans(args: argparse.Namespace) -> list[Plan]:
    return (avsbench.box_plans if args.boxes else avsbench.mask_plans)(avsbench.S4, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when every split gave at least one record."""
    return convert(parser(), plans, argv)


if __name__ == "__main__":
    sys.exit(main())
