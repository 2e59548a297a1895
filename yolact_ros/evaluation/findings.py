"""What a model finds in a data set, in the COCO server's format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from tqdm import tqdm

from yolact_ros.data import (
    DataError,
    Dataset,
    DataSource,
    Rle,
    encode_mask,
    image_path,
    read_annotated_image,
    read_countable,
)
from yolact_ros.detection import Instances
from yolact_ros.engine import Segmenter, StageTimes

if TYPE_CHECKING:
    from typing_extensions import NotRequired


class Result(TypedDict):
    """One detection in the COCO server's format: with a mask or with a box."""

    image_id: int
    category_id: int
    score: float
    """0 to 1; that of a mask may be re-scored."""
    segmentation: NotRequired[Rle]
    bbox: NotRequired[list[float]]
    """x, y, width, height in pixels."""


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


def read_dataset(segmenter: Segmenter, source: DataSource) -> Dataset:
    """Read a data set that `segmenter` can be evaluated on.

    Raises DataError for annotations that cannot be counted, for missing images, or if the file
    has no images or none of the model's classes.
    """
    dataset = read_countable(source, _has_masks(segmenter))
    dataset.category_ids(segmenter.class_names)
    if not dataset.content["images"]:
        raise DataError(f"{source.annotations} has no images")
    return dataset


def find(segmenter: Segmenter, dataset: Dataset, progress: bool = False) -> Findings:
    """Segment all images of a data set."""
    categories = dataset.category_ids(segmenter.class_names)
    findings = Findings([], categories, _has_masks(segmenter), [], [], [])
    for entry in tqdm(dataset.content["images"], "images", disable=not progress):
        size = entry["height"], entry["width"]
        image = read_annotated_image(image_path(dataset.folder, entry["file_name"]), size)
        (instances,), stages = segmenter.submit([image]).result()
        masks, boxes = to_results(entry["id"], instances, categories)
        findings.masks.extend(masks)
        findings.boxes.extend(boxes)
        findings.times.append(stages)
        findings.image_ids.append(entry["id"])
    return findings


def find_parallel(
    makers: Sequence[Callable[[], Segmenter]], source: DataSource, progress: bool = False
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
    dataset = read_dataset(segmenter, source)
    content, images = dataset.content, dataset.content["images"]
    first, end = (i * len(images) // shares for i in (share, share + 1))
    part = dataclasses.replace(dataset, content=content | {"images": images[first:end]})
    return find(segmenter, part, progress and share == 0)


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
        category, (x1, y1, x2, y2) = categories[name], instances.boxes[i].tolist()
        boxes.append(
            {
                "image_id": image_id,
                "category_id": category,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(instances.scores[i]),
            }
        )
        if rles:
            masks.append(
                {
                    "image_id": image_id,
                    "category_id": category,
                    "segmentation": rles[i],
                    "score": float(instances.mask_scores[i]),
                }
            )
    return masks, boxes


def _encode(instances: Instances) -> list[Rle]:
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
