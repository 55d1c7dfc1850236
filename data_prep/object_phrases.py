"""Object phrases: what sounds in each clip of a set, in at most three words, by a chain of three models.

    python -m data_prep.object_phrases --set vggsound_144k --audio-captions gama.jsonl
    python -m data_prep.object_phrases --set vggsound_144k --server http://localhost:8000 --num-parts 4 --part 0
    python -m data_prep.object_phrases --set vggsound_144k --phrases answers.jsonl

One model describes the picture (BLIP-2), one the sound, and an instruction model (Mistral-7B-Instruct) is asked for
the object that makes the sound. Captions and phrases that were made elsewhere are read from files: JSON lines or a csv
with the columns ``key`` and ``caption`` (or ``phrase``); a key is a record's key or its id. The paper's model of sound,
GAMA, is in no package: give a file of its captions, or another model of `transformers`.

The result is ``<set>-<split>.phrases-<variant>.parquet`` beside the set's index, where ``data.phrases: <variant>``
finds it. Every row keeps the captions, the answer as it came, the models and the version of the request. Models are
loaded one after the other, from this machine alone: nothing is downloaded.

N parts may run at the same time, one process and GPU each (``--device cuda:1``). Each answer is on the disk as soon as
it is there (in ``.phrases-<set>-<split>`` beside the table), so a run that was stopped goes on where it was; captions
serve all variants.
"""

from __future__ import annotations

import argparse
import csv
import gc
import hashlib
import json
import os
import re
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from avloc.data.decoding import decode_image
from avloc.data.index import UNREADABLE, Index, ShardError, members, read_index, read_shard, remote
from avloc.data.items import first_scored, make_sound
from avloc.data.lists import unmatched
from avloc.data.module import AVDataModule
from avloc.data.phrases import Variant, phrases_path
from avloc.data.schema import Record, Sample, SampleError, SchemaError
from avloc.files import complete, write_whole
from avloc.types import InputSpec
from avloc.weights import WeightError
from data_prep.phrase_models import (
    ASKED,
    Captioner,
    ChatModel,
    ChatServer,
    Kind,
    LanguageModel,
    MediaCaptioner,
    ServerError,
    one_line,
)

__all__ = [
    "PROMPT_VERSION",
    "STATUS",
    "Journal",
    "clean",
    "main",
    "request",
]

PROMPT_VERSION = "1"  # of the requests below; another one gets answers of its own
REQUESTS: dict[str, str] = {
    "both": (
        "Two programs have described the same short video: one saw a picture of it, the other only heard its sound. "
        "Which single main object of the picture is the most likely source of the sound? Leave aside background noises "
        "that nothing in the picture's description accounts for. Give just the general kind of thing, in no more than "
        "three words, and write nothing else.\n\nPicture: {image}\nSound: {audio}"
    ),
    "audio": (
        "A program has heard the sound of a short video and described it. Which single main object is the most likely "
        "source of the sound? Leave aside background noises. Give just the general kind of thing, in no more than "
        "three words, and write nothing else.\n\nSound: {audio}"
    ),
    "image": (
        "A program has described a picture of a short video. Which single main object of the picture is the most "
        "likely to make a sound? Give just the general kind of thing, in no more than three words, and write nothing "
        "else.\n\nPicture: {image}"
    ),
}

STATUS = {
    "ok": "kept",
    "multiline": "kept: several lines, of which the first is taken",
    "long": "kept although it has more than three words",
    "empty": "no answer: left out of the caption loss",
    "refusal": "refused or knew of no object: left out of the caption loss",
    "language": "another language or script: left out of the caption loss",
    "echo": "nothing but words of the request: left out of the caption loss",
    "no_caption": "a caption is missing, so nothing was asked: left out of the caption loss",
    "absent": "not in the file of phrases: left out of the caption loss",
}
MOST_WORDS = 3
REFUSALS = re.compile(
    r"(i'?m sorry|i am sorry|sorry|i apologi[sz]e|as an ai|i'?m an ai|(i|we) (can ?not|can'?t|am unable|do not|don'?t)|"
    r"unable to|impossible to|not possible|((it|this|that) )?(can ?not|can'?t)|there (is|are) no|not enough|"
    r"insufficient|the (given |provided )?(picture|image|sound|audio|description|caption)s?( \w+)? (does|do) not)\b.*|"
    r"(the answer is )?(none|unknown|nothing|n/?a|not applicable|unclear|undetermined|unsure|uncertain|no idea|"
    r"no (main |single |visible |clear )?(object|answer|sound|source)s?|not (clear|sure|specified|mentioned|known))\b.*"
)
# Articles of other languages with the Latin script, where they cannot be English words before a noun.
FOREIGN = {"le", "la", "les", "une", "un", "el", "los", "las", "una", "uno", "der", "das", "ein", "eine", "il", "gli"}
LABEL = re.compile(r"^(answer|object|main object|sounding object|source|response|output)\s*[:=-]\s*")

