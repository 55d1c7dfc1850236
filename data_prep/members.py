"""What a record is made of: loose pictures, sounds and masks to the bytes and the fields of its members."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from PIL import Image

from avloc.data.media import MediaError, decode_picture, faults, load_picture, read_sound
from avloc.data.schema import Audio, Frame, Sample

__all__ = [
    "AS_PUBLISHED",
    "RATE",
    "collected",
    "flac",
    "mask_png",
    "met",
    "picture",
    "png",
    "read_mask",
    "sound",
    "stored_mask",
]

RATE = 16000


AS_PUBLISHED = "as_published"  # the tag of records that are read as published code reads them


ORIENTATION = 0x0112  # of EXIF


MET: ContextVar[dict[str, float] | None] = ContextVar("MET", default=None)  # what the media of a record hold


AS_STORED: ContextVar[bool] = ContextVar("AS_STORED", default=False)  # pictures stay as published


def met(found: Mapping[str, float]) -> None:
    """Tell of the record that is being made what its media hold; see `avloc.data.schema.Record.media`."""
    kinds = MET.get()
    if kinds is not None:
        for kind, extent in found.items():
            kinds[kind] = max(extent, kinds.get(kind, 0.0))


def collected(make: Callable[[], Sample | None], as_stored: bool) -> Sample | None:
    """A job's sample, with what was met of its media in the record."""
    kinds, stored = MET.set({}), AS_STORED.set(as_stored)
    try:
        sample = make()
        found = MET.get()
        if sample is not None and found:
            sample.record.media = dict(sorted((found | sample.record.media).items()))
        return sample
    finally:
        MET.reset(kinds)
        AS_STORED.reset(stored)


def picture(path: Path, name: str = "f0", **fields: Any) -> tuple[bytes, Frame]:
    """A loose picture as it is: PNG and JPEG keep their bytes, others become PNG. So do those that would be seen
    otherwise than they are meant: lying by their EXIF orientation, of 16 bits, or transparent (not with
    ``--as-published``).

    Args:
        path: the file.
        name: of the member, without suffix.
        fields: further fields of the `Frame`, e.g. ``t`` and ``annotated``.

    Raises:
        MediaError: absent, truncated, or no picture.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as e:
        raise MediaError(f"picture missing: {path} is not there. Check the folder, or download it.") from e
    except OSError as e:
        raise MediaError(f"{path} cannot be decoded as a picture ({e}). Check its rights, or leave it out.") from e
    shown, stored = decode_picture(data, path)
    suffix = {"PNG": "png", "JPEG": "jpg"}.get(stored.format or "")
    if suffix is None:
        data, suffix = png(shown), "png"
    elif not AS_STORED.get() and (changed := what_changes(stored, shown)):
        data, suffix = png(shown), "png"
        met({changed: 1.0})
    else:
        shown = stored
    return data, Frame(f"{name}.{suffix}", *shown.size, *shown.size, **fields)


def what_changes(stored: Image.Image, shown: Image.Image) -> str:
    """Why a picture's own bytes would be seen otherwise than they are meant; "" where they would not."""
    if stored.getexif().get(ORIENTATION, 1) not in (0, 1):
        return "turned"
    plain = stored.mode in ("RGB", "L", "P", "1", "CMYK", "YCbCr") and "transparency" not in stored.info
    return "" if plain or np.array_equal(np.asarray(stored.convert("RGB")), np.asarray(shown)) else "converted"


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def sound(
    path: Path, name: str = "a0", *, rate: int = RATE, seconds: float | None = None, **fields: Any
) -> tuple[bytes, Audio]:
    """A loose sound as 16-bit FLAC, mono or stereo as it is (more channels are mixed down to stereo, as players do).

    A 16-bit file of the wanted rate keeps its samples exactly; others are resampled by soxr.

    Args:
        path: what soundfile or FFmpeg reads.
        name: of the member, without suffix.
        rate: Hz of the result.
        seconds: keep at most that much from the start; None for all.
        fields: further fields of the `Audio`, e.g. ``role``, ``src_id``, ``clip_start``.

    Raises:
        MediaError: absent, unreadable, without samples, with samples that are not finite, or of more than an hour.
    """
    if not path.is_file():
        raise MediaError(f"sound missing: {path} is not there. Check the folder, or download it.")
    wave, own = read_sound(path, rate, seconds)
    if not len(wave):
        raise MediaError(f"{path} has no sound (no samples). Download it again, or leave it out.")
    met(faults(wave.T if wave.dtype == np.float32 else (wave.T / np.float32(32768)).astype(np.float32)))
    if own != rate:
        wave = soxr.resample(wave, own, rate)
    if seconds is not None:
        wave = wave[: round(seconds * rate)]
    return flac(wave, rate), Audio(
        f"{name}.flac", duration=len(wave) / rate, rate=rate, channels=wave.shape[1], **fields
    )


def flac(wave: NDArray[Any], rate: int = RATE) -> bytes:
    """``[n]`` or ``[n, channels]`` as 16-bit FLAC; int16 exactly, floats clipped to [-1, 1]."""
    data = io.BytesIO()
    wave = wave if wave.dtype == np.int16 else np.clip(wave, -1, 1)
    soundfile.write(data, wave, rate, format="FLAC", subtype="PCM_16")
    return data.getvalue()


def read_mask(path: Path, above: int = 127) -> NDArray[np.bool_]:
    """Foreground of a mask file, bool ``[h, w]``: stored values (palette indices as they are; of colours, the
    largest channel) greater than ``above``. A mask of zeros and ones counts its ones whatever ``above`` is.

    Raises:
        MediaError: absent or unreadable.
    """
    image = stored_mask(path)
    # As stored: converting to Pillow's mode "1" would dither, and expanding a palette would lose its indices.
    pixels = np.asarray(image.convert("RGB") if image.mode in ("RGBA", "LA", "PA", "CMYK") else image)
    if pixels.ndim == 3:
        pixels = pixels.max(2)
    return pixels > (above if pixels.max(initial=0) > 1 else 0)


def stored_mask(path: Path) -> Image.Image:
    """A mask or index map as it is stored, in whatever mode.

    Raises:
        MediaError: absent or unreadable.
    """
    try:
        return load_picture(path.read_bytes())
    except FileNotFoundError as e:
        raise MediaError(f"mask missing: {path} is not there. Check the folder, or download it.") from e
    except (OSError, ValueError) as e:
        raise MediaError(f"{path} cannot be decoded as a mask ({e}). Download it again, or leave it out.") from e


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """A bool ``[h, w]`` as 1-bit PNG."""
    return png(Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("1", dither=Image.Dither.NONE))
