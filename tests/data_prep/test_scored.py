"""From the official layout, through its converter, to the numbers of ``avloc test``: every evaluation set of the field.

The method is the centre box, C: rows and columns 56..167 of the 224 x 224 grid, 112² = 12544 of 50176 cells. Maps are
0 or 1, so every fixed threshold cuts C out, "the larger half, >=" is the whole picture, and "as many pixels as the
truth has, >" is nothing wherever the truth is no larger than C. A quadrant Q (a corner of side 112) shares 56² = 3136
cells with C: IoU = 3136 / (2 * 12544 - 3136) = 1/7.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from rich.console import Console

from avloc import cli
from avloc.data.module import AVDataModule, converter, named_split
from avloc.evaluation.benchmarks import BENCHMARKS, benchmark
from avloc.evaluation.evaluator import Evaluator
from avloc.evaluation.protocols import protocol
from avloc.methods.baselines.controls import CentreBox
from avloc.report.tables import report
from data_prep import common
from tests.data.clips import write_clip
from tests.data_prep import (
    test_ade20k,
    test_avs_robust,
    test_avsbench,
    test_duet,
    test_extended,
    test_flickr,
    test_instruments,
    test_is3,
    test_music,
    test_vggss,
    test_vggss_sub,
    test_vpo,
)
from tests.data_prep.little import InThisProcess, write_sound

NAMES = [name for name in BENCHMARKS if not name.startswith("world")]
SPLITS = ["avs_s4:train", "avs_v3:train"]
CENTRE, CORNER = [56, 56, 168, 168], [0, 0, 112, 112]
CENTRED = [[0.25, 0.25, 0.75, 0.75]]  # as a fraction of the picture
A, B = "aaaaaaaaaaa_000001", "bbbbbbbbbbb_000002"
C, D = "ccccccccccc_000003", "ddddddddddd_000004"


def rows_of(boxes: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Rows of SSLalignment's lists."""
    return [{"image": f"/x/{stem}.jpg", "audio": f"/x/{stem}.wav", "gt_box": box} for stem, box in boxes.items()]


def frames_of(videos: Sequence[str], wrong: str, box: list[int]) -> dict[str, list[int]]:
    """C for the five frames of each video, but for one frame."""
    return {f"{video}_{k}": CENTRE for video in videos for k in range(1, 6)} | {wrong: box}


