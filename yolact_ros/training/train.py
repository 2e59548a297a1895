"""A whole training run: data, network, loop, checkpoints."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.backends.cpu import get_cpu_capability

from yolact_ros.data import DataError, DataSource
from yolact_ros.training.callbacks import (
    AtomicCheckpoints,
    AveragedWeights,
    Checkpoints,
    ProgressBar,
    Termination,
    Throughput,
    average_from,
)
from yolact_ros.training.convolution import use_matrix_gradients
from yolact_ros.training.module import TrainingModule
from yolact_ros.training.records import anchor_recall, training_data
from yolact_ros.training.resources import freed_memory_kept, opencv_on_one_core
from yolact_ros.training.settings import PUBLISHED_BATCH_SIZE, TrainingSettings
from yolact_ros.training.start import load_start, make_network, start_file
from yolact_ros.training.validation import Validation

LAST_CHECKPOINT = "last.ckpt"
WEIGHTS_FILE = "weights.safetensors"


def train(settings: TrainingSettings, resume: bool = False) -> Path:
    """Train with `settings`; return the weights file.

    With `resume`, continue from the last checkpoint in the output folder, if there is one: a run
    may be killed before its first. Raises DataError for a bad data set, FileExistsError if there is
    a checkpoint but `resume` is off, and NonFiniteError if training diverges.
    """
    output = Path(settings.output)
    checkpoint = output / LAST_CHECKPOINT
    goes_on = checkpoint.exists()
    if goes_on and not resume:
        raise FileExistsError(
            f"{checkpoint} already exists: continue with --resume, or choose another output folder"
        )
    output.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(settings.seed, verbose=False)
    start = None if goes_on else start_file(settings)
    module = make_module(settings)
    callbacks = make_callbacks(settings)
    trainer = make_trainer(settings, callbacks)
    if trainer.is_global_zero:
        for remark in remarks(settings, module):
            print(remark)
        if resume and not goes_on:
            print(f"starting from scratch: there is no {checkpoint}")
    if not goes_on:
        load_start(module.net, settings, start)
    _fit(trainer, module, checkpoint if goes_on else None)
    for callback in callbacks:
        if isinstance(callback, Validation) and trainer.is_global_zero:
            # Not module.device: Lightning has moved the module to the CPU.
            device = trainer.strategy.root_device
            callback.measure(trainer.global_step, device, progress=True)
    return output / WEIGHTS_FILE


def _fit(trainer: pl.Trainer, module: TrainingModule, checkpoint: Path | None) -> None:
    """Run Lightning's loop, from a checkpoint if there is one. Raises DataError."""
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and module.settings.precision == "32-true" and get_cpu_capability() == "AVX2":
        use_matrix_gradients(module.net)
    with opencv_on_one_core(), freed_memory_kept() if on_cpu else contextlib.nullcontext():
        try:
            # The checkpoint is our own file and holds plain values and tensors.
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        except DataError as error:
            reason = str(error).strip().rpartition("DataError: ")[2]  # after a worker's traceback
            raise DataError(
                f"{reason}; `yolact data check` finds all such images, and --skip-bad leaves out "
                "those of `train`"
            ) from error


def make_module(settings: TrainingSettings) -> TrainingModule:
    """Build the network, with random weights, and load its data. Raises DataError."""
    records, classes = training_data(settings)
    return TrainingModule(make_network(settings, classes), records, settings)


def remarks(settings: TrainingSettings, module: TrainingModule) -> list[str]:
    """Return remarks for the user about a run that is about to start."""
    iou, schedule = settings.losses.matching.positive_iou, settings.schedule
    recall = anchor_recall(module.net.anchors, module.data.records, iou)
    found = [f"{recall:.0%} of the objects have an anchor of IoU {iou} or more"]
    if schedule.total_iterations != schedule.iterations:
        found.append(
            f"schedule.batch_size={schedule.batch_size}: {schedule.total_iterations} iterations at "
            f"a learning rate of {schedule.scaled_learning_rate:g}, in place of "
            f"{schedule.iterations} at {schedule.learning_rate:g} with batches of "
            f"{PUBLISHED_BATCH_SIZE}"
        )
    if schedule.warmup_iterations >= schedule.total_iterations:
        found.append(
            f"schedule.warmup_iterations={schedule.warmup_iterations}, of a run of "
            f"{schedule.total_iterations} iterations: the learning rate never reaches its value, "
            "and weights are never averaged"
        )
    return found


def make_callbacks(settings: TrainingSettings) -> list[pl.Callback]:
    """Make the callbacks: averaging, checkpoints, weights files, throughput, validation."""
    output, schedule = Path(settings.output), settings.schedule
    callbacks: list[pl.Callback] = [
        Termination(),
        ProgressBar(settings.log_every),
        LearningRateMonitor("step"),
    ]
    weights = output / WEIGHTS_FILE
    validate_every = settings.validate_every or schedule.total_iterations
    if schedule.ema:
        function = average_from(schedule.warmup_iterations, schedule.ema)
        callbacks.append(AveragedWeights(multi_avg_fn=function))
    intervals = (settings.save_every, validate_every)
    callbacks.append(Checkpoints(output / LAST_CHECKPOINT, weights, intervals))
    # After callbacks that take time at the end of an iteration, before those at the start of one.
    callbacks.append(Throughput(schedule.batch_size, settings.log_every))
    if settings.val:
        sources = [DataSource.parse(text) for text in settings.val]
        callbacks.append(Validation(sources, weights, validate_every, settings.patience))
    return callbacks


def make_trainer(settings: TrainingSettings, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Make Lightning's trainer for a run. Raises ValueError for a device that is missing."""
    output, iterations = Path(settings.output), settings.schedule.total_iterations
    log_every = min(settings.log_every, iterations)  # else a short run would log nothing
    loggers: list[Any] = [CSVLogger(output, name=None, flush_logs_every_n_steps=log_every)]
    if settings.tensorboard:
        loggers.append(TensorBoardLogger(output, name=None, version=loggers[0].version))
    try:
        return pl.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            precision=settings.precision,
            max_steps=iterations,
            max_epochs=-1,
            gradient_clip_val=settings.schedule.gradient_clip,
            callbacks=callbacks,
            logger=loggers,
            plugins=[AtomicCheckpoints()],
            log_every_n_steps=log_every,
            use_distributed_sampler=False,
            default_root_dir=output,
            enable_checkpointing=False,  # `Checkpoints` writes them
            enable_model_summary=False,
        )
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
