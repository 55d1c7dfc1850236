"""Weight files that arrive by themselves: fetched when asked for, checked, never half there.

A file is looked for in this order: the origin that the user names (``--from``), ``$AVLOC_MIRROR``, and the addresses
of `avloc.weights.KNOWN`. Origins are folders or addresses that hold files under the names they have in the weights'
folder. Hugging Face repositories come through ``huggingface_hub``, which obeys ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE``.

A broken download goes on where it stopped: the part lies beside the file's place as ``NAME.part``, with what it is a
part of in ``NAME.part.json``. Nothing is at its place before its length and digest are right.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from filelock import FileLock

from avloc.bounds import most
from avloc.files import complete, write_whole
from avloc.weights import KNOWN, WeightError, candidates, present, sha256, weights_folder

__all__ = ["TIMEOUT_S", "DownloadError", "fetch", "missing", "recorded"]

TIMEOUT_S = 30.0
"""A server that does not answer, or sends nothing, for so long is given up."""
SLOWEST = 1024
"""Bytes a second below which an answer, looked at over `TIMEOUT_S`, counts as none."""
LARGEST = 20 * 2**30
"""Bytes beyond which no weight file is believed."""

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes that are here, and how many there will be where that is known."""


WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SMALL = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
"""What a repository of the hub holds beside its weights, each if it is there."""


class DownloadError(WeightError):
    """A weight file could not be fetched, or what came is not what was asked for."""


class AbsentError(DownloadError):
    """There is no such file at an address."""


@dataclass(frozen=True)
class Answer:
    """How a server's answer goes on with a part: from which byte, up to how many, of which version of the file."""

    start: int
    total: int | None
    version: str


def missing(sources: Sequence[str]) -> list[str]:
    """Those of the sources that can be fetched and are not on this machine, each once."""
    wanted = [s for s in dict.fromkeys(sources) if s in KNOWN or s.startswith("hf:")]
    return [s for s in wanted if present(s) is None]


def fetch(
    sources: Sequence[str], origin: str | None = None, progress: Progress = lambda *_: None, at_once: int = 3
) -> dict[str, Path]:
    """Bring the files behind ``sources`` to this machine; those that are here already are left alone.

    Args:
        sources: names of `KNOWN`, or ``hf:OWNER/NAME``.
        origin: a folder or an address to look in first.
        progress: is told how far each file is.
        at_once: how many files come side by side.

    Returns:
        source to path.

    Raises:
        DownloadError: names every file that did not come, and why at each of its addresses. The others are there.
    """
    unknown = [s for s in sources if s not in KNOWN and not s.startswith("hf:")]
    if unknown:
        raise DownloadError(f"{', '.join(unknown)} cannot be fetched: it is no known file and no hf:OWNER/NAME.")
    found, failures = {}, []
    with ThreadPoolExecutor(at_once) as pool:
        jobs = {source: pool.submit(fetch_one, source, origin, progress) for source in dict.fromkeys(sources)}
    for source, job in jobs.items():
        try:
            found[source] = job.result()
        except DownloadError as e:
            failures.append(str(e))
    if failures:
        raise DownloadError("\n".join(failures))
    return found


def fetch_one(source: str, origin: str | None, progress: Progress) -> Path:
    """The file behind one source; another process that fetches the same is waited for."""
    place = candidates(source)[0]
    reasons = []
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(place.name + ".lock")):
            if (path := present(source)) is not None:  # another process has fetched it meanwhile
                return path
            for way in ways(source, place, origin, progress):
                try:
                    return way.go()
                except DownloadError as e:
                    reasons.append(f"  {way.address}: {e}")
    except OSError as e:
        raise DownloadError(f"{source} cannot be written to {place.parent}: {e}. AVLOC_WEIGHTS names another.") from e
    known = KNOWN.get(source)
    more = f"\n  By hand: get it from {known.homepage} and put it at {place}." if known else ""
    raise DownloadError("\n".join([f"{source} could not be fetched:", *reasons]) + more)


class Way(NamedTuple):
    """One address of a file, and what brings it from there."""

    address: str
    go: Callable[[], Path]


