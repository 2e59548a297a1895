"""Pictures for people: masks, boxes, class names and scores drawn over the image."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import numpy.typing as npt

from yolact_ros.detection import Instances

Image = npt.NDArray[np.uint8]
_GOLDEN_RATIO = 0.618034


def class_colours(count: int) -> npt.NDArray[np.uint8]:
    """A BGR colour for each class id, [count, 3]; the same in every image and every run."""
    hues = [(0.35 + i * _GOLDEN_RATIO) % 1 for i in range(count)]
    rgb = [colorsys.hsv_to_rgb(hue, 0.75, 1.0) for hue in hues]
    return (np.array(rgb)[:, ::-1] * 255).round().astype(np.uint8)


def draw_overlay(
    image: Image,
    instances: Instances,
    *,
    alpha: float = 0.45,
    boxes: bool = True,
    labels: bool = True,
) -> Image:
    """A copy of the BGR image [H, W, 3] with the instances drawn on it.

    `alpha` is how much of a mask's pixels is its class's colour, 0 to 1; outlines are opaque.
    Raises ValueError for an image of another size than that of the instances.
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
    colours = class_colours(len(instances.class_names))[instances.class_ids.numpy()]
    if instances.small_masks is not None:
        _draw_masks(result, instances.label_image().numpy(), colours, alpha)
    thickness = max(1, round(min(image.shape[:2]) / 300))
    corners, names = instances.integer_boxes().tolist(), instances.names
    for i in reversed(range(len(instances))):  # the best one on top
        x1, y1, x2, y2 = corners[i]
        if x2 < x1 or y2 < y1:
            continue  # outside the image
        colour = colours[i].tolist()
        if boxes:
            cv2.rectangle(result, (x1, y1), (x2 - 1, y2 - 1), colour, thickness)
        if labels:
            text = f"{names[i]} {instances.scores[i]:.2f}"
            _draw_label(result, text, (x1, y1), colour, thickness)
    return result


def _draw_masks(
    image: Image, label_image: npt.NDArray[np.int32], colours: npt.NDArray[np.uint8], alpha: float
) -> None:
    """Blend each instance's colour in, and draw its outline."""
    labels = label_image.astype(np.uint16)
    x, y, width, height = cv2.boundingRect((labels > 0).view(np.uint8))
    # With a frame of background, where there is any, which outlines are told by.
    window = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]
    image, labels = image[window], labels[window]
    # A colour is looked up as one number of four bytes, the fourth of which is not used.
    palette = np.zeros((1 + len(colours), 4), np.uint8)
    palette[1:, :3] = colours
    four = palette.view(np.uint32)[:, 0].take(labels).view(np.uint8)
    layer = cv2.cvtColor(four.reshape(*labels.shape, 4), cv2.COLOR_BGRA2BGR)
    blended = cv2.addWeighted(image, 1 - alpha, layer, alpha, 0)
    inside = labels > 0
    # An outline is where the smallest and the largest label around a pixel differ.
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    outline = (cv2.erode(labels, cross) != cv2.dilate(labels, cross)) & inside
    cv2.copyTo(blended, inside.view(np.uint8), image)
    cv2.copyTo(layer, outline.view(np.uint8), image)


def _draw_label(
    image: Image, text: str, corner: tuple[int, int], colour: list[int], thickness: int
) -> None:
    """Dark text on a patch of the colour, above the corner where there is room."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.45 * thickness**0.7
    (width, height), baseline = cv2.getTextSize(text, font, scale, 1)
    x = max(0, min(corner[0], image.shape[1] - width))
    bottom = max(corner[1], height + baseline)
    cv2.rectangle(image, (x, bottom - height - baseline), (x + width, bottom), colour, cv2.FILLED)
    cv2.putText(
        image, text, (x, bottom - baseline // 2 - 1), font, scale, (20, 20, 20), 1, cv2.LINE_AA
    )
