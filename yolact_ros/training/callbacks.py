"""Callbacks: checkpoints that survive a kill, weights files, validation during training."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import TQDMProgressBar, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from yolact_ros.data import DataSource
from yolact_ros.engine import Segmenter
from yolact_ros.evaluation.coco import evaluate
from yolact_ros.evaluation.report import table
from yolact_ros.files import atomic_write
from yolact_ros.network import build, save_weights
from yolact_ros.training.module import NonFiniteError, TrainingModule

HISTORY_FILE = "validation.jsonl"
BEST_WEIGHTS_FILE = "best.safetensors"


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


class Validation(pl.Callback):
    """Measures the accuracy of the weights file, keeps the best one, and stops without improvement.

    Accuracy is mask AP (box AP for a network without masks), averaged over the data sets. Each
    evaluation adds a line to `validation.jsonl`; a resumed run continues the file. A new run starts
    over, and replaces the best weights with its first evaluation.
    """

    def __init__(
        self, sources: Sequence[DataSource], weights: Path, every: int, patience: int | None
    ) -> None:
        self.sources, self.weights = sources, weights
        self.every, self.patience = every, patience
        self.history_file = weights.with_name(HISTORY_FILE)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Delete the history of an earlier run, or stop a resumed run that had already stopped."""
        if trainer.is_global_zero and trainer.global_step == 0:
            self.history_file.unlink(missing_ok=True)
        self._stop_if_stuck(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate when due; stop training if accuracy no longer improves."""
        if trainer.global_step == 0 or trainer.global_step % self.every:
            return
        if trainer.is_global_zero:
            self.measure(trainer.global_step, module.device)
        self._stop_if_stuck(trainer)

    def measure(self, iteration: int, device: torch.device, progress: bool = False) -> None:
        """Evaluate the weights file now, unless that was done for this iteration."""
        earlier = self._history()
        if iteration in (entry["iteration"] for entry in earlier):
            return
        segmenter = Segmenter(
            weights=self.weights,
            device=str(device),
            precision="float32",
            backend="torch",  # others would convert the network each time
            score_threshold=0,
        )
        accuracy = []
        for source in self.sources:
            result = evaluate(segmenter, source, progress)
            print(f"\niteration {iteration}, {source.annotations}, in percent\n{table(result)}")
            accuracy.append((result.masks or result.boxes).overall.ap)
        mean = sum(accuracy) / len(accuracy)
        if all(mean > entry["accuracy"] for entry in earlier):
            best = self.weights.with_name(BEST_WEIGHTS_FILE)
            with atomic_write(best) as part:
                shutil.copy(self.weights, part)
        with self.history_file.open("a") as file:
            entry = {"iteration": iteration, "accuracy": mean, "val": self._measured()}
            file.write(json.dumps(entry) + "\n")

    def _measured(self) -> list[str]:
        return [str(source.annotations) for source in self.sources]

    def _history(self) -> list[dict[str, Any]]:
        """Return the evaluations so far on the same data sets; others are not comparable."""
        if not self.history_file.exists():
            return []
        entries = []
        for line in self.history_file.read_text().splitlines():
            with suppress(json.JSONDecodeError):  # truncated by a kill
                entries.append(json.loads(line))
        return [entry for entry in entries if entry.get("val") == self._measured()]

    def _stop_if_stuck(self, trainer: pl.Trainer) -> None:
        # Only the first process measures.
        trainer.should_stop = trainer.strategy.broadcast(
            trainer.is_global_zero and self._is_stuck()
        )

    def _is_stuck(self) -> bool:
        values = [entry["accuracy"] for entry in self._history()]
        if self.patience is None or len(values) <= self.patience:
            return False
        return max(values[-self.patience :]) <= max(values[: -self.patience])
