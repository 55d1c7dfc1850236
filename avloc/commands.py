"""The plain commands: what `avloc localize`, `report`, `weights`, `world`, `bench` and `train` do."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from avloc import RUNS
from avloc import weights as weight_files
from avloc.cli import UsageError, find_config

__all__ = [
    "audit",
    "bench_loader",
    "bench_metrics",
    "bench_step",
    "localize",
    "report",
    "rescore",
    "store",
    "train",
    "weights",
    "world",
]

TRAIN_HELP = """usage: avloc train NAME [NAME ...] [--resume] [options of `avloc fit`]

Fit each experiment, test its best checkpoint, and print its table beside the published row.
A method without training, whose YAML has no data.train, is tested alone.
NAME is a YAML in experiments/; --resume goes on from the newest checkpoint of the experiment's newest run."""


def train(args: list[str]) -> None:
    """Fit, test and report experiments one after the other, each in a process of its own."""
    count = next((i for i, a in enumerate(args) if a.startswith("-")), len(args))
    names, options = args[:count], args[count:]
    if not names or "--help" in options or "-h" in options:
        print(TRAIN_HELP)
        return
    resume = "--resume" in options
    options = [o for o in options if o != "--resume"]
    configs = [find_config(name) for name in names]
    runs = []
    for config in configs:
        runs_folder = Path(RUNS) / (option(options, "--experiment") or config.stem)
        more = ["--ckpt_path", str(newest_state(runs_folder))] if resume else []
        words = ["fit", "-c", str(config), "--test_after_fit=true", *more, *options]
        if not trains(config, options):
            words = ["test", "-c", str(config), *more, *options]
        print(f"avloc {' '.join(words)}", flush=True)
        earlier = set(runs_folder.glob("version_*/results.json"))
        done = subprocess.run([sys.executable, "-m", "avloc.cli", *words])
        if done.returncode:
            sys.exit(done.returncode)
        runs += newest(set(runs_folder.glob("version_*/results.json")) - earlier)  # never an older run's
    if runs:
        folders = [r.parent for r in runs]
        report(folders, folders[0])
        print("pictures: " + ", ".join(str(f / "panels") for f in folders))


def trains(config: Path, options: list[str]) -> bool:
    """Whether an experiment has a training set: one of a method without training is tested alone."""
    data = yaml.safe_load(config.read_text()).get("data") or {}
    return bool(data.get("train")) or option(options, "--data.train") is not None


def option(options: list[str], name: str) -> str | None:
    """The last value of an option, written ``name value`` or ``name=value``; None where it is not given."""
    parser = argparse.ArgumentParser("avloc train", add_help=False, allow_abbrev=False)
    parser.add_argument(name, dest="value")
    return parser.parse_known_args(options)[0].value


def newest(paths: Any) -> list[Path]:
    return sorted(paths, key=lambda p: p.stat().st_mtime)[-1:]


def newest_state(folder: Path) -> Path:
    """The newest checkpoint of an experiment's newest run.

    Raises:
        UsageError: the experiment has none.
    """
    found = newest(folder.glob("version_*/checkpoints/*.ckpt"))
    if not found:
        raise UsageError(f"Nothing to resume: there is no checkpoint under {folder}. Leave out --resume.")
    return found[0]


def report(
    runs: list[Path],
    out: Path | None = None,
    metrics: Literal["headline", "all"] = "headline",
    paper: str | None = None,
    table: str | None = None,
) -> None:
    """Print the measured rows of tested runs beside the published rows, with the controls.

    Args:
        runs: run folders, each with a results.json.
        out: folder for report.html, report.md, report.csv and report.tex.
        metrics: the published columns, or everything that was measured.
        paper: lay the runs into this paper's tables: souple, acl_ssl, gavs, seac, tvsl, or all of them.
        table: number of one table as printed; by default every table in which a run has a row.
    """
    from avloc.evaluation.results import numbers_of_some
    from avloc.report.tables import report as write_report

    write_report(runs, out, metrics, paper=paper, table=table, rescore=numbers_of_some)


def rescore(runs: list[Path]) -> None:
    """Compute every number of tested runs again from their per_sample.parquet, without the model.

    Args:
        runs: run folders; each gets a new results.json.
    """
    from avloc.evaluation.results import rescore as write_results

    for run in runs:
        sets = write_results(run)["sets"]
        print(f"{run / 'results.json'}: {len(sets)} sets")


def audit(
    train: Path,
    evals: list[Path],
    clean: Path | None = None,
    by: Literal["clip", "video"] = "video",
    json: bool = False,
) -> None:
    """Find the clips of evaluation sets in a training list, by clip and by video.

    Args:
        train: list of ids (text or csv) or the index JSON of shards.
        evals: evaluation lists, box files or index JSONs.
        clean: write the training list without the leaking lines here.
        by: what the clean list leaves out: leaking clips, or every clip of a leaking video.
        json: print one JSON object.
    """
    from avloc.audit import audit as find

    find(train, evals, clean, by, json)


