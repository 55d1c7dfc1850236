"""The text query against cosines taken one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from avloc.backbones.audioclip import AudioCLIP
from avloc.backbones.clipseg import normalise
from avloc.methods.baselines.text_query import TextQuery
from tests.methods.test_tvsl import NAMES, batch
from tests.methods.tiny import tiny_audioclip_files


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_audioclip_files(Path(tmp_path_factory.mktemp("towers")), [*NAMES, "cow"])["audioclip"]


def query(towers: str, **options: object) -> TextQuery:
    return TextQuery(**{"audioclip": towers, "classes": NAMES, "seconds": 0.5, "heatmap_size": 4} | options).eval()


@pytest.mark.parametrize("transform", ["none", "squared"])
def test_each_given_class_has_the_cosine_of_its_text_with_each_patch(towers: str, transform: str) -> None:
    b = batch([[4, 2], [1]], tiles=2)
    answer = query(towers, sources="given", transform=transform).localize(b)
    assert answer.label.tolist() == [[4, 2], [1, -1]]
    assert answer.heatmap[1, 1].eq(0).all()
    clip = AudioCLIP.from_source(towers)
    with torch.no_grad():
        tokens, sound = clip.image_tokens(normalise(b.image), "grid"), clip.encode_audio(b.audio)
        text = clip.encode_text(clip.tokenize(NAMES))
    for i, k, c in ((0, 0, 4), (0, 1, 2), (1, 0, 1)):
        x = torch.stack([F.cosine_similarity(t, text[c], dim=0) for t in tokens[i]])
        x = x if transform == "none" else torch.where(x > 0, x * x, 0.0)
        want = (x - x.min()) / (x.max() - x.min()) if x.max() > x.min() else x
        torch.testing.assert_close(answer.heatmap[i, k], want.view(4, 8), atol=1e-4, rtol=1e-4)
        cosine = F.cosine_similarity(sound[i], text[c], dim=0).item()
        assert answer.confidence[i, k].item() == pytest.approx(cosine, abs=1e-5)


def test_detected_are_the_texts_most_like_the_sound(towers: str) -> None:
    b = batch([[4, 2, 0], [1]], tiles=3)
    clip = AudioCLIP.from_source(towers)
    with torch.no_grad():
        sound, text = clip.encode_audio(b.audio), clip.encode_text(clip.tokenize(NAMES))
    order = [sorted(range(6), key=lambda c: -F.cosine_similarity(x, text[c], dim=0).item()) for x in sound]
    model = query(towers)
    assert model.localize(b).label.tolist() == [order[0][:3], [order[1][0], -1, -1]]  # as many as there are
    unknown = replace(b, label=[], class_id=None)
    assert model.localize(unknown).label.tolist() == [o[:2] for o in order]
    assert query(towers, k=4).localize(b).label.tolist() == [o[:4] for o in order]
    # labels on some samples, or some sources, only
    some = replace(b, label=[["cat", ""], []], class_id=None)
    assert query(towers, sources="given").localize(some).label.tolist() == [[4, -1], order[1][:2]]
    assert query(towers, sources="given").localize(unknown).label.tolist() == [o[:2] for o in order]


def test_bad_input(towers: str) -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        query(towers, k=0)
    with pytest.raises(ValueError, match="must be told which classes to ask for"):
        query(towers, classes=None).localize(batch([[0]]))
    with pytest.raises(ValueError, match="s0 is of class 'dog', which is not among the 1 classes"):
        query(towers, classes=["bell"], sources="given").localize(replace(batch([[3]]), class_id=None))
    with pytest.raises(ValueError, match="numbers 'bell' as class 0, the list of classes as 1"):
        query(towers, classes=["drum", "bell"]).localize(batch([[0]]))
