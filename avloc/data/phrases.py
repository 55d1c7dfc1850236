"""Object phrases: a few words that name what sounds in a clip, written by machines (`data_prep.object_phrases`).

They lie in a Parquet table beside a set's index, or in the records themselves. They are a training signal and no label:
nothing is scored with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from avloc.data.index import Index, read_shard, remote
from avloc.data.schema import Record, SchemaError

__all__ = ["FIELDS", "PhraseError", "Phrases", "Variant", "phrases_path", "read_phrases"]

Variant = Literal["both", "audio", "image"]
FIELDS: dict[str, str] = {"both": "llm", "audio": "llm_audio", "image": "llm_image"}  # of `Record.text`


class PhraseError(RuntimeError):
    """Phrases are wanted that are not there, or a table of them cannot be used."""


class Phrases:
    """The phrase of each record of a set.

    Args:
        table: phrases by the records' keys; None to take those of the records' ``text``.
        field: key in that ``text``: one of `FIELDS`' values.
        source: where they come from, for messages.
    """

    def __init__(self, table: dict[str, str] | None = None, field: str = "llm", source: str = "") -> None:
        self.table, self.field, self.source = table, field, source or f"text[{field!r}] of the records"

    def of(self, record: Record) -> str:
        """The record's phrase; "" for none."""
        if self.table is not None:
            return self.table.get(record.key, "")
        phrase = record.text.get(self.field)
        return phrase if isinstance(phrase, str) else ""

    def check(self, index: Index) -> str:
        """Whether they belong to a set, by its first shard; where nothing of that has one, by the further local ones.

        Returns:
            a sentence with the share of the records looked at that have a phrase.

        Raises:
            PhraseError: none has.
        """
        name, seen = f"{index.dataset}-{index.split}", 0
        for shard in range(len(index.shards)):
            url = index.locate(shard)
            if shard and remote(url):
                break  # a search of a whole remote set would be a download
            found = [bool(self.of(record)) for record in records_of(url)]
            seen += len(found)
            if any(found):
                share = sum(found) / len(found)
                return f"{name}: {share:.1%} of the records of shard {shard} have an object phrase ({self.source})"
        if self.table is not None:
            raise PhraseError(
                f"{name}: none of {seen} records has a phrase in {self.source}, whose keys are such as "
                f"{next(iter(self.table), 'none')!r}. Is it the table of another set? Write one with "
                f"`python -m data_prep.object_phrases --set {index.url}`."
            )
        remedy = (
            "Delete that folder: it is rendered anew, with phrases"
            if index.dataset == "world"
            else f"Write them with `python -m data_prep.object_phrases --set {index.url}`"
        )
        folder = index.url.rpartition("/")[0] or "."
        raise PhraseError(
            f"{name} in {folder}: none of {seen} records has an object phrase in {self.source}. {remedy}, or name a "
            "table with data.phrases."
        )


def records_of(url: str) -> Iterator[Record]:
    """The readable records of a shard, front to back."""
    for raw in read_shard(url):
        try:
            yield Record.from_json(raw.get("meta.json", b""))
        except SchemaError:
            continue


def phrases_path(index_url: str, variant: str) -> Path:
    """The table beside an index: ``<set>-<split>.phrases-<variant>.parquet``."""
    path = Path(index_url)
    return path.with_name(f"{path.stem}.phrases-{variant}.parquet")


def read_phrases(wanted: str, index: Index) -> Phrases:
    """What ``data.phrases`` asks for.

    Args:
        wanted: ``both``, ``audio`` or ``image``: what was said of the two captions, or of one of them, from the table
            beside the index, else from the records' ``text``. Or the path of a table with the columns ``key`` and
            ``phrase``.
        index: of the set.

    Raises:
        PhraseError: there is no such table, or it cannot be read.
    """
    if wanted in FIELDS:
        path = phrases_path(index.url, wanted)
        if remote(index.url) or not path.is_file():
            return Phrases(field=FIELDS[wanted])
    elif not (path := Path(wanted)).is_file():
        raise PhraseError(
            f"data.phrases {wanted!r} is neither {', '.join(get_args(Variant))} nor a table on this machine. Write one "
            f"with `python -m data_prep.object_phrases --set {index.url}`."
        )
    try:
        table = pq.read_table(path, columns=["key", "phrase"]).to_pydict()
    except (OSError, pa.ArrowException, KeyError) as e:
        raise PhraseError(
            f"{path} cannot be read as a table of phrases with the columns key and phrase ({e}). Write it again with "
            "`python -m data_prep.object_phrases`."
        ) from e
    return Phrases({str(k): p or "" for k, p in zip(table["key"], table["phrase"], strict=True)}, source=str(path))
