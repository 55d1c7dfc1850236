"""What every method inherits: checkpoints of the trainable part, refusals, resumption."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from avloc.data.module import AVDataModule
from avloc.methods.acl import ACL
from avloc.methods.acl.losses import Objective
from avloc.methods.base import CheckpointError, Localizer, step_seed, with_fused_kernels
from avloc.methods.load import load_method
from avloc.methods.souple import SOUPLE
from avloc.types import AVBatch
from avloc.world import write_world
from tests.methods.tiny import tiny_batch, tiny_beats, tiny_files

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
pytestmark = pytest.mark.filterwarnings("ignore")


class Batches(LightningDataModule):
    def __init__(self, *batches: AVBatch) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(list(self.batches), batch_size=None)


def fit_once(method: Localizer, folder: Path) -> Path:
    trainer = Trainer(max_steps=2, default_root_dir=folder, enable_checkpointing=False, **QUIET)
    trainer.fit(method, Batches(tiny_batch(3), tiny_batch(3, 1)))
    trainer.save_checkpoint(folder / "m.ckpt")
    return folder / "m.ckpt"


def test_checkpoint_holds_what_learns_and_rebuilds_the_method(tmp_path: Path) -> None:
    arguments = tiny_files(tmp_path)
    method = SOUPLE(**arguments, objective=Objective(p_plus=0.2), context=2)
    path = fit_once(method, tmp_path)
    stored = torch.load(path, weights_only=True)
    learned = {k for k, p in method.named_parameters() if p.requires_grad}
    assert stored["state_dict"].keys() == learned
    assert stored["avloc"]["frozen"]["clipseg"]["sha256"]
    rebuilt = load_method(path)
    assert type(rebuilt) is SOUPLE
    assert rebuilt.objective.p_plus == 0.2
    for k, v in method.state_dict().items():
        torch.testing.assert_close(rebuilt.state_dict()[k], v, msg=k)


def test_checkpoint_tells_the_seed_that_it_was_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = tiny_files(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    method = ACL(**arguments)
    path = fit_once(method, tmp_path)
    assert method.trained_with_seed is None
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # that of a later test
    assert ACL.load_from_checkpoint(path, **arguments).trained_with_seed == 7


def test_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    arguments = tiny_files(tmp_path)
    path = fit_once(ACL(**arguments), tmp_path)
    with pytest.raises(CheckpointError, match=r"belongs to avloc\.methods\.acl\.method\.ACL, but .*SOUPLE"):
        SOUPLE.load_from_checkpoint(path, **arguments)


def test_checkpoint_on_other_frozen_weights_is_refused(tmp_path: Path) -> None:
    path = fit_once(ACL(**tiny_files(tmp_path)), tmp_path)
    tiny_beats(seed=9).save_world(tmp_path / "other.safetensors")
    other = tiny_files(tmp_path / "again") | {
        "clipseg": f"file:{tmp_path / 'clipseg.safetensors'}",
        "beats": f"file:{tmp_path / 'other.safetensors'}",
    }
    with pytest.raises(CheckpointError, match="on top of beats weights"):
        ACL.load_from_checkpoint(path, **other)


def test_missing_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    arguments = tiny_files(tmp_path)
    path = fit_once(ACL(**arguments), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["network.masker_i.v"] = checkpoint["state_dict"].pop("network.masker_i.w")
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"missing \['network.masker_i.w'\], unknown \['network.masker_i.v'\]"):
        ACL.load_from_checkpoint(path, **arguments)


def test_a_new_run_can_start_from_anothers_weights(tmp_path: Path) -> None:
    arguments = tiny_files(tmp_path)
    trained = ACL(**arguments)
    path = fit_once(trained, tmp_path)
    torch.manual_seed(5)
    fresh = ACL(**arguments)
    assert not torch.equal(fresh.state_dict()["network.masker_i.w"], trained.state_dict()["network.masker_i.w"])
    fresh.start_from(path)
    for k, v in trained.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[k], v, msg=k)
    with pytest.raises(CheckpointError, match=r"There is no checkpoint .*nothing\.ckpt"):
        fresh.start_from(tmp_path / "nothing.ckpt")
    with pytest.raises(CheckpointError, match="belongs to"):
        SOUPLE(**arguments).start_from(path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_method(tmp_path / "junk.ckpt")
    with pytest.raises(CheckpointError, match="not written by avloc"):
        load_method(tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_method(tmp_path / "absent.ckpt")


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    method = ACL(**tiny_files(tmp_path))
    with torch.no_grad():
        method.network.audio_proj.fc1.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite in epoch 0, batch 0"):
        fit_once(method, tmp_path)


def test_frozen_towers_stay_in_eval_mode(tmp_path: Path) -> None:
    method = ACL(**tiny_files(tmp_path)).train()
    assert not any(m.training for m in method.network.av_grounder.modules())
    assert method.network.audio_proj.training


def test_the_noise_of_a_step_depends_on_samples_and_epoch() -> None:
    assert step_seed(["a", "b"], 0) == step_seed(["a", "b"], 0)
    assert len({step_seed(k, e) for k in (["a"], ["b"], ["a", "b"]) for e in (0, 1)}) == 6


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_fused_kernels_change_nothing_but_speed(kind: type[torch.optim.Optimizer]) -> None:
    steps = []
    for fuse in (lambda optimizer: optimizer, with_fused_kernels):
        w = torch.nn.Parameter(torch.arange(4.0))
        optimizer = fuse(kind([w], lr=0.1, weight_decay=0.01))
        for _ in range(3):
            optimizer.zero_grad()
            (w**2).sum().backward()
            optimizer.step()
        steps.append((w.detach(), optimizer.param_groups[0]["fused"]))
    torch.testing.assert_close(steps[1][0], steps[0][0])
    assert [bool(fused) for _, fused in steps] == [False, True]


class SeesGPU(ACL):
    """Chooses its optimiser as it would on a GPU."""

    def configure_optimizers(self) -> Any:
        here, self._device = self._device, torch.device("cuda:0")
        try:
            return super().configure_optimizers()
        finally:
            self._device = here


@pytest.mark.parametrize("clip", [None, 0.5])
def test_fused_kernels_stand_back_where_gradients_are_clipped(tmp_path: Path, clip: float | None) -> None:
    """Lightning refuses the two together in mixed precision."""
    method = SeesGPU(**tiny_files(tmp_path))
    more: dict[str, Any] = {"gradient_clip_val": clip, "precision": "bf16-mixed", "default_root_dir": tmp_path}
    trainer = Trainer(max_steps=1, enable_checkpointing=False, **more, **QUIET)
    trainer.fit(method, Batches(tiny_batch(3)))
    assert trainer.global_step == 1
    assert bool(trainer.optimizers[0].defaults["fused"]) is (clip is None)


@pytest.mark.parametrize("said", [{"fused": False}, {"foreach": True}, {"foreach": False}, {"differentiable": True}])
def test_fused_kernels_stand_back_where_the_user_says_so(tmp_path: Path, said: dict[str, bool]) -> None:
    method = SeesGPU(**tiny_files(tmp_path), optimizer=lambda p: torch.optim.Adam(p, **said))
    defaults = method.configure_optimizers().defaults
    assert not defaults["fused"]
    assert {key: defaults[key] for key in said} == said
    assert SeesGPU(**tiny_files(tmp_path)).configure_optimizers().defaults["fused"]


class Dying(Callback):
    """A process that is gone before the step after ``step``."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def weights(method: Localizer) -> dict[str, Tensor]:
    learned = method.learned_keys()
    return {k: v for k, v in method.state_dict().items() if k in learned}