COLUMNS = (
    "key",
    "image_caption",
    "audio_caption",
    "answer",
    "phrase",
    "status",
    "image_model",
    "audio_model",
    "language_model",
    "prompt_version",
    "variant",
)


# ---- the request and the answer


def request(variant: Variant, image: str = "", audio: str = "") -> str:
    """What the instruction model is asked: what ACL-SSL's journal paper asks, in words of our own.

    Args:
        variant: which captions it is given.
        image: caption of the picture.
        audio: caption of the sound.
    """
    return REQUESTS[variant].format(image=one_line(image), audio=one_line(audio))


def clean(answer: str, asked: str = "") -> tuple[str, str]:
    """A phrase of an answer, and what was found about it.

    The phrase is the first line that holds anything, in lower case, without quotes, marks of lists and emphasis, a
    leading "answer:" and the full stop.

    Args:
        answer: as the model gave it.
        asked: what it was asked; words of that alone (captions aside) are no answer.

    Returns:
        phrase: "" unless the status is one of ``ok``, ``multiline``, ``long``.
        status: a key of `STATUS`. Other languages in the Latin script are told by their article alone.
    """
    lines = [line for line in map(str.strip, answer.splitlines()) if line.strip("`\"'*_#-.:; ")]
    if not lines:
        return "", "empty"
    phrase = one_line(unicodedata.normalize("NFKC", lines[0]).replace("’", "'")).lower()
    phrase = re.sub(r"^([-*•#>]+|\d+[.)])\s+", "", phrase)
    phrase = phrase.strip("`\"'*_“”«» ")
    phrase = re.sub(r"\s*[(\[].*", "", LABEL.sub("", phrase)).strip("`\"'*_“”«»[]().,;:!? ")
    words = phrase.split()
    if not any(c.isalpha() for c in phrase):
        return "", "empty"
    if REFUSALS.fullmatch(phrase):
        return "", "refusal"
    if any(c.isalpha() and not unicodedata.name(c, "").startswith("LATIN") for c in phrase):
        return "", "language"
    if len(words) > 1 and words[0] in FOREIGN:
        return "", "language"
    theirs = set(re.findall(r"\w+", asked.partition("\n\n")[0].lower()))
    if re.match(r"(picture|sound)\s*:", phrase) or theirs.issuperset(re.findall(r"\w+", phrase)):
        return "", "echo"
    if len(words) > MOST_WORDS:
        return phrase, "long"
    return phrase, "multiline" if len(lines) > 1 else "ok"


# ---- what is finished


