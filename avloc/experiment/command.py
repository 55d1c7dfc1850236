"""Commands that run an experiment: `avloc train`, LightningCLI's own four, `store` and `weights`."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from avloc import RUNS
from avloc.errors import UsageError
from avloc.names import complete_experiment, find_config, newest, settings_in, with_found_configs
from avloc.names import words as words_argument
from avloc.processes import STARTED_BY, name_to_children

__all__ = [
    "KEYS",
    "KEYS_OF_A_YAML",
    "PASSES_ON",
    "TRAINER_COMMANDS",
    "experiments",
    "fit",
    "predict",
    "store",
    "test",
    "train",
    "validate",
    "weights",
]

PASSES_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command whose options are LightningCLI's."""


KEYS = {
    "model": "the method: class_path and its init_args",
    "data": "sets, batch size, workers, sound controls",
    "trainer": "Lightning's Trainer: max_epochs, precision, devices, ...",
    "evaluator": "protocols of the test sets, object guide, tolerance",
    "checkpoint": "which model is the best: monitor, mode",
    "resume": "how often the newest state is kept",
    "panels": "pictures of the run's folder",
    "experiment": "name of the run; the YAML's by default",
    "reproduces": "published row to compare with: paper, table, method",
    "start_from": "checkpoint whose learned weights a new run takes over",
    "test_after_fit": "test the best checkpoint when fitted",
    "seed_everything": "seed of the run",
}
"""The keys of a YAML and what they are; those of each key: ``--help-all KEY``."""

KEYS_OF_A_YAML = "\n".join(f"- --{key}: {what}" for key, what in KEYS.items())
Words = Annotated[
    list[str] | None,
    words_argument(
        "-c NAME [--KEY VALUE ...]",
        "Experiments or YAML files behind -c, later ones over earlier ones, and keys of a YAML.",
        complete_experiment,
    ),
]
HelpAll = Annotated[bool, typer.Option("--help-all", help="Every key with its type and default; or those of: KEY.")]


def run_trainer(subcommand: str, words: list[str], help_all: bool) -> None:
    from avloc.experiment.run import ExperimentCLI

    if help_all:
        ExperimentCLI.tell_keys(subcommand, [w.lstrip("-") for w in words if w.lstrip("-") in KEYS])
    elif not words:
        raise UsageError(
            f"{subcommand} needs an experiment: avloc {subcommand} -c NAME. `avloc experiments` lists them."
        )
    else:
        ExperimentCLI.run([subcommand, *with_found_configs(words)])


def fit(words: Words = None, help_all: HelpAll = False) -> None:
    """Train an experiment.

    Example: `avloc fit -c souple_ctx4 --trainer.max_epochs 1`
    """
    run_trainer("fit", words or [], help_all)


def validate(words: Words = None, help_all: HelpAll = False) -> None:
    """Score an experiment's validation sets.

    Example: `avloc validate -c souple_ctx4 --ckpt_path runs/souple_ctx4/version_0/checkpoints/best.ckpt`
    """
    run_trainer("validate", words or [], help_all)


def test(words: Words = None, help_all: HelpAll = False) -> None:  # noqa: PT028
    """Score an experiment's test sets.

    Example: `avloc test -c quickstart -c world_benchmarks --ckpt_path runs/quickstart/version_0/checkpoints/best.ckpt`
    """
    run_trainer("test", words or [], help_all)


def predict(words: Words = None, help_all: HelpAll = False) -> None:
    """Write what is localised in an experiment's sets.

    Example: `avloc predict -c quickstart --ckpt_path runs/quickstart/version_0/checkpoints/best.ckpt`
    """
    run_trainer("predict", words or [], help_all)


TRAINER_COMMANDS = (fit, validate, test, predict)