def localize(
    clip: Path | None = None,
    out: Path = Path("localized"),
    image: Path | None = None,
    audio: Path | None = None,
    ckpt: Path | None = None,
    phrases: Path | None = None,
) -> None:
    """Show where the sound of a video, or of a picture with a sound, comes from.

    Args:
        clip: a video with sound.
        out: folder for the overlay video, the strip of pictures and regions.json.
        image: a picture instead of a video.
        audio: the sound that goes with the picture.
        ckpt: checkpoint of a trained method; by default the newest one under runs/.
        phrases: a file with one phrase a line, of which the nearest to the sound are told (ACL-SSL and SOUPLE); by
            default class names: the embedded world's for a method on its weights, else VGG-SS's.
    """
    from avloc.localize import localize_still, localize_video
    from avloc.methods.acl.inversion import default_phrases, read_phrases
    from avloc.methods.load import load_method

    if (clip is None) == (image is None) or (image is None) != (audio is None):
        raise UsageError("Name either a video, or --image and --audio together.")
    found = [ckpt] if ckpt else newest(Path(RUNS).glob("*/version_*/checkpoints/best.ckpt"))
    if not found:
        raise UsageError(
            "No trained method was found under runs/. Name one with --ckpt, or train one: make train EXP=quickstart."
        )
    model = load_method(found[0])
    known = read_phrases(phrases) if phrases else default_phrases(model)
    if clip is not None:
        localize_video(model, clip, out, phrases=known)
    else:
        assert image is not None
        assert audio is not None
        localize_still(model, image, audio, out, phrases=known)
    print(f"written to {out}")


STORE_HELP = """usage: avloc store -c NAME [--parts N --part I] [options of `avloc fit` under --data and --model]

Compute what an experiment's frozen networks make of every picture of its sets, once, and store it beside the shards.
`data.stored: true` then reads it. Goes on where it was stopped; N processes may share the work."""


def store(args: list[str]) -> None:
    """Store the frozen features of an experiment's sets."""
    from avloc.data.store import Storable, store_features
    from avloc.experiment import instantiate

    own = argparse.ArgumentParser("avloc store", usage=STORE_HELP.removeprefix("usage: "), allow_abbrev=False)
    own.add_argument("-c", "--config", required=True)
    own.add_argument("--parts", type=int, default=1)
    own.add_argument("--part", type=int, default=0)
    mine, rest = own.parse_known_args(args)
    model, data = instantiate(find_config(mine.config), rest)
    if not hasattr(model, "frozen"):
        raise UsageError(f"{type(model).__name__} has no frozen features to store; train it as it is.")
    storable = cast(Storable, model)
    data.prepare_data()
    sets = [(data.train, "train")] if data.train else []
    sets += [(name, "test") for name in (*data.val, *data.calibration, *data.test)]
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for index in dict.fromkeys(data.find(name, split) for name, split in sets):
            task = bar.add_task(Path(index).stem, total=None)
            report = store_features(
                storable,
                index,
                batch_size=data.eval_batch_size,
                workers=data.num_workers,
                progress=partial(show, bar, task),
                num_parts=mine.parts,
                part=mine.part,
            )
            skipped = f", {len(report.skipped)} broken pictures" if report.skipped else ""
            print(f"{report.folder}: {report.units} pictures, {report.kept} were there{skipped}")


def show(bar: Progress, task: TaskID, more: int, total: int) -> None:
    bar.update(task, advance=more, total=total)


def weights(experiment: str | None = None) -> None:
    """List the weight files that an experiment needs, or all known ones: present or not, from where, licence, SHA-256.

    Args:
        experiment: name or YAML of an experiment.
    """
    sources = sorted(weight_files.KNOWN)
    if experiment is not None:
        from avloc.experiment import model_settings
        from avloc.methods.baselines.ogl import ObjectGuide

        config = find_config(experiment)
        sources = sources_in(model_settings(config))
        ogl = (yaml.safe_load(config.read_text()).get("evaluator") or {}).get("ogl")
        if ogl is not None:
            sources += sources_in({"weights": ObjectGuide.weights} | ogl)
    table = Table("source", "here", "file", "licence", "SHA-256", title="weights")
    for source in sources:
        known = weight_files.KNOWN.get(source)
        places = weight_files.candidates(source)
        path = next((p for p in places if p.is_file()), None)
        origin = f"{path or places[0]}" + ("" if path or not known else f"\nget it from {known.homepage}")
        licence = known.licence if known else ("Apache-2.0" if source.startswith("world:") else "")
        digest = weight_files.sha256(path) if path else ""
        table.add_row(source, "yes" if path else "no", origin, licence, digest)
    Console().print(table)


