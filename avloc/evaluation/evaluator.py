"""The callback that turns what a method answers into the numbers of every protocol.

It reads the evaluation sets from the data module (``val_sets`` and ``test_sets``, in the order of the loaders) and
scores, in one pass over each set, the method, on request the method with object guidance, and the controls. A set
whose ``row`` is not ``model`` is the twin of the set of the same name under other sounds; it becomes the row of that
name. Sets that are marked ``calibration`` choose the universal threshold, which is then applied to every set.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from avloc.evaluation.answers import AnswersCallback
from avloc.evaluation.benchmarks import Benchmark, benchmark
from avloc.evaluation.measures import EXTENTS, IDENTITIES, UNIVERSAL, Measure, Scored, extents, identities
from avloc.evaluation.protocols import ProtocolError, protocol
from avloc.evaluation.results import Names, chosen_threshold, numbers, write_results, write_samples
from avloc.evaluation.summaries import Samples
from avloc.methods.baselines.controls import CONTROLS, Control, grid, mean_map, summed_truth
from avloc.methods.baselines.ogl import ObjectGuide, guided, object_map
from avloc.metrics.per_sample import PerSample
from avloc.types import AVBatch, Localization
from avloc.weights import locate

__all__ = ["GUIDED", "MEAN_MAP", "MODEL", "EvalSet", "Evaluator"]

log = logging.getLogger(__name__)
MODEL, GUIDED, MEAN_MAP = "model", "with OGL", "mean map"


class EvalSet(Protocol):
    """What the evaluator must know of a set (`avloc.data.indexed.EvalSet`)."""

    name: str
    row: str
    """``model``, or what was done to the sounds."""
    calibration: bool
    allow_missing: int
    """Unreadable samples that are tolerated on each process; they come with ``AVBatch.index`` -1."""
    notes: Sequence[str]
    """Known defects of the source, and what was done about them."""
    semantic_offset: int
    """What is added to a class for its number in semantic maps: 1 unless the label space counts the background."""

    def __len__(self) -> int: ...

    def mean_truth(self, rank: int, world: int) -> tuple[Any, int]: ...

    def class_counts(self) -> Mapping[int, int]: ...


class Evaluator(AnswersCallback):
    """Scores every evaluation set under every protocol of its benchmark.

    Logged are the primary protocol's metrics as ``test/<set>/<metric>``, the other protocols' as
    ``test/<set>/<protocol>/<metric>``, and the primary metrics of the other rows as
    ``test/<set>/<row>/<metric>`` (``val/...`` in validation). Process zero writes ``results.json`` and
    ``per_sample.parquet`` (``val_results.json``, ``val_per_sample.parquet`` in validation).

    Args:
        controls: score the full frame, the centre box, the random map and the set's mean ground-truth map too.
            They do not depend on the method, so the validation inside ``fit`` leaves them out.
        ogl: score the method with object-guided localisation too, as the row ``with OGL``:
            ``evaluator: {ogl: {weights: resnet18}}`` in a YAML, ``--evaluator.ogl '{weights: resnet18}'`` on a command
            line. None for no such row; the validation inside ``fit`` leaves it out.
        out: folder of the files; None for the logger's, else the trainer's ``default_root_dir``.
        protocols: set to protocol names, instead of those of its benchmark; the first one heads the set.

    Attributes:
        results: what ``results.json`` holds, on every process.
        samples: ``(set, row)`` to its per-sample columns, on every process.

    Raises:
        ProtocolError: an unknown protocol; or, when a run starts, one that needs what a set does not have.
        WeightError: the object map's weights are missing (when a run starts).
    """

    def __init__(
        self,
        controls: bool = True,
        ogl: ObjectGuide | None = None,
        out: str | None = None,
        protocols: dict[str, list[str]] | None = None,
    ) -> None:
        self.controls = controls
        self.ogl = ogl
        self.out = out
        self.protocols = protocols or {}
        for name in {p for names in self.protocols.values() for p in names}:
            protocol(name)
        self.results: dict[str, Any] = {}
        self.samples: dict[tuple[str, str], Samples] = {}
        self.passes: list[Pass] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.ogl is not None:
            locate(self.ogl.weights)  # a missing file is told before a training, not after it

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start(trainer, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start(trainer, "test")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish(trainer, pl_module, "test")

    def start(self, trainer: Trainer, stage: str) -> None:
        self.passes = []
        if trainer.sanity_checking:
            return
        sets: list[EvalSet] | None = getattr(getattr(trainer, "datamodule", None), f"{stage}_sets", None)
        if sets is None:
            raise RuntimeError(
                f"The Evaluator needs a data module with {stage}_sets, in the order of its loaders; give the "
                "trainer an avloc data module instead of bare loaders, or remove the Evaluator."
            )
        limits: list[int | float] = trainer.num_val_batches if stage == "val" else trainer.num_test_batches
        loaders: Any = trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders
        controls = self.controls and trainer.state.fn != "fit"
        names = [(data.name, data.row) for data in sets]
        if len(set(names)) < len(names) or len(limits) != len(names):
            raise RuntimeError(
                f"The data module's {stage}_sets {names} (name, row) do not fit its {len(limits)} "
                "loaders: each loader needs one set, and each set a name and row of its own."
            )
        universal = any(data.calibration for data in sets)
        refined = None
        if self.ogl is not None and trainer.state.fn != "fit":
            refined = Guidance(self.ogl, trainer.lightning_module.device)
        for i, data in enumerate(sets):
            loader = loaders[i] if isinstance(loaders, list | tuple) else loaders
            whole = limits[i] >= len(loader)
            scored = benchmark(data.name, self.protocols.get(data.name))
            refuse_what_is_lacking(data, scored)
            own = data.row == MODEL and not data.calibration
            self.passes.append(
                Pass(data, scored, whole, controls and own, universal, trainer, refined if own else None)
            )

    def take(self, stage: str, trainer: Trainer, outputs: Any, batch: AVBatch, loader: int) -> None:
        if not self.passes:
            return
        if not isinstance(outputs, Localization):
            raise TypeError(
                f"The Evaluator scores Localizations, but the step returned {type(outputs).__name__}: "
                "validation_step and test_step must return what localize() answers."
            )
        self.passes[loader].add(outputs, batch)

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self.passes:
            return
        sets: dict[str, dict[str, Any]] = {}
        names: dict[str, Names] = {}
        self.samples = {}
        for run in self.passes:
            names[run.data.name], unread = gathered(run.names, run.unread)
            entry = sets.setdefault(run.data.name, description(run))
            for row, metric in run.rows.items():
                columns: Samples = {k: v.cpu() for k, v in metric.table().items()}
                self.samples[run.data.name, row] = columns
                entry["counted"][row] = len(columns["index"])
                entry["missing"][row] = unread
        calibration = {r.data.name: self.samples[r.data.name, MODEL] for r in self.passes if r.data.calibration}
        chosen = chosen_threshold(calibration)
        for (name, row), columns in self.samples.items():
            sets[name]["rows"][row] = numbers(sets[name]["protocols"], columns, chosen["place"] if chosen else None)
        sets = dict(sorted(sets.items(), key=lambda item: item[1]["calibration"]))  # what is tested comes first
        self.results = {"stage": stage, "epoch": trainer.current_epoch, "universal": chosen, "sets": sets}
        for name, entry in sets.items():
            scalars = named(f"{stage}/{name}", entry)
            # Every process has the same values: there is nothing to synchronise, whatever Lightning advises.
            warnings.filterwarnings("ignore", r".*self\.log\('(val|test)/.*sync_dist=True.*")
            pl_module.log_dict(scalars, sync_dist=False, add_dataloader_idx=False, batch_size=1)
        folder = Path(self.out or trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            prefix = "" if stage == "test" else "val_"
            write_results(folder / f"{prefix}results.json", self.results)
            write_samples(folder / f"{prefix}per_sample.parquet", self.samples, names)
        self.passes = []


class Guidance:
    """The answers of a method with the object map of `ObjectGuide` in them, on one device."""

    def __init__(self, guide: ObjectGuide, device: torch.device) -> None:
        self.guide, self.network = guide, guide.build().to(device)

    def __call__(self, answer: Localization, batch: AVBatch) -> Localization:
        size = answer.heatmap.shape[-2:] if batch.truth is None else grid(batch)
        return guided(answer, object_map(self.network, batch), (size[0], size[1]), self.guide)

    def __str__(self) -> str:
        file = self.network.file
        name = f"{file.source} (sha256 {file.sha256[:12]})" if file.sha256 else file.source
        return f"{GUIDED}: {self.guide.reading} with alpha {self.guide.alpha:g}, ResNet-18 {name}."


class Pass:
    """One pass over one evaluation set: a `PerSample` for each row that is scored in it."""

    def __init__(
        self,
        data: EvalSet,
        scored: Benchmark,
        whole: bool,
        controls: bool,
        universal: bool,
        trainer: Trainer,
        guidance: Guidance | None = None,
    ) -> None:
        self.data, self.benchmark, self.whole, self.guidance = data, scored, whole, guidance
        self.names: dict[int, tuple[str, str, str]] = {}
        self.unread: list[str] = []
        device, world = trainer.lightning_module.device, trainer.world_size
        measures = [m for p in scored.protocols for m in protocol(p).measures] + [UNIVERSAL] * universal
        self.measures: dict[str, Measure] = {m.name: m for m in measures}
        columns = {f"{m.name}:{c}": k for m in self.measures.values() for c, k in m.columns.items()}
        self.controls: dict[str, Control] = dict(CONTROLS) if controls else {}
        needed = controls and any(m.needs == "truth" for m in self.measures.values())
        if needed and (mean := summed_truth(data, trainer)) is not None:
            self.controls[MEAN_MAP] = partial(mean_map, mean=mean.to(device))
        counts = data.class_counts()
        self.majority = max(sorted(counts), key=counts.__getitem__) if counts else None
        named = self.majority is not None and any(m.needs == "semantic" for m in self.measures.values())
        self.classless = f"rows without classes are given the most frequent one, {self.majority}" if named else ""
        self.rows = {
            row: PerSample(
                len(data),
                columns | dict(IDENTITIES) | dict(EXTENTS),
                allow_unread=data.allow_missing * world,
                partial=not whole,
                name=f"{data.name} ({row})",
            ).to(device)
            for row in [data.row, *([GUIDED] if guidance else []), *self.controls]
        }

    def add(self, answer: Localization, batch: AVBatch) -> None:
        B = len(batch)
        labels = [", ".join(names) for names in batch.label] or [""] * B
        told = zip(batch.key, labels, batch.negative or [""] * B, strict=True)
        index = batch.index.tolist()
        self.names |= {i: t for i, t in zip(index, told, strict=True) if i >= 0}
        self.unread += [key for i, key in zip(index, batch.key, strict=True) if i < 0]
        common = identities(batch, partial(hashes, device=batch.device))
        answers = {self.data.row: answer} | {row: control(batch) for row, control in self.controls.items()}
        if self.guidance is not None:
            answers[GUIDED] = self.guidance(answer, batch)
        for row, given in answers.items():
            given = replace(given, heatmap=given.heatmap.detach().float(), confidence=given.confidence.detach().float())
            self.check(given, batch, row)
            scored = Scored(self.named(given, batch), batch, self.data.semantic_offset)
            values = {
                f"{measure.name}:{column}": value
                for measure in self.measures.values()
                for column, value in measure.function(scored).items()
            }
            self.rows[row].update(batch.index, **values, **common, **extents(scored))

    def named(self, answer: Localization, batch: AVBatch) -> Localization:
        """For a semantic score, an answer without classes is given the set's most frequent one."""
        if batch.semantic is None or answer.semantic is not None or answer.label is not None or self.majority is None:
            return answer
        return replace(answer, label=torch.full_like(answer.confidence, self.majority, dtype=torch.int64))

    def check(self, answer: Localization, batch: AVBatch, row: str) -> None:
        if len(answer.heatmap) != len(batch):
            raise ValueError(f"{self.data.name}: {row} answered {len(answer.heatmap)} maps for {len(batch)} samples.")
        finite = torch.isfinite(answer.heatmap).flatten(1).all(1) & torch.isfinite(answer.confidence).all(1)
        good = finite | (batch.index < 0)
        if not bool(good.all()):
            keys = [k for k, ok in zip(batch.key, good.tolist(), strict=True) if not ok]
            raise ValueError(
                f"{self.data.name}: the heat maps or confidences of {len(keys)} samples ({', '.join(keys[:3])}) hold "
                "NaN or infinity and cannot be scored. Check the checkpoint and the precision of the heat maps."
            )
        for need, there in (("truth", batch.truth), ("semantic", batch.semantic)):
            needy = [m.name for m in self.measures.values() if m.needs == need]
            if there is None and needy:
                maps = "ground-truth maps" if need == "truth" else "semantic maps"
                raise ValueError(
                    f"{self.data.name}: the batch of {', '.join(batch.key[:3])} has no {maps}, which the measures "
                    f"{', '.join(needy)} need. Name other protocols in evaluator.protocols; negative/pia needs none."
                )