def conversions(root: Path) -> Iterator[tuple[str, list[Any]]]:
    """Every converter with the options that turn a miniature of its official layout into shards."""
    media = test_vggss.loose_vggss(root / "vggss")
    yield "vggss", ["--media", media, "--boxes", media / "vggss.json", *test_vggss.heard_and_unheard(media)]
    release = test_vggss_sub.lay_out(root / "vggss_sub", clips=7)
    yield "vggss_sub", ["--media", release / "media", "--boxes", release / "vggss.json"]
    yield "vggss_ext", test_extended.extended_vggss(root / "vggss_ext", (0.25, 0.25, 0.75, 0.75))

    media = test_flickr.acl_flickr(root / "flickr")
    yield "flickr", ["--media", media, "--list", media / "list.csv"]
    yield "flickr_ext", test_extended.extended_flickr(root / "flickr_ext")

    s4 = test_avsbench.official_s4(root / "s4")
    yield "avs_s4", ["--media", s4, "--split", "test", "train"]
    framed = frames_of([test_avsbench.YT, "yyyyyyyyyyy"], "yyyyyyyyyyy_3", CORNER)
    (s4 / "s4_box.json").write_text(json.dumps(rows_of(framed)))
    yield "avs_s4", ["--media", s4, "--boxes", s4 / "s4_box.json"]
    ms3 = test_avsbench.official_ms3(root / "ms3")
    yield "avs_ms3", ["--media", ms3, "--avss", ms3 / "metadata.csv"]
    framed = frames_of([f"{test_avsbench.YT}_1.mp4", "xv7eM6-UmkY.mp4"], "xv7eM6-UmkY.mp4_1", [0, 0, 0, 0])
    (ms3 / "ms3_box.json").write_text(json.dumps(rows_of(framed)))
    yield "avs_ms3", ["--media", ms3, "--boxes", ms3 / "ms3_box.json"]

    acl = test_avs_robust.acl_s4(root / "acl")
    yield "avs_robust", ["--set", "s4", "--media", acl.parent, "--list", acl / "list.csv"]
    yield "avs_robust", ["--set", "ms3", "--media", ms3, "--avss", ms3 / "metadata.csv"]

    avss = test_avsbench.official_avss(root / "avs_released")
    many = "mmmmmmmmmmm_1"
    write_sound(avss / "v1m" / many / "audio.wav", seconds=5)
    yield "avss", ["--media", avss]
    for part in ("v2", "v1m"):
        yield "avss", ["--media", avss, "--only", part]
    dog = ("sssssssssss", "sssssssssss_0_5000", 0, 0, "dog", "test", "v1s")
    yield "avss", ["--media", test_avsbench.official_avss(root / "v1s", dog), "--only", "v1s"]
    few = f"{many},{many},0,0,background,unseen,v1m"
    shots = {1: [test_avsbench.UNSEEN], 3: [few], 5: [test_avsbench.UNSEEN, few]}
    lists = test_avsbench.v3_lists(root / "v3", [test_avsbench.UNSEEN, few], shots)
    yield "avs_v3", ["--media", avss, "--lists", lists, "--split", "test", "train"]

    scenes = {"fox_train_1_fox": CENTRE, "fox_train_1_train": CENTRE, "cat_dog_2_cat": CENTRE, "cat_dog_2_dog": CORNER}
    single = {"000000000001_1": CENTRE, "000000000002_1": CORNER}
    groups = {"000000000001_1": CORNER, "000000000002_1": CENTRE, "000000000002_2": CENTRE}
    for name, layout, folder, stems in (
        ("is3", test_is3, "IS3", scenes),
        ("vpo_ss", test_vpo, "media", single),
        ("vpo_ms", test_vpo, "media", groups),
    ):
        release = layout.lay_out(root / name, rows_of(stems))
        for truth in ("box", "mask"):
            yield name, ["--media", release / folder, "--annotations", release / "list.json", "--truth", truth]

    release = test_ade20k.lay_out(root / "ade20k")
    for truth in ("mask", "box"):
        yield "ade20k_sound", ["--media", release / "ADE20KSoundPrompted", "--truth", truth]

    found = {A: ("dog", [[0.25, 0.25, 0.75, 0.75]]), B: ("cat", [[0, 0, 0.5, 0.5]])}
    release = test_duet.lay_out(root / "duet", [[A, "dog", B, "cat"], [B, "cat", A, "dog"]], found)
    for table in ("duet.csv", "single.csv"):
        options = ["--media", release / "media", "--boxes", release / "vggss.json"]
        yield "vgg_duet", [*options, "--annotations", release / table]
    yield "vgg_duet", [*options, "--annotations", release / "duet.csv", "--name", "vgg_mix2"]
    found = {A: ("dog", CENTRED), B: ("cat", CENTRED), C: ("owl", CENTRED), D: ("hen", CENTRED)}
    release = test_duet.lay_out(root / "mixed", [[A, "dog", B, "cat"], [C, "owl", D, "hen"]], found)
    (release / "single.csv").write_text("".join(f"{key},{label}\n" for key, (label, _) in found.items()))
    options = ["--media", release / "media", "--boxes", release / "vggss.json"]
    for sources in ("3", "4"):
        yield "vgg_duet", [*options, "--annotations", release / "single.csv", "--sources", sources]

    played = {f"sample{n:04d}": label for n, label in enumerate(("banjo", "cello", "harp", "piano", "tabla"))}
    pairs = [["sample0000", "banjo", "sample0003", "piano"], ["sample0001", "cello", "sample0004", "tabla"]]
    release = test_instruments.lay_out(root / "instruments", played, pairs)
    for name, table in (("vgg_instruments", "single.csv"), ("vgg_instruments_mixed", "mixed.csv")):
        yield name, ["--media", release / "media", "--annotations", release / table]

    release = test_music.lay_out(root / "music")
    duet = {"class_src1": "cello", "bbox_src1": [0.25] * 2 + [0.5] * 2, "class_src2": "flute"}
    test_music.add_duet(release, {"file": "K_U5-GbPgi0_001_00030", **duet, "bbox_src2": [0, 0, 0.5, 0.5]})
    yield "music_solo", ["--media", release / "media", "--annotations", release / "solo.json"]
    yield "music_duet", ["--media", release / "media", "--annotations", release / "duet.json"]


