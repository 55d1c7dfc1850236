"""CLIP's image and text towers through open_clip, frozen: RN50 (D = 1024), ViT-B/16 (D = 512), and a tiny one.

The parameters live in `open_clip.model.CLIP`. Three official formats load unchanged: the safetensors or ``.bin`` of the
open_clip pages on Hugging Face (``open_clip_model.safetensors`` of timm/resnet50_clip.openai and
timm/vit_base_patch16_clip_224.openai) and OpenAI's own ``RN50.pt`` and ``ViT-B-16.pt``. The latter are TorchScript
programs; their tensors are read without running them (`read_archive`).
"""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from safetensors.torch import save_file
from torch import Tensor, nn

from avloc.backbones.pixels import per_channel
from avloc.backbones.tokens import Tokenizer, clip_tokenizer
from avloc.backbones.towers import Tower, header, own_parts
from avloc.weights import WeightError, load_into, locate, read_state, zipped

__all__ = ["IMAGENET_TEMPLATES", "RN50", "TINY", "VIT_B16", "OpenCLIP", "read_archive"]

log = logging.getLogger(__name__)

Config = dict[str, Any]  # arguments of open_clip.model.CLIP, as in its model_configs

TEXT: Config = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
RN50: Config = {
    "embed_dim": 1024,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None},
    "text_cfg": TEXT,
}
VIT_B16: Config = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": TEXT,
}
# The embedded world's: 64-pixel pictures, 0.5 M parameters. ``vocab_size`` is that of the tokenizer it is given.
TINY: Config = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 96, "head_width": 24, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 64, "width": 64, "heads": 4, "layers": 2},
}

# The 80 of CLIP's prompt notebook, with {} for the name.
IMAGENET_TEMPLATES: tuple[str, ...] = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)

IGNORED = ("attn_mask", "input_resolution", "context_length", "vocab_size")  # of official files
REMEDY = "Get the file that `avloc weights` names."


