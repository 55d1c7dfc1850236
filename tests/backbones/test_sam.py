"""SAM against the segment-anything package's own forward, and against bad files and shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor, nn

from avloc.backbones.sam import OFFICIAL, PIXEL_MEAN, PIXEL_STD, SAM, TINY, SAMConfig, official_size
from avloc.weights import WeightError

WIDE = replace(TINY, image_size=160, window_size=6)  # a grid of 20: windows are padded, attention is the fused one


def sam(config: SAMConfig = TINY, seed: int = 0) -> SAM:
    torch.manual_seed(seed)
    model = SAM(config)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2) if p.ndim > 1 else nn.init.normal_(p, mean=0.5, std=0.2)
    return model


def package(model: SAM) -> Sam:
    """The package's own composition of the same modules."""
    theirs = Sam(model.image_encoder, model.prompt_encoder, model.mask_decoder, list(PIXEL_MEAN), list(PIXEL_STD))
    return theirs.eval()


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY, WIDE])
def test_image_encoder_equals_the_packages(config: SAMConfig) -> None:
    model, pixels = sam(config), torch.randn(2, 3, config.image_size, config.image_size)
    torch.testing.assert_close(model.encode(pixels), model.image_encoder(pixels), atol=1e-4, rtol=1e-4)


def test_gradient_of_the_fused_attention_equals_the_packages() -> None:
    model, pixels = sam(WIDE), torch.randn(1, 3, 160, 160)
    probe = torch.randn(1, 64, 20, 20)
    table = model.image_encoder.blocks[1].attn.rel_pos_h.requires_grad_()
    ours = torch.autograd.grad((model.encode(pixels) * probe).sum(), table)[0]
    theirs = torch.autograd.grad((model.image_encoder(pixels) * probe).sum(), table)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_blocks_can_be_run_in_parts() -> None:
    model, pixels = sam(), torch.randn(1, 3, 64, 64)
    half = model.blocks(model.patches(pixels), stop=2)
    torch.testing.assert_close(model.neck(model.blocks(half, 2)), model.encode(pixels))


