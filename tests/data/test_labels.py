from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from avloc.data.labels import LABEL_SPACES, colours_to_index, voc_palette
from avloc.world.scenes import NAMES

ANNOTATIONS = Path(__file__).resolve().parents[2] / ".." / "shared" / "annotations"
needs_annotations = pytest.mark.skipif(not ANNOTATIONS.exists(), reason="the annotation files are not on this machine")


def test_every_space_has_its_number_of_different_names() -> None:
    sizes = {"avs_s4_23": 23, "avss71": 71, "instruments37": 37, "music11": 11, "coco_vpo22": 22, "world16": 16}
    sizes |= {"vggss221": 221, "vggss110_transfer": 110, "world_factors27": 27}
    assert {name: len(labels) for name, labels in LABEL_SPACES.items()} == sizes
    assert all(len(set(labels)) == len(labels) for labels in LABEL_SPACES.values())
    assert LABEL_SPACES["avss71"][0] == LABEL_SPACES["coco_vpo22"][0] == "background"
    assert LABEL_SPACES["avss71"][70] == "woman"  # datasets.md 2.8
    assert LABEL_SPACES["world16"] == NAMES


@needs_annotations
def test_the_names_are_those_of_the_annotation_files() -> None:
    numbered = json.loads((ANNOTATIONS / "avss" / "label2idx.json").read_text())
    assert {name: i + 1 for i, name in enumerate(LABEL_SPACES["avss71"])} == numbered

    def column(file: str, at: int = 1) -> set[str]:
        with (ANNOTATIONS / file).open(newline="") as f:
            return {row[at] for row in csv.reader(f) if row}

    assert column("avsbench/avs1_s4_test.csv") == set(LABEL_SPACES["avs_s4_23"])
    assert column("vggsound_instruments/vgginstruments_train.txt") == set(LABEL_SPACES["instruments37"])
    # The train list here is an excerpt; the test list has the rest.
    assert column("music/music_solo_train.txt") | column("music/music_solo_test.csv") == set(LABEL_SPACES["music11"])


def test_the_palette_is_that_of_pascal_voc() -> None:
    palette = voc_palette(256)
    assert palette.dtype == np.uint8
    assert palette[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]  # datasets.md 2.8
    # The colours of VOC's own classes: aeroplane 1, bird 3, chair 9, tvmonitor 20, "void" 255.
    assert palette[[9, 15, 20, 255]].tolist() == [[192, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]]
    assert len({tuple(c) for c in palette.tolist()}) == 256


def test_colours_become_indices_and_unknown_ones_are_counted() -> None:
    palette = voc_palette(71)
    index = np.random.default_rng(0).integers(0, 71, (30, 20)).astype(np.uint8)
    found, unknown = colours_to_index(palette[index], palette)
    np.testing.assert_array_equal(found, index)
    assert found.dtype == np.uint8
    assert unknown == 0
    rgb = palette[index]
    rgb[3, 4] = [1, 2, 3]
    rgb[5, 6] = [255, 255, 255]
    rgb[7, 8] = palette[71 - 1] + 1
    found, unknown = colours_to_index(rgb, palette)
    assert unknown == 3
    for place in ((3, 4), (5, 6), (7, 8)):
        assert found[place] == 255
        index[place] = 255
    np.testing.assert_array_equal(found, index)


def test_what_is_no_coloured_map_is_refused() -> None:
    palette = voc_palette(4)
    for bad in (np.zeros((3, 3), np.uint8), np.zeros((3, 3, 4), np.uint8), np.zeros((3, 3, 3))):
        with pytest.raises(ValueError, match=r"reads uint8 \[H, W, 3\]"):
            colours_to_index(bad, palette)  # type: ignore[arg-type]
    for bad in (voc_palette(256), np.zeros((2, 3), np.uint8)):
        with pytest.raises(ValueError, match="at most 255, and none twice"):
            colours_to_index(np.zeros((3, 3, 3), np.uint8), bad)
