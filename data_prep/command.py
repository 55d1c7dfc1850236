"""`avloc prep`: the converters by name, as ``python -m data_prep.NAME`` calls them."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from pathlib import Path
from typing import Annotated

from avloc.errors import UsageError
from avloc.names import words as words_argument

__all__ = ["converters", "prep"]


def converters() -> dict[str, str]:
    """Name of every converter and the first line of what its module says of itself; nothing is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = path.read_text()
        if '\nif __name__ == "__main__":' in text:
            found[path.stem] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return found


def complete_converter(incomplete: str) -> list[tuple[str, str]]:
    return [(name, told) for name, told in converters().items() if name.startswith(incomplete)]


def prep(
    words: Annotated[
        list[str] | None,
        words_argument(
            "NAME [OPTIONS]",
            "A converter and its options; without a name the converters are listed.",
            complete_converter,
        ),
    ] = None,
) -> None:
    """Write a data set's shards from its official files.

    Example: `avloc prep vggss --media vggss --boxes vggss.json --out data`
    """
    known = converters()
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, known))
        print("avloc prep NAME [OPTIONS] writes a data set's shards from its official files; avloc prep NAME --help.\n")
        print("\n".join(f"{name:{width}}  {told}" for name, told in known.items()))
        return
    name, *options = words
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or list(known)
        raise UsageError(f"There is no converter {name!r}. Did you mean {', '.join(near)}? `avloc prep` lists them.")
    sys.exit(importlib.import_module(f"data_prep.{name}").main(options))
