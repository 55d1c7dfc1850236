"""The kinds of input that come from outside, good ones of each, and what is looked at when a damaged one is read.

A kind damages one of its files and names the readings that a user would do with it. A reading raises what the package
raises, `WrongError` when it accepts something and says other things than the file does, and `LostError` when samples
that nobody touched are gone. What is accepted is compared with what the good files gave.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from tests.robustness.mutators import damaged, json_text, png_of, strange_text, torn_json, torn_tar

__all__ = ["KINDS", "Kind", "LostError", "WrongError"]

Reading = tuple[str, Callable[[], None]]


class WrongError(AssertionError):
    """Accepted, but what came out is not what is there."""


class LostError(AssertionError):
    """Good samples are gone, and nobody says so."""


def need(ok: bool, what: str, kind: type[AssertionError] = WrongError) -> None:
    if not ok:
        raise kind(what)


def linked(source: Path, target: Path) -> None:
    """A copy of a folder whose files are hard links: a damaged one is written anew."""
    shutil.copytree(source, target, copy_function=os.link)


def put(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


class Kind:
    """A kind of input.

    Args:
        home: empty folder of the good files.
    """

    name = ""
    share = 1.0
    """Of the inputs, against other kinds'."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.secret = str(home / "outside" / "secret.tar")
        (home / "outside").mkdir(parents=True)
        Path(self.secret).write_bytes(b"secret")
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        """Write damaged files to a folder and say what to do with them."""
        raise NotImplementedError


# ---- shards


class Shards(Kind):
    """A set whose shard is damaged; in most cases its index was made to fit, as a stranger would."""

    name = "tar"

    def build(self) -> None:
        from tests.data.make import SPEC, painted, robust, sample, toy_set

        samples = [sample(i) if i % 3 else robust(i) for i in range(12)]
        del painted
        self.spec = SPEC
        self.index = toy_set(self.home / "set", 12, per_shard=4, samples=samples)
        self.members = [
            [(i.name, tar.extractfile(i).read()) for i in tar]  # type: ignore[union-attr]
            for tar in (self.open(f) for f in sorted(self.index.parent.glob("*.tar")))
        ]
        self.good = self.items(self.index)
        self.keys = {key.partition("@")[0] for key in self.good}

    def open(self, path: Path) -> Any:
        import tarfile

        return tarfile.open(path)

    def items(self, index: Path, **options: Any) -> dict[str, Any]:
        from avloc.data.indexed import EvalSet

        data = EvalSet(index, self.spec, truth_size=16, allow_missing=10**6, **options)
        found = {}
        for i in range(len(data)):
            item = data[i]
            if item.index >= 0:
                need(item.key not in found, f"{item.key} twice")
                found[item.key] = item
        return found

    def same(self, item: Any, spoilt: set[str]) -> None:
        key = item.key.partition("@")[0].partition(".")[0]
        need(bool(np.isfinite(item.audio).all()) and item.audio.shape == (self.spec.samples,), f"sound of {key}")
        need(item.image.shape == (3, 16, 16) and item.image.dtype == np.uint8, f"picture of {key}")
        if key in spoilt:
            return
        good = self.good.get(item.key)
        need(good is not None, f"{item.key} is no record of the set")
        need(bool((good.audio == item.audio).all()), f"sound of {key}")

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        linked(self.index.parent, folder / "toy")
        index = folder / "toy" / self.index.name
        shard = random.randrange(len(self.members))
        content = json.loads(self.index.read_text())
        told = content["shards"][shard]
        data, spoilt = torn_tar(self.members[shard], random, self.secret)
        put(folder / "toy" / told["file"], data)
        if random.random() < 0.7:
            told["bytes"] = len(data)
            put(index, json.dumps(content).encode())
        yield "evaluation", lambda: self.evaluate(index, spoilt)
        yield "training", lambda: self.train(index, spoilt)
        if random.random() < 0.3:
            yield "audit", lambda: self.audit(index, spoilt)
        if random.random() < 0.3:
            yield "phrases", lambda: self.names(index, spoilt)
        yield "verified", lambda: self.verified(index, told["sha256"], data)

    def evaluate(self, index: Path, spoilt: set[str]) -> None:
        found = self.items(index)
        for item in found.values():
            self.same(item, spoilt)
        gone = {k for k in self.good if k.partition("@")[0] not in spoilt} - found.keys()
        need(not gone, f"{sorted(gone)[:3]} are gone", LostError)

    def train(self, index: Path, spoilt: set[str]) -> None:
        from avloc.data.index import read_index
        from avloc.data.stream import TrainStream

        stream = TrainStream(read_index(index), self.spec, 2, buffer=4)
        seen = set()
        for batch in stream:
            need(bool(torch.isfinite(batch.audio).all()), "sound in training")
            need(len(batch) == 2, "a batch is not full")
            for key, wave in zip(batch.key, batch.audio, strict=True):
                seen.add(key)
                if key not in spoilt:
                    need(key in self.good, f"{key} is no record of the set")
                    need(bool((torch.from_numpy(self.good[key].audio) == wave).all()), f"sound of {key}")
        need(not self.keys - spoilt - seen, f"{sorted(self.keys - spoilt - seen)[:3]} are not trained on", LostError)

    def audit(self, index: Path, spoilt: set[str]) -> None:
        from avloc.audit.lists import read_list

        found = {f"toy__{row.id}" for row in read_list(index, "test").rows}
        need(self.keys - spoilt <= found, "records that audit does not see", LostError)

    def names(self, index: Path, spoilt: set[str]) -> None:
        from avloc.data.index import read_index
        from data_prep.object_phrases import names_of

        need(self.keys - spoilt <= set(names_of(read_index(index)).all), "records without a phrase", LostError)

    def verified(self, index: Path, sha256: str, data: bytes) -> None:
        import hashlib

        from avloc.data.index import read_index, verify

        same = hashlib.sha256(data).hexdigest() == sha256
        verify(read_index(index))
        need(same, "another file has the promised SHA-256")