CONVERTED: set[str] = {"vggsound"}  # that one in `test_the_command_line`


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, source = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "Pool", InThisProcess)
        for name, options in conversions(source):
            convert(name, out, options)
    return out


def convert(name: str, out: Path, options: Sequence[Any]) -> None:
    module = import_module(f"data_prep.{name}")
    assert module.main([*map(str, options), "--out", str(out), "--jobs", "1"]) == 0, name
    CONVERTED.add(name)


def scored(data: Path, folder: Path, *names: str) -> dict[str, Any]:
    """The sets of ``results.json``, after ``avloc test`` without its logger."""
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[Evaluator()],
    )
    trainer.test(CentreBox(), datamodule=AVDataModule(root=str(data), test=list(names), num_workers=0), verbose=False)
    return json.loads((folder / "results.json").read_text())["sets"]


@dataclass(frozen=True)
class Hand:
    """What a set's miniature must give.

    Attributes:
        units: samples: frames, times sound conditions.
        centre: ``<protocol>/<metric>`` of C.
        full: the same of the full frame, a control beside it.
    """

    units: int
    centre: dict[str, float]
    full: dict[str, float] = field(default_factory=dict)


# S4's masks: 56 rows from 8k on, columns 16..71; C shares 8k rows and 16 columns of them.
S4 = {k: 128 * k / (56**2 + 112**2 - 128 * k) for k in range(1, 6)}
# MS3's: the same and another 84 columns to the right, whole within C; the first frame is empty, where the score is the
# share of the picture that is left alone.
MS3 = [3 / 4, *(k * 8 * (16 + 56) / (2 * 56**2 + 112**2 - k * 8 * (16 + 56)) for k in range(2, 6))]
MS3_MEAN = sum(MS3) / 5
ROBUST_S4 = (S4[1] + S4[2]) / 2
# AVSS: a horse in a quadrant; the last of ten frames of the v2 video has a wolf in the opposite one too, and a quadrant
# of no class: 2 * 56² / (2 * 112² + 112² - 2 * 56²) = 1/5.
V2 = (9 / 7 + 1 / 5) / 10
BOTH = (14 / 7 + 1 / 5) / 15
# Consensus of the three annotators of test_flickr's example: the first box holds C, the first two share columns 70..167
# and rows 42..195 of it, the rest of C weighs half: 98 * 112 + 14 * 112 / 2 of 18840.5.
WORKED = (98 * 112 + 14 * 112 / 2) / 18840.5


def semantic(frames: int) -> dict[str, float]:
    """Scores of C as the majority's class, horse, on ``frames`` - 1 frames with a horse and one with a wolf too.

    In cells of 56²: a frame has 16, a quadrant 4, C 4, what they share 1. Background: 16 - 4 - 4 + 1 = 9 right of
    16 - 1 = 15; in the last frame 3 right of its quadrant's 4 and the 12 predicted ones, so 3/13.
    """
    background, horse, wolf = (9 / 15 * (frames - 1) + 3 / 13) / frames, 1 / 7, 0.0
    total = background + horse + wolf
    # Without the quadrant of no class, 4 of 12 cells are right in the last frame.
    return {
        "avss/official/miou": total / 71,
        "avss/drop-first/miou": (horse + wolf) / 70,
        "avss/drop-last/miou": total / 70,
        "avss/seen/miou": total / 3,
        "avss/dataset/accuracy": ((9 + 1) * (frames - 1) + 4) / (16 * (frames - 1) + 12),
    }


