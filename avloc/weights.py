"""Where pretrained weights come from, and what is said when they are not there.

A weight is named by a source string:

=========================  ==================================================================
``hf:OWNER/NAME``          a Hugging Face snapshot in the local cache or in ``$AVLOC_WEIGHTS``
``file:PATH``              a file in its authors' own format
``url-name`` of `KNOWN`    e.g. ``beats``: a file that a user downloads once into ``$AVLOC_WEIGHTS``
``world:NAME``             the embedded world's tiny weights, part of this package
``random``                 no file: the module keeps its initial values
=========================  ==================================================================

Nothing is ever unpickled: safetensors, or ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = [
    "KNOWN",
    "KnownWeight",
    "WeightError",
    "WeightFile",
    "given_by",
    "load_into",
    "locate",
    "names_of",
    "present",
    "read_metadata",
    "read_state",
    "weights_folder",
]

WORLD_ASSETS = Path(__file__).parent / "world" / "assets"


class WeightError(RuntimeError):
    """A weight file is missing, unreadable, or of another model."""


@dataclass(frozen=True)
class KnownWeight:
    """A published weight file.

    Attributes:
        file: its place in the weights' folder.
        homepage: where its authors publish it, in words.
        licence: of the weights.
        note: what it is.
        urls: where it is fetched from, in order of preference; none for the hub's repositories.
        sha256: of the file, or the first digits of it; "" where no publisher tells it: then the first download's is
            recorded and later ones must match.
        megabytes: about how large it is (parameters times four bytes where the publisher tells no size).
    """

    file: str
    homepage: str
    licence: str
    note: str = ""
    urls: tuple[str, ...] = ()
    sha256: str = ""
    megabytes: int = 0

    @property
    def commercial(self) -> bool:
        """Whether the licence lets everybody use it for money."""
        return "NC" not in self.licence


HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
RELEASES = "https://github.com/{}/releases/download/{}"
OPENAI, META = "https://openaipublic.azureedge.net/clip/models", "https://dl.fbaipublicfiles.com"
BEATS = "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2"


def openai(digest: str, file: str) -> dict[str, Any]:
    """OpenAI's addresses hold the file's SHA-256."""
    return {"urls": (f"{OPENAI}/{digest}/{file}",), "sha256": digest}


KNOWN: dict[str, KnownWeight] = {
    "hf:CIDAS/clipseg-rd64-refined": KnownWeight(
        "CIDAS--clipseg-rd64-refined/model.safetensors",
        "the Hugging Face model page CIDAS/clipseg-rd64-refined (model.safetensors or pytorch_model.bin)",
        "Apache-2.0",
        "CLIP ViT-B/16 with the refined 64-dimensional decoder",
        megabytes=603,
    ),
    "beats": KnownWeight(
        f"{BEATS}.pt",
        "the README of microsoft/unilm, folder beats, 'Fine-tuned BEATs_iter3+ (AS2M) (cpt2)'",
        "MIT",
        "AudioSet-fine-tuned; the classifier is not used. Its authors' links have answered 403 since 2024; the "
        "addresses are other people's copies, whose digest nobody publishes",
        urls=(
            f"{HUB}/camenduru/beats/resolve/main/{BEATS}.pt",
            f"{HUB}/THUdyh/Ola_speech_encoders/resolve/main/{BEATS}.pt",
            f"{HUB}/WeiChihChen/{BEATS}/resolve/main/{BEATS}.pt",
        ),
        megabytes=361,
    ),
    "vggish": KnownWeight(
        "vggish-10086976.pth",
        "the v0.1 release of harritaylor/torchvggish",
        "Apache-2.0",
        "AudioSet VGGish, ported from TensorFlow; raw 128-dimensional embeddings",
        urls=(RELEASES.format("harritaylor/torchvggish", "v0.1") + "/vggish-10086976.pth",),
        sha256="10086976",
        megabytes=288,
    ),
    "vggish_pca": KnownWeight(
        "vggish_pca_params-970ea276.pth",
        "the v0.1 release of harritaylor/torchvggish",
        "Apache-2.0",
        "only for post-processed embeddings, which AVSBench and GAVS do not use",
        urls=(RELEASES.format("harritaylor/torchvggish", "v0.1") + "/vggish_pca_params-970ea276.pth",),
        sha256="970ea276",
        megabytes=1,
    ),
    "sam_vit_b": KnownWeight(
        "sam_vit_b_01ec64.pth",
        "the README of facebookresearch/segment-anything, ViT-B",
        "Apache-2.0",
        "1024 px",
        urls=(f"{META}/segment_anything/sam_vit_b_01ec64.pth",),
        sha256="01ec64",
        megabytes=375,
    ),
    "sam_vit_l": KnownWeight(
        "sam_vit_l_0b3195.pth",
        "the README of facebookresearch/segment-anything, ViT-L",
        "Apache-2.0",
        "1024 px",
        urls=(f"{META}/segment_anything/sam_vit_l_0b3195.pth",),
        sha256="0b3195",
        megabytes=1250,
    ),
    "sam_vit_h": KnownWeight(
        "sam_vit_h_4b8939.pth",
        "the README of facebookresearch/segment-anything, ViT-H",
        "Apache-2.0",
        "1024 px",
        urls=(f"{META}/segment_anything/sam_vit_h_4b8939.pth",),
        sha256="4b8939",
        megabytes=2565,
    ),
    "clip_rn50": KnownWeight(
        "RN50.pt",
        "the README of openai/CLIP (list of models in clip/clip.py), RN50",
        "MIT",
        "1024 wide; open_clip_model.safetensors of timm/resnet50_clip.openai is the same model, as file:PATH",
        **openai("afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", "RN50.pt"),
        megabytes=256,
    ),
    "clip_vit_b16": KnownWeight(
        "ViT-B-16.pt",
        "the README of openai/CLIP (list of models in clip/clip.py), ViT-B/16",
        "MIT",
        "512 wide; open_clip_model.safetensors of timm/vit_base_patch16_clip_224.openai is the same model",
        **openai("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"),
        megabytes=351,
    ),
    "clip_vit_b32": KnownWeight(
        "ViT-B-32.pt",
        "the README of openai/CLIP (list of models in clip/clip.py), ViT-B/32",
        "MIT",
        "512 wide; the space that Wav2CLIP hears into",
        **openai("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"),
        megabytes=354,
    ),
    "audioclip_full": KnownWeight(
        "AudioCLIP-Full-Training.pt",
        "the v0.1 release of AndreyGuzhov/AudioCLIP",
        "MIT",
        "all three towers trained on AudioSet",
        urls=(RELEASES.format("AndreyGuzhov/AudioCLIP", "v0.1") + "/AudioCLIP-Full-Training.pt",),
        megabytes=537,
    ),
    "audioclip_partial": KnownWeight(
        "AudioCLIP-Partial-Training.pt",
        "the v0.1 release of AndreyGuzhov/AudioCLIP",
        "MIT",
        "the audio tower trained on AudioSet, the others are CLIP's RN50",
        urls=(RELEASES.format("AndreyGuzhov/AudioCLIP", "v0.1") + "/AudioCLIP-Partial-Training.pt",),
        megabytes=537,
    ),
    "wav2clip": KnownWeight(
        "Wav2CLIP.pt",
        "the v0.1.0-alpha release of descriptinc/lyrebird-wav2clip",
        "MIT",
        "ResNet-18 that hears into the space of CLIP's ViT-B/32",
        urls=(RELEASES.format("descriptinc/lyrebird-wav2clip", "v0.1.0-alpha") + "/Wav2CLIP.pt",),
        megabytes=47,
    ),
    "hf:google/owlv2-base-patch16-ensemble": KnownWeight(
        "google--owlv2-base-patch16-ensemble/model.safetensors",
        "the Hugging Face model page google/owlv2-base-patch16-ensemble (the whole snapshot)",
        "Apache-2.0",
        "boxes by objectness, without text",
        megabytes=620,
    ),
    "hf:IDEA-Research/grounding-dino-tiny": KnownWeight(
        "IDEA-Research--grounding-dino-tiny/model.safetensors",
        "the Hugging Face model page IDEA-Research/grounding-dino-tiny (the whole snapshot)",
        "Apache-2.0",
        "boxes of one phrase",
        megabytes=690,
    ),
    "resnet18": KnownWeight(
        "resnet18-f37072fd.pth",
        "torchvision's model page, ResNet-18 IMAGENET1K_V1",
        "BSD-3-Clause",
        "objects of the picture, for object-guided rows; timm/resnet18.tv_in1k is the same model",
        urls=("https://download.pytorch.org/models/resnet18-f37072fd.pth",),
        sha256="f37072fd",
        megabytes=47,
    ),
    "dino_vits8": KnownWeight(
        "dino_deitsmall8_pretrain.pth",
        "the README of facebookresearch/dino, ViT-S/8, backbone only",
        "Apache-2.0",
        "DenseAV's picture tower",
        urls=("https://dl.fbaipublicfiles.com/dino/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth",),
        megabytes=87,
    ),
    "hf:facebook/hubert-large-ls960-ft": KnownWeight(
        "facebook--hubert-large-ls960-ft/pytorch_model.bin",
        "the Hugging Face model page facebook/hubert-large-ls960-ft",
        "Apache-2.0",
        "DenseAV's sound tower; the recogniser's head is not used",
        megabytes=1262,
    ),
    "hf:mhamilton723/DenseAV-sound": KnownWeight(
        "mhamilton723--DenseAV-sound/model.safetensors",
        "the Hugging Face model page mhamilton723/DenseAV-sound",
        "MIT",
        "DenseAV of one head, trained on sounds",
        megabytes=1366,
    ),
    "hf:mhamilton723/DenseAV-language": KnownWeight(
        "mhamilton723--DenseAV-language/model.safetensors",
        "the Hugging Face model page mhamilton723/DenseAV-language",
        "MIT",
        "DenseAV of one head, trained on speech",
        megabytes=1366,
    ),
    "hf:mhamilton723/DenseAV-sound-language": KnownWeight(
        "mhamilton723--DenseAV-sound-language/model.safetensors",
        "the Hugging Face model page mhamilton723/DenseAV-sound-language",
        "MIT",
        "DenseAV of two heads: 0 answers to language, 1 to sound",
        megabytes=1366,
    ),
    "resnet50": KnownWeight(
        "resnet50-19c8e357.pth",
        "torchvision's model page, ResNet-50 IMAGENET1K_V1",
        "BSD-3-Clause",
        "TPAVI's encoder",
        urls=("https://download.pytorch.org/models/resnet50-19c8e357.pth",),
        sha256="19c8e357",
        megabytes=103,
    ),
    "pvt_v2_b5": KnownWeight(
        "pvt_v2_b5.pth",
        "the releases of whai362/PVT, version 2",
        "Apache-2.0",
        "TPAVI's encoder",
        urls=(RELEASES.format("whai362/PVT", "v2") + "/pvt_v2_b5.pth",),
        megabytes=329,
    ),
    "hf:laion/clap-htsat-unfused": KnownWeight(
        "laion--clap-htsat-unfused/pytorch_model.bin",
        "the Hugging Face model page laion/clap-htsat-unfused (the whole snapshot: config.json, "
        "preprocessor_config.json and tokenizer.json too)",
        "Apache-2.0",
        "hears and reads, for the open-vocabulary baselines",
        megabytes=615,
    ),
    "imagebind": KnownWeight(
        "imagebind_huge.pth",
        "the README of facebookresearch/ImageBind, imagebind_huge",
        "CC-BY-NC 4.0",
        "not for commercial use; its vision, audio and text towers are used",
        urls=(f"{META}/imagebind/imagebind_huge.pth",),
        megabytes=4800,
    ),
}


@dataclass(frozen=True)
class WeightFile:
    """A weight file on this machine.

    Attributes:
        source: the source string it was asked for by.
        path: where it lies; None for ``random``.
        sha256: of the file's bytes; "" for ``random``.
    """

    source: str
    path: Path | None
    sha256: str


def weights_folder() -> Path:
    """``$AVLOC_WEIGHTS``, else ``~/.cache/avloc/weights``."""
    return Path(os.environ.get("AVLOC_WEIGHTS", "~/.cache/avloc/weights")).expanduser()


def locate(source: str) -> WeightFile:
    """The file behind a source string.

    Raises:
        WeightError: the source is malformed or its file is not on this machine; the message says which
            file, where to get it and where to put it.
    """
    if source == "random":
        return WeightFile(source, None, "")
    if (path := present(source)) is not None:
        return WeightFile(source, path, sha256(path))
    known = KNOWN.get(source)
    where = "\n  ".join(str(p) for p in candidates(source))
    origin = f"Get it from {known.homepage} (licence {known.licence}) and put it at" if known else "Put it at"
    raise WeightError(
        f"Weights {source!r} are not on this machine. {origin} one of:\n  {where}\n"
        f"(AVLOC_WEIGHTS names another folder than {weights_folder()}; "
        "`avloc weights --experiment NAME` lists what is needed and fetches it with --get)"
    )


def present(source: str) -> Path | None:
    """Where the file behind ``source`` lies on this machine, without reading it; None where it is not there.

    Raises:
        WeightError: the source is malformed.
    """
    return next((path for path in candidates(source) if path.is_file()), None)


def candidates(source: str) -> list[Path]:
    """The places where the file behind ``source`` is looked for, in order."""
    scheme, _, name = source.partition(":")
    if scheme == "file" and name:
        return [Path(name).expanduser()]
    if scheme == "world" and name:
        return [WORLD_ASSETS / f"{name}.safetensors"]
    if scheme == "hf" and name.count("/") == 1:
        folder = weights_folder() / name.replace("/", "--")
        return [folder / f for f in ("model.safetensors", "pytorch_model.bin")] + hub_cache(name)
    if source in KNOWN:
        return [weights_folder() / KNOWN[source].file]
    raise WeightError(
        f"{source!r} is no weight source. Use hf:OWNER/NAME, file:PATH, world:NAME, random, or one of "
        f"{', '.join(sorted(k for k in KNOWN if ':' not in k))}."
    )


def hub_cache(name: str) -> list[Path]:
    """Snapshots that ``huggingface-cli download`` left behind; never downloads."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(name, f) for f in ("model.safetensors", "pytorch_model.bin")]
    return [Path(p) for p in found if isinstance(p, str)]


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