class Index(Shards):
    """A set whose index JSON is strange: shards elsewhere, programs for names, counts of nothing."""

    name = "index"

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        linked(self.index.parent, folder / "toy")
        index = folder / "toy" / self.index.name
        content = json.loads(self.index.read_text())
        if random.random() < 0.3:
            shard = random.choice(content["shards"])
            key = random.choice([*shard])
            shard[key] = (
                strange_text(random, self.secret) if key in ("file", "sha256") else random.choice([0, 1, -1, 5])
            )
            put(index, json.dumps(content).encode())
        elif random.random() < 0.8:
            put(index, json_text(torn_json(content, random, self.secret), random))
        else:
            put(index, damaged(self.index.read_bytes(), random))
        yield "evaluation", lambda: self.evaluate(index, set())
        yield "training", lambda: self.train(index, set())
        if random.random() < 0.3:
            yield "audit", lambda: self.audit(index, set())
        if random.random() < 0.3:
            yield "phrases", lambda: self.names(index, set())


class Records(Shards):
    """What one ``meta.json`` says is strange."""

    name = "record"

    def build(self) -> None:
        from tests.data.make import SPEC, clip, duet, painted, robust, sample

        self.spec = SPEC
        self.samples = [sample(0), painted(1), robust(2), clip(3), duet(4), sample(5, tags=("x",), group="g")]

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        sample = random.choice(self.samples)
        data = json_text(torn_json(json.loads(sample.record.to_json()), random, self.secret), random)
        if random.random() < 0.05:
            content = json.loads(sample.record.to_json())
            content["targets"] = content["targets"] * 200_000
            data = json.dumps(content).encode()
        yield "sample", lambda: self.make(data, sample)

    def make(self, data: bytes, sample: Any) -> None:
        from avloc.data.items import collate, make_item
        from avloc.data.schema import Record, Sample

        record = Record.from_json(data)
        again = Record.from_json(record.to_json())
        need(again == record, "a record changes when it is written and read")
        for condition in ["", *record.conditions]:
            for frame in record.scored or [0]:
                item = make_item(Sample(record, sample.members), self.spec, frame, None, 16, condition=condition)
                need(bool(np.isfinite(item.audio).all()) and item.audio.shape == (500,), "sound")
                need(item.truth is None or bool(((item.truth >= 0) & (item.truth <= 1)).all()), "truth beyond 0..1")
                collate([item, item])


# ---- pictures, sounds, videos


