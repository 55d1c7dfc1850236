"""The committed tiny towers: small, with their command inside, and as good as they say."""

from __future__ import annotations

import ast

import pytest

from avloc.backbones.beats import BEATs
from avloc.backbones.clipseg import CLIPSeg
from avloc.weights import WORLD_ASSETS, read_metadata
from avloc.world.pretrain import text_query_score


@pytest.mark.parametrize("name", ["clipseg", "beats"])
def test_files_are_small_and_say_how_they_were_made(name: str) -> None:
    path = WORLD_ASSETS / f"{name}.safetensors"
    assert path.stat().st_size <= 3_000_000
    metadata = read_metadata(path)
    assert metadata["command"].startswith(f"python -m avloc.world.pretrain {name}")
    assert metadata["seed"] == "0"
    assert min(v for k, v in ast.literal_eval(metadata["score"]).items() if k in ("success", "accuracy")) > 0.8


def test_the_true_class_is_found_by_its_text_on_scenes_never_seen() -> None:
    score = text_query_score(CLIPSeg.from_source("world:clipseg"), seed=4321, scenes=100)
    assert score["success"] > 0.8
    assert score["absent_area"] < 0.05


def test_beats_loads_frozen() -> None:
    tower = BEATs.from_source("world:beats", feature_layers=(1, 2, 3))
    assert tower.feature_size == 192
    assert not any(p.requires_grad for p in tower.parameters())
