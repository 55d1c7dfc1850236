"""Stored features: what a frozen network makes of every picture of a set, computed once and read ever after.

Beside the shards of a set lies one folder for each kind of features and each identity of what made them::

    <set folder>/stored/<dataset>-<split>-<name>-<first 16 digits of the cache key>/
        store.json              {"format": 1, "key": the whole cache key, "made_by": {what: ...}}
        000003.<array>.npy      rows of the units of shard 3, one file per array
        000003.json             {"source": SHA-256 of shard 3, "keys": units, row by row, "skipped": broken units,
                                 "arrays": {name: {"dtype", "shape" of a row, "bytes" of the file}}}; rows of varying
                                 length have the shape null and "lengths", and lie end to end in their file

A part, all files of one shard, is there when its JSON is, which comes last. A unit is a scored frame, named as in
`AVBatch.key` without its condition: the sound has no part in what is stored here. Floats are stored as float16; bit
masks as packed uint8 (`numpy.packbits`); a varying number of things as rows of a fixed length and a count, or as one
row of varying length.
"""

from __future__ import annotations

import errno
import glob
import io
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import Annotated, Any, BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from avloc.checked import Fields, read_checked
from avloc.data.index import Index, remote
from avloc.data.items import evened
from avloc.data.schema import SampleError
from avloc.data.shards import write_json
from avloc.files import part_of, sweep
from avloc.types import AVBatch, InputSpec

__all__ = [
    "FeatureStore",
    "PartWriter",
    "Storable",
    "StoreError",
    "StoreWriter",
    "made_by",
    "open_features",
    "store_name",
    "stored_folder",
]

FORMAT = 1
DIGITS = 16  # of the cache key, in the folder's name
MOST_OPEN = 64  # mapped files of a process: each holds a file descriptor
NAME = re.compile(r"[a-z0-9_]+")
COMMAND = "avloc store -c EXPERIMENT"

Features = Mapping[str, Tensor | Sequence[Tensor]]  # by name: rows [B, ...], or B rows [n] of varying length


class StoreError(RuntimeError):
    """Stored features are absent, stale, incomplete or damaged, or cannot be written."""


class AboutStore(Fields):
    """``store.json``."""

    format: int
    key: str
    made_by: dict[str, str]


class AboutArray(Fields):
    """An array of a part: the type and shape of a row, the bytes of its file, and the lengths of uneven rows."""

    dtype: Annotated[str, Field(pattern=r"^(float16|u?int(8|16|32|64))$")]
    shape: list[Annotated[int, Field(ge=0, le=2**48)]] | None
    bytes: int
    lengths: list[Annotated[int, Field(ge=0, le=2**48)]] | None = None


class AboutPart(Fields):
    """``<part>.json``."""

    source: str
    keys: list[str]
    skipped: list[str]
    arrays: dict[str, AboutArray]


class Storable(Protocol):
    """What can fill a store.

    Attributes:
        input_spec: how pictures are prepared; crop, flip and sound play no part.
    """

    input_spec: InputSpec

    def frozen(self, batch: AVBatch) -> Tensor | Features:
        """Features ``[B, ...]`` of the pictures by name, each row of its own picture alone; of varying length as a
        list of B rows ``[n]``. A bare tensor is called ``frozen``."""
        ...

    def cache_key(self) -> str:
        """Hexadecimal SHA-256 of all that `frozen` depends on beside the pictures: weights and preprocessing."""
        ...


def stored_folder(index: Path | str, name: str) -> Path:
    """Where the stores of a set are, without the cache key.

    Args:
        index: the set's index JSON, a local file.
        name: of the features: lower-case letters, digits and _.

    Raises:
        StoreError: a remote set, or a bad name.
    """
    if remote(str(index)):
        raise StoreError(f"{index}: features are stored beside local shards. Download the set first.")
    if not NAME.fullmatch(name):
        raise StoreError(f"Stored features cannot be called {name!r}: use lower-case letters, digits and _ only.")
    return Path(index).parent / "stored" / f"{Path(index).stem}-{name}"


def made_by(method: Storable) -> dict[str, str]:
    """What a person can compare of two methods whose cache keys differ. A method adds to it by ``recipe``, a dict."""
    spec = method.input_spec
    told = {"method": f"{type(method).__module__}.{type(method).__qualname__}"}
    for name, file in getattr(method, "frozen_files", {}).items():
        told[f"{name} weights"] = f"{file.source} (sha256 {file.sha256[:12] or 'none'})"
    told |= {f: str(getattr(spec, f)) for f in ("image_size", "resize", "interpolation", "frames", "duet")}
    return told | getattr(method, "recipe", {})


