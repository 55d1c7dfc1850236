"""One experiment under LightningCLI: what every YAML has in common is said here, once."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from avloc import RUNS
from avloc.data.module import AVDataModule
from avloc.errors import UsageError
from avloc.evaluation.evaluator import Evaluator
from avloc.experiment.checkpoints import (
    AtomicCheckpoints,
    BestModel,
    Journal,
    OwnFolder,
    ResumePoint,
    alone,
    leads,
    own_folder,
)
from avloc.experiment.signals import Preemption
from avloc.methods.base import Localizer
from avloc.methods.checkpoint import read_checkpoint
from avloc.methods.load import load_method
from avloc.names import settings_in
from avloc.processes import STARTED_BY, end_with_my_parent, name_to_children
from avloc.report.pictures import Panels
from avloc.report.predictions import Predictions
from avloc.report.provenance import Provenance
from avloc.report.published import Reference
from avloc.report.telemetry import Throughput, default_loggers, run_folder

__all__ = ["ExperimentCLI", "instantiate", "instantiate_method", "model_settings"]

NOT_BAREBONES = (
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "log_every_n_steps",
    "logger",
    "num_sanity_val_steps",
    "profiler",
)
"""What a YAML may say of a run, and Lightning refuses in its barebones mode, which does without."""

# Warnings about what is meant to be so: arguments are rewritten before parsing, frozen towers stay in eval mode, and a
# run's folder is made before its log, which is kept when the run goes on (`OwnFolder`).
EXPECTED = (
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*LightningCLI's args parameter is intended.*",
    ".*in eval mode at the start of training.*",
    ".*LeafSpec.*",
)


SAYS_NOTHING = "💡 Tip"
"""How Lightning's advice begins to install its other packages, for which it has no switch."""


def of_use(record: logging.LogRecord) -> bool:
    """Whether a line of Lightning's log is about the run."""
    return not record.getMessage().startswith(SAYS_NOTHING)


