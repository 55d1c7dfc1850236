"""What a sound is heard as: cosines by hand, and the embedded world's own grounder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from avloc.methods.acl.inversion import (
    PhraseListError,
    class_phrases,
    default_phrases,
    heard_as,
    nearest,
    read_phrases,
)
from avloc.methods.acl.method import ACL
from avloc.methods.baselines.controls import FullFrame
from avloc.types import AVBatch
from avloc.weights import WeightFile
from avloc.world.scenes import NAMES


def batch_of(n: int, seconds: float = 2.0, size: int = 64) -> AVBatch:
    torch.manual_seed(0)
    audio = 0.1 * torch.randn(n, round(16000 * seconds))
    image = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
    return AVBatch([f"k{i}" for i in range(n)], image, audio, torch.arange(n))


def test_nearest_by_hand() -> None:
    sounds = torch.tensor([[2.0, 0.0], [3.0, 3.0]])
    texts = torch.tensor([[0.0, 5.0], [1.0, 0.0], [-1.0, 0.0]])
    first, second = nearest(sounds, texts, ["up", "right", "left"], k=2)
    assert first == [("right", 1.0), ("up", 0.0)]
    assert {name for name, _ in second} == {"up", "right"}
    assert [cosine for _, cosine in second] == pytest.approx([0.5**0.5] * 2)
    assert len(nearest(sounds, texts, ["up", "right", "left"], k=9)[0]) == 3


def world_acl() -> ACL:
    return ACL(
        clipseg="world:clipseg", beats="world:beats", feature_layers=(1, 2, 3), image_size=64, seconds=2.0, chunk=4
    ).eval()


def test_a_sound_that_says_a_class_is_heard_as_that_class(monkeypatch: pytest.MonkeyPatch) -> None:
    model = world_acl()
    said = model.network.av_grounder.encode_text(model.network.av_grounder.tokenize(["a photo of a frog"])).detach()
    monkeypatch.setattr(model.network, "answer", lambda features, tokens: said.expand(len(tokens), -1))
    for found in heard_as(model, batch_of(2), NAMES) or []:
        assert found[0][0] == "frog"
        assert len(found) == 3


def test_cosines_follow_from_the_method_s_own_parts() -> None:
    model, batch = world_acl(), batch_of(2)
    found = heard_as(model, batch, ["dog", "cat", "bell"], k=3)
    assert found is not None
    with torch.no_grad():
        A = model.network.prompt(model.network.hear(batch.audio)).numpy().astype(np.float64)
        tower = model.network.av_grounder
        C = tower.encode_text(tower.tokenize(["dog", "cat", "bell"])).numpy().astype(np.float64)
    cosine = (A @ C.T) / np.linalg.norm(A, axis=1)[:, None] / np.linalg.norm(C, axis=1)
    for i, row in enumerate(found):
        order = np.argsort(-cosine[i])
        assert [name for name, _ in row] == [["dog", "cat", "bell"][j] for j in order]
        assert [value for _, value in row] == pytest.approx(cosine[i][order], abs=1e-5)


def test_a_method_without_such_an_embedding_is_not_read() -> None:
    assert heard_as(FullFrame(), batch_of(1), ["dog", "cat"]) is None
    assert heard_as(world_acl(), batch_of(1), []) is None


class Twice:
    """Any method that has both parts can be read."""

    def embed_sound(self, batch: AVBatch) -> Tensor:
        return torch.eye(2)[: len(batch)]

    def embed_phrases(self, phrases: list[str]) -> Tensor:
        return torch.eye(2)


def test_any_method_with_both_parts_is_read() -> None:
    assert heard_as(Twice(), batch_of(2), ["x", "y"], k=1) == [[("x", 1.0)], [("y", 1.0)]]


@dataclass
class Record:
    targets: list[SimpleNamespace] = field(default_factory=list)


def test_phrases_of_a_set_are_its_class_names() -> None:
    names = [["playing_tabla", "dog"], ["dog"], [""]]
    data = SimpleNamespace(records=[Record([SimpleNamespace(class_name=n) for n in row]) for row in names])
    assert class_phrases(data) == ["dog", "playing tabla"]
    assert class_phrases(SimpleNamespace(records=data.records[1:])) == [], "one class says nothing"
    assert class_phrases(object()) == []


def test_default_phrases_follow_the_weights() -> None:
    world = SimpleNamespace(frozen_files={"clipseg": WeightFile("world:clipseg", None, "")})
    assert default_phrases(world) == sorted(NAMES)
    official = SimpleNamespace(frozen_files={"clipseg": WeightFile("hf:CIDAS/clipseg-rd64-refined", None, "")})
    assert "dog barking" in default_phrases(official)


def test_lists_of_phrases(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a dog\n\n  a cat \na dog\n")
    assert read_phrases(tmp_path / "a.txt") == ["a dog", "a cat"]
    (tmp_path / "empty.txt").write_text("\n")
    for name, says in (("empty.txt", "holds no phrase"), ("none.txt", "cannot be read as phrases")):
        with pytest.raises(PhraseListError, match=says):
            read_phrases(tmp_path / name)
