"""Which method answers, by which weights and at which threshold, and what its user must know of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avloc import RUNS
from avloc.errors import UsageError
from avloc.localize.regions import Threshold
from avloc.methods.base import Localizer
from avloc.methods.baselines.classes import ClassQuery, read_classes
from avloc.methods.exported import CONFIG, is_exported, load_exported
from avloc.methods.load import load_method
from avloc.names import find_config, newest

__all__ = ["Chosen", "choose", "name_classes", "threshold_of", "toy_warning"]

BEST = "checkpoints/best.ckpt"


@dataclass(frozen=True)
class Chosen:
    """A method that is ready to answer.

    Attributes:
        model: in eval mode, on a GPU if there is one.
        told: what it is and where its weights come from, in words.
        threshold: the universal one of its run, or the default.
    """

    model: Localizer
    told: str
    threshold: Threshold


def choose(experiment: str | None = None, checkpoint: Path | None = None) -> Chosen:
    """The method that is named, or the one that was trained last.

    Args:
        experiment: a YAML, or its name: the method with its settings, as trained by ``checkpoint`` or by the newest run
            of that name; a method without training needs neither.
        checkpoint: a file, the folder of a run, a folder of several runs, of which the newest counts, or a folder that
            `avloc export` wrote. Alone, it brings the settings that it was trained with.

    Raises:
        UsageError: nothing to choose from, or an experiment that has to be trained.
        CheckpointError: see `load_method`.
    """
    if experiment is not None:
        return by_experiment(find_config(experiment), checkpoint)
    if checkpoint is None:
        found = newest(list(Path(RUNS).glob(f"*/version_*/{BEST}")))
        if found is None:
            raise UsageError(
                f"No trained method was found under {RUNS}/. Name one with --ckpt, a method without training with "
                "--experiment, or train one: make train EXP=quickstart."
            )
    elif is_exported(checkpoint):
        return by_export(checkpoint)
    elif checkpoint.is_dir():
        found = best_of(checkpoint)
        if found is None:  # the run of a method without training
            return by_experiment(newest(list(configs(checkpoint))), None)
    else:
        found = checkpoint
    model = load_method(found)
    return Chosen(model, f"{type(model).__name__} of {found}", threshold_of(found))


def by_export(folder: Path) -> Chosen:
    model, about = load_exported(folder)
    return Chosen(model, f"{type(model).__name__} of {folder}", chosen_threshold(about, folder / CONFIG))


def by_experiment(config: Path | None, checkpoint: Path | None) -> Chosen:
    assert config is not None
    from avloc.experiment.run import instantiate_method, model_settings  # the trainer's imports take seconds

    model = instantiate_method(config)
    found = checkpoint
    if checkpoint is not None and checkpoint.is_dir():
        found = best_of(checkpoint)
    elif checkpoint is None and model.trainable():
        found = newest(list(Path(RUNS).glob(f"{config.stem}/version_*/{BEST}")))
    told = f"{type(model).__name__} of {config}"
    if found is not None:
        model.start_from(found)
        told += f", trained by {found}"
    elif model.trainable() and not model_settings(config)["init_args"].get("audio_proj"):
        raise UsageError(
            f"{config.stem} has to be trained, and no run of it was found under {RUNS}/. Name its checkpoint with "
            f"--ckpt, or train it: make train EXP={config.stem}."
        )
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    results = config.parent if found is None else None  # a run's own config.yaml lies beside its results
    return Chosen(model, told, threshold_of(found) if found else universal(results))


def best_of(run: Path) -> Path | None:
    """The best checkpoint of a run's folder, or of the newest of the runs in a folder; None for runs without one.

    Raises:
        UsageError: no run lies there.
    """
    places = (run / BEST, run / "best.ckpt", *run.glob(f"version_*/{BEST}"))
    found = newest([path for path in places if path.is_file()])
    if found is None and not list(configs(run)):
        raise UsageError(
            f"{run} is no folder of a run: it holds no {BEST} and no config.yaml. Name a checkpoint, or the folder "
            "that `avloc fit` or `avloc test` wrote."
        )
    return found


def configs(run: Path) -> list[Path]:
    """The settings of a run, or of the runs in a folder."""
    return [path for path in (run / "config.yaml", *run.glob("version_*/config.yaml")) if path.is_file()]


def threshold_of(checkpoint: Path) -> Threshold:
    """The universal threshold of the run that a checkpoint lies in, else the default."""
    folder = checkpoint.parent
    return universal(folder.parent if folder.name == "checkpoints" else folder)


def universal(run: Path | None) -> Threshold:
    """What ``results.json`` of a run says was chosen on its calibration sets, else the default.

    Raises:
        UsageError: the file cannot be read.
    """
    path = run / "results.json" if run else None
    if path is None or not path.is_file():
        return Threshold()
    try:
        return chosen_threshold(json.loads(path.read_text()), path)
    except (OSError, ValueError, AttributeError) as e:
        raise UsageError(
            f"{path} cannot be read ({type(e).__name__}: {e}). Test the run again, or set --threshold."
        ) from e


def chosen_threshold(told: Mapping[str, Any], where: Path) -> Threshold:
    """The universal threshold that a run's results or an exported folder tell, else the default.

    Raises:
        UsageError: what they tell is none.
    """
    chosen = told.get("universal")
    if not chosen:
        return Threshold()
    try:
        return Threshold(float(chosen["threshold"]), f"universal, chosen on {', '.join(chosen['chosen_on'])}: {where}")
    except (ValueError, KeyError, TypeError) as e:
        raise UsageError(
            f"{where} cannot be read ({type(e).__name__}: {e}). Test the run again, or set --threshold."
        ) from e


def toy_warning(model: Localizer) -> str:
    """What to say of a method on the embedded world's weights; "" of any other."""
    toys = sorted({file.source for file in model.frozen_files.values() if file.source.startswith("world:")})
    if not toys:
        return ""
    return (
        f"toy weights: {type(model).__name__} stands on {', '.join(toys)}, which know the sixteen kinds of things "
        "of the embedded world and nothing else. On real pictures and sounds its answer means nothing."
    )


def name_classes(model: Localizer, names: Sequence[str]) -> None:
    """Tell a method that asks for classes which ones, where its own settings name none."""
    if isinstance(model, ClassQuery) and model.given is None and model.otherwise is None:
        model.of_set = read_classes(list(names))
