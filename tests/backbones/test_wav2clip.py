from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torchvision.models import resnet18

from avloc.backbones.wav2clip import Wav2CLIP, Wav2CLIPConfig, standardise
from avloc.weights import WeightError

TINY = Wav2CLIPConfig(n_fft=128, hop=60, blocks=(1, 1, 1, 1), mlp_units=(64, 32, 16))


def noise(*shape: int, seed: int = 1) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tower() -> Wav2CLIP:
    torch.manual_seed(0)
    return Wav2CLIP(TINY).eval()


@pytest.mark.parametrize(("samples", "power"), [(3000, 2.0), (129, 1.0)])
def test_spectrogram_against_a_loop(samples: int, power: float) -> None:
    module = Wav2CLIP(Wav2CLIPConfig(n_fft=128, hop=60, power=power, mlp_units=(64, 8, 8))).audio_encoder.spectrogram
    sound = noise(2, samples)
    got = module(sound).numpy()
    assert got.shape == (2, 65, 1 + samples // 60)
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / 128) for i in range(128)])
    for clip, image in zip(sound.double().numpy(), got, strict=True):
        x = np.pad(clip, 64, mode="reflect")
        for n in range(image.shape[1]):
            spectrum = np.abs(np.fft.rfft(x[60 * n : 60 * n + 128] * window))
            np.testing.assert_allclose(np.exp(image[:, n]), spectrum**power + 1e-7, rtol=1e-4, atol=1e-7)


def test_statistics_of_the_batch_or_of_each_clip() -> None:
    x = 3 + noise(3, 5, 7)
    x[2] *= 20
    y = x.double().numpy()
    batch = (y - y.mean()) / (y.std(ddof=1) + 1e-9)
    np.testing.assert_allclose(standardise(x, 1e-9, "batch").numpy(), batch, atol=1e-5)
    clips = [(row - row.mean()) / (row.std(ddof=1) + 1e-9) for row in y]
    np.testing.assert_allclose(standardise(x, 1e-9, "clip").numpy(), np.stack(clips), atol=1e-5)


def test_embeddings_depend_on_their_batch_only_where_they_should(tower: Wav2CLIP) -> None:
    sound = torch.cat([noise(1, 2000), 0.01 * noise(1, 2000, seed=2)])
    assert not torch.allclose(tower(sound)[:1], tower(sound[:1]), atol=1e-3)
    alone = Wav2CLIP(TINY, statistics="clip").eval()
    alone.load_state_dict(tower.state_dict())
    torch.testing.assert_close(alone(sound)[:1], tower(sound[:1]), atol=1e-5, rtol=1e-4)


def test_network_is_a_resnet18_of_torchvision() -> None:
    torch.manual_seed(1)
    ours = Wav2CLIP().eval()
    theirs = resnet18()
    theirs.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    theirs.fc = nn.Identity()
    own = {k: v for k, v in ours.audio_encoder.state_dict().items() if not k.startswith("spectrogram")}
    theirs.load_state_dict(own)
    x = noise(2, 257, 40)
    torch.testing.assert_close(ours.audio_encoder(x), theirs.eval()(x.unsqueeze(1)), atol=1e-5, rtol=1e-4)
    assert len(ours.state_dict()) == 125  # as in golden wav2clip's shapes.json
    assert ours.state_dict()["audio_encoder.spectrogram.window"].shape == (512,)
    assert ours.state_dict()["audio_transform.sequential.3.weight"].shape == (512, 512)


def test_pieces_share_the_statistics_of_all(tower: Wav2CLIP) -> None:
    sound = noise(2, 2100)
    pieces = torch.stack([clip[n * 400 : n * 400 + 800] for clip in sound for n in range(4)])
    want = tower(pieces).unflatten(0, (2, 4)).transpose(1, 2)
    got = tower.encode_frames(sound, 800, 400)
    assert got.shape == (2, 16, 4)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("wrapped", [False, True])
def test_official_file_loads_frozen(tmp_path: Path, wrapped: bool) -> None:
    torch.manual_seed(2)
    official = Wav2CLIP().eval()
    state = official.state_dict() | {
        "image_transform.sequential.0.weight": torch.ones(2, 2),
        "loss.scale": torch.ones(1),
    }
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "Wav2CLIP.pt")
    loaded = Wav2CLIP.from_source(f"file:{tmp_path / 'Wav2CLIP.pt'}")
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(m.training for m in loaded.train().modules())
    sound = noise(1, 4000)
    torch.testing.assert_close(loaded(sound), official(sound))
    assert Wav2CLIP.from_source(f"file:{tmp_path / 'Wav2CLIP.pt'}", frozen=False).train().audio_transform.training


def test_a_file_without_the_projection_is_refused(tmp_path: Path) -> None:
    state = {k: v for k, v in Wav2CLIP().state_dict().items() if k.startswith("audio_encoder")}
    torch.save(state, tmp_path / "encoder.pt")
    with pytest.raises(WeightError, match=r"encoder\.pt does not fit Wav2CLIP: 4 missing \(audio_transform"):
        Wav2CLIP.from_source(f"file:{tmp_path / 'encoder.pt'}")
    with pytest.raises(WeightError, match="holds a beats, not a Wav2CLIP"):
        Wav2CLIP.from_source("world:beats")


def test_world_file_carries_its_config(tower: Wav2CLIP, tmp_path: Path) -> None:
    tower.save_world(tmp_path / "w.safetensors", seed="3")
    with safe_open(tmp_path / "w.safetensors", "pt") as f:
        assert f.get_slice("audio_encoder.conv1.weight").get_dtype() == "F16"
        assert f.metadata()["seed"] == "3"
    loaded = Wav2CLIP.from_source(f"file:{tmp_path / 'w.safetensors'}")
    assert loaded.config == TINY
    torch.testing.assert_close(loaded(noise(2, 2000)), tower(noise(2, 2000)), atol=0.01, rtol=0.01)


def test_half_precision_never_reaches_the_spectrogram(tower: Wav2CLIP) -> None:
    want = tower.audio_encoder.spectrogram(noise(1, 2000))
    embedding = tower(noise(1, 2000))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = tower.bfloat16().audio_encoder.spectrogram(noise(1, 2000))
    torch.testing.assert_close(got, want, atol=0, rtol=0)
    assert (tower(noise(1, 2000)) - embedding).abs().max() < 0.1 * embedding.abs().max()


def test_unusable_inputs_and_sizes_are_named(tower: Wav2CLIP) -> None:
    with pytest.raises(ValueError, match=r"more than 64 samples \(16000 Hz\), got \[2, 64\].*pad the clip"):
        tower(torch.zeros(2, 64))
    assert tower(torch.zeros(2, 65)).isfinite().all()
    with pytest.raises(ValueError, match=r"got \[1, 2, 4000\]. Mix the channels"):
        tower(torch.zeros(1, 2, 4000))
    with pytest.raises(ValueError, match=r"clips \[1, 700\] hold no piece of 800 samples"):
        tower.encode_frames(torch.zeros(1, 700), 800, 400)
    with pytest.raises(ValueError, match="three widths, the first a multiple of 8"):
        Wav2CLIPConfig(mlp_units=(60, 8, 8))
