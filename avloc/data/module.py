"""The data module: names of sets in, loaders out."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from avloc.data.index import Index, ShardError, read_index, remote
from avloc.data.indexed import Clips, Context, EvalSet, Sound, WholeBatches
from avloc.data.items import Item, collate
from avloc.data.phrases import read_phrases
from avloc.data.stored import FeatureStore, StoreError, open_features, others, store_name, stored_folder
from avloc.data.stream import Frames, ResumableLoader, TrainStream, loader_options
from avloc.types import AVBatch, InputSpec

__all__ = ["AVDataModule"]

log = logging.getLogger(__name__)

WORLD = "world"  # the embedded world, made on the fly
CONVERTERS = {
    "vggss": "vggsound",
    "avs_s4_box": "avs_s4",
    "avs_ms3_box": "avs_ms3",
    "avs_robust_s4": "avs_robust",
    "avs_robust_ms3": "avs_robust",
    "avss_v1s": "avss",
    "avss_v1m": "avss",
    "avss_v2": "avss",
    "is3_seg": "is3",
    "vpo_ss_seg": "vpo_ss",
    "vpo_ms_seg": "vpo_ms",
    "ade20k_sound_box": "ade20k_sound",
    "vgg_single": "vgg_duet",
    "vgg_mix2": "vgg_duet",
    "vgg_mix3": "vgg_duet",
    "vgg_mix4": "vgg_duet",
}  # sets whose converter has another name


class AVDataModule(LightningDataModule):
    """Streams one training set and reads any number of evaluation sets.

    A set is named ``NAME`` (``<root>/NAME/NAME-<split>.json``, split ``train`` for training, else ``test``),
    ``NAME:SPLIT``, or by the path, URL or ``pipe:`` command of its index JSON, whose shards lie beside it; evaluation
    sets are local, and ``/TAG`` after the name keeps the records with that tag. ``world:...`` is rendered when it is
    not there.

    A run that is resumed from a checkpoint in the middle of an epoch goes on with the next batch, provided
    that batch size, processes and workers are as before (a warning says so if not).

    Args:
        train: training set.
        val: validation sets, in dataloader order.
        test: test sets, in dataloader order; also those of ``predict``.
        calibration: sets that precede the test sets when those are tested: a universal threshold is chosen on
            them.
        root: folder of the sets; ``$AVLOC_DATA``, else ``./data``.
        batch_size: training samples of a step over all processes, whose number must divide it: the same YAML
            means the same step on one GPU and on two. Frames are counted where the method takes clips, and each
            process sees whole ones: it must be a multiple of both numbers' product.
        eval_batch_size: evaluation samples of a batch; of whole clips as many as fit, at least one. Processes share
            whole batches, so their number changes no digit, unless a set has fewer batches than processes.
        num_workers: loader processes per process.
        seed: of the sound controls and, with the run's own added (``seed_everything``), of order and augmentation: runs
            with different seeds see training in another order, and are tested alike.
        shuffle_buffer: window of the training shuffle, records per worker; each waits in memory as its
            encoded bytes.
        sound_controls: follow each test set by a twin for each of these, whose sounds are shuffled, silent, or
            noise.
        contexts: follow each test set by a twin, the row "another context", in which a method whose prompt depends on a
            picture is conditioned on that of another sample (`AVBatch.context`); picture and sound stay.
        truth: training batches carry ground-truth and semantic maps, cropped and flipped like the pictures: for
            supervised methods.
        truth_size: grid of ground truth, in training and evaluation: a side, 224 in every published evaluator, or
            ``[height, width]`` for maps at a native size.
        frames: of a training record with several annotated frames, see a ``random`` one per epoch, or ``all``, each
            as a sample of its own (AVSBench). A method that takes clips sees all frames of each record, whichever is
            said.
        train_fraction: train on this part of the set, the same in every epoch and run.
        stored: feed features that were stored beside the shards (`avloc.data.store`). The training set must have
            them; evaluation sets without any are computed. Stale ones are an error.
        phrases: show training the object phrases that were made of ``both`` captions, or of the ``audio`` or the
            ``image`` caption alone: from the table that `data_prep.object_phrases` wrote beside the set, else from the
            records' text. Or the path of such a table (columns ``key`` and ``phrase``).
        input_spec: what a method wants; by default what the trained or tested method declares.
        allow_missing: broken samples tolerated per evaluation set and process.
        verify: compare the SHA-256 of every shard that is read with what its index says: once in each process, of
            training shards when they are first opened.

    Raises:
        ShardError: a ``truth_size`` that is no grid, or a ``train_fraction`` outside of (0, 1].
    """

    def __init__(
        self,
        train: str | None = None,
        val: list[str] | None = None,
        test: list[str] | None = None,
        calibration: list[str] | None = None,
        root: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 16,
        num_workers: int = 4,
        seed: int = 0,
        shuffle_buffer: int = 2000,
        sound_controls: list[Literal["shuffled", "silence", "noise"]] | None = None,
        contexts: list[Literal["shuffled"]] | None = None,
        truth: bool = False,
        truth_size: int | list[int] = 224,
        frames: Frames = "random",
        train_fraction: float = 1.0,
        stored: bool = False,
        phrases: str | None = None,
        input_spec: InputSpec | None = None,
        allow_missing: int = 0,
        verify: bool = False,
    ) -> None:
        super().__init__()
        self.train, self.val, self.test, self.calibration = train, val or [], test or [], calibration or []
        self.root = Path(root or os.environ.get("AVLOC_DATA") or "data")
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.seed, self.shuffle_buffer, self.truth = seed, shuffle_buffer, truth
        self.sound_controls, self.contexts = sound_controls or [], contexts or []
        self.input_spec, self.allow_missing, self.verify = input_spec, allow_missing, verify
        self.truth_size, self.frames, self.stored = truth_size, frames, stored
        self.train_fraction, self.phrases = train_fraction, phrases
        sides = [truth_size] * 2 if isinstance(truth_size, int) else truth_size
        if len(sides) != 2 or min(sides) < 1:
            raise ShardError(f"data.truth_size must be a side or [height, width] in pixels, not {truth_size}.")
        self._cache_key = ""
        self.train_stream: TrainStream | None = None
        self.val_sets: list[EvalSet] = []
        self.test_sets: list[EvalSet] = []

    def prepare_data(self) -> None:
        """Render the embedded world where it is asked for and absent."""
        sets = [self.train and named_split(self.train, "train")]
        sets += [named_split(name, "test") for name in (*self.val, *self.test, *self.calibration)]
        splits = [split for dataset, split in filter(None, sets) if dataset == WORLD]
        if splits:
            from avloc.world import ensure

            ensure(self.root, *splits)

    def setup(self, stage: str) -> None:
        """Read the indexes that a stage needs.

        Raises:
            ShardError: a set is absent; the message names set, path and the command that writes it. Or an oblong
                ``truth_size`` of pictures that are cut to squares.
            StoreError: the features of a set are absent (those of the training set), stale or damaged, or cannot be
                used.
            ValueError: another context is asked for a method that no picture conditions.
            PhraseError: no sample of the training set has one of the wanted phrases, or their table is unusable.
        """
        sides = self.truth_size
        if self.spec.resize == "crop" and not isinstance(sides, int) and sides[0] != sides[1]:
            raise ShardError(
                f"data.truth_size {sides} is oblong, but the method sees the central square of each picture (resize "
                "crop), and so do its maps. Give one side."
            )
        if stage == "fit" and self.train and self.train_stream is None:
            index = read_index(self.find(self.train, "train"))
            phrases = read_phrases(self.phrases, index) if self.phrases else None
            if phrases:
                rank_zero_info(phrases.check(index))  # checked on every rank: none waits for one that fails
            self.train_stream = TrainStream(
                index,
                self.spec,
                self.per_process(),
                rank=self.trainer.global_rank if self.trainer else 0,
                world=self.trainer.world_size if self.trainer else 1,
                workers=self.num_workers,
                seed=self.seed + int(os.environ.get("PL_GLOBAL_SEED", "0")),
                buffer=self.shuffle_buffer,
                truth_size=self.truth_size if self.truth else None,
                frames=self.frames,
                store=self.features(index, training=True) if self.stored else None,
                fraction=self.train_fraction,
                phrases=phrases,
                verify=self.verify,
            )
        if stage in ("fit", "validate") and not self.val_sets:
            self.val_sets = [self.eval_set(n) for n in self.val]
        if stage in ("test", "predict"):
            sounds: list[Sound] = ["own", *self.sound_controls]
            first = self.calibration if stage == "test" else []
            self.test_sets = [self.eval_set(n, calibration=True) for n in first]
            self.check_contexts()
            for name in self.test:
                self.test_sets += [self.eval_set(name, sound) for sound in sounds]
                self.test_sets += [self.eval_set(name, context=context) for context in self.contexts]

    def per_process(self) -> int:
        """Training samples of a step on each process.

        Raises:
            ShardError: the processes do not divide the batch, or not into whole clips.
        """
        world = self.trainer.world_size if self.trainer else 1
        if self.batch_size % world:
            raise ShardError(
                f"data.batch_size {self.batch_size} counts the samples of all {world} processes and is not "
                f"divisible by them. Use a multiple of {world}."
            )
        if self.batch_size // world % self.spec.clip:
            raise ShardError(
                f"data.batch_size {self.batch_size} counts frames, and the method takes clips of {self.spec.clip} on "
                f"each of {world} processes. Use a multiple of {self.spec.clip * world}."
            )
        return self.batch_size // world

    @property
    def spec(self) -> InputSpec:
        """What is fed: ``input_spec``, else the method's own.

        Raises:
            ValueError: neither is known.
        """
        method = self.trainer.lightning_module if self.trainer else None
        spec = self.input_spec or getattr(method, "input_spec", None)
        if spec is None:
            raise ValueError("AVDataModule: give input_spec, or use it with a method that declares one.")
        return spec

    def find(self, name: str, split: str) -> str:
        """Where the index of a set is; ``split`` unless the name holds one."""
        if is_index(name):
            return name
        dataset, split = named_split(name, split)
        path = self.root / dataset / f"{dataset}-{split}.json"
        if not path.is_file():
            raise ShardError(
                f"Set {name!r}: {path} is missing. Write it with "
                f"`python -m data_prep.{converter(dataset)} --out {self.root} ...` (--help), "
                "or set root or $AVLOC_DATA to the folder that holds it."
            )
        return str(path)

    def check_contexts(self) -> None:
        """That another context means something to the method.

        Raises:
            ValueError: no picture conditions it.
        """
        method = self.trainer.lightning_module if self.trainer else None
        if self.contexts and method is not None and not getattr(method, "conditioned", False):
            raise ValueError(
                f"data.contexts {self.contexts} is a control for methods that a picture conditions, and "
                f"{type(method).__name__} as configured is none (Localizer.conditioned): its answers would not change. "
                "Remove data.contexts."
            )

    def eval_set(self, name: str, sound: Sound = "own", calibration: bool = False, context: Context = "own") -> EvalSet:
        """The evaluation set of that name, called ``name`` in results."""
        path = self.find(name, "test")
        return EvalSet(
            path,
            self.spec,
            tags=() if is_index(name) else tuple(name.split("/")[1:]),
            truth_size=self.truth_size,
            sound=sound,
            context=context,
            seed=self.seed,
            calibration=calibration,
            allow_missing=self.allow_missing,
            name=None if is_index(name) else name,
            store=self.features(read_index(path)) if self.stored else None,
            verify=self.verify,
        )

    def features(self, index: Index, training: bool = False) -> FeatureStore | None:
        """The stored features of a set; None for an evaluation set of which nothing is stored.

        Raises:
            StoreError: absent for training; stale, incomplete or damaged; the method stores none; or training
                pictures are cropped or mirrored at random, which stored features do not follow.
        """
        method: Any = self.trainer.lightning_module if self.trainer else None
        if not hasattr(method, "cache_key"):
            raise StoreError(f"data.stored is true, but {type(method).__name__} stores no features. Set it to false.")
        spec = self.spec
        if training and (spec.train_scale != 1 or spec.train_flip):
            raise StoreError(
                f"data.stored is true: stored features are those of the whole picture, but training crops and mirrors "
                f"pictures at random (train_scale {spec.train_scale:g}, train_flip {spec.train_flip:g}). Switch that "
                "off in the method (1 and 0), or set data.stored to false."
            )
        if not training and not others(stored_folder(index.url, store_name(method))):
            log.info("%s-%s has no stored features: they are computed.", index.dataset, index.split)
            return None
        self._cache_key = self._cache_key or method.cache_key()
        return open_features(method, index, key=self._cache_key)

    def train_dataloader(self) -> ResumableLoader | list[Any]:
        if self.train_stream is None:
            return []
        # Lightning and torch warn of any IterableDataset with a length; this one's is exact on every rank and
        # worker.
        warnings.filterwarnings("ignore", ".*`IterableDataset` has `__len__` defined.*")
        return ResumableLoader(
            self.train_stream,
            self._place if self.trainer else None,
            persistent_workers=self.num_workers > 0,
            **loader_options(self.num_workers),
        )

    def val_dataloader(self) -> list[DataLoader]:
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")  # no validation is fine
        return [self._eval_loader(s) for s in self.val_sets]

    def test_dataloader(self) -> list[DataLoader]:
        return [self._eval_loader(s) for s in self.test_sets]

    def predict_dataloader(self) -> list[DataLoader]:
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """The place of the run: epoch, and batches of it that were trained on."""
        epoch, batch = self._place() if self.trainer and self.train_stream else (0, 0)
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do: the trainer restores its own count, and `ResumableLoader` asks for it."""

    def _place(self) -> tuple[int, int]:
        loop: Any = self.trainer.fit_loop  # type: ignore[union-attr]
        # "processed" counts a batch from its optimiser step on, so it is right in checkpoints of
        # on_train_batch_end, before validation and at the end of an epoch alike.
        return loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.processed

    def _eval_loader(self, dataset: EvalSet) -> DataLoader:
        clip = dataset.spec.clip
        read: EvalSet | Clips = dataset if clip == 1 else Clips(dataset)
        put_together: Callable[[Any], AVBatch] = collate if clip == 1 else collate_clips
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        try:
            sampler = WholeBatches(rank, len(read), world, max(1, self.eval_batch_size // clip))
        except ValueError as e:
            raise ShardError(f"{dataset.name}: {e}") from e
        return DataLoader(
            read,
            batch_size=sampler.size,
            sampler=sampler,
            collate_fn=put_together,
            **loader_options(self.num_workers),
        )


def collate_clips(clips: Sequence[Sequence[Item]]) -> AVBatch:
    """A batch of whole clips, the rows of each side by side."""
    return collate([item for clip in clips for item in clip])


def is_index(name: str) -> bool:
    """Whether a set is given by its index and not by name."""
    return name.endswith(".json") or name.startswith("pipe:") or (remote(name) and "://" in name)


def named_split(name: str, split: str) -> tuple[str, str]:
    """Dataset and split of a set's name, ``split`` unless the name holds one; the dataset is "" for an index."""
    if is_index(name):
        return "", ""
    dataset, _, own = name.split("/")[0].partition(":")
    return dataset, own or split


def converter(dataset: str) -> str:
    """Name of the module of ``data_prep`` that writes a set; training lists of VGGSound are named by their user, and so
    are sets of a user's own media, of which no module speaks."""
    if dataset.startswith("vggsound"):
        return "vggsound"
    name = CONVERTERS.get(dataset, dataset)
    known = name.isidentifier() and importlib.util.find_spec(f"data_prep.{name}")
    return name if known else "folder"
