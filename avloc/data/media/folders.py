"""The clips of a folder by their ids: files under the names that people give them, and members of archives, which are
read where they lie."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import indexed_gzip

from avloc.bounds import refuse_more
from avloc.data.media.files import PICTURES, SOUNDS, VIDEOS, MediaError, Member, Source, signature
from avloc.files import write_whole

__all__ = ["ARCHIVES", "Library", "clip_id", "parse_id", "without_suffix"]

ARCHIVES = (".tar", ".tar.gz", ".tgz")
OTHER_ARCHIVES = (".zip", ".7z", ".rar", ".tar.bz2", ".tar.xz", ".tar.zst")
SPACING = 16 << 20  # bytes between places from which a .tar.gz can be unpacked
SUFFIX = re.compile(rf"({'|'.join(map(re.escape, {*VIDEOS, *SOUNDS, *PICTURES}))})$", re.I)
SPAN = re.compile(r"(?P<video>.+)_(?P<start>\d+)_(?P<end>\d+)")
SECOND = re.compile(r"(?P<video>.+)_(?P<start>\d+)")
YOUTUBE = 11  # letters of an id, which may itself hold and begin with _ and -


def without_suffix(text: str) -> str:
    """A name without a suffix of media, such as ``.mp4`` or ``.MP4``."""
    return SUFFIX.sub("", text.strip())


def parse_id(text: str) -> tuple[str, float | None]:
    """Video and start in seconds of a clip's name: ``<id>_<second>``, padded or not, ``<id>_<start ms>_<end ms>``, or
    ``<id>`` alone (None); with or without a suffix such as ``.mp4``."""
    name = without_suffix(text)
    if len(name) > YOUTUBE and name[YOUTUBE] == "_":  # a YouTube id ends at its eleventh letter
        video, numbers = name[:YOUTUBE], name[YOUTUBE + 1 :].split("_")
        if len(numbers) <= 2 and all(n.isdecimal() for n in numbers):
            return video, int(numbers[0]) / (1000 if len(numbers) == 2 else 1)
    if len(name) == YOUTUBE:
        return name, None
    span = SPAN.fullmatch(name)
    if span and int(span["end"]) - int(span["start"]) in (1000, 2000, 3000, 5000, 10000):
        return span["video"], int(span["start"]) / 1000
    if second := SECOND.fullmatch(name):
        return second["video"], float(second["start"])
    return name, None


def clip_id(text: str) -> str:
    """A clip's name as ``<id>_<second, 6 digits>``, however it is written (see `parse_id`); others stay, without a
    suffix."""
    video, start = parse_id(text)
    return without_suffix(text) if start is None or start % 1 else f"{video}_{int(start):06d}"


class Library:
    """The videos of a folder, of the folders in it, and of the tars that lie there.

    Args:
        folder: it is listed once.
        notes: where places in compressed archives are kept, so that these are read through but once; made when needed.

    Attributes:
        remarks: a sentence for each archive that is damaged and each folder that cannot be read.

    Raises:
        MediaError: the folder itself cannot be read.
    """

    def __init__(self, folder: Path, notes: Path | None = None) -> None:
        self.folder, self.remarks = folder, list[str]()
        self.clips: dict[tuple[str, float | None], list[Source]] = defaultdict(list)
        self.sounds: dict[str, Source] = {}
        try:
            files: list[Source] = list(self.listed(folder))
        except OSError as e:
            raise MediaError(f"{folder} cannot be read ({e.strerror or e}). Check its rights.") from e
        self.remarks += [
            f"{path} is an archive of a kind that is not read ({', '.join(ARCHIVES)} are): unpack it"
            for path in files
            if path.name.lower().endswith(OTHER_ARCHIVES)
        ]
        for archive in sorted(p for p in files if isinstance(p, Path) and p.name.lower().endswith(ARCHIVES)):
            files += self.members(archive, notes)
        for file in sorted(files, key=str):
            suffix = file.suffix.lower()
            if suffix in VIDEOS:
                self.clips[parse_id(file.name)].append(file)
            elif suffix in SOUNDS:
                self.sounds.setdefault(file.stem, file)

    def listed(self, folder: Path) -> Iterable[Path]:
        """Files of a folder and of those directly in it."""
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if not path.is_dir():
                yield path
                continue
            try:
                yield from (p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith("."))
            except OSError as e:
                self.remarks.append(f"{path} cannot be read ({e.strerror or e}): its clips are missing")

    def members(self, archive: Path, notes: Path | None) -> list[Source]:
        """The videos and sounds in an archive; of a damaged one, those before the damage."""
        try:
            rows, points, cut = list_archive(archive, notes)
        except (OSError, EOFError, tarfile.TarError, indexed_gzip.ZranError, ValueError) as e:
            self.remarks.append(f"{archive} cannot be read as an archive ({e}): get it again, its clips are missing")
            return []
        if cut:
            self.remarks.append(f"{archive} is cut off or damaged after {len(rows)} files ({cut}): get it again")
        return [Member(archive, name, offset, size, points) for name, offset, size in rows]

    def find(self, video: str, start: float) -> Source:
        """The clip of a video that begins at a second; else the file that is named by the video alone.

        Raises:
            MediaError: absent, or there are several.
        """
        found = self.clips.get((video, float(start))) or self.clips.get((video, None)) or []
        if not found and len(video) != YOUTUBE:
            found = self.clips.get(parse_id(f"{video}_{int(start):06d}"), [])
        if not found:
            names = f"{video}_{int(start):06d}.mp4"
            short = f"{video}_{int(start)}.mp4"
            raise MediaError(
                f"video missing: neither {names} nor {short} is in {self.folder}, nor under another name. Get the file "
                "and run again: it is taken then."
            )
        if len(found) > 1:
            shown = ", ".join(str(f) for f in found[:3])
            raise MediaError(f"several videos of one id: {shown}. Keep one of them.")
        return found[0]

    def whole(self, source: Source) -> bool:
        """Whether a file's name tells no second, so that it may be the whole video."""
        return parse_id(source.name)[1] is None

    def beside(self, source: Source) -> Source | None:
        """The sound that lies beside a video of the same name; None for none."""
        return self.sounds.get(source.stem)


