"""The committed tiny towers: small, with their command inside, and as good as they say."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch
from torch import Tensor

from avloc.backbones.audioclip import AudioCLIP
from avloc.backbones.beats import BEATs
from avloc.backbones.clipseg import CLIPSeg, normalise
from avloc.backbones.sam import SAM, TINY
from avloc.backbones.vggish import VGGish, VGGishConfig
from avloc.methods.baselines.spaces import ClapSpace, ImageBindSpace, Space, Wav2CLIPSpace
from avloc.weights import WORLD_ASSETS, read_metadata
from avloc.world.scenes import NAMES, render, sample_scenes
from avloc.world.sounds import sound
from avloc.world.towers.clipseg import text_query_score
from avloc.world.towers.hearing import hearing_score
from avloc.world.towers.imagebind import looking_score
from avloc.world.towers.pools import points_in, tight_boxes
from avloc.world.towers.sam import prompt_score

FLOORS = {
    "success": 0.8,
    "accuracy": 0.8,
    "box_miou": 0.85,
    "point_miou": 0.7,
    "pair_recall": 0.9,
    "pointing": 0.7,
    "pointing_rows": 0.6,
}


@pytest.mark.parametrize("name", ["clipseg", "beats", "sam", "vggish", "audioclip"])
def test_files_are_small_and_say_how_they_were_made(name: str) -> None:
    path = WORLD_ASSETS / f"{name}.safetensors"
    assert path.stat().st_size <= 3_000_000
    metadata = read_metadata(path)
    assert metadata["command"].startswith(f"python -m avloc.world.pretrain {name}")
    assert metadata["seed"] == "0"
    score = ast.literal_eval(metadata["score"])
    judged = {name: score[name] for name in FLOORS if name in score}
    assert judged
    assert all(value > FLOORS[name] for name, value in judged.items())


def test_the_two_towers_of_gavs_take_three_megabytes_together() -> None:
    assert sum((WORLD_ASSETS / f"{name}.safetensors").stat().st_size for name in ("sam", "vggish")) <= 3_000_000


def test_the_true_class_is_found_by_its_text_on_scenes_never_seen() -> None:
    score = text_query_score(CLIPSeg.from_source("world:clipseg"), seed=4321, scenes=100)
    assert score["success"] > 0.8
    assert score["absent_area"] < 0.05


def test_beats_loads_frozen() -> None:
    tower = BEATs.from_source("world:beats", feature_layers=(1, 2, 3))
    assert tower.feature_size == 192
    assert not any(p.requires_grad for p in tower.parameters())


def test_boxes_and_points_of_masks() -> None:
    mask = torch.zeros(2, 6, 8, dtype=torch.bool)
    mask[0, 1:4, 2:7] = True
    mask[1, 5, 0] = True
    assert tight_boxes(mask).tolist() == [[2, 1, 7, 4], [0, 5, 1, 6]]
    x, y = points_in(mask, 50).round().unbind(-1)
    assert x[0].min() >= 2
    assert x[0].max() <= 6
    assert y[0].min() >= 1
    assert y[0].max() <= 3
    assert x[1].eq(0).all()
    assert y[1].eq(5).all()


def iou(found: Tensor, truth: Tensor) -> float:
    a, b = found.numpy(), truth.numpy()
    return float(np.logical_and(a, b).sum() / np.logical_or(a, b).sum())


def test_sam_segments_the_object_that_it_is_asked_for() -> None:
    model = SAM.from_source("world:sam")
    assert model.config == TINY
    assert not any(p.requires_grad for p in model.parameters())
    image, mask = render(sample_scenes(np.random.default_rng(77), 12), 64)
    own: list[float] = []
    other: list[float] = []
    pointed: list[float] = []
    with torch.no_grad():
        embedding = model.encode(model.prepare(image))
        for i in range(12):
            rows, columns = np.nonzero(mask[i, 0].numpy())
            box = torch.tensor([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]).float()
            pixel = len(rows) // 2
            point = torch.tensor([[[columns[pixel], rows[pixel]]]]).float()
            by_box, _ = model.prompts(boxes=box)
            by_point, _ = model.prompts(points=(point, torch.ones(1, 1, dtype=torch.long)))
            for prompt, scores in ((by_box, own), (by_point, pointed)):
                logits, _ = model.decode(embedding[i : i + 1], prompt, masks=slice(1))
                found = model.upscale(logits, (64, 64), (64, 64))[0, 0] > 0
                scores.append(iou(found, mask[i, 0]))
            other.append(iou(found, mask[i, 1]))
    assert np.mean(own) > 0.85
    assert np.mean(pointed) > 0.75
    assert np.mean(other) < 0.1


def test_sam_is_as_good_as_its_file_says_on_scenes_never_seen() -> None:
    said = ast.literal_eval(read_metadata(WORLD_ASSETS / "sam.safetensors")["score"])
    score = prompt_score(SAM.from_source("world:sam"), seed=4321, scenes=200)
    assert score["box_miou"] == pytest.approx(said["box_miou"], abs=0.03)
    assert score["point_miou"] == pytest.approx(said["point_miou"], abs=0.03)
    assert score["quality_error"] < 0.1


def test_scoring_leaves_the_random_state_alone() -> None:
    model = SAM.from_source("world:sam")
    before = torch.random.get_rng_state()
    prompt_score(model, seed=1, scenes=2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_vggish_tells_the_classes_of_the_nearest_mean_apart() -> None:
    tower = VGGish.from_source("world:vggish")
    assert tower.config == VGGishConfig((16, 32, 64, 64), 128, 128)
    assert not any(p.requires_grad for p in tower.parameters())
    rng = np.random.default_rng(99)
    waves = np.stack([sound(rng, c, 2.0) for _ in range(6) for c in range(len(NAMES))])
    with torch.no_grad():
        feature = tower(torch.from_numpy(waves)).mean(1)
    feature = torch.nn.functional.normalize(feature, dim=-1).unflatten(0, (6, len(NAMES)))
    nearest = (feature[3:] @ feature[:3].mean(0).T).argmax(-1)
    assert (nearest == torch.arange(len(NAMES))).float().mean() > 0.9


SPACES: dict[str, tuple[type[Space], dict[str, str]]] = {
    "wav2clip": (Wav2CLIPSpace, {"weights": "world:wav2clip", "clip": "world:openclip"}),
    "clap": (ClapSpace, {"weights": "world:clap"}),
    "imagebind": (ImageBindSpace, {"weights": "world:imagebind"}),
}


@pytest.mark.parametrize("name", list(SPACES))
def test_spaces_are_small_and_say_how_they_were_made(name: str) -> None:
    path = WORLD_ASSETS / f"{name}.safetensors"
    assert path.stat().st_size <= 1_500_000
    metadata = read_metadata(path)
    assert metadata["command"].startswith(f"python -m avloc.world.spaces {name}")
    assert metadata["seed"] == "0"


@pytest.mark.parametrize(("name", "pair_recall"), [("wav2clip", 0.8), ("clap", 0.65), ("imagebind", 0.9)])
def test_spaces_hear_one_sound_and_two(name: str, pair_recall: float) -> None:
    kind, arguments = SPACES[name]
    space = kind(**arguments)
    said = ast.literal_eval(read_metadata(WORLD_ASSETS / f"{name}.safetensors")["score"])
    score = hearing_score(space.hear, space.read(NAMES), seed=4321, sounds=200)
    assert score["accuracy"] > 0.95
    assert score["pair_recall"] > pair_recall
    assert score["pair_recall"] == pytest.approx(said["pair_recall"], abs=0.06)


@pytest.mark.parametrize(("name", "accuracy", "choosing"), [("wav2clip", 0.7, 0.45), ("imagebind", 0.85, 0.7)])
def test_spaces_see_what_sounds_among_boxes(name: str, accuracy: float, choosing: float) -> None:
    kind, arguments = SPACES[name]
    space = kind(**arguments)
    score = looking_score(space.look, space.hear, space.read(NAMES), space.image_size, seed=4321, scenes=150)
    assert score["crop_accuracy"] > accuracy
    assert score["choosing"] > choosing
    assert score["choosing_chance"] < 0.15


def audioclip() -> tuple[AudioCLIP, Tensor]:
    """The tower and the unit texts of all classes."""
    model = AudioCLIP.from_source("world:audioclip")
    with torch.no_grad():
        return model, torch.nn.functional.normalize(model.encode_text(model.tokenize(list(NAMES))), dim=-1)


def test_audioclip_hears_one_sound_and_two() -> None:
    model, text = audioclip()
    assert not any(p.requires_grad for p in model.parameters())
    assert model.temperature("audio_image").item() == pytest.approx(1 / 0.07, rel=1e-4)
    rng = np.random.default_rng(99)
    waves = torch.from_numpy(np.stack([sound(rng, c, 2.0) for _ in range(3) for c in range(len(NAMES))]))
    label = torch.arange(len(NAMES)).repeat(3)
    other = label.roll(-5)
    with torch.no_grad():
        one = torch.nn.functional.normalize(model.encode_audio(waves), dim=-1) @ text.T
        two = torch.nn.functional.normalize(model.encode_audio(waves + waves.roll(-5, 0)), dim=-1) @ text.T
    assert (one.argmax(1) == label).float().mean() > 0.95
    nearest = two.topk(2).indices
    found = torch.stack([(nearest == y[:, None]).any(1) for y in (label, other)])
    assert found.float().mean() > 0.85


@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_audioclip_s_patches_know_their_object_in_pictures_and_rows(tiles: int) -> None:
    model, text = audioclip()
    scenes = sample_scenes(np.random.default_rng(78), 48)
    image, mask = render(scenes, 64)
    rows = torch.cat(image.split(len(image) // tiles), dim=-1)
    with torch.no_grad():
        tokens = torch.nn.functional.normalize(model.image_tokens(normalise(rows)), dim=-1)
    right, wrong = [], []
    for i in range(48):
        tile, row = divmod(i, 48 // tiles)
        own = tokens[row].view(8, tiles, 8, 64)[:, tile] @ text[scenes.label[i, 0]]
        inside = torch.nn.functional.adaptive_avg_pool2d(mask[i, :1].float(), 8)[0] > 0.5
        if inside.any():
            right.append(own[inside].mean().item())
            wrong.append(own[~inside].mean().item())
    assert np.mean(right) > np.mean(wrong) + 0.3