def train(
    words: Annotated[
        list[str],
        words_argument(
            "NAME... [--KEY VALUE ...]", "Experiments, and behind them options of `avloc fit`.", complete_experiment
        ),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of the experiment's newest run.")
    ] = False,
    seeds: Annotated[
        str | None,
        typer.Option(help="5 for the seeds 0 to 4, 3,4,7 for those: a run for each, and means with deviations."),
    ] = None,
    get: Annotated[bool, typer.Option("--get", help="Fetch missing weight files first, as `avloc weights`.")] = False,
) -> None:
    """Fit each experiment, test its best checkpoint, and print its table beside the published row.

    A method without training, whose YAML has no data.train, is tested alone, and once. With --seeds, --resume keeps the
    seeds that were tested and goes on with the one that was interrupted.

    Example: `avloc train souple_ctx4 --trainer.max_epochs 1`
    """
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    names, options = words[:count], words[count:]
    if not names:
        raise UsageError("train needs the names of experiments before its options: avloc train NAME [--KEY VALUE ...].")
    if seeds is not None and option(options, "--seed_everything") is not None:
        raise UsageError("--seeds sets --seed_everything of each run; give one of the two.")
    wanted: list[int | None] = [None] if seeds is None else [*seeds_in(seeds)]
    configs = [find_config(name) for name in names]
    if get:
        from avloc.experiment import weights as files

        files.get([source for config in configs for source in files.sources_of(config)])
    runs = []
    for config, seed in [(c, s) for c in configs for s in (wanted if trains(c, options) else [None])]:
        runs_folder = Path(option(options, "--trainer.default_root_dir") or RUNS) / (
            option(options, "--experiment") or config.stem
        )
        more = [] if seed is None else [f"--seed_everything={seed}"]
        command = ["fit", "-c", str(config), "--test_after_fit=true", *more, *options]
        if not trains(config, options):
            command = ["test", "-c", str(config), *more, *options]
        elif resume:
            state = newest_state(runs_folder) if seed is None else state_of(runs_folder, seed, command)
            if state and state.name == "results.json":
                print(f"seed {seed} of {runs_folder.name}: {state.parent} is there", flush=True)
                runs.append(state.parent)
                continue
            command[4 + len(more) : 4 + len(more)] = ["--ckpt_path", str(state)] if state else []
        print(f"avloc {' '.join(command)}", flush=True)
        earlier = {r: r.stat().st_mtime_ns for r in runs_folder.glob("version_*/results.json")}
        os.environ[STARTED_BY] = me = uuid4().hex
        if code := run_to_its_end([sys.executable, "-m", "avloc.cli", *command]):
            sys.exit(code)
        written = [r for r in runs_folder.glob("version_*/results.json") if r.stat().st_mtime_ns != earlier.get(r)]
        made = newest([r for r in written if told_of(r.parent).get("started_by", me) == me])  # no other command's
        runs += [made.parent] if made else []
    if runs:
        from avloc.report.command import report

        report(runs, runs[0])
        print("pictures: " + ", ".join(str(run / "panels") for run in runs))


