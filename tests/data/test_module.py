from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from avloc.data.index import ShardError
from avloc.data.module import AVDataModule
from avloc.data.store import store_features
from avloc.data.stored import StoreError
from avloc.types import AVBatch
from tests.data.make import SPEC, clip, number, painted, sample, toy_set


class Listener(LightningModule):
    """Notes which samples it sees, in which epoch."""

    input_spec = SPEC

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[tuple[int, list[int]]] = []
        self.tested: list[list[tuple[int, int]]] = [[], [], [], []]

    def training_step(self, batch: AVBatch, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, [number(k) for k in batch.key]))
        return self.layer(batch.audio.mean(1, keepdim=True)).mean()

    def validation_step(self, batch: AVBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def test_step(self, batch: AVBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        heard = [round(float(a.mean()) * 1000) - 1 for a in batch.audio]
        self.tested[dataloader_idx] += list(zip([number(k) for k in batch.key], heard, strict=True))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    options = {"num_sanity_val_steps": 0, "enable_checkpointing": "callbacks" in options, **quiet, **options}
    return Trainer(default_root_dir=folder, use_distributed_sampler=False, **options)


def module(root: Path, workers: int = 0, batch: int = 3, **options: Any) -> AVDataModule:
    return AVDataModule(train="toy", root=str(root), batch_size=batch, num_workers=workers, shuffle_buffer=8, **options)


def fit(root: Path, out: Path, workers: int, every: int, resume: str | None = None, **options: Any) -> Listener:
    saver = ModelCheckpoint(out, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    method = Listener()
    with_val = options.pop("with_val", False)
    data = module(root, workers, val=["toy:train"] if with_val else None)
    trainer(out, max_epochs=3, callbacks=[saver], **options).fit(method, data, ckpt_path=resume)
    return method


@pytest.mark.filterwarnings("error:You're resuming")
@pytest.mark.parametrize("with_val", [False, True], ids=["plain", "with validation"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_goes_on_with_the_next_batch(tmp_path: Path, accumulate: int, with_val: bool) -> None:
    toy_set(tmp_path, 22)  # 7 batches an epoch
    options = dict(accumulate_grad_batches=accumulate, with_val=with_val)
    unbroken = fit(tmp_path, tmp_path / "a", 0, every=1, **options).seen
    assert [e for e, _ in unbroken] == [0] * 7 + [1] * 7 + [2] * 7
    assert len({tuple(b) for _, b in unbroken}) == 21
    checkpoints = sorted((tmp_path / "a").glob("*.ckpt"), key=lambda p: int(p.stem.split("=")[1]))
    per_epoch = -(-7 // accumulate)
    assert len(checkpoints) == 3 * per_epoch
    for n, checkpoint in enumerate(checkpoints, start=1):  # among them the last step of an epoch, and of the run
        epochs, steps = divmod(n, per_epoch)
        done = epochs * 7 + min(steps * accumulate, 7)
        resumed = fit(tmp_path, tmp_path / f"b{n}", 0, every=100, resume=str(checkpoint), **options).seen
        assert resumed == unbroken[done:], (n, done)


def test_it_does_so_with_workers_too(tmp_path: Path) -> None:
    toy_set(tmp_path, 22)
    unbroken = fit(tmp_path, tmp_path / "a", 2, every=5).seen
    assert [e for e, _ in unbroken] == [0] * 7 + [1] * 7 + [2] * 7
    for step in (5, 10):
        resumed = fit(tmp_path, tmp_path / f"b{step}", 2, every=100, resume=str(tmp_path / f"a/step={step}.ckpt"))
        assert resumed.seen == unbroken[step:]


def test_a_checkpoint_of_an_epochs_end_or_of_validation_resumes_at_the_next_epoch(tmp_path: Path) -> None:
    toy_set(tmp_path, 22)
    runs = {}
    for name, at_end in (("train", True), ("validation", False)):
        saver = ModelCheckpoint(tmp_path / name, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=at_end)
        method = Listener()
        data = module(tmp_path, val=["toy:train"])
        trainer(tmp_path, max_epochs=3, callbacks=[saver]).fit(method, data)
        runs[name] = method.seen
        for epoch in (0, 1):
            again = Listener()
            checkpoint = str(tmp_path / name / f"epoch={epoch}.ckpt")
            trainer(tmp_path, max_epochs=3).fit(again, module(tmp_path, val=["toy:train"]), ckpt_path=checkpoint)
            assert again.seen == method.seen[7 * (epoch + 1) :]


def test_a_run_that_dies_in_a_step_repeats_that_step(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import OnExceptionCheckpoint

    toy_set(tmp_path, 22)
    unbroken = fit(tmp_path, tmp_path / "a", 0, every=100).seen

    class Dying(Listener):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            if len(self.seen) == 11:
                raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(tmp_path, max_epochs=3, callbacks=[OnExceptionCheckpoint(tmp_path, "died")]).fit(
            Dying(), module(tmp_path)
        )
    again = Listener()
    trainer(tmp_path, max_epochs=3).fit(again, module(tmp_path), ckpt_path=str(tmp_path / "died.ckpt"))
    assert again.seen == unbroken[10:]


def test_the_state_is_the_place_of_the_run(tmp_path: Path) -> None:
    toy_set(tmp_path, 22)
    fit(tmp_path, tmp_path / "a", 0, every=9)
    state = torch.load(tmp_path / "a/step=9.ckpt", weights_only=True)
    assert state["AVDataModule"] == {"epoch": 1, "batch": 2}
    assert state["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"order": [22, 3, 1, 1, 0, 8]}]


@pytest.mark.parametrize("workers", [0, 2])
def test_limited_epochs_still_begin_at_their_start(tmp_path: Path, workers: int) -> None:
    toy_set(tmp_path, 22)
    whole, short = Listener(), Listener()
    trainer(tmp_path, max_epochs=2).fit(whole, module(tmp_path, workers))
    trainer(tmp_path, max_epochs=2, limit_train_batches=4).fit(short, module(tmp_path, workers))
    assert short.seen == whole.seen[:4] + whole.seen[7:11]


def test_seeds_see_training_in_another_order_and_are_tested_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_set(tmp_path, 22)
    orders, heard = [], []
    for seed in ("", "0", "1", "2", "1"):
        (monkeypatch.setenv("PL_GLOBAL_SEED", seed) if seed else monkeypatch.delenv("PL_GLOBAL_SEED", raising=False))
        method = Listener()
        run = trainer(tmp_path, max_epochs=1)
        data = module(tmp_path, test=["toy:train"], sound_controls=["shuffled"])
        run.fit(method, data)
        run.test(method, data, verbose=False)
        orders.append([i for _, batch in method.seen for i in batch])
        heard.append(method.tested[1])
    assert orders[0] == orders[1]
    assert orders[2] == orders[4]
    assert len({tuple(o) for o in orders}) == 3
    assert all(h == heard[0] for h in heard)


@pytest.mark.parametrize("workers", [0, 2])
def test_test_sets_come_in_order_with_their_shuffled_twins(tmp_path: Path, workers: int) -> None:
    toy_set(
        tmp_path,
        10,
        split="test",
        samples=[sample(i, tags=("even",) if i % 2 == 0 else ()) for i in range(10)],
    )
    data = module(tmp_path, workers, test=["toy", "toy/even"], sound_controls=["shuffled"], eval_batch_size=4)
    method = Listener()
    trainer(tmp_path).test(method, data, verbose=False)
    assert [(s.name, s.row, s.count) for s in data.test_sets] == [
        ("toy", "model", 10), ("toy", "shuffled sound", 10), ("toy/even", "model", 5), ("toy/even", "shuffled sound", 5)
    ]  # fmt: skip
    for plain, rows in zip((True, False, True, False), method.tested, strict=True):
        assert all((shown == heard) == plain for shown, heard in rows)
    assert [sorted(n for n, _ in rows) for rows in method.tested] == [list(range(10))] * 2 + [[0, 2, 4, 6, 8]] * 2
    predicted = trainer(tmp_path).predict(Predictor(), module(tmp_path, test=["toy"], eval_batch_size=4))
    assert predicted == [4, 4, 2]


def test_calibration_sets_come_first_and_every_set_is_followed_by_its_controls(tmp_path: Path) -> None:
    toy_set(tmp_path, 6, split="test")
    toy_set(tmp_path, 5, split="val")
    options = dict(calibration=["toy:val"], test=["toy", "toy:val"], sound_controls=["noise", "silence"])
    data = AVDataModule(root=str(tmp_path), input_spec=SPEC, num_workers=0, seed=3, **options)  # type: ignore[arg-type]
    data.setup("test")
    assert [(s.name, s.row, s.calibration) for s in data.test_sets] == [
        ("toy:val", "model", True),
        *[("toy", row, False) for row in ("model", "noise", "silenced")],
        *[("toy:val", row, False) for row in ("model", "noise", "silenced")],
    ]
    assert [s.seed for s in data.test_sets] == [3] * 7
    data.setup("predict")  # nothing is predicted for the choice of a threshold
    assert [s.name for s in data.test_sets] == ["toy"] * 3 + ["toy:val"] * 3
    data.setup("test")
    assert len(data.test_dataloader()) == 7


def test_a_supervised_method_is_fed_maps(tmp_path: Path) -> None:
    toy_set(tmp_path, 0, samples=[painted(i) for i in range(6)])
    for truth in (False, True):
        data = AVDataModule(train="toy", root=str(tmp_path), input_spec=SPEC, batch_size=3, num_workers=0, truth=truth)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert (batch.truth is not None) == (batch.semantic is not None) == truth
        if batch.truth is not None and batch.semantic is not None:
            assert batch.truth.shape == (3, 1, 224, 224)
            assert batch.semantic.shape == (3, 224, 224)


def test_ground_truth_has_the_grid_that_is_asked_for(tmp_path: Path) -> None:
    toy_set(tmp_path, 0, samples=[painted(i) for i in range(6)])
    options: dict[str, Any] = dict(root=str(tmp_path), input_spec=SPEC, batch_size=3, eval_batch_size=6, num_workers=0)
    for size, shape in ((56, [56, 56]), ([9, 16], [9, 16])):
        data = AVDataModule(train="toy", val=["toy:train"], truth=True, truth_size=size, **options)  # type: ignore[arg-type]
        data.setup("fit")
        for batch in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader()[0]))):
            assert batch.truth is not None
            assert batch.semantic is not None
            assert list(batch.truth.shape[2:]) == list(batch.semantic.shape[1:]) == shape
    for bad in ([], [9], [9, 16, 3], 0, [9, 0], -1):
        with pytest.raises(ShardError, match=r"truth_size must be a side or \[height, width\]"):
            AVDataModule(truth_size=bad)  # type: ignore[arg-type]
    cropped = options | {"input_spec": replace(SPEC, resize="crop")}
    AVDataModule(val=["toy:train"], truth_size=[9, 9], **cropped).setup("validate")
    with pytest.raises(ShardError, match=r"truth_size \[9, 16\] is oblong, but the method sees the central square"):
        AVDataModule(val=["toy:train"], truth_size=[9, 16], **cropped).setup("validate")


@pytest.mark.parametrize("workers", [0, 2])
def test_every_annotated_frame_is_trained_on_once_an_epoch_where_that_is_asked_for(
    tmp_path: Path, workers: int
) -> None:
    toy_set(tmp_path, 0, samples=[clip(i, 2 + i, ()) for i in range(4)])  # 2 + 3 + 4 + 5 frames

    class Keys(Listener):
        def training_step(self, batch: AVBatch, batch_idx: int) -> Tensor:
            self.keys = [*getattr(self, "keys", []), *batch.key]
            return super().training_step(batch, batch_idx)

    method = Keys()
    data = module(tmp_path, workers, batch=2, truth=True, frames="all")
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    trainer(tmp_path, max_epochs=2, callbacks=[saver]).fit(method, data)
    names = sorted(f"toy__s{i:04d}.f{k}" for i in range(4) for k in range(2 + i))
    assert sorted(method.keys[:14]) == sorted(method.keys[14:]) == names
    assert method.keys[:14] != method.keys[14:]
    again = Keys()
    data = module(tmp_path, workers, batch=2, truth=True, frames="all")
    trainer(tmp_path, max_epochs=2).fit(again, data, ckpt_path=str(tmp_path / "step=5.ckpt"))
    assert again.keys == method.keys[10:]


class Storing(Listener):
    """Has the mean grey of each picture stored."""

    def __init__(self, key: str = "0" * 64, **changes: Any) -> None:
        super().__init__()
        self.key, self.input_spec = key, replace(SPEC, **changes)
        self.fed: dict[str, float] = {}
        self.lacked = 0

    def cache_key(self) -> str:
        return self.key

    def frozen(self, batch: AVBatch) -> Tensor:
        return batch.image.float().mean((1, 2, 3))

    def note(self, batch: AVBatch) -> None:
        self.lacked += not batch.stored
        self.fed |= dict(zip(batch.key, batch.stored.get("frozen", torch.zeros(0)).tolist(), strict=False))

    def training_step(self, batch: AVBatch, batch_idx: int) -> Tensor:
        self.note(batch)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: AVBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.note(batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_stored_features_are_fed_in_training_and_where_evaluation_has_them(tmp_path: Path, workers: int) -> None:
    train = toy_set(tmp_path, 6)
    toy_set(tmp_path, 0, split="val", samples=[sample(i) for i in range(20, 24)])
    val = tmp_path / "toy" / "toy-val.json"
    method = Storing()
    store_features(method, train)
    options: dict[str, Any] = dict(val=["toy:val"], stored=True)
    trainer(tmp_path, max_epochs=1).fit(method, module(tmp_path, workers, **options))
    assert sorted(map(number, method.fed)) == list(range(6))
    assert all(abs(grey - number(key)) < 1.5 for key, grey in method.fed.items())
    assert method.lacked == 1  # the validation set has none
    store_features(method, val)
    trainer(tmp_path, max_epochs=1).fit(method, module(tmp_path, workers, **options))
    assert sorted(map(number, method.fed)) == [*range(6), *range(20, 24)]
    assert method.lacked == 1


def test_features_that_cannot_be_used_are_an_error(tmp_path: Path) -> None:
    train = toy_set(tmp_path, 6)

    def fit_with(method: Listener, **options: Any) -> None:
        trainer(tmp_path, max_epochs=1).fit(method, module(tmp_path, stored=True, **options))

    with pytest.raises(
        StoreError, match=r"no stored features at .*stored/toy-train-storing-0{16}.*data.stored to false"
    ):
        fit_with(Storing())
    store_features(Storing(), train)
    with pytest.raises(StoreError, match="are stale: weights or preprocessing changed"):
        fit_with(Storing("1" * 64))
    store_features(Storing("1" * 64), train)
    with pytest.raises(StoreError, match="are stale"):  # an evaluation set's, too
        trainer(tmp_path).validate(Storing("2" * 64), module(tmp_path, val=["toy:train"], stored=True))
    with pytest.raises(StoreError, match=r"crops and mirrors .*\(train_scale 1.5, train_flip 0\)"):
        fit_with(Storing(train_scale=1.5))
    with pytest.raises(StoreError, match=r"train_flip 0.5\)\. Switch that off"):
        fit_with(Storing(train_flip=0.5))
    with pytest.raises(StoreError, match=r"Listener stores no features. Set it to false"):
        fit_with(Listener())


class Predictor(Listener):
    def predict_step(self, batch: AVBatch, batch_idx: int) -> int:
        return len(batch)


class Writing(Listener):
    """Leaves what this rank saw in a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_fit_end(self) -> None:
        (self.folder / f"fit{self.global_rank}.json").write_text(json.dumps(self.seen))

    def on_test_end(self) -> None:
        (self.folder / f"test{self.global_rank}.json").write_text(json.dumps(self.tested[0]))


@pytest.mark.slow  # four processes that import torch
def test_two_processes_share_training_and_testing_exactly(tmp_path: Path) -> None:
    toy_set(tmp_path, 25)
    toy_set(tmp_path, 11, split="test")
    options = dict(strategy="ddp_spawn", devices=2, max_epochs=1)
    trainer(tmp_path, **options).fit(Writing(tmp_path), module(tmp_path, workers=1, batch=6))
    trainer(tmp_path, **options).test(Writing(tmp_path), module(tmp_path, workers=1, test=["toy"]), verbose=False)
    fits = [json.loads((tmp_path / f"fit{r}.json").read_text()) for r in (0, 1)]
    assert [len(f) for f in fits] == [4, 4]
    seen = [n for f in fits for _, batch in f for n in batch]
    assert len(seen) == len(set(seen)) == 24
    tests = [json.loads((tmp_path / f"test{r}.json").read_text()) for r in (0, 1)]
    assert [len(t) for t in tests] == [6, 5]
    assert sorted(n for t in tests for n, _ in t) == list(range(11))


def test_names_paths_and_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = toy_set(tmp_path, 5, split="val")
    monkeypatch.setenv("AVLOC_DATA", str(tmp_path))
    data = AVDataModule(val=["toy:val", str(index)], input_spec=SPEC)
    data.setup("validate")
    assert [s.name for s in data.val_sets] == ["toy:val", "toy"]
    assert [s.count for s in data.val_sets] == [
        5,
        5,
    ]
    with pytest.raises(ShardError, match=r"Set 'vggss': .*vggss/vggss-test.json.*data_prep.vggsound"):
        AVDataModule(test=["vggss"], input_spec=SPEC).setup("test")
    monkeypatch.delenv("AVLOC_DATA")
    assert AVDataModule().root == Path("data")
    with pytest.raises(ValueError, match="give input_spec"):
        AVDataModule(val=[str(index)]).setup("validate")


def test_the_world_is_made_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Path, ...]] = []
    ensure = lambda *asked: made.append(asked)  # noqa: E731
    monkeypatch.setitem(sys.modules, "avloc.world", types.SimpleNamespace(ensure=ensure))
    AVDataModule(test=["toy", "worldly"], root=str(tmp_path)).prepare_data()
    assert made == []
    AVDataModule(test=["toy", "world:single/heard"], calibration=["world:val"], root=str(tmp_path)).prepare_data()
    assert made == [(tmp_path, "single", "val")]


def test_another_context_is_a_twin_of_each_test_set_for_conditioned_methods(tmp_path: Path) -> None:
    toy_set(tmp_path, 8, split="test")
    data = module(tmp_path, test=["toy"], sound_controls=["silence"], contexts=["shuffled"])
    run, method = trainer(tmp_path), Listener()
    with pytest.raises(ValueError, match=r"data\.contexts.*Listener as configured is none"):
        run.test(method, data, verbose=False)
    method.conditioned = True  # type: ignore[assignment]
    run.test(method, data, verbose=False)
    assert [(s.name, s.row) for s in data.test_sets] == [
        ("toy", "model"),
        ("toy", "silenced"),
        ("toy", "another context"),
    ]
