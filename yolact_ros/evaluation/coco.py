"""Average precision as COCO computes it, of masks and of boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask
from tqdm import tqdm

from yolact_ros.data import (
    DataError,
    DataSource,
    as_rle,
    category_ids,
    encode_mask,
    read_countable,
    read_image,
)
from yolact_ros.detection import Instances
from yolact_ros.engine import Segmenter, StageTimes

Result = dict[str, Any]
"""One detection in the format that the COCO server takes."""

_IOU_50, _IOU_70, _IOU_75 = 0, 4, 5
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's numbers and Pascal's, 0 to 1; nan where there is nothing to find.

    `ap` is the mean over the IoU thresholds 0.50, 0.55 ... 0.95; small, medium and large objects
    have areas below 32^2, below 96^2 and from there on, in pixels of the picture.
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
    """What a model found in a data set, and how good that is."""

    image_ids: tuple[int, ...]
    milliseconds: StageTimes
    """Median over the images, one at a time."""
    boxes: Scores
    masks: Scores | None
    """None for a model without masks."""
    box_results: list[Result]
    mask_results: list[Result]


@dataclass(frozen=True)
class Findings:
    """What a model found in some images of a data set, in order."""

    categories: dict[str, int]
    """The data set's category ids of the classes that it shares with the model."""
    has_masks: bool
    masks: list[Result]
    boxes: list[Result]
    times: list[StageTimes]
    """One for each image."""


def read_source(segmenter: Segmenter, source: DataSource) -> dict[str, Any]:
    """The content of the file of a data set that `segmenter` can be evaluated on.

    Raises DataError for annotations that cannot be counted, for a picture that is missing, or if
    there is no class that it knows, or no picture.
    """
    content = read_countable(source, _has_masks(segmenter))
    category_ids(source, segmenter.class_names, content)
    if not content["images"]:
        raise DataError(f"{source.annotations} has no images")
    return content


def evaluate(
    segmenter: Segmenter,
    source: DataSource,
    progress: bool = False,
    content: dict[str, Any] | None = None,
) -> Evaluation:
    """Accuracy of `segmenter`, as it is set, on the classes that it shares with a data set.

    `content` is what `read_source` has read, if it has. Raises DataError as that does, and for a
    picture that cannot be read.
    """
    content = content or read_source(segmenter, source)
    return summarise(content, find(segmenter, source, content, progress))


def evaluate_parallel(
    makers: Sequence[Callable[[], Segmenter]],
    source: DataSource,
    content: dict[str, Any],
    progress: bool = False,
) -> Evaluation:
    """The same with a process for each of `makers`, which make the segmenter there.

    They are pickled. Processes on a CPU share PyTorch's threads evenly.
    """
    count = len(makers)
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_find_share, maker, source, i, count, progress)
            for i, maker in enumerate(makers)
        ]
        shares = [job.result() for job in jobs]
    return summarise(content, _join(shares))


def _find_share(
    maker: Callable[[], Segmenter], source: DataSource, share: int, shares: int, progress: bool
) -> Findings:
    torch.set_num_threads(max(1, torch.get_num_threads() // shares))
    segmenter = maker()
    content = read_source(segmenter, source)
    first, end = (i * len(content["images"]) // shares for i in (share, share + 1))
    content["images"] = content["images"][first:end]
    return find(segmenter, source, content, progress and share == 0)


def _has_masks(segmenter: Segmenter) -> bool:
    return segmenter.config.mask_branch != "none"


def _join(shares: Sequence[Findings]) -> Findings:
    """Findings of one part of the images after the other as those of all."""

    def joined(name: str) -> list[Any]:
        return [each for share in shares for each in getattr(share, name)]

    return dataclasses.replace(
        shares[0], masks=joined("masks"), boxes=joined("boxes"), times=joined("times")
    )


def find(
    segmenter: Segmenter, source: DataSource, content: dict[str, Any], progress: bool = False
) -> Findings:
    """Segment the images of a data set whose file has the `content`, or a part of it."""
    categories = category_ids(source, segmenter.class_names, content)
    folder = source.folder(content)
    findings = Findings(categories, _has_masks(segmenter), [], [], [])
    for image in tqdm(content["images"], "images", disable=not progress):
        size = image["height"], image["width"]
        picture = read_image(folder / image["file_name"], size)
        (instances,), stages = segmenter.submit([picture]).result()
        masks, boxes = to_results(image["id"], instances, categories)
        findings.masks.extend(masks)
        findings.boxes.extend(boxes)
        findings.times.append(stages)
    return findings


def summarise(content: dict[str, Any], findings: Findings) -> Evaluation:
    """Accuracy of what was found in all images of a data set whose file has the `content`."""
    categories, truth = findings.categories, ground_truth(content, findings.has_masks)
    return Evaluation(
        image_ids=tuple(image["id"] for image in content["images"]),
        milliseconds=_median(findings.times),
        boxes=score(truth, findings.boxes, "bbox", categories),
        masks=score(truth, findings.masks, "segm", categories) if findings.has_masks else None,
        box_results=findings.boxes,
        mask_results=findings.masks,
    )


def _median(times: list[StageTimes]) -> StageTimes:
    stages = [field.name for field in dataclasses.fields(StageTimes)]
    values = {name: [getattr(each, name) for each in times] or [0.0] for name in stages}
    return StageTimes(**{name: float(np.median(value)) for name, value in values.items()})


def to_results(
    image_id: int, instances: Instances, categories: dict[str, int]
) -> tuple[list[Result], list[Result]]:
    """One image's instances as (mask results, box results), which differ in their scores.

    Classes that are not in `categories` (ids by name) are left out.
    """
    masks: list[Result] = []
    boxes: list[Result] = []
    rles = _encode(instances)
    for i, name in enumerate(instances.names):
        if name not in categories:
            continue
        common = {"image_id": image_id, "category_id": categories[name]}
        x1, y1, x2, y2 = instances.boxes[i].tolist()
        box = [x1, y1, x2 - x1, y2 - y1]
        boxes.append(common | {"bbox": box, "score": float(instances.scores[i])})
        if rles:
            result = {"segmentation": rles[i], "score": float(instances.mask_scores[i])}
            masks.append(common | result)
    return masks, boxes


def _encode(instances: Instances) -> list[dict[str, Any]]:
    """Compressed RLEs of the masks; none without masks."""
    if not instances.has_masks or not len(instances):
        return []
    regions, rles = instances.regions(), []
    image = torch.zeros(instances.image_size[::-1], dtype=torch.uint8).mT  # columns, as the library
    for i in range(len(instances)):
        window = regions.window(i, image)
        window.copy_(regions.mask(i))
        rles.append(encode_mask(image.numpy()))
        window.zero_()
    return rles


def ground_truth(content: dict[str, Any], masks: bool = True) -> COCO:
    """The content of a COCO-format file, with what the library needs and some files leave out.

    Without `masks`, which nobody has checked then, objects are as large as their boxes.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    annotations = []
    for number, given in enumerate(content["annotations"], start=1):
        # A number of 0, where some files begin, would say that nothing was matched.
        annotation = {"iscrowd": 0, **given, "id": number}
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
    """Accuracy of results of the classes `categories` (ids by name): of masks, or of boxes."""
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
    """Means of precisions [thresholds, recalls, classes, areas]; -1 means nothing to find."""

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