class Pictures(Kind):
    name = "picture"

    def build(self) -> None:
        random = np.random.default_rng(0)
        colour = Image.fromarray(random.integers(0, 255, (40, 48, 3), np.uint8))
        grey = Image.fromarray(random.integers(0, 255, (40, 48), np.uint8))
        forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
            (colour, "JPEG", {"quality": 90}),
            (colour, "JPEG", {"quality": 80, "progressive": True}),
            (grey, "JPEG", {}),
            (colour, "PNG", {}),
            (grey, "PNG", {}),
            (colour.quantize(16), "PNG", {}),
            (colour.convert("RGBA"), "PNG", {}),
            (Image.fromarray(random.integers(0, 60000, (40, 48)).astype(np.uint16)), "PNG", {}),
            (grey.convert("1"), "PNG", {}),
        ]
        self.files, self.others = [], []
        for image, form, options in forms:
            data = io.BytesIO()
            image.save(data, form, **options)
            self.files.append(data.getvalue())
        for form in ("GIF", "BMP", "TIFF", "WEBP", "PPM", "EPS", "PDF", "ICO", "TGA", "JPEG2000", "PCX", "SGI"):
            data = io.BytesIO()
            colour.save(data, form)
            self.others.append(data.getvalue())
        self.others += [
            png_of(100_000, 100_000),
            png_of(60_000, 1),
            png_of(2**31 - 1, 1),
            png_of(0, 5),
            png_of(9000, 9000),
        ]

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        data = random.choice(self.others) if random.random() < 0.15 else damaged(random.choice(self.files), random)
        path = folder / f"x{random.choice(['.jpg', '.png'])}"
        put(path, data)
        yield "as stored", lambda: self.stored(data)
        yield "as seen", lambda: self.seen(data)
        yield "loose", lambda: self.loose(path)

    def stored(self, data: bytes) -> None:
        from avloc.data.decoding import decode_image

        image = decode_image(data, "x")
        self.check(image)

    def check(self, image: Image.Image) -> None:
        need(image.mode == "RGB", image.mode)
        need(0 < image.width * image.height <= 100_000_000, str(image.size))
        need(np.asarray(image).shape == (image.height, image.width, 3), "pixels")

    def seen(self, data: bytes) -> None:
        from avloc.data.decoding import decode_image
        from avloc.data.views import fit_image
        from avloc.types import InputSpec

        image = decode_image(data, "x")
        for how in ("squash", "crop", "pad"):
            seen = fit_image(image, InputSpec(image_size=32, resize=how))
            need(seen.shape == (3, 32, 32) and seen.dtype == np.uint8, f"{how} {seen.shape}")

    def loose(self, path: Path) -> None:
        from avloc.data.media import read_picture

        self.check(read_picture(path))


class Sounds(Kind):
    name = "sound"

    def build(self) -> None:
        from tests.data.make import sound

        wave = 0.5 * np.sin(np.arange(8000) / 10)
        both = np.stack([wave, 0.3 * wave], 1)
        self.files = [
            sound(wave, 16000),
            sound(both, 16000),
            sound(wave, 16000, "WAV"),
            sound(both, 16000, "WAV", "FLOAT"),
            sound(wave, 16000, "OGG", "VORBIS"),
            sound(wave, 16000, "OGG", "OPUS"),
            sound(wave, 16000, "MP3", "MPEG_LAYER_III"),
        ]

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        data = damaged(random.choice(self.files), random)
        path = folder / f"x{random.choice(['.flac', '.wav', '.ogg', '.mp3'])}"
        put(path, data)
        yield "shard", lambda: self.shard(data)
        yield "loose", lambda: self.loose(path)

    def shard(self, data: bytes) -> None:
        from avloc.data.decoding import decode_audio, fit_audio
        from avloc.types import InputSpec

        wave = decode_audio(data, "x", 16000)
        need(bool(np.isfinite(wave).all()) and wave.ndim == 2 and len(wave) > 0, "sound")
        need(fit_audio(wave, InputSpec(sample_rate=16000, seconds=1.0)).shape == (16000,), "window")

    def loose(self, path: Path) -> None:
        from avloc.data.media import read_sound

        wave, rate = read_sound(path)
        need(wave.shape[1] in (1, 2) and rate > 0, f"{wave.shape} {rate}")
        need(bool(np.isfinite(wave).all()), "sound")


class Videos(Kind):
    name = "video"

    def build(self) -> None:
        from tests.data.clips import write_clip

        self.files = [
            write_clip(self.home / f"clip{s}", 1.0, size=(32, 32)).read_bytes() for s in (".mp4", ".mkv", ".avi", ".ts")
        ]

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        path = folder / f"clip{random.choice(['.mp4', '.mkv', '.avi', '.ts', '.webm'])}"
        put(path, damaged(random.choice(self.files), random))
        yield "clip", lambda: self.clip(path)
        if random.random() < 0.3:
            yield "length", lambda: self.length(path)

    def clip(self, path: Path) -> None:
        from avloc.data.media import read_clip

        clip = read_clip(path, seconds=10.0)
        need(bool(np.isfinite(clip.audio).all()) and clip.rate == 16000, "sound")
        need(len(clip.audio) <= 10 * 16000 + 1, "longer than asked for")
        need(clip.frame.mode == "RGB" and clip.frame.width * clip.frame.height <= 100_000_000, "picture")

    def length(self, path: Path) -> None:
        from avloc.data.media import duration

        need(0 < duration(path) < 1e12, "length")


