"""Class lists of the label spaces, and the colours in which AVSBench-semantic draws its maps.

A semantic map holds places in its list where that begins with ``background``, else places plus one. Sources:
``facts/datasets.md`` sections 2.6 (AVSBench S4), 2.8 (AVSBench-semantic, Apache-2.0), 2.12 (VPO), 2.15 (VGGSound-
Instruments) and 2.17 (MUSIC).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LABEL_SPACES", "UNKNOWN", "colours_to_index", "voc_palette"]

UNKNOWN = 255  # "do not score"

LABEL_SPACES: dict[str, tuple[str, ...]] = {
    "avs_s4_23": (
        "ambulance_siren", "baby_laughter", "cap_gun_shooting", "cat_meowing", "chainsawing_trees", "coyote_howling",
        "dog_barking", "driving_buses", "female_singing", "helicopter", "horse_clip-clop", "lawn_mowing",
        "lions_roaring", "male_speech", "mynah_bird_singing", "playing_acoustic_guitar", "playing_glockenspiel",
        "playing_piano", "playing_tabla", "playing_ukulele", "playing_violin", "race_car",
        "typing_on_computer_keyboard",
    ),
    "avss71": (
        "background", "accordion", "airplane", "axe", "baby", "bassoon", "bell", "bird", "boat", "boy", "bus", "car",
        "cat", "cello", "clarinet", "clipper", "clock", "dog", "donkey", "drum", "duck", "elephant", "emergency-car",
        "erhu", "flute", "frying-food", "girl", "goose", "guitar", "gun", "guzheng", "hair-dryer", "handpan",
        "harmonica", "harp", "helicopter", "hen", "horse", "keyboard", "leopard", "lion", "man", "marimba",
        "missile-rocket", "motorcycle", "mower", "parrot", "piano", "pig", "pipa", "saw", "saxophone", "sheep",
        "sitar", "sorna", "squirrel", "tabla", "tank", "tiger", "tractor", "train", "trombone", "truck", "trumpet",
        "tuba", "ukulele", "utv", "vacuum-cleaner", "violin", "wolf", "woman",
    ),
    "instruments37": (
        "accordion", "acoustic_guitar", "banjo", "bass_drum", "bass_guitar", "bongo", "cello", "clarinet", "congas",
        "cornet", "cymbal", "djembe", "double_bass", "drum_kit", "electric_guitar", "electronic_organ", "erhu",
        "flute", "glockenspiel", "guiro", "hammond_organ", "harp", "harpsichord", "mandolin", "piano", "saxophone",
        "sitar", "snare_drum", "steel_guitar", "tabla", "timbales", "trumpet", "ukulele", "vibraphone", "violin",
        "xylophone", "zither",
    ),
    "music11": (
        "accordion", "acoustic_guitar", "cello", "clarinet", "erhu", "flute", "saxophone", "trumpet", "tuba",
        "violin", "xylophone",
    ),
    "coco_vpo22": (
        "background", "airplane", "baby", "bird", "bus", "car", "cat", "cell phone", "cow", "dog", "elephant",
        "female", "horse", "keyboard", "male", "motorcycle", "mouse", "sheep", "skateboard", "sports ball",
        "tennis racket", "zebra",
    ),
    "world16": (
        "bell", "drum", "flute", "dog", "cat", "bird", "engine", "siren", "whistle", "guitar", "clock", "frog",
        "violin", "phone", "organ", "kettle",
    ),
}  # fmt: skip


def voc_palette(n: int) -> NDArray[np.uint8]:
    """The first n colours of PASCAL VOC: the bits of an index, three at a time, are the high bits of R, G and B.

    Args:
        n: 1 to 256.

    Returns:
        uint8 ``[n, 3]``; 0 is black, 1 (128, 0, 0), 2 (0, 128, 0), 3 (128, 128, 0).
    """
    index = np.arange(n)
    channels = [sum(((index >> (3 * i + c)) & 1) << (7 - i) for i in range(8)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


def colours_to_index(rgb: NDArray[np.uint8], palette: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """Class of each pixel of a coloured map, by exact colour.

    Args:
        rgb: uint8 ``[H, W, 3]``.
        palette: uint8 ``[n, 3]``, n at most 255, no colour twice.

    Returns:
        index: uint8 ``[H, W]``; 255 where the colour is not in the palette. (Published loaders read such pixels as
            background.)
        unknown: number of those pixels.

    Raises:
        ValueError: another shape or type, or an ambiguous palette.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"colours_to_index reads uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}: convert to RGB.")
    colours = packed(palette)
    if len(colours) > UNKNOWN or len(np.unique(colours)) < len(colours):
        raise ValueError(f"A palette of {len(colours)} colours must have at most {UNKNOWN}, and none twice.")
    order = np.argsort(colours)
    pixels = packed(rgb)
    place = order[np.searchsorted(colours[order], pixels).clip(max=len(colours) - 1)]
    known = colours[place] == pixels
    return np.where(known, place, UNKNOWN).astype(np.uint8), int((~known).sum())


def packed(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    """One number per colour."""
    return rgb.astype(np.int64) @ np.array([65536, 256, 1])