class ExperimentCLI(LightningCLI):
    """LightningCLI with the callbacks, loggers and checks of this project.

    Top-level keys of a YAML besides ``model``, ``data`` and ``trainer``: ``experiment`` (name, default the file's),
    ``reproduces`` (the published row), ``start_from`` (a checkpoint of the method whose learned weights a new run
    takes over), ``test_after_fit``, and the settings of the callbacks that every run has:
    ``evaluator``, ``checkpoint`` (the best model), ``resume`` (the newest state), ``panels``.
    """

    held: contextlib.ExitStack
    """What the run holds until it ends: its folder."""
    asked: str
    """The subcommand. The parsers of the others, which take as long to build, are not."""
    preemption: Preemption

    @classmethod
    def run(cls, args: list[str]) -> ExperimentCLI:
        torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message)
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(of_use)
        strict = {"allow_abbrev": False}
        cls.asked = args[0]
        end_with_my_parent()
        preemption = Preemption()
        try:
            with contextlib.ExitStack() as cls.held:
                cls.preemption = preemption
                cls.held.callback(preemption.close)
                cls.held.enter_context(name_to_children())
                return cls(
                    Localizer,
                    AVDataModule,
                    subclass_mode_model=True,
                    args=args,
                    seed_everything_default=0,
                    auto_configure_optimizers=False,
                    parser_kwargs={**strict, cls.asked: strict},
                    save_config_kwargs={"overwrite": True},
                    # No summary: its modules are the method's parts, its FLOPs those of an example that no method
                    # has; parameters and the cost of an answer are told by `Provenance`.
                    trainer_defaults={
                        "use_distributed_sampler": False,
                        "log_every_n_steps": 10,
                        "enable_model_summary": False,
                    },
                )
        except SIGTERMException as e:  # which would end as if all had gone well
            raise SystemExit(preemption.exit_code) from e

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        return {cls.asked: LightningCLI.subcommands()[cls.asked]}

    @classmethod
    def tell_keys(cls, subcommand: str, keys: list[str]) -> None:
        """Print every key that a YAML and the command line may set, or those of some top-level keys."""
        told = io.StringIO()
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(told):
            cls.run([subcommand, "--help"])
        parts = told.getvalue().split("\n\n")
        print("\n\n".join(p for p in parts if not keys or any(re.search(rf"^  --{key}\b", p, re.M) for key in keys)))

    def _parse_ckpt_path(self) -> None:
        # Lightning would let the checkpoint's hyper-parameters overrule the YAML without a word, even with another
        # method's. Here the YAML stands, and Localizer.on_load_checkpoint refuses what does not fit it.
        return

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        # Lightning's table of every number cuts their names; `after_test` and `after_validate` print what counts.
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})
        return parser

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # Nothing is unpickled, checkpoints included.
        return super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--experiment", type=str, default="", help="name of the run; the YAML's by default")
        parser.add_argument("--reproduces", type=Reference | None, default=None, help="published row to compare with")
        parser.add_argument("--start_from", type=Path | None, default=None, help="checkpoint to take the weights of")
        parser.add_argument("--test_after_fit", type=bool, default=False, help="test the best checkpoint when fitted")
        parser.add_lightning_class_args(Evaluator, "evaluator")
        parser.add_lightning_class_args(Panels, "panels")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(BestModel, "checkpoint")
        parser.add_lightning_class_args(ResumePoint, "resume")
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
                "resume.filename": "resume",
                "resume.enable_version_counter": False,
                "resume.save_on_train_epoch_end": True,
                "resume.every_n_train_steps": None,
                "resume.every_n_epochs": 1,
            }
        )

    @property
    def settings(self) -> Any:
        return self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        if not self.settings.experiment:
            files = self.settings.get("config") or ["run"]
            self.settings.experiment = Path(str(files[0])).stem
        if self.settings.trainer.barebones:
            for key in NOT_BAREBONES:
                self.settings.trainer[key] = None

    @cached_property
    def text(self) -> str:
        """All settings as ``config.yaml`` holds them. Dumping them takes long, so it is done once a run."""
        return dumped(self)

    def _dump_config(self) -> None:
        if not hasattr(self, "config_dump"):
            self.config_dump = yaml.safe_load(self.text)

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.model.configured = yaml.safe_load(self.text)["model"].get("init_args") or {}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self.settings
        own = self._get(self.config_init, "trainer").get("callbacks") or []
        callbacks: list[Callback] = [*own, Provenance(settings.experiment, self._get(self.config_init, "reproduces"))]
        if self.subcommand == "predict":
            callbacks.append(Predictions())
        if sys.stdout.isatty() and not settings.trainer.barebones and settings.trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        kwargs |= self.places()
        kwargs["callbacks"] = [*callbacks, Journal(), self.preemption]
        plugins = self.own_plugins()
        ours = [] if any(isinstance(plugin, CheckpointIO) for plugin in plugins) else [AtomicCheckpoints()]
        kwargs["plugins"] = [*plugins, *ours]
        self.save_config_callback = partial(saved_config, Dumped(self.text))  # type: ignore[assignment]
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config.get("barebones") or config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, ValueError) as e:
            raise UsageError(f"The trainer cannot be built so: {e}") from e

    def places(self) -> dict[str, Any]:
        """The trainer's arguments that say where a run's files go: into a folder of its own, never the working one."""
        settings = self.settings.trainer
        runs = Path(settings.default_root_dir or RUNS)
        if settings.fast_dev_run:  # leaves no logs; what it tries out it overwrites
            return {"default_root_dir": runs / self.settings.experiment / "fast_dev_run"}
        log, wandb_id = self.log(runs)
        if leads():
            self.held.enter_context(alone(Path(log.log_dir)))
        if settings.barebones or settings.logger is False:
            return {"default_root_dir": log.log_dir}
        if settings.logger in (None, True):
            return {"logger": default_loggers(runs, self.settings.experiment, log, wandb_id)}
        given = self._get(self.config_init, "trainer")["logger"]
        given = given if isinstance(given, list) else [given]
        with_folder = given and isinstance(given[0], CSVLogger | TensorBoardLogger)
        return {"logger": given if with_folder else [log, *given]}

    def own_plugins(self) -> list[Any]:
        own = self._get(self.config_init, "trainer").get("plugins") or []
        return own if isinstance(own, list) else [own]

    def log(self, runs: Path) -> tuple[OwnFolder, str | None]:
        """The CSV in the run's folder, and W&B's id of the run: new ones, or those of the run that goes on where its
        checkpoint lies.

        Raises:
            CheckpointError: training cannot go on from it.
        """
        checkpoint, name = (
            self.settings.get("ckpt_path") if self.subcommand == "fit" else None,
            self.settings.experiment,
        )
        if not checkpoint or checkpoint in ("last", "best", "hpc"):
            return OwnFolder(runs, name), None
        content = read_checkpoint(Path(checkpoint), resumable=True)
        version = own_folder(Path(checkpoint), runs, name)
        if version is None:
            return OwnFolder(runs, name), None
        state = content.get("callbacks", {}).get("Journal", {})
        log = OwnFolder(runs, name, version, state.get("rows", 0), content.get("global_step", 0))
        return log, state.get("wandb_id")

    def before_fit(self) -> None:
        if not self.model.trainable():
            raise UsageError(
                f"{type(self.model).__name__} has nothing to train. Test it: avloc test -c {self.settings.experiment}"
            )
        if self.settings.start_from:
            self.model.start_from(Path(self.settings.start_from))

    def after_fit(self) -> None:
        if self.settings.test_after_fit and not self.trainer.interrupted:
            best = next((c.best_model_path for c in self.trainer.checkpoint_callbacks if isinstance(c, BestModel)), "")
            model = self.model
            if best and model.learned_keys() - read_checkpoint(Path(best))["state_dict"].keys():
                model = load_method(Path(best), "cpu")  # of before layers were trained that had been as their file
            self.trainer.test(model, self.datamodule, ckpt_path=best or None, weights_only=True, verbose=False)
            self.after_test()

    def after_test(self) -> None:
        """Print each set's headline numbers beside the controls; all of them are in ``results.json``."""
        folder = run_folder(self.trainer)
        if STARTED_BY in os.environ:  # `avloc train` prints the report
            return
        if self.trainer.is_global_zero and (folder / "results.json").is_file():
            from avloc.report.tables import report

            report([folder], intervals=False)
            print(f"  every number: {folder / 'results.json'}; intervals and published rows: avloc report {folder}")

    def after_validate(self) -> None:
        if self.trainer.is_global_zero:
            told = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            print("\n".join(f"{name:{max(map(len, told))}}  {told[name]:.4f}" for name in sorted(told)))


