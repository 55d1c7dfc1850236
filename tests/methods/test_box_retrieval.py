"""Boxes ranked by a space, against a loop over one box at a time with Pillow's crops, and answers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from avloc.backbones.proposals import BoxSource, Detector, Proposals, SamPoints, StoredBoxes, write_boxes
from avloc.methods.baselines.box_retrieval import BoxRetrieval, crop
from avloc.methods.baselines.spaces import Space
from avloc.types import AVBatch
from avloc.weights import WeightFile
from tests.methods.tiny import tiny_batch, tiny_sam_files

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
RED, GREEN, BLUE = (torch.tensor(c, dtype=torch.uint8).view(3, 1, 1) for c in ([255, 0, 0], [0, 255, 0], [0, 0, 255]))


class Colour(Space):
    """Sees a crop's mean colour; the first three samples of a sound are the colour that it has."""

    def __init__(self, image_size: int = 8) -> None:
        files = {"colour": WeightFile("random", None, "")}
        super().__init__(sample_rate=8000, seconds=0.5, image_size=image_size, width=3, files=files)

    def sound_embedding(self, audio: Tensor) -> Tensor:
        return audio[:, :3]

    def picture_embedding(self, pixels: Tensor) -> Tensor:
        return (pixels * STD + MEAN).mean((-1, -2))


class Fixed(BoxSource):
    """Boxes that are written down, and the names that it was asked with."""

    def __init__(self, *found: Proposals) -> None:
        self.found, self.asked = list(found), [""]

    def load(self, device: torch.device | str) -> Detector:
        def detect(images: Sequence[Tensor], names: Sequence[str]) -> list[Proposals]:
            self.asked = list(names)
            return self.found

        return detect


def some(boxes: list[list[float]], scores: list[float] | None = None) -> Proposals:
    scores = [0.9 - 0.01 * i for i in range(len(boxes))] if scores is None else scores
    return Proposals(torch.tensor(boxes).view(-1, 4), torch.tensor(scores))


def batch_of(*pictures: Tensor, sounds: list[list[float]]) -> AVBatch:
    audio = torch.zeros(len(pictures), 4000)
    audio[:, :3] = torch.tensor(sounds)
    keys = [f"w{i}.f0" for i in range(len(pictures))]
    return AVBatch(keys, torch.stack(pictures), audio, torch.arange(len(pictures)))


def two_colours() -> Tensor:
    """Left half red, right half green, uint8 ``[3, 16, 16]``."""
    return torch.cat([RED.expand(3, 16, 8), GREEN.expand(3, 16, 8)], dim=2)


def method(boxes: BoxSource, **options: Any) -> BoxRetrieval:
    return BoxRetrieval(Colour(), boxes, image_size=16, **{"heatmap_size": 32} | options).eval()


def test_the_box_that_looks_like_the_sound() -> None:
    found = some([[1, 2, 6, 10], [9, 4, 14, 9], [4, 0, 12, 16]])  # red, green, half of each
    model = method(Fixed(found, found, found))
    batch = batch_of(*[two_colours()] * 3, sounds=[[0.4, 0, 0], [0, 0.2, 0], [0.1, 0.1, 0]])
    answer = model.localize(batch)
    wanted = torch.zeros(3, 1, 32, 32)
    wanted[0, 0, 4:20, 2:12] = 1
    wanted[1, 0, 8:18, 18:28] = 1
    wanted[2, 0, 0:32, 8:24] = 1
    assert torch.equal(answer.heatmap, wanted)
    torch.testing.assert_close(answer.confidence, torch.ones(3, 1), atol=1e-5, rtol=0)
    blue = model.localize(replace(batch, audio=batch_of(*[two_colours()] * 3, sounds=[[1, 0, 1]] * 3).audio))
    assert blue.confidence[0, 0].item() == pytest.approx(1 / math.sqrt(2), abs=1e-5)
    assert (model.input_spec.sample_rate, model.input_spec.seconds) == (8000, 0.5)
    assert model.input_spec.resize == "pad"
    assert not model.trainable()


