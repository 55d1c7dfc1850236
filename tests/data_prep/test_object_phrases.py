"""The phrase tool with a stand-in server, random models, and everything that can go wrong on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from avloc.data.index import ShardError, read_index
from avloc.data.indexed import EvalSet
from avloc.data.phrases import phrases_path
from avloc.types import InputSpec
from avloc.weights import WeightError
from avloc.world import write_world
from data_prep.object_phrases import COLUMNS, PROMPT_VERSION, Journal, clean, main, request
from data_prep.phrase_files import names_of, rows_of
from data_prep.phrase_models import ChatModel, ChatServer, MediaCaptioner, ServerError
from tests.data.make import sample, toy_set
from tests.data_prep import phrase_models as tiny

Answer = Callable[[str, int], Any]  # request and number of the call to a text, or (status, body), or (..., headers)


class StandIn(ThreadingHTTPServer):
    """A server with OpenAI's chat format that answers what a test says."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        self.answer, self.asked, self.paths, self.lock = answer, [], [], threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            text = body["messages"][-1]["content"]
            self.server.asked.append(body)
            self.server.paths.append(self.path)
            n = len(self.server.asked)
        said = self.server.answer(text, n)
        status, content, headers = 200, "", {}
        if isinstance(said, str):
            content = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]})
        else:
            status, content, headers = (*said, {})[:3]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], StandIn]]:
    servers: list[StandIn] = []

    def start(answer: Answer) -> StandIn:
        servers.append(StandIn(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def number(text: str) -> int:
    """Of the clip that a request is about."""
    found = re.search(r"picture of clip (\d+)", text)
    assert found
    return int(found[1])


def caption_files(folder: Path, n: int) -> list[str]:
    """Options that name a caption of every clip of the toy set: of pictures by key, of sounds by id."""
    pictures = [json.dumps({"key": f"toy__s{i:04d}", "caption": f"a picture of clip {i}"}) for i in range(n)]
    (folder / "pictures.jsonl").write_text("\n".join(pictures) + "\n")
    sounds = [f's{i:04d},"a sound, of clip {i}"' for i in range(n)]
    (folder / "sounds.csv").write_text("key,caption\n" + "\n".join(sounds) + "\n")
    return [f"--image-captions={folder / 'pictures.jsonl'}", f"--audio-captions={folder / 'sounds.csv'}"]


def rows(path: Path) -> dict[str, dict[str, str]]:
    table = pq.read_table(path)
    assert table.column_names == list(COLUMNS)
    return {row["key"]: row for row in table.to_pylist()}


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as e:
        main(args)
    assert e.value.code == 2
    return " ".join(capsys.readouterr().err.split())


ASKED = request("both", "a dog and a man on a lawn", "barking, and wind")


@pytest.mark.parametrize(
    ("answer", "phrase", "status"),
    [
        ("dog", "dog", "ok"),
        (' "Dog." ', "dog", "ok"),
        ("**Acoustic Guitar**", "acoustic guitar", "ok"),
        ("Answer: brass band!", "brass band", "ok"),
        ("- Dog", "dog", "ok"),
        ("1. dog", "dog", "ok"),
        ("ice-cream van", "ice-cream van", "ok"),
        ("café door", "café door", "ok"),
        ("dog (barking)", "dog", "ok"),
        ("a man’s voice", "a man's voice", "ok"),
        ("Dog\n\nThe dog is barking on the lawn.", "dog", "multiline"),
        ("\n\n  dog", "dog", "ok"),
        ("A small brown dog", "a small brown dog", "long"),
        ("The most likely source of the sound is a dog.", "the most likely source of the sound is a dog", "long"),
        ("", "", "empty"),
        (" \n\t", "", "empty"),
        ('"."', "", "empty"),
        ("42", "", "empty"),
        ("🐶", "", "empty"),
        ("I'm sorry, but I cannot tell.", "", "refusal"),
        ("As an AI language model, I have no ears", "", "refusal"),
        ("I don’t know", "", "refusal"),
        ("Cannot be determined", "", "refusal"),
        ("None of them", "", "refusal"),
        ("unknown", "", "refusal"),
        ("N/A", "", "refusal"),
        ("There is no sounding object.", "", "refusal"),
        ("The picture does not show it", "", "refusal"),
        ("犬", "", "language"),
        ("собака", "", "language"),
        ("dog (犬)", "dog", "ok"),
        ("une guitare", "", "language"),
        ("el perro", "", "language"),
        ("Single main object", "", "echo"),
        ("The general kind of thing", "", "echo"),
        ("Picture: a dog and a man on a lawn", "", "echo"),
        ("the picture", "", "echo"),
    ],
)
def test_answers_are_cleaned_and_judged(answer: str, phrase: str, status: str) -> None:
    assert clean(answer, ASKED) == (phrase, status)


def test_the_request_carries_what_the_paper_lists() -> None:
    text = request("both", "a dog\non a lawn", "barking {loud}")
    assert text.endswith("\n\nPicture: a dog on a lawn\nSound: barking {loud}")
    for word in ("main object", "most likely", "background", "general kind", "three words"):
        assert word in text
    assert request("audio", audio="x").endswith("\n\nSound: x")
    assert request("image", image="x").endswith("\n\nPicture: x")
    assert "icture" not in request("audio", audio="x")
    assert "Sound:" not in request("image", image="x")


def test_captions_from_files_and_a_server_become_a_table(
    tmp_path: Path, serve: Callable[[Answer], StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    index = toy_set(tmp_path, 10)
    bad = {3: "", 4: "I cannot say.", 5: "犬", 6: "a very big old dog", 7: "dog\nbecause", 8: "three words"}
    server = serve(lambda text, n: bad.get(number(text), f"Thing {number(text)}."))
    files = caption_files(tmp_path, 9)  # the last clip has none
    assert main([f"--set={index}", f"--server={server.url}", "--server-model=tiny", "--batch-size=4", *files]) == 0
    found = rows(phrases_path(str(index), "both"))
    assert {k: (r["phrase"], r["status"]) for k, r in found.items()} == {
        "toy__s0000": ("thing 0", "ok"),
        "toy__s0001": ("thing 1", "ok"),
        "toy__s0002": ("thing 2", "ok"),
        "toy__s0003": ("", "empty"),
        "toy__s0004": ("", "refusal"),
        "toy__s0005": ("", "language"),
        "toy__s0006": ("a very big old dog", "long"),
        "toy__s0007": ("dog", "multiline"),
        "toy__s0008": ("", "echo"),
        "toy__s0009": ("", "no_caption"),
    }
    one = found["toy__s0001"]
    assert (one["image_caption"], one["audio_caption"]) == ("a picture of clip 1", "a sound, of clip 1")
    assert (one["answer"], one["variant"], one["prompt_version"]) == ("Thing 1.", "both", PROMPT_VERSION)
    assert one["image_model"].endswith("pictures.jsonl")
    assert one["audio_model"].endswith("sounds.csv")
    assert one["language_model"] == "tiny at a server"
    said = capsys.readouterr().err
    assert "5 of 10 records have a phrase, 5 different ones" in said
    assert "1  long: kept although it has more than three words" in said
    assert "1  refusal" in said
    assert {p for p in server.paths} == {"/v1/chat/completions"}
    (body,) = [b for b in server.asked if number(b["messages"][-1]["content"]) == 1]
    assert body["messages"] == [
        {"role": "user", "content": request("both", "a picture of clip 1", "a sound, of clip 1")}
    ]
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 16, "tiny")


def test_one_caption_alone_is_a_variant_of_its_own(tmp_path: Path, serve: Callable[[Answer], StandIn]) -> None:
    index = toy_set(tmp_path, 4)
    server = serve(lambda text, n: "dog")
    for variant in ("audio", "image"):
        assert (
            main([f"--set={index}", f"--server={server.url}/v1", f"--variant={variant}", *caption_files(tmp_path, 4)])
            == 0
        )
        row = rows(phrases_path(str(index), variant))["toy__s0002"]
        assert row["variant"] == variant
        assert bool(row["image_caption"]) == bool(row["image_model"]) == (variant == "image")
        assert bool(row["audio_caption"]) == bool(row["audio_model"]) == (variant == "audio")
    assert sum("Picture:" in b["messages"][-1]["content"] for b in server.asked) == 4
    assert len(server.asked) == 8


def test_a_server_that_fails_for_a_while_is_asked_again(serve: Callable[[Answer], StandIn]) -> None:
    troubles: list[Any] = [
        (500, "boom"),
        (429, "slow down", {"Retry-After": "0"}),
        (200, "not JSON"),
        (200, '{"choices": []}'),
        (200, '{"choices": [{"message": {"content": 7}}]}'),
        "dog",
    ]
    server = serve(lambda text, n: troubles[n - 1])
    assert ChatServer(server.url, tries=6, wait=0.01).ask("?") == "dog"
    assert len(server.asked) == 6
    null = serve(lambda text, n: (200, '{"choices": [{"message": {"content": null}}]}'))
    assert ChatServer(null.url).ask("?") == ""


def test_a_server_that_hangs_or_is_not_there_is_named(serve: Callable[[Answer], StandIn]) -> None:
    hanging = serve(lambda text, n: time.sleep(3) or "late")
    start = time.monotonic()
    with pytest.raises(ServerError, match=r"/v1/chat/completions gave no usable answer in 2 tries.*[Tt]ime.*are kept"):
        ChatServer(hanging.url, timeout=0.2, tries=2, wait=0.01).ask("?")
    assert time.monotonic() - start < 2.5
    gone = serve(lambda text, n: "x")
    gone.shutdown()
    gone.server_close()
    with pytest.raises(ServerError, match=r"127\.0\.0\.1.*refused.*Check that the server runs"):
        ChatServer(gone.url, tries=2, wait=0.01).ask("?")
    unknown = serve(lambda text, n: (404, '{"error": "no model x"}'))
    with pytest.raises(
        ServerError, match=r"refuses the request \(HTTP 404.*no model x.*\)\. Check the URL.*--server-model 'x'"
    ):
        ChatServer(unknown.url, "x", tries=5, wait=1).ask("?")
    assert len(unknown.asked) == 1  # another try cannot mend it
    with pytest.raises(ServerError, match=r"'localhost:8000' is no URL"):
        ChatServer("localhost:8000")


def test_finished_answers_outlive_a_failing_server(
    tmp_path: Path, serve: Callable[[Answer], StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    index = toy_set(tmp_path, 12)
    args = [f"--set={index}", "--batch-size=4", "--tries=1", *caption_files(tmp_path, 12)]
    first = serve(lambda text, n: f"thing {number(text)}" if number(text) % 5 else (500, "no"))
    message = fails([*args, f"--server={first.url}"], capsys)
    assert first.url in message
    assert "finished answers are kept" in message
    assert not phrases_path(str(index), "both").exists()
    kept = {number(b["messages"][-1]["content"]) for b in first.asked} - {0, 5, 10}
    second = serve(lambda text, n: f"thing {number(text)}")
    assert main([*args, f"--server={second.url}"]) == 0
    asked = {number(b["messages"][-1]["content"]) for b in second.asked}
    assert asked == set(range(12)) - kept
    found = rows(phrases_path(str(index), "both"))
    assert [found[f"toy__s{i:04d}"]["phrase"] for i in range(12)] == [f"thing {i}" for i in range(12)]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, serve: Callable[[Answer], StandIn]) -> None:
    index = toy_set(tmp_path, 8)
    wait = threading.Event()
    server = serve(lambda text, n: f"thing {number(text)}" if n <= 5 else wait.wait(30) or "late")
    args = [f"--set={index}", "--batch-size=1", f"--server={server.url}", *caption_files(tmp_path, 8)]
    process = subprocess.Popen([sys.executable, "-m", "data_prep.object_phrases", *args])
    while len(server.asked) < 6 and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait.set()
    before = [number(b["messages"][-1]["content"]) for b in server.asked]
    (journal,) = (tmp_path / "toy" / ".phrases-toy-train").glob("phrase-*.jsonl")
    with journal.open("a") as f:
        f.write('["toy__s000')  # as if killed while writing
    server.answer = lambda text, n: f"thing {number(text)}"
    assert main(args) == 0
    after = [number(b["messages"][-1]["content"]) for b in server.asked][len(before) :]
    assert sorted(before[:5] + after) == list(range(8))
    found = rows(phrases_path(str(index), "both"))
    assert [found[f"toy__s{i:04d}"]["phrase"] for i in range(8)] == [f"thing {i}" for i in range(8)]


def test_another_caption_or_model_is_asked_about_anew(tmp_path: Path, serve: Callable[[Answer], StandIn]) -> None:
    index = toy_set(tmp_path, 4)
    server = serve(lambda text, n: "dog" if "new" not in text else "cat")
    args = [f"--set={index}", f"--server={server.url}", *caption_files(tmp_path, 4)]
    main(args)
    changed = (tmp_path / "sounds.csv").read_text().replace("of clip 2", "of clip 2, a new one")
    (tmp_path / "sounds.csv").write_text(changed)
    main(args)
    assert len(server.asked) == 5
    assert [r["phrase"] for _, r in sorted(rows(phrases_path(str(index), "both")).items())] == [
        "dog",
        "dog",
        "cat",
        "dog",
    ]
    main([*args, "--server-model=other"])
    assert len(server.asked) == 9


def test_parts_share_the_work_and_the_last_one_writes_the_table(
    tmp_path: Path, serve: Callable[[Answer], StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    index = toy_set(tmp_path, 20, per_shard=4)  # 5 shards
    server = serve(lambda text, n: f"thing {number(text)}")
    args = [f"--set={index}", f"--server={server.url}", "--num-parts=2", *caption_files(tmp_path, 20)]
    assert main([*args, "--part=1"]) == 0
    assert len(server.asked) == 8
    assert not phrases_path(str(index), "both").exists()
    assert "written by the part that finishes last" in capsys.readouterr().err
    assert main([*args, "--part=0"]) == 0
    assert len(server.asked) == 20
    found = rows(phrases_path(str(index), "both"))
    assert {k: r["phrase"] for k, r in found.items()} == {f"toy__s{i:04d}": f"thing {i}" for i in range(20)}
    assert "--part 2 must lie between" in fails([*args, "--part=2"], capsys)


def test_phrases_of_a_file_need_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = toy_set(tmp_path, 6)
    lines = [{"key": "toy__s0000", "phrase": "Dog."}, {"key": "s0001", "phrase": "I cannot tell"}]
    lines += [{"key": "s0002", "phrase": None}, {"key": "somebody_else", "phrase": "cat"}]
    lines += [{"key": "s0004", "phrase": "brass band"}, {"key": "s0005", "phrase": "dog"}]
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert (
        main([f"--set={index}", f"--phrases={file}", "--variant=image", f"--out={tmp_path / 'o' / 't.parquet'}"]) == 0
    )
    found = rows(tmp_path / "o" / "t.parquet")
    assert [(found[f"toy__s{i:04d}"]["phrase"], found[f"toy__s{i:04d}"]["status"]) for i in range(6)] == [
        ("dog", "ok"),
        ("", "refusal"),
        ("", "empty"),
        ("", "absent"),
        ("brass band", "ok"),
        ("dog", "ok"),
    ]
    assert found["toy__s0004"]["language_model"] == "file answers.jsonl"
    assert "3 of 6 records have a phrase, 2 different ones" in capsys.readouterr().err


def test_bad_files_are_named_with_their_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = toy_set(tmp_path, 3)

    def told(name: str, text: str, option: str = "--phrases") -> str:
        (tmp_path / name).write_text(text)
        return fails([f"--set={index}", f"{option}={tmp_path / name}"], capsys)

    assert "a.jsonl, line 2 is not JSON" in told("a.jsonl", '{"key": "s0000", "phrase": "dog"}\n{"key": "s00')
    assert "b.jsonl, line 1: a row needs a text called key and one called phrase" in told("b.jsonl", '{"key": "s0000"}')
    assert "c.jsonl, line 1 is no object" in told("c.jsonl", '["s0000"]')
    assert "none of its keys is a key or id of the set: the file has x, the set toy__s000" in told(
        "d.csv", "key,phrase\nx,dog\n"
    )
    assert "e.csv, line 2: a row needs a text called key and one called caption" in told(
        "e.csv", "key,text\ns0000,dog\n", "--image-captions"
    )
    assert "no.jsonl" in fails([f"--set={index}", f"--phrases={tmp_path / 'no.jsonl'}"], capsys)
    assert "nowhere-train.json is missing" in fails([f"--root={tmp_path}", "--set=nowhere"], capsys)


def test_a_torn_journal_loses_its_last_line_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "image", {"model": "m"})
    journal.add([("a", "one\ntwo", ""), ("b", "ß", "x")])
    with journal.path.open("ab") as f:
        f.write(b'["c", "\xc3')
    again = Journal(tmp_path, "image", {"model": "m"})
    assert again.rows == {"a": "one\ntwo", "b": "ß"}
    again.add([("c", "three", "")])
    assert Journal(tmp_path, "image", {"model": "m"}, part=1, num_parts=2).rows == {
        "a": "one\ntwo",
        "b": "ß",
        "c": "three",
    }
    assert Journal(tmp_path, "image", {"model": "other"}).rows == {}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "chat": tiny.chat_model(folder / "chat"),
        "image": tiny.picture_captioner(folder / "image"),
        "audio": tiny.sound_captioner(folder / "audio"),
    }


@torch.inference_mode()
def greedy(folder: Path, text: str, tokens: int) -> str:
    """One request alone, token by token."""
    words = tiny.tokenizer()
    ids = words.encode(f"[user] {text} [assistant]", add_special_tokens=False)
    given = len(ids)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return words.decode(ids[given:], skip_special_tokens=True).strip()


def test_a_chat_model_answers_in_its_own_format(models: dict[str, Path]) -> None:
    """A padded batch gives what each request gives alone."""
    texts = ["a dog in three words", "the sound of a car or a drum or a bird in the picture", "bell"]
    found: dict[int, str] = {}
    ChatModel(str(models["chat"]))(texts, found.update)
    assert found == {i: greedy(models["chat"], text, 16) for i, text in enumerate(texts)}
    assert len(set(found.values())) == 3


def test_a_picture_captioner_captions_without_a_question(models: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)) for _ in range(3)]
    captions = MediaCaptioner("image", str(models["image"]), tokens=6)(pictures)
    model = AutoModelForImageTextToText.from_pretrained(models["image"]).eval()
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    words = tiny.tokenizer(chat=False)
    for caption, image in zip(captions, pictures, strict=True):
        small = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), np.float32) / 255
        pixels = torch.tensor(((small - mean) / std).transpose(2, 0, 1)[None], dtype=torch.float32)
        out = model.generate(pixels, do_sample=False, max_new_tokens=6)
        assert caption == " ".join(words.decode(out[0], skip_special_tokens=True).split())
    assert len(set(captions)) > 1


