"""A moment costs each tower one pass at most, and equal windows are heard once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avloc.backbones.beats import BEATs
from avloc.bench.step import build
from avloc.localize.asking import Ears, ask, hearing_once
from avloc.localize.run import localize_video
from avloc.methods.acl.inversion import heard_as
from avloc.types import AVBatch
from tests.localize.test_run import steady


def test_equal_waveforms_are_heard_once() -> None:
    fed: list[torch.Tensor] = []

    def hear(waveform: torch.Tensor, scale: float) -> torch.Tensor:
        fed.append(waveform)
        return scale * waveform.cumsum(1)

    ears, sounds = Ears(hear), torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    for rows in ([0, 1, 1, 0], [1, 0], [0, 2], [1, 1]):
        assert torch.equal(ears(sounds[rows], 2.0), 2.0 * sounds[rows].cumsum(1))
    assert [len(f) for f in fed] == [2, 1, 1], "the batch before is remembered, nothing older"


@pytest.mark.parametrize(("window", "windows"), [(4.0, 1), (0.5, 4)])
def test_passes_of_each_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: float, windows: int) -> None:
    """Rows that go through the vision, audio and text towers for four moments of two seconds."""
    model = build("souple", False, seconds=4.0)
    rows = dict.fromkeys(("seen", "heard", "read"), 0)

    def count(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(first: torch.Tensor, *rest: Any, **options: Any) -> Any:
            rows[name] += len(first)
            return function(first, *rest, **options)

        return counted

    grounder, ears = model.network.av_grounder, model.network.beats.encoder
    monkeypatch.setattr(grounder, "encode_image", count("seen", grounder.encode_image))
    monkeypatch.setattr(grounder, "_text", count("read", grounder._text))
    monkeypatch.setattr(ears, "forward", count("heard", ears.forward))
    video = steady(tmp_path / "clip.mp4")
    options = {"fps": 2, "window_s": window, "progress": False}
    result = localize_video(model, video, tmp_path / "out", phrases=["a dog", "a cat"], **options)
    assert len(result["times"]) == 4
    assert len(result["times"][0]["heard_as"]) == 2
    assert rows == {"seen": 4, "heard": windows, "read": 4 + 2}, "each phrase is read once"


def test_what_was_computed_is_what_embed_sound_says() -> None:
    model = build("souple", False).eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    audio = 0.1 * torch.randn(2, model.input_spec.samples, generator=generator)
    batch = AVBatch(["a", "b"], image, audio, torch.arange(2))
    with torch.no_grad():
        said = model.localize(batch).said
    assert heard_as(model, batch, ["dog", "cat"], said=said) == heard_as(model, batch, ["dog", "cat"])


def test_a_model_hears_as_before_afterwards() -> None:
    model = build("acl", False)
    sound = 0.1 * torch.randn(model.input_spec.samples, generator=torch.Generator().manual_seed(1)).numpy()
    sample = (0.0, np.zeros((64, 64, 3), np.uint8), sound)
    (alone,) = ask(model, [sample])
    with hearing_once(model):
        assert isinstance(model.network.beats.forward, Ears)
        both = ask(model, [sample, sample])
    assert model.network.beats.forward.__func__ is BEATs.forward
    for moment in both:
        assert torch.allclose(moment.heatmap, alone.heatmap, atol=1e-5)