@pytest.mark.parametrize("view", ["stretched", "square"])
@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_against_one_box_at_a_time(view: str, chunk: int) -> None:
    g = torch.Generator().manual_seed(4)
    pictures = torch.randint(256, (3, 3, 16, 16), generator=g).to(torch.uint8)
    found = []
    for n in (5, 0, 7):
        corner = torch.rand(n, 2, generator=g) * 12 - 1
        extent = torch.rand(n, 2, generator=g) * 9 + 1
        found.append(Proposals(torch.cat([corner, corner + extent], 1), torch.rand(n, generator=g)))
    sounds = torch.rand(3, 3, generator=g).tolist()
    answer = method(Fixed(*found), view=view, chunk=chunk).localize(batch_of(*pictures, sounds=sounds))
    for b in (0, 2):
        best: tuple[float, list[int]] = (-2.0, [])
        for box, score in zip(found[b].boxes.tolist(), found[b].scores.tolist(), strict=True):
            if score <= 0.05:
                continue
            x1, y1 = (max(0, math.floor(v)) for v in box[:2])
            x2, y2 = (min(16, math.ceil(v)) for v in box[2:])
            pixels = pillow_crop(pictures[b], (x1, y1, x2, y2), 8, view == "square")
            colour, sound = pixels.reshape(-1, 3).mean(0) / 255, np.array(sounds[b])
            cosine = colour @ sound / np.linalg.norm(colour) / np.linalg.norm(sound)
            best = max(best, (float(cosine), [x1, y1, x2, y2]))
        x1, y1, x2, y2 = best[1]
        assert answer.confidence[b, 0].item() == pytest.approx(best[0], abs=3e-3)  # crops are in whole levels
        wanted = np.zeros((32, 32), np.float32)
        wanted[2 * y1 : 2 * y2, 2 * x1 : 2 * x2] = 1
        np.testing.assert_array_equal(answer.heatmap[b, 0].numpy(), wanted)
    assert (answer.heatmap[1] == 0).all()
    assert answer.confidence[1, 0] == -1


def pillow_crop(picture: Tensor, box: tuple[int, int, int, int], side: int, square: bool) -> np.ndarray:
    x1, y1, x2, y2 = box
    if square:  # the same centre, on whole pixels towards the origin; Pillow is black beyond the picture
        longest = max(x2 - x1, y2 - y1)
        x1, y1 = math.floor((x1 + x2 - longest) / 2), math.floor((y1 + y2 - longest) / 2)
        x2, y2 = x1 + longest, y1 + longest
    image = Image.fromarray(picture.permute(1, 2, 0).numpy()).crop((x1, y1, x2, y2))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float64)


