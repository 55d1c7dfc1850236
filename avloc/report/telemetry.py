"""What a run leaves behind: speed and memory curves, sample panels, and where it came from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import wandb
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from avloc.files import complete
from avloc.methods.acl.inversion import Heard, class_phrases, heard_as
from avloc.methods.base import Localizer, global_seed
from avloc.report.keys import KeysError, aliases, near, read_keys
from avloc.report.panels import (
    THRESHOLD,
    Panel,
    gallery,
    jpeg,
    marked,
    overlay,
    page,
    panel_strip,
    sources_of,
    wav,
)
from avloc.report.published import Reference
from avloc.report.results import MODEL
from avloc.types import AVBatch, Localization

__all__ = ["Panels", "Provenance", "Throughput", "default_loggers", "git_state", "wandb_offline"]

PACKAGE = Path(__file__).resolve().parents[1]
HEIGHT, CHOSEN_HEIGHT = 224, 512
"""Of a picture that a test keeps, and of one that was asked for by its key, in pixels."""
PACKAGES = (
    "avloc",
    "torch",
    "lightning",
    "torchmetrics",
    "transformers",
    "webdataset",
    "numpy",
    "pillow",
    "av",
)


def wandb_offline() -> bool:
    """Whether W&B shall stay on this machine: as ``WANDB_MODE`` says, else unless the user is logged in.

    Logged in means a key in ``WANDB_API_KEY`` or, for ``WANDB_BASE_URL``, in netrc; nothing is sent anywhere.
    """
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode not in ("online", "shared")
    # Not wandb.setup(): it freezes W&B's settings before Lightning sets the mode; init would ask for a key.
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return not (os.environ.get("WANDB_API_KEY") or in_netrc(host))


def in_netrc(url: str) -> bool:
    """Whether netrc (``$NETRC``, else that of the home folder) knows a server; a damaged file knows none."""
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    path = next((p for p in map(Path, map(os.path.expanduser, files)) if p.is_file()), None)
    try:
        return path is not None and netrc(path).authenticators(urlsplit(url).netloc) is not None
    except (NetrcParseError, OSError):
        return False


def default_loggers(
    save_dir: Path | str, name: str, log: CSVLogger | None = None, wandb_id: str | None = None
) -> list[Logger]:
    """A CSV logger, whose folder is the run's, and W&B beside it; no network unless `wandb_offline` says so.

    Args:
        save_dir: folder of all runs.
        name: the experiment's; the run's folder is ``save_dir/name/version_N``.
        log: of a run that goes on, in place of a new one.
        wandb_id: W&B's name of that run.
    """
    offline = wandb_offline()
    # An offline run's pictures and sounds wait there for `wandb sync`; W&B's own choice is the home folder.
    os.environ.setdefault("WANDB_DATA_DIR", str(Path(save_dir).absolute() / "wandb"))
    # Lightning turns offline into WANDB_MODE=dryrun, which would override a user's "disabled".
    mode = os.environ.get("WANDB_MODE") or ("offline" if offline else "online")
    options: dict[str, Any] = {"name": name, "save_dir": save_dir, "project": "avloc", "mode": mode}
    if wandb_id:
        options |= {"version": wandb_id, "resume": "allow"}
    return [log or CSVLogger(save_dir, name=name), WandbLogger(offline=offline, **options)]


class Throughput(Callback):
    """Logs ``time/samples_per_s`` over all processes, ``memory/gpu_peak_gb`` and ``lr`` while training.

    Speed is a mean over ``log_every_n_steps`` batches, with their loading and without validation.
    """

    def __init__(self) -> None:
        self.started, self.samples = 0.0, 0

    def restart(self) -> None:
        self.started, self.samples = time.perf_counter(), 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: AVBatch, batch_idx: int
    ) -> None:
        # Every process trains on equally many samples, so nothing has to be gathered.
        self.samples += len(batch) * trainer.world_size
        every: int = getattr(trainer, "log_every_n_steps", 50)
        if (batch_idx + 1) % every:
            return
        values = {"time/samples_per_s": self.samples / max(time.perf_counter() - self.started, 1e-9)}
        if pl_module.device.type == "cuda":
            values["memory/gpu_peak_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        values |= {"lr" if not i else f"lr/{i}": float(group["lr"]) for i, group in enumerate(groups)}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        self.restart()


class Panels(Callback):
    """Pictures with sound of samples of each evaluation set.

    Writes, of the first ``count`` samples, ``panels/<set>.png`` and ``panels/<set>.html`` into the run's folder and,
    with a `WandbLogger`, a table ``panels/<set>``; process zero shows the samples that it scored. A test also leaves
    ``panels/<set>/<index>.jpg`` and ``.wav`` of ``singles`` samples spread evenly over each set, the same ones in every
    run, and of every sample that ``keys`` name, for the pictures of `avloc report`; beside them ``<index>.truth.jpg``
    and ``<index>.heat.jpg``, from which figures are put together. Where one picture has several sounds (an interactive
    group, the conditions of a robust sample), all or none of them are kept. Every process writes its own of these, and
    tells of them in ``panels/panels.<process>.json``.

    Args:
        count: samples per set.
        every_n_epochs: in training, after which validations; 0 for none.
        singles: samples per set that a test keeps one by one.
        heard_as: class phrases that are told of each of those, where a method's sounds lie in CLIP's text space.
        keys: samples that a test keeps besides, larger: ``'[KEY, KEY]'``, ``KEY,KEY`` or a text file with one a line.
            A key is a sample's in ``per_sample.parquet``; an interactive group, a sample without its ``@<condition>``
            and a record without its ``.f<frame>`` mean all that belong to them. A key that no test set has is an error.

    Raises:
        KeysError: ``keys`` is no list of names; when a test starts: no test set has one of them.
    """

    def __init__(
        self,
        count: int = 8,
        every_n_epochs: int = 5,
        singles: int = 24,
        heard_as: int = 3,
        keys: list[str] | str | None = None,
    ) -> None:
        self.count, self.every_n_epochs, self.singles, self.heard_as = count, every_n_epochs, singles, heard_as
        self.keys = frozenset(read_keys(keys))
        self.held: dict[str, list[Panel]] = {}
        self.folder = Path()
        self.places: dict[int, frozenset[int]] = {}
        self.asked: dict[int, frozenset[int]] = {}
        self.phrases: dict[int, list[str]] = {}
        self.told: list[dict[str, Any]] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.held = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.held, self.places, self.asked, self.phrases, self.told = {}, {}, {}, {}, []
        # Asked once: the answer is broadcast, and processes may have different numbers of batches.
        self.folder = run_folder(trainer) / "panels"
        if self.keys:
            self.ask(getattr(getattr(trainer, "datamodule", None), "test_sets", None) or [])

    def ask(self, sets: Sequence[Any]) -> None:
        """Find the samples that ``keys`` name.

        Raises:
            KeysError: no set has one of them.
        """
        known: set[str] = set()
        for loader, data in enumerate(sets):
            if data.row == MODEL:
                names = [aliases(data.key(i), data.picture(i)) for i in range(len(data))]
                known.update(name for alias in names for name in alias)
                self.asked[loader] = frozenset(i for i, alias in enumerate(names) if self.keys.intersection(alias))
        if unknown := sorted(self.keys - known):
            raise KeysError(
                f"panels.keys: no test set has {', '.join(near(key, known) for key in unknown)}. The keys of a set "
                "are in per_sample.parquet of a tested run."
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: AVBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.wanted(trainer):
            self.add(trainer, pl_module, outputs, batch, dataloader_idx, "val")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: AVBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.add(trainer, pl_module, outputs, batch, dataloader_idx, "test")
        self.keep(trainer, pl_module, outputs, batch, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wanted(trainer):
            self.write(trainer, "val_")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, "")
        content = {"processes": trainer.world_size, "samples": self.told}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"panels.{trainer.global_rank}.json", content)

    def wanted(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        if trainer.state.fn != "fit":
            return True
        return bool(self.every_n_epochs) and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def add(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        answer: Localization,
        batch: AVBatch,
        loader: int,
        stage: str,
    ) -> None:
        """Keep what is still missing of a set's first samples."""
        held = self.held.setdefault(set_name(trainer, loader, stage), [])
        if trainer.is_global_zero and len(held) < self.count:
            rows = range(min(self.count - len(held), len(batch)))
            held += panels_of(batch, answer, rows, rate_of(pl_module))

    def keep(
        self, trainer: Trainer, pl_module: LightningModule, answer: Localization, batch: AVBatch, loader: int
    ) -> None:
        """Write those samples of a batch that belong to the evenly spread ones of its set."""
        sets = getattr(getattr(trainer, "datamodule", None), "test_sets", None)
        if not sets or sets[loader].row != MODEL:
            return
        if loader not in self.places:
            scored = scored_samples(trainer, loader, len(sets[loader]), len(batch))
            self.places[loader] = spread_pictures(sets[loader], scored, self.singles)
        asked = self.asked.get(loader, frozenset())
        rows = [i for i, place in enumerate(batch.index.tolist()) if place in self.places[loader] or place in asked]
        slug = file_name(sets[loader].name)
        said: dict[int, Heard] = {}
        if rows:
            if loader not in self.phrases:
                self.phrases[loader] = class_phrases(sets[loader])
            found = heard_as(pl_module, batch.take(rows), self.phrases[loader], self.heard_as)
            said = dict(zip(rows, found, strict=True)) if found else {}
        panels = panels_of(batch, answer, rows, rate_of(pl_module), class_names(sets[loader]) if rows else None)
        for i, panel in zip(rows, panels, strict=True):
            place = int(batch.index[i])
            sounding = batch.sounding is None or bool(batch.sounding[i])
            if not sounding:
                panel.truth = None  # what is drawn there is silent
            file = f"{slug}/{place:06d}"
            (self.folder / slug).mkdir(parents=True, exist_ok=True)
            height = CHOSEN_HEIGHT if place in asked else HEIGHT
            tiles = {
                "picture": panel_strip(panel.image, panel.truth, panel.heatmap, sources=panel.sources),
                "true": marked(panel.image.permute(1, 2, 0).numpy(), panel.truth, panel.sources),
                "heat": overlay(panel.image, panel.heatmap, panel.truth, sources=panel.sources),
            }
            files = {"picture": f"{file}.jpg", "true": f"{file}.truth.jpg", "heat": f"{file}.heat.jpg"}
            for tile, name in files.items():
                (self.folder / name).write_bytes(jpeg(tiles[tile], height))
            if panel.audio is not None:
                (self.folder / f"{file}.wav").write_bytes(wav(panel.audio, panel.rate))
            self.told.append(
                {
                    "set": sets[loader].name,
                    "index": place,
                    "key": batch.key[i],
                    "shows": picture_of(sets[loader], place) or batch.key[i],
                    "label": ", ".join(batch.label[i]) if batch.label else "",
                    "negative": batch.negative[i] if batch.negative else "",
                    "sounding": sounding and (panel.truth is None or bool((panel.truth > 0).any())),
                    "overlap": panel.overlap,
                    "share": float((panel.heatmap >= THRESHOLD).float().mean()),
                    "confidence": float(answer.confidence[i].max()),
                    "heard_as": said[i] if said else [],
                    "sources": panel.sources.legend if panel.sources else [],
                    **files,
                    "sound": None if panel.audio is None else f"{file}.wav",
                }
            )

    def write(self, trainer: Trainer, prefix: str) -> None:
        """Both files of each set, and the W&B table."""
        folder = run_folder(trainer) / "panels"
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name, panels in self.held.items():
            slug = prefix + file_name(name)
            gallery(panels, folder / f"{slug}.png", name)
            page(panels, folder / f"{slug}.html", name)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    step = {"trainer/global_step": trainer.global_step}
                    logger.experiment.log({f"panels/{slug}": wandb_table(panels)} | step)
        self.held = {}


