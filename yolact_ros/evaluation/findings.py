"""What a model finds in a data set, in the COCO server's format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from tqdm import tqdm

from yolact_ros.data import (
    DataError,
    DataSource,
    category_ids,
    encode_mask,
    read_annotated_image,
    read_countable,
)
from yolact_ros.detection import Instances
from yolact_ros.engine import Segmenter, StageTimes

Result = dict[str, Any]
"""One detection in the COCO server's format."""


@dataclass(frozen=True)
class Findings:
    """What a model found in some images of a data set, in order."""

    image_ids: list[int]
    categories: dict[str, int]
    """The data set's category ids of the classes that it shares with the model."""
    has_masks: bool
    masks: list[Result]
    boxes: list[Result]
    times: list[StageTimes]
    """One for each image."""

    @property
    def results(self) -> list[Result]:
        """The mask results, or the box results if there are no masks."""
        return self.masks if self.has_masks else self.boxes


def read_source(segmenter: Segmenter, source: DataSource) -> dict[str, Any]:
    """Read the file of a data set that `segmenter` can be evaluated on.

    Raises DataError for annotations that cannot be counted, for missing images, or if the file
    has no images or none of the model's classes.
    """
    content = read_countable(source, _has_masks(segmenter))
    category_ids(source, segmenter.class_names, content)
    if not content["images"]:
        raise DataError(f"{source.annotations} has no images")
    return content


def find(
    segmenter: Segmenter, source: DataSource, content: dict[str, Any], progress: bool = False
) -> Findings:
    """Segment the images in `content`, which is that of the data set's file or a part of it."""
    categories = category_ids(source, segmenter.class_names, content)
    folder = source.folder(content)
    findings = Findings([], categories, _has_masks(segmenter), [], [], [])
    for entry in tqdm(content["images"], "images", disable=not progress):
        size = entry["height"], entry["width"]
        image = read_annotated_image(folder / entry["file_name"], size)
        (instances,), stages = segmenter.submit([image]).result()
        masks, boxes = to_results(entry["id"], instances, categories)
        findings.masks.extend(masks)
        findings.boxes.extend(boxes)
        findings.times.append(stages)
        findings.image_ids.append(entry["id"])
    return findings


def find_parallel(
    makers: Sequence[Callable[[], Segmenter]],
    source: DataSource,
    content: dict[str, Any],
    progress: bool = False,
) -> Findings:
    """`find` with a process for each of `makers`, functions that create its segmenter.

    `makers` must be picklable. Processes on a CPU share PyTorch's threads evenly.
    """
    count = len(makers)
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_find_share, maker, source, i, count, progress)
            for i, maker in enumerate(makers)
        ]
        shares = [job.result() for job in jobs]
    return _join(shares)


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
    """Concatenate findings of consecutive parts of the images."""

    def joined(name: str) -> list[Any]:
        return [each for share in shares for each in getattr(share, name)]

    return dataclasses.replace(
        shares[0],
        image_ids=joined("image_ids"),
        masks=joined("masks"),
        boxes=joined("boxes"),
        times=joined("times"),
    )


def to_results(
    image_id: int, instances: Instances, categories: dict[str, int]
) -> tuple[list[Result], list[Result]]:
    """Convert one image's instances to (mask results, box results), whose scores differ.

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
    """Return compressed RLEs of the masks; empty without masks."""
    if not instances.has_masks or not len(instances):
        return []
    regions, rles = instances.regions(), []
    image = torch.zeros(instances.image_size[::-1], dtype=torch.uint8).mT  # column-major
    for i in range(len(instances)):
        window = regions.window(i, image)
        window.copy_(regions.mask(i))
        rles.append(encode_mask(image.numpy()))
        window.zero_()
    return rles
