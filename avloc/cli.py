"""The commands `avloc` and `lightning`: those of LightningCLI, and plain ones beside them."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Any

HELP = """usage: avloc COMMAND ...      (`lightning` is the same command)

  experiments, each described by one YAML file:
    fit        train                      avloc fit -c experiments/souple_ctx4.yaml
    validate   score the validation sets  avloc validate -c YAML --ckpt_path CKPT
    test       score the test sets        avloc test -c YAML --ckpt_path CKPT
    predict    write what is localised    avloc predict -c YAML --ckpt_path CKPT

  plain commands:
    train      fit, test and report one or more experiments by name
    localize   show where the sound of a video or a picture comes from
    report     measured rows beside the published ones: tables, curves, and a page with a gallery
    rescore    compute a tested run's numbers again from its per-sample values
    audit      find evaluation clips in a training list
    store      compute what frozen networks make of a set's pictures, once
    weights    which weight files an experiment needs, and which are here
    world      write the embedded world: shards, or videos
    bench      speed and memory of a training step, of the loader, of the metrics

`avloc COMMAND --help` tells more."""

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
PLAIN_COMMANDS = ("train", "localize", "report", "rescore", "audit", "store", "weights", "world", "bench")


class UsageError(ValueError):
    """The command line names something that does not exist."""


def experiments_folder() -> Path:
    """The YAML files: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    beside = package.parent / "experiments"
    return beside if beside.is_dir() else package / "experiments"


def find_config(name: str) -> Path:
    """The YAML behind a path or an experiment's name, from any folder.

    Raises:
        UsageError: there is none; the message names the nearest ones.
    """
    folder = experiments_folder()
    stem = Path(name).stem
    for path in (Path(name), folder / f"{stem}.yaml", folder.parent / name):
        if path.is_file():
            return path.resolve()
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    near = difflib.get_close_matches(stem, known, n=3) or known
    raise UsageError(f"There is no experiment {name!r}. Did you mean {', '.join(near)}? All lie in {folder}.")


def with_found_configs(args: list[str]) -> list[str]:
    """``args`` with every ``-c NAME`` replaced by the path of the file it means."""
    found = list(args)
    for i, arg in enumerate(args):
        if arg in ("-c", "--config") and i + 1 < len(args):
            found[i + 1] = str(find_config(args[i + 1]))
        elif arg.startswith("--config="):
            found[i] = f"--config={find_config(arg.removeprefix('--config='))}"
    return found


def run_trainer(args: list[str]) -> None:
    from avloc.experiment import ExperimentCLI

    ExperimentCLI.run(with_found_configs(args))


def run_plain(command: str, args: list[str]) -> None:
    from jsonargparse import auto_cli

    from avloc import commands

    if command in ("train", "store"):  # their options are those of `fit`
        return {"train": commands.train, "store": commands.store}[command](args)
    functions: dict[str, Any] = {
        "localize": commands.localize,
        "report": commands.report,
        "rescore": commands.rescore,
        "audit": commands.audit,
        "weights": commands.weights,
        "world": commands.world,
        "bench": {
            "step": commands.bench_step,
            "loader": commands.bench_loader,
            "metrics": commands.bench_metrics,
        },
    }
    if command == "localize":
        args = with_short_options(args)
    if command in ("audit", "report", "rescore"):
        args = with_list(args, single=1 if command == "audit" else 0)
    auto_cli(functions[command], args=args, prog=f"avloc {command}", allow_abbrev=False)


def with_short_options(args: list[str]) -> list[str]:
    """`localize CLIP -o OUT` spelt out: auto_cli has positionals for required arguments only, and no ``-o``."""
    clip = ["--clip"] if args and not args[0].startswith("-") else []
    return clip + ["--out" if a == "-o" else a for a in args]


def with_list(args: list[str], single: int) -> list[str]:
    """Plain words after the first ``single`` as the JSON list that jsonargparse wants; a bare ``--json`` is true."""
    words: list[str] = []
    options: list[str] = []
    rest = iter(args)
    for arg in rest:
        if not arg.startswith("-"):
            words.append(arg)
        elif arg == "--json":
            options.append("--json=true")
        elif "=" in arg or arg in ("-h", "--help"):
            options.append(arg)
        else:
            options += [arg, *([value] if (value := next(rest, None)) is not None else [])]
    return [*words[:single], *([json.dumps(words[single:])] if words[single:] else []), *options]


def main(args: list[str] | None = None) -> None:
    """Entry point. What a user can mend is told in a sentence, without a traceback."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return
    command, rest = args[0], args[1:]
    known = TRAINER_COMMANDS + PLAIN_COMMANDS
    if command not in known:
        near = difflib.get_close_matches(command, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        sys.exit(f"avloc: there is no command {command!r}.{hint} `avloc --help` lists them.")
    try:
        if command in TRAINER_COMMANDS:
            run_trainer(args)
        else:
            run_plain(command, rest)
    except Exception as e:
        # The package's own exceptions are written for its users; anything else is a defect and shows its trace.
        # jsonargparse wraps what a constructor raises.
        told: BaseException | None = e
        while told is not None and not type(told).__module__.startswith("avloc."):
            told = told.__cause__
        if told is None:
            raise
        sys.exit(f"avloc {command}: {told}")


if __name__ == "__main__":
    main()