class Provenance(Callback):
    """Writes ``run.json`` and the loggers' configuration: what ran, from which code, on which weights.

    Args:
        experiment: the run's name in reports; "" for its folder's name.
        reproduces: the published row that the run is to be compared with.
    """

    def __init__(self, experiment: str = "", reproduces: Reference | None = None) -> None:
        self.experiment, self.reproduces = experiment, reproduces

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record(trainer, pl_module)

    def record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        frozen = getattr(pl_module, "frozen_files", {})
        about: dict[str, Any] = {
            "experiment": self.experiment,
            "seed": global_seed() if trainer.state.fn == "fit" else getattr(pl_module, "trained_with_seed", None),
            "method": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
            "reproduces": asdict(self.reproduces) if self.reproduces else None,
            "git": git_state(),
            "packages": versions(),
            "weights": {name: {"source": f.source, "sha256": f.sha256} for name, f in frozen.items()},
            "parameters": parameters(pl_module),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "config": configuration(trainer),
        }
        print(parameter_line(pl_module))
        for logger in trainer.loggers:
            logger.log_hyperparams({"provenance": about})
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", about)


def write_json(path: Path, content: Any) -> None:
    """The file gets its own name only when it is complete."""
    with complete(path) as part:
        part.write_text(json.dumps(content, indent=1, default=str) + "\n")


