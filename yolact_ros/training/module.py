"""The training step and what it needs, for Lightning's loop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from yolact_ros.data import ImageRecord
from yolact_ros.engine.preprocess import preprocess
from yolact_ros.network import Predictions, Yolact
from yolact_ros.training.dataset import Batch, InstanceDataset, Item, TrainingOrder, collate
from yolact_ros.training.losses import compute_losses
from yolact_ros.training.schedule import learning_rate_factor, make_optimizer
from yolact_ros.training.settings import SETTINGS_FILE, TrainingSettings

# With fewer images per device, batch statistics are too noisy (published code).
_SMALLEST_NORM_BATCH = 6


class NonFiniteError(RuntimeError):
    """Predictions, losses or weights became infinite or NaN."""


class TrainingModule(pl.LightningModule):
    """Trains `net` on `records`."""

    def __init__(
        self, net: Yolact, records: Sequence[ImageRecord], settings: TrainingSettings
    ) -> None:
        super().__init__()
        self.net = net
        self.settings = settings
        self.data = InstanceDataset(records, net.config.image_size, settings.augmentation)

    def setup(self, stage: str) -> None:
        """Freeze parameters, before the optimiser is created."""
        self.train()
        for prefix in self.settings.freeze:
            if not any(name.startswith(prefix) for name, _ in self.net.named_parameters()):
                raise ValueError(f"freeze={prefix!r} is not allowed: no parameter begins with it")
        for name, parameter in self.net.named_parameters():
            if name.startswith(self.settings.freeze):
                parameter.requires_grad_(False)
        all_frozen = self._batch_norm_is_frozen()
        for name, module in self.net.named_modules():
            frozen = all_frozen or f"{name}.".startswith(self.settings.freeze)
            if frozen and isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.requires_grad_(False)

    def _batch_norm_is_frozen(self) -> bool:
        if self.settings.freeze_batch_norm is not None:
            return self.settings.freeze_batch_norm
        if self.settings.start == "nothing":  # there are no statistics to keep
            return False
        images_a_device = self.settings.schedule.batch_size // self.trainer.world_size
        return images_a_device < _SMALLEST_NORM_BATCH

    def train_dataloader(self) -> DataLoader[Item]:
        """Return batches from the current iteration to the last."""
        schedule, workers = self.settings.schedule, self.settings.workers
        if workers is None:
            workers = max(1, len(os.sched_getaffinity(0)) // self.trainer.num_devices)
        return DataLoader(
            self.data,
            batch_sampler=TrainingOrder(
                len(self.data),
                schedule.batch_size,
                schedule.total_iterations,
                seed=self.settings.seed,
                start=self.trainer.global_step,
                plain_from=round(self.settings.plain_from * schedule.total_iterations),
                rank=self.trainer.global_rank,
                world_size=self.trainer.world_size,
            ),
            num_workers=workers,
            worker_init_fn=_give_way if self.device.type == "cpu" else None,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
        )

    def on_train_batch_start(self, *_: Any) -> int | None:
        """Skip the iteration if training should stop: Lightning checks only after an iteration.

        Returns -1, which ends the epoch, or None.
        """
        return -1 if self.trainer.should_stop else None

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss of one batch of uint8 BGR images."""
        images, targets, paths = batch
        # Seed by iteration, so that a resumed run draws the same masks for the loss.
        torch.manual_seed(self.settings.seed + self.global_step)
        predictions = self.net(preprocess(list(images), self.net.config))
        self._require_finite(_tensors(predictions), paths)
        losses = compute_losses(
            self.net, predictions, targets, self.settings.losses, self._loss_normaliser
        )
        values = {name: loss.detach() for name, loss in losses.items().items()}
        self._require_finite(values, paths)
        total = losses.total
        values["loss"] = total.detach()
        self.log_dict(values, prog_bar=True, batch_size=len(images), sync_dist=True)
        return total

    def _require_finite(self, values: dict[str, Tensor], paths: Sequence[Path]) -> None:
        """Raise NonFiniteError, before weights or checkpoints change, unless all are finite."""
        finite = torch.stack([torch.isfinite(value).all() for value in values.values()])
        bad = [name for name, fine in zip(values, finite.tolist(), strict=True) if not fine]
        if bad:
            raise NonFiniteError(
                f"at iteration {self.global_step} {', '.join(bad)} are not finite; "
                f"the images were {', '.join(map(str, paths))}"
            )

    def _loss_normaliser(self, positives: Tensor) -> Tensor:
        """Return the mean positive anchors of a process, at least one in the whole batch."""
        mean = self.trainer.strategy.reduce(positives, reduce_op="mean")
        return mean.clamp(min=1 / self.trainer.world_size)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule, stepped each iteration."""
        schedule = self.settings.schedule
        optimizer = make_optimizer([p for p in self.parameters() if p.requires_grad], schedule)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(schedule))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["network"] = self.net.config.to_dict()
        checkpoint["frozen"] = self._frozen()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ValueError for a checkpoint that does not fit the settings: another network,
        another optimiser or other trainable layers, or averaged weights though `ema` is off.
        """
        wanted = self.net.config.to_dict()
        for name, had in checkpoint.get("network", {}).items():
            if name in wanted and had != wanted[name]:
                raise ValueError(f"{name}={wanted[name]} is not allowed: the checkpoint has {had}")
        if "averaging_state" in checkpoint and not self.settings.schedule.ema:
            raise ValueError("ema=0 is not allowed: the checkpoint has averaged weights")
        optimizer = self.settings.schedule.optimizer
        is_adamw = "betas" in checkpoint["optimizer_states"][0]["param_groups"][0]
        if is_adamw != (optimizer == "adamw"):
            had = "adamw" if is_adamw else "sgd"
            raise ValueError(f"optimizer={optimizer} is not allowed: the checkpoint has {had}")
        if checkpoint.get("frozen", self._frozen()) != self._frozen():
            raise ValueError(
                "the checkpoint's run trained other layers: keep `freeze`, and keep batch norm "
                "frozen or not; unless freeze_batch_norm is set, that depends on the images per "
                "device (batch_size, devices, num_nodes)"
            )

    def _frozen(self) -> list[str]:
        return [name for name, each in self.net.named_parameters() if not each.requires_grad]

    def on_train_start(self) -> None:
        """Override the optimiser's and the schedule's values in a checkpoint with the settings."""
        if self.trainer.is_global_zero:  # not before a checkpoint has been checked
            self.settings.write(Path(self.settings.output) / SETTINGS_FILE)
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        rate = self.settings.schedule.scaled_learning_rate
        scheduler.base_lrs = [rate]
        now = rate * scheduler.lr_lambdas[0](scheduler.last_epoch)
        optimizer.param_groups[0].update(optimizer.defaults | {"initial_lr": rate, "lr": now})


def _give_way(_: int) -> None:
    """Lower the priority of a data loader worker, for training on a CPU: the network's threads wait
    for each other, so taking the core of one delays all."""
    os.nice(10)  # not 19, which would starve workers if other programs run


def _tensors(predictions: Predictions) -> dict[str, Tensor]:
    return {name: value for name, value in vars(predictions).items() if value is not None}
