"""The image records to train on, checked before the run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

from yolact_ros.data import (
    DataError,
    Dataset,
    DataSource,
    ImageRecord,
    check,
    crowd_remark,
    other_classes,
)
from yolact_ros.detection import boxes
from yolact_ros.training.console import is_first_process, say
from yolact_ros.training.settings import TrainingSettings
from yolact_ros.training.start import network_config


def training_data(settings: TrainingSettings) -> tuple[list[ImageRecord], tuple[str, ...]]:
    """Return all images to train on and the class names.

    Raises DataError if there are none or bad ones, or if `val` has bad ones or none of the classes.
    """
    masks = network_config(settings).mask_branch != "none"
    records: list[ImageRecord] = []
    classes, known = settings.classes, set[str]()
    for text in settings.train:
        dataset = _read_learnable(DataSource.parse(text), masks, settings.skip_bad)
        classes = classes or dataset.class_names
        records += dataset.records(classes)
        known.update(dataset.class_names)
        if remark := crowd_remark(dataset.content):
            say(f"{text}: {remark}")
        if not settings.classes and (others := other_classes(dataset.content, classes)):
            say(f"{text}: left out are {others}: the first file has no such class (see `classes`)")
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise DataError(f"no file of {', '.join(settings.train)} has a class {', '.join(unknown)}")
    for text in settings.val:
        content = _read_measurable(DataSource.parse(text), classes, masks).content
        if remark := crowd_remark(content):
            say(f"{text}: {remark}")
        if not settings.classes and (others := other_classes(content, classes)):
            say(f"{text}: not measured are {others}: the model has no such class")
    if not settings.negatives:
        records = [record for record in records if _has_object([record])]
    if not _has_object(records):
        raise DataError(f"no image in {', '.join(settings.train)} has an object to learn")
    return records, classes


def _read_learnable(source: DataSource, masks: bool, skip_bad: bool) -> Dataset:
    """Read a data set without its bad entries. Raises DataError if they are not to be skipped."""
    # Damage in the middle of an image would end the run whenever it is drawn.
    report = check(source, masks=masks, decode=skip_bad, progress=is_first_process())
    if not skip_bad:
        report.raise_if_bad()
    elif report.problems:
        say(f"{source.annotations}: {len(report.problems)} wrong entries are left out")
    return report.dataset


def _read_measurable(source: DataSource, classes: Sequence[str], masks: bool) -> Dataset:
    """Read a data set. Raises DataError for a bad entry, or if no object has one of `classes`."""
    # Bad entries are not skipped here, since accuracy counts all entries.
    report = check(source, "measuring", masks=masks, decode=True, progress=is_first_process())
    report.raise_if_bad()
    if not _has_object(report.dataset.records(classes)):
        reason = f"{source.annotations} has no object of the classes to measure"
        crowds = crowd_remark(report.dataset.content)
        raise DataError(f"{reason}: {crowds}" if crowds else reason)
    return report.dataset


def anchor_recall(
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
