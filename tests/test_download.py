"""A server on this machine stands for every address: nothing here leaves it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from avloc import download, weights
from avloc.download import DownloadError, fetch, missing, recorded
from avloc.weights import KNOWN, KnownWeight, locate

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """What the server holds and how it behaves; ``asked`` are the paths and ranges of every GET."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut: int | None = None  # breaks the line after so many bytes of an answer
    drip: float = 0.0
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            site.asked.append((self.path, self.headers.get("Range", "")))
            self.answer(True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if path in site.moved:
                self.send_response(302)
                self.send_header("Location", site.moved[path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = site.files.get(path)
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            tag = f'"{hashlib.md5(content).hexdigest()}"'
            span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            partly = bool(span) and site.ranges and self.headers.get("If-Range", tag) == tag
            start = int(span[1]) if span and partly else 0
            self.send_response(206 if partly else 200)
            if partly:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            about = {"ETag": tag, "Content-Length": str(len(content) - start), "X-Repo-Commit": "a" * 40} | site.headers
            for name, value in about.items():
                self.send_header(name, value)
            self.end_headers()
            if not body:
                return
            left = content[start:]
            if site.drip:
                for byte in left:
                    self.wfile.write(bytes([byte]))
                    time.sleep(site.drip)
            self.wfile.write(left if site.cut is None else left[: site.cut])
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site) -> Path:
    """An empty weights' folder, and one known file, ``thing``, at two addresses of the server."""
    monkeypatch.setenv("AVLOC_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("AVLOC_MIRROR", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(weights, "hub_cache", lambda name: [])
    thing = KnownWeight("thing.pt", "its page", "MIT", urls=(f"{site.url}/a/thing.pt", f"{site.url}/b/thing.pt"))
    monkeypatch.setitem(KNOWN, "thing", thing)
    return tmp_path / "weights"


def test_a_file_arrives_whole_and_is_found(site: Site, folder: Path) -> None:
    site.files["/a/thing.pt"] = CONTENT
    told: list[tuple[str, int, int | None]] = []
    assert missing(["thing", "thing", "world:clip", "random"]) == ["thing"]
    found = fetch(["thing"], progress=lambda *state: told.append(state))
    assert found == {"thing": folder / "thing.pt"}
    assert found["thing"].read_bytes() == CONTENT
    assert locate("thing").sha256 == DIGEST
    assert told[-1] == ("thing.pt", len(CONTENT), len(CONTENT))
    assert missing(["thing"]) == []
    assert sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") == ["digests.json", "thing.pt"]
    assert fetch(["thing"]) == found
    assert len(site.asked) == 1  # what is here is not fetched again


def test_the_next_address_serves_where_the_first_does_not(site: Site) -> None:
    site.files["/b/thing.pt"] = CONTENT
    assert fetch(["thing"])["thing"].read_bytes() == CONTENT
    assert [path for path, _ in site.asked] == ["/a/thing.pt", "/b/thing.pt"]


def test_a_broken_line_costs_nothing_that_came(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "thing", KnownWeight("thing.pt", "", "MIT", urls=(f"{site.url}/a/thing.pt",)))
    site.files["/a/thing.pt"], site.cut = CONTENT, 300_000
    with pytest.raises(DownloadError, match="are kept; the same command goes on with them"):
        fetch(["thing"])
    came = (folder / "thing.pt.part").stat().st_size
    assert 0 < came <= 300_000
    assert not (folder / "thing.pt").exists()
    site.cut = None
    assert fetch(["thing"])["thing"].read_bytes() == CONTENT
    assert [span for _, span in site.asked] == ["", f"bytes={came}-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changed_in_between_is_fetched_from_its_begin(site: Site, folder: Path, ranges: bool) -> None:
    site.files["/a/thing.pt"], site.cut = CONTENT, 300_000
    with pytest.raises(DownloadError):
        fetch(["thing"])
    site.cut, site.ranges = None, ranges
    site.files["/a/thing.pt"] = CONTENT[::-1]
    assert fetch(["thing"])["thing"].read_bytes() == CONTENT[::-1]


def test_a_part_of_another_address_is_no_part(site: Site) -> None:
    site.files["/a/thing.pt"], site.cut = CONTENT, 300_000
    with pytest.raises(DownloadError):
        fetch(["thing"])
    del site.files["/a/thing.pt"]
    site.files["/b/thing.pt"], site.cut = CONTENT[::-1], None
    assert fetch(["thing"])["thing"].read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("digest", [DIGEST, DIGEST[:8]])
def test_published_digest_decides(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    urls = (f"{site.url}/a/thing.pt", f"{site.url}/b/thing.pt")
    monkeypatch.setitem(KNOWN, "thing", KnownWeight("thing.pt", "", "MIT", urls=urls, sha256=digest))
    site.files["/a/thing.pt"] = CONTENT[:-1] + b"x"
    with pytest.raises(DownloadError, match=f"instead of {digest}: it is damaged, or another file"):
        fetch(["thing"])
    assert not list(folder.glob("thing.pt*part*"))
    site.files["/b/thing.pt"] = CONTENT
    assert fetch(["thing"])["thing"].read_bytes() == CONTENT


def test_the_first_download_decides_where_no_digest_is_published(site: Site, folder: Path) -> None:
    site.files["/a/thing.pt"] = CONTENT
    fetch(["thing"])
    assert recorded() == {"thing": DIGEST}
    (folder / "thing.pt").unlink()
    site.files["/a/thing.pt"] = CONTENT[::-1]
    with pytest.raises(DownloadError, match=f"instead of {DIGEST}"):
        fetch(["thing"])
    assert not (folder / "thing.pt").exists()


def test_origin_goes_before_the_mirror_and_the_mirror_before_the_addresses(
    site: Site, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVLOC_MIRROR", f"{site.url}/mirror/")
    site.files |= {"/mirror/thing.pt": b"mirror", "/a/thing.pt": b"address"}
    own = tmp_path / "own"
    own.mkdir()
    (own / "thing.pt").write_bytes(b"own")
    for origin, content in ((str(own), b"own"), (str(tmp_path), b"mirror"), (None, b"mirror")):
        assert fetch(["thing"], origin)["thing"].read_bytes() == content
        shutil.rmtree(folder)
    monkeypatch.delenv("AVLOC_MIRROR")
    assert fetch(["thing"], f"{site.url}/nowhere")["thing"].read_bytes() == b"address"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"content": b"<html>log in</html>", "headers": {"Content-Type": "text/html; charset=utf-8"}}, "a web page"),
        ({"content": b"\n<!DOCTYPE html><html></html>"}, "a web page or a pointer of git-lfs"),
        ({"content": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"}, "a pointer of git-lfs"),
        ({"content": b"x", "headers": {"Content-Length": str(2**40)}}, r"no weight file has over 21,474,836,480"),
        ({}, "there is no such file"),
    ],
)
def test_what_is_no_weight_file_is_named(site: Site, folder: Path, answer: dict, told: str) -> None:
    if "content" in answer:
        site.files["/a/thing.pt"] = answer["content"]
    site.headers = answer.get("headers", {})
    with pytest.raises(DownloadError, match=f"a/thing.pt: .*{told}") as e:
        fetch(["thing"])
    assert f"get it from its page and put it at {folder / 'thing.pt'}" in str(e.value)
    assert not (folder / "thing.pt").exists()


def test_no_room_on_the_disk_is_told_before_a_byte_is_written(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/a/thing.pt"] = CONTENT
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    with pytest.raises(DownloadError, match=r"1,048,576 bytes are to come and .* has room for 5"):
        fetch(["thing"])
    assert not list(folder.glob("*.part"))


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "thing", KnownWeight("thing.pt", "", "MIT", urls=("http://127.0.0.1:9/thing.pt",)))
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:9/thing.pt: .*refused"):
        fetch(["thing"])


def test_a_dripping_answer_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    site.files["/a/thing.pt"], site.drip = CONTENT, 0.02
    begin = time.monotonic()
    with pytest.raises(DownloadError, match="too slow"):
        fetch(["thing"])
    assert time.monotonic() - begin < 20


def test_redirects_are_followed_but_not_for_ever(site: Site) -> None:
    site.files["/c/thing.pt"] = CONTENT
    site.moved = {"/a/thing.pt": "/c/thing.pt"}
    assert fetch(["thing"])["thing"].read_bytes() == CONTENT
    locate("thing").path.unlink()  # type: ignore[union-attr]
    site.moved = {"/a/thing.pt": "/b/thing.pt", "/b/thing.pt": "/a/thing.pt"}
    with pytest.raises(DownloadError, match="redirects"):
        fetch(["thing"])


def test_offline_means_offline(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        fetch(["thing"])
    assert not site.asked


def test_two_at_once_fetch_once(site: Site) -> None:
    site.files["/a/thing.pt"] = CONTENT
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch(["thing"])["thing"], range(4)))
    assert len(set(found)) == 1
    assert len(site.asked) == 1


def test_what_can_come_comes_and_the_rest_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "other", KnownWeight("other.pt", "", "MIT", urls=(f"{site.url}/other.pt",)))
    site.files["/a/thing.pt"] = CONTENT
    with pytest.raises(DownloadError, match="other could not be fetched") as e:
        fetch(["other", "thing"])
    assert "thing could not" not in str(e.value)
    assert locate("thing").sha256 == DIGEST
    with pytest.raises(DownloadError, match=r"file:mine\.pt cannot be fetched"):
        fetch(["file:mine.pt"])


@pytest.mark.parametrize("weights_file", ["model.safetensors", "pytorch_model.bin"])
def test_a_repository_comes_from_a_mirror_with_its_small_files(site: Site, folder: Path, weights_file: str) -> None:
    site.files |= {"/m/o--n/config.json": b"{}", f"/m/o--n/{weights_file}": CONTENT}
    assert fetch(["hf:o/n"], f"{site.url}/m") == {"hf:o/n": folder / "o--n" / weights_file}
    assert (folder / "o--n" / "config.json").read_bytes() == b"{}"
    assert locate("hf:o/n").sha256 == DIGEST


@pytest.mark.parametrize("weights_file", ["model.safetensors", "pytorch_model.bin"])
def test_a_repository_comes_from_the_hub(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_file: str
) -> None:
    """The hub's own protocol, as much as its client asks for: the repository's list, then file by file."""
    names = ["config.json", weights_file]
    listing = {"id": "o/n", "sha": "a" * 40, "siblings": [{"rfilename": n} for n in names]}
    tree = [{"type": "file", "path": n, "size": 2 if n == "config.json" else len(CONTENT), "oid": "0"} for n in names]
    for revision in ("", "/revision/main"):
        site.files[f"/api/models/o/n{revision}"] = json.dumps(listing).encode()
    site.files[f"/api/models/o/n/tree/{'a' * 40}"] = json.dumps(tree).encode()
    for revision in ("main", "a" * 40):
        site.files |= {
            f"/o/n/resolve/{revision}/config.json": b"{}",
            f"/o/n/resolve/{revision}/{weights_file}": CONTENT,
        }
    monkeypatch.setattr(constants, "ENDPOINT", site.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", site.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    path = fetch(["hf:o/n"])["hf:o/n"]
    assert path.name == weights_file
    assert path.read_bytes() == CONTENT
    assert (path.parent / "config.json").read_bytes() == b"{}"
    with pytest.raises(DownloadError, match=r"hf:o/absent: the hub says"):
        fetch(["hf:o/absent"])


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AVLOC_WEIGHTS", str(tmp_path / "file" / "weights"))
    with pytest.raises(DownloadError, match=r"thing cannot be written to .* AVLOC_WEIGHTS names another"):
        fetch(["thing"])


def test_known_addresses_are_well_formed() -> None:
    for source, known in KNOWN.items():
        if source == "thing":
            continue
        assert known.urls or source.startswith("hf:"), source
        assert all(url.startswith("https://") and url.endswith(Path(known.file).name) for url in known.urls), source
        assert re.fullmatch("[0-9a-f]*", known.sha256), source
        assert known.megabytes > 0, source
        if match := re.search(
            r"[_-]([0-9a-f]{6,8})\.pth$", known.file
        ):  # the publishers' names hold the digest's begin
            assert known.sha256 == match[1], source
