from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from avloc.backbones.vggish import Postprocessor, VGGish, VGGishConfig
from avloc.weights import WeightError

TINY = VGGishConfig(widths=(2, 3, 4, 5), hidden_size=8, embedding_size=6)


@pytest.fixture
def tower() -> VGGish:
    torch.manual_seed(0)
    return VGGish(TINY).eval()


@pytest.fixture
def waveform() -> Tensor:
    return 0.1 * torch.randn(2, 32000, generator=torch.Generator().manual_seed(1))


def test_official_size() -> None:
    with torch.device("meta"):
        full = VGGish()
    assert sum(p.numel() for p in full.parameters()) == 72_141_184
    convolutions = {f"features.{i}.{n}" for i in (0, 3, 6, 8, 11, 13) for n in ("weight", "bias")}
    assert full.state_dict().keys() == convolutions | {
        f"embeddings.{i}.{n}" for i in (0, 2, 4) for n in ("weight", "bias")
    }
    with torch.device("meta"):
        assert VGGish(postprocess=True).state_dict().keys() - full.state_dict().keys() == {
            "pproc.pca_eigen_vectors",
            "pproc.pca_means",
        }


def test_features_enter_the_linear_layers_by_time_band_channel(tower: VGGish) -> None:
    examples = torch.randn(2, 1, 96, 64, generator=torch.Generator().manual_seed(2))
    grid = tower.features(examples)
    assert grid.shape == (2, 5, 6, 4)
    first = tower.embeddings[0]
    want = torch.zeros(2, 8) + first.bias
    for t in range(6):
        for band in range(4):
            for channel in range(5):
                want += grid[:, channel, t, band, None] * first.weight[:, (t * 4 + band) * 5 + channel]
    rest = nn.Sequential(*list(tower.embeddings)[1:])
    embedding = tower.embed(examples)
    torch.testing.assert_close(embedding, rest(want))
    assert (embedding >= 0).all()


def test_batch_of_clips_is_each_clip_alone(tower: VGGish, waveform: Tensor) -> None:
    together = tower(waveform)
    assert together.shape == (2, 2, 6)
    for row, clip in zip(together, waveform, strict=True):
        torch.testing.assert_close(row, tower.embed(tower.front_end(clip[None])[0]))


def test_postprocessing_by_hand() -> None:
    post = Postprocessor(2)
    post.pca_eigen_vectors.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    post.pca_means.copy_(torch.tensor([[1.0], [0.5]]))
    # p = E (x - mean): (0, 4) -> (3.5, -2): clipped to 2 -> 255, and -2 -> 0. (1, 0.5) -> 0 -> 127.5, tie to even.
    assert post(torch.tensor([[0.0, 4.0], [1.0, 0.5]])).tolist() == [[255.0, 0.0], [128.0, 128.0]]


def test_postprocessed_output_is_levels(tower: VGGish, waveform: Tensor) -> None:
    torch.manual_seed(3)
    full = VGGish(TINY, postprocess=True).eval()
    full.load_state_dict(
        tower.state_dict() | {"pproc.pca_eigen_vectors": torch.eye(6), "pproc.pca_means": torch.ones(6, 1)}
    )
    raw = tower(waveform).detach().numpy().astype(np.float64)
    want = np.rint((np.clip(raw - 1, -2, 2) + 2) * 63.75)
    np.testing.assert_allclose(full(waveform).detach().numpy(), want)


def test_clip_shorter_than_an_example_is_named(tower: VGGish) -> None:
    with pytest.raises(ValueError, match=r"15600 samples \(0.975 s at 16000 Hz\).*have 8000.*Pad"):
        tower(torch.zeros(1, 8000))


def test_world_file_comes_back(tower: VGGish, waveform: Tensor, tmp_path: Path) -> None:
    tower.save_world(tmp_path / "tiny.safetensors", made="by a test")
    back = VGGish.from_source(f"file:{tmp_path / 'tiny.safetensors'}").eval()
    assert back.config == TINY
    assert not any(p.requires_grad for p in back.parameters())
    torch.testing.assert_close(back(waveform), tower(waveform), atol=1e-3, rtol=1e-2)  # stored in float16


def test_official_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's file, whose PCA parameters lie in a file of their own with flat means."""
    monkeypatch.setattr("avloc.backbones.vggish.read_config", lambda path: TINY)  # official layout, tiny widths
    torch.manual_seed(4)
    state = VGGish(TINY).state_dict()
    torch.save(state, tmp_path / "net.pth")
    vectors, means = torch.randn(6, 6), torch.randn(6)
    torch.save({"pca_eigen_vectors": vectors, "pca_means": means}, tmp_path / "pca.pth")
    tower = VGGish.from_source(f"file:{tmp_path / 'net.pth'}", pca=f"file:{tmp_path / 'pca.pth'}")
    assert torch.equal(tower.embeddings[4].weight, state["embeddings.4.weight"])
    assert tower.pproc is not None
    assert torch.equal(tower.pproc.pca_means, means[:, None])
    assert torch.equal(tower.pproc.pca_eigen_vectors, vectors)


def test_file_of_another_size_is_refused(tower: VGGish, tmp_path: Path) -> None:
    torch.save(tower.state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(WeightError, match=r"does not fit VGGish.*of another shape"):
        VGGish.from_source(f"file:{tmp_path / 'tiny.pth'}")


@pytest.mark.parametrize(
    "metadata",
    [{"kind": "beats", "config": "{}"}, {"kind": "vggish", "config": "{}"}, {"kind": "vggish", "config": "x"}],
)
def test_foreign_world_file_is_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(WeightError, match="is no VGGish file"):
        VGGish.from_source(f"file:{tmp_path / 'other.safetensors'}")
