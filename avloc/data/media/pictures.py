"""Pictures, of files and of videos, as a player shows them: upright, in square pixels, with the right colours."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from numpy.typing import NDArray
from PIL import Image, ImageOps

from avloc.bounds import most
from avloc.data.media.files import MediaError, Source, open_bytes, unchanged

__all__ = [
    "Pixels",
    "Turn",
    "decode_picture",
    "eight_bits",
    "is_hdr",
    "load_picture",
    "pixels",
    "read_picture",
    "refuse_large",
    "turn_of",
    "turned",
]

Pixels = NDArray[np.uint8]
Turn = tuple[bool, bool, bool]  # rows and columns change places, then left and right, then top and bottom
STRAIGHT: Turn = (False, False, False)
ORIENTATION = 0x0112  # of EXIF
HD = 720  # lines from which untagged video is taken as BT.709, as players do
MATRICES = {1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601}
MATRICES |= {7: Colorspace.SMPTE240M, 9: Colorspace.BT2020, 10: Colorspace.BT2020}
TWO_BYTES = ("I;16", "I;16B", "I;16L", "I;16N", "I")


FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""Of pictures that are opened, whatever a file is called; for others (EPS) Pillow starts programs."""


@cache
def known_formats() -> list[str]:
    """Those of them that this Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def refuse_large(source: object, width: int, height: int) -> None:
    """Refuse a picture before it takes memory.

    Raises:
        MediaError: more than 100 million pixels, or none.
    """
    if width * height > most("PIXELS"):
        raise MediaError(
            f"{source} cannot be decoded as a picture ({width} x {height} are more than "
            f"{most('PIXELS') / 10**6:g} million pixels). Make it smaller, or leave it out."
        )
    if width < 1 or height < 1:
        raise MediaError(f"{source} has no picture ({width} x {height} pixels). Leave it out.")


# Loose pictures


def read_picture(source: Source) -> Image.Image:
    """A picture as it is meant to be seen: RGB of 8 bits, EXIF orientation obeyed, on black where it is transparent.

    Raises:
        MediaError: absent, truncated, too large, or no picture.
    """
    with unchanged(source), open_bytes(source) as file:
        return decode_picture(file.read(), source)[0]


def decode_picture(data: bytes, name: object) -> tuple[Image.Image, Image.Image]:
    """The picture as it is meant to be seen, and as it is stored.

    Raises:
        MediaError: as `read_picture`.
    """
    try:
        image = load_picture(data)
        return eight_bits(ImageOps.exif_transpose(image)), image
    except (OSError, ValueError) as e:
        raise MediaError(f"{name} cannot be decoded as a picture ({e}). Download it again, or leave it out.") from e


def load_picture(data: bytes) -> Image.Image:
    """A picture as it is stored, in whatever mode: masks and index maps hold values, no colours.

    Raises:
        ValueError: truncated, of more than 100 million pixels, or no picture; in words for the caller's sentence.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=known_formats())
        if image.width * image.height > most("PIXELS"):
            raise ValueError(
                f"{image.width} x {image.height} are more than "
                f"{most('PIXELS') / 10**6:g} million pixels, make it smaller"
            )
        image.load()
    except (OSError, SyntaxError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError) as e:
        raise ValueError(str(e) or type(e).__name__) from e
    return image


def eight_bits(image: Image.Image) -> Image.Image:
    """Any picture as RGB: 16 bits are scaled, what is transparent lies on black."""
    if image.mode in TWO_BYTES:
        # Pillow's own conversion cuts at 255. Mode I comes of 16-bit PNG and TIFF in older releases.
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating point pixels have no agreed white")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        own = image.convert("RGBA")
        ground = Image.new("RGBA", own.size, (0, 0, 0, 255))
        return Image.alpha_composite(ground, own).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


# Frames of videos