def sources_in(settings: Any) -> list[str]:
    """The weight sources in settings, however deep, each once; ``path`` of an option is a file too."""
    if isinstance(settings, str):
        return [settings] if weight_files.is_source(settings) else []
    if isinstance(settings, dict):
        parts = [f"file:{v}" if k == "path" else v for k, v in settings.items()]
    elif isinstance(settings, list | tuple):
        parts = list(settings)
    else:
        parts = [vars(settings)] if hasattr(settings, "__dict__") else []  # a default that is no plain value
    return list(dict.fromkeys(source for part in parts for source in sources_in(part)))


def world(out: Path = Path("data"), splits: list[str] | None = None, videos: int = 0, seconds: float = 10.0) -> None:
    """Write the embedded world.

    Args:
        out: data folder; shards go to its subfolder ``world``, videos to ``world_videos``.
        splits: those wanted; all by default.
        videos: write this many .mp4 files with their csv instead of shards.
        seconds: length of a video.
    """
    from avloc.world import ensure
    from avloc.world.video import write_videos

    if videos:
        print(write_videos(out / "world_videos", videos, seconds))
        return
    ensure(out, *(splits or ()))
    for index in sorted((out / "world").glob("world-*.json")):
        print(index, json.loads(index.read_text())["count"], "records")


def bench_step(
    method: Literal["acl", "souple", "gavs", "seac", "tvsl"] = "souple",
    batch_size: int | None = None,
    full_size: bool = False,
    steps: int = 3,
    precision: Literal["32", "bf16"] = "32",
    recompute: bool = False,
    compile: bool = False,
    stored: bool = False,
    json: bool = False,
) -> None:
    """Time, memory and FLOPs of a training step.

    ACL and SOUPLE against the passes that the step cannot do without; GAVS against its release's way, a loop that feeds
    the same frames one by one. SeAC's step reads stored features; told are the shares of VGGish and of the association
    module, without which no implementation could do. T-VSL's step has two sources; told is that of four, too.

    Args:
        method: whose step.
        batch_size: samples of the step; 8 by default, 16 frames of GAVS, 32 of SeAC, 16 of T-VSL.
        full_size: the published sizes with random weights instead of the embedded world's.
        steps: timed repetitions; the median is printed.
        precision: of the autocast.
        recompute: recompute the decoder in backward (ACL and SOUPLE).
        compile: compile the vision tower (ACL and SOUPLE).
        stored: the image encoder's frozen part comes from stored features (GAVS).
        json: print one JSON object.
    """
    from avloc.bench.step import measure_step, print_result

    if method == "gavs":
        if recompute or compile:
            raise UsageError("bench step --method gavs has neither --recompute nor --compile. Leave them out.")
        from avloc.bench.gavs import measure_gavs

        print_result(measure_gavs(batch_size or 16, full_size, steps, precision, stored), json)
        return
    if method == "seac":
        if recompute or compile:
            raise UsageError("bench step --method seac has neither --recompute nor --compile. Leave them out.")
        from avloc.bench.seac import measure_seac

        print_result(measure_seac(batch_size or 32, full_size, steps, precision), json)
        return
    if method == "tvsl":
        if recompute or compile or stored:
            raise UsageError("bench step --method tvsl has no --recompute, --compile or --stored. Leave them out.")
        from avloc.bench.tvsl import measure_tvsl

        print_result(measure_tvsl(batch_size or 16, full_size, steps, precision), json)
        return
    if stored:
        raise UsageError(f"bench step --stored is for gavs; {method} stores no features. Leave it out.")
    print_result(measure_step(method, batch_size or 8, full_size, steps, precision, recompute, compile), json)


def bench_loader(
    train: str = "like-vggsound",
    root: Path = Path("data"),
    workers: int = 1,
    batch_size: int = 16,
    image_size: int = 352,
    seconds: float = 10.0,
    batches: int = 60,
    json: bool = False,
) -> None:
    """Samples per second and worker of the training loader, against a bare decode of the same bytes.

    Args:
        train: training set, as in a YAML; by default one of VGGSound's sizes that is made on the spot.
        root: data folder.
        workers: loader processes.
        batch_size: samples of a batch.
        image_size: side of the pictures.
        seconds: length of the sounds.
        batches: batches to time.
        json: print one JSON object.
    """
    from avloc.bench.loader import measure_loader
    from avloc.bench.step import print_result

    print_result(measure_loader(train, root, workers, batch_size, image_size, seconds, batches), json)


def bench_metrics(maps: int = 500, size: int = 224, repeats: int = 3, json: bool = False) -> None:
    """Time of every metric against a plain NumPy loop of its definition, in the same run.

    Args:
        maps: samples.
        size: side of a map, pixels.
        repeats: timed repetitions; the median is printed.
        json: print one JSON object.
    """
    from avloc.bench.metrics import measure_metrics
    from avloc.bench.step import print_result

    print_result(measure_metrics(maps, size, repeats), json)