@pytest.mark.parametrize("kind", [pytest.param(ACL, marks=pytest.mark.slow), SOUPLE])
def test_killed_and_resumed_equals_unbroken(tmp_path: Path, kind: type[ACL]) -> None:
    """Dropout, mask noise, order and optimiser state all go on where they stopped (float32, CPU)."""
    write_world(tmp_path / "world", "train", scenes=12)
    arguments = tiny_files(tmp_path)

    def run(name: str, *more: Callback, resume: Path | None = None) -> Localizer:
        torch.manual_seed(0)
        method = kind(**arguments, objective=Objective(p_plus=0.1))
        data = AVDataModule(train="world:train", root=str(tmp_path), batch_size=4, num_workers=0)
        state = ModelCheckpoint(tmp_path / name, "state", every_n_train_steps=1, enable_version_counter=False)
        trainer = Trainer(max_epochs=2, callbacks=[state, *more], default_root_dir=tmp_path, **QUIET)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            trainer.fit(method, data, ckpt_path=resume, weights_only=True if resume else None)
        return method

    unbroken = run("unbroken")
    step = random.Random(kind.__name__).randrange(1, 6)  # of 6 steps
    run("killed", Dying(step))
    resumed = run("killed", resume=tmp_path / "killed" / "state.ckpt")
    start, whole, again = (weights(method) for method in (kind(**arguments), unbroken, resumed))
    assert [k for k, v in whole.items() if not torch.equal(again[k], v)] == [], step
    assert any(not torch.equal(start[k], v) for k, v in whole.items())