def store_name(method: Storable) -> str:
    return type(method).__name__.lower()


class FeatureStore:
    """Rows by unit, mapped from disk. It can be sent to loader workers; files stay in their process.

    Args:
        folder: of the store, with the digits of the cache key.
        sources: SHA-256 of each shard of the set, in order; None to trust what is there.

    Attributes:
        key: the whole cache key.
        made_by: what made it.
        arrays: dtype and row shape of each array; the shape is None for rows ``[n]`` of varying length.

    Raises:
        StoreError: a part is missing, of another version of its shard, cut off or of another shape; or a unit is
            there twice.
    """

    def __init__(self, folder: Path, sources: Sequence[str] | None = None) -> None:
        self.folder = folder
        about = read_json(folder / "store.json", AboutStore)
        if about.get("format") != FORMAT:
            raise StoreError(f"{folder}: format {about.get('format')!r} is unknown, avloc reads {FORMAT}. {renew()}")
        self.key, self.made_by = str(about["key"]), dict(about["made_by"])
        self.arrays: dict[str, tuple[str, tuple[int, ...] | None]] = {}
        self.places: dict[str, tuple[int, int]] = {}  # unit -> part, row
        self.rows: dict[int, int] = {}  # of each part
        self.starts: dict[tuple[int, str], NDArray[np.int64]] = {}  # where rows of varying length begin, and the end
        self.skipped: set[str] = set()
        self._open: OrderedDict[tuple[int, str], NDArray[Any]] = OrderedDict()
        there = sorted(int(p.stem) for p in folder.glob("[0-9]*.json"))
        wanted = there if sources is None else list(range(len(sources)))
        missing = sorted(set(wanted) - set(there))
        if missing:
            raise StoreError(
                f"{folder} is incomplete: {len(missing)} of {len(wanted)} parts are missing (the first is "
                f"{part_file(missing[0], 'json')}); its writing was interrupted. {renew(goes_on=True)}"
            )
        for number in wanted:
            self._add_part(number, None if sources is None else sources[number])

    @staticmethod
    def write(folder: Path | str, key: str, made_by: Mapping[str, str]) -> StoreWriter:
        """Begin a store, or go on with it.

        Args:
            folder: from `stored_folder`.
            key: the whole cache key, hexadecimal.
            made_by: what made it, for people.
        """
        return StoreWriter(Path(folder), key, made_by)

    @classmethod
    def open(
        cls,
        folder: Path | str,
        key: str,
        made_by: Mapping[str, str] | None = None,
        sources: Sequence[str] | None = None,
    ) -> FeatureStore:
        """The store of that cache key.

        Args:
            folder: from `stored_folder`.
            key: the whole cache key.
            made_by: of what wants to read it: lets the message about a stale store say what differs.
            sources: see `FeatureStore`.

        Raises:
            StoreError: absent; stale, which is: there are only such of other keys; or what `FeatureStore` raises.
        """
        path = keyed(Path(folder), key)
        if (path / "store.json").is_file():
            store = cls(path, sources)
            if store.key == key:
                return store
            raise StoreError(stale(store.made_by, made_by, path, store.key, key))
        for other in others(Path(folder)):
            about = read_json(other / "store.json", AboutStore)
            raise StoreError(stale(about.get("made_by", {}), made_by, other, str(about.get("key")), key))
        raise StoreError(f"There are no stored features at {path}. {renew()}")

    def __len__(self) -> int:
        return len(self.places)

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Rows ``[B, ...]`` of units, which may be named with their conditions; of varying length with zeros up to the
        longest.

        Raises:
            StoreError: a unit is not there.
            SampleError: a unit's picture was broken when features were stored.
        """
        rows = [self.row(key) for key in keys]
        return {name: torch.from_numpy(np.stack(evened([row[name] for row in rows]))) for name in self.arrays}

    def row(self, key: str) -> dict[str, NDArray[Any]]:
        """One unit's rows, mapped from disk. Raises as `read`."""
        unit = key.partition("@")[0]
        if unit in self.skipped:
            raise SampleError(f"{unit} has no stored features, because its picture was broken when they were stored.")
        if unit not in self.places:
            raise StoreError(
                f"{self.folder} holds no features of {unit}. The set was written again since, or other frames of it "
                f"are annotated now. {renew()}"
            )
        part, row = self.places[unit]
        rows = {}
        for name, (_, shape) in self.arrays.items():
            mapped = self._mapped(part, name)
            if shape is None:
                starts = self.starts[part, name]
                rows[name] = mapped[starts[row] : starts[row + 1]]
            else:
                rows[name] = mapped[row, ...]
            if rows[name].dtype == np.float16 and not np.isfinite(rows[name]).all():
                raise StoreError(
                    f"{self.folder / part_file(part, f'{name}.npy')} is damaged: what it holds of {unit} is not "
                    f"finite. Delete it and {part_file(part, 'json')}. {renew(goes_on=True)}"
                )
        return rows

    def blank(self) -> dict[str, NDArray[Any]]:
        """Zeros in the shape of a row."""
        return {name: np.zeros(0 if shape is None else shape, dtype) for name, (dtype, shape) in self.arrays.items()}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def _add_part(self, number: int, source: str | None) -> None:
        note = self.folder / part_file(number, "json")
        about = read_json(note, AboutPart)
        if source is not None and about["source"] != source:
            raise StoreError(f"{note} belongs to an earlier version of its shard, which is another one now. {renew()}")
        self.skipped.update(about["skipped"])
        for row, key in enumerate(about["keys"]):
            if key in self.places:
                raise StoreError(f"{note}: features of {key} are there twice. Delete {self.folder}. {renew()}")
            self.places[key] = number, row
        if not about["keys"]:
            return
        arrays = {
            name: (str(a["dtype"]), None if a["shape"] is None else tuple(a["shape"]))
            for name, a in about["arrays"].items()
        }
        self.arrays = self.arrays or arrays
        if arrays != self.arrays:
            raise StoreError(f"{note} holds {arrays}, other parts {self.arrays}. Delete {self.folder}. {renew()}")
        for name, a in about["arrays"].items():
            if not NAME.fullmatch(name) or (a["shape"] is None and len(a.get("lengths") or ()) != len(about["keys"])):
                raise StoreError(f"{note} is damaged (array {name[:40]!r}). Delete it. {renew(goes_on=True)}")
            if a["shape"] is None:
                self.starts[number, name] = np.cumsum([0, *a["lengths"]], dtype=np.int64)
            self.rows[number] = len(about["keys"])
            file = self.folder / part_file(number, f"{name}.npy")
            size = file.stat().st_size if file.is_file() else 0
            if size != a["bytes"]:
                raise StoreError(f"{file} has {size} bytes of {a['bytes']}. Delete {note}. {renew(goes_on=True)}")

    def _mapped(self, part: int, name: str) -> NDArray[Any]:
        place = part, name
        if place not in self._open:
            file = self.folder / part_file(part, f"{name}.npy")
            dtype, shape = self.arrays[name]
            wanted = (self.starts[place][-1],) if shape is None else (self.rows[part], *shape)
            try:
                # Copy on write: pages come from the disk's cache, and torch accepts the rows as they are.
                mapped = np.load(file, mmap_mode="c", allow_pickle=False)
                if mapped.dtype != dtype or mapped.shape != wanted:
                    raise ValueError(f"{mapped.dtype} {list(mapped.shape)} where {dtype} {list(wanted)} belong")
            except (OSError, ValueError, SyntaxError, EOFError, OverflowError, TokenError) as e:
                note = file.with_name(part_file(part, "json"))
                raise StoreError(f"{file} is damaged ({e}). Delete it and {note}. {renew(goes_on=True)}") from e
            self._open[place] = mapped
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(place)
        return self._open[place]