def ways(source: str, place: Path, origin: str | None, progress: Progress) -> Iterator[Way]:
    """The user's origin, the mirror, the known addresses, the hub: in this order."""
    for base in (origin, os.environ.get("AVLOC_MIRROR")):
        if base and source.startswith("hf:"):
            folder = f"{base.rstrip('/')}/{place.parent.name}"
            yield Way(folder, partial(snapshot, source, folder, place.parent, progress))
        elif base:
            address = f"{base.rstrip('/')}/{place.name}"
            yield Way(address, partial(bring, source, address, place, progress))
    for url in KNOWN[source].urls if source in KNOWN else ():
        yield Way(url, partial(bring, source, url, place, progress))
    if source.startswith("hf:"):
        yield Way(source, partial(from_hub, source.removeprefix("hf:")))


def snapshot(source: str, base: str, folder: Path, progress: Progress) -> Path:
    """A repository's small files and its weights, the weights last: where they are, all is there."""
    for name in SMALL:
        try:
            bring(f"{source}/{name}", f"{base}/{name}", folder / name, progress)
        except AbsentError:
            continue
    try:
        return bring(source, f"{base}/{WEIGHTS[0]}", folder / WEIGHTS[0], progress)
    except AbsentError:
        return bring(source, f"{base}/{WEIGHTS[1]}", folder / WEIGHTS[1], progress)


def bring(source: str, address: str, place: Path, progress: Progress) -> Path:
    """The file behind an address, checked, to its place."""
    part = place.with_name(place.name + ".part")
    if address.startswith(("http://", "https://")):
        download(address, part, progress)
    else:
        copy(Path(address.removeprefix("file://")).expanduser(), part, progress)
    digest, expected = sha256(part), known_digest(source)
    with part.open("rb") as f:
        begin = f.read(64).lstrip().lower()
        os.fsync(f.fileno())
    if begin.startswith((b"<!doctype", b"<html", b"version https://git-lfs")):
        discard(part)
        raise DownloadError("it holds a web page or a pointer of git-lfs instead of the file.")
    if not digest.startswith(expected):
        discard(part)
        raise DownloadError(f"its SHA-256 is {digest} instead of {expected}: it is damaged, or another file.")
    part.replace(place)
    discard(part)
    record(source, digest)
    return place


