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
import gc
import hashlib
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
from avloc.data.index import Index, ShardError, read_index, read_shard, remote
from avloc.data.items import first_scored, make_sound
from avloc.data.module import AVDataModule
from avloc.data.phrases import Variant, phrases_path
from avloc.data.schema import Record, Sample, SampleError
from avloc.files import complete
from avloc.types import InputSpec
from avloc.weights import WeightError
from data_prep.phrase_files import Journal, Names, is_file_of_texts, names_of, read_texts, say
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
from data_prep.phrase_texts import PROMPT_VERSION, STATUS, clean, request

__all__ = ["caption", "main", "picture"]

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
