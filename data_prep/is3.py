"""IS3 (ACL-X writes IS4): 3,240 synthetic scenes, each with two objects that sound in turn.

    python -m data_prep.is3 --media IS3 --annotations synthetic3240_bbox.json --out data
    python -m data_prep.is3 --media IS3 --annotations synthetic3240_bbox.json --out data --truth mask

IS3 holds ``images``, ``audio_wav`` and ``gt_segmentation`` (the release's names; SSLalignment's ``visual_frames`` and
``gt_masks`` will do); the list is SSLalignment's, since it is what the papers score. The second command writes the
set ``is3_seg``, scored by its masks. Both pictures of a scene lie side by side in a shard.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_prep.common import Plan, convert
from data_prep.loose import pictures, sounds
from data_prep.sslalign import parser, plan

__all__ = ["CLASSES", "classify", "main"]

LICENCE = "none stated"
# In order, so that a part of the list gets the same class ids as the whole.
CLASSES = (
    "accordion", "acousticguitar", "airplane", "alarmclock", "alligator", "ambulance", "baby", "babylaughter", "banjo",
    "bassoon", "bird", "blowtorch", "bull", "bus", "canary", "capgun", "car", "cat", "cattle", "cello", "chainsaw",
    "cheetah", "chicken", "child", "chimpanzee", "chinchilla", "chipmunk", "chips", "churchbell", "computerkeyboard",
    "cornet", "cow", "cricket", "crocodile", "cymbal", "dinosaur", "dog", "donkey", "drum", "eagle", "electricblender",
    "electricgrinder", "electricguitar", "electronicorgan", "elephant", "elk", "female", "firetruck", "firework",
    "flute", "fox", "frenchhorn", "gibbon", "goat", "guitar", "hairdryer", "harp", "harpsichord", "hedgetrimmer",
    "helicopter", "horse", "icecreamtruck", "lathe", "lawnmower", "lion", "machinegun", "male", "mandolin", "marching",
    "mice", "missile", "motorboat", "motorcycle", "mouse", "oboe", "ocean", "orchestra", "owl", "parrot", "penguin",
    "people", "piano", "pigeon", "policecar", "popcorn", "popcornmachine", "racecar", "river", "saxophone", "sealion",
    "sheep", "shofar", "skateboard", "slotmachine", "snake", "snowmobile", "stream", "subway", "tapdancing",
    "telephone", "timbale", "tractor", "train", "trumpet", "turkey", "ukulele", "vacuumcleaner", "waterfall", "whale",
    "windchime", "woodpecker",
)  # fmt: skip


def classify(stem: str) -> tuple[int, str, str]:
    """Class id (-1 for one that is not of the 111), class name and label space: the class is the last token."""
    label = stem.rpartition("_")[2]
    return CLASSES.index(label) if label in CLASSES else -1, label, "is3_111"


def plans(args: argparse.Namespace) -> list[Plan]:
    images = pictures(args.media, "images", "visual_frames")
    waves = sounds(args.media, "audio_wav", "audio")
    masks = pictures(args.media, "gt_segmentation", "gt_masks", what="mask") if args.truth == "mask" else None
    return [plan(args, "is3", images, waves, masks, classify, tag_groups=False, licence=LICENCE)]


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when at least one record was written."""
    media = "folder with images, audio_wav and, for masks, gt_segmentation"
    return convert(parser("data_prep.is3", __doc__, media, "SSLalignment's synthetic3240_bbox.json"), plans, argv)


if __name__ == "__main__":
    sys.exit(main())