@torch.no_grad()
def test_a_batch_of_different_images_equals_the_package_one_by_one() -> None:
    model = sam()
    theirs, embedding = package(model), torch.randn(3, 64, 8, 8)
    boxes = torch.tensor([[4.0, 5, 30, 40], [0, 0, 63, 63], [20, 10, 50, 20]])
    logits, iou = model.decode(embedding, *model.prompts(boxes=boxes))
    for b in range(3):
        sparse, dense = theirs.prompt_encoder(None, boxes[b : b + 1], None)
        position = theirs.prompt_encoder.get_dense_pe()
        for many, masks in ((False, slice(0, 1)), (True, slice(1, None))):
            want, quality = theirs.mask_decoder(embedding[b : b + 1], position, sparse, dense, many)
            torch.testing.assert_close(logits[b : b + 1, masks], want, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(iou[b : b + 1, masks], quality, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_one_image_is_asked_many_prompts() -> None:
    model, embedding = sam(), torch.randn(1, 64, 8, 8)
    sparse = torch.randn(3, 2, 64)
    together, _ = model.decode(embedding, sparse)
    apart, _ = model.decode(embedding.expand(3, -1, -1, -1), sparse)
    torch.testing.assert_close(together, apart)
    with pytest.raises(ValueError, match="2 image embeddings and 3 prompts"):
        model.decode(embedding.expand(2, -1, -1, -1), sparse)


@torch.no_grad()
def test_masks_and_pixels_equal_the_packages() -> None:
    model = sam()
    theirs, low = package(model), torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(
        model.upscale(low, (40, 64), (75, 120)), theirs.postprocess_masks(low, (40, 64), (75, 120))
    )
    image = torch.randint(256, (3, 40, 64), dtype=torch.uint8)
    torch.testing.assert_close(model.prepare(image[None])[0], theirs.preprocess(image))


def test_pictures_of_different_sizes_make_one_batch() -> None:
    model = sam()
    pictures = [torch.full((3, 64, 32), 200, dtype=torch.uint8), torch.full((3, 16, 64), 100, dtype=torch.uint8)]
    pixels = model.prepare(pictures)
    assert pixels.shape == (2, 3, 64, 64)
    assert pixels[0, 0, 63, 31].item() == pytest.approx((200 - 123.675) / 58.395)
    assert pixels[0, :, :, 32:].abs().max() == 0
    assert pixels[1, :, 16:].abs().max() == 0
    with pytest.raises(ValueError, match=r"picture 1 of the batch has 16 x 32.*resize_longest"):
        model.prepare([pictures[0], pictures[1][..., :32]])
    with pytest.raises(ValueError, match="longest side is 64 pixels; has 32 x 32"):
        model.prepare(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_sizes_and_points_of_the_model_frame() -> None:
    model = sam()
    assert model.model_size((50, 70)) == (46, 64)  # 50 * 64 / 70 = 45.7
    assert model.resize_longest(np.zeros((50, 70, 3), np.uint8)).shape == (46, 64, 3)
    moved = model.to_model_frame(torch.tensor([35.0, 25.0]), (50, 70))
    torch.testing.assert_close(moved, torch.tensor([32.0, 23.0]))


def test_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="sees 64 x 64 pixels; got 32 x 64"):
        sam().encode(torch.zeros(1, 3, 32, 64))


def test_stays_frozen_and_in_eval_mode() -> None:
    model = SAM(TINY).train()
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


@torch.no_grad()
def test_save_and_load(tmp_path: Path) -> None:
    model = sam()
    model.save_world(tmp_path / "sam.safetensors", seed="0")
    again, pixels = SAM.from_source(f"file:{tmp_path / 'sam.safetensors'}"), torch.randn(1, 3, 64, 64)
    assert again.config == TINY
    assert again.file.sha256
    torch.testing.assert_close(again.encode(pixels), model.half().float().encode(pixels))


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_official_sizes(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = SAM(OFFICIAL[name]), sam_model_registry[name.removeprefix("sam_")]()
    shapes: list[dict[str, torch.Size]] = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    eps = {type(m).__name__ + str(m.eps) for m in ours.modules() if isinstance(m, nn.LayerNorm) or hasattr(m, "eps")}
    assert eps == {"LayerNorm1e-05", "LayerNorm1e-06", "LayerNorm2d1e-06"}
    assert official_size(ours.state_dict(), Path("x")) == OFFICIAL[name]


def file_of(folder: Path, state: dict[str, Tensor], name: str = "x.pth") -> str:
    torch.save(state, folder / name)
    return f"file:{folder / name}"


def test_bad_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = "image_encoder.patch_embed.proj.weight"
    with pytest.raises(WeightError, match="is no SAM checkpoint"):
        SAM.from_source(file_of(tmp_path, {"layer.weight": torch.zeros(2)}))
    with pytest.raises(WeightError, match=r"width 96; SAM comes in 768 \(sam_vit_b\)"):
        SAM.from_source(file_of(tmp_path, {patches: torch.zeros(96, 3, 16, 16)}))
    monkeypatch.setitem(OFFICIAL, "sam_vit_b", TINY)
    monkeypatch.setitem(OFFICIAL, "sam_vit_l", WIDE)
    with pytest.raises(WeightError, match="missing"):
        SAM.from_source(file_of(tmp_path, {patches: torch.zeros(64, 3, 8, 8)}))
    other = load_file(saved_as(tmp_path, TINY))
    save_file(other, tmp_path / "b.safetensors", metadata={"kind": "clipseg", "config": "{}"})
    with pytest.raises(WeightError, match="holds a clipseg, not a SAM"):
        SAM.from_source(f"file:{tmp_path / 'b.safetensors'}")


def saved_as(folder: Path, config: SAMConfig) -> Path:
    sam(config).save_world(folder / "a.safetensors")
    return folder / "a.safetensors"


def test_a_file_of_another_size_than_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"image_encoder.patch_embed.proj.weight": torch.zeros(1024, 3, 16, 16)}
    torch.save(large, tmp_path / "sam.pth")
    stand_in = SAM(TINY).file.__class__("sam_vit_b", tmp_path / "sam.pth", "0")
    monkeypatch.setattr("avloc.backbones.sam.locate", lambda source: stand_in)
    with pytest.raises(WeightError, match=r"width 1024, but sam_vit_b has width 768.*ask for sam_vit_l"):
        SAM.from_source("sam_vit_b")