class Archives(Kind):
    """A packed archive of clips, as people share them."""

    name = "archive"

    def build(self) -> None:
        from tests.data.clips import write_clip

        names = [f"abcdefghij{c}_00000{i}.mp4" for i, c in enumerate("AEIMQ")]
        clip = write_clip(self.home / "clip.mp4", 0.5, size=(32, 32)).read_bytes()
        self.members = [(name, clip + bytes([i])) for i, name in enumerate(names)]

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        data, spoilt = torn_tar(self.members, random, self.secret)
        packed = random.random() < 0.6
        if packed:
            data = gzip.compress(data, 1, mtime=0)
            if random.random() < 0.4:
                data, spoilt = damaged(data, random), {name.partition(".")[0] for name, _ in self.members}
        put(folder / ("clips.tar.gz" if packed else "clips.tar"), data)
        yield "library", lambda: self.library(folder, spoilt)

    def library(self, folder: Path, spoilt: set[str]) -> None:
        from avloc.data.media import Library, MediaError
        from avloc.data.media.files import open_bytes

        library = Library(folder, folder / "notes")
        for name, data in self.members:
            stem = name.partition(".")[0]
            try:
                with open_bytes(library.find(stem[:11], float(stem[12:]))) as f:
                    read = f.read()
            except MediaError:
                need(stem in spoilt or bool(library.remarks), f"{name} is gone", LostError)
                continue
            need(stem in spoilt or read == data, f"{name} is another file")
            need(read != b"secret", "a file outside of the archive is read")


# ---- stored maps and features, masks


class Maps(Kind):
    name = "map"

    def build(self) -> None:
        from tests.data.make import png

        maps = np.random.default_rng(0).random((2, 9, 9)).astype(np.float16)
        self.files = {}
        for name, save in (("npz", np.savez), ("npy", np.save)):
            data = io.BytesIO()
            save(data, **({"heatmap": maps, "confidence": maps.max((1, 2))} if name == "npz" else {"arr": maps}))
            self.files[f".{name}"] = data.getvalue()
        self.files[".png"] = png((255 * maps[0]).astype(np.uint8))

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        suffix = random.choice([*self.files])
        path = folder / f"k{suffix}"
        data = damaged(self.files[suffix], random)
        if suffix == ".npy" and random.random() < 0.2:
            shape = random.choice(["(10**9, 10**6)", "(1, 2, 3, 4)", "()", "(-1,)", "(99999999999, 9, 9)"])
            header = (
                f"{{'descr': '{random.choice(['<f2', '|O', '<f8', '|S9'])}', 'fortran_order': False, 'shape': {shape}}}"
            )
            raw = header.encode().ljust(117) + b"\n"
            data = b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + bytes(100)
        put(path, data)
        yield "map", lambda: self.read(path)

    def read(self, path: Path) -> None:
        from avloc.methods.baselines.stored_maps import StoredMaps

        method = StoredMaps(str(path.parent))
        found = method.read("k")
        need(found.heatmap.ndim == 3 and bool(np.isfinite(found.heatmap).all()), "map")


class Features(Kind):
    """A store of features: part notes, arrays, the note about it all."""

    name = "store"

    def build(self) -> None:
        from avloc.data.stored import FeatureStore

        random = torch.Generator().manual_seed(0)
        self.sources, self.key = ["a" * 64, "b" * 64], "0123456789abcdef" * 4
        writer = FeatureStore.write(self.home / "toy-train-x", self.key, {"method": "x"})
        for number in range(2):
            with writer.part(number, self.sources[number]) as part:
                rows = {"a": torch.rand(4, 3, 2, generator=random), "ids": torch.arange(4, dtype=torch.int32)[:, None]}
                part.add(
                    [f"toy__{number}{i}" for i in range(4)], rows | {"free": [torch.rand(i + 1) for i in range(4)]}
                )
        self.folder = writer.folder
        self.good = self.rows(self.folder)

    def rows(self, folder: Path) -> dict[str, dict[str, np.ndarray]]:
        from avloc.data.stored import FeatureStore

        store = FeatureStore.open(folder.with_name("toy-train-x"), self.key, {"method": "x"}, self.sources)
        return {key: {k: np.array(v) for k, v in store.row(key).items()} for key in store.places}

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        place = folder / self.folder.name
        linked(self.folder, place)
        file = random.choice(sorted(place.iterdir()))
        data = file.read_bytes()
        if file.suffix == ".json" and random.random() < 0.7:
            data = json_text(torn_json(json.loads(data), random, self.secret), random)
        else:
            data = damaged(data, random)
        put(file, data)
        yield "rows", lambda: self.check(place, file.name)

    def check(self, folder: Path, touched: str) -> None:
        found = self.rows(folder)
        part = touched.partition(".")[0]
        for key, rows in self.good.items():
            mine = int(key[5:6])
            if part == f"{mine:06d}" or part == "store":
                continue
            need(key in found, f"{key} is gone", LostError)
            need(all((found[key][k] == v).all() for k, v in rows.items()), f"row of {key}")
        for key, rows in found.items():
            need(all(bool(np.isfinite(v).all()) for v in rows.values()), f"row of {key} is not finite")
            need({k: v.shape[1:] for k, v in rows.items()} == {"a": (2,), "ids": (), "free": ()}, f"shapes of {key}")


