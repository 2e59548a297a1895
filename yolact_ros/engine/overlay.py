"""Overlays: masks, boxes, class names and scores drawn over the image."""

from __future__ import annotations

import colorsys
import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from yolact_ros.detection import Instances
from yolact_ros.image_files import Image

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GOLDEN_RATIO = 0.618034
DRAWS_UNICODE = int(cv2.__version__.partition(".")[0]) >= 5
"""Whether OpenCV draws more than ASCII."""


_SHADES = ((0.0, 0.75, 1.0), (0.15, 0.75, 1.0), (-0.15, 0.75, 1.0), (0.05, 0.5, 0.7))
"""Shades of the instances of a class, from left to right, repeated: hue relative to the class,
saturation, value."""


def class_colours(count: int) -> npt.NDArray[np.uint8]:
    """Return a BGR colour for each class id, [count, 3]; the same in every image and every run."""
    return np.array([_colour(i, 0) for i in range(count)], np.uint8).reshape(count, 3)


def instance_colours(instances: Instances) -> npt.NDArray[np.uint8]:
    """Return BGR colours [n, 3]: those of the classes, in shades that tell neighbours apart.

    The leftmost instance of a class has the class colour. Colours are stable from frame to frame
    while objects keep their order.
    """
    class_ids, boxes = instances.class_ids.numpy(), instances.boxes.numpy()
    order = np.lexsort((boxes[:, 0] + boxes[:, 2], class_ids))
    colours = np.empty((len(class_ids), 3), np.uint8)
    place, last = 0, None
    for i, class_id in zip(order.tolist(), class_ids[order].tolist(), strict=True):
        place, last = (place + 1 if class_id == last else 0), class_id
        colours[i] = _colour(class_id, place % len(_SHADES))
    return colours


@functools.cache
def _colour(class_id: int, shade: int) -> tuple[int, ...]:
    hue, saturation, value = _SHADES[shade]
    rgb = colorsys.hsv_to_rgb((0.35 + class_id * _GOLDEN_RATIO + hue) % 1, saturation, value)
    return tuple(round(255 * part) for part in reversed(rgb))


def draw_overlay(
    image: Image,
    instances: Instances,
    *,
    alpha: float = 0.45,
    boxes: bool = True,
    labels: bool = True,
) -> Image:
    """Return a copy of a BGR image [H, W, 3] with the instances (on the CPU) drawn on it.

    `alpha` is the opacity of masks, 0 to 1; outlines are opaque.
    Raises ValueError if the image does not have the size of the instances' image.
    """
    height, width = instances.image_size
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"an image of {image.dtype} and shape {image.shape} is not allowed: the instances are "
            f"of a uint8 image of shape {(height, width, 3)}"
        )
    result = image.copy()
    if len(instances) == 0:
        return result
    colours = instance_colours(instances)
    side = min(height, width)
    if instances.has_masks:
        _draw_masks(result, instances.label_image().numpy(), colours, alpha, max(1, side // 600))
    thickness = max(1, round(side / 300))
    corners, names = instances.integer_boxes().tolist(), instances.names
    shown = [i for i, (x1, y1, x2, y2) in enumerate(corners) if x1 <= x2 and y1 <= y2]
    if boxes:
        for i in reversed(shown):  # the best one on top
            x1, y1, x2, y2 = corners[i]
            cv2.rectangle(result, (x1, y1), (x2 - 1, y2 - 1), colours[i].tolist(), thickness)
    if labels:
        ids = instances.class_ids.tolist()
        texts = [f"{_drawable(names[i], ids[i])} {instances.scores[i]:.2f}" for i in shown]
        placed = _place_labels(texts, [corners[i] for i in shown], (height, width), thickness)
        for i, label in reversed(list(zip(shown, placed, strict=True))):
            if label is not None:
                _draw_label(result, label, colours[i].tolist())
    return result


def _drawable(name: str, class_id: int) -> str:
    """Return a class name, without what this release of OpenCV would draw as question marks."""
    if DRAWS_UNICODE or name.isascii():
        return name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return plain.strip() or f"class {class_id}"


def _draw_masks(
    image: Image,
    label_image: npt.NDArray[np.int32],
    colours: npt.NDArray[np.uint8],
    alpha: float,
    thickness: int,
) -> None:
    """Blend each instance's colour in, and draw its outline."""
    labels = label_image.astype(np.uint16)
    x, y, width, height = cv2.boundingRect((labels > 0).view(np.uint8))
    # With a border of background, if there is any: outlines need it.
    window = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]
    image, labels = image[window], labels[window]
    # Look up each colour as one 4-byte number; the fourth byte is unused.
    palette = np.zeros((1 + len(colours), 4), np.uint8)
    palette[1:, :3] = colours
    four = palette.view(np.uint32)[:, 0].take(labels).view(np.uint8)
    layer = cv2.cvtColor(four.reshape(*labels.shape, 4), cv2.COLOR_BGRA2BGR)
    blended = cv2.addWeighted(image, 1 - alpha, layer, alpha, 0)
    inside = labels > 0
    # An outline is where the smallest and the largest label around a pixel differ.
    size = (2 * thickness + 1, 2 * thickness + 1)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, size)
    outline = (cv2.erode(labels, cross) != cv2.dilate(labels, cross)) & inside
    cv2.copyTo(blended, inside.view(np.uint8), image)
    cv2.copyTo(layer, outline.view(np.uint8), image)


@dataclass(frozen=True)
class _Label:
    """A text on a patch of the image."""

    text: str
    scale: float
    left: int
    top: int
    right: int
    bottom: int
    baseline: int
    """How far descenders reach below the baseline."""

    def overlaps(self, other: _Label) -> bool:
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.bottom <= other.top or other.bottom <= self.top)


def _place_labels(
    texts: Sequence[str],
    boxes: Sequence[Sequence[int]],
    size: tuple[int, int],
    thickness: int,
) -> list[_Label | None]:
    """Place each label above its box, else inside or outside another edge, where none is yet.

    None for a label larger than the image. `boxes` are (x1, y1, x2, y2), best first.
    """
    placed: list[_Label | None] = []
    for text, (x1, y1, _, y2) in zip(texts, boxes, strict=True):
        scale = 0.45 * thickness**0.7
        (width, height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
        height += baseline
        if width > size[1] or height > size[0]:
            placed.append(None)
            continue
        left = max(0, min(x1, size[1] - width))
        tops = [max(0, min(top, size[0] - height)) for top in (y1 - height, y1, y2 - height, y2)]
        ways = [_Label(text, scale, left, t, left + width, t + height, baseline) for t in tops]
        taken = [label for label in placed if label is not None]
        free = (way for way in ways if not any(way.overlaps(label) for label in taken))
        placed.append(next(free, ways[0]))
    return placed


def _draw_label(image: Image, label: _Label, colour: list[int]) -> None:
    """Draw dark text on a coloured patch."""
    corner, end = (label.left, label.top), (label.right, label.bottom)
    cv2.rectangle(image, corner, end, colour, cv2.FILLED)
    line = (label.left, label.bottom - label.baseline // 2 - 1)
    cv2.putText(image, label.text, line, _FONT, label.scale, (20, 20, 20), 1, cv2.LINE_AA)