def run_to_its_end(command: list[str]) -> int:
    """Run a program and return its exit code; what asks this process to end asks the program, and waits for it."""
    with name_to_children():  # should this process be killed, the program ends too
        process = subprocess.Popen(command)
    asked = (signal.SIGTERM, signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else (signal.SIGTERM,)
    before = {number: signal.getsignal(number) for number in asked}
    ended = False

    def pass_on(number: int, _: object) -> None:
        nonlocal ended
        ended = True
        process.send_signal(signal.SIGTERM)

    try:
        for number in asked:
            signal.signal(number, pass_on)
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0:
        return 128 - code
    return code or (128 + signal.SIGTERM if ended else 0)  # never on to the next experiment


def seeds_in(text: str) -> list[int]:
    """``5`` is the seeds 0 to 4, ``3,4,7`` those, ``3,`` one.

    Raises:
        UsageError: something else, or a seed twice.
    """
    parts = [part for part in text.split(",") if part.strip()]
    try:
        seeds = [int(part) for part in parts] if "," in text else list(range(int(text)))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UsageError(
            f"--seeds {text!r} is neither a number of seeds, as 5, nor a list of different ones, as 3,4,7."
        )
    return seeds


def state_of(folder: Path, seed: int, command: list[str]) -> Path | None:
    """What the newest run with a seed and the wanted options left: its results where it was tested, else its newest
    checkpoint if any. Runs with other options are named and not counted.

    Args:
        folder: of the experiment's runs.
        command: that makes such a run.
    """
    wanted: dict[str, Any] = {}
    for run in newest_first(folder.glob("version_*/run.json")):
        told = told_of(run, say=True)
        if told.get("seed") != seed:
            continue
        results = run / "results.json"
        if told.get("config"):
            if not wanted:
                from avloc.experiment.run import told_by

                wanted = told_by(command)
            if other := differences(told["config"], wanted, whole=results.is_file()):
                print(f"seed {seed} of {folder.name}: {run} is not counted, it was made with {other}", flush=True)
                continue
        state = results if results.is_file() else readable(list(run.glob("checkpoints/*.ckpt")))
        if state is not None:
            return state
    return None


def told_of(run: Path, say: bool = False) -> dict[str, Any]:
    """A run's ``run.json``; empty where it has none, or a damaged one, which is named on request."""
    try:
        content = json.loads((run / "run.json").read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        content = e
    if isinstance(content, dict):
        return content
    if say:
        print(f"skipped: {run / 'run.json'} is damaged, so nobody knows what made that run", flush=True)
    return {}


OF_NO_MATTER = re.compile(
    r"(config|ckpt_path|weights_only|verbose|return_predictions|seed_everything|experiment|reproduces|test_after_fit"
    r"|(panels|throughput|resume)\..*|evaluator\.out|checkpoint\.(dirpath|verbose)|data\.(root|num_workers)"
    r"|trainer\.(logger|default_root_dir|enable_.*|log_every_n_steps|num_sanity_val_steps|profiler|accelerator|devices"
    r"|num_nodes|strategy|plugins|barebones)(\..*)?)"
)
"""Settings that do not change what a run of a seed is: names, places, what is shown, and the machine."""
LENGTH = re.compile(r"trainer\.(max|min)_(epochs|steps|time)")
"""Settings that a run which was interrupted may go on with."""


def differences(was: Mapping[str, Any], now: Mapping[str, Any], whole: bool = True) -> str:
    """The settings that differ between two runs, in words; "" where none that matters does.

    Args:
        was, now: as in ``run.json``.
        whole: whether the earlier one had come to its end: then its length matters, too.
    """
    old, new = flat(was), flat(now)
    named = [
        f"{key} {old.get(key)}, and not {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not OF_NO_MATTER.fullmatch(key) and (whole or not LENGTH.fullmatch(key))
    ]
    return "; ".join(named[:5]) + (f"; {len(named) - 5} more" if len(named) > 5 else "")


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and value
        out |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out


def trains(config: Path, options: list[str]) -> bool:
    """Whether an experiment has a training set: one of a method without training is tested alone."""
    data = settings_in(config).get("data") or {}
    return bool(data.get("train")) or option(options, "--data.train") is not None


def option(options: list[str], name: str) -> str | None:
    """The last value of an option, written ``name value`` or ``name=value``; None where it is not given."""
    parser = argparse.ArgumentParser("avloc train", add_help=False, allow_abbrev=False)
    parser.add_argument(name, dest="value")
    return parser.parse_known_args(options)[0].value


def newest_state(folder: Path) -> Path:
    """The newest checkpoint that can be read of an experiment's newest run; where it has none, of the one before, and
    what was skipped is said.

    Raises:
        UsageError: the experiment has none.
    """
    runs = newest_first(folder.glob("version_*/checkpoints/*.ckpt"))
    for checkpoints in dict.fromkeys(runs):
        found = readable(list(checkpoints.glob("*.ckpt")))
        if found is not None:
            return found
    why = "no checkpoint can be read" if runs else "there is no checkpoint"
    raise UsageError(f"Nothing to resume: {why} under {folder}. Leave out --resume.")


def newest_first(files: Iterable[Path]) -> list[Path]:
    """The folders of files, that of the last written one first."""
    return [path.parent for path in sorted(files, key=lambda p: p.stat().st_mtime, reverse=True)]


def readable(checkpoints: list[Path]) -> Path | None:
    """The newest that can be read. A run's state comes before its best model, which may be of an earlier epoch."""
    from avloc.experiment.checkpoints import newest_readable

    states = [path for path in checkpoints if path.name == "resume.ckpt"]
    return newest_readable(states) or newest_readable([path for path in checkpoints if path not in states])


def store(
    config: Annotated[
        str, typer.Option("--config", "-c", help="Experiment's name, or a YAML.", autocompletion=complete_experiment)
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[--KEY VALUE ...]", help="Keys under data and model, as of fit.", show_default=False),
    ] = None,
    parts: Annotated[int, typer.Option(help="Processes that share the work.", min=1)] = 1,
    part: Annotated[int, typer.Option(help="Which of them this is, from 0.", min=0)] = 0,
) -> None:
    """Compute what an experiment's frozen networks make of every picture of its sets, once, beside the shards.

    `data.stored: true` then reads it. Goes on where it was stopped.

    Example: `avloc store -c seac_world`
    """
    from avloc.experiment.store import store as write

    write(find_config(config), words or [], parts, part)


def weights(
    experiment: Annotated[
        str | None, typer.Option(help="Name or YAML; all known files by default.", autocompletion=complete_experiment)
    ] = None,
    get: Annotated[bool, typer.Option("--get", help="Fetch what is missing.")] = False,
    origin: Annotated[
        str | None,
        typer.Option("--from", help="A folder or address that holds the files, looked in first; also $AVLOC_MIRROR."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the licences without being asked.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, for a program.")] = False,
    digest: Annotated[
        bool, typer.Option("--digest", help="The SHA-256 of the files that are here, to contribute them.")
    ] = False,
) -> None:
    """List the weight files that an experiment needs: present or not, from where, licence, SHA-256; or fetch them.

    A broken download goes on where it stopped; a file is in place only when its length and digest are right.

    Example: `avloc weights --experiment souple_ctx4 --get`
    """
    from avloc.experiment import weights as files

    if get + as_json + digest > 1:
        raise UsageError("Give one of --get, --json and --digest.")
    config = find_config(experiment) if experiment else None
    if get and config is None:
        raise UsageError("--get fetches what an experiment needs: name it with --experiment.")
    if get:
        assert config is not None
        files.get(files.sources_of(config), origin, yes)
    elif digest:
        files.digests(config)
    else:
        files.table(config, as_json)


def experiments(
    word: Annotated[str | None, typer.Argument(help="Only those whose name or row holds this word.")] = None,
    count: Annotated[
        bool, typer.Option("--count", help="Count the papers' rows that are reached and the values that are compared.")
    ] = False,
) -> None:
    """List the experiments with the table row that each reproduces.

    With `--count`, how many of the papers' rows they reach and how many printed values a report compares with a
    protocol of its own, and why the others are not.

    Example: `avloc experiments souple`
    """
    from avloc.experiment import table

    if count and word:
        raise UsageError("--count counts all experiments: leave the word out.")
    if count:
        table.count()
    else:
        table.table(word)
