"""`avloc export`: a trained run becomes a folder that `avloc.load` reads anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avloc import __version__
from avloc.errors import UsageError
from avloc.evaluation.protocols import PROTOCOLS
from avloc.evaluation.results import numbers_of_some
from avloc.export.card import Card, licence_of
from avloc.export.program import export_onnx, export_program
from avloc.files import write_whole
from avloc.localize.models import best_of, choose, toy_warning
from avloc.methods.base import IDENTITY, Localizer
from avloc.methods.checkpoint import read_checkpoint
from avloc.methods.exported import CONFIG, TENSORS, is_exported, load_exported, write_exported
from avloc.report.entries import Entry, entry_of
from avloc.report.intervals import Bounds
from avloc.report.leaderboard import leaks_in
from avloc.report.results import Run, read_run

__all__ = ["CARD", "export"]

CARD, PROGRAM, ONNX = "README.md", "program.pt2", "model.onnx"


def export(
    run: Path, out: Path, data: Path | None = None, program: bool = False, onnx: bool = False, name: str = ""
) -> dict[str, str]:
    """Write the folder, and read it again.

    Args:
        run: the folder of a run, or a checkpoint.
        out: the folder; made where it is not there, and an older export in it replaced.
        data: data folder, to count which test clips the training list holds; None leaves that unknown.
        program: add ``program.pt2``.
        onnx: add ``model.onnx``.
        name: for the card; that of the experiment by default.

    Returns:
        file to what it is.

    Raises:
        UsageError: ``out`` holds something else, or there is no run; or a graph was asked for that the method has not.
        CheckpointError: the run's model cannot be rebuilt from the folder.
    """
    if out.exists() and not is_exported(out) and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} holds something that is no export. Name an empty or a new folder.")
    head, folder = head_of(run)
    told = read_run(folder) if (folder / "results.json").is_file() else None
    entry = None
    if told is not None:
        judged = {each: (known.headline, known.cut) for each, known in PROTOCOLS.items()}
        entry = entry_of(told, Bounds(numbers_of_some), judged, leaks_in(data) if data else None)
    about = what_is_told(told, entry)
    write_exported(head, out, about)
    method, config = load_exported(out, "cpu")
    files = {}
    for wanted, file, write, what in (
        (program, PROGRAM, export_program, "`torch.export`"),
        (onnx, ONNX, export_onnx, "ONNX"),
    ):
        (out / file).unlink(missing_ok=True)
        if wanted:
            apart = write(method, out / file)
            files[file] = f"the inference path as {what}: {interface(method)}; " + (
                f"its heat is that of the method up to {apart:.1g}" if apart is not None else "not compared: no runtime"
            )
    card = Card(
        name or (entry.experiment if entry else folder.name),
        config,
        entry,
        {each: known.note for each, known in PROTOCOLS.items()},
        toy_warning(method) or of_toys(config),
        files,
    )
    write_whole(out / CARD, card.text())
    return {TENSORS: "what was learned", CONFIG: "how it is built", CARD: "the card", **files}


def head_of(run: Path) -> tuple[dict[str, Any], Path]:
    """What the run's best checkpoint holds, and the run's folder; of a method without training, what it is built of."""
    found = best_of(run) if run.is_dir() else run
    if found is not None:
        parent = found.parent
        return read_checkpoint(found), parent.parent if parent.name == "checkpoints" else parent
    from avloc.experiment.run import model_settings  # the trainer's imports take seconds
    from avloc.localize.models import configs
    from avloc.names import newest

    config = newest(list(configs(run)))
    assert config is not None  # best_of refuses such folders
    method = choose(None, run).model
    head: dict[str, Any] = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(head)
    built = {"arguments": None, "configured": model_settings(config)["init_args"]}
    return head | {IDENTITY: head[IDENTITY] | built}, config.parent


def what_is_told(run: Run | None, entry: Entry | None) -> Mapping[str, Any]:
    about = run.about if run else {}
    return {
        "avloc": __version__,
        "experiment": run.name if run else "",
        "trained_on": entry.trained_on if entry else None,
        "universal": run.universal if run else None,
        "packages": about.get("packages") or {},
        "licences": {part: licence_of(str(file.get("source"))) for part, file in (about.get("weights") or {}).items()},
    }


def of_toys(config: Mapping[str, Any]) -> str:
    if not str(config["trained_on"] or "").startswith("world"):
        return ""
    return "a toy: it was trained on the embedded world, whose sixteen kinds of things are all that it knows."


def interface(method: Localizer) -> str:
    spec = method.input_spec
    side, count = spec.image_size, spec.samples
    return (
        f"`image` uint8 [1, 3, {side}, {side}] ({spec.resize}), `audio` float32 [1, {count}] in [-1, 1] at "
        f"{spec.sample_rate} Hz to `heat` in [0, 1] and `confidence`"
    )
