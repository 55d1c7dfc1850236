"""VGGish, the frozen audio tower of the AVSBench family, under its official key names (torchvggish, f3f9096)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from avloc.frontends.vggish import VGGishFrontEnd
from avloc.weights import WeightError, load_into, locate, read_metadata, read_state

__all__ = ["Postprocessor", "VGGish", "VGGishConfig"]

REMEDY = "Get the file that `avloc weights` names."


@dataclass(frozen=True)
class VGGishConfig:
    """Sizes; the defaults are the official ones.

    Args:
        widths: channels of the four stages of 1, 1, 2 and 2 convolutions.
        hidden_size: width of the two hidden linear layers.
        embedding_size: width D of the embedding.
    """

    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    hidden_size: int = 4096
    embedding_size: int = 128


class VGGish(nn.Module):
    """Waveform or log-mel examples to one embedding per 0.96 s.

    Args:
        config: sizes.
        front_end: makes the examples; the official one by default.
        postprocess: own the PCA and 8-bit quantisation (keys ``pproc.*``) and answer with its levels. AVSBench and the
            methods built on it read the raw embedding.
    """

    def __init__(
        self, config: VGGishConfig | None = None, front_end: VGGishFrontEnd | None = None, postprocess: bool = False
    ) -> None:
        super().__init__()
        self.config = c = config or VGGishConfig()
        self.front_end = front_end or VGGishFrontEnd()
        layers: list[nn.Module] = []
        width = 1
        for stage, convolutions in zip(c.widths, (1, 1, 2, 2), strict=True):
            for _ in range(convolutions):
                layers += [nn.Conv2d(width, stage, 3, padding=1), nn.ReLU(inplace=True)]
                width = stage
            layers.append(nn.MaxPool2d(2))
        # One input channel: channels-last convolutions took 0.4 of the time on a processor (32 examples, tiny widths).
        self.features = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        cells = (self.front_end.example_frames // 16) * (self.front_end.mel_bins // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(cells * c.widths[-1], c.hidden_size),
            nn.ReLU(inplace=True),
            nn.Linear(c.hidden_size, c.hidden_size),
            nn.ReLU(inplace=True),
            nn.Linear(c.hidden_size, c.embedding_size),
            nn.ReLU(inplace=True),
        )
        self.pproc = Postprocessor(c.embedding_size) if postprocess else None

    @property
    def embedding_size(self) -> int:
        return self.config.embedding_size

    @classmethod
    def from_source(cls, source: str, pca: str | None = None, front_end: VGGishFrontEnd | None = None) -> VGGish:
        """The frozen tower from an official ``.pth``, or from a file that `save_world` wrote.

        Args:
            source: a source string of `avloc.weights`; ``random`` gives the official size, untrained.
            pca: source of the PCA parameters, for post-processed output; None for the raw embedding.
            front_end: as in the constructor.

        Raises:
            WeightError: a file is missing, damaged, or of another model.
        """
        path = locate(source).path
        tower = cls(read_config(path) if path else None, front_end, postprocess=pca is not None)
        if path is not None:
            state = {k: v for k, v in read_state(path).items() if not k.startswith("pproc.")}
            own = tower.pproc
            tower.pproc = None
            load_into(tower, state, str(path))
            tower.pproc = own
        if tower.pproc is not None and pca is not None and (pca_path := locate(pca).path):
            state = {k.removeprefix("pproc."): v for k, v in read_state(pca_path).items()}
            load_into(tower.pproc, as_column(state), str(pca_path))
        return tower.requires_grad_(False)

    def save_world(self, path: Path, **notes: str) -> None:
        """Write the tower as safetensors, in float16 with its config, for `from_source` to read.

        Args:
            path: a file name that ends with ``.safetensors``.
            notes: how the weights came about, kept in the file's metadata.
        """
        tensors = {
            k: v.detach().to("cpu", torch.float16).clone(memory_format=torch.contiguous_format)
            for k, v in self.state_dict().items()
        }
        save_file(tensors, path, metadata={**notes, "kind": "vggish", "config": json.dumps(asdict(self.config))})

    def forward(self, waveform: Tensor) -> Tensor:
        """Embeddings of every example.

        Args:
            waveform: ``[B, T]`` in [-1, 1] at 16 kHz, or int16.

        Returns:
            ``[B, N, D]``: the raw embedding (not negative), or with a post-processor levels 0 to 255.

        Raises:
            ValueError: the clips are shorter than one example.
        """
        examples = self.front_end(waveform)
        if not examples.shape[1]:
            needed, rate = self.front_end.samples(1), self.front_end.sample_rate
            raise ValueError(
                f"VGGish needs {needed} samples ({needed / rate:g} s at {rate} Hz) for its first example, the clips "
                f"have {waveform.shape[1]}. Pad them with zeros, or ask the data for at least 1 s (InputSpec.seconds)."
            )
        x = self.embed(examples.flatten(0, 1))
        x = x if self.pproc is None else self.pproc(x)
        return x.unflatten(0, examples.shape[:2])

    def embed(self, examples: Tensor) -> Tensor:
        """Raw embeddings ``[N, D]`` of examples ``[N, 1, 96, 64]``, taken after the last ReLU."""
        x = self.features(examples.to(next(self.parameters()).dtype))
        return self.embeddings(x.permute(0, 2, 3, 1).flatten(1))  # official order: time, band, channel


class Postprocessor(nn.Module):
    """PCA, clipping and 8-bit quantisation of embeddings, as AudioSet released them.

    Args:
        size: width D of the embedding.
    """

    LOW, HIGH = -2.0, 2.0

    pca_eigen_vectors: Tensor
    pca_means: Tensor

    def __init__(self, size: int = 128) -> None:
        super().__init__()
        self.register_buffer("pca_eigen_vectors", torch.eye(size))
        self.register_buffer("pca_means", torch.zeros(size, 1))

    def forward(self, embedding: Tensor) -> Tensor:
        """Levels, float32 ``[N, D]`` from 0 to 255 (ties to even), of raw embeddings ``[N, D]``.

        The reference squeezes its result, so that one example loses its batch axis; this one does not.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            p = (embedding.float() - self.pca_means.float().T) @ self.pca_eigen_vectors.float().T
            return ((p.clamp(self.LOW, self.HIGH) - self.LOW) * (255 / (self.HIGH - self.LOW))).round()


def as_column(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official PCA file holds flat means, the module a column."""
    return {k: v.reshape(-1, 1) if k == "pca_means" else v for k, v in state.items()}


def read_config(path: Path) -> VGGishConfig:
    """Sizes of a file that `VGGish.save_world` wrote; the official ones for any other."""
    metadata = read_metadata(path)
    if path.suffix != ".safetensors" or "config" not in metadata:
        return VGGishConfig()
    try:
        if metadata.get("kind") != "vggish":
            raise ValueError(f"its metadata says kind {metadata.get('kind')!r}")
        stored = json.loads(metadata["config"])
        known = {f.name: stored[f.name] for f in fields(VGGishConfig)}
        return VGGishConfig(**{**known, "widths": tuple(known["widths"])})
    except (ValueError, KeyError, TypeError) as e:
        raise WeightError(f"{path} is no VGGish file: {e}. {REMEDY}") from e