def list_archive(archive: Path, notes: Path | None) -> tuple[list[tuple[str, int, int]], Path | None, str]:
    """Names, places and sizes of the media in a tar, the file of its unpacking places, and what stopped the listing."""
    packed = not archive.name.lower().endswith(".tar")
    points = known = None
    if packed:
        folder = notes or archive.parent
        folder.mkdir(parents=True, exist_ok=True)
        mark = hashlib.sha256(f"{archive.resolve()} {signature(archive)}".encode()).hexdigest()[:16]
        points, known = folder / f".{archive.name}-{mark}.gzidx", folder / f".{archive.name}-{mark}.json"
        if points.is_file() and known.is_file():
            rows, cut = json.loads(known.read_text())
            return [(name, offset, size) for name, offset, size in rows], points, cut
    wanted: Sequence[str] = (*VIDEOS, *SOUNDS)
    rows, cut, end = [], "", archive.stat().st_size
    opening: Any = indexed_gzip.IndexedGzipFile(str(archive), spacing=SPACING) if packed else archive.open("rb")
    with opening as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    name = PurePosixPath(member.name)
                    far = member.offset_data + member.size
                    refuse_more(far / max(end, 1) if packed else 0, "ARCHIVE_RATIO", f"{name} lies {far:,} bytes in")
                    if (
                        member.isfile()
                        and not member.issparse()
                        and name.suffix.lower() in wanted
                        and not name.name.startswith(".")
                    ):
                        if not packed and member.offset_data + member.size > end:
                            cut = f"{name} is not whole"
                            break
                        rows.append((member.name, member.offset_data, member.size))
                file.seek(tar.offset)  # tarfile takes whatever is no header for the end
                if not cut and any(file.read(tarfile.BLOCKSIZE)):
                    cut = "what follows is no header of a tar"
        except (tarfile.TarError, EOFError, OSError, ValueError, indexed_gzip.ZranError) as e:
            if not rows:
                raise
            cut = str(e) or type(e).__name__
        if packed and points and known:
            temporary = points.with_suffix(f".tmp{id(file)}")
            file.export_index(str(temporary))
            temporary.replace(points)
            write_whole(known, json.dumps([rows, cut]))
    return rows, points, cut
