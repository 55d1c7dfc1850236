"""Maps that some other program made, scored and shown like a method's own."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from avloc.bounds import refuse_more
from avloc.data.media import load_picture
from avloc.errors import UsageError
from avloc.methods.base import Localizer
from avloc.metrics.maps import minmax, resize
from avloc.types import AVBatch, InputSpec, Localization

__all__ = ["MapsError", "StoredMaps"]

log = logging.getLogger(__name__)
KINDS = (".npz", ".npy", ".png")
ROUNDING = 1e-3  # float16 and bicubic maps leave 0..1 by less


class MapsError(UsageError):
    """A folder lacks maps, has some twice, or holds what is none; the message names the file and the remedy."""


@dataclass(frozen=True)
class StoredMap:
    """What a file holds: heat maps float32 ``[S, H, W]`` and confidences ``[S]``, None where the file has none."""

    heatmap: NDArray[np.float32]
    confidence: NDArray[np.float32] | None


class StoredMaps(Localizer):
    """Answers with the maps of a folder, by the samples' keys.

    A file is named after its sample's key and may lie in folders below:

    - ``KEY.npz`` as `avloc predict` writes it: ``heatmap`` ``[S, H, W]`` (or ``[H, W]``), ``confidence`` ``[S]`` (may
      be left out),
    - ``KEY.npy``: the heat map alone,
    - ``KEY.png``: one grey map of 8 or 16 bits, whose white is 1.

    Without a confidence it is the map's largest value. Integers are divided by their type's largest value.

    Args:
        folder: of the maps of one test set, e.g. ``runs/NAME/version_0/predictions/vggss``.
        scaling: ``none``: maps lie in [0, 1]. ``minmax``: each map is brought there, for scores of any range.
        heatmap_size: side that maps are brought to, bilinearly; None leaves them as they are, and all must be alike.
        resize: how the pictures lie under the maps, see `InputSpec.resize`: the ground truth follows.
        duet: as `InputSpec.duet`.

    Raises:
        MapsError: there is no such folder, it holds no map, or a key has two files; and when a sample is asked for, its
            map is missing, damaged, not finite, out of range, or of another size or number of sources than the others.
    """

    def __init__(
        self,
        folder: str,
        scaling: Literal["none", "minmax"] = "none",
        heatmap_size: int | None = None,
        resize: Literal["squash", "crop"] = "squash",
        duet: Literal["squash", "wide"] = "squash",
    ) -> None:
        super().__init__()
        self.input_spec = InputSpec(image_size=224, resize=resize, seconds=1.0, duet=duet)
        self.folder, self.scaling, self.heatmap_size = Path(folder).expanduser(), scaling, heatmap_size
        self.files = files_by_key(self.folder)
        self.asked: set[str] = set()
        self.shape: tuple[int, int] | None = None

    def localize(self, batch: AVBatch) -> Localization:
        """The stored maps ``[B, S, H, W]`` and their confidences."""
        if missing := [key for key in batch.key if key not in self.files]:
            raise MapsError(
                f"{self.folder} has no map for {listed(missing)}. A map is called KEY.npz, KEY.npy or KEY.png after "
                f"its sample; the folder has {listed(sorted(self.files))}. Name the folder of this test set, or make "
                "the maps that are missing."
            )
        self.asked |= set(batch.key)
        maps = [self.read(key) for key in batch.key]
        if len({len(m.heatmap) for m in maps}) > 1:
            counts = listed([f"{key} {len(m.heatmap)}" for key, m in zip(batch.key, maps, strict=True)])
            raise MapsError(
                f"{self.folder}: the samples of one batch have different numbers of maps ({counts}). Fill up with maps "
                "of zeros, or test with --data.eval_batch_size 1."
            )
        heatmap = torch.from_numpy(np.stack([m.heatmap for m in maps])).to(batch.device)
        if self.scaling == "minmax":
            heatmap = minmax(heatmap)
        if self.heatmap_size is not None:
            heatmap = resize(heatmap, (self.heatmap_size, self.heatmap_size))
        return Localization(heatmap.clamp(0, 1), self.confidences(maps, heatmap))

    def confidences(self, maps: list[StoredMap], heatmap: Tensor) -> Tensor:
        rows = [
            peak if m.confidence is None else torch.from_numpy(m.confidence).to(peak)
            for m, peak in zip(maps, heatmap.amax((-2, -1)), strict=True)
        ]
        return torch.stack(rows)

    def read(self, key: str) -> StoredMap:
        """The map of a key, checked."""
        path = self.files[key]
        found = read_map(path)
        values = found.heatmap if found.confidence is None else np.append(found.heatmap.ravel(), found.confidence)
        if strange := int((~np.isfinite(values)).sum()):
            raise MapsError(f"{path}: {strange} values are not finite. Write it again, with 0 where nothing is known.")
        low, high = float(found.heatmap.min()), float(found.heatmap.max())
        if self.scaling == "none" and not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise MapsError(
                f"{path}: its values reach from {low:.4g} to {high:.4g}, but heat maps lie in 0 to 1. Scale them, or "
                "set scaling to minmax."
            )
        height, width = found.heatmap.shape[1:]
        self.shape = self.shape or (height, width)
        if self.heatmap_size is None and (height, width) != self.shape:
            raise MapsError(
                f"{path}: a map of {height} x {width} among maps of {self.shape[0]} x {self.shape[1]}. Make them "
                "alike, or set heatmap_size, to which all are brought."
            )
        return found

    def on_test_epoch_end(self) -> None:
        self.tell_extra()

    def on_predict_epoch_end(self) -> None:
        self.tell_extra()

    def tell_extra(self) -> None:
        """Say which maps nobody asked for: a folder of another set or split gives itself away so."""
        asked = self.asked
        if dist.is_available() and dist.is_initialized():
            every: list[set[str]] = [set()] * dist.get_world_size()
            dist.all_gather_object(every, asked)
            asked = set().union(*every)
        if (extra := sorted(self.files.keys() - asked)) and self.trainer.is_global_zero:
            log.warning(
                "%s holds %d maps that no tested sample asked for (%s). Is it the folder of this set?",
                self.folder,
                len(extra),
                listed(extra),
            )


def files_by_key(folder: Path) -> dict[str, Path]:
    """The maps below a folder by the keys of their samples.

    Raises:
        MapsError: there is no folder, no map in it, or a key has two.
    """
    if not folder.is_dir():
        raise MapsError(f"There is no folder {folder}. Name one that holds KEY.npz, KEY.npy or KEY.png of each sample.")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix in KINDS and path.is_file():
            found[path.name.removesuffix(path.suffix)].append(path)
    if not found:
        raise MapsError(f"{folder} holds no map: no .npz, .npy or .png, in folders below neither.")
    if doubled := {key: paths for key, paths in found.items() if len(paths) > 1}:
        key, paths = next(iter(doubled.items()))
        raise MapsError(
            f"{folder} has two maps or more for {listed(sorted(doubled))}: {key} is "
            f"{' and '.join(str(p.relative_to(folder)) for p in paths)}. Keep one, or name one test set's own folder."
        )
    return {key: paths[0] for key, paths in found.items()}


def read_map(path: Path) -> StoredMap:
    """The content of a file.

    Raises:
        MapsError: it is damaged, or holds no map.
    """
    try:
        refuse_more(unpacked(path) // 2, "MAP_VALUES", f"it unpacks to {unpacked(path):,} bytes")
        if path.suffix == ".png":
            heatmap, confidence = np.asarray(load_picture(path.read_bytes())), None
        elif path.suffix == ".npy":
            heatmap, confidence = np.load(path, allow_pickle=False), None
            if not isinstance(heatmap, np.ndarray):
                raise ValueError("it is an archive, as an npz is")
        else:
            with np.load(path, allow_pickle=False) as content:
                heatmap = content["heatmap"]
                confidence = content.get("confidence")
            if not all(isinstance(a, np.ndarray | None) for a in (heatmap, confidence)):
                raise ValueError("an entry is no array")  # NumPy gives the bytes of what has not an array's begin
    except KeyError as e:
        raise MapsError(f"{path} has no entry 'heatmap'. Save it with numpy.savez(path, heatmap=...).") from e
    except (OSError, ValueError, EOFError, SyntaxError, TokenError, BadZipFile) as e:
        raise MapsError(f"{path} cannot be read as a map ({e}). Write it again.") from e
    if heatmap.ndim == 2:
        heatmap = heatmap[None]
    if heatmap.ndim != 3 or 0 in heatmap.shape or (path.suffix == ".png" and len(heatmap) != 1):
        raise MapsError(
            f"{path} holds an array of shape {list(heatmap.shape)}, not one map [H, W] or several [S, H, W]. A picture "
            "must be grey."
        )
    if confidence is not None and confidence.shape != heatmap.shape[:1]:
        raise MapsError(
            f"{path}: {len(heatmap)} maps, but confidences of shape {list(confidence.shape)}. Give one to each map."
        )
    return StoredMap(fractions(heatmap, path), None if confidence is None else confidence.astype(np.float32))


def unpacked(path: Path) -> int:
    """Bytes that a map takes when it is read, as the file says."""
    if path.suffix != ".npz":
        return path.stat().st_size
    with ZipFile(path) as entries:
        return sum(entry.file_size for entry in entries.infolist())


def fractions(values: NDArray[Any], path: Path) -> NDArray[np.float32]:
    """Floats as they are; integers over their type's largest value."""
    if values.dtype == np.bool_ or np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float32)
    if np.issubdtype(values.dtype, np.integer):
        largest = 65535 if path.suffix == ".png" and values.dtype == np.int32 else np.iinfo(values.dtype).max
        return (values / largest).astype(np.float32)
    raise MapsError(f"{path} holds values of type {values.dtype}, not numbers. Save the map as floats.")


def listed(names: Iterable[str]) -> str:
    """The first three names, and how many more."""
    every = list(names)
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return ", ".join(every[:3]) + more