def boxes(test: str, ious: list[float], areas: list[float]) -> dict[str, float]:
    """All eight rules on boxes with these IoUs with C and these shares of the picture, none larger than C."""
    means = {"acl": ious, "fixed": ious, "median": areas, "top50": areas, "top50-strict": ious, "lvs": ious}
    means |= {"adaptive": [0.0], "adaptive-ge": ious}
    return {f"{test}/{rule}/mean_ciou": sum(v) / len(v) for rule, v in means.items()}


def masks(mean: float, of_videos: float | None = None) -> dict[str, float]:
    by_video = mean if of_videos is None else of_videos
    found = {"dataset": mean, "official": mean, "gavs": by_video, "acl": by_video}
    return {f"avs/{rule}/miou": value for rule, value in found.items()}


def extended(positives: int, found: int, negatives: int) -> dict[str, float]:
    """All confidences are 1: everything is detected at once, and nothing is missed in the published reading."""
    precision, recall = found / (positives + negatives), found / positives
    return {
        "extended/acl/loc_acc": recall,
        "extended/acl/ap": 0.0,  # recall at the first threshold is not credited
        "extended/slavc/loc_acc": 0.0,  # the larger half is the whole picture
        "extended/slavc-absolute/loc_acc": recall,
        "extended/slavc-absolute/max_f1_unrounded": 2 * precision / (precision + 1),
        "extended/exact/ap": precision * recall,
        "extended/exact/max_f1": 2 * precision * recall / (precision + recall),
        "negative/pia/pia": 1 / 4,
    }


def robust(mean: float, kinds: Sequence[str] = ("silence", "noise", "offscreen")) -> dict[str, float]:
    """C does not listen: the score under every sound is the same."""
    same = {f"robust/avsbench/miou_{kind}": mean for kind in ("positive", *kinds)}
    same |= {f"robust/avsbench/fpr_{kind}": 1 / 4 for kind in ("positive", *kinds)}
    harmonic = 2 * mean * (1 - mean)  # over mean + 1 - mean
    return same | {"robust/global-inferred/gmiou": harmonic, "robust/global-inferred/gfpr": 1 / 4}


# Average precision of C on C: 1. On Q: a quarter found at a precision of a quarter, the rest with the whole picture.
AP_CORNER = 1 / 4 * 1 / 4 + 3 / 4 * 1 / 4
C_AND_Q = {"vggss/acl/mean_ciou": (1 + 1 / 7) / 2, "vggss/top50-strict/ciou": 1 / 2, "vggss/adaptive/ciou": 0.0}
A_FRAME_OF_TEN_WRONG = {"interactive/is3/iiou": 1 / 2, "interactive/is3/ciou": 9 / 10, "interactive/acl/iiou": 1 / 2}

