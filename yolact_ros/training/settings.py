"""All settings of a training run, as frozen data classes."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from yolact_ros.training.augmentation import AugmentationSettings
from yolact_ros.training.losses import LossSettings
from yolact_ros.training.ranges import check_ranges

PUBLISHED_BATCH_SIZE = 8

SETTINGS_FILE = "settings.yaml"
"""File with a run's settings, in its output folder."""


@dataclass(frozen=True)
class ScheduleSettings:
    """The optimiser and its learning rate. The defaults are the published recipe."""

    iterations: int = 800_000
    """Length of the training at batch size 8."""
    batch_size: int = 8
    """Images per iteration, all devices together. As published, another size than 8 multiplies the
    learning rate and divides the iterations by size / 8; the warm-up does not change."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The papers use SGD."""
    learning_rate: float = 1e-3
    """Learning rate after the warm-up, at batch size 8."""
    momentum: float = 0.9
    """Momentum of SGD; AdamW uses it as beta1."""
    weight_decay: float = 5e-4
    """Weight decay, applied to all parameters."""
    warmup_iterations: int = 500
    """Length of the warm-up, at any batch size."""
    warmup_learning_rate: float = 1e-4
    """Learning rate of the first iteration, at any batch size; it changes linearly during the
    warm-up."""
    shape: Literal["steps", "cosine"] = "steps"
    """`steps`: divided by 10 at each of `steps`; `cosine`: cosine decay to zero."""
    steps: tuple[float, ...] = (0.35, 0.75, 0.875, 0.9375)
    """Fractions of the training: 280k, 600k, 700k and 750k of 800k iterations."""
    ema: float = 0.0
    """Decay per iteration of the moving average of the weights, which is saved in their place; 0
    turns it off. It starts after the warm-up; until then it equals the weights."""
    gradient_clip: float | None = None
    """Clip the global gradient norm to this value; null: no clipping."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            iterations=(1, 10**9),
            batch_size=(1, 10**5),
            learning_rate=(1e-12, 100),
            warmup_iterations=(0, 10**9),
            warmup_learning_rate=(0, 100),
            momentum=(0, 0.999999),
            weight_decay=(0, 100),
            ema=(0, 0.999999),
            gradient_clip=(1e-12, 1e12),
        )
        if not all(0 < step < 1 for step in self.steps):
            raise ValueError(f"steps={self.steps} is not allowed: they must be between 0 and 1")

    @property
    def scale(self) -> float:
        """Batch size relative to the published one."""
        return self.batch_size / PUBLISHED_BATCH_SIZE

    @property
    def scaled_learning_rate(self) -> float:
        """Learning rate at our batch size."""
        return self.learning_rate * self.scale

    @property
    def total_iterations(self) -> int:
        """Iterations at our batch size."""
        return max(1, int(self.iterations / self.scale))


@dataclass(frozen=True)
class TrainingSettings:
    """One training run."""

    train: tuple[str, ...]
    """COCO-format files to train on, `FILE.json` (images in one of the usual places) or
    `FILE.json:FOLDER`."""
    val: tuple[str, ...] = ()
    """COCO-format files to measure accuracy on during the training."""
    output: str = "runs/yolact"
    """Folder for checkpoints, weights, logs and a copy of these settings."""
    model: str = "yolact_base"
    """Name of the configuration to start from."""
    network: dict[str, Any] = field(default_factory=dict)
    """Fields of the network configuration to change, such as `image_size: 400`. With a settings
    file, `--network.image_size=400` changes one that it sets, `--network={...}` replaces all."""
    classes: tuple[str, ...] = ()
    """Classes to learn; empty: all of the first training file."""
    start: str = "imagenet"
    """Initial weights: `imagenet` (for the backbone), `nothing`, a weights file or a published
    model. Layers whose shape does not fit the number of classes are initialised at random. The file
    may hold only the backbone."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    plain_from: float = 1.0
    """Fraction of the training, 0 to 1, after which `expand` and `copy_paste` are turned off
    (Ge et al., YOLOX, 2021); not in the papers."""
    losses: LossSettings = field(default_factory=LossSettings)
    freeze_batch_norm: bool | None = None
    """Freeze batch norm; null: with fewer than 6 images per device, as published, but never if
    `start` is `nothing`."""
    freeze: tuple[str, ...] = ()
    """Freeze parameters whose names begin with one of these prefixes, such as `backbone.stem`, and
    the batch norm statistics there."""
    negatives: bool = False
    """Also train on images without objects; as published, they are left out."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """Numeric precision; mixed: 16 bits in the layers that benefit from it."""
    accelerator: str = "auto"
    """Kind of device, as named by Lightning: `cpu`, `gpu`; `auto`: a GPU if there is one."""
    devices: int | str = "auto"
    """Number of devices on each machine; `auto`: all GPUs, or one process on the CPU."""
    num_nodes: int = 1
    """Number of machines."""
    workers: int | None = None
    """Number of processes per device that load and augment images; null: the machine's CPU cores
    divided by its devices."""
    seed: int = 0
    """Random seed."""
    save_every: int = 1000
    """Iterations between checkpoints."""
    validate_every: int | None = None
    """Iterations between evaluations on `val`, each of newly saved weights; null: at the end."""
    patience: int | None = None
    """Stop after this many evaluations in a row without improvement, once one was above 0; null:
    never. Needs `val` and `validate_every`."""
    log_every: int = 20
    """Iterations between log lines."""
    tensorboard: bool = False
    """Also log for TensorBoard, in addition to the CSV file."""
    skip_bad: bool = False
    """Skip bad images and annotations instead of stopping. Nothing is skipped in `val`, since the
    accuracy would be that of another data set; empty boxes and masks count there, as in COCO."""

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("train is empty: name at least one COCO-format file to learn from")
        check_ranges(
            self,
            plain_from=(0, 1),
            save_every=(1, math.inf),
            validate_every=(1, math.inf),
            log_every=(1, math.inf),
            patience=(1, math.inf),
            workers=(0, math.inf),
            seed=(0, math.inf),
        )
        if self.patience is not None and not (self.val and self.validate_every):
            raise ValueError(
                f"patience={self.patience} is not allowed without val and validate_every"
            )

    def write(self, path: Path) -> None:
        """Write a YAML file that `--config` takes."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))  # tuples to lists
        path.write_text(yaml.safe_dump(values, sort_keys=False))
