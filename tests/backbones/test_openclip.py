"""CLIP's towers against open_clip's own walk, and official files in all their formats."""

from __future__ import annotations

import copy
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file
from torch import Tensor, nn

from avloc.backbones.openclip import IMAGENET_TEMPLATES, RN50, TINY, VIT_B16, OpenCLIP, normalise, read_archive
from avloc.backbones.tokens import train_world_tokenizer
from avloc.weights import WeightError

WORDS = ["a", "photo", "of", "the", "dog", "cat", "bell"]
LITTLE_RN: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 64, "patch_size": None},
    "text_cfg": {"context_length": 12, "vocab_size": 20, "width": 64, "heads": 1, "layers": 2},
}
LITTLE_VIT: dict[str, Any] = LITTLE_RN | {"vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}}


def tiny(seed: int = 0) -> OpenCLIP:
    torch.manual_seed(seed)
    tokenizer = train_world_tokenizer(WORDS)
    config = copy.deepcopy(TINY)
    config["text_cfg"]["vocab_size"] = tokenizer.encode("")[-1] + 1
    return OpenCLIP(config, tokenizer)


def little(config: dict[str, Any]) -> OpenCLIP:
    torch.manual_seed(1)
    return OpenCLIP(config)


# ---- the walk


@torch.no_grad()
def test_text_tower_equals_open_clips_own_for_any_padding() -> None:
    model = tiny()
    nn.init.normal_(model.clip.positional_embedding, std=0.5)
    ids = model.tokenize(["a photo of the dog", "cat"])
    full = nn.functional.pad(ids, (0, model.clip.context_length - ids.shape[1]))
    torch.testing.assert_close(model.encode_text(ids), model.clip.encode_text(full), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode_text(ids[1:, :3]), model.clip.encode_text(full[1:]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_names_are_normalised_averaged_and_normalised() -> None:
    model, templates = tiny(), ["a photo of the {}", "a {}", "{}"]
    nn.init.normal_(model.clip.text_projection, std=0.5)
    got = model.encode_names(["dog", "bell", "dog"], templates, chunk=2)
    for row, name in zip(got, ["dog", "bell", "dog"], strict=True):
        total = torch.zeros(64)
        for t in templates:
            v = model.encode_text(model.tokenize([t.format(name)]))[0]
            total += v / v.norm()
        torch.testing.assert_close(row, total / total.norm(), atol=1e-5, rtol=1e-5)
    assert torch.equal(got[0], got[2])


def test_there_are_80_templates() -> None:
    assert len(set(IMAGENET_TEMPLATES)) == 80
    assert all(t.count("{}") == 1 for t in IMAGENET_TEMPLATES)
    assert {"a photo of a {}.", "itap of my {}.", "a tattoo of the {}."} <= set(IMAGENET_TEMPLATES)


def test_pixels_are_normalised() -> None:
    want = [(100 / 255 - m) / s for m, s in zip(OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, strict=True)]
    got = normalise(torch.full((1, 3, 2, 2), 100, dtype=torch.uint8))
    torch.testing.assert_close(got[0, :, 0, 0], torch.tensor(want))


def test_full_sizes() -> None:
    for config, width, parameters in ((RN50, 1024, 102_007_137), (VIT_B16, 512, 149_620_737)):
        with torch.device("meta"):
            model = OpenCLIP(config)
        assert model.width == width
        assert model.image_size == 224
        # The published sizes: 102 M and 150 M.
        assert sum(p.numel() for p in model.clip.parameters()) == parameters


def test_frozen_and_always_in_eval_mode() -> None:
    model = little(LITTLE_RN).train()
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_other_sizes_and_long_texts_are_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="sees 64 x 64 pixels; got 32 x 48"):
        model.encode_image(torch.zeros(1, 3, 32, 48))
    with pytest.raises(ValueError, match="78 tokens exceeds this CLIP's 77"):
        model.encode_text(torch.zeros(1, 78, dtype=torch.long))
    with pytest.raises(ValueError, match="without a tokenizer"):
        little(LITTLE_VIT).tokenize(["dog"])


# ---- files


@torch.no_grad()
def test_world_file_round_trip(tmp_path: Path) -> None:
    model = tiny()
    for p in model.parameters():
        p.copy_(p.half().float())
    model.save_world(tmp_path / "clip.safetensors", note="x")
    again = OpenCLIP.from_source(f"file:{tmp_path / 'clip.safetensors'}")
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.encode_image(pixels), again.encode_image(pixels))
    assert torch.equal(model.encode_names(["dog"], ["a {}"]), again.encode_names(["dog"], ["a {}"]))
    assert len(again.file.sha256) == 64


@torch.no_grad()
@pytest.mark.parametrize("config", [LITTLE_RN, LITTLE_VIT], ids=["resnet", "vit"])
def test_safetensors_and_bin_tell_their_size(tmp_path: Path, config: dict[str, Any]) -> None:
    model = little(config)
    state = {k: v.clone() for k, v in model.clip.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    side = config["vision_cfg"]["image_size"]
    pixels, ids = torch.randn(2, 3, side, side), torch.tensor([[1, 2, 3, 19]])
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        again = OpenCLIP.from_source(f"file:{tmp_path / name}")
        torch.testing.assert_close(again.encode_image(pixels), model.encode_image(pixels))
        torch.testing.assert_close(again.encode_text(ids), model.encode_text(ids))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_openais_torchscript_is_read_as_data(tmp_path: Path) -> None:
    model = little(LITTLE_VIT)
    official = copy.deepcopy(model.clip)
    official.register_buffer("input_resolution", torch.tensor(32))
    example = {"forward": (torch.rand(1, 3, 32, 32), torch.randint(20, (1, 12)))}
    traced = torch.jit.trace_module(official, example).half()
    path = tmp_path / "ViT.pt"
    traced.save(str(path))
    state, want = read_archive(path), traced.state_dict()
    assert want.keys() <= state.keys()
    assert all(torch.equal(state[k], v) for k, v in want.items())
    again = OpenCLIP.from_source(f"file:{path}")
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again.encode_image(pixels), model.encode_image(pixels), atol=2e-2, rtol=2e-2)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit",))


def test_an_archive_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "evil.pt", io.BytesIO()
    pickle.dump({"weight": Evil()}, data)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/data.pkl", data.getvalue())
        archive.writestr("evil/code/__torch__.py", "")
    with pytest.raises(WeightError, match=r"refused: it asks for builtins\.exec"):
        OpenCLIP.from_source(f"file:{path}")


def test_bad_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.pt", "w") as archive:
        archive.writestr("x/code/a.py", "")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "sam.safetensors", metadata={"kind": "sam"})
    state: dict[str, Tensor] = {k: v.clone() for k, v in little(LITTLE_VIT).clip.state_dict().items()}
    del state["ln_final.bias"]
    save_file(state, tmp_path / "cut.safetensors")
    for name, message in {
        "missing.pt": "not on this machine",
        "empty.pt": "cannot be read as weights",
        "other.safetensors": "is no CLIP",
        "sam.safetensors": "holds a sam",
        "cut.safetensors": r"1 missing \(ln_final.bias\)",
    }.items():
        with pytest.raises(WeightError, match=message):
            OpenCLIP.from_source(f"file:{tmp_path / name}")
