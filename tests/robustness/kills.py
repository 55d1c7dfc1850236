"""What writes is killed at any moment: what stood before stands, what is there is whole, and going on gives what an
unbroken run gives.

A victim does its work in a process of its own, which is killed (SIGKILL) at a drawn moment. Then is looked whether
anything that can be read says what is not there or what was there is gone, whether processes of the killed one live on,
and whether the same work, begun again, ends with the same files and no others.
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

from tests.robustness.campaign import Tally
from tests.robustness.kinds import LostError, WrongError, need

__all__ = ["VICTIMS", "kill_some"]

PATIENCE = 60.0
"""Seconds that a process has for its whole work, and that what a killed one started has to end."""
MEMORY = Path("/dev/shm")


class Victim:
    """A kind of work.

    Args:
        home: empty folder of what the work needs.
    """

    name = ""
    needs: tuple[str, ...] = ()
    """Modules that are imported once, before its processes are forked."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.build()

    def build(self) -> None:
        """Make what the work needs."""

    def before(self, folder: Path) -> None:
        """Write what stands before the work."""

    def work(self, folder: Path) -> None:
        """The work, from wherever it was left."""
        raise NotImplementedError

    def look(self, folder: Path) -> None:
        """Refuse what a killed process must not leave."""

    def result(self, folder: Path) -> Any:
        """What an unbroken one leaves: of every file its SHA-256, unless a kind knows better."""
        return {
            str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*"))
            if p.is_file() and p.suffix != ".lock"
        }


class Shards(Victim):
    name = "shards"
    needs = ("tests.data.make",)

    def work(self, folder: Path) -> None:
        from avloc.data.shards import write_shards
        from tests.data.make import sample

        write_shards(folder / "toy", "toy", "train", [sample(i) for i in range(60)], records_per_shard=4)

    def look(self, folder: Path) -> None:
        from avloc.data.index import read_index, read_shard

        for path in (folder / "toy").glob("[!.]*.tar"):
            need(len(list(read_shard(str(path)))) == 4, f"{path.name} is no whole shard", LostError)
        if (index := folder / "toy" / "toy-train.json").exists():
            told = read_index(str(index))
            need(sum(s.count for s in told.shards) == 60, "an index of half a set", LostError)


class Converter(Victim):
    name = "converter"
    needs = ("data_prep.vggsound",)

    def build(self) -> None:
        from tests.data.clips import write_clip

        clip = write_clip(self.home / "clip.mp4", 0.5, size=(32, 32))
        names = [f"abcdefghij{c}" for c in "AEIMQUYcgk"]
        for n, name in enumerate(names):
            os.link(clip, self.home / f"{name}_{n:06d}.mp4")
        (self.home / "list.csv").write_text("".join(f"{name},{n},dog,train\n" for n, name in enumerate(names)))

    def work(self, folder: Path) -> None:
        from data_prep.vggsound import main

        options = ["--videos", self.home, "--csv", self.home / "list.csv", "--out", folder, "--jobs", 1]
        need(main([str(o) for o in [*options, "--records-per-shard", 2]]) == 0, "the converter's exit code")

    def look(self, folder: Path) -> None:
        from avloc.data.index import read_shard

        for path in (folder / "vggsound").glob("[!.]*.tar"):
            need(len(list(read_shard(str(path)))) == 2, f"{path.name} is no whole shard", LostError)


class Checkpoints(Victim):
    """One checkpoint written over another, with the temporary folder on another file system."""

    name = "checkpoint"
    needs = ("avloc.experiment.checkpoints",)

    def content(self, n: int) -> dict[str, Any]:
        import torch

        return {"n": n, "state_dict": {"w": torch.full((1_000_000,), float(n))}}

    def save(self, folder: Path, n: int) -> None:
        from avloc.experiment.checkpoints import AtomicCheckpoints

        AtomicCheckpoints().save_checkpoint(self.content(n), folder / "run" / "best.ckpt")

    def before(self, folder: Path) -> None:
        self.save(folder, 0)

    def work(self, folder: Path) -> None:
        if MEMORY.is_dir():
            os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)
        before = {*MEMORY.iterdir()} if MEMORY.is_dir() else set()
        for n in range(1, 9):
            self.save(folder, n)
        litter = {p.name for p in MEMORY.iterdir()} - {p.name for p in before} if MEMORY.is_dir() else set()
        need(not any("ckpt" in name for name in litter), f"left in TMPDIR: {litter}")

    def look(self, folder: Path) -> None:
        import torch

        found = torch.load(folder / "run" / "best.ckpt", weights_only=True)
        need(bool((found["state_dict"]["w"] == found["n"]).all()), "a checkpoint of two")

    def result(self, folder: Path) -> Any:
        import torch

        return sorted(p.name for p in (folder / "run").iterdir()), torch.load(folder / "run" / "best.ckpt")["n"]


