"""Draws how masks are assembled from prototypes (YOLACT, figures 2 and 5)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from yolact_ros.detection import detect, make_instances
from yolact_ros.engine import Image, Segmenter, draw_overlay, preprocess
from yolact_ros.image_files import write_image
from yolact_ros.network import Predictions

Map = npt.NDArray[np.float32]
_TILE, _COLUMNS = 180, 8
_SHOWN = 6
"""Number of prototypes in the figure of an assembly."""


@dataclass(frozen=True)
class Assembly:
    """How the mask of one instance is assembled."""

    name: str
    score: float
    coefficients: npt.NDArray[np.float32]
    """[k], -1..1"""
    total: Map
    """[Hp, Wp]: the weighted sum of the prototypes, before the sigmoid and the crop"""
    mask: npt.NDArray[np.bool_]
    """[H, W] of the source image"""


@dataclass(frozen=True)
class Explanation:
    """Prototypes of one image and the assembly of each instance, by descending score."""

    prototypes: Map
    """[k, Hp, Wp], not negative"""
    overlay: Image
    assemblies: tuple[Assembly, ...]


@torch.no_grad()
def explain(segmenter: Segmenter, image: Image) -> Explanation:
    """Segment one BGR image and keep what its masks are made of.

    Raises ValueError for a network whose masks are not made from prototypes.
    """
    if segmenter.config.mask_branch != "prototypes":
        raise ValueError(
            f"the masks of {segmenter.config.name} are not made of prototypes "
            f"(mask_branch={segmenter.config.mask_branch!r}): there is nothing to explain"
        )
    tensor = torch.from_numpy(image).to(segmenter.device)
    runtime = segmenter.runtime
    predictions = runtime(preprocess([tensor], segmenter.config).to(runtime.dtype))
    if not isinstance(predictions, Predictions):
        raise ValueError("an exported network with the detection stage inside cannot be explained")
    assert predictions.prototypes is not None
    detections = detect(predictions, runtime.anchors, segmenter.settings)
    size = (image.shape[0], image.shape[1])
    (instances,) = make_instances(
        detections,
        predictions.prototypes,
        runtime.mask_iou,
        [size],
        segmenter.class_names,
    )
    instances = instances.to("cpu")
    assert detections.coefficients is not None
    coefficients = detections.coefficients[0][detections.valid[0]].float().cpu()
    prototypes = predictions.prototypes[0].float().cpu()
    totals = torch.einsum("nk,khw->nhw", coefficients, prototypes)
    masks = instances.masks.numpy()
    assemblies = tuple(
        Assembly(name, score, coefficients[i].numpy(), totals[i].numpy(), masks[i])
        for i, (name, score) in enumerate(
            zip(instances.names, instances.scores.tolist(), strict=True)
        )
    )
    return Explanation(prototypes.numpy(), draw_overlay(image, instances), assemblies)


def write_figures(image: Image, explanation: Explanation, folder: Path) -> list[Path]:
    """Write prototypes.png, overlay.png and one assembly-NN-CLASS.png for each instance.

    Those of an earlier image are deleted.
    """
    figures = {"overlay.png": explanation.overlay, "prototypes.png": _grid(explanation.prototypes)}
    for i, assembly in enumerate(explanation.assemblies):
        # A class name may contain anything, even path separators.
        shown = re.sub(r"[^\w.-]+", "_", assembly.name)
        figures[f"assembly-{i + 1:02d}-{shown}.png"] = _draw_assembly(
            image, explanation.prototypes, assembly
        )
    for old in folder.glob("assembly-[0-9][0-9]*-*.png"):
        old.unlink()
    for name, figure in figures.items():
        write_image(folder / name, figure)
    return [folder / name for name in figures]


def _grid(prototypes: Map) -> Image:
    """Draw all prototypes, each from black (0) to white (its maximum)."""
    rows = -(-len(prototypes) // _COLUMNS)
    page = np.zeros((rows * _TILE, _COLUMNS * _TILE, 3), np.uint8)
    for i, prototype in enumerate(prototypes):
        row, column = divmod(i, _COLUMNS)
        grey = prototype / max(float(prototype.max()), 1e-9)
        tile = cv2.cvtColor((grey * 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)
        place = np.s_[row * _TILE : (row + 1) * _TILE, column * _TILE : (column + 1) * _TILE]
        page[place] = _titled(tile, f"{i}  max {prototype.max():.1f}")
    return page


def _draw_assembly(image: Image, prototypes: Map, assembly: Assembly) -> Image:
    """Draw one row: coefficients, the prototypes that contribute most, the sum of all, the mask
    before the crop, and the final mask on the image. Red adds, blue subtracts."""
    weight = assembly.coefficients[:, None, None] * prototypes
    share = np.abs(weight).mean(axis=(1, 2))
    largest = np.argsort(-share)[:_SHOWN]
    limit = max(float(np.abs(weight[largest]).max()), 1e-9)
    tiles = [_titled(_bars(assembly.coefficients), "coefficients")]
    tiles += [
        _titled(_signed(weight[i] / limit), f"{i}: {assembly.coefficients[i]:+.2f}")
        for i in largest
    ]
    bound = max(float(np.abs(assembly.total).max()), 1e-9)
    tiles.append(_titled(_signed(assembly.total / bound), "sum of all"))
    probability = 1 / (1 + np.exp(-assembly.total))
    grey = cv2.cvtColor((probability * 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    tiles.append(_titled(np.asarray(grey, np.uint8), "sigmoid"))
    shown = image.copy()
    shown[~assembly.mask] //= 4
    tiles.append(_titled(shown, f"{assembly.name} {assembly.score:.2f}"))
    return np.concatenate(tiles, axis=1)


def _signed(values: Map) -> Image:
    """Colour values -1..1 from blue through white to red."""
    strength = (255 * (1 - np.abs(values).clip(0, 1))).astype(np.uint8)
    full = np.full_like(strength, 255)
    positive = np.stack([strength, strength, full], axis=2)
    negative = np.stack([full, strength, strength], axis=2)
    return np.where((values > 0)[:, :, None], positive, negative)


def _bars(coefficients: npt.NDArray[np.float32]) -> Image:
    """Draw a bar for each coefficient, -1 at the bottom and 1 at the top."""
    page = np.full((_TILE, _TILE, 3), 255, np.uint8)
    width, middle = _TILE / len(coefficients), _TILE // 2
    for i, value in enumerate(coefficients.tolist()):
        colour = (40, 40, 220) if value > 0 else (220, 40, 40)
        corners = (int(i * width), middle), (int((i + 1) * width) - 1, int(middle * (1 - value)))
        cv2.rectangle(page, *corners, colour, cv2.FILLED)
    return page


def _titled(image: Image, title: str) -> Image:
    tile = np.asarray(cv2.resize(image, (_TILE, _TILE)), np.uint8)
    for colour, thickness in ((255, 255, 255), 3), ((0, 0, 0), 1):
        cv2.putText(tile, title, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, thickness)
    return tile