HAND = {
    # 56:168 x 56:112, half of C; and the upper right quadrant
    "vggss": Hand(
        2,
        boxes("vggss", [1 / 2, 1 / 7], [1 / 8, 1 / 4]) | {"vggss/acl/ciou": 1 / 2},
        {"vggss/acl/mean_ciou": (1 / 8 + 1 / 4) / 2},
    ),
    "vggss/heard": Hand(1, boxes("vggss", [1 / 2], [1 / 8]) | {"vggss/acl/ciou": 1}),
    "vggss/unheard": Hand(1, boxes("vggss", [1 / 7], [1 / 4]) | {"vggss/acl/ciou": 0}),
    # all C; two dogs are left for testing
    "vggss_sub": Hand(
        2, boxes("vggss", [1.0], [1 / 4]) | {"vggss/adaptive/mean_ciou": 0.0, "vggss/fixed/mean_ciou": 1}
    ),
    "vggss_ext": Hand(6, extended(3, 1, 3), {"negative/pia/pia": 1}),
    "vggss_ext/other_class": Hand(5, extended(3, 1, 2)),
    # twice WORKED; and half of the picture with the weight 1/2: 112 * 56 / 2 of (224 * 112 / 2 + 112 * 56)
    "flickr": Hand(3, {"flickr/acl/mean_ciou": (2 * WORKED + 1 / 6) / 3, "flickr/acl/ciou": 2 / 3}),
    "flickr_ext": Hand(4, extended(2, 2, 2)),
    # of the second video, the third mask is missing
    "avs_s4": Hand(
        9,
        masks((2 * sum(S4.values()) - S4[3]) / 9, (sum(S4.values()) / 5 + (sum(S4.values()) - S4[3]) / 4) / 2)
        # best at threshold 0, where all is predicted: 1.3 m / (0.3 m + 16 m)
        | {"avs/adaptive/miou": 0.0, "avs/dataset/fscore": 1.3 / 16.3},
        {"avs/dataset/miou": 1 / 16},
    ),
    "avs_s4:train": Hand(1, masks(S4[1])),
    "avs_s4_box": Hand(10, A_FRAME_OF_TEN_WRONG | {"vggss/acl/mean_ciou": (9 + 1 / 7) / 10}),
    # the mean of 1.3 hits / (0.3 m + n) over the frames that are not empty; k is 3.5 on average
    "avs_ms3": Hand(
        10, masks(MS3_MEAN) | {"avs/dataset/fscore": 1.3 * 3.5 * 8 * (16 + 56) / (0.3 * 2 * 56**2 + 112**2)}
    ),
    "avs_ms3_box": Hand(10, A_FRAME_OF_TEN_WRONG | {"vggss/acl/mean_ciou": 9 / 10}),
    "avss": Hand(15, semantic(15) | masks(BOTH, (1 / 7 + V2) / 2)),
    "avss/v2": Hand(10, semantic(10) | masks(V2)),
    "avss_v1s": Hand(5, masks(1 / 7)),
    "avss_v1m": Hand(5, masks(1 / 7)),
    "avss_v2": Hand(10, semantic(10) | masks(V2)),
    "avs_v3": Hand(15, masks(BOTH, (1 / 7 + V2) / 2)),
    "avs_v3:train": Hand(1, masks(1 / 7)),
    "avs_v3/v3_unseen": Hand(15, masks(BOTH, (1 / 7 + V2) / 2)),
    "avs_v3/v3_1shot_test": Hand(10, masks(V2)),
    "avs_v3/v3_3shot_test": Hand(5, masks(1 / 7)),
    "avs_v3/v3_5shot_test": Hand(15, masks(BOTH, (1 / 7 + V2) / 2)),
    # pairs: both C; C and Q
    "is3": Hand(
        4, {"interactive/is3/iiou": 1 / 2, "interactive/is3/ciou": 3 / 4, "vggss/acl/mean_ciou": (3 + 1 / 7) / 4}
    ),
    "is3_seg": Hand(4, masks((3 + 1 / 7) / 4)),
    "vpo_ss": Hand(2, C_AND_Q),
    "vpo_ss_seg": Hand(2, masks((1 + 1 / 7) / 2)),
    # Q alone in its picture; two C in one picture
    "vpo_ms": Hand(3, {"interactive/is3/iiou": 1 / 2, "interactive/is3/ciou": 2 / 3, "interactive/is3/n_groups": 2}),
    "vpo_ms/true_group": Hand(2, {"interactive/is3/iiou": 1, "interactive/is3/n_groups": 1}),
    "vpo_ms_seg": Hand(3, masks((2 + 1 / 7) / 3)),
    # two squares of 56 within C, a quarter of it each; a square of 56 far from it
    "ade20k_sound": Hand(2, masks((1 / 2 + 0) / 2)),
    # whose smallest boxes are C and that square
    "ade20k_sound_box": Hand(2, {"vggss/acl/mean_ciou": 1 / 2, "vggss/acl/ciou": 1 / 2}),
    "avs_robust_s4": Hand(4 * 2 * 4, robust(ROBUST_S4) | {"robust/s4/miou_noise": ROBUST_S4}),
    "avs_robust_ms3": Hand(2 * 5 * 4, robust(MS3_MEAN)),
    "vgg_single": Hand(
        2, C_AND_Q | {"single/tvsl/ap": (1 + AP_CORNER) / 2, "multi/avgn/precision@10": 1, "multi/avgn/precision@30": 0}
    ),
    # the upper 10, 20 .. 50 rows, which C does not touch: precision is their share of the picture
    "vgg_instruments": Hand(
        5, masks(0.0) | {"single/tvsl/ap": 30 / 224}, {"avs/dataset/miou": 30 / 224, "single/tvsl/ap": 30 / 224}
    ),
    # rows of two pictures, 10, 40, 20 and 50 rows of one of them
    "vgg_instruments_mixed": Hand(
        2, {"multi/sources/cap": 30 / 448, "multi/tvsl/cap": 30 / 448, "multi/noprior/count_accuracy": 0}
    ),
    # C of a row is rows 56..167, columns 112..335. It holds half of C on the left, half of C and half of Q on the
    # right, nothing of Q on the left, and each is an eighth of the row: AP 1/2 * 1/4 + 1/2 * 1/8 = 3/16, or 1/8; IoU
    # 1 / (2 + 4 - 1) in quarters of C, or 0. NoPrior: half of a tile's C is predicted; what it fits better, it takes
    # with 6272 / (12544 + 6272), the other source has no map.
    "vgg_duet": Hand(
        2,
        {
            "multi/sources/cap": (3 * 3 / 16 + 1 / 8) / 4,
            "multi/sources/ciou@10": 3 / 4,  # the larger half leaves out what the map says is nothing, so it is C
            "multi/sources/ciou@30": 0,
            "multi/tvsl/cap": (3 * 3 / 16 + 1 / 8) / 4,
            "multi/tvsl/ciou@30": 0,
            "multi/tvsl/release@30": 3 * (1 / 5) / 4,
            "multi/noprior/ciou@30": 1 / 2,
            "multi/noprior/ciou@50": 0,
            "multi/noprior/count_accuracy": 0,
        },
    ),
    # C in every tile of three or four. That of a row is columns 168..503 of 672, three times C, and holds that of the
    # middle tile; or columns 224..671 of 896, four times C, with those of the middle two. The rest has the precision of
    # the whole row: 1/12, or 1/16.
    "vgg_mix3": Hand(
        4,
        {
            "multi/sources/cap": (1 / 3 + 2 / 12) / 3,
            "multi/sources/ciou@10": 1 / 3,
            "multi/tvsl/ciou@30": 1 / 3,
            "multi/tvsl/release@30": 1 / 3 / 3,
        },
    ),
    "vgg_mix4": Hand(
        4,
        {
            "multi/sources/cap": (2 / 4 + 2 / 16) / 4,
            "multi/sources/ciou@10": 2 / 4,
            "multi/tvsl/ciou@30": 0,
            "multi/tvsl/release@30": 2 / 4 / 4,
        },
    ),
    # 28:140 x 56:112 shares 84 * 56 with C: 3/4 of it, 3/8 of C; and 0:56 x 0:112, which shares nothing
    "music_solo": Hand(
        2,
        {
            "vggss/acl/mean_ciou": (3 / (4 + 8 - 3) + 0) / 2,
            "single/tvsl/ap": ((3 / 4 * 3 / 8 + 1 / 4 * 1 / 8) + 1 / 8) / 2,
        },
    ),
    # C and Q in one picture, one map for both
    "music_duet": Hand(
        1,
        {
            "multi/sources/cap": (1 + AP_CORNER) / 2,
            "multi/sources/piap": (1 + AP_CORNER) / 2,
            "multi/sources/ciou@10": 1,
            "multi/tvsl/ciou@30": 1 / 2,
            "multi/tvsl/release@30": (1 + 1 / 7) / 2,
        },
    ),
}


HAND["vgg_mix2"] = HAND["vgg_duet"]


@pytest.mark.parametrize("name", [*NAMES, *SPLITS])
@pytest.mark.filterwarnings("ignore")
def test_scores_by_hand(name: str, data: Path, tmp_path: Path) -> None:
    hand, protocols = HAND[name], benchmark(name).protocols
    (found,) = scored(data, tmp_path, name).values()
    assert (found["samples"], found["whole"], found["protocols"]) == (hand.units, True, list(protocols))
    assert set(found["counted"].values()) == {hand.units}
    assert not any(found["missing"].values())
    assert {"model", "full frame", "centre box", "random map", "mean map"} == set(found["rows"])
    assert found["rows"]["centre box"] == found["rows"]["model"]
    for row in found["rows"].values():
        assert set(row) == set(protocols)
        for each in protocols:
            assert math.isfinite(row[each][protocol(each).headline]), each
    for row, numbers in (("model", hand.centre), ("full frame", hand.full)):
        for path, value in numbers.items():
            rule, _, metric = path.rpartition("/")
            assert found["rows"][row][rule][metric] == pytest.approx(value, abs=1e-9), (row, path)


def test_every_converter_is_among_them(data: Path) -> None:
    folder = Path(import_module("data_prep.common").__file__ or "").parent
    programs = {p.stem for p in folder.glob("*.py") if '__name__ == "__main__"' in p.read_text()}
    # Two add to sets and one runs the others; they write none. What a user's own folder becomes is no set of the field.
    assert programs - {"seac_masks", "object_phrases", "command", "folder"} == CONVERTED
    assert {converter(named_split(name, "test")[0]) for name in NAMES} <= programs
    assert {p.parent.name for p in data.glob("*/*-test.json")} == {named_split(name, "test")[0] for name in NAMES}


