"""Pictures with sound of what a run answered: sample panels, and the single pictures of reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import wandb
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from avloc.evaluation.answers import AnswersCallback
from avloc.files import write_whole
from avloc.methods.acl.inversion import Heard, class_phrases, heard_as
from avloc.methods.base import Localizer
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
from avloc.report.results import MODEL
from avloc.report.telemetry import file_name, run_folder, set_name, write_json
from avloc.types import AVBatch, Localization

__all__ = ["Panels"]

HEIGHT, CHOSEN_HEIGHT = 224, 512
"""Of a picture that a test keeps, and of one that was asked for by its key, in pixels."""


class Panels(AnswersCallback):
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

    def take(self, stage: str, trainer: Trainer, outputs: Any, batch: AVBatch, loader: int) -> None:
        if stage == "test" or self.wanted(trainer):
            self.add(stage, trainer, outputs, batch, loader)
        if stage == "test":
            self.keep(trainer, outputs, batch, loader)

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

    def add(self, stage: str, trainer: Trainer, answer: Localization, batch: AVBatch, loader: int) -> None:
        """Keep what is still missing of a set's first samples."""
        held = self.held.setdefault(set_name(trainer, loader, stage), [])
        if trainer.is_global_zero and len(held) < self.count:
            rows = range(min(self.count - len(held), len(batch)))
            held += panels_of(batch, answer, rows, rate_of(trainer.lightning_module))

    def keep(self, trainer: Trainer, answer: Localization, batch: AVBatch, loader: int) -> None:
        """Write those samples of a batch that belong to the evenly spread ones of its set."""
        module = trainer.lightning_module
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
            found = heard_as(module, batch.take(rows), self.phrases[loader], self.heard_as)
            said = dict(zip(rows, found, strict=True)) if found else {}
        panels = panels_of(batch, answer, rows, rate_of(module), class_names(sets[loader]) if rows else None)
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
                write_whole(self.folder / name, jpeg(tiles[tile], height), durable=False)
            if panel.audio is not None:
                write_whole(self.folder / f"{file}.wav", wav(panel.audio, panel.rate), durable=False)
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