def test_a_chatting_picture_captioner_is_asked_about_each_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)) for _ in range(3)]
    captions = MediaCaptioner("image", str(tiny.chatting_captioner(tmp_path)), tokens=6)(pictures)
    prepare, model = AutoProcessor.from_pretrained(tmp_path), AutoModelForImageTextToText.from_pretrained(tmp_path)
    for caption, image in zip(captions, pictures, strict=True):
        text = "[user] <image>Describe this picture in one sentence. [assistant]"
        given = prepare(images=image, text=text, return_tensors="pt")
        out = model.generate(**given, do_sample=False, max_new_tokens=6)[0, given["input_ids"].shape[1] :]
        assert caption == prepare.tokenizer.decode(out, skip_special_tokens=True).strip()
    assert len(set(captions)) > 1


def test_models_that_cannot_be_asked_are_named(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WeightError, match=r"Model 'hf:nobody/nothing' is not on this machine"):
        ChatModel("hf:nobody/nothing")
    with pytest.raises(WeightError, match=r"no chat format \(chat_template\)"):
        ChatModel(str(tiny.chat_model(tmp_path / "plain", chat=False)))
    deaf = MediaCaptioner("audio", str(models["audio"]))
    deaf.processor.chat_template = None
    with pytest.raises(WeightError, match=r"has no chat format, so it cannot be asked about a sound"):
        deaf([np.zeros(16000, np.float32)])
    index = toy_set(tmp_path, 3)
    assert "'hf:no/llm' is not on this machine" in fails(
        [f"--set={index}", "--llm=hf:no/llm", *caption_files(tmp_path, 3)], capsys
    )


