"""How much is believed of a file that somebody wrote: every limit, in one place.

What lies beyond one is refused in a sentence before memory is taken or time is lost. The environment overrides each:
``AVLOC_MOST_PIXELS=400000000 avloc prep ...``; a limit of 0 is none.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any, Literal

__all__ = ["LIMITS", "BoundError", "Limit", "most", "parsed_json", "refuse_more"]

Limit = Literal[
    "PIXELS",
    "SECONDS",
    "SAMPLES",
    "MEMBER_BYTES",
    "RECORD_BYTES",
    "JSON_BYTES",
    "TARGETS",
    "MEMBERS",
    "SHARDS",
    "ARCHIVE_RATIO",
    "LIST_BYTES",
    "MAP_VALUES",
    "REDIRECTS",
    "STREAMS",
]

LIMITS: dict[Limit, int] = {
    "PIXELS": 100_000_000,  # of a picture or a frame: 300 MB as RGB
    "SECONDS": 3600,  # of a sound that is read into memory
    "SAMPLES": 350_000_000,  # of all channels of such a sound: an hour of stereo at 48 kHz, 1.4 GB
    "MEMBER_BYTES": 2**30,  # of one member of a shard
    "RECORD_BYTES": 16 * 2**20,  # of a meta.json
    "JSON_BYTES": 256 * 2**20,  # of an index, a results.json, a list
    "TARGETS": 1000,  # of a record, and boxes or masks of a target
    "MEMBERS": 2000,  # of a record
    "SHARDS": 1_000_000,  # of a set
    "ARCHIVE_RATIO": 200,  # bytes that a compressed archive unpacks to, by its own
    "LIST_BYTES": 2**30,  # of a list of ids or of texts
    "MAP_VALUES": 200_000_000,  # of a stored map
    "REDIRECTS": 10,  # from one address to the next
    "STREAMS": 64,  # of a video file
}
"""What is refused beyond; ``AVLOC_MOST_<NAME>`` overrides one."""


class BoundError(ValueError):
    """A limit is set to something that is no number."""


def most(name: Limit) -> float:
    """A limit, as the environment has it; infinite where that says 0.

    Raises:
        BoundError: it is no whole number.
    """
    given = os.environ.get(f"AVLOC_MOST_{name}")
    if given is None:
        return LIMITS[name]
    if not given.strip().isdecimal():
        raise BoundError(f"AVLOC_MOST_{name} is {given!r}: give a whole number, or 0 for no limit.")
    return int(given) or math.inf


def refuse_more(count: float, name: Limit, what: str) -> None:
    """Raises:
    ValueError: ``what``, of which there are ``count``, is beyond a limit; tells how to raise it.
    """
    limit = most(name)
    if count > limit:
        raise ValueError(f"{what}, more than {limit:,}; AVLOC_MOST_{name} sets another limit")


def parsed_json(data: bytes | str, limit: Limit = "JSON_BYTES") -> Any:
    """JSON of a stranger.

    Raises:
        ValueError: it is none, no UTF-8, nested too deeply, or beyond a limit; in words for the caller's sentence.
    """
    refuse_more(len(data), limit, f"it has {len(data):,} bytes")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
