"""``world:openclip`` against the CLIPSeg whose CLIP it is, walked by another library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from avloc.backbones.clipseg import CLIPSeg
from avloc.backbones.openclip import OpenCLIP
from avloc.weights import WORLD_ASSETS, read_metadata
from avloc.world.openclip import write_openclip
from avloc.world.scenes import NAMES


@pytest.fixture(scope="module")
def towers() -> tuple[OpenCLIP, CLIPSeg]:
    return OpenCLIP.from_source("world:openclip"), CLIPSeg.from_source("world:clipseg")


@torch.no_grad()
def test_pictures_and_texts_are_embedded_as_transformers_does(towers: tuple[OpenCLIP, CLIPSeg]) -> None:
    ours, theirs = towers
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    want = theirs.encode_image(pixels, pooled=True).pooled
    assert want is not None
    torch.testing.assert_close(ours.encode_image(pixels), want, atol=1e-4, rtol=1e-4)
    texts = [f"a photo of a {name}" for name in NAMES]
    assert torch.equal(ours.tokenize(texts), theirs.tokenize(texts))
    wanted = theirs.encode_text(theirs.tokenize(texts))
    torch.testing.assert_close(ours.encode_text(ours.tokenize(texts)), wanted, atol=1e-4, rtol=1e-4)


def test_the_file_is_small_and_its_command_writes_it_again(tmp_path: Path) -> None:
    path = WORLD_ASSETS / "openclip.safetensors"
    assert path.stat().st_size < 1_300_000
    about = read_metadata(path)
    assert about["command"] == "python -m avloc.world.openclip"
    assert "world:clipseg" in about["note"]
    write_openclip(tmp_path / "again.safetensors")
    assert read_metadata(tmp_path / "again.safetensors") == about
    again, stored = load_file(tmp_path / "again.safetensors"), load_file(path)
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[k], stored[k]) for k in stored)