class Training(Victim):
    """A run of a method, which goes on from the newest checkpoint that can be read."""

    name = "training"
    needs = ("avloc.cli", "avloc.experiment.run", "tests.experiment.fading")

    def build(self) -> None:
        import yaml

        from avloc.world import write_world
        from tests.experiment.test_checkpoints import SETTINGS

        for split, scenes in (("single", 12), ("val", 6)):
            write_world(self.home / "data" / "world", split, scenes=scenes)
        (self.home / "fading.yaml").write_text(yaml.safe_dump(SETTINGS))

    def before(self, folder: Path) -> None:
        shutil.copytree(self.home / "data", folder / "data", copy_function=os.link)
        shutil.copy(self.home / "fading.yaml", folder)

    def work(self, folder: Path) -> None:
        import torch

        from avloc.cli import main
        from avloc.experiment.checkpoints import newest_readable

        torch.manual_seed(0)
        os.chdir(folder)
        os.environ["WANDB_MODE"] = "disabled"
        known = sorted(folder.glob("runs/mine/version_*/checkpoints/resume.ckpt"))
        newest = newest_readable(known) if known else None
        more = ["--ckpt_path", str(newest)] if newest else []
        main(["fit", "-c", "fading", "--experiment=mine", "--trainer.max_epochs=3", "--test_after_fit=true", *more])

    def look(self, folder: Path) -> None:
        import torch

        for path in folder.glob("runs/*/version_*/checkpoints/*.ckpt"):
            need("state_dict" in torch.load(path, weights_only=True), f"{path.name} is no checkpoint")
        for path in folder.glob("runs/*/version_*/*.json"):
            json.loads(path.read_text())

    def result(self, folder: Path) -> Any:
        import torch

        (run,) = [p.parent for p in folder.glob("runs/mine/version_*/results.json")]
        with (run / "metrics.csv").open(newline="") as f:
            rows = [{k: v for k, v in r.items() if v and not k.startswith("time/")} for r in csv.DictReader(f)]
        best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        return (
            json.loads((run / "results.json").read_text())["sets"],
            best["epoch"],
            best["state_dict"]["w"].item(),
            [r for r in rows if r.keys() - {"step", "epoch", "lr"}],
            sorted(p.name for p in (run / "checkpoints").iterdir()),
        )


class Features(Victim):
    name = "store"
    needs = ("avloc.data.stored",)
    KEY = "0123456789abcdef" * 4

    def work(self, folder: Path) -> None:
        import torch

        from avloc.data.stored import FeatureStore

        writer = FeatureStore.write(folder / "toy-train-x", self.KEY, {"method": "x"})
        for number in range(12):
            if writer.finished(number, f"{number:064d}"):
                continue
            with writer.part(number, f"{number:064d}") as part:
                for i in range(8):
                    x = torch.full((1, 64, 64), float(number + i))
                    part.add([f"toy__{number:02d}{i}"], {"a": x, "free": [torch.arange(i + 1) + float(number)]})

    def look(self, folder: Path) -> None:
        from avloc.data.stored import FeatureStore, StoreError

        try:
            store = FeatureStore.open(folder / "toy-train-x", self.KEY, {}, [f"{n:064d}" for n in range(12)])
        except StoreError:
            return  # said to be incomplete
        for key in store.places:
            number, i = int(key[5:7]), int(key[7:])
            need(bool((store.row(key)["a"] == number + i).all()), f"row of {key}")
            need(store.row(key)["free"].tolist() == [number + k for k in range(i + 1)], f"row of {key}")


