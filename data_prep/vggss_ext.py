"""Extended VGG-SS: VGG-SS, and as many negatives.

    python -m data_prep.vggss_ext --media VGGSS --boxes vggss.json --negatives vggss_test_plus_silent.csv --out data

``VGGSS`` holds ``frames``, ``audio``, and the archive's own copies ``extend_frames``, ``extend_audio``; a clip that is
absent from one pair of folders is looked for in the other, the positives first in the former, the negatives in the
latter, as published.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_prep.common import Plan, convert, options
from data_prep.extended import negatives, notes, read_negatives
from data_prep.tables import unlisted
from data_prep.vggsound import FRAME_TIME, LICENCE, box_notes, read_boxes
from data_prep.vggss import Media, find_media, positives

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    folders = {"media": "folder with frames, audio, extend_frames, extend_audio"}
    files = {"boxes": "vggss.json", "negatives": "vggss_test_plus_silent.csv"}
    return options("data_prep.vggss_ext", __doc__, folders, files=files)


def plans(args: argparse.Namespace) -> list[Plan]:
    dataset = args.name or "vggss_ext"
    boxes = read_boxes(args.boxes)
    rows = read_negatives(args.negatives, {id: label for id, (label, _) in boxes.items()})
    own, extended = find_media(args.media), find_media(args.media, "extend_frames", "extend_audio")
    both = Media(extended.frames | own.frames, extended.sounds | own.sounds)
    jobs, missing = positives(dataset, boxes, both, {"other_class": set(boxes)}, as_published=args.as_published)
    more, lost = negatives(
        dataset,
        rows,
        own.frames | extended.frames,
        own.sounds | extended.sounds,
        t=FRAME_TIME,
        file=args.negatives,
        licence=LICENCE,
        youtube=True,
        as_published=args.as_published,
    )
    listed = {*boxes, *(r.video for r in rows), *(r.audio for r in rows)}
    missing += lost + unlisted(dataset, {*both.frames, *both.sounds}, listed)
    return [Plan(dataset, "test", jobs + more, missing, box_notes(boxes) + notes(rows), LICENCE)]


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when at least one record was written."""
    return convert(parser(), plans, argv)


if __name__ == "__main__":
    sys.exit(main())
