"""Callbacks: progress, averaged weights, checkpoints that survive a kill and weights files."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import TQDMProgressBar, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from yolact_ros.files import atomic_write
from yolact_ros.network import build, save_weights
from yolact_ros.training.module import NonFiniteError, TrainingModule


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file in its folder, then renames it atomically.

    Lightning first writes to the system's temporary folder, which may be on another disk; moving
    from there is not atomic, and a kill meanwhile would leave half a checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part, part.open("wb") as file:
            torch.save(checkpoint, file)  # with a path, it would not report a full disk


class Termination(pl.Callback):
    """Ends all processes of a distributed run at once on SIGTERM, with status 143.

    Lightning's own handler tells the other processes first, by an exchange that these may never
    come to, as they wait in another one. Checkpoints are whole at any moment.
    """

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        def end(number: int, _: FrameType | None) -> None:
            if trainer.strategy.launcher is not None:  # of the processes started by this one
                trainer.strategy.launcher.kill(number)
            os._exit(128 + number)

        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, end)


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar, with the correct time left of a resumed run and small log files."""

    def __init__(self, log_every: int) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else log_every)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        super().on_train_start(trainer, *_)
        self._begin(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer, *_)
        self._begin(trainer)

    def _begin(self, trainer: pl.Trainer) -> None:
        bar = self.train_progress_bar
        bar.reset(trainer.max_steps)
        bar.initial = bar.n = trainer.global_step


class Throughput(pl.Callback):
    """Logs images per second over all devices, and the fraction of time spent waiting for data."""

    def __init__(self, batch_size: int, every: int) -> None:
        self.batch_size, self.every = batch_size, every
        self.iterations, self.waited = 0, 0.0
        self.begun = self.ended = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.begun = self.ended = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        self.waited += time.perf_counter() - self.ended

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self.ended = time.perf_counter()
        self.iterations += 1
        if trainer.global_step % self.every == 0:
            elapsed = self.ended - self.begun
            module.log("images_per_second", self.batch_size * self.iterations / elapsed)
            module.log("waiting_for_data", self.waited / elapsed)
            self.begun, self.iterations, self.waited = self.ended, 0, 0.0


def average_from(start: int, decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """Return an update function for a moving average of weights.

    For `start` iterations the average equals the weights. The function takes (averages, weights,
    iterations so far), as torch's `AveragedModel` calls it, and changes its first argument.
    """
    average = get_ema_multi_avg_fn(decay)

    def update(averages: list[Tensor], weights: list[Tensor], iterations: Tensor) -> None:
        if iterations > start:
            average(averages, weights, iterations)
        else:
            for old, new in zip(averages, weights, strict=True):
                old.copy_(new)

    return update


class AveragedWeights(WeightAveraging):
    """Lightning's weight averaging, which also counts earlier iterations without averaging."""

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if "averaging_state" not in checkpoint:
            assert self._average_model is not None
            self._average_model.n_averaged.fill_(checkpoint["global_step"])


class Checkpoints(pl.Callback):
    """Writes a checkpoint and a weights file (of the averaged weights, if there are any).

    It does so at each multiple of one of `intervals` and at the end of training, where Lightning's
    own callback comes too late: by then the averaged weights have replaced the others. It must come
    after the averaging callback.

    Nothing is written if weights are not finite, to keep the earlier files.
    """

    def __init__(self, checkpoint: Path, weights: Path, intervals: Sequence[int]) -> None:
        self.checkpoint, self.weights, self.intervals = checkpoint, weights, intervals

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step != trainer.max_steps and all(step % every for every in self.intervals):
            return
        bad = [name for name, p in module.named_parameters() if not p.isfinite().all()]
        if bad:
            raise NonFiniteError(f"at iteration {step - 1} {bad[0]} is not finite")
        trainer.save_checkpoint(self.checkpoint, weights_only=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(module, TrainingModule)
        net = build(module.net.config)
        state = checkpoint["state_dict"]
        net.load_state_dict({name: state[f"net.{name}"] for name in net.state_dict()})
        save_weights(net, self.weights)