class Pickles(Kind):
    """Masks that a data set publishes as pickled arrays."""

    name = "pickle"

    def build(self) -> None:
        mask = np.random.default_rng(0).random((20, 20)) > 0.5
        self.files = [pickle.dumps(a, protocol) for a in (mask, mask.astype(float)) for protocol in (2, 4, 5)]

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        path = folder / "mask.pkl"
        put(path, damaged(random.choice(self.files), random))
        yield "array", lambda: self.read(path)

    def read(self, path: Path) -> None:
        from data_prep.array_pickle import read_array

        need(read_array(path).dtype.kind in "biuf", "dtype")


# ---- results and reports

WORKBOOK = re.compile(r"^[=+@\t\r]|^-(?![\d.])")


class Results(Kind):
    """The folder of a tested run that somebody sent: JSON, pictures, and what a report makes of them."""

    name = "results"

    def build(self) -> None:
        from tests.data.make import jpeg, sound
        from tests.report.fabricated import entry, per_sample, results

        n = 20
        values = np.random.default_rng(0).random((n, 1))
        keys = [f"vggss__s{i:03d}" for i in range(n)]
        samples = {"key": keys, "top50:ciou": values, "truth_area": [0.2] * n, "label": ["dog", "cat"] * 10}
        self.run = self.home / "runs" / "mine" / "version_0"
        row = {"vggss/top50": {"ciou": 0.5, "auc": 0.5, "curve": [0.1, 0.5, 0.9]}}
        scores = entry({"model": row, "shuffled sound": row}, ("vggss/top50", "ciou"), n, "vggss", notes=["a note"])
        scores |= {"counted": {"model": n, "shuffled sound": n}, "protocols": ["vggss/top50"]}
        scores |= {"missing": {"model": [], "shuffled sound": []}}
        about = {"experiment": "mine", "reproduces": None, "seed": 0, "method": "a.B", "git": {"commit": "0" * 40}}
        about |= {"parameters": {"total": 5, "trainable": 3}, "precision": "32", "processes": 1, "seeds": [0]}
        results(self.run, {"vggss": scores}, None, **about)
        per_sample(self.run, {("vggss", "model"): samples, ("vggss", "shuffled sound"): samples})
        panels = self.run / "panels"
        panels.mkdir()
        told = []
        for i in range(4):
            for name, data in (
                (f"p{i}.jpg", jpeg(9)),
                (f"t{i}.jpg", jpeg(8)),
                (f"s{i}.wav", sound(values[:, 0], 16000, "WAV")),
            ):
                (panels / name).write_bytes(data)
            told.append(
                dict(set="vggss", index=i, key=keys[i], label="dog", negative="", sounding=True, overlap=0.4, share=0.2)
                | dict(confidence=0.5, picture=f"p{i}.jpg", true=f"t{i}.jpg", heat=f"t{i}.jpg", sound=f"s{i}.wav")
                | dict(heard_as=[["a dog", 0.3]], shows="", sources=[["dog", "#ff0000"]])
            )
        (panels / "panels.0.json").write_text(json.dumps({"processes": 1, "samples": told}))
        (self.home / "outside" / "secret.jpg").write_bytes(b"SECRETPICTURE")
        self.secret = str(self.home / "outside" / "secret.jpg")
        self.jsons = ["results.json", "run.json", "panels/panels.0.json"]

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        run = folder / "run"
        linked(self.run, run)
        name = random.choice(self.jsons)
        data = (run / name).read_bytes()
        if random.random() < 0.85:
            data = json_text(torn_json(json.loads(data), random, self.secret), random)
        else:
            data = damaged(data, random)
        put(run / name, data)
        yield "report", lambda: self.report(run, folder / "out")
        yield "rescore", lambda: self.rescore(run)

    def report(self, run: Path, out: Path) -> None:
        from rich.console import Console

        from avloc.evaluation.protocols import PROTOCOLS
        from avloc.evaluation.results import numbers_of_some
        from avloc.report.tables import report

        screen = io.StringIO()
        console = Console(file=screen, force_terminal=True, width=160)
        report([run], out, rescore=numbers_of_some, console=console, protocols=PROTOCOLS)
        self.inert(out, screen.getvalue())

    def inert(self, out: Path, screen: str) -> None:
        """That nothing that a file said became markup, a formula, a control sequence or a way out."""
        import base64
        import csv

        page = (out / "report.html").read_text(encoding="utf-8")
        need("<script>alert" not in page and "<img src=x" not in page, "HTML of a stranger in report.html")
        need(base64.b64encode(b"SECRETPICTURE").decode()[:12] not in page, "a file outside of the run is shown")
        shown = re.sub(r"\x1b\[[0-9;]*m", "", screen)
        need("\x1b" not in shown and "\x07" not in shown, "a control sequence on the screen")
        need("\x1b[31mred" not in screen, "a control sequence on the screen")
        text = (out / "report.md").read_text(encoding="utf-8")
        need("<script>" not in text and "<img src" not in text, "HTML of a stranger in report.md")
        width = 0
        for line in text.splitlines():
            cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
            need(not width or not cells or cells == width, f"a row of another width in report.md: {line[:80]}")
            width = cells
        latex = (out / "report.tex").read_text(encoding="utf-8")
        need("\\input{" not in latex, "a command of a stranger in report.tex")
        for line in latex.splitlines():
            need(
                line.strip() == "" or line.lstrip()[0] in "\\%&" or line.rstrip().endswith("\\\\"),
                f"LaTeX: {line[:80]}",
            )
        with (out / "report.csv").open(newline="", encoding="utf-8") as f:
            for row in csv.reader(f):
                need(not any(WORKBOOK.match(cell) for cell in row), f"a formula in report.csv: {row}")

    def rescore(self, run: Path) -> None:
        from avloc.evaluation.results import rescore

        before = (run / "results.json").read_bytes()
        try:
            rescore(run)
        except Exception:
            need((run / "results.json").read_bytes() == before, "a refused rescore changed results.json", LostError)
            raise
        json.loads((run / "results.json").read_text())