class Report(Victim):
    """A report written over an older one."""

    name = "report"
    needs = ("avloc.cli", "avloc.report.document")

    def build(self) -> None:
        from tests.robustness.kinds import Results

        self.run = Results(self.home / "good").run

    def before(self, folder: Path) -> None:
        with redirect_stdout(StringIO()):
            self.work(folder)

    def work(self, folder: Path) -> None:
        from avloc.cli import main

        main(["report", str(self.run), "--out", str(folder / "out")])

    def look(self, folder: Path) -> None:
        text = (folder / "out" / "report.html").read_text()
        need(text.rstrip().endswith("</html>"), "half a page", LostError)
        for name in ("report.md", "report.csv", "report.tex"):
            need((folder / "out" / name).stat().st_size > 0, f"{name} is empty", LostError)

    def result(self, folder: Path) -> Any:
        return sorted(p.name for p in (folder / "out").rglob("*"))


VICTIMS: dict[str, type[Victim]] = {v.name: v for v in (Shards, Converter, Checkpoints, Training, Features, Report)}


def below(process: int) -> list[int]:
    """All processes that one started, and theirs."""
    try:
        own = [int(n) for p in Path(f"/proc/{process}/task").glob("*/children") for n in p.read_text().split()]
    except OSError:
        return []
    return own + [lower for child in own for lower in below(child)]


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def working(victim: Victim, folder: Path, begun: Any) -> None:
    """The process that works."""
    import warnings

    import torch

    os.setsid()
    nothing = os.open(os.devnull, os.O_WRONLY)
    log = os.open(victim.home / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(nothing, 1)
    os.dup2(log, 2)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    begun.set()
    victim.work(folder)


class Knife:
    """Begins the work of a victim anew, each time in a fresh folder, and kills it. The first one's needs are imported
    by the process that all are forked from."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.context = multiprocessing.get_context("forkserver")
        multiprocessing.set_forkserver_preload([__name__, *victim.needs])
        self.takes = 0.0
        self.expected = self.unbroken()

    def begin(self, folder: Path) -> Any:
        begun = self.context.Event()
        process = self.context.Process(target=working, args=(self.victim, folder, begun))
        process.start()
        need(begun.wait(PATIENCE), "the process did not begin")
        return process

    def to_its_end(self, folder: Path) -> None:
        process = self.begin(folder)
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"longer than {PATIENCE:g} s")
        if process.exitcode:
            raise WrongError(f"ended with {process.exitcode}: {(self.victim.home / 'log').read_text()[-1500:]}")

    def unbroken(self) -> Any:
        with tempfile.TemporaryDirectory(dir=self.victim.home) as name:
            self.victim.before(Path(name))
            start = time.monotonic()
            self.to_its_end(Path(name))
            self.takes = time.monotonic() - start
            return self.victim.result(Path(name))

    def kill(self, random: Random) -> None:
        """Once.

        Raises:
            LostError: what was there, or was said to be, is gone.
            TimeoutError: what the killed process started, or the work that goes on, does not end.
            Exception: anything else that is not as it should be.
        """
        with tempfile.TemporaryDirectory(dir=self.victim.home) as name:
            folder = Path(name)
            self.victim.before(folder)
            process = self.begin(folder)
            time.sleep(random.random() * 1.05 * self.takes)
            started = below(process.pid)
            process.kill()
            process.join()
            end = time.monotonic() + PATIENCE
            while orphans := [p for p in started if lives(p)]:
                if time.monotonic() > end:
                    for p in orphans:
                        os.kill(p, signal.SIGKILL)
                    raise TimeoutError(f"{len(orphans)} processes of a killed one live on")
                time.sleep(0.02)
            self.victim.look(folder)
            self.to_its_end(folder)
            self.victim.look(folder)
            found = self.victim.result(folder)
            need(found == self.expected, f"going on gives {str(found)[:600]} instead of {str(self.expected)[:600]}")


def kill_some(kind: str, numbers: range, seed: int = 0) -> Tally:
    """Kill a kind of work once for each number."""
    import traceback

    tally = Tally()
    with tempfile.TemporaryDirectory(prefix=f"avloc-kill-{kind}-") as home:
        knife = Knife(VICTIMS[kind](Path(home) / "victim"))
        for number in numbers:
            tally.counts["tried"] += 1
            try:
                knife.kill(Random(f"kill {kind} {seed} {number}"))
                found = "accepted"
            except Exception as e:
                found = "lost" if isinstance(e, LostError) else "hung" if isinstance(e, TimeoutError) else "raw"
                tally.bad.append((number, f"{found} {kind}", f"{type(e).__name__}: {e}", traceback.format_exc()))
            tally.counts[found] += 1
    return tally