def download(address: str, part: Path, progress: Progress) -> None:
    """The bytes behind an address, into ``part``, going on with what is there of the same version.

    Raises:
        DownloadError: no answer, a refusal, a web page, too slow, too large, no room on the disk, or cut off.
    """
    about = part.with_name(part.name + ".json")
    begun = json.loads(about.read_text()) if about.is_file() and part.is_file() else {}
    start = part.stat().st_size if begun.get("address") == address and begun.get("version") else 0
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DownloadError("HF_HUB_OFFLINE is set.")
    headers = {"Accept-Encoding": "identity", "User-Agent": "avloc"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": begun["version"]}
    try:
        with (
            httpx.Client(
                follow_redirects=True, timeout=TIMEOUT_S, max_redirects=int(min(most("REDIRECTS"), 1000))
            ) as client,
            client.stream("GET", address, headers=headers) as response,
        ):
            if address.startswith("https:") and response.url.scheme != "https":
                raise DownloadError(f"it leads to {response.url}, which is not encrypted.")
            if response.status_code == 416:  # the part is no part of what lies there now
                discard(part)
                raise DownloadError("the file there has changed: try again.")
            answer = read_answer(response, start)
            check_room(part.parent, answer)
            write_whole(about, json.dumps({"address": address, "version": answer.version}))
            write(response, part, answer, progress)
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise DownloadError(f"{str(e) or type(e).__name__} (waited at most {TIMEOUT_S:g} s). {kept(part)}") from e


def read_answer(response: httpx.Response, start: int) -> Answer:
    if response.status_code in (404, 410):
        raise AbsentError("there is no such file.")
    if response.status_code not in (200, 206):
        raise DownloadError(f"the server answers {response.status_code} {response.reason_phrase}.")
    if response.headers.get("content-type", "").startswith("text/html"):
        raise DownloadError("the server answers with a web page instead of a file.")
    version = response.headers.get("etag", "")
    version = "" if version.startswith("W/") else version  # a weak tag promises no equal bytes
    length = response.headers.get("content-length", "")
    count = int(length) if length.isdigit() else None
    if response.status_code == 200:
        return Answer(0, count, version)
    span, _, total = response.headers.get("content-range", "").removeprefix("bytes ").partition("/")
    if not span.startswith(f"{start}-") or not total.isdigit():
        raise DownloadError(f"the server was asked for the bytes from {start} and sends {span or 'others'!r}.")
    return Answer(start, int(total), version)


def check_room(folder: Path, answer: Answer) -> None:
    if answer.total is None:
        return
    if answer.total > LARGEST:
        raise DownloadError(f"it claims {answer.total:,} bytes; no weight file has over {LARGEST:,}.")
    needed, free = answer.total - answer.start, shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(f"{needed:,} bytes are to come and {folder} has room for {free:,}. AVLOC_WEIGHTS moves it.")


def write(response: httpx.Response, part: Path, answer: Answer, progress: Progress) -> None:
    here, watched, looked = answer.start, answer.start, time.monotonic()
    with part.open("r+b" if answer.start else "wb") as f:
        f.seek(answer.start)
        f.truncate()
        for chunk in response.iter_raw():
            here += f.write(chunk)
            if here > (answer.total or LARGEST):
                raise DownloadError(f"more bytes come than the {answer.total or LARGEST:,} there should be.")
            progress(part.name.removesuffix(".part"), here, answer.total)
            if time.monotonic() - looked > TIMEOUT_S:
                if here - watched < SLOWEST * TIMEOUT_S:
                    raise DownloadError(f"{here - watched} bytes came in {TIMEOUT_S:g} s: too slow. {kept(part)}")
                watched, looked = here, time.monotonic()
    if answer.total is not None and here < answer.total:
        raise DownloadError(f"the line broke after {here:,} of {answer.total:,} bytes. {kept(part)}")


def kept(part: Path) -> str:
    size = part.stat().st_size if part.is_file() else 0
    return f"{size:,} bytes are kept; the same command goes on with them." if size else "Nothing came."


def copy(file: Path, part: Path, progress: Progress) -> None:
    if not file.is_file():
        raise AbsentError("there is no such file.")
    shutil.copyfile(file, part)
    progress(part.name.removesuffix(".part"), part.stat().st_size, part.stat().st_size)


def from_hub(name: str) -> Path:
    """A snapshot's weights (safetensors where there are any) and its small files, in the hub's own cache."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        snapshot_download(name, allow_patterns=["*.json", "*.txt"], etag_timeout=TIMEOUT_S)
        try:
            return Path(hf_hub_download(name, WEIGHTS[0], etag_timeout=TIMEOUT_S))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return Path(hf_hub_download(name, WEIGHTS[1], etag_timeout=TIMEOUT_S))
    except Exception as e:  # of its transport too, whose library changes from release to release
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise DownloadError(f"the hub says: {first}") from e


def discard(part: Path) -> None:
    for path in (part, part.with_name(part.name + ".json")):
        path.unlink(missing_ok=True)


def known_digest(source: str) -> str:
    """SHA-256 that a file must have, or its first digits: published, else that of its first download here."""
    known = KNOWN.get(source)
    return (known.sha256 if known else "") or recorded().get(source, "")


def recorded() -> dict[str, str]:
    """SHA-256 of every file that was fetched here, by source."""
    path = weights_folder() / "digests.json"
    try:
        content: Any = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise DownloadError(f"{path} is damaged ({e}). Delete it: digests are recorded anew.") from e
    return {k: v for k, v in content.items() if isinstance(v, str)} if isinstance(content, dict) else {}


def record(source: str, digest: str) -> None:
    path = weights_folder() / "digests.json"
    with FileLock(path.with_name(path.name + ".lock")), complete(path) as part:
        part.write_text(json.dumps(recorded() | {source: digest}, indent=1, sort_keys=True) + "\n")
