"""The models that `data_prep.object_phrases` asks: captioners of pictures and sounds, chat models, and chat servers.

Through `transformers` from this machine alone, and greedily; or a server with OpenAI's chat format.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal, Protocol

import soxr
import torch

from avloc.backbones.proposals import snapshot
from avloc.weights import WeightError

__all__ = ["ASKED", "Captioner", "ChatModel", "ChatServer", "Kind", "LanguageModel", "MediaCaptioner", "ServerError"]

Kind = Literal["image", "audio"]
ASKED: dict[Kind, str] = {
    "image": "Describe this picture in one sentence.",
    "audio": "Describe what can be heard in one sentence.",
}  # of captioners with a chat format


class ServerError(RuntimeError):
    """A language-model server does not answer, or not as it should."""


class Captioner(Protocol):
    """Describes media in batches."""

    name: str

    def __call__(self, media: Sequence[Any]) -> list[str]:
        """One caption for each of some RGB pictures, or float32 sounds ``[T]`` at 16 kHz."""


class LanguageModel(Protocol):
    """Answers requests in batches."""

    name: str

    def __call__(self, requests: Sequence[str], keep: Callable[[dict[int, str]], None]) -> None:
        """Hand the answers to ``keep`` by the numbers of their requests, each as soon as it is there."""


class MediaCaptioner:
    """A vision-language or audio-language model of `transformers` that describes pictures or sounds, greedily.

    A picture model without a chat format (BLIP-2, BLIP, GIT) captions without any question.

    Args:
        kind: ``image`` or ``audio``.
        source: folder of a snapshot, or ``hf:OWNER/NAME`` on this machine.
        device: where it runs.
        dtype: of its weights.
        tokens: most tokens of a caption.

    Raises:
        WeightError: it is not on this machine.
    """

    def __init__(self, kind: Kind, source: str, device: str = "cpu", dtype: str = "auto", tokens: int = 60) -> None:
        from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

        folder = folder_of(source)
        model = {"image": AutoModelForImageTextToText, "audio": AutoModelForMultimodalLM}[kind]
        self.kind, self.name, self.device, self.tokens = kind, source, device, tokens
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self.model = model.from_pretrained(folder, local_files_only=True, dtype=dtype_of(dtype, device))
        self.model.eval().to(device)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.tokenizer.padding_side = "left"  # what is generated follows the last token
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        ears = getattr(self.processor, "feature_extractor", None)
        self.rate = getattr(ears, "sampling_rate", 16000)

    @torch.inference_mode()
    def __call__(self, media: Sequence[Any]) -> list[str]:
        given: dict[str, Any] = {"return_tensors": "pt"}
        if getattr(self.processor, "chat_template", None):
            content = [{"type": self.kind}, {"type": "text", "text": ASKED[self.kind]}]
            talk = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
            given |= {"text": [text] * len(media), "padding": True}
        elif self.kind == "audio":
            raise WeightError(
                f"{self.name} has no chat format, so it cannot be asked about a sound. Use a model that has one "
                "(Qwen2-Audio-Instruct), or a file of captions."
            )
        if self.kind == "image":
            given["images"] = [[m] for m in media] if "text" in given else list(media)
        else:
            given |= {"audio": [soxr.resample(w, 16000, self.rate) for w in media], "sampling_rate": self.rate}
        inputs = self.processor(**given).to(self.device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(self.model.dtype)
        out = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.tokens)
        return [one_line(t) for t in answers(self.tokenizer, out, inputs.get("input_ids"))]


class ChatModel:
    """A chat model of `transformers`, asked in its own chat format without system text, greedily.

    Args:
        source: folder of a snapshot, or ``hf:OWNER/NAME`` on this machine.
        device: where it runs.
        dtype: of its weights.
        tokens: most tokens of an answer.

    Raises:
        WeightError: it is not on this machine, or has no chat format.
    """

    def __init__(self, source: str, device: str = "cpu", dtype: str = "auto", tokens: int = 16) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = folder_of(source)
        self.name, self.device, self.tokens = source, device, tokens
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
        if not self.tokenizer.chat_template:
            raise WeightError(
                f"{source} has no chat format (chat_template): it is no instruction model. Use one that has, such as "
                "hf:mistralai/Mistral-7B-Instruct-v0.2."
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        dtype_ = dtype_of(dtype, device)
        self.model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype_)
        self.model.eval().to(device)

    @torch.inference_mode()
    def __call__(self, requests: Sequence[str], keep: Callable[[dict[int, str]], None]) -> None:
        talks = [[{"role": "user", "content": text}] for text in requests]
        inputs = self.tokenizer.apply_chat_template(
            talks, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
        ).to(self.device)
        pad = self.tokenizer.pad_token_id
        out = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.tokens, pad_token_id=pad)
        keep(dict(enumerate(answers(self.tokenizer, out, inputs["input_ids"]))))


class ChatServer:
    """A server on this machine or near it that speaks OpenAI's chat format (vLLM, llama.cpp, Ollama, TGI ...).

    It is asked directly, past any proxy, with temperature 0; the requests of a batch at the same time.

    Args:
        url: ``http://localhost:8000``, with or without ``/v1`` or ``/v1/chat/completions``.
        model: its name for the model.
        tokens: most tokens of an answer.
        timeout: seconds for one answer.
        tries: of one request, before the run is given up.
        wait: seconds after the first failure; doubled after each further one, up to a minute.

    Raises:
        ServerError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        model: str = "mistralai/Mistral-7B-Instruct-v0.2",
        tokens: int = 16,
        timeout: float = 60.0,
        tries: int = 6,
        wait: float = 1.0,
    ) -> None:
        if not re.match(r"https?://[^/]+", url):
            raise ServerError(f"--server {url!r} is no URL. Give one such as http://localhost:8000.")
        base = re.sub(r"(/v1)?(/chat/completions)?/*$", "", url)
        self.url, self.model, self.name = f"{base}/v1/chat/completions", model, f"{model} at a server"
        self.tokens, self.timeout, self.tries, self.wait = tokens, timeout, tries, wait
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __call__(self, requests: Sequence[str], keep: Callable[[dict[int, str]], None]) -> None:
        with ThreadPoolExecutor(max(1, len(requests))) as pool:
            number = {pool.submit(self.ask, text): i for i, text in enumerate(requests)}
            failed: ServerError | None = None
            for future in as_completed(number):
                try:
                    keep({number[future]: future.result()})
                except ServerError as e:
                    failed = failed or e  # the others' answers are kept first
            if failed:
                raise failed

    def ask(self, text: str) -> str:
        """One answer.

        Raises:
            ServerError: no usable answer after all tries, or one that another try cannot mend.
        """
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": text}]}
        body |= {"temperature": 0, "max_tokens": self.tokens, "stream": False}
        post = urllib.request.Request(self.url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        trouble = ""
        for n in range(self.tries):
            pause = min(60.0, self.wait * 2**n) * random.uniform(0.8, 1.2)
            try:
                with self.opener.open(post, timeout=self.timeout) as response:
                    return answer_in(response.read())
            except urllib.error.HTTPError as e:
                said = e.read(300).decode("utf-8", "replace").strip()
                trouble = f"HTTP {e.code} {e.reason}: {said}" if said else f"HTTP {e.code} {e.reason}"
                if e.code not in (408, 409, 425, 429) and e.code < 500:
                    raise ServerError(
                        f"{self.url} refuses the request ({trouble}). Check the URL, and --server-model "
                        f"{self.model!r} against the names at {self.url.removesuffix('/chat/completions')}/models."
                    ) from e
                told = e.headers.get("Retry-After", "")
                pause = min(60.0, float(told)) if told.isdigit() else pause
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as e:
                trouble = f"{type(e).__name__}: {e}"
            if n + 1 < self.tries:
                time.sleep(pause)
        raise ServerError(
            f"{self.url} gave no usable answer in {self.tries} tries; the last one: {trouble}. Check that the server "
            "runs and has room (a smaller --batch-size asks less at once), then run the same command again: finished "
            "answers are kept."
        )


def answer_in(body: bytes) -> str:
    """The text in a chat completion.

    Raises:
        ValueError, LookupError, TypeError: it holds none.
    """
    answer = json.loads(body)["choices"][0]["message"]["content"]
    if answer is None:
        return ""
    if not isinstance(answer, str):
        raise TypeError(f"the answer is a {type(answer).__name__}, not a text")
    return answer


def answers(tokenizer: Any, out: torch.Tensor, given: torch.Tensor | None) -> list[str]:
    """Texts of generated ids ``[B, L]``, without the request that some models repeat."""
    if given is not None and out.shape[1] >= given.shape[1] and torch.equal(out[:, : given.shape[1]], given):
        out = out[:, given.shape[1] :]
    return [t.strip() for t in tokenizer.batch_decode(out, skip_special_tokens=True)]


def folder_of(source: str) -> Path:
    """Folder of a model on this machine. Raises `WeightError`."""
    try:
        return snapshot(source)
    except WeightError as e:
        raise WeightError(str(e).replace("Detector", "Model", 1)) from e


def dtype_of(dtype: str, device: str) -> torch.dtype:
    if dtype != "auto":
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def one_line(text: str) -> str:
    return " ".join(text.split())