class Tables(Results):
    """``per_sample.parquet`` and a table of phrases."""

    name = "parquet"

    def build(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        super().build()
        pq.write_table(pa.table({"key": ["a", "b"], "phrase": ["x", None]}), self.home / "phrases.parquet")

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if random.random() < 0.2:
            path = folder / "phrases.parquet"
            put(path, damaged((self.home / "phrases.parquet").read_bytes(), random))
            yield "phrases", lambda: self.phrases(path)
            return
        run = folder / "run"
        linked(self.run, run)
        path = run / "per_sample.parquet"
        if random.random() < 0.5:
            put(path, damaged(path.read_bytes(), random))
        else:
            columns: dict[str, Any] = pq.read_table(path).to_pydict()
            name = random.choice([*columns])
            n = len(columns[name])
            kind = random.randrange(7)
            if kind == 0:
                del columns[name]
            elif kind == 1:
                columns[name] = [strange_text(random).encode("utf-8", "replace").decode() for _ in range(n)]
            elif kind == 2:
                columns[name] = [random.choice([None, 0.5, float("nan"), 1e308, -1.0]) for _ in range(n)]
            elif kind == 3:
                columns[name] = [random.choice([None, [], [0.5], [0.1, 0.2], [None]]) for _ in range(n)]
            elif kind == 4:
                columns[name] = [None] * n
            elif kind == 5:
                columns = {k: v[:0] for k, v in columns.items()}
            else:
                columns[name] = [2**40 + i for i in range(n)]
            path.unlink()
            pq.write_table(pa.table(columns), path)
        yield "report", lambda: self.report(run, folder / "out")
        yield "rescore", lambda: self.rescore(run)

    def phrases(self, path: Path) -> None:
        from avloc.data.index import Index as SetIndex
        from avloc.data.phrases import read_phrases

        found = read_phrases(str(path), SetIndex("toy", "train", 0, [], url="x.json"))
        assert found.table is not None
        need(all(isinstance(k, str) and isinstance(v, str) for k, v in found.table.items()), "phrases")


# ---- lists, YAML


def converted(read: Callable[[], Any]) -> Any:
    """What a converter reads: it tells a ValueError's text, and so does this."""
    from avloc.errors import UsageError

    try:
        return read()
    except ValueError as e:
        raise UsageError(str(e)) from e


class Lists(Kind):
    """Lists of ids, names and texts as people write them."""

    name = "list"

    def build(self) -> None:
        ids = [f"abcdefghij{c}_{i:06d}" for i, c in enumerate("AEIMQUYcgkosw048")]
        rows = "".join(f"{i},{n * 10},dog barking,train\n" for n, i in enumerate(ids))
        annotations = [{"file": i, "class": "dog", "bbox": [[0.1, 0.1, 0.5, 0.5]]} for i in ids]
        self.files = {
            "ids.txt": "\n".join(ids).encode(),
            "rows.csv": rows.encode(),
            "head.csv": ("id,start,label\n" + rows.replace(",train", "")).encode(),
            "quoted.csv": "".join(f'"{i}","a ""b"", c"\n' for i in ids).encode(),
            "boxes.json": json.dumps(annotations).encode(),
            "texts.jsonl": b"".join(json.dumps({"key": i, "caption": "a dog"}).encode() + b"\n" for i in ids),
            "texts.csv": ("key,caption\n" + "".join(f"{i},a dog\n" for i in ids)).encode(),
        }
        self.ids = ids

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        name = random.choice([*self.files])
        data = self.files[name]
        if name == "boxes.json" and random.random() < 0.5:
            data = json_text(torn_json(json.loads(data), random, self.secret), random)
        elif random.random() < 0.3:
            text = data.decode().splitlines()
            text[random.randrange(len(text))] = random.choice(['"open', "a,b,c,d,e", "", ",", strange_text(random)])
            data = "\n".join(text).encode("utf-8", "surrogatepass")
        else:
            data = damaged(data, random)
        path = folder / name
        put(path, data)
        if name.startswith("texts"):
            yield "texts", lambda: self.texts(path)
        else:
            yield "audit", lambda: self.audit(path)
            yield "lines", lambda: self.lines(path)
        if name == "boxes.json":
            yield "boxes", lambda: self.boxes(path)

    def audit(self, path: Path) -> None:
        from avloc.audit.lists import read_list

        need(all(isinstance(row.id, str) and row.clips for row in read_list(path, "train").rows), "rows")

    def lines(self, path: Path) -> None:
        from avloc.report.keys import read_keys

        need(all(isinstance(key, str) and key for key in read_keys(path)), "keys")

    def texts(self, path: Path) -> None:
        from data_prep.object_phrases import Names, read_texts

        found = converted(lambda: read_texts(path, "caption", Names([self.ids], {})))
        need(set(found) <= set(self.ids) and all(isinstance(v, str) for v in found.values()), "texts")

    def boxes(self, path: Path) -> None:
        from data_prep.vggsound import read_boxes

        need(all(isinstance(key, str) for key in converted(lambda: read_boxes(path))), "boxes")


class Experiments(Kind):
    """A YAML that somebody sent: read by the commands that look at it."""

    name = "yaml"
    share = 0.15  # each is a command

    def build(self) -> None:
        from avloc.names import experiments_folder

        self.texts = [(experiments_folder() / f"{n}.yaml").read_bytes() for n in ("quickstart",)]
        self.small = yaml.safe_load(
            "{model: {class_path: avloc.methods.baselines.controls.CentreBox, init_args: {}}, data: {test: [toy]}}"
        )

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        path = folder / "mine.yaml"
        if random.random() < 0.5:
            data = damaged(random.choice(self.texts), random)
        else:
            content = torn_json(yaml.safe_load(random.choice(self.texts)), random, self.secret)
            data = yaml.safe_dump(content).encode() if not too_large(content) else json.dumps(content).encode()
        if random.random() < 0.1:
            data += random.choice(
                [b"\nx: !!python/object/apply:os.system ['touch ran']\n", b"\na: &a [*a]\n", b"\n\xff\n"]
            )
            data += b"\n".join(
                b"b%d: &b%d [%s]" % (i, i, b"*b%d, *b%d" % (i - 1, i - 1) if i else b"x") for i in range(3)
            )
        put(path, data)
        # `train` starts an interpreter for `fit`, which takes long.
        commands = [["store", "-c"], ["weights", "--experiment"], ["fit", "-c"], ["train"]]
        command = [*random.choices(commands, (3, 3, 3, 1))[0], str(path)]
        command += ["--data.none=1"] if command[0] in ("train", "fit") else []
        yield command[0], lambda: self.command(command)

    def command(self, words: list[str]) -> None:
        """Through the command line: what it exits with, and that it shows no trace."""
        from avloc.cli import main

        out = io.StringIO()
        code: object = 0
        with redirect_stdout(out), redirect_stderr(out):
            try:
                main(words)
            except SystemExit as e:
                code = e.code
        text = out.getvalue()
        need("Traceback (most recent call last)" not in text, f"a trace: {text[-300:]}")
        need(code in (0, None) or len(text.strip()) > 20, f"exit {code} without a sentence: {text!r}")


def too_large(content: Any) -> bool:
    try:
        yaml.safe_dump(content)
    except (yaml.YAMLError, RecursionError, ValueError, UnicodeError):
        return True
    return False


# ---- weights and checkpoints


class Weights(Kind):
    name = "weights"

    def build(self) -> None:
        from safetensors.torch import save_file

        torch.manual_seed(0)
        self.module = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
        self.nan = self.module.state_dict() | {"0.weight": torch.full((4, 5), np.nan)}
        state = self.module.state_dict()
        save_file(state, self.home / "a.safetensors", {"config": "{}"})
        torch.save(state, self.home / "b.pt")
        torch.save({"state_dict": state, "epoch": 3}, self.home / "c.pth")
        torch.save(state, self.home / "d.pth", _use_new_zipfile_serialization=False)
        torch.jit.script(self.module.eval()).save(str(self.home / "e.pt"))
        self.files = sorted(p for p in self.home.iterdir() if p.is_file())

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        good = random.choice(self.files)
        path = folder / good.name
        data = good.read_bytes()
        if random.random() < 0.1:
            content: Any = random.choice([[1], 5, None, {"a": 1}, {1: torch.zeros(2)}, self.nan])
            out = io.BytesIO()
            torch.save(content, out)
            data = out.getvalue()
        else:
            data = damaged(data, random)
        put(path, data)
        yield "state", lambda: self.read(path)
        if path.name == "e.pt":
            yield "program", lambda: self.program(path)

    def read(self, path: Path) -> None:
        from avloc.weights import load_into, read_metadata, read_state

        read_metadata(path)
        state = read_state(path)
        state = state.get("state_dict", state)
        module = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
        load_into(module, state, path.name)
        need(not any(bool(v.isnan().any()) for v in module.state_dict().values()), "weights that are no numbers")

    def program(self, path: Path) -> None:
        from avloc.backbones.openclip import read_archive

        need(all(isinstance(v, torch.Tensor) for v in read_archive(path).values()), "tensors")


class Checkpoints(Kind):
    name = "checkpoint"

    def build(self) -> None:
        from tests.experiment.fading import Fading

        method = Fading(4)
        self.good = self.home / "good.ckpt"
        content: dict[str, Any] = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}
        content |= {"hparams_name": "kwargs", "epoch": 1, "global_step": 7, "pytorch-lightning_version": "2.6.0"}
        method.on_save_checkpoint(content)
        torch.save(content, self.good)
        self.content = content

    def readings(self, folder: Path, random: Random) -> Iterator[Reading]:
        path = folder / "x.ckpt"
        if random.random() < 0.4:
            out = io.BytesIO()
            torch.save(torn_tensors(self.content, random), out)
            put(path, out.getvalue())
        else:
            put(path, damaged(self.good.read_bytes(), random))
        yield "method", lambda: self.load(path)

    def load(self, path: Path) -> None:
        from avloc.methods.load import load_method

        try:
            method = load_method(path, "cpu")
        except Exception as e:
            need(
                "weights_only" not in f"{e} {e.__cause__!r}",
                f"advice to load unsafely: {e}",
            )
            raise
        need(type(method).__name__ == "Fading", type(method).__name__)
        need(not any(bool(v.isnan().any()) for v in method.state_dict().values()), "weights that are no numbers")


def torn_tensors(content: dict[str, Any], random: Random) -> Any:
    """A checkpoint's content with one strange entry."""
    content = dict(content) | {"state_dict": dict(content["state_dict"]), "avloc": dict(content["avloc"])}
    where = random.choice([content, content["state_dict"], content["avloc"], content["hyper_parameters"]])
    if not where:
        where = content
    key = random.choice([*where])
    values = [None, 5, "x", [], {}, strange_text(random), torch.zeros(3), torch.full((), np.nan), {"a": [1]}]
    values += ["os.system", "subprocess.Popen", "avloc.cli.main", "antigravity.x", "tests.data.make.sample"]
    value = random.choice(values)
    if random.random() < 0.2:
        where.pop(key)
    else:
        where[key] = value
    return content


KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (
        *(Shards, Index, Records, Pictures, Sounds, Videos, Archives, Maps, Features, Pickles),
        *(Results, Tables, Lists, Experiments, Weights, Checkpoints),
    )
}