def pixels(
    frame: av.VideoFrame, turn: Turn = STRAIGHT, aspect: Fraction | None = None, as_stored: bool = False
) -> Pixels:
    """A frame as RGB, uint8 ``[H, W, 3]``.

    Args:
        frame: as it was decoded; limited and full range and the matrices of BT.601, BT.709 and BT.2020 are told apart
            by its tags. Without a tag, BT.709 from 720 lines on and BT.601 below, as players guess.
        turn: of `turn_of`.
        aspect: width of a stored pixel by its height; other than 1 widens or heightens the picture, never shrinks it.
        as_stored: leave high dynamic range as it is, as decoders that do not know it do.
    """
    width, height = frame.width, frame.height
    if aspect and aspect > 1:
        width = round(width * aspect)
    elif aspect:
        height = round(height / aspect)
    how = Interpolation.BILINEAR | Interpolation.ACCURATE_RND
    alpha = any(c.is_alpha for c in frame.format.components) or frame.format.name == "pal8"
    options: dict[str, Any] = {"width": width, "height": height, "interpolation": how}
    if not frame.format.is_rgb and frame.format.name != "pal8":
        default = Colorspace.ITU709 if frame.height >= HD else Colorspace.ITU601
        options["src_colorspace"] = MATRICES.get(frame.colorspace, default)
        full = frame.color_range == ColorRange.JPEG.value or frame.format.name.startswith("yuvj")
        options["src_color_range"] = ColorRange.JPEG if full else ColorRange.MPEG
        options["dst_color_range"] = ColorRange.JPEG
    if not as_stored and is_hdr(frame):
        wide = frame.reformat(format="rgb48le", **options).to_ndarray().astype(np.uint16, copy=False)
        picture = tone_mapped(wide, frame.color_trc, frame.color_primaries in (BT2020, UNSPECIFIED))
    elif alpha:
        rgba = frame.reformat(format="rgba", **options).to_ndarray().astype(np.uint16)
        picture = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
    else:
        picture = frame.reformat(format="rgb24", **options).to_ndarray().astype(np.uint8, copy=False)
    return turned(picture, turn)


def is_hdr(frame: av.VideoFrame) -> bool:
    """Whether it is tagged as PQ (SMPTE ST 2084) or HLG (ARIB STD-B67), as in ITU-R BT.2100."""
    return frame.color_trc in (PQ, HLG)


def tone_mapped(wide: NDArray[np.uint16], transfer: int, wide_gamut: bool) -> Pixels:
    """High dynamic range on a screen: diffuse white of 203 cd/m2 (ITU-R BT.2408) becomes nearly full, what is brighter
    is bent to below it, colours of BT.2020 become those of BT.709.

    Args:
        wide: ``[H, W, 3]``, of 16 bits, as BT.2100 codes it.
        transfer: `PQ` or `HLG`.
        wide_gamut: primaries of BT.2020.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    light = LIGHT[transfer][wide >> 4]
    if transfer == HLG:  # the opto-optical transfer of a display of 1000 cd/m2
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light = light * np.maximum(luminance, 1e-6)[..., None] ** np.float32(0.2)
    light = light * np.float32((10_000 if transfer == PQ else 1_000) / DIFFUSE_WHITE)
    if wide_gamut:
        light = light @ TO_BT709.T
    bright = KNEE + (1 - KNEE) * (1 - np.exp(-(np.maximum(light, KNEE) - KNEE) / (1 - KNEE)))
    shown = np.where(light < KNEE, np.maximum(light, 0), bright)
    coded = np.where(shown <= 0.0031308, 12.92 * shown, 1.055 * np.maximum(shown, 1e-9) ** (1 / 2.4) - 0.055)
    return (coded * 255 + 0.5).astype(np.uint8)


def light_of(transfer: int) -> NDArray[np.float32]:
    """Light in [0, 1] of each of 4096 codes (ITU-R BT.2100, tables 4 and 5)."""
    code = np.arange(4096) / 4095
    if transfer == PQ:
        root = code ** (32 / 2523)
        light = (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return light.astype(np.float32)


PQ, HLG = int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)
BT2020, UNSPECIFIED = int(ColorPrimaries.BT2020), int(ColorPrimaries.UNSPECIFIED)
LIGHT = {transfer: light_of(transfer) for transfer in (PQ, HLG)}
DIFFUSE_WHITE = 203  # cd/m2
KNEE = 0.75  # of diffuse white: what is brighter is bent
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)  # ITU-R BT.2087


def turned(picture: Pixels, turn: Turn) -> Pixels:
    """``[H, W, 3]`` brought upright."""
    across, left, down = turn
    if across:
        picture = picture.transpose(1, 0, 2)
    if left:
        picture = picture[:, ::-1]
    if down:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def turn_of(frame: av.VideoFrame) -> Turn:
    """What its display matrix asks for: the nearest quarter turn, mirrored or not."""
    for side in list[Any](frame.side_data):
        if side.type == SideData.DISPLAYMATRIX:
            a, b, _, c, d = struct.unpack("=5i", bytes(side)[:20])
            # x' = a x + c y and y' = b x + d y
            return (False, a < 0, d < 0) if abs(a) + abs(d) >= abs(b) + abs(c) else (True, c < 0, b < 0)
    return STRAIGHT