def run_folder(trainer: Trainer) -> Path:
    """The first logger's folder. To be asked on every process, since Lightning broadcasts it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def file_name(name: str) -> str:
    """The name of a set as that of a file."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def set_name(trainer: Trainer, loader: int, stage: str) -> str:
    """The evaluation set behind a loader, marked where its sounds are not its own."""
    sets = getattr(getattr(trainer, "datamodule", None), f"{stage}_sets", None)
    if not sets:
        return f"set{loader}"
    data = sets[loader]
    return str(data.name) if data.row == MODEL else f"{data.name} {data.row}"


def scored_samples(trainer: Trainer, loader: int, size: int, batch_size: int) -> int:
    """How many samples of a test set this test meets: its size, unless ``limit_test_batches`` is set."""
    loaders: Any = trainer.test_dataloaders
    loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
    batches = trainer.num_test_batches[loader]
    return size if batches >= len(loaders[loader]) else min(size, int(batches) * batch_size * trainer.world_size)


def spread(size: int, count: int) -> frozenset[int]:
    """``count`` places spread evenly over 0..size-1, both ends among them."""
    return frozenset(range(size) if size <= count else (round(i * (size - 1) / (count - 1 or 1)) for i in range(count)))


def spread_pictures(data: Any, size: int, count: int) -> frozenset[int]:
    """About ``count`` of the first ``size`` places of a set, spread evenly over its pictures, each with all of its
    sounds; the places are `spread` where every picture has one sound."""
    shown: dict[str, list[int]] = {}
    for i in range(size):
        shown.setdefault(picture_of(data, i) or str(i), []).append(i)
    pictures = list(shown.values())
    several = max(1, round(count * len(pictures) / size)) if size and count else 0
    return frozenset(i for p in spread(len(pictures), several) for i in pictures[p])


