"""Text to token ids: CLIP's byte-pair vocabulary, and the embedded world's few words; sizes of what reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

__all__ = ["END", "START", "TextConfig", "Tokenizer", "clip_tokenizer", "train_world_tokenizer", "world_tokenizer"]

START, END, UNKNOWN = "<start>", "<end>", "<unknown>"


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text tower of CLIP's kind; the defaults are CLIP RN50's.

    Args:
        context_length: rows of the position table.
        vocab_size: ids of the tokenizer; the end of text has the largest.
        width: of the transformer.
        heads: its attention heads.
        layers: its blocks.
    """

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12


class Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]:
        """Ids with start and end of text around them; the end has the largest id of the vocabulary."""

    def serialise(self) -> str:
        """What `world_tokenizer` reads; empty for CLIP's own vocabulary."""


class ClipTokenizer:
    """CLIP's vocabulary of 49,408 as open_clip ships it (no download)."""

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._bpe = SimpleTokenizer()

    def encode(self, text: str) -> list[int]:
        return [self._bpe.sot_token_id, *self._bpe.encode(text), self._bpe.eot_token_id]

    def serialise(self) -> str:
        return ""


class WorldTokenizer:
    """One id a word; written by `train_world_tokenizer`."""

    def __init__(self, table: tokenizers.Tokenizer) -> None:
        self._table = table

    def encode(self, text: str) -> list[int]:
        return self._table.encode(text).ids

    def serialise(self) -> str:
        return self._table.to_str()


@lru_cache(maxsize=1)
def clip_tokenizer() -> Tokenizer:
    return ClipTokenizer()


def world_tokenizer(serialised: str) -> Tokenizer:
    return WorldTokenizer(tokenizers.Tokenizer.from_str(serialised))


def train_world_tokenizer(words: list[str]) -> Tokenizer:
    """A word-level tokenizer over exactly these words; id 0 is the unknown word, the end of text is last."""
    vocabulary = {w: i for i, w in enumerate([UNKNOWN, *sorted({w.lower() for w in words}), START, END])}
    table = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    table.normalizer = normalizers.Lowercase()
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    table.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(t, vocabulary[t]) for t in (START, END)]
    )
    return WorldTokenizer(table)
