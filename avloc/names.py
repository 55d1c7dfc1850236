"""Where experiments lie and how they are found by name. No torch: help and completion come from here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avloc import RUNS
from avloc.errors import UsageError

__all__ = [
    "complete_experiment",
    "complete_run",
    "experiments_folder",
    "find_config",
    "known",
    "newest",
    "settings_in",
    "with_found_configs",
    "words",
]


def experiments_folder() -> Path:
    """The YAML files: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def known() -> dict[str, Path]:
    """Every experiment of the package by its stem, whatever folder of ``experiments/`` it lies in."""
    return {path.stem: path for path in sorted(experiments_folder().rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """The YAML behind a path or an experiment's name, from any folder.

    ``experiments/NAME.yaml`` means the experiment of that name, wherever in ``experiments/`` it lies.

    Raises:
        UsageError: there is none; the message names the nearest ones.
    """
    for own in (Path(name), Path(f"{name}.yaml")):  # files of the user go before the package's
        if own.is_file():
            return own.resolve()
    ours, stem, folders = known(), Path(name).stem, Path(name).parent.parts
    if stem in ours and (not folders or "experiments" in folders):
        return ours[stem].resolve()
    if stem in ours:
        raise UsageError(f"There is no file {name}. The suite's experiment of that name is meant by -c {stem}.")
    near = difflib.get_close_matches(stem, ours, n=3)
    meant = f"Did you mean {', '.join(near)}? All" if near else "`avloc experiments` lists those that there are; all"
    raise UsageError(f"There is no experiment {name!r}. {meant} lie in {experiments_folder()}.")


def settings_in(config: Path) -> dict[str, Any]:
    """What a YAML sets, as it stands.

    Raises:
        UsageError: it is no YAML in UTF-8, or a section of it holds no keys.
    """
    import yaml

    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        first = str(e).splitlines()[0][:200] if not isinstance(e, RecursionError) else "nested too deeply"
        raise UsageError(f"{config} is no YAML in UTF-8 ({first}). Mend it, or name another experiment.") from e
    content = {} if content is None else content
    sections = ("model", "data", "trainer", "evaluator")
    if not isinstance(content, dict) or not all(isinstance(content.get(k) or {}, dict) for k in sections):
        raise UsageError(
            f"{config} is no experiment: it has to hold keys, and so do its {', '.join(sections)}. See "
            f"{experiments_folder()} for some."
        )
    return content


def with_found_configs(args: list[str]) -> list[str]:
    """``args`` with every ``-c NAME`` replaced by the path of the file it means.

    Raises:
        UsageError: there is none, or it is no experiment.
    """

    def path_of(name: str) -> str:
        path = find_config(name)
        settings_in(path)  # what is no YAML is a sentence here, and a trace in jsonargparse
        return str(path)

    found = list(args)
    for i, arg in enumerate(args):
        if arg in ("-c", "--config") and i + 1 < len(args):
            found[i + 1] = path_of(args[i + 1])
        elif arg.startswith("--config="):
            found[i] = f"--config={path_of(arg.removeprefix('--config='))}"
    return found


def newest(paths: list[Path]) -> Path | None:
    """The path that was written last; None of none."""
    return max(paths, key=lambda p: p.stat().st_mtime, default=None)


def words(metavar: str, help: str, complete: Callable[[str], Any], **more: Any) -> Any:
    """The argument of a command that takes words and passes them on."""
    import typer

    return typer.Argument(metavar=metavar, help=help, autocompletion=complete, show_default=False, **more)


def complete_experiment(incomplete: str) -> list[str]:
    """Experiments of the package and YAML files of the working folder that begin so."""
    own = [path.name for path in Path().glob("*.yaml")]
    return [name for name in (*known(), *own) if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Folders of runs that begin so."""
    runs = (str(path) for path in sorted(Path(RUNS).glob("*/version_*")))
    return [run for run in runs if run.startswith(incomplete)]