def refuse_what_is_lacking(data: EvalSet, scored: Benchmark) -> None:
    """Tell before anything is computed that a set has no groups, or no picture with several sources.

    Raises:
        ProtocolError: a protocol needs them; sets that do not show their records are taken at their word.
    """
    records = getattr(data, "records", None)
    if not records:
        return
    there = {"": True, "groups": any(r.group for r in records), "sources": any(len(r.targets) > 1 for r in records)}
    for name in scored.protocols:
        need = protocol(name).needs
        if not there[need]:
            what = {"groups": "interactive groups (Record.group)", "sources": "a record with several sources"}[need]
            raise ProtocolError(
                f"{data.name} cannot be scored by {name}, which needs {what}: none of its {len(records)} records has. "
                f"Name other protocols: --evaluator.protocols '{{{data.name}: [vggss/acl]}}'."
            )


def hashes(names: list[str], device: torch.device) -> Tensor:
    """One number per name, float64 ``[B]``: 48 bits of its BLAKE2 hash, 0 for ""."""
    numbers = [int.from_bytes(blake2b(n.encode(), digest_size=6).digest(), "big") if n else 0 for n in names]
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def description(run: Pass) -> dict[str, Any]:
    heading, metric = run.benchmark.primary
    return {
        "samples": len(run.data),
        "published": run.benchmark.published,
        "published_samples": run.benchmark.size,
        "whole": run.whole,
        "calibration": run.data.calibration,
        "protocols": list(run.benchmark.protocols),
        "primary": {"protocol": heading, "metric": metric},
        "notes": [n for n in (run.benchmark.note, run.classless, *run.data.notes, str(run.guidance or "")) if n],
        "counted": {},
        "missing": {},
        "rows": {},
    }


def named(prefix: str, entry: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of a set under their stable names."""
    primary = entry["primary"]["protocol"]
    out: dict[str, float] = {}
    for row, scores in entry["rows"].items():
        for name, metrics in scores.items():
            if row != MODEL and name != primary:
                continue
            parts = ["" if row == MODEL else row.replace(" ", "_"), "" if name == primary else name]
            path = "/".join([prefix, *filter(None, parts)])
            out |= {f"{path}/{k}": v for k, v in metrics.items() if not isinstance(v, list)}
    return out


def gathered(names: Names, unread: list[str]) -> tuple[Names, list[str]]:
    """The names that all processes met, by index, and the keys that none could read."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return names, sorted(unread)
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, (names, unread))
    met = {i: told for share, _ in shares for i, told in share.items()}
    return met, sorted(key for _, share in shares for key in share)