class Journal:
    """Finished rows of one step, one JSON line each, on the disk before the next batch begins.

    Every part of a run writes a file of its own and reads those of all parts. A line that a killed run left unfinished
    is dropped. A clip is known by its key: whoever gives other media the same keys deletes the folder.

    Args:
        folder: of the set's journals; made when absent.
        step: ``image``, ``audio`` or ``phrase``.
        made_by: settings that the rows follow from; rows of others lie in other files.
        part, num_parts: of this run.

    Attributes:
        rows: texts by what they answer: a record's key, for phrases with the digest of the request.
    """

    def __init__(self, folder: Path, step: str, made_by: Mapping[str, str], part: int = 0, num_parts: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        told = json.dumps({"step": step, **made_by}, sort_keys=True)
        self.name = f"{step}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
        self.folder, self.path = folder, folder / f"{self.name}.{part}-of-{num_parts}.jsonl"
        self.rows: dict[str, str] = {}
        self.troubles: dict[str, str] = {}
        cut_torn_line(self.path)
        if not self.path.exists():
            write_whole(self.path, told + "\n")
        self.read()

    def read(self) -> dict[str, str]:
        """All finished rows, those of other parts included."""
        for path in sorted(self.folder.glob(f"{self.name}.*.jsonl")):
            for line in path.read_bytes().split(b"\n")[1:]:
                try:
                    unit, text, trouble = json.loads(line)
                except ValueError:
                    continue  # torn, or being written by another part
                if unit not in self.rows or not trouble:
                    self.rows[unit], self.troubles[unit] = text, trouble
        return self.rows

    def add(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Write finished rows (what is answered, text, what was wrong), and wait until they are on the disk."""
        rows = list(rows)
        with self.path.open("a", encoding="utf-8") as f:
            f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            f.flush()
            os.fsync(f.fileno())
        for unit, text, trouble in rows:
            self.rows[unit], self.troubles[unit] = text, trouble


def cut_torn_line(path: Path) -> None:
    """Drop what follows the last line break."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as f:
                f.truncate(whole)
        if not whole:
            path.unlink()


# ---- the set and the files


@dataclass(frozen=True)
class Names:
    """The records of a set: keys by shard, and the key of each id."""

    shards: list[list[str]]
    by_id: dict[str, str]

    @property
    def all(self) -> list[str]:
        return [key for shard in self.shards for key in shard]


def names_of(index: Index, progress: Callable[[int], None] = lambda n: None) -> Names:
    """Read the keys and ids of all shards.

    Raises:
        ShardError: a shard cannot be read.
    """
    shards: list[list[str]] = []
    by_id: dict[str, str] = {}
    for number in range(len(index.shards)):
        keys = []
        for key, meta in metas_of(index.locate(number)):
            keys.append(key)
            try:
                by_id[Record.from_json(meta).id] = key
            except SchemaError:
                continue
        shards.append(keys)
        progress(len(keys))
    return Names(shards, by_id)


def metas_of(url: str) -> Iterator[tuple[str, bytes]]:
    """Key and ``meta.json`` of each record of a shard; of a local one, nothing else is read."""
    if remote(url):
        yield from ((str(raw["__key__"]), raw.get("meta.json", b"")) for raw in read_shard(url))
        return
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(url, "r:") as tar:
            for info in members(tar, url, Path(url).stat().st_size):
                key, _, member = info.name.removeprefix("./").partition(".")
                found.setdefault(key, b"")
                if member == "meta.json" and (f := tar.extractfile(info)):
                    found[key] = f.read()
    except UNREADABLE as e:
        raise ShardError(f"{url} cannot be read ({type(e).__name__}: {e}). Get or write this shard again.") from e
    yield from found.items()


def read_texts(path: Path, column: str, names: Names, console: Console | None = None) -> dict[str, str]:
    """Texts by the records' keys from JSON lines or a csv with ``key`` and a column.

    Args:
        path: ``.jsonl``, ``.json``, ``.csv`` or ``.tsv``.
        column: ``caption`` or ``phrase``.
        names: of the set; keys of other records are passed over.
        console: is told how many these are.

    Raises:
        ValueError: a line that is no row, or no key of the file is one of the set's; names file and line.
    """
    texts: dict[str, str] = {}
    others: list[str] = []
    keys = set(names.all)
    for n, row in rows_of(path):
        if not isinstance(row.get("key"), str) or not isinstance(row.get(column), str | None) or column not in row:
            raise ValueError(f"{path}, line {n}: a row needs a text called key and one called {column}, got {row}.")
        key = row["key"] if row["key"] in keys else names.by_id.get(row["key"], "")
        if key:
            texts[key] = row[column] or ""
        else:
            others.append(row["key"])
    if not texts:
        shown = f"the file has {', '.join(others[:2]) or 'no rows'}, the set {', '.join(names.all[:2])}"
        raise ValueError(f"{path}: none of its keys is a key or id of the set: {shown}. Is it of another set?")
    if console is not None:
        for note in unmatched(others, (), path):
            say(console, f"note: {note}")
    return texts


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as f:
        if path.suffix in (".csv", ".tsv"):
            yield from enumerate(csv.DictReader(f, delimiter="," if path.suffix == ".csv" else "\t"), start=2)
            return
        for n, line in enumerate(f, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as e:
                raise ValueError(f"{path}, line {n} is not JSON ({e}). Write one object per line.") from e
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {n} is no object with key and text. Write one object per line.")
            yield n, row


def is_file_of_texts(source: str) -> bool:
    return Path(source).suffix in (".jsonl", ".json", ".csv", ".tsv")


# ---- the steps


@dataclass
class Run:
    """What the steps share: the set, its names, the shards of this part, and how fast to go."""

    index: Index
    names: Names
    folder: Path
    args: argparse.Namespace
    console: Console

    @property
    def mine(self) -> list[int]:
        """Shards of this part."""
        return list(range(len(self.names.shards)))[self.args.part :: self.args.num_parts]

    def journal(self, step: str, made_by: Mapping[str, str]) -> Journal:
        return Journal(self.folder, step, made_by, self.args.part, self.args.num_parts)

    def bar(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, console=self.console)

    def shown(self, what: str) -> str:
        return what + (f" part {self.args.part}" if self.args.num_parts > 1 else "")


def caption(run: Run, kind: Kind, source: str, load: Callable[[], Captioner]) -> Journal:
    """Describe this part's records; "" where the media cannot be read, which is tried again by the next run.

    Args:
        run: the set.
        kind: what is described.
        source: name of the model.
        load: makes it, when there is anything to do.
    """
    seconds = str(run.args.seconds) if kind == "audio" else ""
    journal = run.journal(kind, {"model": source, "asked": ASKED[kind], "seconds": seconds})
    mine = [k for s in run.mine for k in run.names.shards[s]]
    done = {k for k in mine if k in journal.rows and not journal.troubles[k]}
    model: Captioner | None = None
    with run.bar() as bar:
        task = bar.add_task(run.shown(f"{kind} captions"), total=len(mine))
        bar.advance(task, len(done))
        for shard in (s for s in run.mine if not done.issuperset(run.names.shards[s])):
            for batch in batched(media_of(run, shard, kind, done), run.args.batch_size):
                good = [m for _, m, _ in batch if m is not None]
                model = model or (load() if good else None)
                texts = iter(model(good) if model and good else [])
                journal.add((key, next(texts) if m is not None else "", trouble) for key, m, trouble in batch)
                bar.advance(task, len(batch))
        del model
        release()
    if troubles := [t for k in mine if (t := journal.troubles.get(k))]:
        say(run.console, f"{len(troubles)} records have no {kind} that can be read, such as: {troubles[0]}")
    return journal


def media_of(run: Run, shard: int, kind: Kind, done: set[str]) -> Iterator[tuple[str, Any, str]]:
    """(key, picture or sound, trouble) of a shard's records that are not done yet."""
    for raw in read_shard(run.index.locate(shard)):
        key = str(raw["__key__"])
        if key in done:
            continue
        try:
            sample = Sample(Record.from_json(raw.get("meta.json", b"")), raw)
            yield key, picture(sample) if kind == "image" else wave(sample, run.args.seconds), ""
        except SampleError as e:
            yield key, None, str(e)


def picture(sample: Sample) -> Image.Image:
    """The frame that training sees."""
    if not sample.record.frames:
        raise SampleError(f"{sample.key} has no picture.")
    member = sample.record.frames[first_scored(sample.record)].member
    return decode_image(sample.member(member), f"{sample.key}.{member}")


def wave(sample: Sample, seconds: float) -> NDArray[np.float32]:
    """The sound of the record, float32 ``[T]`` at 16 kHz, its channels averaged."""
    if not any(a.member for a in sample.record.audios):
        raise SampleError(f"{sample.key} has no sound.")
    return make_sound(sample, InputSpec(seconds=seconds))


def ask(
    run: Run, variant: Variant, captions: Mapping[str, Mapping[str, str]], model: str, load: Callable[[], LanguageModel]
) -> Journal:
    """Ask about this part's records whose captions are all there.

    Args:
        run: the set.
        variant: which captions are given.
        captions: by kind and key.
        model: its name.
        load: makes it, when there is anything to do.
    """
    journal = run.journal("phrase", {"variant": variant, "prompt": PROMPT_VERSION, "model": model})
    mine = {k for s in run.mine for k in run.names.shards[s]}
    requests = {unit: text for k, (unit, text) in requests_of(variant, captions).items() if k in mine}
    todo = [unit for unit in requests if unit not in journal.rows]
    with run.bar() as bar:
        task = bar.add_task(run.shown("phrases"), total=len(requests))
        bar.advance(task, len(requests) - len(todo))
        model_ = load() if todo else None
        for batch in batched(todo, run.args.batch_size):

            def keep(told: dict[int, str], batch: Sequence[str] = batch) -> None:
                journal.add((batch[i], answer, "") for i, answer in told.items())
                bar.advance(task, len(told))

            assert model_ is not None
            model_([requests[unit] for unit in batch], keep)
        del model_
        release()
    return journal


def requests_of(variant: Variant, captions: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, str]]:
    """By key, of the records whose captions are all there: what the answer is filed under, and the request."""
    found = {}
    for key in next(iter(captions.values())):
        given = {kind: c.get(key, "") for kind, c in captions.items()}
        if all(given.values()):
            text = request(variant, **given)
            found[key] = (f"{key}#{hashlib.sha256(text.encode()).hexdigest()[:12]}", text)
    return found


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def release() -> None:
    """Room for the next model."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


# ---- the table


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Rows with `COLUMNS`, whole or not at all."""
    table = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in COLUMNS})
    with complete(path) as part:
        pq.write_table(table, part)


