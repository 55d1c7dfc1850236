"""The names by which a report is asked for samples: `avloc report RUN --keys`, `--panels.keys` of a test."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from avloc.data.lists import text_lines

__all__ = ["KeysError", "aliases", "near", "read_keys"]

NEAR = 3
"""How many similar names are told for one that is unknown."""


class KeysError(ValueError):
    """A sample that does not exist, or a list of them that cannot be read."""


def read_keys(given: str | Path | Sequence[str] | None) -> list[str]:
    """The names that were given, each once, in their order.

    Args:
        given: ``KEY,KEY``, a list of names, or a text file with one name a line (empty lines and lines that begin with
            ``#`` do not count). A name is that of a sample as in ``per_sample.parquet``, of a picture with all of its
            sounds (an interactive group, a sample without its ``@<condition>``), or of a record with all of its frames.

    Raises:
        KeysError: nothing is named, or the file cannot be read.
    """
    if given is None:
        return []
    parts: Iterable[str] = given if isinstance(given, list | tuple) else str(given).split(",")
    if not isinstance(given, list | tuple) and (path := Path(str(given))).is_file():
        try:
            lines = [line for _, line in text_lines(path)]
        except (OSError, ValueError) as e:
            raise KeysError(f"{path} cannot be read as a list of keys ({e}). Write one key a line, in UTF-8.") from e
        parts = [line for line in lines if not line.startswith("#")]
    keys = list(dict.fromkeys(key for part in parts if (key := part.strip())))
    if not keys and given not in ([], ()):
        raise KeysError(f"{given} names no sample. Give KEY,KEY or a file with one key a line.")
    return keys


def aliases(key: str, picture: str = "") -> list[str]:
    """Every name that means a sample: its key, its picture's, and its record's.

    A key is ``RECORD``, with ``.f<frame>`` where several frames are scored and ``@<condition>`` under a condition.
    """
    frame = key.partition("@")[0]
    return list(dict.fromkeys(name for name in (key, picture, frame, frame.partition(".")[0]) if name))


def near(key: str, known: Iterable[str]) -> str:
    """``KEY (did you mean A, B?)``, without the brackets where nothing is similar."""
    found = difflib.get_close_matches(key, list(known), n=NEAR)
    return f"{key} (did you mean {', '.join(found)}?)" if found else key