def dumped(cli: ExperimentCLI) -> str:
    """The settings of a command line; they were checked when they were read."""
    return cli._parser(cli.subcommand).dump(cli.settings, skip_none=False, skip_validation=True)


class Dumped:
    """Stands for the parser where that would be asked for the same text again."""

    def __init__(self, text: str) -> None:
        self.text = text

    def dump(self, *_: Any, **__: Any) -> str:
        return self.text

    def save(self, config: Any, path: str, **_: Any) -> None:
        with get_filesystem(path).open(path, "w") as f:
            f.write(self.text)


def saved_config(told: Dumped, parser: Any, config: Any, **options: Any) -> SaveConfigCallback:
    return SaveConfigCallback(told, config, **options)  # type: ignore[arg-type]


class Told(ExperimentCLI):
    """A command line that is read, and nothing more: no seed is set, nothing is built or run."""

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def told_by(args: list[str]) -> dict[str, Any]:
    """All settings of a command line of `avloc fit` or `test`, as a run's ``run.json`` holds them."""
    told = Told.run(args)
    return yaml.safe_load(dumped(told))


def model_settings(config: Path) -> dict[str, Any]:
    """The method of a YAML with the defaults of all that it leaves out; nothing is built."""
    parser = LightningArgumentParser(prog="avloc weights", allow_abbrev=False)
    parser.add_subclass_arguments(Localizer, "model", required=True)
    settings = parser.parse_object({"model": settings_in(config).get("model")})
    return settings.model.as_dict()


def instantiate_method(config: Path) -> Localizer:
    """The method of a YAML, without data and trainer; its other keys are left aside."""
    parser = LightningArgumentParser(prog="avloc localize", allow_abbrev=False)
    parser.add_subclass_arguments(Localizer, "model", required=True)
    content = settings_in(config)
    given = parser.parse_object({key: content[key] for key in ("model",) if key in content})
    method: Localizer = parser.instantiate_classes(given).model
    return method


def instantiate(config: Path, overrides: list[str]) -> tuple[Localizer, AVDataModule]:
    """The method and the data module of a YAML, without a trainer.

    Args:
        config: the YAML; its other keys are left aside.
        overrides: ``--data...`` and ``--model...`` options as for `fit`.
    """
    parser = LightningArgumentParser(prog="avloc store", allow_abbrev=False)
    parser.add_subclass_arguments(Localizer, "model", required=True)
    parser.add_class_arguments(AVDataModule, "data")
    content = settings_in(config)
    given = parser.parse_object({key: content[key] for key in ("model", "data") if key in content})
    built = parser.instantiate_classes(parser.parse_args(overrides, namespace=given))
    return built.model, built.data