@pytest.mark.parametrize("square", [False, True])
def test_crops_are_pillow_s(square: bool) -> None:
    # Grey enough for no overshoot, which Pillow cuts off between its two passes.
    picture = torch.randint(96, 160, (3, 40, 60), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    boxes = [(0, 0, 60, 40), (3, 5, 4, 6), (10, 2, 50, 9), (55, 30, 60, 40), (20, 0, 23, 40)]
    found = crop(picture, torch.tensor(boxes, dtype=torch.float32), 12, square)
    assert found.dtype == torch.uint8
    for i, box in enumerate(boxes):
        want = pillow_crop(picture, box, 12, square)
        assert np.abs(found[i].permute(1, 2, 0).numpy() - want).max() <= 1


def test_no_box_is_an_empty_map_of_the_lowest_confidence() -> None:
    nothing = some([])
    beside = some([[20, 20, 30, 30], [3, 3, 3, 9], [-9, -9, -1, -1]])  # none of them holds a pixel
    broken = Proposals(torch.tensor([[float("nan"), 0, 4, 4]]), torch.tensor([0.9]))
    found = some([[0, 0, 4, 4]])
    batch = batch_of(*[two_colours()] * 4, sounds=[[1, 0, 0]] * 4)
    answer = method(Fixed(nothing, beside, broken, found)).localize(batch)
    assert (answer.heatmap[:3] == 0).all()
    assert (answer.confidence[:3] == -1).all()
    assert answer.heatmap[3, 0].sum() == 64
    empty = method(Fixed(nothing, beside)).localize(batch.take([0, 1]))
    assert (empty.heatmap == 0).all()
    assert (empty.confidence == -1).all()


def test_at_most_the_hundred_best_above_the_threshold() -> None:
    """The only red box counts while it is among the best, and not at the threshold itself."""
    red, green = [0.0, 0.0, 4.0, 4.0], [9.0, 0.0, 14.0, 4.0]
    batch = batch_of(two_colours(), sounds=[[1, 0, 0]])

    def confidence(greens: int, score: float, **options: Any) -> float:
        found = some([green] * greens + [red], [0.5] * greens + [score])
        return method(Fixed(found), **options).localize(batch).confidence.item()

    assert confidence(99, 0.4) == pytest.approx(1, abs=1e-5)
    assert confidence(100, 0.4) == pytest.approx(0, abs=1e-5)
    assert confidence(100, 0.6) == pytest.approx(1, abs=1e-5)
    assert confidence(3, 0.05) == pytest.approx(0, abs=1e-5)
    assert confidence(3, 0.0501) == pytest.approx(1, abs=1e-5)
    assert confidence(3, 0.01, threshold=0.0) == pytest.approx(1, abs=1e-5)
    assert confidence(3, 0.4, count=3) == pytest.approx(0, abs=1e-5)


def test_suppression_is_asked_for() -> None:
    both = some([[0, 0, 10, 10], [0, 0, 8, 10]], [0.9, 0.8])  # IoU 0.8; the worse one is all red
    batch = batch_of(two_colours(), sounds=[[1, 0, 0]])
    assert method(Fixed(both)).localize(batch).confidence.item() == pytest.approx(1, abs=1e-5)
    assert method(Fixed(both), iou=0.7).localize(batch).confidence.item() < 0.99


def test_the_map_is_of_the_picture_and_not_of_its_padded_square() -> None:
    padded = torch.zeros(3, 16, 16, dtype=torch.uint8)
    padded[:, :8] = two_colours()[:, :8]  # 8 rows, 16 columns of picture
    batch = replace(batch_of(padded, sounds=[[0, 1, 0]]), size=torch.tensor([[8, 16]]))
    answer = method(Fixed(some([[0, 0, 8, 8], [8, 2, 16, 12]]))).localize(batch)
    wanted = torch.zeros(32, 32)
    wanted[8:, 16:] = 1  # to the picture's lower edge
    assert torch.equal(answer.heatmap[0, 0], wanted)
    assert answer.confidence.item() == pytest.approx(1, abs=1e-5)
    share = method(Fixed(some([[0, 0, 0.5, 1], [0.5, 0.25, 1, 1.5]])), unit="fraction").localize(batch)
    assert torch.equal(share.heatmap, answer.heatmap)


def test_a_box_smaller_than_a_cell_is_one_cell() -> None:
    answer = method(Fixed(some([[9, 9, 10, 10]])), heatmap_size=4).localize(batch_of(two_colours(), sounds=[[0, 1, 0]]))
    assert answer.heatmap[0, 0].nonzero().tolist() == [[2, 2]]


def test_the_mask_of_a_source_that_draws_masks() -> None:
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, 2:6, 1:4] = True
    masks[1, 8:, 10:14] = True
    masks[1, 15, 13] = False
    boxes = torch.tensor([[1.0, 2, 3, 5], [10, 8, 13, 15]])  # to the last pixel, as SAM's are
    source = Fixed(Proposals(boxes, torch.tensor([0.9, 0.8]), masks))
    batch = batch_of(two_colours(), sounds=[[0, 1, 0]])
    drawn = method(source, shape="mask", heatmap_size=16).localize(batch)
    assert torch.equal(drawn.heatmap[0, 0], masks[1].float())
    boxed = method(source, heatmap_size=16).localize(batch).heatmap[0, 0]
    assert boxed.sum() == 8 * 4
    assert boxed[8:, 10:14].all()
    with pytest.raises(ValueError, match=r"Fixed draws no masks \(w0.f0\). Set model.shape to box"):
        method(Fixed(some([[0, 0, 4, 4]])), shape="mask").localize(batch)


def test_stored_boxes_are_found_under_the_frame_s_name(tmp_path: Path) -> None:
    write_boxes(tmp_path / "boxes.safetensors", [("w0.f0", np.array([[0, 0, 4, 4]]), np.array([0.9]))])
    batch = batch_of(two_colours(), sounds=[[1, 0, 0]])
    model = method(StoredBoxes(str(tmp_path / "boxes.safetensors")))
    assert model.localize(replace(batch, key=["w0.f0@silence"])).heatmap.sum() == 64
    with pytest.raises(KeyError, match=r"has no boxes of picture 'w1.f0'"):
        model.localize(replace(batch, key=["w1.f0"]))


@pytest.mark.filterwarnings("ignore")
def test_sam_is_asked_where_there_is_no_detector(tmp_path: Path) -> None:
    source = SamPoints(tiny_sam_files(tmp_path)["sam"], points=2, quality=-9, stability=-1)
    model = BoxRetrieval(Colour(), source, threshold=-9, image_size=32).eval()
    answer = model.localize(replace(tiny_batch(2), audio=batch_of(*tiny_batch(2).image, sounds=[[1, 1, 1]] * 2).audio))
    assert answer.heatmap.shape == (2, 1, 224, 224)
    assert set(answer.heatmap.unique().tolist()) <= {0.0, 1.0}
    found = answer.heatmap.flatten(1).any(1)
    assert torch.equal(answer.confidence[:, 0] > -1, found)


def test_a_space_that_cannot_look_is_refused() -> None:
    with pytest.raises(ValueError, match="Colour cannot look at boxes"):
        BoxRetrieval(Colour(image_size=0))
