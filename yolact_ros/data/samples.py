"""A page of images with their annotations, to check that they match."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from yolact_ros.data.coco import Dataset, ImageRecord
from yolact_ros.data.masks import decode_mask
from yolact_ros.image_files import write_image

_ROWS, _COLUMNS, _TILE = 4, 6, 320
_FONT, _TEXT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4


def draw_samples(dataset: Dataset, path: Path) -> None:
    """Write a PNG with 24 random images that have annotations: masks, boxes and class names."""
    names = dataset.class_names
    records = [r for r in dataset.records(names) if r.annotations]
    generator = np.random.default_rng(0)
    chosen = generator.permutation(len(records))[: _ROWS * _COLUMNS]
    page = np.zeros((_ROWS * _TILE, _COLUMNS * _TILE, 3), np.uint8)
    for i, index in enumerate(chosen):
        row, column = divmod(i, _COLUMNS)
        tile = _tile(records[index], names)
        top, left = row * _TILE, column * _TILE
        page[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    write_image(path, page)


def _tile(record: ImageRecord, names: Sequence[str]) -> npt.NDArray[np.uint8]:
    image = record.read()
    scale = _TILE / max(image.shape[:2])
    colours = _colours(len(record.annotations))
    for annotation, colour in zip(record.annotations, colours, strict=True):
        mask = decode_mask(annotation.segmentation, record.height, record.width) > 0
        image[mask] = (image[mask] * 0.5 + colour * 0.5).astype(np.uint8)
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    image = np.asarray(cv2.resize(image, (width, height)), np.uint8)
    for annotation, colour in zip(record.annotations, colours, strict=True):
        x, y, w, h = (round(v * scale) for v in annotation.box)
        bgr = tuple(map(int, colour))
        name = names[annotation.label] + (" (crowd)" if annotation.is_crowd else "")
        cv2.rectangle(image, (x, y), (x + w, y + h), bgr, 1)
        _label(image, name, x, y, bgr)
    return image[:_TILE, :_TILE]


def _colours(count: int) -> npt.NDArray[np.uint8]:
    """Return saturated BGR colours [count, 3], each far from those before it."""
    hues = 180 * (np.arange(count) * 0.618034 % 1)  # the golden ratio; OpenCV's go to 180
    hsv = np.stack((hues, np.full(count, 190), np.full(count, 255)), axis=1).astype(np.uint8)
    return np.asarray(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0], np.uint8)


def _label(image: npt.NDArray[np.uint8], text: str, x: int, y: int, bgr: tuple[int, ...]) -> None:
    """Draw dark text on the colour, above y, or below it if there is no room."""
    (width, height), baseline = cv2.getTextSize(text, _FONT, _TEXT_SCALE, 1)
    x = max(0, min(x, image.shape[1] - width))
    bottom = y if y > height + baseline else y + height + baseline
    cv2.rectangle(image, (x, bottom - height - baseline), (x + width, bottom), bgr, cv2.FILLED)
    line = (x, bottom - baseline // 2 - 1)
    cv2.putText(image, text, line, _FONT, _TEXT_SCALE, (20, 20, 20), 1, cv2.LINE_AA)