def test_the_whole_chain_of_models_on_the_world(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = write_world(tmp_path / "world", "train", scenes=5)
    mine = {kind: tmp_path / "models" / kind for kind in models}
    for kind, folder in models.items():
        shutil.copytree(folder, mine[kind])
    args = ["--set=world", f"--root={tmp_path}", "--device=cpu", "--seconds=2", "--batch-size=2"]
    args += [f"--image-captions={mine['image']}", f"--audio-captions={mine['audio']}", f"--llm={mine['chat']}"]
    main(args)
    found = rows(phrases_path(str(index), "both"))
    data = EvalSet(index, InputSpec(seconds=2.0, image_size=128), truth_size=None)
    hear, see = (MediaCaptioner(kind, str(models[kind])) for kind in ("audio", "image"))  # type: ignore[arg-type]
    for record, item in zip(data.records, data, strict=True):
        row = found[record.key]
        assert row["audio_caption"] == hear([item.audio])[0] != ""
        assert row["image_caption"] == see([Image.fromarray(item.image.transpose(1, 2, 0))])[0] != ""
        text = request("both", row["image_caption"], row["audio_caption"])
        assert row["answer"] == greedy(models["chat"], text, 16)
        assert (row["phrase"], row["status"]) == clean(row["answer"], text)
    # Captions are there already: the other variants need neither of their models.
    shutil.rmtree(mine["image"])
    shutil.rmtree(mine["audio"])
    main([*args, "--variant=audio"])
    audio = rows(phrases_path(str(index), "audio"))
    assert {k: r["audio_caption"] for k, r in audio.items()} == {k: r["audio_caption"] for k, r in found.items()}
    shutil.rmtree(mine["chat"])
    main([*args, "--variant=audio"])  # nor the language model, a second time
    assert rows(phrases_path(str(index), "audio")) == audio
    assert "chat' is not on this machine" in fails([*args, "--variant=image"], capsys)


def test_broken_media_cost_their_clip_only(models: dict[str, Path], tmp_path: Path) -> None:
    clips = [sample(i) for i in range(4)]
    clips[1].members["f0.jpg"] = clips[1].members["f0.jpg"][:50]
    index = toy_set(tmp_path, 4, samples=clips)
    args = [f"--set={index}", "--variant=image", "--device=cpu"]
    args += [f"--image-captions={models['image']}", f"--llm={models['chat']}"]
    main(args)
    found = rows(phrases_path(str(index), "image"))
    assert found["toy__s0001"]["status"] == "no_caption"
    assert not found["toy__s0001"]["phrase"]
    assert all(found[f"toy__s{i:04d}"]["image_caption"] for i in (0, 2, 3))
    assert read_index(index).count == len(found) == 4
    # The clip is mended: it is described now, and the others are not described again.
    shutil.rmtree(tmp_path / "toy" / ".parts")
    toy_set(tmp_path, 4)
    (journal,) = (tmp_path / "toy" / ".phrases-toy-train").glob("image-*.jsonl")
    before = journal.read_text().count("\n")
    main(args)
    assert rows(phrases_path(str(index), "image"))["toy__s0001"]["image_caption"]
    assert journal.read_text().count("\n") == before + 1


@pytest.mark.parametrize("scheme", ["", "pipe:cat "])
def test_a_shard_that_lost_records_is_told(tmp_path: Path, scheme: str) -> None:
    index = toy_set(tmp_path, 6, per_shard=3)
    shard = index.parent / "toy-train-000001.tar"
    with tarfile.open(shard) as tar:
        kept = [(m, tar.extractfile(m)) for m in tar if not m.name.startswith(sorted(tar.getnames())[-1][:10])]
        with tarfile.open(tmp_path / "fewer.tar", "w") as fewer:
            for member, content in kept:
                fewer.addfile(member, content)
    (tmp_path / "fewer.tar").replace(shard)
    with pytest.raises(ShardError, match=r"000001\.tar.* holds 2 records, its index promises 3\."):
        names_of(read_index(f"{scheme}{index}"))


def test_a_line_that_is_nested_without_end_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"t\.jsonl, line 1 is not JSON \(it is nested too deeply\)"):
        list(rows_of(path))
