"""A page of pictures with their annotations, to see that they belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from yolact_ros.data.coco import DataSource, ImageRecord, decode_mask, read_records
from yolact_ros.pictures import write_picture

_ROWS, _COLUMNS, _TILE = 4, 6, 320


def draw_samples(source: DataSource, content: dict[str, Any], path: Path, seed: int = 0) -> None:
    """Write a PNG with 24 random pictures that have annotations: masks, boxes and class names."""
    names = [c["name"] for c in content["categories"]]
    records = [r for r in read_records(source, names, content) if r.annotations]
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(records))[: _ROWS * _COLUMNS]
    page = np.zeros((_ROWS * _TILE, _COLUMNS * _TILE, 3), np.uint8)
    for i, index in enumerate(chosen):
        row, column = divmod(i, _COLUMNS)
        tile = _tile(records[index], names)
        top, left = row * _TILE, column * _TILE
        page[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    write_picture(path, page)


def _tile(record: ImageRecord, names: list[str]) -> npt.NDArray[np.uint8]:
    image = record.read()
    scale = _TILE / max(image.shape[:2])
    colours = np.random.default_rng(1).integers(80, 255, (len(record.annotations), 3))
    for annotation, colour in zip(record.annotations, colours, strict=True):
        mask = decode_mask(annotation.segmentation, record.height, record.width) > 0
        image[mask] = (image[mask] * 0.5 + colour * 0.5).astype(np.uint8)
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    image = np.asarray(cv2.resize(image, (width, height)), np.uint8)
    for annotation, colour in zip(record.annotations, colours, strict=True):
        x, y, w, h = (round(v * scale) for v in annotation.box)
        bgr = tuple(map(int, colour))
        cv2.rectangle(image, (x, y), (x + w, y + h), bgr, 1)
        name = names[annotation.label] + (" (crowd)" if annotation.is_crowd else "")
        cv2.putText(image, name, (x + 2, y + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, bgr, 1)
    return image[:_TILE, :_TILE]