class StoreWriter:
    """Fills a store part by part; what is finished is kept.

    Attributes:
        folder: of the store, with the digits of the cache key.

    Raises:
        StoreError: the folder belongs to a key that only begins alike.
    """

    def __init__(self, folder: Path, key: str, made_by: Mapping[str, str]) -> None:
        self.folder = keyed(folder, key)
        about = {"format": FORMAT, "key": key, "made_by": dict(made_by)}
        path = self.folder / "store.json"
        if path.is_file():
            known = read_json(path, AboutStore)["key"]
            if known != key:
                raise StoreError(f"{self.folder} belongs to {known}, not to {key}. Delete or rename it first.")
            return
        try:
            write_json(path, about)
        except OSError as e:
            raise no_space(self.folder, e) from e

    def finished(self, part: int, source: str = "") -> bool:
        """Whether a part is complete and of this version of its shard."""
        note = self.folder / part_file(part, "json")
        return note.is_file() and bool(read_json(note, AboutPart)["source"] == source)

    def part(self, number: int, source: str = "") -> PartWriter:
        """A part to be filled inside of a ``with`` block; it appears when that ends without an error.

        Args:
            number: of the shard.
            source: SHA-256 of the shard.
        """
        return PartWriter(self.folder, number, source)


class PartWriter:
    """Rows of the units of one shard; see `StoreWriter.part`."""

    def __init__(self, folder: Path, number: int, source: str) -> None:
        self.folder, self.number, self.source = folder, number, source
        self.keys: list[str] = []
        self.skipped: list[str] = []
        self.arrays: dict[str, tuple[np.dtype[Any], tuple[int, ...] | None]] = {}
        self.lengths: dict[str, list[int]] = {}  # of rows of varying length
        self._files: dict[str, BinaryIO] = {}
        self._temporary: dict[str, Path] = {}

    def add(self, keys: Sequence[str], features: Features) -> None:
        """Append rows.

        Args:
            keys: B units, each of them once.
            features: ``[B, ...]`` by name, the same names, types and row shapes every time; or a list of B rows
                ``[n]`` of varying length. Floats become float16; integers stay as they are.

        Raises:
            StoreError: other names, types or shapes than before; a value beyond float16 or not finite; a unit
                twice; or no space left.
        """
        twins = set(keys) & set(self.keys) or {k for k in keys if keys.count(k) > 1}
        if twins:
            raise StoreError(f"{self._note}: features of {sorted(twins)[0]} are added twice.")
        rows = {name: as_rows(name, value, keys) for name, value in features.items()}
        ragged = {name: list(map(len, v)) for name, v in features.items() if not isinstance(v, Tensor)}
        arrays = {name: (r.dtype, None if name in ragged else r.shape[1:]) for name, r in rows.items()}
        self.arrays = self.arrays or arrays
        if not arrays or arrays != self.arrays:
            raise StoreError(f"{self._note}: {keys[0]}, ... has {arrays}, rows before it have {self.arrays}.")
        try:
            for name, r in rows.items():
                if name not in self._files:
                    self._temporary[name] = part_of(self.folder / part_file(self.number, f"{name}.npy"))
                    self._files[name] = self._temporary[name].open("wb")
                    self._files[name].write(header(r.dtype, (0, *r.shape[1:])))
                self._files[name].write(r.tobytes())
        except OSError as e:
            raise no_space(self.folder, e) from e
        self.keys += keys
        for name, lengths in ragged.items():
            self.lengths.setdefault(name, []).extend(lengths)

    def skip(self, key: str) -> None:
        """Note a unit whose picture is broken."""
        self.skipped.append(key)

    def __enter__(self) -> PartWriter:
        sweep(self.folder, part_file(self.number, ""), "*")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as e:
            raise no_space(self.folder, e) from e
        finally:
            for name, file in self._files.items():
                file.close()
                self._temporary[name].unlink(missing_ok=True)

    def _finish(self) -> None:
        self._note.unlink(missing_ok=True)  # while files change, the part is not there
        about = {}
        for name, file in self._files.items():
            dtype, shape = self.arrays[name]
            length = file.tell()
            file.seek(0)
            file.write(header(dtype, (sum(self.lengths[name]),) if shape is None else (len(self.keys), *shape)))
            file.flush()
            os.fsync(file.fileno())
            self._temporary[name].replace(self.folder / part_file(self.number, f"{name}.npy"))
            about[name] = {"dtype": str(dtype), "shape": shape, "bytes": length} | (
                {"lengths": self.lengths[name]} if shape is None else {}
            )
        write_json(self._note, dict(source=self.source, keys=self.keys, skipped=self.skipped, arrays=about))

    @property
    def _note(self) -> Path:
        return self.folder / part_file(self.number, "json")


