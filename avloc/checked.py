"""Parsed JSON against what its fields may hold, before anybody relies on it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from avloc.bounds import parsed_json

__all__ = ["Fields", "checked", "read_checked"]


class Fields(BaseModel):
    """What the fields of an object may hold: numbers are numbers, and finite. Further fields may hold anything."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(content: Any, kind: Any) -> Any:
    """The content itself, whose `Fields` are as they should be; or the dataclass that it makes.

    Raises:
        ValueError: a field is missing or of another kind; names the first, for the caller's sentence.
    """
    try:
        found = adapter(kind).validate_python(content)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(place)[:80] for place in first["loc"]) or "the whole"
        raise ValueError(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    return content if isinstance(found, Fields) else found


def read_checked(path: Path, kind: Any) -> Any:
    """`checked` of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON in UTF-8, too large, or a field is wrong.
    """
    return checked(parsed_json(path.read_bytes()), kind)
