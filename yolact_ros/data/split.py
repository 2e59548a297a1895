"""Holds back images for validation."""

from __future__ import annotations

import numpy as np

from yolact_ros.data.entries import CocoFile


def split(content: CocoFile, share: float, seed: int | None = 0) -> tuple[CocoFile, CocoFile]:
    """Split the content of a COCO-format file in two: for training and for validation.

    The second gets the fraction `share` of the images, at least one, drawn with the `seed`; with
    None, the last ones in the file. Each keeps the annotations of its images, and all categories.
    Raises ValueError for a share that leaves either without images.
    """
    images = content["images"]
    count = max(1, round(share * len(images))) if 0 < share < 1 else 0
    if not 0 < count < len(images):
        raise ValueError(
            f"share={share} is not allowed: it must be above 0 and below 1, and leave both parts "
            f"some of the {len(images)} images"
        )
    order = np.arange(len(images))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    kept_back = {images[i]["id"] for i in order[-count:]}

    def part(is_kept_back: bool) -> CocoFile:
        def belongs(image_id: int) -> bool:
            return (image_id in kept_back) == is_kept_back

        return content | {
            "images": [image for image in images if belongs(image["id"])],
            "annotations": [a for a in content["annotations"] if belongs(a["image_id"])],
        }

    return part(False), part(True)