def open_features(method: Storable, index: Index, name: str | None = None, key: str | None = None) -> FeatureStore:
    """What `store_features` stored of this set with this method's weights and preprocessing.

    Args:
        method: that wants to read it.
        index: of the set.
        name: see `store_features`.
        key: ``method.cache_key()`` where that is known already.

    Raises:
        StoreError: see `FeatureStore.open`.
    """
    folder = stored_folder(index.url, name or store_name(method))
    sources = [s.sha256 for s in index.shards]
    return FeatureStore.open(folder, key or method.cache_key(), made_by(method), sources)


def others(folder: Path) -> list[Path]:
    """All stores of a kind of features, the newest first."""
    pattern = f"{glob.escape(folder.name)}-{'[0-9a-f]' * DIGITS}/store.json"
    found = [p.parent for p in folder.parent.glob(pattern)]
    return sorted(found, key=lambda p: (p / "store.json").stat().st_mtime, reverse=True)


def keyed(folder: Path, key: str) -> Path:
    if not re.fullmatch(f"[0-9a-f]{{{DIGITS},}}", key):
        raise StoreError(f"A cache key is at least {DIGITS} hexadecimal digits, not {key!r}.")
    return folder.with_name(f"{folder.name}-{key[:DIGITS]}")


def part_file(number: int, suffix: str) -> str:
    return f"{number:06d}.{suffix}"