# Best scores beside the tensors are often numpy's; what rebuilds one makes a number of bytes, and calls nothing.
NUMPY_SCALARS: list[Any] = [
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    codecs.encode,
]


def read_state(path: Path) -> dict:
    """The content of a weight file: a state dict, or whatever dict its authors wrapped around it.

    Raises:
        WeightError: the file cannot be read without unpickling code, or is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped(path))
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as e:
        raise WeightError(f"{path} cannot be read as weights: {str(e) or type(e).__name__}. Download it again.") from e
    except Exception as e:  # pickle.UnpicklingError and relatives, whose own text advises to load unsafely
        raise WeightError(
            f"{path} is refused ({type(e).__name__}): it is damaged, or loading it would run code. "
            "Download it again, or save its tensors alone: safetensors, or torch.save(model.state_dict())."
        ) from e
    if not isinstance(content, dict):
        raise WeightError(f"{path} holds a {type(content).__name__}, not named tensors. It is no weight file.")
    return content


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says about itself; empty for any other file.

    Raises:
        WeightError: the file is damaged.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as f:
            return f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise WeightError(f"{path} cannot be read as weights: {e}. Download it again.") from e


def zipped(path: Path) -> bool:
    """Whether torch can map the file instead of reading it (its zip format, since torch 1.6)."""
    with path.open("rb") as f:
        return f.read(2) == b"PK"


def load_into(module: nn.Module, state: dict[str, Tensor], what: str, ignore: tuple[str, ...] = ()) -> None:
    """Load every tensor of ``module`` from ``state``; nothing missing, nothing left over.

    Args:
        module: receives the values; half-precision files are widened to the module's dtype.
        state: key to tensor, under the module's own key names.
        what: name of the file, for the message.
        ignore: key suffixes that official files carry and the module does not want.

    Raises:
        WeightError: another model's file; names up to three keys of each kind. Or some of its values are NaN.
    """
    own = module.state_dict()
    state = {k: v for k, v in state.items() if not k.endswith(ignore)} if ignore else state
    missing = sorted(own.keys() - state.keys())
    extra = sorted(state.keys() - own.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in sorted(own.keys() & state.keys())
        if own[k].shape != state[k].shape
    ]
    parts = [
        f"{len(names)} {kind} ({names_of(names)})"
        for kind, names in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
        if names
    ]
    if parts:
        raise WeightError(
            f"{what} does not fit {type(module).__name__}: {'; '.join(parts)}. It is a file of another model or size."
        )
    if strange := [k for k, v in state.items() if v.is_floating_point() and bool(v.isnan().any())]:
        raise WeightError(f"{what} is damaged: {names_of(strange)} hold NaN. Download it again.")
    module.load_state_dict(state)
    module.of_file = OfFile(what, {k: fingerprint(v) for k, v in module.state_dict().items()})  # type: ignore[assignment]


class OfFile(NamedTuple):
    """What `load_into` notes on a module: the file, and the fingerprint of each tensor that it gave."""

    file: str
    prints: dict[str, int]


def fingerprint(x: Tensor) -> int:
    """A checksum of a tensor's values, whatever its device and order in memory."""
    values = x.detach().cpu().contiguous().reshape(-1)
    raw: Any = values.view(torch.uint8).numpy()
    return zlib.crc32(raw) if values.numel() else 0


def given_by(module: nn.Module, state: Mapping[str, Tensor], files: Collection[Path]) -> set[str]:
    """Keys of tensors that still are what one of ``files`` gave, of which no gradient is wanted.

    Args:
        module: whose parts `load_into` loaded.
        state: its state dict.
        files: whose tensors can be had again.
    """
    wanted = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    names, given = {str(file) for file in files}, set()
    for prefix, part in module.named_modules(remove_duplicate=False):
        note = part.__dict__.get("of_file")
        if note is None or note.file not in names:
            continue
        for key, was in note.prints.items():
            name = f"{prefix}.{key}" if prefix else key
            if name in state and name not in wanted and fingerprint(state[name]) == was:
                given.add(name)
    return given


def names_of(names: Sequence[object]) -> str:
    """The first three of them, and that there are more."""
    return ", ".join(str(name)[:200] for name in names[:3]) + (", ..." if len(names) > 3 else "")


def is_source(text: str) -> bool:
    """Whether ``text`` names a weight file."""
    return text in KNOWN or text.partition(":")[0] in ("hf", "file", "world")
