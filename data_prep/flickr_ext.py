"""Extended SoundNet-Flickr: the test set, and as many negatives.

    python -m data_prep.flickr_ext --media Flickr --list flickr_test.csv --negatives flickr_test_plus_silent.csv \\
        --out data

``Flickr`` as for ``data_prep.flickr``; the archive's own copies may lie in ``extend_frames`` and ``extend_audio``, in
it or under ``test``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from avloc.data.media import PICTURES, SOUNDS
from data_prep.common import Plan, convert, options
from data_prep.extended import negatives, notes, read_negatives
from data_prep.flickr import LICENCE, find_media, positives, read_list
from data_prep.tables import files_by_stem

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    files = {"list": "ids of the test set, e.g. flickr_test.csv", "negatives": "flickr_test_plus_silent.csv"}
    return options("data_prep.flickr_ext", __doc__, {"media": "folder as for data_prep.flickr"}, files=files)


def plans(args: argparse.Namespace) -> list[Plan]:
    dataset = args.name or "flickr_ext"
    rows = read_negatives(args.negatives)
    media = find_media(args.media)
    frames, sounds = dict(media.frames), dict(media.sounds)
    for root in (args.media, args.media / "test"):
        frames |= files_by_stem(root / "extend_frames", PICTURES)
        sounds |= files_by_stem(root / "extend_audio", SOUNDS)
    jobs, missing, said = positives(dataset, "test", read_list(args.list), media, {}, args.as_published)
    more, lost = negatives(
        dataset,
        rows,
        frames,
        sounds,
        t=0.0,
        file=args.negatives,
        licence=LICENCE,
        youtube=False,
        as_published=args.as_published,
    )
    return [Plan(dataset, "test", jobs + more, missing + lost, said + notes(rows), LICENCE)]


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when at least one record was written."""
    return convert(parser(), plans, argv)


if __name__ == "__main__":
    sys.exit(main())
