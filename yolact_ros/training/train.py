"""A whole training run: data, network, loop, checkpoints."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.backends.cpu import get_cpu_capability
from torchvision.ops import box_convert

from yolact_ros.data import (
    DataError,
    DataSource,
    ImageRecord,
    check,
    class_names,
    crowd_remark,
    read_records,
)
from yolact_ros.detection import boxes
from yolact_ros.engine.download import weights_file
from yolact_ros.network import (
    EMBEDDED,
    PUBLISHED,
    NetworkConfig,
    WeightsError,
    Yolact,
    build,
    config_of,
    config_of_file,
    load_weights,
)
from yolact_ros.network.pretrained import is_of_backbone, load_backbone, load_imagenet
from yolact_ros.network.weights import read_state
from yolact_ros.training.callbacks import (
    AtomicCheckpoints,
    AveragedWeights,
    Checkpoints,
    ProgressBar,
    Throughput,
    Validation,
    average_from,
)
from yolact_ros.training.convolution import use_matrix_gradients
from yolact_ros.training.module import TrainingModule
from yolact_ros.training.resources import freed_memory_kept, opencv_on_one_core
from yolact_ros.training.settings import TrainingSettings

LAST_CHECKPOINT = "last.ckpt"
WEIGHTS_FILE = "weights.safetensors"


def is_first_process() -> bool:
    """Whether this is the process (rank 0) that prints."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


@rank_zero_only
def say(text: str) -> None:
    """Print, only in the first process."""
    print(text)


def training_data(settings: TrainingSettings) -> tuple[list[ImageRecord], tuple[str, ...]]:
    """Return all images to train on and the class names.

    Raises DataError if there are none or bad ones, or if `val` has bad ones or none of the classes.
    """
    masks = network_config(settings).mask_branch != "none"
    records: list[ImageRecord] = []
    classes, known = settings.classes, set[str]()
    for text in settings.train:
        source = DataSource.parse(text)
        # Damage in the middle of an image would end the run whenever it is drawn.
        report = check(source, settings.skip_bad, progress=is_first_process(), masks=masks)
        if settings.skip_bad:
            left_out = len(report.problems)
            if left_out:
                say(f"{source.annotations}: {left_out} wrong entries are left out")
        else:
            report.raise_if_bad()
        classes = classes or class_names(report.content)
        records += read_records(source, classes, report.content)
        known.update(category["name"] for category in report.content["categories"])
        remarks = [crowd_remark(report.content)]
        if not settings.classes:
            remarks.append(_left_out(report.content, classes))
        for remark in filter(None, remarks):
            say(f"{source.annotations}: {remark}")
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise DataError(f"no file of {', '.join(settings.train)} has a class {', '.join(unknown)}")
    for text in settings.val:
        _check_validation(DataSource.parse(text), classes, masks)
    if not settings.negatives:
        records = [record for record in records if _has_object([record])]
    if not _has_object(records):
        raise DataError(f"no image in {', '.join(settings.train)} has an object to learn")
    return records, classes


def _check_validation(source: DataSource, classes: Sequence[str], masks: bool) -> None:
    """Raise DataError for a bad entry, or if no object has one of the classes."""
    # Bad entries are not skipped here, since accuracy counts all entries.
    report = check(source, True, is_first_process(), masks, measure=True)
    report.raise_if_bad()
    if not _has_object(read_records(source, classes, report.content)):
        raise DataError(f"{source.annotations} has no object of the classes to measure")