def summarise(console: Console, rows: Sequence[Mapping[str, str]]) -> None:
    counts = Counter(row["status"] for row in rows)
    kept = [row["phrase"] for row in rows if row["phrase"]]
    say(console, f"{len(kept)} of {len(rows)} records have a phrase, {len(set(kept))} different ones")
    for status, says in STATUS.items():
        if counts[status]:
            say(console, f"  {counts[status]:7d}  {status}: {says}")


def make_rows(run: Run, variant: Variant) -> list[dict[str, str]] | None:
    """The rows of the whole set; None where other parts are not finished yet."""
    args = run.args
    fixed = dict.fromkeys(("image_model", "audio_model", "prompt_version"), "") | {"variant": variant}
    captions: dict[str, Mapping[str, str]] = {}
    requests: dict[str, tuple[str, str]] = {}
    if args.phrases:
        told = read_texts(args.phrases, "phrase", run.names, run.console)
        fixed["language_model"] = f"file {args.phrases.name}"
    else:
        sources: dict[Kind, str] = {kind: str(getattr(args, f"{kind}_captions")) for kind in kinds_of(variant)}
        made = {kind: captions_of(run, kind, source) for kind, source in sources.items()}
        model = f"{args.server_model} at a server" if args.server else args.llm
        journal = ask(run, variant, texts_of(made), model, lambda: language_model(args))
        captions = texts_of(made)  # once more: other parts may have gone on
        requests, answers = requests_of(variant, captions), journal.read()
        told = {key: answers[unit] for key, (unit, _) in requests.items() if unit in answers}
        if any(key not in c for c in captions.values() for key in run.names.all) or len(told) < len(requests):
            return None
        fixed |= {f"{kind}_model": source for kind, source in sources.items()}
        fixed |= {"language_model": model, "prompt_version": PROMPT_VERSION}
    rows = []
    for key in run.names.all:
        row = {"key": key, **{f"{kind}_caption": captions.get(kind, {}).get(key, "") for kind in get_args(Kind)}}
        row |= {"answer": told.get(key, ""), "phrase": "", "status": "absent" if args.phrases else "no_caption"}
        if key in told:
            row["phrase"], row["status"] = clean(told[key], requests[key][1] if key in requests else "")
        rows.append(row | fixed)
    return rows


