"""Opening files, and members of archives, as containers; what FFmpeg raises becomes a sentence."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import av
import indexed_gzip
from av.container import InputContainer

__all__ = [
    "PICTURES",
    "SOUNDS",
    "VIDEOS",
    "MediaError",
    "Member",
    "Source",
    "open_bytes",
    "opened",
    "signature",
    "unchanged",
]

PICTURES = (".jpg", ".jpeg", ".png")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aac", ".opus", ".mp4")
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"),
    *(".flv", ".f4v", ".ogv", ".3gp", ".3g2", ".vob", ".mxf", ".nut", ".gif"),
)
REMEDY = "Download it again, or leave it out."


class MediaError(ValueError):
    """A video, picture or sound file cannot be used; the message names file, reason and remedy."""


@dataclass(frozen=True)
class Member:
    """A file inside of a tar, read where it lies.

    Attributes:
        archive: the ``.tar``, ``.tar.gz`` or ``.tgz``.
        member: its name there.
        offset, size: bytes; of the unpacked tar.
        points: where the places are kept from which a compressed archive can be unpacked; None for a plain one.
    """

    archive: Path
    member: str
    offset: int
    size: int
    points: Path | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.member).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.member).suffix

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"


Source = Path | Member


class Window(io.RawIOBase):
    """A stretch of a file as a file."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self.file, self.offset, self.size, self.at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        self.at = max(0, base + place)
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.offset + self.at)
        data = self.file.read(min(len(buffer), max(0, self.size - self.at)))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


def signature(source: Source) -> str:
    """Size and time of the last change of a file, or of a member's archive with its place; "" where it is not there."""
    path = source.archive if isinstance(source, Member) else source
    try:
        state = path.stat()
    except OSError:
        return ""
    place = f"-{source.member}-{source.offset}" if isinstance(source, Member) else ""
    return f"{state.st_size}-{state.st_mtime_ns}{place}"


def open_bytes(source: Source) -> IO[bytes]:
    """A file, or a member of an archive, for reading. Nothing is unpacked to the disk.

    Raises:
        MediaError: absent, empty, not readable, or an archive that is damaged.
    """
    path = source.archive if isinstance(source, Member) else source
    if not path.is_file():
        raise MediaError(f"{source} is not there. Check the name, or download it.")
    try:
        if not isinstance(source, Member):
            if not path.stat().st_size:
                raise MediaError(f"{source} cannot be decoded (it is empty, 0 bytes). {REMEDY}")
            return path.open("rb")
        if source.points is None:
            return io.BufferedReader(Window(path.open("rb"), source.offset, source.size))
        with indexed_gzip.IndexedGzipFile(str(path), index_file=str(source.points)) as file:
            file.seek(source.offset)
            data = file.read(source.size)
    except (OSError, EOFError, tarfile.TarError, indexed_gzip.ZranError) as e:
        raise MediaError(f"{source} cannot be read ({e}). Check its rights, or download it again.") from e
    if len(data) < source.size:
        raise MediaError(f"{source} cannot be read (the archive is cut off). Download the archive again.")
    return io.BytesIO(data)


@contextmanager
def unchanged(source: Source, state: str = "") -> Iterator[None]:
    """Refuse what was read of a file that somebody wrote to meanwhile.

    Args:
        source: the file.
        state: its `signature` when it was first looked at; "" for now.

    Raises:
        MediaError: it has another size or time than before.
    """
    before = state or signature(source)
    says = f"{source} cannot be decoded (it changed while it was read). Run again when it is whole."
    try:
        yield
    except MediaError:
        if signature(source) != before:
            raise MediaError(says) from None
        raise
    if signature(source) != before:
        raise MediaError(says)


@contextmanager
def opened(source: Source | str, state: str = "") -> Iterator[InputContainer]:
    """The file as a container, open for reading; what FFmpeg raises becomes a `MediaError`, and so does a change of the
    file since ``state`` (see `unchanged`)."""
    source = Path(source) if isinstance(source, str) else source
    with unchanged(source, state), open_bytes(source) as file:
        # By its name where it has one: FFmpeg reads faster without Python between, and the suffix helps it.
        file_or_name: Any = file if isinstance(source, Member) else str(source)
        try:
            with av.open(file_or_name, metadata_errors="replace") as container:
                yield container
        except (av.FFmpegError, EOFError, IndexError) as e:
            raise MediaError(f"{source} cannot be decoded ({e}). {REMEDY}") from e
