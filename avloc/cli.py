"""The commands `avloc` and `lightning`. Each is a function in the room whose work it does; nothing imports this module.

Typer, for its commands are plain typed functions that tests call as such, and it brings help in groups, completion for
four shells and suggestions. The rooms' ``command.py`` import no torch: help, completion and usage errors come at once.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

import avloc.audit.command
import avloc.bench.command
import avloc.experiment.command
import avloc.export.command
import avloc.localize.command
import avloc.report.command
import avloc.world.command
import data_prep.command
from avloc import __version__
from avloc.errors import UsageError, sentence, told_by
from avloc.escapes import printable
from avloc.experiment.command import KEYS_OF_A_YAML, PASSES_ON
from avloc.plugins import load_plugins

__all__ = ["COMMANDS", "main"]

DEFECT = "this is a defect of avloc, or of code that it was told to import: please report it with the trace above."
EXPERIMENTS, RESULTS, DATA, MACHINE = "Experiments", "Results", "Data and weights", "This machine"

of_experiments = avloc.experiment.command
COMMANDS: dict[Callable[..., None], tuple[str, dict[str, Any]]] = {
    of_experiments.train: (EXPERIMENTS, PASSES_ON),
    of_experiments.experiments: (EXPERIMENTS, {}),
    **dict.fromkeys(of_experiments.TRAINER_COMMANDS, (EXPERIMENTS, PASSES_ON)),
    avloc.localize.command.localize: (RESULTS, {}),
    avloc.report.command.report: (RESULTS, {}),
    avloc.report.command.leaderboard: (RESULTS, {}),
    avloc.report.command.rescore: (RESULTS, {}),
    avloc.export.command.export: (RESULTS, {}),
    data_prep.command.prep: (DATA, PASSES_ON | {"help_option_names": []}),  # a converter tells its own options
    avloc.audit.command.audit: (DATA, {}),
    of_experiments.store: (DATA, PASSES_ON),
    of_experiments.weights: (DATA, {}),
    avloc.world.command.world: (DATA, {}),
}
"""Every plain command, the group that its help stands in, and how it reads its words."""


class Command(TyperCommand):
    """Other people's code is imported when a command runs: not for help, nor for a misused command line."""

    def invoke(self, ctx: Any) -> Any:
        load_plugins()
        return super().invoke(ctx)


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Say where in a picture a sound comes from. `lightning` is the same command.",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: word.replace("_", "-"),  # --full_size means --full-size
    },
)
for function, (group, reads) in COMMANDS.items():
    epilog = KEYS_OF_A_YAML if function in of_experiments.TRAINER_COMMANDS else None
    app.command(cls=Command, rich_help_panel=group, context_settings=reads, epilog=epilog)(function)
for command in avloc.bench.command.app.registered_commands:
    command.cls = Command
app.add_typer(
    avloc.bench.command.app,
    name="bench",
    rich_help_panel=MACHINE,
    help="Measure speed and memory: of a training step, the loader, the metrics.",
)


def tell_version(wanted: bool) -> None:
    if wanted:
        print(f"avloc {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: bool = typer.Option(False, "--debug", help="Show the trace of an error; stands anywhere."),
    version: bool = typer.Option(False, "--version", callback=tell_version, is_eager=True, help="Tell it and stop."),
) -> None:
    pass


def main(args: list[str] | None = None) -> None:
    """Entry point. What a user can mend is told in a sentence, without a trace, which ``--debug`` shows; anything else
    is a defect, and shows its trace.

    Exits with 1 for a failure that is told, 2 for a misused command line.
    """
    words = sys.argv[1:] if args is None else list(args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    command = " ".join(["avloc", *words[:1]])
    try:
        app(words, prog_name="avloc")
    except SystemExit as e:
        if e.code not in (0, None):
            raise
    except Exception as e:
        told = sentence(e)
        if debug:
            raise
        if told is None:
            traceback.print_exc()
            print(f"{command}: {DEFECT}", file=sys.stderr)
            sys.exit(1)
        print(f"{command}: {printable(told)}", file=sys.stderr)
        sys.exit(2 if isinstance(told_by(e), UsageError) else 1)


if __name__ == "__main__":
    main()
