"""The spaces against their towers' own answers, normalised by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from avloc.backbones.audioclip import WORLD, AudioCLIP
from avloc.backbones.clap import CLAP
from avloc.backbones.clipseg import normalise
from avloc.backbones.imagebind import ImageBind
from avloc.backbones.openclip import TINY as CLIP
from avloc.backbones.openclip import OpenCLIP
from avloc.backbones.tokens import train_world_tokenizer
from avloc.backbones.wav2clip import Wav2CLIP, Wav2CLIPConfig
from avloc.methods.baselines import spaces
from avloc.methods.baselines.spaces import AudioCLIPSpace, ClapSpace, ImageBindSpace, Space, Wav2CLIPSpace
from avloc.weights import WeightError
from tests.backbones.test_clap import CONFIG, SETTINGS, TEXT
from tests.backbones.test_imagebind import TINY as IMAGEBIND

NAMES = ["bell", "drum", "dog"]
TINY = replace(WORLD, image=replace(WORLD.image, width=4, heads=2), audio=replace(WORLD.audio, width=8))
TEXTS = [NAMES[0], NAMES[1], NAMES[0]]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("towers")
    tokenizer = train_world_tokenizer(NAMES)
    end = tokenizer.encode("")[-1]
    towers = {
        "audioclip": AudioCLIP(replace(TINY, text=replace(TINY.text, vocab_size=end + 1)), tokenizer),
        "clip": OpenCLIP(CLIP | {"text_cfg": CLIP["text_cfg"] | {"vocab_size": end + 1}}, tokenizer),
        "imagebind": ImageBind(replace(IMAGEBIND, text=replace(IMAGEBIND.text, vocab_size=end + 1)), tokenizer),
        "wav2clip": Wav2CLIP(Wav2CLIPConfig(8000, 128, 90, blocks=(1, 1, 1, 1), mlp_units=(64, 32, 64))),
        "narrow": Wav2CLIP(Wav2CLIPConfig(8000, 128, 90, blocks=(1, 1, 1, 1), mlp_units=(64, 32, 48))),
    }
    text = TEXT | {"vocab_size": end + 2, "pad_token_id": end + 1, "bos_token_id": end - 1, "eos_token_id": end}
    text["max_position_embeddings"] = end + 20
    towers["clap"] = CLAP({**CONFIG, "text_config": text}, SETTINGS, tokenizer)
    for name, tower in towers.items():
        tower.save_world(folder / f"{name}.safetensors")
    return {name: f"file:{folder / name}.safetensors" for name in towers}


def build(kind: str, files: dict[str, str]) -> Space:
    if kind == "wav2clip":
        return Wav2CLIPSpace(files["wav2clip"], files["clip"])
    return {"audioclip": AudioCLIPSpace, "clap": ClapSpace, "imagebind": ImageBindSpace}[kind](files[kind])


def by_hand(x: Tensor) -> Tensor:
    return x / x.square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize(
    ("kind", "rate", "seconds", "size"),
    [("wav2clip", 8000, 10, 64), ("audioclip", 16000, 5, 64), ("clap", 8000, 1, 0), ("imagebind", 16000, 10, 28)],
)
def test_space_is_frozen_and_says_what_it_hears(
    files: dict[str, str], kind: str, rate: int, seconds: float, size: int
) -> None:
    space = build(kind, files)
    assert (space.sample_rate, space.seconds, space.image_size) == (rate, seconds, size)
    assert all(f.sha256 for f in space.files.values())
    assert set(space.files) == ({"wav2clip", "clip"} if kind == "wav2clip" else {kind})
    assert not any(m.training for m in torch.nn.Sequential(space).train()[0].modules())
    assert not any(p.requires_grad for p in space.parameters())
    audio = noise(3, 8000).requires_grad_(True)
    assert not space.hear(audio).requires_grad


@pytest.mark.parametrize("kind", ["wav2clip", "audioclip", "clap", "imagebind"])
def test_unit_vectors_of_the_towers(files: dict[str, str], kind: str) -> None:
    space = build(kind, files)
    audio = noise(2, 8000, seed=3)
    ids = train_world_tokenizer(NAMES)
    rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids.encode(t)) for t in TEXTS], batch_first=True)
    side = space.image_size
    crops = torch.randint(0, 256, (3, 3, side, side), generator=torch.Generator().manual_seed(5)).byte()
    with torch.no_grad():
        if kind == "wav2clip":
            eyes = OpenCLIP.from_source(files["clip"])
            # One by one: the sound of a clip does not depend on its batch.
            heard = torch.cat([Wav2CLIP.from_source(files["wav2clip"])(a[None]) for a in audio])
            read, seen = eyes.encode_text(rows), eyes.encode_image(normalise(crops))
        elif kind == "audioclip":
            tower = AudioCLIP.from_source(files["audioclip"])
            heard, read, seen = (
                tower.encode_audio(audio),
                tower.encode_text(rows),
                tower.encode_image(normalise(crops)),
            )
        elif kind == "clap":
            clap = CLAP.from_source(files["clap"])
            heard, read, seen = clap.encode_audio(audio), clap.encode_text(TEXTS), None
        else:
            bind = ImageBind.from_source(files["imagebind"])
            heard, read, seen = bind.encode_audio(audio), bind.encode_text(rows), bind.encode_image(normalise(crops))
    torch.testing.assert_close(space.hear(audio), by_hand(heard), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(space.read(TEXTS), by_hand(read), atol=1e-5, rtol=1e-4)
    # The same text twice in a batch; a matrix product may round its rows apart.
    torch.testing.assert_close(space.read(TEXTS)[0], space.read(TEXTS)[2], atol=1e-6, rtol=0)
    assert space.hear(audio).dtype == space.read(TEXTS).dtype == torch.float32
    if seen is None:
        with pytest.raises(ValueError, match="ClapSpace hears and reads, it cannot look"):
            space.look(crops)
    else:
        torch.testing.assert_close(space.look(crops), by_hand(seen), atol=1e-5, rtol=1e-4)
        assert space.look(crops[:0]).shape == (0, seen.shape[1]) == (0, space.width)


def test_many_crops_are_seen_in_parts(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    space = build("imagebind", files)
    crops = torch.randint(0, 256, (5, 3, 28, 28), generator=torch.Generator().manual_seed(6)).byte()
    whole = space.look(crops)
    monkeypatch.setattr(spaces, "CROPS_AT_ONCE", 2)
    torch.testing.assert_close(space.look(crops), whole, atol=1e-6, rtol=1e-5)


def test_bad_input_is_named(files: dict[str, str]) -> None:
    space = build("wav2clip", files)
    with pytest.raises(ValueError, match=r"hears mono waveforms \[B, T\]; got \[8000\]"):
        space.hear(torch.zeros(8000))
    with pytest.raises(ValueError, match=r"looks at uint8 crops \[N, 3, 64, 64\]; got torch.uint8 \[1, 3, 64, 32\]"):
        space.look(torch.zeros(1, 3, 64, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got torch.float32 \[1, 3, 64, 64\]"):
        space.look(torch.zeros(1, 3, 64, 64))
    for texts in ([], "dog"):
        with pytest.raises(ValueError, match="reads a list of at least one text"):
            space.read(texts)
    with pytest.raises(WeightError, match=r"has embeddings of 64, .* hears into 48"):
        Wav2CLIPSpace(files["narrow"], files["clip"])
    with pytest.raises(ValueError, match=r"hears 1 s at once, not 2\. Lower seconds"):
        ClapSpace(files["clap"], seconds=2)
    with pytest.raises(ValueError, match=r"Space cannot read\. Use a space with a text tower"):
        Space(8000, 1.0, 0, 4, {}).read(["dog"])


def test_a_space_is_named_in_yaml(files: dict[str, str], tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_argument("--space", type=Space)
    options = {"class_path": "avloc.methods.baselines.spaces.ClapSpace", "init_args": {"weights": files["clap"]}}
    space = parser.instantiate_classes(parser.parse_object({"space": options})).space
    assert isinstance(space, ClapSpace)
    assert space.sample_rate == 8000
