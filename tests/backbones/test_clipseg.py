"""CLIPSeg against transformers' own forward, and against bad files and shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPSegForImageSegmentation

from avloc.backbones.clipseg import CLIP_MEAN, CLIP_STD, CLIPSeg, normalise
from avloc.backbones.tokens import clip_tokenizer
from avloc.weights import WeightError
from tests.methods.tiny import tiny_beats, tiny_clipseg


def reference(model: CLIPSeg) -> CLIPSegForImageSegmentation:
    theirs = CLIPSegForImageSegmentation(model.config).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


@torch.no_grad()
def test_equals_transformers() -> None:
    model = tiny_clipseg()
    theirs, pixels = reference(model), torch.randn(2, 3, 32, 32)
    ids = model.tokenize(["a photo of a", "an image"])
    out = theirs(input_ids=ids, pixel_values=pixels)
    seen = model.encode_image(pixels, reduced=True, pooled=True)
    text = model.encode_text(ids)
    torch.testing.assert_close(text, out.conditional_embeddings)
    torch.testing.assert_close(seen.pooled, out.pooled_output)
    torch.testing.assert_close(model.decode(seen.reduced, text[:, None])[:, 0], out.logits)


@torch.no_grad()
def test_pairs_equal_single_questions() -> None:
    model, pixels = tiny_clipseg(), torch.randn(2, 3, 48, 48)
    reduced, asked = model.encode_image(pixels, reduced=True).reduced, torch.randn(2, 3, 64)
    every = model.decode(reduced, asked)
    assert every.shape == (2, 3, 48, 48)
    for i in range(2):
        for j in range(3):
            one = model.decode([r[i : i + 1] for r in reduced], asked[i : i + 1, j : j + 1])
            torch.testing.assert_close(every[i, j], one[0, 0], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_another_grid_resizes_the_position_table() -> None:
    model, pixels = tiny_clipseg(), torch.randn(1, 3, 64, 64)
    theirs = reference(model).clip.vision_model(pixels, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(model.encode_image(pixels, pooled=True).hidden, theirs)


def test_normalise_is_clips() -> None:
    image = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    want = [(v / 255 - m) / s for v, m, s in zip((0, 128, 255), CLIP_MEAN, CLIP_STD, strict=True)]
    assert normalise(image).flatten().tolist() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("shape", [(32, 48), (40, 40)])
def test_other_shapes_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="square images with a side that is a multiple of 16"):
        tiny_clipseg().encode_image(torch.zeros(1, 3, *shape))


def test_a_prompt_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="exceeds the text tower's 77"):
        tiny_clipseg().encode_tokens(torch.zeros(1, 78, 64))


def test_stays_frozen_and_in_eval_mode() -> None:
    model = tiny_clipseg().train()
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


@torch.no_grad()
def test_save_and_load(tmp_path: Path) -> None:
    model = tiny_clipseg()
    model.save_world(tmp_path / "c.safetensors", score="0.9")
    again = CLIPSeg.from_source(f"file:{tmp_path / 'c.safetensors'}")
    for k, v in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[k], v.half().float())
    assert again.tokenize(["a photo"]).tolist() == model.tokenize(["a photo"]).tolist()


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    tiny_beats().save_world(tmp_path / "b.safetensors")
    with pytest.raises(WeightError, match="holds a beats, not a CLIPSeg"):
        CLIPSeg.from_source(f"file:{tmp_path / 'b.safetensors'}")
    tiny_clipseg().save_world(tmp_path / "c.safetensors")
    state = load_file(tmp_path / "c.safetensors")
    save_file(state, tmp_path / "bare.safetensors")  # tiny, but nothing says so: the official size is expected
    with pytest.raises(WeightError, match="of another shape"):
        CLIPSeg.from_source(f"file:{tmp_path / 'bare.safetensors'}")


def test_clip_vocabulary() -> None:
    # What transformers' CLIP tokenizer gives.
    assert clip_tokenizer().encode("a photo of") == [49406, 320, 1125, 539, 49407]
    assert clip_tokenizer().encode("A photo of") == [49406, 320, 1125, 539, 49407]