def _left_out(content: dict[str, Any], classes: Sequence[str]) -> str:
    """Return a remark on objects whose class the first file does not have; empty if none."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    labels = (names[annotation["category_id"]] for annotation in content["annotations"])
    counts = Counter(name for name in labels if name not in classes)
    found = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    return found and f"left out are {found}: the first file has no such class (`classes` names all)"


def share_with_anchors(
    anchors: Tensor, records: Iterable[ImageRecord], iou: float, most: int = 1000
) -> float:
    """Return the fraction of objects that an anchor [P, 4] overlaps by `iou` or more, unaugmented.

    At most `most` of the images with objects are used; there must be some.
    """
    corners, best = box_convert(anchors, "cxcywh", "xyxy"), []
    useful = [record for record in records if _has_object([record])]
    for record in useful[:: math.ceil(len(useful) / most)]:
        objects = torch.tensor([a.box for a in record.annotations if not a.is_crowd]).float()
        objects[:, 2:] += objects[:, :2]
        objects /= torch.tensor([record.width, record.height]).repeat(2)
        best.append(boxes.iou(objects, corners).amax(dim=1))
    return float((torch.cat(best) >= iou).float().mean())


def _has_object(records: Sequence[ImageRecord]) -> bool:
    return any(not each.is_crowd for record in records for each in record.annotations)


def network_config(settings: TrainingSettings) -> NetworkConfig:
    """Return the configuration of the network to train; its classes come from the data.

    Raises ValueError for an invalid network setting.
    """
    if "class_names" in settings.network:
        raise ValueError("network has class_names: name the classes in `classes`")
    return NetworkConfig.from_dict(config_of(settings.model).to_dict() | settings.network)


def make_network(settings: TrainingSettings, classes: tuple[str, ...]) -> Yolact:
    """Build the network for `classes`, with random weights."""
    net = build(network_config(settings).replace(class_names=classes))
    return net.to(memory_format=torch.channels_last)


def start_file(settings: TrainingSettings) -> Path | None:
    """Return the weights file to start from, if any. Raises WeightsError if it does not exist."""
    if settings.start in ("imagenet", "nothing"):
        return None
    path = weights_file(settings.start)
    if not path.is_file():
        raise WeightsError(
            f"start={settings.start!r} is not allowed: it must be imagenet, nothing, a weights "
            f"file, or one of {', '.join((EMBEDDED.name, *PUBLISHED))}"
        )
    return path


def load_start(net: Yolact, settings: TrainingSettings, path: Path | None) -> None:
    """Load the initial weights of `net`: those of the file `path`, if any, or ImageNet's.

    Raises WeightsError for a weights file that cannot be used.
    """
    if path is not None:
        start_from(net, path, config_of(settings.model))
    elif settings.start == "imagenet":
        load_imagenet(net)


def start_from(net: Yolact, path: Path, config: NetworkConfig) -> None:
    """Load the weights of a network of the same kind, or of its backbone alone, into `net`.

    `config` is used if the file does not say which model it is for. Layers of another shape, those
    that depend on the number of classes, stay as they are.
    """
    found = read_state(path)
    if is_of_backbone(found):
        return load_backbone(net, found, str(path))
    donor = build(config_of_file(path) or config)
    load_weights(donor, found, str(path))
    state, own = donor.state_dict(), net.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    left_out = [name for name in own if name not in fitting]
    if left_out:
        say(f"{path} has nothing that fits {', '.join(left_out)}: they start afresh")
    net.load_state_dict(fitting, strict=False)


def train(settings: TrainingSettings, resume: bool = False) -> Path:
    """Train with `settings`; return the weights file.

    With `resume`, continue from the last checkpoint in the output folder, if there is one: a run
    may be killed before its first. Raises DataError for a bad data set, FileExistsError if there is
    a checkpoint but `resume` is off, and NonFiniteError if training diverges.
    """
    output = Path(settings.output)
    checkpoint = output / LAST_CHECKPOINT
    if checkpoint.exists() and not resume:
        raise FileExistsError(
            f"{checkpoint} is there already: go on with --resume, or choose another output folder"
        )
    goes_on = resume and checkpoint.exists()
    output.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(settings.seed, verbose=False)
    start = None if goes_on else start_file(settings)
    module = make_module(settings)
    callbacks = make_callbacks(settings)
    try:
        trainer = make_trainer(settings, callbacks)
    except MisconfigurationException as error:  # a missing device
        raise ValueError(str(error)) from error
    if trainer.is_global_zero:
        for remark in remarks(settings, module):
            print(remark)
        if resume and not goes_on:
            print(f"beginning anew: there is no {checkpoint}")
    if not goes_on:
        load_start(module.net, settings, start)
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and settings.precision == "32-true" and get_cpu_capability() == "AVX2":
        use_matrix_gradients(module.net)
    with opencv_on_one_core(), freed_memory_kept() if on_cpu else contextlib.nullcontext():
        try:
            # The checkpoint is our own file and holds plain values and tensors.
            trainer.fit(module, ckpt_path=checkpoint if goes_on else None, weights_only=True)
        except DataError as error:
            reason = str(error).strip().rpartition("DataError: ")[2]  # after a worker's traceback
            raise DataError(
                f"{reason}; `yolact data check` finds all such images, --skip-bad leaves them out"
            ) from error
    for callback in callbacks:
        if isinstance(callback, Validation) and trainer.is_global_zero:
            # Not module.device: Lightning has moved the module to the CPU.
            device = trainer.strategy.root_device
            callback.measure(trainer.global_step, device, progress=True)
    return output / WEIGHTS_FILE


def make_module(settings: TrainingSettings) -> TrainingModule:
    """Build the network, with random weights, and load its data. Raises DataError."""
    records, classes = training_data(settings)
    return TrainingModule(make_network(settings, classes), records, settings)


def remarks(settings: TrainingSettings, module: TrainingModule) -> list[str]:
    """Return remarks for the user about a run that is about to start."""
    iou, schedule = settings.losses.matching.positive_iou, settings.schedule
    share = share_with_anchors(module.net.anchors, module.data.records, iou)
    found = [f"{share:.0%} of the objects have an anchor of IoU {iou} or more"]
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
    callbacks: list[pl.Callback] = [ProgressBar(settings.log_every), LearningRateMonitor("step")]
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
    """Make Lightning's trainer for a run."""
    output = Path(settings.output)
    loggers: list[Any] = [CSVLogger(output, name=None, flush_logs_every_n_steps=settings.log_every)]
    if settings.tensorboard:
        loggers.append(TensorBoardLogger(output, name=None, version=loggers[0].version))
    return pl.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        precision=settings.precision,
        max_steps=settings.schedule.total_iterations,
        max_epochs=-1,
        gradient_clip_val=settings.schedule.gradient_clip,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpoints()],
        log_every_n_steps=settings.log_every,
        use_distributed_sampler=False,
        default_root_dir=output,
        enable_checkpointing=False,  # `Checkpoints` writes them
        enable_model_summary=False,
    )
