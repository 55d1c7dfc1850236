from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
import torch
from matplotlib import colormaps
from PIL import Image

from avloc.report.panels import PALETTE, Panel, gallery, overlap, overlay, page, panel_strip, png, sources_of


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def box(rows, columns, size=(40, 60)):
    plane = torch.zeros(size)
    plane[rows, columns] = 1
    return plane


def test_cold_pixels_stay_and_hot_ones_take_the_colour(image):
    heat = box(slice(10, 20), slice(30, 50))
    drawn = overlay(image, heat, alpha=1.0)
    hot = np.rint(np.array(colormaps["turbo"](1.0)[:3]) * 255)
    assert drawn.dtype == np.uint8
    assert (drawn[10:20, 30:50] == hot).all()
    cold = ~heat.bool().numpy()
    assert (drawn[cold] == image.permute(1, 2, 0).numpy()[cold]).all()


def test_warm_pixels_are_mixed_by_alpha_and_heat(image):
    drawn = overlay(image, torch.full((5, 5), 0.6), alpha=0.5)
    colour = np.array(colormaps["turbo"](153 / 255)[:3]) * 255
    expected = 0.7 * image.permute(1, 2, 0).numpy() + 0.3 * colour
    assert np.abs(drawn - expected).max() <= 0.51


def test_truth_outline_lies_inside_the_region_even_at_the_border(image):
    truth = box(slice(0, 20), slice(0, 30))
    drawn = overlay(image, torch.zeros(8, 8), truth)
    green = (drawn == (64, 255, 96)).all(-1)
    expected = truth.bool().numpy().copy()
    expected[2:18, 2:28] = False
    assert (green == expected).all()


def test_overlap_by_hand():
    truth = torch.tensor([[1.0, 0.5], [0.0, 0.0]])
    heat = torch.tensor([[0.5, 0.4], [0.9, 0.0]])
    assert overlap(heat, truth) == pytest.approx(1.0 / 2.5)
    assert overlap(torch.zeros(2, 2), torch.zeros(2, 2)) == 1.0
    assert overlap(torch.ones(2, 2), torch.zeros(2, 2)) == 0.0