def read_json(path: Path, kind: type[Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_checked(path, kind)
        return found
    except (OSError, ValueError) as e:
        raise StoreError(f"{path} cannot be read ({e}). Delete it. {renew(goes_on=True)}") from e


def renew(goes_on: bool = False) -> str:
    return f"Run `{COMMAND}`{': it goes on from there' if goes_on else ' to store them'}, or set data.stored to false."


def stale(was: Mapping[str, str], now: Mapping[str, str] | None, folder: Path, old: str, new: str) -> str:
    """The sentence about features that something else made."""
    changed = [
        f"{name} was {was.get(name, 'none')}, is {now.get(name, 'none')}"
        for name in dict.fromkeys([*was, *(now or {})])
        if now and was.get(name) != now.get(name)
    ]
    what = "; ".join(changed) or "weights or preprocessing changed"
    return (
        f"The stored features {folder} are stale: {what} (cache key {old[:12]}, wanted {new[:12]}). "
        f"Run `{COMMAND}` to store them anew, and delete the old folder if nothing else needs it."
    )


def as_rows(name: str, value: Tensor | Sequence[Tensor], keys: Sequence[str]) -> NDArray[Any]:
    """Contiguous rows as they are stored: ``[B, ...]``, or all rows of varying length end to end."""
    if not isinstance(value, Tensor):
        flat = len(value) == len(keys) and all(v.ndim == 1 for v in value)
        if not flat or len({v.dtype for v in value}) != 1:
            raise StoreError(
                f"Features {name!r} are a list of {len(value)} for {len(keys)} units ({keys[0]}, ...): give one row "
                "with one axis for each, all of one type."
            )
        return np.concatenate([as_rows(name, v[None], [k])[0] for v, k in zip(value, keys, strict=True)])
    if not NAME.fullmatch(name):
        raise StoreError(f"An array of features cannot be called {name!r}: use lower-case letters, digits and _ only.")
    if value.ndim < 1 or len(value) != len(keys):
        raise StoreError(f"Features {name!r} have shape {list(value.shape)} for {len(keys)} units ({keys[0]}, ...).")
    value = value.detach()
    if value.is_floating_point():
        value = value.half()
        bad = [
            k for k, ok in zip(keys, value.reshape(len(value), -1).isfinite().all(1).tolist(), strict=True) if not ok
        ]
        if bad:
            raise StoreError(
                f"Features {name!r} of {bad[0]} are not finite, or beyond float16 (65504). Scale them in `frozen`."
            )
    elif value.dtype == torch.bool or value.is_complex():
        raise StoreError(
            f"Features {name!r} are {value.dtype}: pack bits into uint8 (numpy.packbits); nothing complex."
        )
    return np.ascontiguousarray(value.cpu().numpy())


def header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Header of an npy file; of the same length for any number of rows (numpy leaves room for the first axis)."""
    out = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, about)
    return out.getvalue()


def no_space(folder: Path, error: OSError) -> Exception:
    if error.errno != errno.ENOSPC:
        return error
    return StoreError(
        f"No space left in {folder}; what was begun is removed, finished parts stay. Free some space and run the same "
        "command again: it goes on from there."
    )
