"""Accuracy during training: the best weights are kept, and a run that is stuck ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import lightning.pytorch as pl
import torch

from yolact_ros.data import DataSource
from yolact_ros.engine import Segmenter
from yolact_ros.evaluation.coco import evaluate
from yolact_ros.evaluation.report import table
from yolact_ros.files import atomic_write
from yolact_ros.training.console import say

HISTORY_FILE = "validation.jsonl"
BEST_WEIGHTS_FILE = "best.safetensors"


class _Entry(TypedDict):
    """A line of `validation.jsonl`."""

    iteration: int
    accuracy: float
    """Mean AP over the data sets, 0 to 1."""
    val: list[str]
    """Their annotation files."""


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
        highest = max((entry["accuracy"] for entry in earlier), default=0.0)
        if mean > highest or highest == 0:  # a young network finds nothing for a while
            best = self.weights.with_name(BEST_WEIGHTS_FILE)
            with atomic_write(best) as part:
                shutil.copy(self.weights, part)
        entry = _Entry(iteration=iteration, accuracy=mean, val=self._measured())
        # One that was cut off, by a full disk, must not take this one with it.
        lines = self.history_file.read_text().splitlines() if self.history_file.exists() else []
        with atomic_write(self.history_file) as part:
            part.write_text("".join(f"{line}\n" for line in [*lines, json.dumps(entry)]))

    def _measured(self) -> list[str]:
        return [str(source.annotations) for source in self.sources]

    def _history(self) -> list[_Entry]:
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
        stuck = trainer.strategy.broadcast(trainer.is_global_zero and self._is_stuck())
        if stuck:
            say(f"stopped: no improvement in the last {self.patience} evaluations (see `patience`)")
        trainer.should_stop = stuck

    def _is_stuck(self) -> bool:
        values = [entry["accuracy"] for entry in self._history()]
        if self.patience is None or len(values) <= self.patience or max(values) == 0:
            return False
        return max(values[-self.patience :]) <= max(values[: -self.patience])