def test_strip_has_its_tiles_side_by_side(image):
    heat = box(slice(10, 20), slice(30, 50))
    strip = panel_strip(image, heat, heat)
    assert strip.shape == (40, 4 * 60 + 3 * 4, 3)
    picture = image.permute(1, 2, 0).numpy()
    assert (strip[:, :60] == picture).all()
    binary = strip[:, -60:]
    assert (binary[10:20, 30:50] == picture[10:20, 30:50]).all()
    assert (binary[0] == picture[0] // 5).all()
    assert panel_strip(image, None, heat).shape[1] == 3 * 60 + 2 * 4
    assert panel_strip(image, heat, heat, "dog", 0.5).shape[0] > 40


class Sources(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_page_holds_its_media_and_escapes_labels(image, tmp_path):
    t = torch.arange(1600) / 16000
    sound = 0.5 * torch.sin(2 * torch.pi * 440 * t)
    heat = box(slice(10, 20), slice(30, 50))
    panels = [Panel("clip/1", image, heat, heat, "<b>dog & cat</b>", sound), Panel("clip/2", image, heat)]
    page(panels, tmp_path / "p.html", "world:single")
    parser = Sources()
    parser.feed((tmp_path / "p.html").read_text())
    assert "<b>dog & cat</b>" in parser.text
    assert "IoU 1.00" in parser.text
    assert [tag for tag, _ in parser.found] == ["img", "audio", "img"]
    assert all(source.startswith("data:") for _, source in parser.found), "nothing from outside the file"
    decoded = [base64.b64decode(re.sub("^data:[^,]*,", "", source)) for _, source in parser.found]
    assert (np.asarray(Image.open(io.BytesIO(decoded[0]))) == panel_strip(image, heat, heat)).all()
    samples, rate = soundfile.read(io.BytesIO(decoded[1]))
    assert rate == 16000
    assert np.abs(samples - sound.numpy()).max() < 1e-4


def test_gallery_stacks_panels_of_different_widths(image, tmp_path):
    heat = torch.rand(11, 11)
    gallery([Panel("a", image, heat, box(0, 0)), Panel("b", image, heat)], tmp_path / "g.png", "set")
    picture = Image.open(tmp_path / "g.png")
    assert picture.width == 4 * 60 + 3 * 4
    assert picture.height > 80
    gallery([], tmp_path / "empty.png", "none")
    assert Image.open(tmp_path / "empty.png").width == 1


def test_png_is_lossless(image):
    picture = image.permute(1, 2, 0).numpy()
    assert (np.asarray(Image.open(io.BytesIO(png(picture)))) == picture).all()


def two_sources(names=("dog", "bell")):
    truth = torch.stack([box(slice(0, 20), slice(0, 30)), box(slice(20, 40), slice(30, 60)), torch.zeros(40, 60)])
    return truth, list(names), [3, 7, -1]


def test_each_source_of_a_mixture_has_its_own_colour(image):
    truth, names, classes = two_sources()
    maps = torch.stack([truth[1], truth[0]])  # answered in the other order
    sources = sources_of(truth, maps, names, classes, answered=[7, 3])
    assert sources.places == [1, 0]
    assert sources.legend == [("dog", "#e69f00"), ("bell", "#56b4e9")]
    drawn = overlay(image, maps.amax(0), truth.amax(0), alpha=0.85, sources=sources)  # 0.15 more: opaque
    assert (drawn[2:18, 2:28] == PALETTE[0]).all()
    assert (drawn[22:38, 32:58] == PALETTE[1]).all()
    strip = panel_strip(image, truth.amax(0), maps.amax(0), sources=sources)[:, 64:124]
    assert (strip[0, :30] == PALETTE[0]).all()
    assert (strip[39, 30:] == PALETTE[1]).all()
    assert (strip[5, 5] == image[:, 5, 5].numpy()).all(), "an outline, nothing inside"


def test_a_class_that_does_not_sound_has_a_colour_beside_the_true_ones():
    truth, names, classes = two_sources()
    sources = sources_of(truth, torch.rand(3, 8, 8), names, classes, answered=[7, 9, -1], spelt={9: "cat"})
    assert sources.names == ["dog", "bell", "cat"]
    assert sources.places == [1, 2]
    assert len(sources.maps) == 2
    assert len(sources.truth) == 2


def test_maps_without_classes_are_paired_by_the_heat_they_share():
    truth, names, classes = two_sources()
    maps = torch.stack([torch.full((40, 60), 0.1), 0.9 * truth[1], 0.6 * truth[0]])
    sources = sources_of(truth, maps, names, classes)
    assert sources.places == [2, 1, 0]
    assert sources.legend[2][0] == "source 3"


def test_one_map_for_all_sources_is_drawn_by_heat(image):
    truth, names, classes = two_sources()
    heat = truth.amax(0)
    sources = sources_of(truth, heat[None], names, classes)
    assert sources.places == []
    drawn = overlay(image, heat, heat, sources=sources)
    assert (drawn[5, 5] == overlay(image, heat)[5, 5]).all()
    assert (drawn[0, 0] == PALETTE[0]).all()


def test_a_single_source_has_no_colours():
    truth = box(slice(0, 20), slice(0, 30))[None]
    assert sources_of(truth, truth) is None
    assert sources_of(truth, truth, ["dog"], [3], answered=[3]) is None
    assert sources_of(None, torch.rand(2, 8, 8)) is None
    both = sources_of(None, torch.rand(2, 8, 8), answered=[3, 4], spelt={3: "dog"})
    assert both.names == ["dog", "class 4"], "nothing sounds, and two were answered"


def test_names_of_sources_are_escaped_on_the_page(tmp_path, image):
    truth, names, classes = two_sources(("<script>dog", "bell"))
    sources = sources_of(truth, truth[:2], names, classes)
    page([Panel("k", image, truth.amax(0), truth.amax(0), sources=sources)], tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;dog" in text
