"""AVSBench-Robust: AVSBench S4 or MS3, each video also under silence, noise, and another video's off-screen sound.

    python -m data_prep.avs_robust --set s4 --media AVSBench --out data
    python -m data_prep.avs_robust --set ms3 --media AVSBench --avss metadata.csv --out data

Writes ``avs_robust_s4`` and ``avs_robust_ms3``. Media as for ``data_prep.avs_s4`` and ``data_prep.avs_ms3``. The
published set is a script whose choices follow the order of unsorted folders, so it cannot be
repeated; here every choice follows from ``--seed`` and the video's name alone.

- Silence: no sound is stored.
- Noise: ``uniform_v1``, five seconds of white noise in (-1, 1), 16 kHz, on as many channels as the own sound has.
  ``--as-published``: ``float64_bytes_v1``, the bytes of 220,500 such float64 numbers read as 16-bit samples of
  44.1 kHz, of which the first five seconds count.
- Off-screen: a sound of the same split and of another broad group (music, human, animal, device) that is not the
  group's least suitable partner. S4 draws a category, then a video of it; MS3 draws among the videos of which no
  object is of such a group, and where there is none, among all others (tag ``offscreen_fallback``).
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from avloc.data.schema import Audio, Sample, sample_key
from avloc.data.shards import Job
from data_prep.avsbench import MS3, S4, Clip, Subset, clips_of, label_notes, make_sample, usable
from data_prep.common import Plan, convert, options
from data_prep.members import RATE, flac, sound
from data_prep.tables import unlisted

__all__ = ["GROUPS", "candidates", "main", "noise", "off_screen"]

SECONDS = 5
LICENCE = "AVSBench: on request from its site; AVSBench-Robust states no licence"
GROUPS = {
    "music": {
        *("playing_acoustic_guitar", "playing_glockenspiel", "playing_piano", "playing_tabla", "playing_ukulele"),
        *("playing_violin", "guitar", "marimba", "piano", "tabla", "ukulele", "violin"),
    },
    "human": {"baby_laughter", "female_singing", "male_speech", "baby", "man", "woman"},
    "animal": {
        *("cat_meowing", "coyote_howling", "dog_barking", "horse_clip-clop", "lions_roaring", "mynah_bird_singing"),
        *("bird", "cat", "dog", "lion", "wolf"),
    },
    "device": {
        *("ambulance_siren", "cap_gun_shooting", "chainsawing_trees", "driving_buses", "helicopter", "lawn_mowing"),
        *("race_car", "typing_on_computer_keyboard"),
        *("background", "bus", "car", "emergency-car", "gun", "keyboard", "mower", "saw"),
    },
}
# The group whose sounds suit a group least; device has none in S4.
PARTNER = {"music": "human", "human": "music", "animal": "human"}


def groups(clip: Clip) -> set[str]:
    """Broad groups of what sounds."""
    return {group for group, members in GROUPS.items() if members & set(clip.labels)}


def candidates(subset: Subset, clip: Clip, clips: Sequence[Clip]) -> list[Clip]:
    """Videos whose sound may be put off-screen, sorted by name."""
    own = groups(clip)
    partner = PARTNER | ({"device": "music"} if subset.short == "ms3" else {})
    barred = own | {partner[g] for g in own if g in partner}
    return sorted((c for c in clips if c.name != clip.name and not groups(c) & barred), key=lambda c: c.name)


def off_screen(subset: Subset, clip: Clip, clips: Sequence[Clip], seed: int) -> tuple[Clip, bool]:
    """Whose sound is heard off-screen, and whether no candidate was found so that it is any other video's.

    Drawn among all annotated videos; one without a sound gives way to the next draw, so that a file that is absent on
    one machine changes only what depends on it.

    Raises:
        ValueError: no other video has a sound.
    """
    rng = generator(seed, "offscreen", clip.name)
    others = sorted((c for c in clips if c.name != clip.name), key=lambda c: c.name)
    for fallback, pool in ((False, candidates(subset, clip, clips)), (True, others)):
        # S4 draws a category first; all of MS3's videos are one "category" here.
        kinds = sorted({c.labels for c in pool}) if subset.short == "s4" and not fallback else [None]
        for kind in rng.permutation(len(kinds)):
            own = [c for c in pool if kinds[kind] in (None, c.labels)]
            if chosen := next((own[i] for i in rng.permutation(len(own)) if own[i].sound), None):
                return chosen, fallback
    raise ValueError(f"{clip.name}: no other video of its split has a sound. Check the folder of sounds.")


def noise(seed: int, name: str, as_published: bool = False) -> NDArray[np.float64]:
    """Five seconds of white noise at 16 kHz, float64 ``[80000]`` in [-1, 1].

    As published, bytes of float64 numbers pass for 16-bit samples: three of four are uniform, every fourth, sign
    and exponent, lies near +-16,384.
    """
    rng = generator(seed, "noise", name)
    if not as_published:
        return rng.uniform(-1, 1, SECONDS * RATE)
    samples = rng.uniform(-1, 1, SECONDS * 44100).astype("<f8").view("<i2")[: SECONDS * 44100] / 32768
    return soxr.resample(samples, 44100, RATE).clip(-1, 1)


def generator(seed: int, what: str, name: str) -> np.random.Generator:
    """Randomness of one video: the same wherever and in whichever order it is converted."""
    return np.random.default_rng([seed, zlib.crc32(what.encode()), zlib.crc32(name.encode())])


def make_robust(
    dataset: str, subset: Subset, clip: Clip, other: Clip, fallback: bool, seed: int, as_published: bool
) -> Sample:
    """A video with its own sound and three others.

    Raises:
        MediaError: a file is absent or broken.
    """
    assert other.sound
    sample = make_sample(dataset, subset, clip, ["offscreen_fallback"] if fallback else [], as_published)
    record, recipe = sample.record, "float64_bytes_v1" if as_published else "uniform_v1"
    # As many channels as its own sound, so that a method that lays channels end to end treats all conditions alike.
    channels = 1 if as_published else record.audios[0].channels
    wave = np.tile(noise(seed, clip.name, as_published)[:, None], channels)
    sample.members["n0.flac"] = flac(wave)
    sample.members["n1.flac"], off = sound(other.sound, "n1", role="negative", kind="offscreen", src_id=other.name)
    length = float(SECONDS)
    record.audios += [
        Audio(None, "negative", duration=length, rate=RATE, kind="silence"),
        Audio("n0.flac", "negative", duration=length, rate=RATE, channels=channels, kind="noise"),
        off,
    ]
    note = f"seed {seed}; noise: {recipe}; offscreen: group_rule_v1{', fallback' if fallback else ''}, {other.name}"
    record.provenance.note = "; ".join(filter(None, [record.provenance.note, note]))
    record.provenance.licence = LICENCE
    return sample


def parser() -> argparse.ArgumentParser:
    p = options(
        "data_prep.avs_robust",
        __doc__,
        {"media": "as for data_prep.avs_s4 or data_prep.avs_ms3"},
        "noise is bytes of float64 numbers, and masks are opened as published loaders do",
    )
    p.add_argument("--set", choices=["s4", "ms3"], required=True, help="which part of AVSBench")
    p.add_argument(
        "--split", nargs="+", choices=["train", "val", "test"], default=["test"], help="which (default: test)"
    )
    p.add_argument("--list", type=Path, help="avs1_*_test.csv, for ACL-SSL's layout")
    p.add_argument("--avss", type=Path, help="metadata.csv of AVSS, whose v1m rows name MS3's objects")
    return p


def plans(args: argparse.Namespace) -> list[Plan]:
    subset = S4 if args.set == "s4" else MS3
    dataset, made = args.name or f"avs_robust_{args.set}", []
    for split in args.split:
        clips, extra = clips_of(subset, args, split)
        if bare := [c.name for c in clips if not c.labels]:
            raise ValueError(f"{len(bare)} videos have no object names ({bare[0]}): give AVSS's metadata.csv as --avss")
        kept, missing = usable(dataset, subset, clips)
        jobs, lone = [], 0
        for clip in kept:
            other, fallback = off_screen(subset, clip, clips, args.seed)
            lone += fallback
            place = (clip, other, fallback, args.seed, args.as_published)
            jobs.append(Job(sample_key(dataset, clip.name), partial(make_robust, dataset, subset, *place)))
        notes = label_notes(subset, kept)
        if lone:
            notes.append(f"{lone} videos have no off-screen candidate: another video's sound is taken, of any group")
        made.append(Plan(dataset, split, jobs, missing + unlisted(dataset, extra, (), "video"), notes, LICENCE))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 when every split gave at least one record."""
    return convert(parser(), plans, argv)


if __name__ == "__main__":
    sys.exit(main())
