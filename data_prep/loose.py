"""What converters of loose pictures and sounds share: sub-folders of a release, and their files by stem."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from avloc.data.media import PICTURES, SOUNDS, MediaError, clip_id
from data_prep.tables import files_by_stem
from data_prep.telling import lacking

__all__ = ["Files", "existing", "pictures", "sounds", "subfolder"]


def subfolder(media: Path, names: Sequence[str], what: str) -> Path:
    """The first of the folders that is there.

    Raises:
        ValueError: none is; names them all.
    """
    for name in names:
        if (media / name).is_dir():
            return media / name
    raise ValueError(f"{media} holds no folder {' or '.join(names)} with the {what}s. Unpack the whole release there.")


class Files:
    """The files of a folder by name without suffix, of clips however their second is written; the folder is listed
    once.

    Args:
        folder: must be there.
        what: what they are, for messages (``picture``).
        suffixes: that count.

    Raises:
        ValueError: two files of one stem.
    """

    def __init__(self, folder: Path, what: str, suffixes: Sequence[str]) -> None:
        self.folder, self.what, self.suffix = folder, what, suffixes[0]
        self.stems = files_by_stem(folder, suffixes)
        self.clips = {clip_id(stem): path for stem, path in self.stems.items()}

    def find(self, stem: str) -> Path:
        """The file of that stem.

        Raises:
            MediaError: it is not there.
        """
        found = self.stems.get(stem) or self.clips.get(clip_id(stem))
        if found is None:
            path = self.folder / f"{stem}{self.suffix}"
            raise MediaError(lacking(self.what, f"{path} is not there, nor under another suffix"))
        return found


def existing(folder: Path, name: str, what: str) -> Path:
    """A file by its relative name, as an annotation gives it.

    Raises:
        MediaError: it is not there.
        ValueError: the name leads out of the folder.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{name!r} leads out of {folder}: that is no official annotation. Get it again.")
    if not (folder / name).is_file():
        raise MediaError(lacking(what, f"{folder / name} is not there"))
    return folder / name


def pictures(media: Path, *names: str, what: str = "picture") -> Files:
    """Pictures of the first sub-folder that is there. Raises as `subfolder` and `Files`."""
    return Files(subfolder(media, names, what), what, PICTURES)


def sounds(media: Path, *names: str) -> Files:
    """Sounds of the first sub-folder that is there. Raises as `subfolder` and `Files`."""
    return Files(subfolder(media, names, "sound"), "sound", SOUNDS)
