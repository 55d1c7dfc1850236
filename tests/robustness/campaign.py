"""`python -m tests.robustness`: damaged inputs by the thousand, and the table of what became of them.

Each input is ``tried``. Of the readings of an input the worst counts:

- ``told``: the package refused it with a sentence of its own,
- ``accepted``: it was read, and what came out was compared with the good file,
- ``raw``: any other exception, a wrong answer, a crash of the interpreter, more memory than stated, or a program that
  ran, a connection that was opened, a file outside that was read,
- ``lost``: good samples beside the damaged one are gone without a word,
- ``hung``: it took longer than the limit.

Inputs are made in processes of their own: one that crashes or hangs costs its input alone. The number of an input and
the seed say what it is: ``--kind tar --only 17 --seed 0`` does one again and shows its trace.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

__all__ = ["OUTCOMES", "Tally", "main", "run_inputs"]

OUTCOMES = ("tried", "told", "accepted", "raw", "lost", "hung")
WORST = ("accepted", "told", "raw", "lost", "hung")
LIMIT = 30.0
"""Seconds of a processor, or ten times as many on the clock, after which an input counts as hung."""
MEMORY = 1536 * 2**20
"""Bytes that one input may take on top of what the process holds."""
ROOM = 6 * 2**30
"""Bytes of address space beyond which an allocation fails: who believes a file's size is told so by a MemoryError."""


@dataclass
class Tally:
    """What became of the inputs of a kind; ``bad`` tells number, reading and what happened of each that is not well."""

    counts: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, str, str, str]] = field(default_factory=list)


# ---- the side that reads


class Watch:
    """Notes what no reader of data may do: start programs, open connections, open what lies outside."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.outside = "\0"
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "socket.connect", "pty.spawn"):
            words = (
                [str(a) for a in args[1]] if event == "subprocess.Popen" and isinstance(args[1], list | tuple) else []
            )
            if words[:1] == ["git"] or words[1:3] == ["-m", "avloc.cli"]:  # `avloc train` starts `avloc fit`
                return
            self.seen.append(f"{event} {args[:2]!r}"[:200])
        elif event == "open" and isinstance(args[0], str) and (self.outside in args[0] or args[0] == "/etc/passwd"):
            self.seen.append(f"open {args[0]!r}")


def peak(reset: bool = False) -> int:
    """Bytes that this process held at most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def outcome(read: Callable[[], None], watch: Watch) -> tuple[str, str, str]:
    """Outcome of a reading, what was said, and the trace of what was not well."""
    from avloc.errors import sentence
    from tests.robustness.kinds import LostError

    watch.seen.clear()
    held = peak(reset=True)
    try:
        read()
        found, text, trace = "accepted", "", ""
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        told = sentence(e)
        text = f"{type(e).__name__}: {e}"[:400]
        trace = traceback.format_exc()
        if isinstance(e, AssertionError):
            found = "lost" if isinstance(e, LostError) else "raw"
        elif told is None:
            found = "raw"
        elif "Traceback (most recent" in told or len(told) < 12 or "weights_only=False" in told:
            found, text = "raw", f"no sentence: {told[:300]}"
        else:
            found, trace = "told", ""
    if watch.seen:
        found, text = "raw", f"not inert: {watch.seen[0]}"
    elif peak() - held > MEMORY:
        found, text = "raw", f"{(peak() - held) / 2**20:.0f} MiB of memory"
    return found, text, trace


def serve(kind: str, home: Path) -> None:
    """Read the numbers of inputs from stdin; answer each with a line of JSON."""
    import logging
    import resource
    import warnings

    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what readers print is no answer
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    os.environ |= {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "AVLOC_WEIGHTS": str(home / "weights")}
    import torch

    import avloc.cli  # noqa: F401
    from tests.robustness.kinds import KINDS

    torch.set_num_threads(1)
    os.chdir(home)
    made = KINDS[kind](home / "good")
    watch = Watch()
    watch.outside = str(home / "good" / "outside")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    print("ready", file=channel, flush=True)
    for line in sys.stdin:
        number, seed = json.loads(line)
        folder = home / "try"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        answers = []
        for name, read in made.readings(folder, Random(f"{kind} {seed} {number}")):
            print(json.dumps(["reads", name]), file=channel, flush=True)
            answers.append((name, *outcome(read, watch)))
        if (home / "ran").exists():
            (home / "ran").unlink()
            answers.append(("any", "raw", "a program ran", ""))
        print(json.dumps(["done", answers]), file=channel, flush=True)


# ---- the side that counts