class OpenCLIP(Tower):
    """A frozen CLIP; always in eval mode, since RN50 has batch norms.

    Args:
        config: arguments of `open_clip.model.CLIP`, e.g. `RN50`.
        tokenizer: turns text into ids of the text tower's vocabulary; None for the picture alone.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
        # open_clip initialises the ViT alone; a tower without a file must answer with finite numbers too.
        self.clip = CLIP(config["embed_dim"], vision, text, quick_gelu=config.get("quick_gelu", False))
        for p in (self.clip.text_projection, self.clip.positional_embedding):
            nn.init.normal_(p, std=0.02)
        self.requires_grad_(False).eval()

    @classmethod
    def from_source(cls, source: str, config: Config = RN50) -> OpenCLIP:
        """Build from a weight source (see `avloc.weights`); the size is read off the file.

        Args:
            source: ``world:NAME``, ``file:PATH``, or a name of `avloc.weights.KNOWN`.
            config: sizes where the source is ``random``.

        Raises:
            WeightError: the file is missing, damaged, or no CLIP.
        """
        if source == "random":
            return cls(config, clip_tokenizer())
        file = locate(source)
        assert file.path is not None
        if (own := own_parts(file, "openclip", "an open_clip CLIP")) is not None:
            model = cls(*own)
            state = read_state(file.path)
        else:
            state = read_clip(file.path)
            model = cls(official_config(state, file.path), clip_tokenizer())
        load_into(model.clip, {k: v for k, v in state.items() if k not in IGNORED}, str(file.path))
        model.file = file
        return model

    def save_world(self, path: Path, **metadata: str) -> None:
        """Write half-precision safetensors with configuration and tokenizer inside."""
        assert self.tokenizer is not None
        floats = {k: v.half() if v.is_floating_point() else v for k, v in self.clip.state_dict().items()}
        head = header("openclip", self.config, self.tokenizer)
        save_file({k: v.contiguous() for k, v in floats.items()}, path, metadata=head | metadata)

    @property
    def width(self) -> int:
        """D: size of the joint embedding."""
        return self.config["embed_dim"]

    @property
    def image_size(self) -> int:
        """Side of the square picture in pixels; RN50's attention pool has a fixed grid."""
        return self.config["vision_cfg"]["image_size"]

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Picture embeddings, not normalised.

        Args:
            pixels: normalised (see `normalise`) ``[B, 3, S, S]`` with S = `image_size`.

        Returns:
            ``[B, D]``.

        Raises:
            ValueError: another size.
        """
        side = self.image_size
        if pixels.shape[-2:] != (side, side):
            raise ValueError(
                f"This CLIP sees {side} x {side} pixels; got {pixels.shape[-2]} x {pixels.shape[-1]}. Resize them."
            )
        return self.clip.encode_image(pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Text embeddings ``[B, D]``, not normalised, of int64 ids ``[B, L]``, pooled at the first largest id.

        L may be shorter than the context: attention is causal, so padding behind the end of text cannot matter.

        Raises:
            ValueError: L exceeds the context.
        """
        clip, length = self.clip, ids.shape[1]
        if length > clip.context_length:
            raise ValueError(f"A text of {length} tokens exceeds this CLIP's {clip.context_length}. Shorten it.")
        x = clip.token_embedding(ids) + clip.positional_embedding[:length]
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        return x[torch.arange(len(ids), device=ids.device), ids.argmax(-1)] @ clip.text_projection

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """int64 ``[N, L]`` ids with start and end of text, zero-padded to the longest.

        Raises:
            ValueError: this CLIP was built without a tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("This CLIP was built without a tokenizer.")
        return nn.utils.rnn.pad_sequence([torch.tensor(self.tokenizer.encode(t)) for t in texts], batch_first=True).to(
            self.clip.positional_embedding.device
        )

    @torch.no_grad()
    def encode_names(
        self, names: Sequence[str], templates: Sequence[str] = IMAGENET_TEMPLATES, chunk: int = 512
    ) -> Tensor:
        """One unit vector per name: template embeddings normalised, averaged, normalised again.

        Args:
            names: class names; a name that is there twice is encoded once, so both rows are equal bit by bit.
            templates: each with ``{}`` for the name.
            chunk: texts that go through the tower together.

        Returns:
            float32 ``[len(names), D]``.
        """
        unique = list(dict.fromkeys(names))
        ids = self.tokenize([t.format(name) for name in unique for t in templates])
        embeddings = torch.cat([self.encode_text(part).float() for part in ids.split(chunk)])
        units = nn.functional.normalize(embeddings, dim=-1).unflatten(0, (len(unique), len(templates)))
        means = nn.functional.normalize(units.mean(1), dim=-1)
        return means[[unique.index(name) for name in names]]


def normalise(image: Tensor) -> Tensor:
    """Pixels 0 to 255 ``[B, 3, H, W]``, uint8 or float, to float32 with CLIP's mean and standard deviation."""
    mean, std = (per_channel(v, image.device) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (image.float() / 255 - mean) / std


def read_clip(path: Path) -> dict[str, Tensor]:
    """The tensors of an official file in any of its formats."""
    if path.suffix != ".safetensors" and zipped(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                return read_archive(path)
    return read_state(path)


def official_config(state: dict[str, Any], path: Path) -> Config:
    """Sizes of an official state dict; quick GELU as in everything that OpenAI trained.

    ``open_clip_config.json`` beside the file, as Hugging Face pages have it, has the last word.
    """
    beside = path.parent / "open_clip_config.json"
    if beside.is_file():
        return json.loads(beside.read_text())["model_cfg"]
    wanted = ("visual.conv1.weight", "text_projection", "positional_embedding", "token_embedding.weight")
    if missing := [k for k in wanted if not isinstance(state.get(k), Tensor)]:
        raise WeightError(f"{path} is no CLIP: it has {sorted(state)[:3]}, no {missing[0]}. {REMEDY}")
    if "visual.proj" in state:
        width, _, patch, _ = state["visual.conv1.weight"].shape
        grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        vision = CLIPVisionCfg(count(state, "visual.transformer.resblocks."), width, patch_size=patch)
        vision.image_size = patch * grid
    else:
        layers = [count(state, f"visual.layer{i}.") for i in (1, 2, 3, 4)]
        grid = round((len(state["visual.attnpool.positional_embedding"]) - 1) ** 0.5)
        vision = CLIPVisionCfg(layers, len(state["visual.layer1.0.conv1.weight"]), image_size=32 * grid)  # type: ignore
    width = state["text_projection"].shape[0]
    text = CLIPTextCfg(len(state["positional_embedding"]), len(state["token_embedding.weight"]), width=width)
    text.heads, text.layers = width // 64, count(state, "transformer.resblocks.")
    sizes = {"vision_cfg": asdict(vision), "text_cfg": asdict(text)}
    return {"embed_dim": state["text_projection"].shape[1], "quick_gelu": True, **sizes}


def count(state: dict[str, Any], prefix: str) -> int:
    """How many numbered parts there are under ``prefix``."""
    return len({k.removeprefix(prefix).split(".")[0] for k in state if k.startswith(prefix)})


# ---- OpenAI's TorchScript files


def read_archive(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript program by name, read as data: nothing of it can run.

    Of its object graph only tensors and the nesting of modules are built; every other name is refused.

    Raises:
        WeightError: the file is damaged, or holds something else than modules of tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(data) as f:
                root = Reader(f, archive, data.removesuffix(".pkl")).load()
    except WeightError:
        raise
    except Exception as e:
        raise WeightError(f"{path} cannot be read as weights: {e or type(e).__name__}. Download it again.") from e
    return dict(tensors_of(root, ""))


class Module:
    """Stands for any module of the program."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.parts = state


class Reader(pickle.Unpickler):
    """Builds `Module` and tensors, nothing else."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__."):
            return Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise WeightError(
            f"{self.archive.filename} is refused: it asks for {module}.{name}, and weights are tensors only. "
            "Download it again, or use the safetensors file of the same model."
        )

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        return torch.frombuffer(bytearray(self.archive.read(f"{self.folder}/{key}")), dtype=dtype)


STORAGES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}


def rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset).clone()


def tensors_of(module: Any, prefix: str) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    for name, part in getattr(module, "parts", {}).items():
        if isinstance(part, Tensor):
            found.append((prefix + name, part))
        elif isinstance(part, Module):
            found += tensors_of(part, f"{prefix}{name}.")
    return found
