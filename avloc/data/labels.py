"""Class lists of the label spaces, and the colours in which AVSBench-semantic draws its maps.

A semantic map holds places in its list where that begins with ``background``, else places plus one. The names
are those of the sets' own annotation files: VGG-SS (names of VGGSound, CC BY 4.0), AVSBench S4 and AVSBench-semantic
(Apache-2.0), VPO, VGGSound-Instruments and MUSIC; ``data_prep/README.md`` tells of each.
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
    "vggss221": (
        "air conditioning noise", "air horn", "airplane", "airplane flyby", "alarm clock ringing",
        "alligators, crocodiles hissing", "baby crying", "baby laughter", "baltimore oriole calling",
        "barn swallow calling", "bathroom ventilation fan running", "beat boxing", "bird chirping, tweeting",
        "bird squawking", "bird wings flapping", "black capped chickadee calling", "blowtorch igniting",
        "bull bellowing", "canary calling", "cap gun shooting", "car engine idling", "car engine knocking",
        "car engine starting", "car passing by", "cat caterwauling", "cat growling", "cat hissing", "cat meowing",
        "cat purring", "cattle mooing", "cattle, bovinae cowbell", "chainsawing trees", "cheetah chirrup",
        "chicken clucking", "chicken crowing", "child singing", "child speech, kid speaking", "children shouting",
        "chimpanzee pant-hooting", "chinchilla barking", "chipmunk chirping", "church bell ringing",
        "civil defense siren", "cow lowing", "coyote howling", "cricket chirping", "crow cawing", "cuckoo bird calling",
        "dinosaurs bellowing", "disc scratching", "dog barking", "dog baying", "dog bow-wow", "dog growling",
        "dog howling", "dog whimpering", "donkey, ass braying", "driving buses", "driving motorcycle",
        "driving snowmobile", "eagle screaming", "electric grinder grinding", "electric shaver, electric razor shaving",
        "elephant trumpeting", "eletric blender running", "elk bugling", "engine accelerating, revving, vroom",
        "female singing", "female speech, woman speaking", "fire truck siren", "fireworks banging",
        "fly, housefly buzzing", "forging swords", "fox barking", "francolin calling", "gibbon howling",
        "goat bleating", "hair dryer drying", "hedge trimmer running", "helicopter", "horse clip-clop",
        "ice cream truck, ice cream van", "lathe spinning", "lawn mowing", "lighting firecrackers", "lions growling",
        "lions roaring", "lip smacking", "machine gun shooting", "magpie calling", "male singing",
        "male speech, man speaking", "missile launch", "motorboat, speedboat acceleration", "mouse squeaking",
        "mynah bird singing", "ocean burbling", "opening or closing car electric windows", "opening or closing drawers",
        "orchestra", "otter growling", "owl hooting", "parrot talking", "penguins braying", "people babbling",
        "people battle cry", "people belly laughing", "people booing", "people burping", "people cheering",
        "people coughing", "people crowd", "people eating apple", "people eating crisps", "people eating noodle",
        "people finger snapping", "people gargling", "people giggling", "people hiccup", "people humming",
        "people marching", "people nose blowing", "people screaming", "people shuffling", "people slurping",
        "people sneezing", "people sniggering", "people sobbing", "people whispering", "people whistling",
        "pheasant crowing", "pigeon, dove cooing", "playing accordion", "playing acoustic guitar", "playing banjo",
        "playing bass drum", "playing bass guitar", "playing bassoon", "playing bongo", "playing bugle",
        "playing castanets", "playing cello", "playing clarinet", "playing congas", "playing cornet", "playing cymbal",
        "playing didgeridoo", "playing djembe", "playing double bass", "playing drum kit", "playing electric guitar",
        "playing electronic organ", "playing erhu", "playing flute", "playing french horn", "playing glockenspiel",
        "playing gong", "playing guiro", "playing hammond organ", "playing harmonica", "playing harp",
        "playing harpsichord", "playing mandolin", "playing oboe", "playing piano", "playing saxophone",
        "playing shofar", "playing snare drum", "playing steel guitar, slide guitar", "playing steelpan",
        "playing table tennis", "playing tambourine", "playing theremin", "playing timbales", "playing trombone",
        "playing trumpet", "playing tympani", "playing ukulele", "playing violin, fiddle", "playing washboard",
        "playing zither", "police car (siren)", "popping popcorn", "race car, auto racing", "railroad car, train wagon",
        "reversing beeps", "rowboat, canoe, kayak rowing", "sea lion barking", "sharpen knife", "sheep bleating",
        "singing bowl", "singing choir", "skateboarding", "skidding", "slot machine", "smoke detector beeping",
        "snake hissing", "snake rattling", "splashing water", "squishing water", "subway, metro, underground",
        "tap dancing", "tapping guitar", "telephone bell ringing", "toilet flushing", "tractor digging",
        "train horning", "train wheels squealing", "train whistling", "turkey gobbling", "typing on computer keyboard",
        "typing on typewriter", "using sewing machines", "vacuum cleaner cleaning floors", "warbler chirping",
        "waterfall burbling", "whale calling", "wind chime", "wood thrush calling", "woodpecker pecking tree",
        "yodelling",
    ),
    "world16": (
        "bell", "drum", "flute", "dog", "cat", "bird", "engine", "siren", "whistle", "guitar", "clock", "frog",
        "violin", "phone", "organ", "kettle",
    ),
}  # fmt: skip
LABEL_SPACES["world_factors27"] = tuple(
    f"{hue} {pattern} {outline}"
    for hue in ("red", "green", "blue")
    for pattern in ("plain", "striped", "dotted")
    for outline in ("disc", "square", "star")
)
# Half of VGG-SS's classes without an instrument that is played: for transfer to sets of instruments.
LABEL_SPACES["vggss110_transfer"] = tuple(n for n in LABEL_SPACES["vggss221"] if not n.startswith("playing "))[:110]


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