class Reader:
    """A process that reads inputs, begun anew after a crash or a hang."""

    def __init__(self, kind: str) -> None:
        self.kind, self.home = kind, Path(tempfile.mkdtemp(prefix=f"avloc-{kind}-"))
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()
        command = [sys.executable, "-m", "tests.robustness.campaign", "--serve", self.kind, "--home", str(self.home)]
        self.log, self.waiting = (self.home / "log").open("w"), b""
        root = Path(__file__).resolve().parents[2]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=root,
            env=environment,
        )
        if self.line(180.0) != "ready":
            raise RuntimeError(f"the reader of {self.kind} did not start: {(self.home / 'log').read_text()[-2000:]}")
        return self.process

    def line(self, limit: float) -> str | None:
        """The next line; "" when the process has ended, None when it takes too long."""
        assert self.process is not None
        assert self.process.stdout is not None
        handle, end = self.process.stdout.fileno(), time.monotonic() + limit
        while b"\n" not in self.waiting:
            if not select.select([handle], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            if not (data := os.read(handle, 1 << 16)):
                return ""
            self.waiting += data
        line, _, self.waiting = self.waiting.partition(b"\n")
        return line.decode()

    def read(self, number: int, seed: int) -> list[tuple[str, str, str, str]]:
        process = self.process or self.start()
        assert process.stdin
        process.stdin.write(json.dumps([number, seed]) + "\n")
        process.stdin.flush()
        reading, begun = "any", time.monotonic()
        used = self.cpu()
        while True:
            line = self.line(5.0)
            if line is None:
                if self.cpu() - used < LIMIT and time.monotonic() - begun < 10 * LIMIT:
                    continue
                self.end()
                return [(reading, "hung", f"longer than {LIMIT:g} s", "")]
            if not line:
                code = process.wait()
                tail = (self.home / "log").read_text(errors="replace")[-1500:]
                self.end()
                return [(reading, "raw", f"the interpreter ended with {code}", tail)]
            kind, content = json.loads(line)
            if kind == "done":
                return [tuple(answer) for answer in content]
            reading = content

    def cpu(self) -> float:
        """Seconds of a processor that the process has used."""
        assert self.process
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream:
                    stream.close()
            self.log.close()
            self.process = None

    def close(self) -> None:
        self.end()
        shutil.rmtree(self.home, ignore_errors=True)


def run_inputs(kind: str, numbers: Sequence[int], seed: int = 0) -> Tally:
    """Try inputs of a kind."""
    tally, reader = Tally(), Reader(kind)
    try:
        for number in numbers:
            answers = reader.read(number, seed)
            if not answers:
                continue
            worst = max(answers, key=lambda a: WORST.index(a[1]))
            tally.counts["tried"] += 1
            tally.counts[worst[1]] += 1
            for name, found, text, trace in answers:
                if found in ("raw", "lost", "hung"):
                    tally.bad.append((number, f"{found} {name}", text, trace))
    finally:
        reader.close()
    return tally


def table(rows: dict[str, Tally]) -> str:
    lines = [f"{'kind':16}" + "".join(f"{o:>10}" for o in OUTCOMES)]
    total: Counter[str] = Counter()
    for kind, tally in rows.items():
        total += tally.counts
        lines.append(f"{kind:16}" + "".join(f"{tally.counts[o]:>10,}" for o in OUTCOMES))
    lines.append(f"{'all':16}" + "".join(f"{total[o]:>10,}" for o in OUTCOMES))
    return "\n".join(lines)


def grouped(bad: list[tuple[int, str, str, str]]) -> list[str]:
    """One line for each kind of failure, with its first inputs."""
    found: dict[tuple[str, str], list[int]] = {}
    for number, reading, text, trace in bad:
        frames = [line.strip() for line in trace.splitlines() if "avloc/" in line or "data_prep/" in line]
        where = frames[-1].split("/")[-1] if frames else ""
        found.setdefault((f"{reading}, {where}", text.partition("(")[0][:150]), []).append(number)
    ordered = sorted(found.items(), key=lambda pair: -len(pair[1]))
    return [f"  {len(n):5} {where}: {text} [{', '.join(map(str, n[:4]))}]" for (where, text), n in ordered]


def kills(count: int, seed: int) -> dict[str, Tally]:
    """Kill each kind of writer, ``count`` times together."""
    from tests.robustness.kills import VICTIMS, kill_some

    needs = [name for victim in VICTIMS.values() for name in victim.needs]
    multiprocessing.set_forkserver_preload(["tests.robustness.kills", *needs])
    rows: dict[str, Tally] = {}
    share, more = divmod(count, len(VICTIMS))
    for i, kind in enumerate(VICTIMS if count else ()):
        begun = time.monotonic()
        rows[f"kill {kind}"] = tally = kill_some(kind, range(share + (i < more)), seed)
        print(f"kill {kind}: {tally.counts['tried']} in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        for line in grouped(tally.bad):
            print(line, file=sys.stderr, flush=True)
    return rows


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.robustness", description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="damaged inputs of all kinds together")
    parser.add_argument("--kills", type=int, default=200, help="processes that are killed while they write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", nargs="*", default=[], help="only these kinds")
    parser.add_argument("--only", type=int, help="do this input again, and show its trace")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    if given.serve:
        serve(given.serve, given.home)
        return 0
    from tests.robustness.kinds import KINDS

    kinds = given.kind or [*KINDS]
    rows: dict[str, Tally] = {}
    weights = {kind: KINDS[kind].share for kind in kinds}
    counts = {kind: max(1, round(given.inputs * share / sum(weights.values()))) for kind, share in weights.items()}
    counts[kinds[0]] += given.inputs - sum(counts.values())
    for kind in kinds if given.inputs or given.only is not None else []:
        numbers = [given.only] if given.only is not None else list(range(counts[kind]))
        begun = time.monotonic()
        rows[kind] = run_inputs(kind, numbers, given.seed)
        tally = rows[kind]
        print(f"{kind}: {len(numbers)} in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        for line in grouped(tally.bad):
            print(line, file=sys.stderr, flush=True)
        if given.only is not None:
            for _, reading, text, trace in tally.bad:
                print(reading, text, trace, sep="\n")
    if not given.kind:
        rows |= kills(given.kills, given.seed)
    print(table(rows))
    return int(any(tally.counts[o] for tally in rows.values() for o in ("raw", "lost", "hung")))


if __name__ == "__main__":
    sys.exit(main())
