"""Average precision of masks and boxes, as COCO computes it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask

from yolact_ros.data import CocoFile, DataSource, as_rle
from yolact_ros.engine import Segmenter, StageTimes
from yolact_ros.evaluation.findings import Findings, Result, find, read_dataset

_IOU_50, _IOU_70, _IOU_75 = 0, 4, 5
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's and Pascal's metrics, 0 to 1; nan if there are no objects.

    `ap` is the mean over the IoU thresholds 0.50, 0.55 ... 0.95; small, medium and large objects
    have areas below 32^2, below 96^2 and above, in pixels of the image.
    """

    ap: float
    ap50: float
    ap70: float
    ap75: float
    small: float
    medium: float
    large: float


@dataclass(frozen=True)
class Scores:
    """Accuracy of masks or of boxes."""

    overall: AveragePrecision
    of_class: dict[str, AveragePrecision]
    precision_at_50: dict[str, npt.NDArray[np.float64]]
    """For each class, the precision at recall 0, 0.01 ... 1 and IoU 0.5: [101]."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and speed of a model on a data set."""

    milliseconds: StageTimes
    """Median over the images, one at a time."""
    boxes: Scores
    masks: Scores | None
    """None for a model without masks."""


def evaluate(segmenter: Segmenter, source: DataSource, progress: bool = False) -> Evaluation:
    """Measure `segmenter`, with its settings, on the classes that it shares with a data set.

    Raises DataError as `read_dataset` does, and for an image that cannot be read.
    """
    dataset = read_dataset(segmenter, source)
    return accuracy_of(find(segmenter, dataset, progress), dataset.content)


def accuracy_of(findings: Findings, content: CocoFile) -> Evaluation:
    """Evaluate findings in all images of a data set whose file has the `content`."""
    categories, truth = findings.categories, ground_truth(content, findings.has_masks)
    return Evaluation(
        milliseconds=_median(findings.times),
        boxes=score(truth, findings.boxes, "bbox", categories),
        masks=score(truth, findings.masks, "segm", categories) if findings.has_masks else None,
    )


def _median(times: list[StageTimes]) -> StageTimes:
    stages = [field.name for field in dataclasses.fields(StageTimes)]
    values = {name: [getattr(each, name) for each in times] or [0.0] for name in stages}
    return StageTimes(**{name: float(np.median(value)) for name, value in values.items()})


def ground_truth(content: CocoFile, masks: bool = True) -> COCO:
    """Load the content of a COCO-format file, adding fields that the library needs.

    Without `masks`, which are then unchecked, the area of an object is that of its box.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    annotations = []
    for number, given in enumerate(content["annotations"], start=1):
        # Renumbered from 1, since an id of 0, used by some files, means unmatched.
        annotation: dict[str, Any] = {"iscrowd": 0, **given, "id": number}
        if "area" not in annotation:
            _, _, width, height = annotation["bbox"]
            annotation["area"] = width * height
            segmentation = annotation.get("segmentation") if masks else None
            if segmentation:
                rle = as_rle(segmentation, *sizes[annotation["image_id"]])
                annotation["area"] = int(coco_mask.area(rle))
        annotations.append(annotation)
    return COCO({**content, "annotations": annotations})


def score(
    truth: COCO,
    results: list[Result],
    kind: Literal["segm", "bbox"],
    categories: dict[str, int],
) -> Scores:
    """Evaluate mask or box results for the classes `categories` (ids by name)."""
    # A copy, since the library writes into the results.
    found = truth.loadRes([dict(result) for result in results]) if results else COCO()
    evaluator = COCOeval_faster(truth, found, kind)
    ids = sorted(categories.values())
    evaluator.params.catIds = ids
    evaluator.params.imgIds = sorted(truth.getImgIds())
    evaluator.evaluate()
    evaluator.accumulate()
    # [10 IoU thresholds, 101 recalls, classes, 4 areas, 3 numbers of detections]
    precision = np.asarray(evaluator.eval["precision"])[..., -1]
    column = {name: ids.index(category) for name, category in categories.items()}
    return Scores(
        overall=_average(precision),
        of_class={name: _average(precision[:, :, [i]]) for name, i in column.items()},
        precision_at_50={name: precision[_IOU_50, :, i, _ALL] for name, i in column.items()},
    )


def _average(precision: npt.NDArray[np.float64]) -> AveragePrecision:
    """Average precisions [thresholds, recalls, classes, areas]; -1 means no objects."""

    def mean(values: npt.NDArray[np.float64]) -> float:
        values = values[values > -1]
        return float(values.mean()) if values.size else float("nan")

    return AveragePrecision(
        ap=mean(precision[..., _ALL]),
        ap50=mean(precision[_IOU_50, ..., _ALL]),
        ap70=mean(precision[_IOU_70, ..., _ALL]),
        ap75=mean(precision[_IOU_75, ..., _ALL]),
        small=mean(precision[..., _SMALL]),
        medium=mean(precision[..., _MEDIUM]),
        large=mean(precision[..., _LARGE]),
    )
