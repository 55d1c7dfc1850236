"""Pickled numpy arrays from strangers, read without running what the pickle says.

A pickle is a program. Here its calls reach inert stand-ins that only remember their arguments; numpy sees the bytes
after they were checked. VGGSound-Instruments publishes its masks in this form.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avloc.data.media import MediaError

__all__ = ["read_array"]

MOST_BYTES = 256 * 2**20


class Dtype:
    """Remembers a dtype's code (``f8``) and byte order."""

    order = "|"

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]


class Array:
    """Remembers an array's shape, dtype, order and bytes."""

    shape: Any = None
    dtype: Any = None
    fortran: Any = False
    data: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state


def from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    """Stands in for numpy's reconstruction of protocol 5."""
    array = Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def encode(text: str, codec: str) -> bytes:
    """Stands in for ``_codecs.encode``, which older protocols call to write bytes."""
    if codec != "latin1":
        raise pickle.UnpicklingError(f"codec {codec!r}")
    return text.encode("latin1")


STAND_INS = {
    ("_codecs", "encode"): encode,
    ("numpy", "dtype"): Dtype,
    ("numpy", "ndarray"): Array,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): from_buffer for core in ("core", "_core")},
}


class Unpickler(pickle._Unpickler):
    """The one in Python: its memo is a dictionary, the one in C takes all memory for a large index."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return STAND_INS[module, name]


def read_array(path: Path) -> NDArray[Any]:
    """A pickled array of booleans, integers or floats.

    Raises:
        MediaError: absent, not a pickle of one such array, larger than 256 MiB, or it asks for anything else; nothing
            that it asks for is run.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise pickle.UnpicklingError(f"larger than {MOST_BYTES} bytes")
        return to_numpy(Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load())
    except FileNotFoundError as e:
        raise MediaError(f"mask missing: {path} is not there. Check the folder, or download it.") from e
    except Exception as e:  # what a broken pickle raises is anything
        raise MediaError(f"{path} cannot be decoded as a pickled array ({type(e).__name__}: {e}). Leave it out.") from e


def to_numpy(found: Any) -> NDArray[Any]:
    """The array that a stand-in remembers.

    Raises:
        ValueError: something else, or not of plain numbers.
    """
    if not isinstance(found, Array) or not isinstance(found.dtype, Dtype):
        raise ValueError(f"holds {type(found).__name__}, not an array")
    if not (isinstance(found.dtype.code, str) and re.fullmatch(r"b1|[uif][1248]", found.dtype.code)):
        raise ValueError(f"holds an array of {found.dtype.code!r}, not of numbers")
    data = found.data.encode("latin1") if isinstance(found.data, str) else bytes(memoryview(found.data))
    dtype = np.dtype((found.dtype.order if found.dtype.order in ("<", ">") else "=") + found.dtype.code)
    shape = found.shape
    if not (isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)):
        raise ValueError(f"has the shape {shape!r}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"has {len(data)} bytes for the shape {shape}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if found.fortran else "C")