@pytest.mark.filterwarnings("ignore")
def test_a_report_of_many_sets(data: Path, tmp_path: Path) -> None:
    names = ["vggss", "vggss/heard", "vggss_ext", "avs_s4", "avss", "avs_robust_s4", "is3", "vgg_duet", "music_duet"]
    assert list(scored(data, tmp_path, *names)) == names
    tables = report([tmp_path], tmp_path / "report", console=Console(quiet=True))
    assert [t.set for t in tables] == names
    for table in tables:
        assert {"own", "control"} <= set(table.kinds)
    percent = {t.set: dict(zip(t.columns, t.rows[t.kinds.index("own")], strict=True)) for t in tables}
    assert percent["vggss"]["ciou"].startswith("50.00")
    assert (tmp_path / "report" / "report.html").is_file()
    with (tmp_path / "report" / "report.csv").open() as f:
        assert {r["set"] for r in csv.DictReader(f)} == set(names)


YAML = """
model: {{class_path: avloc.methods.baselines.controls.CentreBox}}
data: {{root: {root}, test: [vggss], num_workers: 0}}
trainer: {{accelerator: cpu, default_root_dir: {runs}, enable_progress_bar: false}}
"""


@pytest.mark.filterwarnings("ignore")
def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG-SS once more, of the clips of VGGSound."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    clips = tmp_path / "clips"
    write_clip(clips / "ghijklmnop6_000004.mp4", seconds=6, fps=5)
    (clips / "vggsound.csv").write_text("ghijklmnop6,4,airplane,test\n")
    boxes = [{"file": "ghijklmnop6_000004", "class": "airplane", "bbox": [[0.25, 0.25, 0.75, 0.5]]}]
    (clips / "vggss.json").write_text(json.dumps(boxes))
    options = ["--videos", clips, "--csv", clips / "vggsound.csv", "--boxes", clips / "vggss.json"]
    convert("vggsound", tmp_path / "data", options)
    (tmp_path / "centre.yaml").write_text(YAML.format(root=tmp_path / "data", runs=tmp_path / "runs"))
    cli.main(["test", "-c", str(tmp_path / "centre.yaml")])
    (path,) = (tmp_path / "runs").rglob("results.json")
    found = json.loads(path.read_text())["sets"]["vggss"]
    assert found["counted"]["model"] == 1
    assert found["rows"]["model"]["vggss/acl"]["mean_ciou"] == 1 / 2  # half of C
    cli.main(["report", str(path.parent), "--out", str(tmp_path / "report")])
    assert "centre" in (tmp_path / "report" / "report.md").read_text()