def picture_of(data: Any, place: int) -> str:
    """The name that a sample's picture has in its set, "" for a set that does not tell."""
    return str(data.picture(place)) if hasattr(data, "picture") else ""


def class_names(data: Any) -> dict[int, str]:
    """Names of the classes that a set's records name, by their numbers."""
    records = getattr(data, "records", ())
    targets = (t for record in records for t in record.targets)
    return {t.class_id: t.class_name for t in targets if getattr(t, "class_id", -1) >= 0}


def rate_of(module: LightningModule) -> int:
    return module.input_spec.sample_rate if isinstance(module, Localizer) else 16_000


def panels_of(
    batch: AVBatch, answer: Localization, rows: Sequence[int], rate: int, spelt: Mapping[int, str] | None = None
) -> list[Panel]:
    """Some samples of a batch on the CPU. The map is the largest over the sources; of several sources, each has its own
    colour.

    Args:
        rate: Hz.
        spelt: names of the classes that a method may answer beside the true ones.
    """
    place = torch.as_tensor(rows, dtype=torch.long, device=answer.heatmap.device)
    maps = answer.heatmap[place].detach().float().cpu()
    classes = None if answer.label is None else answer.label[place].tolist()
    batch = batch.take(rows)
    truth = None if batch.truth is None else batch.truth.float().cpu()
    image = (batch.image if batch.image.ndim == 4 else batch.image[:, 0]).cpu()
    names = batch.label or [[]] * len(batch)
    true = [[]] * len(batch) if batch.class_id is None else batch.class_id.tolist()
    kinds = batch.negative or [""] * len(batch)
    out = []
    for i in range(len(batch)):
        silent = batch.sounding is not None and not bool(batch.sounding[i])
        answered = None if classes is None else classes[i]
        out.append(
            Panel(
                key=batch.key[i],
                image=legible(within(image[i], batch, i)),
                heatmap=maps[i].amax(0),
                truth=None if truth is None else truth[i].amax(0),
                label=" / ".join(part for part in (", ".join(names[i]), kinds[i]) if part),
                audio=batch.audio[i].float().cpu(),
                rate=rate,
                sources=sources_of(
                    None if truth is None or silent else truth[i], maps[i], names[i], true[i], answered, spelt
                ),
            )
        )
    return out


