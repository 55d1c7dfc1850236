"""Pictures, of files and of videos, as a player shows them: upright, in square pixels, with the right colours."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray
from PIL import Image, ImageOps

from avloc.data.media.files import MediaError, Source, open_bytes, unchanged

__all__ = [
    "MOST_PIXELS",
    "Pixels",
    "Turn",
    "decode_picture",
    "eight_bits",
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
MOST_PIXELS = 100_000_000  # 300 MB as RGB
ORIENTATION = 0x0112  # of EXIF
HD = 720  # lines from which untagged video is taken as BT.709, as players do
MATRICES = {1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601}
MATRICES |= {7: Colorspace.SMPTE240M, 9: Colorspace.BT2020, 10: Colorspace.BT2020}
TWO_BYTES = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def refuse_large(source: object, width: int, height: int) -> None:
    """Refuse a picture before it takes memory.

    Raises:
        MediaError: more than 100 million pixels, or none.
    """
    if width * height > MOST_PIXELS:
        raise MediaError(
            f"{source} cannot be decoded as a picture ({width} x {height} are more than {MOST_PIXELS // 10**6} million "
            "pixels). Make it smaller, or leave it out."
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
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(
                f"{image.width} x {image.height} are more than {MOST_PIXELS // 10**6} million pixels, make it smaller"
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


def pixels(frame: av.VideoFrame, turn: Turn = STRAIGHT, aspect: Fraction | None = None) -> Pixels:
    """A frame as RGB, uint8 ``[H, W, 3]``.

    Args:
        frame: as it was decoded; limited and full range and the matrices of BT.601, BT.709 and BT.2020 are told apart
            by its tags. Without a tag, BT.709 from 720 lines on and BT.601 below, as players guess.
        turn: of `turn_of`.
        aspect: width of a stored pixel by its height; other than 1 widens or heightens the picture, never shrinks it.
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
    if alpha:
        rgba = frame.reformat(format="rgba", **options).to_ndarray().astype(np.uint16)
        picture = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
    else:
        picture = frame.reformat(format="rgb24", **options).to_ndarray().astype(np.uint8, copy=False)
    return turned(picture, turn)


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