def kinds_of(variant: Variant) -> tuple[Kind, ...]:
    return ("image", "audio") if variant == "both" else (variant,)


def captions_of(run: Run, kind: Kind, source: str) -> Journal | dict[str, str]:
    """From a file, else from a model."""
    if is_file_of_texts(source):
        told = read_texts(Path(source), "caption", run.names, run.console)
        return {key: one_line(told.get(key, "")) for key in run.names.all}
    args = run.args
    return caption(run, kind, source, lambda: MediaCaptioner(kind, source, args.device, args.dtype))


def texts_of(made: Mapping[Kind, Journal | dict[str, str]]) -> dict[str, Mapping[str, str]]:
    return {kind: m.read() if isinstance(m, Journal) else m for kind, m in made.items()}


def language_model(args: argparse.Namespace) -> LanguageModel:
    if args.server:
        return ChatServer(args.server, args.server_model, timeout=args.timeout, tries=args.tries)
    return ChatModel(args.llm, args.device, args.dtype)


# ---- the command


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "python -m data_prep.object_phrases",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--set", required=True, help="NAME, NAME:SPLIT, or the path of its index JSON")
    p.add_argument("--root", type=Path, default=None, help="folder of the sets (default: $AVLOC_DATA, else ./data)")
    p.add_argument("--out", type=Path, default=None, help="the table (default: beside the index)")
    p.add_argument(
        "--variant", choices=get_args(Variant), default="both", help="captions that are given (default: both)"
    )
    p.add_argument("--image-captions", default="hf:Salesforce/blip2-opt-2.7b", help="model, or file of captions")
    p.add_argument("--audio-captions", default="hf:Qwen/Qwen2-Audio-7B-Instruct", help="model, or file of captions")
    p.add_argument("--llm", default="hf:mistralai/Mistral-7B-Instruct-v0.2", help="chat model that is asked")
    p.add_argument("--server", default=None, help="URL of a server with OpenAI's chat format to ask instead")
    p.add_argument("--server-model", default="mistralai/Mistral-7B-Instruct-v0.2", help="its name for the model")
    p.add_argument("--timeout", type=float, default=60.0, help="seconds for one answer of the server (default: 60)")
    p.add_argument("--tries", type=int, default=6, help="of one request to the server (default: 6)")
    p.add_argument("--phrases", type=Path, default=None, help="file of phrases (key, phrase): no model is run")
    p.add_argument("--seconds", type=float, default=10.0, help="length of the sound that is described (default: 10)")
    p.add_argument("--batch-size", type=int, default=16, help="clips, or requests, at a time (default: 16)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where models run")
    p.add_argument("--dtype", choices=("auto", "float32", "float16", "bfloat16"), default="auto", help="of the models")
    p.add_argument("--num-parts", type=int, default=1, help="number of jobs that share the work")
    p.add_argument("--part", type=int, default=0, help="which of them this is, from 0")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Write a set's table of phrases; bad options, files, models and servers end it with a message.

    Returns:
        0 when some record has a phrase, or when the work of this part is done while others' is not.
    """
    p = parser()
    args = p.parse_args(argv)
    if not 0 <= args.part < args.num_parts:
        p.error(f"--part {args.part} must lie between 0 and --num-parts {args.num_parts} minus 1")
    if min(args.batch_size, args.tries) < 1 or min(args.seconds, args.timeout) <= 0:
        p.error("--batch-size, --tries, --seconds and --timeout must be above 0")
    console = Console(stderr=True)
    try:
        index = read_index(AVDataModule(root=args.root and str(args.root)).find(args.set, "train"))
        if args.out is None and remote(index.url):
            p.error(f"{index.url} is not on this machine: say with --out where the table goes")
        out = args.out or phrases_path(index.url, args.variant)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("keys", total=index.count)
            names = names_of(index, lambda n: bar.advance(task, n))
        folder = out.parent / f".phrases-{index.dataset}-{index.split}"
        rows = make_rows(Run(index, names, folder, args, console), args.variant)
        if rows is None:
            say(console, "This part is finished; the table is written by the part that finishes last.")
            return 0
        out.parent.mkdir(parents=True, exist_ok=True)
        write_table(out, rows)
    except (OSError, ValueError, ShardError, WeightError, ServerError) as e:
        p.error(str(e))
    except torch.OutOfMemoryError as e:
        p.error(f"{e} Use a smaller --batch-size and run the same command again: finished rows are kept.")
    summarise(console, rows)
    say(console, f"table: {out}")
    return 0 if any(row["phrase"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