def within(image: torch.Tensor, batch: AVBatch, i: int) -> torch.Tensor:
    """A picture without the padding that makes it square."""
    if batch.size is None:
        return image
    height, width = batch.size[i].tolist()
    return image[:, :height, :width]


def legible(image: torch.Tensor, side: int = 160) -> torch.Tensor:
    """A picture ``[3, H, W]`` whose pixels are repeated until its short side has ``side`` pixels or more."""
    times = -(-side // min(image.shape[-2:]))
    return image.repeat_interleave(times, -2).repeat_interleave(times, -1)


def wandb_table(panels: Sequence[Panel]) -> wandb.Table:
    table = wandb.Table(columns=["key", "image", "overlay", "label", "IoU", "sound"])
    for p in panels:
        table.add_data(
            p.key,
            wandb.Image(p.image.permute(1, 2, 0).numpy()),
            wandb.Image(overlay(p.image, p.heatmap, p.truth)),
            p.label,
            p.overlap,
            None if p.audio is None else wandb.Audio(p.audio.numpy(), sample_rate=p.rate),
        )
    return table


def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether it was changed since; empty outside of a checkout."""
    try:
        top = git("rev-parse", "--show-toplevel")
        if Path(top).resolve() != PACKAGE.parent:
            return {}
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cuda": torch.version.cuda or ""}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found


def configuration(trainer: Trainer) -> Any:
    """What LightningCLI was configured with; None for a trainer built in Python."""
    saver = next((c for c in trainer.callbacks if isinstance(c, SaveConfigCallback)), None)  # type: ignore[attr-defined]
    return None if saver is None else yaml.safe_load(saver.parser.dump(saver.config, skip_none=False))


def parameters(module: LightningModule) -> dict[str, int]:
    counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return {"trainable": sum(n for n, trained in counts if trained), "total": sum(n for n, _ in counts)}


def parameter_line(module: LightningModule) -> str:
    """``trainable parameters: 1.77 M of 238.10 M (paper: 2.38 M)``; the paper's from ``paper_parameters``."""
    counts = {name: f"{n / 1e6:.2f} M" for name, n in parameters(module).items()}
    paper = getattr(module, "paper_parameters", None)
    printed = f" (paper: {paper / 1e6:.2f} M)" if paper else ""
    return f"trainable parameters: {counts['trainable']} of {counts['total']}{printed}"
