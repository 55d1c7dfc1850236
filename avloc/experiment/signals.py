"""A run that is asked to end ends: all its processes, in a stated time, with a state to go on from."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from avloc.processes import GRACE, TERMINATED

__all__ = ["Preemption"]

SIGNALS = (signal.SIGTERM, *((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()))
NOBODY = 2**31


class Preemption(Callback):
    """What SIGTERM and SIGUSR1 do to a run: a training ends behind the step that it is in, on every process.

    The processes agree on that step, so it is enough that one of them is asked. (Lightning's handler talks to the
    others from within, wherever each of them is: they wait for each other for ever.) A training on several processes
    finishes the validation that it is in; every other loop ends behind its batch. What has not ended `GRACE` seconds
    later is ended as it is; the last state on the disk stands. Under SLURM with requeueing, SIGUSR1 stays Lightning's.

    Attributes:
        agreed: the processes agreed to end.
    """

    def __init__(self) -> None:
        self.asked = self.agreed = False
        self.trainer: Trainer | None = None
        self.group: Any = None  # dist.ProcessGroup, once there are several processes
        self.timer: threading.Timer | None = None
        self.before: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer = trainer
        if trainer.world_size > 1 and dist.is_initialized() and self.group is None:
            self.group = dist.new_group(backend="gloo")  # on the CPU: it waits for no kernel
        self.listen()

    def listen(self) -> None:
        """Take the signals, again after Lightning did."""
        assert self.trainer is not None
        if threading.current_thread() is not threading.main_thread():
            return
        environment = getattr(self.trainer.strategy, "cluster_environment", None)
        requeued = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        for number in SIGNALS[:1] if requeued else SIGNALS:
            before = signal.signal(number, self.ask)
            self.before.setdefault(number, before)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listen()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listen()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listen()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listen()

    def ask(self, number: int, _: object) -> None:
        """The handler. It talks to no other process."""
        assert self.trainer is not None
        if not self.asked:
            self.say(f"was asked to end by {signal.Signals(number).name}; within {GRACE:g} s it has")
            self.hurry()
        self.asked = True
        if self.trainer.world_size == 1 or self.trainer.state.fn != "fit":
            self.end()

    def end(self) -> None:
        """Make Lightning's loops end at their next turn."""
        assert self.trainer is not None
        self.trainer._signal_connector.received_sigterm = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0  # no gradient is waiting for another batch
        if self.group is not None and whole and not validates(trainer, batch_idx):
            first = torch.tensor(trainer.global_rank if self.asked else NOBODY)
            dist.all_reduce(first, op=dist.ReduceOp.MIN, group=self.group)
            if int(first) < NOBODY:
                if not self.asked:
                    self.say(f"ends behind step {trainer.global_step}, for rank {int(first)} was asked to")
                    self.hurry()
                self.agreed = True
                self.end()

    def say(self, what: str) -> None:
        """Written at once: a handler may have come in the middle of a print."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        who = f"rank {rank} of {world}" if world > 1 else "the run"
        os.write(2, f"{who} (process {os.getpid()}) {what}\n".encode())

    def hurry(self) -> None:
        self.timer = threading.Timer(GRACE, self.give_up)
        self.timer.daemon = True
        self.timer.start()

    def give_up(self) -> None:
        self.say(f"has not ended {GRACE:g} s after it was asked, and is ended; the last state on the disk stands")
        os._exit(TERMINATED)

    def close(self) -> None:
        """Give the signals back."""
        if self.timer is not None:
            self.timer.cancel()
        restore: Callable[[int, Any], Any] = signal.signal
        for number, handler in self.before.items():
            restore(number, handler)

    @property
    def exit_code(self) -> int:
        """Of a process that a signal ended: 0 of one that the first process started and watches, when all agreed, for
        that one kills all others when one fails, and tells the code itself."""
        environment = getattr(self.trainer.strategy, "cluster_environment", None) if self.trainer else None
        watched = isinstance(environment, LightningEnvironment) and environment.local_rank() > 0
        return 0 if self.agreed and watched else TERMINATED


def validates(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a validation follows the batch, in which the processes may have different numbers of batches."""
    last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    every = trainer.val_check_batch
    return last or bool(every and every != float("inf") and (batch_idx + 1) % every == 0)
