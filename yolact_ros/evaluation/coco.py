"""Average precision as COCO computes it, of masks and of boxes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask

from yolact_ros.data import DataError, DataSource, read_image, read_json
from yolact_ros.detection import Instances
from yolact_ros.engine import Segmenter

Result = dict[str, Any]
"""One detection in the format that the COCO server takes."""


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's six numbers, 0 to 1; nan where there is nothing to find.

    `ap` is the mean over the IoU thresholds 0.50, 0.55 ... 0.95; small, medium and large objects
    have areas below 32^2, below 96^2 and from there on, in pixels.
    """

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of one model on one data set."""

    images: int
    masks: AveragePrecision | None
    """None for a model without masks."""
    boxes: AveragePrecision
    mask_ap_of_class: dict[str, float]
    box_ap_of_class: dict[str, float]


def segment_dataset(
    segmenter: Segmenter, source: DataSource
) -> Iterator[tuple[dict[str, Any], Instances]]:
    """Run a model over a data set: the image's entry in the file, and what was found in it.

    Raises DataError for a picture that is missing or broken.
    """
    for image in read_json(source.annotations)["images"]:
        yield image, segmenter(read_image(source.images / image["file_name"]))


def coco_results(
    image_id: int, instances: Instances, category_ids: dict[str, int]
) -> tuple[list[Result], list[Result]]:
    """One image's instances as (mask results, box results), which differ in their scores.

    Classes that are not in `category_ids` (from class name) are left out.
    """
    masks: list[Result] = []
    boxes: list[Result] = []
    rles: list[Any] = [None] * len(instances)
    if instances.small_masks is not None and len(instances):
        stack = instances.masks.numpy().astype(np.uint8)
        rles = coco_mask.encode(np.asfortranarray(stack.transpose(1, 2, 0)))
    for i, name in enumerate(instances.names):
        if name not in category_ids:
            continue
        x1, y1, x2, y2 = instances.boxes[i].tolist()
        common = {"image_id": image_id, "category_id": category_ids[name]}
        boxes.append(
            common | {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(instances.scores[i])}
        )
        if rles[i] is not None:
            rle = {"size": list(rles[i]["size"]), "counts": _text(rles[i]["counts"])}
            masks.append(common | {"segmentation": rle, "score": float(instances.mask_scores[i])})
    return masks, boxes


def category_ids(source: DataSource, classes: Sequence[str]) -> dict[str, int]:
    """The data set's category id of each class that it has. Raises DataError when it has none."""
    found = {
        c["name"]: c["id"]
        for c in read_json(source.annotations)["categories"]
        if c["name"] in classes
    }
    if not found:
        raise DataError(f"{source.annotations} has none of the classes {', '.join(classes)}")
    return found


def average_precision(
    source: DataSource, results: Iterable[Result], kind: str, categories: dict[str, int]
) -> tuple[AveragePrecision, dict[str, float]]:
    """Average precision of `results`, overall and of each class; `kind` is "segm" or "bbox"."""
    truth = COCO(str(source.annotations))
    found = list(results)
    nan = float("nan")
    if not found:
        return AveragePrecision(0, 0, 0, 0, 0, 0), dict.fromkeys(categories, 0.0)
    evaluator = COCOeval_faster(truth, truth.loadRes(found), kind)
    evaluator.params.catIds = sorted(categories.values())
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    numbers = [float(v) if v >= 0 else nan for v in evaluator.stats[:6]]
    # [thresholds, recalls, classes, areas, numbers of detections]; -1: nothing to find
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    of_class = {}
    for name, category in categories.items():
        values = precision[:, :, evaluator.params.catIds.index(category)]
        of_class[name] = float(values[values > -1].mean()) if (values > -1).any() else nan
    return AveragePrecision(*numbers), of_class


def evaluate(segmenter: Segmenter, source: DataSource) -> Evaluation:
    """Accuracy of `segmenter`, as it is set, on a data set; on the classes that both have."""
    categories = category_ids(source, segmenter.class_names)
    masks: list[Result] = []
    boxes: list[Result] = []
    count, has_masks = 0, segmenter.config.mask_branch != "none"
    for image, instances in segment_dataset(segmenter, source):
        of_masks, of_boxes = coco_results(image["id"], instances, categories)
        masks += of_masks
        boxes += of_boxes
        count += 1
    box_ap, box_ap_of_class = average_precision(source, boxes, "bbox", categories)
    mask_ap, mask_ap_of_class = (
        average_precision(source, masks, "segm", categories) if has_masks else (None, {})
    )
    return Evaluation(count, mask_ap, box_ap, mask_ap_of_class, box_ap_of_class)


def _text(counts: bytes | str) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts
